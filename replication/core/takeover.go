package core

import (
	"slices"

	"github.com/tandem-storage/tandem/replication"
)

// control is a unary request under way.
type control struct {
	to    int
	round *round
	reply func(r ControlResult) // for requests outside a round
}

// round asks the same of several members, again and again, until each has
// answered well.
type round struct {
	want, got, sent mask
	retryAt         []int64
	request         func(i int) Control
	reply           func(i int, r ControlResult) bool // whether that was the answer wanted
	began           int64
	patient         bool // what is asked for may take long
}

func (c *Coordinator) startRound(want mask, request func(i int) Control, reply func(i int, r ControlResult) bool) {
	c.round = &round{want: want, retryAt: make([]int64, len(c.m)), request: request, reply: reply, began: c.now}
	c.driveRound()
}

// driveRound sends what is due.
func (c *Coordinator) driveRound() {
	r := c.round
	if r == nil {
		return
	}
	for i := range c.m {
		if (r.want &^ r.got &^ r.sent).has(i) && c.now >= r.retryAt[i] {
			r.sent |= bit(i)
			c.ask(i, r.request(i), &control{to: i, round: r})
		}
	}
}

func (r *round) done() bool { return r != nil && r.got.covers(r.want) }

func (c *Coordinator) ask(i int, req Control, ctl *control) {
	c.nextCtl++
	req.ID, req.To = c.nextCtl, i
	c.ctl[req.ID] = ctl
	c.ready.Control = append(c.ready.Control, req)
}

// ControlDone brings the answer of a Control.
func (c *Coordinator) ControlDone(now int64, id uint64, res ControlResult) {
	c.now = now
	ctl := c.ctl[id]
	if ctl == nil {
		return
	}
	delete(c.ctl, id)
	// One that is not in sync may have promised a takeover that came to nothing.
	if term := res.term(); !res.Failed && c.term != 0 && term > c.term && c.isr.has(ctl.to) && c.fenced() {
		return
	}
	// The others may know as little as the kvdb, and the takeover may have gone on without this one (I22).
	if c.stage < stageServing && res.Seal != nil && res.Seal.Status == replication.StatusEpoch {
		c.die(replication.ErrRolledBack)
		return
	}
	switch {
	case ctl.reply != nil:
		ctl.reply(res)
	case ctl.round == c.round:
		r := ctl.round
		r.sent &^= bit(ctl.to)
		if ok := !res.Failed && r.reply(ctl.to, res); c.over() {
			return
		} else if ok {
			r.got |= bit(ctl.to)
		} else {
			r.retryAt[ctl.to] = c.now + c.o.RetryInterval
			if c.stage == stageServing && res.status() == replication.StatusIO {
				c.requestEvict(ctl.to, diskFailed)
			}
		}
	}
	c.progress()
}

// term is the promised term in an answer that was refused for it.
func (r *ControlResult) term() replication.Term {
	switch {
	case r.Seal != nil && r.Seal.Status == replication.StatusFenced:
		return r.Seal.Term
	case r.Prepare != nil && r.Prepare.Status == replication.StatusFenced:
		return r.Prepare.Term
	default:
		return 0
	}
}

// status is how an answer of a round was refused.
func (r *ControlResult) status() replication.Status {
	switch {
	case r.Prepare != nil:
		return r.Prepare.Status
	case r.Commit != nil:
		return r.Commit.Status
	default:
		return replication.StatusOK
	}
}

// next returns a copy of the configuration with the following epoch. Members
// that it calls SYNCING without this coordinator mirroring to them become STALE.
func (c *Coordinator) next(cause string) *replication.Config {
	n := c.cfg.Clone()
	n.Epoch++
	n.Gen = c.o.Rand()
	n.ProposalID = replication.UUID{}
	for i := 0; i < 16; i += 8 {
		v := c.o.Rand()
		for k := range 8 {
			n.ProposalID[i+k] = byte(v >> (8 * k))
		}
	}
	for i, m := range c.m {
		if v := n.Members[m.id]; v.State == replication.MemberSyncing && !c.syncing().has(i) {
			v.State = replication.MemberStale
			n.Members[m.id] = v
		}
	}
	n.History = append(n.History, replication.EpochRecord{Epoch: n.Epoch, Gen: n.Gen, Node: c.o.Node, Cause: cause})
	if k := len(n.History) - replication.HistoryLen; k > 0 {
		n.History = slices.Delete(n.History, 0, k)
	}
	return n
}

