package volume

import (
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
	if s.share() != 50 || s.waiting() != 3 {
		t.Errorf("two of 100 bytes a second have %d each, %d wait", s.share(), s.waiting())
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
	if !may(4, true) || s.granted() != 3 || s.share() != 33 {
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
		s, n := turns{most: tc.most, rate: tc.rate, floor: tc.floor}, 0
		for _, of := range resyncs(20) {
			if s.take(1, of, false) {
				n++
			}
		}
		if n != tc.want || s.share() != tc.share {
			t.Errorf("%d at most, %d bytes a second, at least %d each: %d have a turn and %d each, want %d and %d", tc.most, tc.rate, tc.floor, n, s.share(), tc.want, tc.share)
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
