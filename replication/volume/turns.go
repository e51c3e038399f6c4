package volume

import (
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/tandem-storage/tandem/replication"
)

// turns shares one thing that resyncs need out among them: a disk, the way from another domain, or this node's part in the
// resyncs of what is attached here. So many have a turn at once, in the order in which they came to ask, and share its rate
// (protocol.md 9.3). Nobody waits in here: who is refused asks again. The priority of a volume moves its place in that order by a
// bounded time, and weighs what its share is above the floor.
type turns struct {
	most   int   // at once; 0 any number
	rate   int64 // bytes a second of all together; 0 unlimited
	floor  int64 // what each may copy at least, if rate has room for one: there are no more turns than that leaves
	spread int64 // what each of those that ask already adds to the time within which another one begins, ns

	priority func(replication.VolumeID) replication.ResyncPriority // nil: all are normal

	mu   sync.Mutex
	asks []*turn // oldest first
}

// turn is a resync that has one or asks for it.
type turn struct {
	of      hostKey // the replica that is read or written
	granted bool
	since   int64 // it came to ask
	from    int64 // not before, as now tells it
	seen    int64 // when it was last asked for
}

// headStart is by how much a resync goes before those of the next lower priority that came at the same moment, ns: it is before those that came so much earlier, and no
// others, so that nobody waits without end.
const headStart = int64(10 * time.Minute)

// standing is what a priority is worth: the weight of the share above the floor, and the head start.
func (s *turns) standing(v replication.VolumeID) (weight, start int64) {
	if s.priority == nil {
		return 4, 0
	}
	switch s.priority(v) {
	case replication.ResyncLow:
		return 1, -headStart
	case replication.ResyncHigh:
		return 16, headStart
	default:
		return 4, 0
	}
}

// Who has not asked for so long, in nanoseconds, is forgotten: who has a turn, so that a coordinator that died frees it, and who has
// none, after it was to ask again.
const (
	turnKept    = int64(5 * time.Second)
	turnWaiting = int64(time.Second)
)

// take reports whether the resync of a replica has a turn now, and gives it one if it can. runs: it copies already; that is not
// stopped, so it has a turn, one too many maybe. A turn is to be taken again before turnKept, or it is lost.
func (s *turns) take(t int64, of hostKey, runs bool) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.forget(t)
	a := s.find(of)
	if a == nil {
		a = &turn{of: of, since: t, from: t}
		if n := int64(len(s.asks)); n > 0 && s.spread > 0 {
			a.from += rand.Int64N(n * s.spread)
		}
		s.asks = append(s.asks, a)
	}
	a.seen = t
	if !a.granted && (runs || s.granted() < s.limit() && s.first(t) == a) {
		a.granted = true
	}
	return a.granted
}

// pass gives a turn back, if there is one, and lets others go before until a time. The place is kept for who asks then.
func (s *turns) pass(of hostKey, until int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if a := s.find(of); a != nil {
		a.granted, a.from = false, until
	}
}

// leave forgets a resync: it has ended, or is not wanted any more.
func (s *turns) leave(of hostKey) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asks = slices.DeleteFunc(s.asks, func(a *turn) bool { return a.of == of })
}

// waiting counts those that ask and have no turn.
func (s *turns) waiting() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.asks) - s.granted()
}

// share is what one that has a turn may copy in a second, 0 unlimited: a floor, as far as rate has one for each, and by its weight of what is left.
func (s *turns) share(of hostKey) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.rate <= 0 {
		return 0
	}
	var n, weights int64
	for _, a := range s.asks {
		if a.granted {
			w, _ := s.standing(a.of.vol)
			n, weights = n+1, weights+w
		}
	}
	w, _ := s.standing(of.vol)
	n, weights = max(n, 1), max(weights, w)
	least := min(s.floor, s.rate/n)
	return max(least+(s.rate-n*least)*w/weights, 1)
}

// limit is how many may have a turn.
func (s *turns) limit() int {
	n := s.most
	if n <= 0 {
		n = int(^uint(0) >> 1)
	}
	if s.rate > 0 && s.floor > 0 {
		n = min(n, int(max(s.rate/s.floor, 1)))
	}
	return n
}

func (s *turns) find(of hostKey) *turn {
	i := slices.IndexFunc(s.asks, func(a *turn) bool { return a.of == of })
	if i < 0 {
		return nil
	}
	return s.asks[i]
}

// first is who is next to have a turn, nil if nobody is.
func (s *turns) first(t int64) (next *turn) {
	var best int64
	for _, a := range s.asks {
		if a.granted || t < a.from {
			continue
		}
		_, start := s.standing(a.of.vol)
		if came := a.since - start; next == nil || came < best {
			next, best = a, came
		}
	}
	return next
}

// granted counts those that have a turn.
func (s *turns) granted() (n int) {
	for _, a := range s.asks {
		if a.granted {
			n++
		}
	}
	return n
}

// forget drops those that do not ask any more.
func (s *turns) forget(t int64) {
	s.asks = slices.DeleteFunc(s.asks, func(a *turn) bool {
		if a.granted {
			return t-a.seen >= turnKept
		}
		return t-max(a.seen, a.from) >= turnWaiting
	})
}
