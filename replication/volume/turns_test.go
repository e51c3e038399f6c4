package volume

import "testing"

// The speed of a resync follows a change within some ten seconds, and a pause of a moment does not make it jump.
func TestSpeed(t *testing.T) {
	var s speed
	now, done := int64(1e15), int64(0)
	run := func(seconds int, rate int64) (got int64) {
		for range seconds * 10 {
			now += 1e8
			done += rate / 10
			got = s.measure(now, done)
		}
		return got
	}
	if got := s.measure(now, 0); got != 0 {
		t.Errorf("%d bytes a second before anything is known", got)
	}
	for _, tc := range []struct {
		seconds           int
		rate, least, most int64
	}{{2, 1000, 990, 1010}, {1, 0, 800, 950}, {60, 1000, 990, 1010}, {30, 100, 100, 150}} {
		if got := run(tc.seconds, tc.rate); got < tc.least || got > tc.most {
			t.Errorf("%d bytes a second after %d s of %d, want %d to %d", got, tc.seconds, tc.rate, tc.least, tc.most)
		}
	}
}

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
