package core

import "github.com/tandem-storage/tandem/replication"

// join is the way of one member back into the in-sync set (protocol.md 9.1).
type join struct {
	q         int
	seal      *replication.SealResult
	connected bool // its session was asked for
	mirrored  bool // every new write goes to it too
	wait      bool // acknowledgements wait for it (wait-mode, I18)
	flushSent bool
	flushed   bool
	mark      replication.Seq // requests up to this must be acknowledged by it before the flush
	todo      *Bitmap         // blocks to compare or copy
	total     int
	cursor    int
	failed    string // why it has to stop
}

func (j *join) fail(why string) {
	if j.failed == "" {
		j.failed = why
	}
}

// advanceJoin begins or continues a resync.
func (c *Coordinator) advanceJoin() bool {
	j := c.join
	if j == nil {
		return c.beginJoin()
	}
	if !j.mirrored {
		if j.seal != nil {
			return c.beginStartSync()
		}
		return false
	}
	if j.todo.Count() > 0 || c.copying() {
		c.fillCopies()
		return false
	}
	if !j.wait {
		// From here every acknowledgement, of flushes too, includes the joiner.
		j.wait, j.mark = true, c.lastSeq
		c.settleAll()
		return true
	}
	if !j.flushSent {
		for _, io := range c.flight.ios {
			if io.seq <= j.mark && io.targets.has(j.q) && !io.acked.has(j.q) {
				return false
			}
		}
		j.flushSent = true
		c.request(copyRequest{to: j.q, kind: askFlush}, replication.Message{Type: replication.MsgFlush})
		return false
	}
	if j.flushed {
		c.change = &change{kind: changeJoin, step: stepPropose, q: bit(j.q), isr: c.isr | bit(j.q)}
		return true
	}
	return false
}

// beginJoin seals a member that is out of sync and seems to be there.
func (c *Coordinator) beginJoin() bool {
	if c.reconcile.Count() > 0 || c.holdAcks || c.now < c.joinAt {
		c.fillReconcile()
		return false
	}
	for i, m := range c.m {
		st := c.cfg.Members[m.id].State
		if c.isr.has(i) || !m.usable || !m.up || c.now < m.tryAt ||
			(st != replication.MemberStale && st != replication.MemberSyncing) {
			continue
		}
		j := &join{q: i}
		c.join = j
		c.ask(i, c.sealRequest(i), &control{to: i, reply: func(r ControlResult) {
			switch {
			case c.join != j:
			case r.Failed || r.Seal == nil || r.Seal.Status != replication.StatusOK || r.Seal.State == replication.MemberFaulted:
				c.join = nil
				m.tryAt = c.now + c.o.RetryInterval
			default:
				j.seal = r.Seal
			}
		}})
		return false
	}
	return false
}

// beginStartSync is step 3: nothing may fall between not mirrored and not marked.
func (c *Coordinator) beginStartSync() bool {
	c.hold = true
	c.change = &change{kind: changeStartSync, step: stepQuiesce, q: bit(c.join.q), until: c.now + c.o.SuspectTimeout}
	return true
}

func (c *Coordinator) advanceStartSync(ch *change) bool {
	j := c.join
	if ch.step != stepCAS && ch.step != stepCommit && (j.failed != "" || c.now >= ch.until || c.evictReq&c.isr != 0) {
		j.fail("could not start in time")
		c.abandonStartSync(j.failed)
		return true
	}
	switch ch.step {
	case stepQuiesce:
		if !c.quiet() || c.copying() {
			return false
		}
		ch.step = stepDirty
		src := c.prefer(c.isr & c.openSet())
		if src < 0 {
			return false
		}
		c.ask(src, Control{Dirty: &replication.DirtyRequest{
			Volume: c.o.Volume, Replica: c.m[src].id, Term: c.term, Peer: c.m[j.q].id,
		}}, &control{to: src, reply: func(r ControlResult) {
			if c.change != ch {
				return
			}
			if r.Failed || r.Dirty == nil || r.Dirty.Status != replication.StatusOK {
				j.fail("dirty map could not be read")
				return
			}
			j.todo = NewBitmap(c.blocks)
			j.todo.OrBytes(r.Dirty.Bits)
			c.markActive(j.todo, j.seal)
			if !c.related(j) {
				j.todo.SetAll()
			}
			j.total = j.todo.Count()
			ch.step = stepPropose
		}})
	case stepPropose:
		n := c.next("start resync")
		v := n.Members[c.m[j.q].id]
		v.State, v.Reason = replication.MemberSyncing, ""
		n.Members[c.m[j.q].id] = v
		c.setISR(n, c.isr, c.evictedState)
		ch.next, ch.step = n, stepCAS
		c.propose(n)
	case stepConnect:
		if c.m[j.q].open {
			ch.step = stepCommit
			j.mirrored = true // so that next and the rounds count it in
			c.prepareRound(c.isr, c.all()&^(c.isr|bit(j.q)))
			return true
		}
	case stepCommit:
		switch {
		case c.round.done():
			c.endChange()
			c.hold = false
			c.retry = true
			c.event(Event{Kind: EventResyncStarted, Replica: c.m[j.q].id, Dirty: j.total})
			return true
		case j.failed != "" || c.lostOf(c.isr) != 0:
			j.fail("an in-sync replica was lost at the start")
			c.endChange()
			c.hold = false
			return true // stop-sync follows, with its own prepare
		}
	default: // stepDirty, stepCAS, stepTell: an answer will come
	}
	return false
}

