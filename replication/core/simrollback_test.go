package core

import (
	"errors"
	"math"
	"slices"

	"github.com/tandem-storage/tandem/replication"
)

// A kvdb that is restored from a backup, and the operator's import (docs/design/0014). What the store has then, simWorld.cfg,
// is older than what counts, simWorld.truth.

// simLife is the incarnation of the kvdb, and those that imports have replaced.
type simLife struct {
	id     replication.UUID
	former []replication.UUID
}

// simBackup is what the store had once.
type simBackup struct {
	cfg  *replication.Config
	life simLife
}

const simBackups = 30

// backUp keeps what the store has.
func (w *simWorld) backUp() {
	w.backups = append(w.backups, simBackup{w.cfg, w.kvLife})
	if k := len(w.backups) - simBackups; k > 0 {
		w.backups = slices.Delete(w.backups, 0, k)
	}
}

// knows is the newest configuration that n's replica was told durably.
func (n *simNode) knows() replication.Ancestor {
	return replication.Ancestor{Epoch: n.disk.meta.Epoch, Gen: n.disk.meta.Gen}
}

// ahead reports whether n's replica knows more than the store.
func (w *simWorld) ahead(n *simNode) bool {
	m := &n.disk.meta
	if m.Epoch == 0 {
		return false
	}
	foreign := !m.Incarnation.IsZero() && m.Incarnation != w.kvLife.id && !slices.Contains(w.kvLife.former, m.Incarnation)
	return foreign || !replication.Follows(w.cfg.Epoch, w.cfg.Lineage(), n.knows())
}

// follows reports whether a kvdb of that life is the one that n's process goes by, or a successor, by which it goes from then on.
func (n *simNode) follows(l simLife) bool {
	if l.id != n.kv.id && !slices.Contains(l.former, n.kv.id) {
		return false
	}
	n.kv = l
	return true
}

// heard reports whether n's daemon runs and reaches the kvdb.
func (w *simWorld) heard(n *simNode) bool { return n.up && !n.paused && !n.kvCut && !w.kvDown }

// rollBack restores the kvdb from a backup, unless a change is on its way, or nobody would know.
func (w *simWorld) rollBack() bool {
	if w.rolled || len(w.backups) < 2 || slices.ContainsFunc(w.nodes, func(n *simNode) bool { return n.coord != nil && n.coord.changeSent }) {
		return false
	}
	b, now := w.backups[w.rng.IntN(len(w.backups)-1)], simBackup{w.cfg, w.kvLife}
	w.cfg, w.kvLife = b.cfg, b.life
	if !slices.ContainsFunc(w.nodes, func(n *simNode) bool { return w.heard(n) && w.ahead(n) }) {
		w.cfg, w.kvLife = now.cfg, now.life
		return false
	}
	w.rolled, w.marked, w.rev = true, false, w.rev+1
	for _, n := range w.nodes {
		n.watch()
	}
	return true
}

// lookForRollback lets a node whose replica knows more than the store say so there, some time. After an import only a replica that heard of
// another configuration of the same epoch meanwhile can know more.
func (w *simWorld) lookForRollback() {
	if w.marked || !w.rolled && !slices.ContainsFunc(w.nodes, w.ahead) || w.rng.IntN(300) != 0 {
		return
	}
	n := w.nodes[w.rng.IntN(len(w.nodes))]
	w.marked = w.heard(n) && w.ahead(n)
}

// misled reports whether a takeover from a store that was rolled back is refused there: what the replicas themselves
// do not notice is the node's to find, and when none that knows better can be asked nobody promises anything.
func (w *simWorld) misled(n *simNode, cause string) bool {
	switch {
	case !w.rolled || w.marked:
		return w.marked
	case cause == "takeover":
		w.marked = !slices.ContainsFunc(w.nodes, func(m *simNode) bool { return w.cfg.InISR(m.rid) && w.ahead(m) })
	case n.coord != nil && n.refused == n.coord: // it was told, and has not ended
		w.fail("I22: %s goes on (%s) though a replica knows more than the kvdb", n.id, cause)
	default:
		w.marked = true // who knows better did not answer it
	}
	return w.marked
}

// checkSeal asserts I22 on the answer of peer's replica to a seal: who knows more promises nothing. It is of the incarnation of the kvdb of
// the seal that it answered before, whatever it was of when this one came: they wait for each other.
func (w *simWorld) checkSeal(peer *simNode, q *replication.SealRequest, res *replication.SealResult) {
	of := peer.sealed
	if res != nil && res.Status == replication.StatusOK {
		peer.sealed = q.Incarnation
	}
	switch {
	case res == nil:
	case res.Status == replication.StatusEpoch:
		w.seen["seals refused: the kvdb knows less"]++
		// Also after an import: a takeover that was under way when the kvdb was restored may have sealed it since, of an
		// incarnation that the restored one does not know. Then the operator imports again.
		w.marked = w.marked || w.heard(peer) && w.rng.IntN(4) == 0
	case res.Status == replication.StatusOK && !of.IsZero() && of != q.Incarnation && !slices.Contains(q.Former, of):
		w.fail("I22: %s promises term %d to who comes from another kvdb", peer.id, q.Term)
	case res.Status == replication.StatusOK && !replication.Follows(q.Epoch, q.Lineage, peer.knows()):
		w.fail("I22: %s promises term %d to who comes from epoch %d, and knows %+v", peer.id, q.Term, q.Epoch, peer.knows())
	}
}