// setISR makes s the in-sync set of n and the others what state and reason say.
func (c *Coordinator) setISR(n *replication.Config, s mask, why func(i int) (replication.MemberState, string)) {
	n.ISR = c.ids(s)
	for i, m := range c.m {
		v := n.Members[m.id]
		switch {
		case s.has(i):
			v.State, v.Reason, v.LeftEpoch, v.LeftGen = replication.MemberInSync, "", 0, 0
		case v.State == replication.MemberInSync:
			v.State, v.Reason = why(i)
			v.LeftEpoch, v.LeftGen = c.cfg.Epoch, c.cfg.Gen
		}
		n.Members[m.id] = v
	}
	n.History[len(n.History)-1].ISR = slices.Clone(n.ISR)
}

func (c *Coordinator) propose(n *replication.Config) {
	c.changeSent = true
	c.ready.Change = &Change{Prev: c.cfg, Rev: c.rev, Next: n}
	if c.change.kind == changeActivate {
		c.ready.Change.Sealed = c.sealedReplicas()
	}
}

// elect is step 2 of 5.1.
func (c *Coordinator) elect() {
	n := c.next("takeover")
	n.Phase = replication.PhaseRecovering
	n.Coord = &replication.Coord{Node: c.o.Node, Domain: c.o.Domain, Boot: c.o.Boot, AttachID: c.o.Attach, Term: replication.Term(n.Epoch)}
	n.History[len(n.History)-1].ISR = slices.Clone(n.ISR)
	c.stage, c.earlier = stageElecting, c.endedTerm(c.cfg)
	c.isr = c.set(n.ISR)
	c.change = &change{kind: changeElect, next: n}
	c.propose(n)
}

// seal is step 3.
func (c *Coordinator) seal() {
	c.stage = stageSealing
	c.keepSessions(0) // a replica may have restarted, and is asked anew in which boot it is
	c.sealUntil = c.now + c.o.SealTimeout
	c.lossUntil = c.now + c.o.LossyTimeout
	clear(c.seals)
	c.startRound(c.isr, c.sealRequest, func(i int, r ControlResult) bool {
		if r.Seal == nil || r.Seal.Status != replication.StatusOK || r.Seal.State == replication.MemberFaulted {
			return false
		}
		c.seals[i] = r.Seal
		return true
	})
}

func (c *Coordinator) sealRequest(i int) Control {
	return Control{Seal: &replication.SealRequest{
		Volume: c.o.Volume, Replica: c.m[i].id, Term: c.term, Epoch: c.cfg.Epoch, Gen: c.cfg.Gen,
		Incarnation: c.o.Incarnation, AttachID: c.o.Attach, Ended: c.earlier, Former: c.o.Former, Lineage: c.cfg.Lineage(),
	}}
}

// sealed decides whether the takeover may go on, and with whom (step 4).
func (c *Coordinator) sealed() (s mask, ok bool) {
	var usable, silent, lossy mask
	for i, m := range c.m {
		if c.isr.has(i) && m.usable {
			usable |= bit(i)
		}
		if !m.up {
			silent |= bit(i)
		}
		if r := c.seals[i]; r != nil && r.Lossy {
			lossy |= bit(i)
		}
	}
	s = c.round.got & usable
	switch {
	case s == 0:
		return 0, false
	case !s.covers(usable&^silent) && c.now < c.sealUntil:
		return 0, false
	case s&^lossy == 0 && s != usable && c.now < c.lossUntil:
		return 0, false // the absent one may still hold what these lost
	}
	switch solid := s &^ lossy; {
	case solid != 0:
		s = solid // I19
	case c.o.Resume:
		c.die(replication.ErrPoisoned) // its consumer was told of writes that nobody is known to have
		return 0, false
	}
	return s, true
}

// prepare is step 5. The request names all missing members.
func (c *Coordinator) prepare(s mask) {
	c.stage = stagePreparing
	c.sealUntil = c.now + c.o.SealTimeout
	c.keepSessions(s)
	for i, m := range c.m {
		if s.has(i) && !m.open && !m.pending {
			c.connect(i) // it has promised the term: what is left of the takeover need not be waited for
		}
	}
	c.prepareRound(s, c.all()&^s)
}

