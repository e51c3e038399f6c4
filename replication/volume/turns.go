package volume

import (
	"math/rand/v2"
	"slices"
	"sync"
	"time"
)

// turns shares among the volumes that are attached here what they resync at once: how many, and how much in a second (protocol.md 9.3).
// When many replicas come back at the same moment they do not all begin in it.
type turns struct {
	most int   // at once
	rate int64 // bytes a second of all together; 0 unlimited

	mu   sync.Mutex
	asks []*turn // oldest first
}

// turn is a volume that wants to resync.
type turn struct {
	v       *Volume
	from    int64 // not before, as now tells it
	granted int64 // when it was, or when the resync was last seen; 0 if it was not
}

// turnIdle is how long a volume whose resync does not begin keeps a turn that others wait for.
const turnIdle = int64(5 * time.Second)

// turnSpread is what each of those that ask already adds to the time within which another one begins.
const turnSpread = int64(100 * time.Millisecond)

// take reports whether v may resync now, and at most how many bytes a second it copies. want: it wants to; runs: it does.
func (s *turns) take(t int64, v *Volume, want, runs bool) (may bool, rate int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := slices.IndexFunc(s.asks, func(a *turn) bool { return a.v == v })
	if !want {
		if i >= 0 {
			s.asks = slices.Delete(s.asks, i, i+1)
		}
		return false, s.share()
	}
	if i < 0 {
		a := &turn{v: v, from: t}
		if n := int64(len(s.asks)); n > 0 {
			a.from += rand.Int64N(n * turnSpread)
		}
		i, s.asks = len(s.asks), append(s.asks, a)
	}
	a := s.asks[i]
	switch {
	case runs:
		a.granted = t
	case a.granted != 0 && t-a.granted >= turnIdle && len(s.asks) > s.most:
		a.granted = 0 // behind those that wait
		s.asks = append(slices.Delete(s.asks, i, i+1), a)
	case a.granted == 0 && t >= a.from && s.granted() < s.most && s.first(t) == a:
		a.granted = t
	}
	return a.granted != 0, s.share()
}

// first is who is next to begin, nil if nobody is.
func (s *turns) first(t int64) *turn {
	i := slices.IndexFunc(s.asks, func(a *turn) bool { return a.granted == 0 && t >= a.from })
	if i < 0 {
		return nil
	}
	return s.asks[i]
}

// granted counts those that have a turn.
func (s *turns) granted() (n int) {
	for _, a := range s.asks {
		if a.granted != 0 {
			n++
		}
	}
	return n
}

// share is what one of those that have a turn may copy in a second.
func (s *turns) share() int64 {
	if s.rate <= 0 {
		return 0
	}
	return max(s.rate/int64(max(s.granted(), 1)), 1)
}

// leave forgets a volume that has ended.
func (s *turns) leave(v *Volume) { s.take(0, v, false, false) }

// takeTurn asks for the volume's turn, and tells the state machine. By its worker.
func (v *Volume) takeTurn(t int64) {
	may, rate := v.m.turns.take(t, v, v.core.WantsResync(), v.core.Resync() != nil)
	if may != v.turn || rate != v.turnRate || !v.turnTold {
		v.turn, v.turnRate, v.turnTold = may, rate, true
		v.core.SetResync(t, may, rate)
	}
}
