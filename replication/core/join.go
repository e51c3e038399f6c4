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
	direct    int             // spans that are copied before one is compared again
	total     int
	cursor    int
	failed    string // why it has to stop
}

// crowdedRetries is how many times RetryInterval later a replica in a pool that is
// nearly full is asked again: it takes somebody to make room.
const crowdedRetries = 10

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
	if j.flushed && c.wished() == 0 { // an eviction goes first
		c.change = &change{kind: changeJoin, step: stepPropose, q: bit(j.q), isr: c.isr | bit(j.q)}
		return true
	}
	return false
}

// SetResync tells at most how many bytes a second a resync copies, 0 unlimited, and of which members one may begin: of no other.
// One that runs goes on. Before it is told a resync of any may begin.
func (c *Coordinator) SetResync(now, rate int64, members ...int) {
	c.now = now
	c.mayJoin, c.o.ResyncRate = 0, rate
	for _, i := range members {
		c.mayJoin |= bit(i)
	}
	c.progress()
}

// WantsResync reports whether a resync of a member is under way, or would begin if it may.
func (c *Coordinator) WantsResync(member int) bool {
	switch {
	case c.stage != stageServing:
		return false
	case c.join != nil:
		return c.join.q == member
	default:
		return c.reconcile.Count() == 0 && c.now >= c.joinAt && c.joinable(member)
	}
}

// joinable reports whether member i is out of sync and seems to be there.
func (c *Coordinator) joinable(i int) bool {
	m := c.m[i]
	st := c.cfg.Members[m.id].State
	return !c.isr.has(i) && m.usable && m.kept && m.up && c.now >= max(m.tryAt, m.rest) && c.Rests(i) == 0 && (st == replication.MemberStale || st == replication.MemberSyncing)
}

// beginJoin seals a member that is out of sync and seems to be there.
func (c *Coordinator) beginJoin() bool {
	if c.reconcile.Count() > 0 || c.holdAcks || c.now < c.joinAt {
		c.sweep()
		return false
	}
	for i, m := range c.m {
		if !c.mayJoin.has(i) || !c.joinable(i) {
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
			case r.Seal.Crowded:
				c.join = nil
				m.tryAt = c.now + crowdedRetries*c.o.RetryInterval
			default:
				j.seal = r.Seal
			}
		}})
		return false
	}
	return false
}

// beginStartSync is step 3. The configuration says SYNCING first, which binds nobody,
// and only then writes are held: they never wait for the kvdb (G6).
func (c *Coordinator) beginStartSync() bool {
	c.change = &change{kind: changeStartSync, step: stepPropose, q: bit(c.join.q), isr: c.isr}
	return true
}

func (c *Coordinator) advanceStartSync(ch *change) bool {
	j := c.join
	if ch.step != stepCAS && (j.failed != "" || c.holding() && c.now >= ch.until || c.wished() != 0) {
		c.abandonStartSync("could not start in time")
		return true
	}
	switch ch.step {
	case stepPropose:
		n := c.next(replication.CauseStartResync)
		v := n.Members[c.m[j.q].id]
		v.State, v.Reason = replication.MemberSyncing, c.fullCompare(j)
		n.Members[c.m[j.q].id] = v
		c.setISR(n, c.isr, c.evictedState)
		ch.next, ch.step = n, stepCAS
		c.propose(n)
	case stepQuiesce:
		if !c.drained() {
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
			if r.Failed || r.Dirty == nil || r.Dirty.Status != replication.StatusOK || len(r.Dirty.Bits) < (c.blocks+7)/8 { // more: it has grown, and the volume has not
				j.fail("dirty map could not be read")
				return
			}
			j.todo = NewBitmap(c.blocks)
			j.todo.OrBytes(r.Dirty.Bits)
			c.markActive(j.todo, j.seal)
			if c.related(j) {
				j.total = j.todo.Count()
				c.tellJoiner(ch)
				return
			}
			// The maps do not say what it lacks. They have to before it is told anything,
			// for after that it looks related.
			j.todo.SetAll()
			j.total = j.todo.Count()
			ch.step = stepPrepare
			c.prepareRound(c.isr, c.all()&^c.isr, c.m[j.q].id)
		}})
	case stepPrepare:
		if c.round.done() {
			c.round = nil
			c.tellJoiner(ch)
			return true
		}
	case stepConnect:
		if c.m[j.q].open {
			// From here it gets every write. The in-sync members keep their dirty map of
			// it and go on marking until it joins, so that nothing is forgotten however
			// the resync ends.
			j.mirrored = true
			c.endChange()
			c.releaseRequests()
			c.retry = true
			if j.seal.LogLost {
				c.event(Event{Kind: EventLogLost, Replica: c.m[j.q].id})
			}
			c.event(Event{Kind: EventResyncStarted, Replica: c.m[j.q].id, Dirty: j.total})
			return true
		}
	default: // stepDirty, stepCAS, stepTell: an answer will come
	}
	return false
}

