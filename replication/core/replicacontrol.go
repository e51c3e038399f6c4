package core

import (
	"math"
	"slices"

	"github.com/tandem-storage/tandem/replication"
)

// What a replica does about the control exchange and about a hello, once nothing is
// in its way.

func (r *Replica) sealStatus(q *replication.SealRequest) replication.Status {
	switch {
	case r.faulted:
		return replication.StatusIO
	case q.Term == 0 || q.Epoch == math.MaxUint64 || uint64(q.Term) > uint64(q.Epoch):
		return replication.StatusInvalid // no election gives that; the promise would shut every later term out
	case r.meta.Incarnation != (replication.UUID{}) && q.Incarnation != r.meta.Incarnation && !slices.Contains(q.Former, r.meta.Incarnation):
		return replication.StatusEpoch
	case q.Term < r.meta.Term:
		return replication.StatusFenced
	case !replication.Follows(q.Epoch, q.Lineage, replication.Ancestor{Epoch: r.meta.Epoch, Gen: r.meta.Gen}):
		return replication.StatusEpoch
	}
	return replication.StatusOK
}

// helloStatus checks a hello: the term must be the one promised.
func (r *Replica) helloStatus(t *replicaTask) replication.Status {
	switch {
	case r.faulted:
		return replication.StatusIO
	case t.hello.Volume != r.o.Volume || t.hello.Replica != r.o.Replica:
		return replication.StatusNotFound
	case t.msg.Term < r.meta.Term:
		return replication.StatusFenced
	case t.msg.Term > r.meta.Term:
		return replication.StatusState
	}
	return replication.StatusOK
}

// perform changes the state; it reports whether the metadata have to be durable before the answer.
func (r *Replica) perform(t *replicaTask) bool {
	switch {
	case t.seal != nil:
		return r.performSeal(t)
	case t.prepare != nil:
		return r.performPrepare(t)
	case t.commit != nil:
		return r.performCommit(t)
	case t.hello != nil:
		r.performHello(t)
		return false
	case t.save:
		return false
	default: // what is durable has to follow the state
		if r.faulted {
			r.meta.State = replication.MemberFaulted
		}
		return true
	}
}

func (r *Replica) performSeal(t *replicaTask) bool {
	res := &replication.SealResult{
		Status: r.sealStatus(t.seal), Term: r.meta.Term, Epoch: r.meta.Epoch, Gen: r.meta.Gen, State: r.meta.State,
		Boot: r.o.Boot, Instance: r.o.Instance, Lossy: r.meta.Lossy, LogLost: r.logLost, Crowded: r.crowded, Applied: r.applied,
	}
	t.reply.Seal = res
	if res.Status != replication.StatusOK {
		return false
	}
	if t.seal.Term != r.meta.Term {
		r.newTerm()
		r.leased, r.began = 0, t.seal.Term
	}
	res.Active = r.active()
	res.Term = t.seal.Term
	r.meta.Term, r.meta.Incarnation, r.meta.Clean = t.seal.Term, t.seal.Incarnation, false
	return true
}

func (r *Replica) performPrepare(t *replicaTask) bool {
	q := t.prepare
	t.reply.Prepare = &replication.PrepareResult{Term: r.meta.Term, Size: r.o.Size}
	switch {
	case r.faulted:
		t.reply.Prepare.Status = replication.StatusIO
		return false
	case q.Term != r.meta.Term:
		t.reply.Prepare.Status = replication.StatusFenced
		return false
	case q.Size > r.o.Size: // it could not grow
		t.reply.Prepare.Status = replication.StatusNoSpace
		return false
	}
	// Requests may be overtaken, also by the COMMIT of what they prepared: none ends a
	// map. That is for a COMMIT, which has an order.
	missing := slices.Clone(r.meta.Missing)
	for _, id := range q.Missing {
		if !slices.Contains(missing, id) {
			missing = append(missing, id)
		}
	}
	if len(missing) > maxMembers {
		t.reply.Prepare.Status = replication.StatusInvalid
		return false
	}
	for _, id := range r.setMissing(missing) {
		// A map begins with what this replica has in its log. That is all that the
		// member may lack only if both were in sync so far: while this one was being
		// resynced its log forgot what the maps of the others had, not its own.
		if !slices.Contains(r.meta.ISR, id) || r.meta.State != replication.MemberInSync {
			r.dirty[id].SetAll()
		}
	}
	for _, id := range q.Missing {
		m := r.dirty[id]
		if r.logLost || slices.Contains(q.MarkAll, id) {
			m.SetAll()
			continue
		}
		r.markActive(m)
	}
	return true
}

