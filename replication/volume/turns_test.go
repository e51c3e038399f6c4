package volume

import (
	"slices"
	"testing"
	"time"

	"github.com/tandem-storage/tandem/replication"
)

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

// resyncs is n replicas that are to be resynced.
func resyncs(n int) []hostKey {
	rs := make([]hostKey, n)
	for i := range rs {
		rs[i] = hostKey{replication.VolumeID(replication.NewUUID()), replication.ReplicaID(replication.NewUUID())}
	}
	return rs
}

// So many have a turn at once as may, in the order in which they asked, and share the rate.
func TestTurns(t *testing.T) {
	s, rs, now := turns{most: 2, rate: 100}, resyncs(5), int64(1)
	may := func(i int, runs bool) bool { return s.take(now, rs[i], runs) }
	for i := range rs {
		if ok := may(i, false); ok != (i < 2) {
			t.Errorf("%d of those that asked has a turn: %v", i, ok)
		}
	}
	if s.share(rs[0]) != 50 || s.share(rs[1]) != 50 || s.waiting() != 3 {
		t.Errorf("two of 100 bytes a second have %d and %d, %d wait", s.share(rs[0]), s.share(rs[1]), s.waiting())
	}
	s.leave(rs[0])
	if may(4, false) || may(3, false) || !may(2, false) {
		t.Error("one ended, and not exactly the next has its turn")
	}
	s.pass(rs[2], now+10) // lets others go before
	if !may(3, false) || may(4, false) {
		t.Error("one passed, and not exactly the next has its turn")
	}
	now += 10
	s.leave(rs[1])
	if may(4, false) || !may(2, false) {
		t.Error("who passed has lost its place")
	}
	if !may(4, true) || s.granted() != 3 || s.share(rs[4]) != 33 || s.share(rs[2]) != 33 {
		t.Error("what copies already has no turn")
	}
}

// Who does not ask any more is forgotten, with its turn and with its place.
func TestTurnsForgotten(t *testing.T) {
	s, rs, now := turns{most: 1}, resyncs(4), int64(1)
	for i := range 3 {
		s.take(now, rs[i], false)
	}
	s.pass(rs[1], now+int64(3*time.Second)) // it was told when to ask again
	now += turnWaiting
	if s.take(now, rs[3], false) || len(s.asks) != 3 || s.find(rs[2]) != nil {
		t.Error("who was to ask by now is not forgotten, or one who was not is")
	}
	for now += turnWaiting; now < turnKept; now += turnWaiting / 2 {
		if s.take(now, rs[3], false) {
			t.Fatalf("a turn that was taken is lost after %v", time.Duration(now))
		}
	}
	now = turnKept + 1
	if !s.take(now, rs[3], false) {
		t.Error("who died with its turn has it still")
	}
}

// A rate has room for so many turns as it has floors, and for one in any case.
func TestTurnsFloor(t *testing.T) {
	for _, tc := range []struct {
		most        int
		rate, floor int64
		want        int
		share       int64
	}{{4, 0, 16, 4, 0}, {4, 64, 16, 4, 16}, {4, 40, 16, 2, 20}, {4, 10, 16, 1, 10}, {0, 160, 16, 10, 16}, {0, 0, 16, 20, 0}, {1, 0, 0, 1, 0}} {
		s, have := turns{most: tc.most, rate: tc.rate, floor: tc.floor}, []hostKey{}
		for _, of := range resyncs(20) {
			if s.take(1, of, false) {
				have = append(have, of)
			}
		}
		for _, of := range have {
			if len(have) != tc.want || s.share(of) != tc.share {
				t.Errorf("%d at most, %d bytes a second, at least %d each: %d have a turn and %d each, want %d and %d", tc.most, tc.rate, tc.floor, len(have), s.share(of), tc.want, tc.share)
			}
		}
	}
}

// Of many that come to ask at once each begins at random within a time that grows with their number.
func TestTurnsSpread(t *testing.T) {
	s, spread := turns{most: 1, spread: turnSpread}, map[int64]bool{}
	for _, of := range resyncs(20) {
		s.take(1, of, false)
	}
	for i, a := range s.asks {
		if a.from < 1 || a.from > 1+int64(i)*turnSpread {
			t.Errorf("%d begins after %v", i, time.Duration(a.from))
		}
		spread[a.from] = true
	}
	if len(spread) < 15 {
		t.Errorf("20 that come at once begin at %d moments", len(spread))
	}
}

// prioritised are turns of resyncs of which each has a priority.
func prioritised(s *turns, rs []hostKey, ps ...replication.ResyncPriority) *turns {
	s.priority = func(v replication.VolumeID) replication.ResyncPriority {
		for i, of := range rs {
			if of.vol == v {
				return ps[i]
			}
		}
		return replication.ResyncNormal
	}
	return s
}