// related reports whether the joiner's history is part of the volume's, so that
// the dirty map says all that it lacks (I21).
func (c *Coordinator) related(j *join) bool {
	s, v := j.seal, c.cfg.Members[c.m[j.q].id]
	if s.Epoch == v.LeftEpoch && s.Gen == v.LeftGen {
		return true
	}
	for _, h := range c.cfg.History {
		if h.Epoch == s.Epoch && h.Gen == s.Gen {
			return true
		}
	}
	return false
}

// tellJoiner makes the joiner's state durable before its first resync write
// (I20), gives it maps for the others that are missing, and opens its session.
func (c *Coordinator) tellJoiner(ch *change) {
	j := c.join
	cfg := c.cfg.Clone()
	missing := c.ids(c.all() &^ (c.isr | bit(j.q)))
	fail := func() { j.fail("joiner did not answer") }
	c.ask(j.q, Control{Commit: &replication.CommitRequest{
		Volume: c.o.Volume, Replica: c.m[j.q].id, Term: c.term, Incarnation: c.o.Incarnation, Config: cfg,
	}}, &control{to: j.q, reply: func(r ControlResult) {
		if c.change != ch {
			return
		}
		if r.Failed || r.Commit == nil || r.Commit.Status != replication.StatusOK {
			fail()
			return
		}
		c.ask(j.q, Control{Prepare: &replication.PrepareRequest{
			Volume: c.o.Volume, Replica: c.m[j.q].id, Term: c.term, Missing: missing, MarkAll: missing,
		}}, &control{to: j.q, reply: func(r ControlResult) {
			if c.change != ch {
				return
			}
			if r.Failed || r.Prepare == nil || r.Prepare.Status != replication.StatusOK {
				fail()
				return
			}
			ch.step = stepConnect
			c.m[j.q].boot = j.seal.Boot
			j.connected = true
			c.connect(j.q)
		}})
	}})
}

// abandonStartSync gives up before anything is mirrored.
func (c *Coordinator) abandonStartSync(why string) {
	j := c.join
	told := c.change.step == stepTell || c.change.step == stepConnect
	c.endChange()
	c.hold = false
	c.retry = true
	j.fail(why)
	if !told {
		c.forgetJoin()
	}
}

// forgetJoin ends a join that the configuration does not know of.
func (c *Coordinator) forgetJoin() {
	j := c.join
	m := c.m[j.q]
	if m.open || m.pending {
		c.ready.Disconnect = append(c.ready.Disconnect, Session{To: j.q, ID: m.sess})
		c.sessionLost(j.q)
	}
	c.join = nil
	m.boot = replication.BootID{}
	c.joinAt = c.now + c.o.RetryInterval
	m.tryAt = c.joinAt
}

// beginStopSync brings a SYNCING member back to STALE: first the others mark
// what it lacks, then it is dropped, then the configuration says so.
func (c *Coordinator) beginStopSync() bool {
	if !c.openSet().covers(c.isr) {
		return false
	}
	c.change = &change{kind: changeStopSync, step: stepPrepare, q: bit(c.join.q), isr: c.isr}
	c.prepareRound(c.isr, c.all()&^c.isr)
	return true
}

func (c *Coordinator) advanceStopSync(ch *change) bool {
	switch ch.step {
	case stepPrepare:
		switch {
		case c.round.done():
			j := c.join
			c.event(Event{Kind: EventResyncStopped, Replica: c.m[j.q].id, Reason: j.failed})
			c.forgetJoin()
			c.settleAll()
			ch.step = stepPropose
			return true
		case c.lostOf(c.isr) != 0:
			c.endChange()
			return true
		}
	case stepPropose:
		if c.lostOf(c.isr) != 0 {
			c.endChange() // next says STALE in any case
			return true
		}
		if c.now >= ch.retry {
			n := c.next("stop resync")
			c.setISR(n, c.isr, c.evictedState)
			ch.next, ch.step = n, stepCAS
			c.propose(n)
		}
	case stepCommit:
		if c.round.done() || c.lostOf(c.isr) != 0 {
			c.endChange()
			return true
		}
	default: // stepCAS
	}
	return false
}

func (c *Coordinator) advanceFinishJoin(ch *change) bool {
	j := c.join
	switch ch.step {
	case stepPropose:
		if j.failed != "" || c.lostOf(c.isr) != 0 {
			c.endChange()
			return true
		}
		if c.now >= ch.retry {
			n := c.next("join")
			c.setISR(n, ch.isr, c.evictedState)
			ch.next, ch.step = n, stepCAS
			c.propose(n)
		}
	case stepCommit:
		if c.round.done() || c.lostOf(c.isr) != 0 {
			c.endChange()
			return true
		}
	default: // stepCAS: acknowledgements need the union (I10), which wait-mode gives
	}
	return false
}

// joined makes the joiner a member of the in-sync set.
func (c *Coordinator) joined(ch *change) {
	j := c.join
	c.isr = ch.isr
	c.join = nil
	c.event(Event{Kind: EventJoined, Replica: c.m[j.q].id})
	if j.failed != "" {
		c.requestEvict(j.q, j.failed)
	}
	if !c.m[j.q].open {
		c.m[j.q].downAt = c.now
	}
	ch.step = stepCommit
	c.commitRound(c.isr, false)
	c.settleAll()
}