// checkDeposed asserts G6 on the end of n's coordinator: while nobody can have taken over from it, nobody deposes it.
func (w *simWorld) checkDeposed(n *simNode) {
	later := func(m *simNode) bool { return w.truth.InISR(m.rid) && m.disk.meta.Term > n.coord.term }
	if w.rolled && n.serving == n.coord && n.coord.mine(w.truth) && errors.Is(n.coord.Dead(), replication.ErrDeposed) && !slices.ContainsFunc(w.nodes, later) {
		w.fail("G6: %s was ended by a kvdb that was rolled back", n.id)
	}
}

// importKVDB is what the operator does, by the rules of volume/importplan.go. Everybody has to answer.
func (w *simWorld) importKVDB() {
	if !w.rolled && !w.marked || w.kvDown || slices.ContainsFunc(w.nodes, func(n *simNode) bool { return !n.up || n.paused || n.stop }) {
		return
	}
	cfg := w.importServing()
	if cfg == nil {
		cfg = w.importDetached()
	}
	if cfg == nil {
		w.seen["import refused"]++
		return
	}
	former := append(slices.Clone(w.kvLife.former), w.kvLife.id)
	for _, n := range w.nodes {
		if inc := n.disk.meta.Incarnation; !slices.Contains(former, inc) {
			former = append(former, inc)
		}
	}
	w.kvLife = simLife{w.uuid(), former}
	w.rolled, w.marked = false, false
	w.put(cfg)
	w.trace("imported: epoch %d, in sync %v", cfg.Epoch, w.inSync())
	w.checkContent()
}

// serves reports whether n has a coordinator whose configuration was in force when it was told so: it serves, and has not detached, or its replicas store it.
func (n *simNode) serves() bool {
	c := n.coord
	return c != nil && (c.stage == stageCommitting || c.stage == stageServing) && c.cfg.Coord != nil
}

// attachAgain ends the attachment if a replica that is not in sync promised a later term to a takeover from a restored kvdb, or a term
// to one of an incarnation that only a later import knew of: it is resynced by a later coordinator only (docs/limitations.md). Where requests wait for just that replica, so does a detach,
// and the process is killed instead.
func (w *simWorld) attachAgain(c *Coordinator) {
	n := w.client.at
	if n == nil || w.kvLife.id.IsZero() || w.rolled || c.detachReq || c.stage != stageServing || len(w.client.flight) > 0 && c.Stall() != StallProtection {
		return
	}
	strange := func(m *simNode) bool {
		inc := m.disk.meta.Incarnation
		return m.disk.meta.Term > c.term || !inc.IsZero() && inc != c.o.Incarnation && !slices.Contains(c.o.Former, inc)
	}
	if !slices.ContainsFunc(w.nodes, func(m *simNode) bool { return !w.truth.InISR(m.rid) && strange(m) }) {
		return
	}
	w.seen["attached again, for a promise to another kvdb"]++
	if len(w.client.flight) > 0 {
		n.crash(false)
		return
	}
	c.Detach(n.clock())
	n.drainCoord()
}

// importServing is the configuration of the coordinator that serves, nil if there is none or the replicas contradict it.
func (w *simWorld) importServing() *replication.Config {
	var co *replication.Config
	for _, n := range w.nodes {
		if c := n.coord; n.serves() && (co == nil || c.term > co.Coord.Term) {
			co = c.cfg
		}
	}
	if co == nil {
		return nil
	}
	for _, n := range w.nodes {
		m := &n.disk.meta
		if m.Epoch > co.Epoch || m.Epoch == co.Epoch && m.Gen != co.Gen || co.InISR(n.rid) && m.Term > co.Coord.Term {
			return nil
		}
	}
	w.seen["imported while it is served"]++
	return co.Clone()
}

// importDetached is a configuration of what the replicas know, nil while a coordinator serves.
func (w *simWorld) importDetached() *replication.Config {
	var top *ReplicaMeta
	highest := w.cfg.Epoch
	for _, n := range w.nodes {
		m := &n.disk.meta
		if n.serves() {
			return nil
		}
		highest = max(highest, m.Epoch, replication.Epoch(m.Term))
		switch {
		case top == nil || m.Epoch > top.Epoch:
			top = m
		case m.Epoch < top.Epoch:
		case m.Gen != top.Gen:
			w.fail("I22: replicas know different configurations of epoch %d", m.Epoch)
		case m.State == replication.MemberInSync:
			top = m
		}
	}
	// One that was replaced has another id, which no record names; the operator gives the old one up.
	isr := slices.DeleteFunc(slices.Clone(top.ISR), func(r replication.ReplicaID) bool {
		return top.Epoch > 0 && slices.ContainsFunc(w.nodes, func(n *simNode) bool { return n.rid == r && n.disk.meta.Epoch == 0 })
	})
	if len(isr) == 0 {
		return nil
	}
	n := w.cfg.Clone()
	n.Epoch, n.Gen, n.Phase, n.Coord, n.ISR = highest+1, w.rng.Uint64(), replication.PhaseDetached, nil, isr
	n.ProposalID = w.uuid()
	n.Size = math.MaxInt64 // all in-sync replicas are as large as the volume, or larger
	for _, m := range w.nodes {
		if n.InISR(m.rid) {
			n.Size = min(n.Size, m.disk.size)
		}
	}
	for r, v := range n.Members {
		v.State, v.Reason, v.LeftEpoch, v.LeftGen = replication.MemberInSync, "", 0, 0
		if !n.InISR(r) {
			v.State, v.Reason = replication.MemberStale, "not in sync when the kvdb was imported"
		}
		n.Members[r] = v
	}
	n.History = []replication.EpochRecord{
		{Epoch: top.Epoch, Gen: top.Gen, ISR: slices.Clone(top.ISR), Cause: "found"},
		{Epoch: n.Epoch, Gen: n.Gen, ISR: slices.Clone(isr), Cause: "import"},
	}
	w.seen["imported from replicas"]++
	return n
}