// A higher priority goes before those that wait, and before nobody who has waited for longer than it is worth. What runs is not stopped.
func TestTurnsPriority(t *testing.T) {
	const low, normal, high = replication.ResyncLow, replication.ResyncNormal, replication.ResyncHigh
	for _, tc := range []struct {
		name  string
		ps    []replication.ResyncPriority
		after []time.Duration // that each asks, the first has the turn
		want  []int           // the order in which the others get it
	}{
		{"all alike", []replication.ResyncPriority{low, normal, normal, normal}, []time.Duration{0, 0, 1, 2}, []int{1, 2, 3}},
		{"at once", []replication.ResyncPriority{low, low, normal, high}, []time.Duration{0, 0, 0, 0}, []int{3, 2, 1}},
		{"within what it is worth", []replication.ResyncPriority{low, normal, high}, []time.Duration{0, 0, time.Duration(headStart) - 1}, []int{2, 1}},
		{"no more than that", []replication.ResyncPriority{low, normal, high}, []time.Duration{0, 0, time.Duration(headStart) + 1}, []int{1, 2}},
		{"low behind high", []replication.ResyncPriority{normal, low, high}, []time.Duration{0, 0, time.Duration(2*headStart) + 1}, []int{1, 2}},
	} {
		rs := resyncs(len(tc.ps))
		s, now := prioritised(&turns{most: 1}, rs, tc.ps...), int64(1)
		ask := func(which []int) {
			for _, i := range which {
				if now >= 1+int64(tc.after[i]) {
					s.take(now, rs[i], false)
				}
			}
		}
		all := append([]int{0}, tc.want...)
		slices.Sort(all)
		last := int64(tc.after[len(tc.after)-1])
		for ask(all); now < 1+last; ask(all) { // as takeTurn does
			now = min(now+turnWaiting/2, 1+last)
		}
		if len(s.asks) != len(rs) || s.granted() != 1 || !s.find(rs[0]).granted {
			t.Fatalf("%s: %d ask, %d have a turn", tc.name, len(s.asks), s.granted())
		}
		var got []int
		s.leave(rs[0])
		for range tc.want {
			for _, i := range tc.want {
				if !slices.Contains(got, i) && s.take(now, rs[i], false) {
					got = append(got, i)
					s.leave(rs[i])
					break
				}
			}
		}
		if !slices.Equal(got, tc.want) {
			t.Errorf("%s: in the order %v, want %v", tc.name, got, tc.want)
		}
	}
}

// Above the floor a rate is shared by weight; nobody has less than the floor for the sake of another one, and together they have no more than the rate. A priority that
// is changed counts at once, also for what runs.
func TestTurnsShareByPriority(t *testing.T) {
	const low, normal, high = replication.ResyncLow, replication.ResyncNormal, replication.ResyncHigh
	for _, tc := range []struct {
		rate, floor int64
		ps          []replication.ResyncPriority
		want        []int64
	}{
		{210, 0, []replication.ResyncPriority{low, normal, high}, []int64{10, 40, 160}},
		{210 + 3*16, 16, []replication.ResyncPriority{low, normal, high}, []int64{26, 56, 176}},
		{48, 16, []replication.ResyncPriority{low, normal, high}, []int64{16, 16, 16}},
		{100, 16, []replication.ResyncPriority{high, high}, []int64{50, 50}},
		{100, 16, []replication.ResyncPriority{low}, []int64{100}},
		{9, 16, []replication.ResyncPriority{low}, []int64{9}},
		{0, 16, []replication.ResyncPriority{low, high}, []int64{0, 0}},
	} {
		rs := resyncs(len(tc.ps))
		s := prioritised(&turns{rate: tc.rate, floor: tc.floor}, rs, tc.ps...)
		check := func(want []int64) {
			t.Helper()
			var sum int64
			for i, of := range rs {
				if !s.take(1, of, false) {
					t.Fatalf("%+v: %d has no turn", tc, i)
				}
			}
			for i, of := range rs {
				sum += s.share(of)
				if got := s.share(of); got != want[i] {
					t.Errorf("%+v: %d has %d bytes a second, want %d", tc, i, got, want[i])
				}
			}
			if sum > tc.rate {
				t.Errorf("%+v: %d together", tc, sum)
			}
		}
		check(tc.want)
		clear(tc.ps)
		alike := make([]int64, len(rs))
		for i := range alike {
			alike[i] = tc.rate / int64(len(rs))
		}
		check(alike)
	}
}
