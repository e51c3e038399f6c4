package volume

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tandem-storage/tandem/replication"
	"github.com/tandem-storage/tandem/replication/transport"
)

// budget is what a node has for resyncs: as the coordinators' node, for each of its pools, which resyncs read and write, and for
// what comes from each other domain to its replicas.
type budget struct {
	node turns
	t    *Timing

	mu    sync.Mutex
	pools map[string]*turns
	links map[replication.DomainID]*turns

	priorities atomic.Pointer[map[replication.VolumeID]replication.ResyncPriority]
}

// priority is that of a volume.
func (b *budget) priority(v replication.VolumeID) replication.ResyncPriority {
	if m := b.priorities.Load(); m != nil {
		return (*m)[v]
	}
	return replication.ResyncNormal
}

// SetResyncPriorities says how the resyncs of volumes stand to each other in the turns of this node, whether they are attached here or have a replica
// here; those that are not named are normal. In force with the next second of each resync, of those that run too. in is the manager's from then on.
func (m *Manager) SetResyncPriorities(in map[replication.VolumeID]replication.ResyncPriority) {
	m.budget.priorities.Store(&in)
}

// turnSpread is how far those apart begin that come to need a resync at the same moment, for each that came before.
const turnSpread = int64(100 * time.Millisecond)

func (b *budget) init(t *Timing) {
	b.t = t
	b.node.priority = b.priority
	b.node.most, b.node.rate, b.node.floor, b.node.spread = t.Resyncs, t.ResyncRate, t.ResyncFloor, turnSpread
	b.pools = make(map[string]*turns)
	b.links = make(map[replication.DomainID]*turns)
}

// pool is what a pool of this node has for resyncs.
func (b *budget) pool(name string) *turns {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := b.pools[name]
	if s == nil {
		s = &turns{most: b.t.PoolResyncs, rate: b.t.PoolResyncRate, floor: b.t.ResyncFloor, priority: b.priority}
		b.pools[name] = s
	}
	return s
}

// link is what the way from another domain to this node has for them.
func (b *budget) link(d replication.DomainID) *turns {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := b.links[d]
	if s == nil {
		s = &turns{rate: b.t.LinkResyncRate, floor: b.t.ResyncFloor, priority: b.priority}
		b.links[d] = s
	}
	return s
}

// claim is one turn that a resync needs.
type claim struct {
	s  *turns
	of hostKey
}

// turnPause is how long others may go before one of whose turns some could be had and some not.
const turnPause = int64(250 * time.Millisecond)

// takeAll takes all the turns that a resync needs or none, so that nobody holds one while it waits for another, and returns what
// they let it copy in a second, 0 unlimited.
func takeAll(t int64, runs bool, claims []claim) (rate int64, ok bool) {
	for i, c := range claims {
		if !c.s.take(t, c.of, runs) {
			passAll(claims[:i], t+turnPause)
			return 0, false
		}
	}
	for _, c := range claims {
		rate = lesser(rate, c.s.share(c.of))
	}
	return rate, true
}

func passAll(claims []claim, until int64) {
	for _, c := range claims {
		c.s.pass(c.of, until)
	}
}

func leaveAll(claims []claim) {
	for _, c := range claims {
		c.s.leave(c.of)
	}
}

// lesser is the lower one of two rates, of which 0 is no limit.
func lesser(a, b int64) int64 {
	switch {
	case a == 0:
		return b
	case b == 0:
		return a
	default:
		return min(a, b)
	}
}

// Who is refused asks again after turnAgain, and after turnEach more for each that waits already: the more wait, the longer it
// takes, and the less they ask. At most turnMost.
const (
	turnAgain = 500 * time.Millisecond
	turnEach  = 50 * time.Millisecond
	turnMost  = 10 * time.Second
)

// Turn implements transport.Handler.
func (m *Manager) Turn(_ context.Context, from transport.Identity, q replication.TurnRequest) (replication.TurnResult, error) {
	if st := m.allowed(from); st != replication.StatusOK {
		return replication.TurnResult{Status: st}, nil
	}
	h := m.host(q.Volume, q.Replica)
	if h == nil {
		return replication.TurnResult{Status: replication.StatusNotFound}, nil
	}
	return m.budget.turn(now(), h.st.Pool(), from.Domain != m.o.Domain, from.Domain, q), nil
}

// turn answers for a replica in a pool. far: the coordinator is in another domain than this node.
func (b *budget) turn(t int64, pool string, far bool, from replication.DomainID, q replication.TurnRequest) replication.TurnResult {
	of := hostKey{q.Volume, q.Replica}
	disk := b.pool(pool)
	claims := []claim{{disk, of}}
	if far {
		claims = append(claims, claim{b.link(from), of})
	}
	if q.Ended {
		leaveAll(claims)
		return replication.TurnResult{}
	}
	if rate, ok := takeAll(t, q.Runs, claims); ok {
		return replication.TurnResult{Granted: true, Rate: rate}
	}
	waits := 0
	for _, c := range claims {
		waits = max(waits, c.s.waiting())
	}
	again := min(turnAgain+time.Duration(waits)*turnEach, turnMost)
	passAll(claims, t+int64(again))
	return replication.TurnResult{Again: again}
}