func (c *Coordinator) prepareRound(s, missing mask, markAll ...replication.ReplicaID) {
	c.prepareRoundOf(c.cfg.Size, s, missing, markAll...)
}

// prepareRoundOf is prepareRound for members that are to have size bytes at least.
func (c *Coordinator) prepareRoundOf(size int64, s, missing mask, markAll ...replication.ReplicaID) {
	c.startRound(s, func(i int) Control {
		return Control{Prepare: &replication.PrepareRequest{
			Volume: c.o.Volume, Replica: c.m[i].id, Term: c.term, Missing: c.ids(missing &^ bit(i)), MarkAll: markAll, Size: size,
		}}
	}, func(_ int, r ControlResult) bool {
		return r.Prepare != nil && r.Prepare.Status == replication.StatusOK
	})
}

func (c *Coordinator) commitRound(s mask, settled bool) {
	cfg := c.cfg.Clone()
	c.startRound(s, func(i int) Control {
		return Control{Commit: &replication.CommitRequest{
			Volume: c.o.Volume, Replica: c.m[i].id, Term: c.term, Incarnation: c.o.Incarnation, Config: cfg, Boot: c.bootOf(i), Settled: settled,
		}}
	}, func(_ int, r ControlResult) bool {
		return r.Commit != nil && r.Commit.Status == replication.StatusOK
	})
}

// activate is step 6.
func (c *Coordinator) activate(s mask) {
	n := c.next("activate")
	n.Phase = replication.PhaseActive
	c.setISR(n, s, func(i int) (replication.MemberState, string) {
		switch r := c.seals[i]; {
		case r != nil && r.Lossy:
			return replication.MemberStale, lostPower
		case !c.m[i].usable:
			return replication.MemberStale, domainClosed
		default:
			return replication.MemberStale, "not reachable at takeover"
		}
	})
	c.stage = stageActivating
	c.round = nil
	c.change = &change{kind: changeActivate, next: n, isr: s}
	c.propose(n)
}

// Sealed is what an in-sync replica told of itself at a takeover.
type Sealed struct {
	Replica replication.ReplicaID
	Lossy   bool
	Applied replication.Position
}

// sealedReplicas is what the in-sync replicas answered to the takeover.
func (c *Coordinator) sealedReplicas() (all []Sealed) {
	for i, m := range c.m {
		if r := c.seals[i]; r != nil {
			all = append(all, Sealed{Replica: m.id, Lossy: r.Lossy, Applied: r.Applied})
		}
	}
	return all
}

// bootOf is the boot in which member i was sealed, zero if it was not.
func (c *Coordinator) bootOf(i int) replication.BootID {
	if r := c.seals[i]; r != nil {
		return r.Boot
	}
	return c.m[i].boot
}

// serve is step 8.
func (c *Coordinator) serve() {
	c.stage, c.servedAt = stageServing, c.now
	c.round, c.change = nil, nil
	if c.isr&(c.isr-1) != 0 {
		for i := range c.m {
			if !c.isr.has(i) {
				continue
			}
			c.markActive(c.reconcile, c.seals[i])
			if c.seals[i].LogLost {
				c.event(Event{Kind: EventLogLost, Replica: c.m[i].id})
			}
		}
	}
	for i, m := range c.m {
		if r := c.seals[i]; r != nil && c.isr.has(i) {
			m.boot = r.Boot
		}
		c.seals[i] = nil
		m.downAt, m.tryAt = c.now, c.now
	}
	for i, m := range c.m {
		if c.isr.has(i) && !m.usable {
			c.requestEvict(i, domainClosed) // closed during the takeover
		}
		if c.isr.has(i) && !m.up {
			c.requestEvict(i, suspected)
		}
	}
	c.lastFlush, c.wroteSeq = c.now, true // a flush settles what the activity logs have
	c.retry = true
	c.watchMembers()
	c.event(Event{Kind: EventServing, Dirty: c.reconcile.Count()})
}

// markActive adds the regions that a replica's activity log names.
func (c *Coordinator) markActive(b *Bitmap, r *replication.SealResult) {
	if r.LogLost {
		b.SetAll()
		return
	}
	const n = replication.RegionSize / replication.ResyncBlock
	for _, g := range r.Active {
		b.SetRange(min(int(g)*n, b.Len()), min((int(g)+1)*n, b.Len()))
	}
}