// related reports whether the joiner's history is part of the volume's, so that
// the dirty map says all that it lacks (I21).
func (c *Coordinator) related(j *join) bool {
	s, v := j.seal, c.cfg.Members[c.m[j.q].id]
	if s.Epoch == 0 {
		return false // it was never part of the volume
	}
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

// fullCompare is why the joiner is compared in full, "" if it is not.
func (c *Coordinator) fullCompare(j *join) string {
	switch {
	case !c.related(j):
		return "compared in full: its history is not known"
	case j.seal.LogLost:
		return "compared in full: its activity log is lost"
	default:
		return ""
	}
}

// tellJoiner makes the joiner's state durable before its first resync write
// (I20), gives it maps for the others that are missing, and opens its session.
func (c *Coordinator) tellJoiner(ch *change) {
	j := c.join
	ch.step = stepTell
	cfg := c.cfg.Clone()
	missing := c.ids(c.all() &^ (c.isr | bit(j.q)))
	fail := func() { j.fail("joiner did not answer") }
	c.ask(j.q, Control{Commit: &replication.CommitRequest{
		Volume: c.o.Volume, Replica: c.m[j.q].id, Term: c.term, Incarnation: c.o.Incarnation, Config: cfg, Boot: j.seal.Boot,
	}}, &control{to: j.q, reply: func(r ControlResult) {
		if c.change != ch {
			return
		}
		if r.Failed || r.Commit == nil || r.Commit.Status != replication.StatusOK {
			fail()
			return
		}
		c.ask(j.q, Control{Prepare: &replication.PrepareRequest{
			Volume: c.o.Volume, Replica: c.m[j.q].id, Term: c.term, Missing: missing, MarkAll: missing, Size: c.cfg.Size,
		}}, &control{to: j.q, reply: func(r ControlResult) {
			if c.change != ch {
				return
			}
			switch {
			case !r.Failed && r.Prepare != nil && r.Prepare.Status == replication.StatusNoSpace:
				j.fail(noRoomToGrow)
				return
			case r.Failed || r.Prepare == nil || r.Prepare.Status != replication.StatusOK:
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
	c.endChange()
	c.releaseRequests()
	c.join.fail(why)
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
	if c.isr&(c.isr-1) == 0 && c.reconcile.Count() > 0 {
		c.reconcile.Reset() // the joiner is not in sync: nothing to differ from
		c.wroteSeq = true   // a flush settles what waited for it
	}
	m.boot = replication.BootID{}
	c.joinAt = c.now + c.o.RetryInterval
	m.tryAt = c.joinAt
	if c.cfg.Members[m.id].State == replication.MemberSyncing {
		// Each such attempt costs two epochs, and the configuration remembers few of them.
		m.tryAt = c.now + c.o.RetryInterval<<m.failedJoins
		m.failedJoins = min(m.failedJoins+1, maxFailedJoins)
	}
}

// maxFailedJoins bounds the pause between attempts to resync a member: that power of two times RetryInterval.
const maxFailedJoins = 6

// beginStopSync brings a SYNCING member back to STALE: it is dropped, then the
// configuration says so. What it lacks is marked at the others all the time.
func (c *Coordinator) beginStopSync() bool {
	j := c.join
	c.change = &change{kind: changeStopSync, step: stepPropose, q: bit(j.q), isr: c.isr}
	c.event(Event{Kind: EventResyncStopped, Replica: c.m[j.q].id, Reason: j.failed})
	c.forgetJoin()
	c.settleAll()
	return true
}

func (c *Coordinator) advanceStopSync(ch *change) bool {
	switch ch.step {
	case stepPropose:
		if c.wished() != 0 {
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
			n := c.next(replication.CauseJoin)
			c.setISR(n, ch.isr, c.evictedState)
			ch.next, ch.step = n, stepCAS
			c.propose(n)
		}
	case stepCommit:
		if c.round.done() || c.lostOf(c.isr) != 0 {
			for i, m := range c.m {
				if ch.q.has(i) {
					m.stable = 0 // while it was no member it did not listen
				}
			}
			c.wroteSeq = true // a flush settles what its activity log has
			c.endChange()
			return true
		}
	default: // stepCAS: acknowledgements need the union (I10), which wait-mode gives
	}
	return false
}

// joining reports whether the joiner may be in the in-sync set already (I10).
func (c *Coordinator) joining() bool {
	return c.change != nil && c.change.kind == changeJoin && c.change.step == stepCAS
}

// joined makes the joiner a member of the in-sync set.
func (c *Coordinator) joined(ch *change) {
	j := c.join
	c.m[j.q].failedJoins = 0
	c.isr = ch.isr
	c.join = nil
	c.watchPolicy() // before anybody is let go because nothing is protected
	c.event(Event{Kind: EventJoined, Replica: c.m[j.q].id})
	if j.failed != "" {
		// It failed while the outcome was open. It may even have what failed on the others.
		c.reconcile.SetAll()
		c.requestEvict(j.q, j.failed)
	}
	if !c.m[j.q].open {
		c.m[j.q].downAt = c.now
	}
	ch.step = stepCommit
	c.commitRound(c.isr, false)
	c.settleAll()
}