// markActive adds the replica's unsettled regions to a dirty map.
func (r *Replica) markActive(m *dirtyMap) {
	const n = regionBlocks
	for _, g := range r.active() {
		m.SetRange(min(int(g)*n, m.Len()), min((int(g)+1)*n, m.Len()))
	}
}

// setMissing makes ids the set of members that maps are kept for, and returns
// those whose map is new and empty.
func (r *Replica) setMissing(ids []replication.ReplicaID) (added []replication.ReplicaID) {
	for q := range r.dirty {
		if !slices.Contains(ids, q) {
			delete(r.dirty, q)
		}
	}
	for _, q := range ids {
		if r.dirty[q] == nil {
			r.dirty[q] = r.newMap()
			added = append(added, q)
		}
	}
	r.meta.Missing = slices.Clone(ids)
	r.listMaps()
	return added
}

func (r *Replica) performCommit(t *replicaTask) bool {
	q, cfg := t.commit, t.commit.Config
	t.reply.Commit = &replication.CommitResult{Epoch: r.meta.Epoch}
	switch {
	case r.faulted:
		t.reply.Commit.Status = replication.StatusIO
		return false
	case q.Term != r.meta.Term:
		t.reply.Commit.Status = replication.StatusFenced
		return false
	case cfg == nil || cfg.Epoch == math.MaxUint64 || cfg.Size <= 0:
		t.reply.Commit.Status = replication.StatusInvalid
		return false
	case cfg.Epoch < r.meta.Epoch || q.Incarnation != r.meta.Incarnation:
		t.reply.Commit.Status = replication.StatusEpoch
		return false
	}
	self, ok := cfg.Members[r.o.Replica]
	switch {
	case !ok:
		t.reply.Commit.Status = replication.StatusNotFound
		return false
	case cfg.Size > r.o.Size && self.State == replication.MemberInSync:
		t.reply.Commit.Status = replication.StatusInvalid // it was not made as large before
		return false
	}
	r.meta.Epoch, r.meta.Gen, r.meta.ISR = cfg.Epoch, cfg.Gen, slices.Clone(cfg.ISR)
	r.meta.State = self.State
	if q.Boot == r.o.Boot && q.Boot != (replication.BootID{}) && (self.State == replication.MemberInSync || self.State == replication.MemberSyncing) {
		// What was lost before is given up by all, or will have been copied before it counts.
		r.meta.Lossy = false
	}
	t.reply.Commit.Epoch = cfg.Epoch
	if self.State != replication.MemberInSync {
		r.setMissing(nil) // what it has missed itself they do not tell, when it is in sync again
	} else {
		var missing []replication.ReplicaID
		for id := range cfg.Members {
			if !cfg.InISR(id) {
				missing = append(missing, id)
			}
		}
		slices.SortFunc(missing, func(a, b replication.ReplicaID) int { return slices.Compare(a[:], b[:]) })
		for _, id := range r.setMissing(missing) {
			r.dirty[id].SetAll() // it left while this replica was not told
		}
	}
	if q.Settled && self.State == replication.MemberInSync && r.inUse == 0 && len(r.held)+len(r.parked) == 0 {
		t.settled, t.used = true, r.used
		r.meta.Lossy, r.meta.Clean = false, true
	}
	return true
}

func (r *Replica) performHello(t *replicaTask) {
	msg := replication.Message{Session: t.msg.Session, Term: r.meta.Term, Seq: t.msg.Seq}
	if st := r.helloStatus(t); st != replication.StatusOK {
		msg.Type, msg.Status = replication.MsgNack, st
		r.ready.Send = append(r.ready.Send, ReplicaSend{Conn: t.conn, Msg: msg})
		return
	}
	r.conn, r.session, r.used = t.conn, t.msg.Session, 0
	r.meta.Clean = false
	msg.Type, msg.Credit = replication.MsgHelloAck, r.o.Credit
	r.ready.Send = append(r.ready.Send, ReplicaSend{Conn: t.conn, Msg: msg})
}
