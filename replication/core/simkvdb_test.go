package core

import (
	"slices"

	"github.com/tandem-storage/tandem/replication"
)

// The simulated kvdb, and the way of a change to it and back. An attempt looks first, as
// volume.Configs does, and sends a transaction if the change is not in force and permitted.
// What the store has, simWorld.cfg, is also what counts, simWorld.truth, until simrollback_test.go parts them.

// change makes one attempt.
func (n *simNode) change(ch Change) {
	w, c := n.w, n.coord
	cause := ch.Next.History[len(ch.Next.History)-1].Cause
	w.trace("%s CAS epoch %d: %s", n.id, ch.Next.Epoch, cause)
	if n.proposal != ch.Next.ProposalID { // one that is made again was decided then
		n.proposal, n.lapsed = ch.Next.ProposalID, c.policy.lapsed || n.decided != nil && n.decided == c.change
	}
	if w.metro != nil {
		w.metro.change(n, ch)
		return
	}
	tell := func(out Outcome, cfg *replication.Config, rev uint64) {
		f := func() {
			if n.alive(c) {
				c.ChangeDone(n.clock(), out, cfg, rev)
				n.drainCoord()
			}
		}
		if w.kvHold {
			w.kvHeld = append(w.kvHeld, f)
			return
		}
		w.once(n, f)
	}
	w.once(nil, func() {
		switch {
		case w.kvDown || n.kvCut:
			tell(ChangeNotSent, nil, 0)
		case w.cfg.ProposalID == ch.Next.ProposalID:
			tell(ChangeOK, nil, w.rev)
		case w.rev != ch.Rev:
			tell(ChangeConflict, w.cfg, w.rev)
		case w.misled(n, cause):
			tell(ChangeRolledBack, nil, 0)
		case n.fenced:
			tell(ChangeRefused, nil, 0)
		case w.loseAnswer(n, cause):
			w.trace("kvdb: answer lost")
			w.seen["fault: outcome unknown: "+cause]++
			n.strand(ch)
			w.after(w.rng.Int64N(200e6), func() { tell(ChangeUnknown, nil, 0) })
		default:
			w.commit(n, ch)
			tell(ChangeOK, nil, w.rev)
		}
	})
}

// loseAnswer decides whether n is not told what becomes of its transaction.
func (w *simWorld) loseAnswer(n *simNode, cause string) bool {
	if w.kvLose == cause {
		w.kvLose, n.kvCut = "", true
		w.seen["fault: kvdb lost in "+cause]++
		if !w.fifo && w.rng.IntN(2) == 0 { // one link carries both
			for _, m := range w.nodes {
				n.cutTo[m], m.cutTo[n] = m != n, m != n
			}
		}
		return true
	}
	return w.unknown > 0 && w.rng.IntN(100) < w.unknown
}

// strand is the fate of a transaction whose answer is lost: it takes effect now, later, or never.
func (n *simNode) strand(ch Change) {
	w, fences := n.w, n.fences
	land := func() {
		if w.rev == ch.Rev && n.fences == fences {
			w.commit(n, ch)
		}
	}
	switch fate := w.rng.IntN(4); {
	case w.fifo || fate < 2:
		land()
	case fate == 2:
		w.after(w.rng.Int64N(2e9), land)
	}
}

// commit puts a change in force.
func (w *simWorld) commit(n *simNode, ch Change) {
	if !w.rolled {
		w.checkChange(n, ch.Next)
		w.checkSealed(ch)
		if ch.Next.History[len(ch.Next.History)-1].Cause == "handover" {
			w.checkHandover(n)
		}
	}
	w.put(ch.Next)
	w.checkContent()
	w.seen["config: "+w.cfg.History[len(w.cfg.History)-1].Cause]++
	w.trace("kvdb epoch %d: %s, in sync %v", w.cfg.Epoch, w.cfg.Phase, w.inSync())
}

// put stores a configuration; whoever watches sees it.
func (w *simWorld) put(cfg *replication.Config) {
	if h := cfg.History; len(h) == 0 || h[len(h)-1].Epoch != cfg.Epoch || h[len(h)-1].Gen != cfg.Gen {
		w.fail("the history of epoch %d does not end with that epoch", cfg.Epoch) // the door of volume/check.go refuses it
	}
	w.cfg, w.rev = cfg.Clone(), w.rev+1
	if !w.rolled {
		w.truth = w.cfg
		w.backUp()
	}
	for _, n := range w.nodes {
		n.watch()
	}
}

// watch shows n the configuration in force, if it can see the kvdb and that is the one it goes by.
func (n *simNode) watch() {
	w, seen, life := n.w, n.w.cfg, n.w.kvLife
	if n.kvCut {
		return
	}
	w.once(n, func() {
		switch co := seen.Coord; {
		case !n.up, !n.follows(life):
		case n.coord != nil:
			n.coord.ConfigSeen(n.clock(), seen)
			n.drainCoord()
		case n.named != nil && co != nil && co.AttachID == n.named.id:
			n.takeOver(n.named, false)
		}
	})
}

// reachKVDB lets every node reach the kvdb again, if it is there.
func (w *simWorld) reachKVDB() {
	for _, n := range w.nodes {
		if n.kvCut {
			n.kvCut = false
			n.watch()
		}
	}
}

// drain has n's cluster domain deactivated by plan, or not, as every coordinator sees it.
func (n *simNode) drain(on bool) {
	n.drains = on
	for _, m := range n.w.nodes {
		if m.up && m.coord != nil && m != n {
			m.coord.SetKept(m.clock(), slices.Index(n.w.nodes, n), !on)
			m.drainCoord()
		}
	}
}

// silence lets n's beats be missed, or heard again, by every coordinator.
func (n *simNode) silence(on bool) {
	n.silent = on
	for _, m := range n.w.nodes {
		if m.up && m.coord != nil && m != n {
			m.coord.SetUp(m.clock(), slices.Index(n.w.nodes, n), !on)
			m.drainCoord()
		}
	}
}
