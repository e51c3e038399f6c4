package core

import (
	"math/rand/v2"
	"slices"

	"github.com/tandem-storage/tandem/replication"
)

// Planned moves in the simulated world: an operator has a coordinator hand the volume over, the node that was named takes
// over if it hears of it, and its consumer follows when that serves. Else the volume is taken back.

// simMoves is how often an operator moves the volume, with numbers of its own: a world in which nobody does draws the same as ever.
type simMoves struct {
	rng *rand.Rand
	one int // step in so many; 0 never
}

func (w *simWorld) drawMoves(rng *rand.Rand) {
	w.moves = simMoves{rng, []int{0, 0, 100, 500}[rng.IntN(4)]}
}

// move is an operator's whim.
func (w *simWorld) move() {
	n, rng := w.client.at, w.moves.rng
	if w.moves.one == 0 || rng.IntN(w.moves.one) != 0 {
		return
	}
	to := w.nodes[rng.IntN(len(w.nodes))]
	if n == nil || n.coord == nil || n.paused || n == to || !to.up || n.coord.stage != stageServing || n.coord.handTo != nil {
		return
	}
	n.handOver(to)
}

// simHandover is one on its way.
type simHandover struct {
	to   *simNode
	old  replication.AttachID // that is to be followed
	id   replication.AttachID // by this one
	cfg  *replication.Config  // of the handover
	rev  uint64
	held []*IO // what was given back
}

// Times of a handover: until it is called off, until it is taken back.
const (
	simHandOver = int64(1e9)
	simTakeOver = int64(1e9)
)

// handOver is what an operator asks for.
func (n *simNode) handOver(to *simNode) {
	w, c := n.w, n.coord
	n.giving = &simHandover{to: to, id: replication.AttachID(w.uuid()), old: c.o.Attach}
	to.named = n.giving
	w.trace("%s hands over to %s", n.id, to.id)
	c.HandOver(n.clock(), replication.Coord{Node: to.id, Domain: to.domain, Boot: to.boot, AttachID: n.giving.id})
	n.drainCoord()
	w.after(simHandOver, func() {
		w.once(n, func() {
			if n.alive(c) {
				c.Keep(n.clock(), errNotHandedOver)
				n.drainCoord()
			}
		})
	})
}

// handedOver has the node that was named told, and the volume taken back if that does not serve in time.
func (n *simNode) handedOver(c *Coordinator) {
	w, h := n.w, n.giving
	h.cfg, h.rev = c.Config(), c.Revision()
	n.coord, n.giving, n.out = nil, nil, h
	w.seen["handover"]++
	if n.reach(h.to) {
		w.once(h.to, func() { h.to.takeOver(h, true) })
	}
	w.after(simTakeOver, func() { w.once(n, func() { n.takeBack(h) }) })
}

// takeOver begins what n was prepared for, when it sees the configuration, or is told it, which may be late.
func (n *simNode) takeOver(h *simHandover, told bool) {
	w := n.w
	cfg, rev := w.cfg, w.rev
	if told {
		cfg, rev = h.cfg, h.rev
		if rev != w.rev {
			w.seen["handover: told late"]++
		}
	}
	if co := cfg.Coord; !n.up || n.named != h || n.stop || n.mustStop(n) || n.coord != nil || !told && (w.kvDown || n.kvCut) || co == nil || co.AttachID != h.id {
		w.trace("%s cannot take over", n.id)
		return
	}
	w.trace("%s takes over by plan", n.id)
	n.out, n.named = nil, nil // once
	n.coordinate(h.id, false, false, cfg, rev)
}

// takeBack goes on with the attachment unless the other one was activated, which only the compare-and-set tells.
func (n *simNode) takeBack(h *simHandover) {
	w := n.w
	if n.out != h || !n.up || n.stop {
		return
	}
	n.out = nil
	if n.coord != nil {
		return
	}
	w.trace("%s takes the volume back", n.id)
	w.seen["handover: take back"]++
	n.coordinate(h.old, false, true, h.cfg, h.rev)
	for _, io := range h.held {
		if n.coord == nil {
			return
		}
		n.coord.Propose(n.clock(), io)
		n.drainCoord()
	}
}

// follow lets the consumer come to n, which has come to serve, if its attachment was handed over to that of n.
func (n *simNode) follow() {
	w, c := n.w, n.coord
	if slices.Contains(w.moved, c.o.Attach) {
		w.fail("I23b: %s serves an attachment that another one has followed", n.id)
	}
	for _, o := range w.nodes {
		h := o.out
		if h == nil {
			h = o.giving // it has not been told yet
		}
		if h == nil || h.id != c.o.Attach {
			continue
		}
		w.moved = append(w.moved, h.old)
		w.seen["handover: followed"]++
		if w.client.at != o {
			continue
		}
		w.client.await()
		w.client.lost()
		w.client.at, w.client.coming = n, true
		w.trace("consumer follows to %s", n.id)
		w.once(nil, func() {
			w.client.coming = false
			if w.client.at == n && n.alive(c) && c.Dead() == nil {
				w.client.again()
			}
		})
	}
}

// checkHandover asserts what a handover promises when it comes into force: nothing is in flight, and everything that was
// acknowledged is stable.
func (w *simWorld) checkHandover(n *simNode) {
	if c := n.coord; c != nil && n.alive(c) && len(c.flight.ios) > 0 {
		w.fail("10.2: %s hands over with %d requests in flight", n.id, len(c.flight.ios))
	}
	h := &w.history
	for k := range simBlocks {
		if !h.unsure[k] {
			h.flushed[k], h.floor[k] = h.known[k], h.acks[k]
			clear(h.since[k])
		}
	}
}
