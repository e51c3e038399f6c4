package volume

import "testing"

// So many resync at once as may, in the order in which they asked, and share the rate; who has a turn and does not begin makes room.
func TestTurns(t *testing.T) {
	s := turns{most: 2, rate: 100}
	vs := make([]*Volume, 5)
	for i := range vs {
		vs[i] = &Volume{}
	}
	now := int64(1)
	may := func(i int, runs bool) bool {
		ok, rate := s.take(now, vs[i], true, runs)
		if want := s.rate / int64(max(s.granted(), 1)); rate != want {
			t.Errorf("a rate of %d, want %d", rate, want)
		}
		return ok
	}
	for i := range vs {
		if ok := may(i, false); ok != (i == 0) {
			t.Errorf("%d of those that asked at once: %v", i, ok)
		}
	}
	spread := map[int64]bool{}
	for _, a := range s.asks {
		spread[a.from] = true
	}
	if len(spread) < 4 {
		t.Errorf("five that come at once begin at %v", spread)
	}
	now += int64(len(vs)) * turnSpread
	for i := range vs {
		if ok := may(i, i == 0); ok != (i < 2) {
			t.Errorf("%d may resync: %v", i, ok)
		}
	}
	now += turnIdle // 0 is being resynced, 1 has not begun
	for range 2 {
		for i := range vs {
			may(i, i == 0)
		}
	}
	if !may(0, true) || may(1, false) || !may(2, false) {
		t.Errorf("who did not begin has not made room for the next")
	}
	s.leave(vs[0])
	if !may(3, false) || may(4, false) || may(1, false) {
		t.Errorf("one ended, and not exactly the next may resync")
	}
	s.leave(vs[2])
	s.leave(vs[3])
	if !may(4, false) || !may(1, false) {
		t.Errorf("room for two, and nobody comes")
	}
	if ok, _ := s.take(now, vs[1], false, false); ok || s.granted() != 1 {
		t.Errorf("who wants nothing has a turn")
	}
}
