package volume

import (
	"context"
	"time"

	"github.com/tandem-storage/tandem/replication"
	"github.com/tandem-storage/tandem/replication/transport"
)

// resyncTurn is what a volume knows of its turn to resync a member (docs/design/0020). It needs one of this node, one of the pool
// that is read here, and one of the node of the member, which bounds its disk and the way to it. It asks that node last, with the
// others in hand, and gives them back when it is refused: nobody holds a turn while it waits for another one.
type resyncTurn struct {
	member  int     // whose turn is asked for, or was granted; -1 nobody's
	asking  bool    // an answer of a member's node is under way
	granted bool    // by that node too
	since   int64   // granted, or when the resync was last seen
	asked   int64   // when that node was asked last
	rate    int64   // what it lets the resync copy in a second, 0 unlimited
	until   []int64 // by member: not to be asked for before

	told       bool // the state machine was told something
	toldMember int  // -1: none may begin
	toldRate   int64
}

const (
	turnRenew   = int64(time.Second)     // a turn of another node is asked for again so often, which also tells its rate
	turnTimeout = 2 * time.Second        // of one question
	turnIdle    = int64(5 * time.Second) // a resync that has its turn and does not come to copy gives it up
)

// turnAnswer is what the node of a member answered.
type turnAnswer struct {
	ended bool // it was told that the turn is not needed any more
	res   replication.TurnResult
	err   error
}

func newResyncTurn(members int) resyncTurn {
	return resyncTurn{member: -1, toldMember: -1, until: make([]int64, members)}
}

// claims are the turns of this node that the resync of a member needs.
func (v *Volume) claims(member int) []claim {
	b, k := &v.m.budget, hostKey{v.id, v.links[member].id}
	claims := []claim{{&b.node, k}}
	if local := v.opts.Local; local != k.id {
		if h := v.m.host(v.id, local); h != nil {
			claims = append(claims, claim{b.pool(h.st.Pool()), hostKey{v.id, local}})
		}
	}
	return claims
}

// takeTurn asks for the volume's turn or keeps it, and tells the state machine. By its worker.
func (v *Volume) takeTurn(t int64) {
	r := &v.turn
	if r.member >= 0 && !r.asking && !v.core.WantsResync(r.member) {
		v.endTurn(0)
	}
	if r.member < 0 && !r.asking {
		r.member = v.nextResync(t)
	}
	if r.member < 0 {
		v.tellTurn(t, -1, r.toldRate)
		return
	}
	runs := v.core.Resync() != nil && v.core.WantsResync(r.member)
	if runs {
		r.since = t
	}
	rate, ok := takeAll(t, runs, v.claims(r.member))
	switch {
	case r.asking:
	case !ok && r.granted:
		v.endTurn(0)
	case !ok:
	case r.granted && t-r.since >= turnIdle:
		v.endTurn(t + int64(turnAgain)) // behind those that wait
	case !r.granted || t-r.asked >= turnRenew:
		r.asked = t
		v.askTurn(replication.TurnRequest{Runs: runs})
	}
	if ok && r.granted {
		v.tellTurn(t, r.member, lesser(rate, r.rate))
	} else {
		v.tellTurn(t, -1, lesser(rate, r.rate))
	}
}

// nextResync is the member to ask for: what is being resynced, or else the one that waits longest for being asked for; -1 if there is none.
func (v *Volume) nextResync(t int64) int {
	next := -1
	for i := range v.links {
		if v.core.WantsResync(i) && (t >= v.turn.until[i] || v.core.Resync() != nil) && (next < 0 || v.turn.until[i] < v.turn.until[next]) {
			next = i
		}
	}
	return next
}

// answeredTurn takes the answer of the member's node.
func (v *Volume) answeredTurn(t int64, a *turnAnswer) {
	r := &v.turn
	r.asking = false
	switch {
	case a.ended:
	case a.err == nil && a.res.Granted:
		if !r.granted {
			r.since = t
		}
		r.granted, r.rate = true, a.res.Rate
	case a.err != nil && r.granted: // it keeps the turn for a while, and is asked again
	default:
		until := t + int64(max(a.res.Again, turnAgain))
		r.until[r.member] = until
		passAll(v.claims(r.member), until)
		r.member, r.granted, r.rate = -1, false, 0
	}
	v.takeTurn(t)
}

// endTurn gives the turn up: the resync has ended, or does not begin; then it is not asked for before until.
func (v *Volume) endTurn(until int64) {
	r := &v.turn
	leaveAll(v.claims(r.member))
	r.until[r.member] = until
	if r.asked != 0 {
		v.askTurn(replication.TurnRequest{Ended: true})
	}
	r.member, r.granted, r.rate, r.asked = -1, false, 0, 0
}

// askTurn asks the node of the member, and lets answeredTurn know.
func (v *Volume) askTurn(q replication.TurnRequest) {
	v.turn.asking = true
	l := v.links[v.turn.member]
	q.Volume, q.Replica = v.id, l.id
	v.m.running.Go(func() {
		ctx, cancel := context.WithTimeout(v.ctx, turnTimeout)
		defer cancel()
		a := turnAnswer{ended: q.Ended}
		a.res, a.err = v.m.askTurn(ctx, l.node, q)
		v.post(volumeInput{kind: inTurn, turn: &a})
	})
}

func (m *Manager) askTurn(ctx context.Context, node replication.NodeID, q replication.TurnRequest) (replication.TurnResult, error) {
	if node == m.o.Node {
		return m.Turn(ctx, transport.Identity{Domain: m.o.Domain, Node: node}, q)
	}
	p, err := m.o.Peers.Peer(node)
	if err != nil {
		return replication.TurnResult{}, err
	}
	return p.Turn(ctx, q)
}

// tellTurn tells the state machine what has changed.
func (v *Volume) tellTurn(t int64, member int, rate int64) {
	r := &v.turn
	if r.told && member == r.toldMember && rate == r.toldRate {
		return
	}
	r.told, r.toldMember, r.toldRate = true, member, rate
	if member < 0 {
		v.core.SetResync(t, rate)
		return
	}
	v.core.SetResync(t, rate, member)
}

// dropTurn forgets the turn of a volume that has ended; the member's node forgets it by itself.
func (v *Volume) dropTurn() {
	if v.turn.member >= 0 {
		leaveAll(v.claims(v.turn.member))
	}
}

// waitsForTurn lists the replicas that would be resynced if it were their turn.
func (v *Volume) waitsForTurn() (ids []replication.ReplicaID) {
	if v.core.Resync() != nil {
		return nil
	}
	for i, l := range v.links {
		if i != v.turn.toldMember && v.core.WantsResync(i) {
			ids = append(ids, l.id)
		}
	}
	return ids
}

// lacks is what the local replica's dirty maps say.
func (v *Volume) lacks() map[replication.ReplicaID]int64 {
	h := v.m.host(v.id, v.opts.Local)
	if h == nil {
		return nil
	}
	m := h.lacks.Load()
	if m == nil {
		return nil
	}
	return *m
}
