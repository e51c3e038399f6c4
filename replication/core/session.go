package core

import (
	"cmp"
	"slices"

	"github.com/tandem-storage/tandem/replication"
)

// Tick tells the time. It is due every few hundred milliseconds, while Resting every ten seconds.
func (c *Coordinator) Tick(now int64) {
	c.now = now
	c.proposeAgain()
	c.watchSnapshot()
	if c.stage == stageServing {
		c.watchMembers()
		c.watchRequests()
		c.watchPolicy()
		c.watchGray()
		if c.wroteSeq && !c.flushing && !c.holding() && now-c.lastFlush >= c.o.FlushInterval {
			c.flushNow()
		}
		c.tellStable()
		c.askLeases()
	}
	c.progress()
}

// watchMembers connects whom it should be connected to and suspects who stays away.
func (c *Coordinator) watchMembers() {
	want := c.isr | c.syncing()
	for i, m := range c.m {
		if !m.kept {
			c.requestEvict(i, domainDrains) // again, if a worse reason has gone meanwhile
		}
		if !want.has(i) || m.open {
			continue
		}
		if c.isr.has(i) && c.now-m.downAt >= c.o.SuspectTimeout {
			c.requestEvict(i, suspected)
		}
		if !m.pending && c.now >= m.tryAt && m.usable && c.isr.has(i) {
			c.connect(i)
		}
	}
}

// watchRequests looks for requests that take too long.
func (c *Coordinator) watchRequests() {
	c.watchSlow()
	if c.evictReq&c.isr != 0 {
		c.settleAll()
		if c.wished() == 0 {
			// Nobody can go: what did not fit has failed, what was not read is tried again.
			for i := range c.m {
				c.pardon(i, noSpace)
				c.pardon(i, unreadable)
			}
		}
	}
	if c.o.StallTimeout <= 0 {
		return
	}
	for _, io := range c.flight.ios {
		if io.copy == nil && c.now-io.born >= c.o.StallTimeout {
			// The consumer gets its error; the request keeps its range until its
			// outcome is the same everywhere.
			c.complete(io, replication.ErrStalled)
		}
	}
	c.waiting = slices.DeleteFunc(c.waiting, func(io *IO) bool {
		if io.copy != nil || c.now-io.born < c.o.StallTimeout {
			return false
		}
		c.complete(io, replication.ErrStalled)
		c.release(io)
		c.retry = true // for those that waited behind it
		return true
	})
}

// watchSlow finds out anew who does not answer: of the requests that were sent,
// none may be older than OpTimeout, nor be on the way in a session for so long.
func (c *Coordinator) watchSlow() {
	var late mask
	open := c.openSet()
	for _, io := range c.flight.ios {
		switch {
		case io.copy != nil:
		case io.Kind != replication.MsgRead:
			late |= c.lateOf(io.targets&^io.acked&open, io.sent)
		case io.from >= 0:
			late |= c.lateOf(bit(io.from), io.sent)
		}
	}
	for i, m := range c.m {
		if m.lease.asking {
			late |= c.lateOf(bit(i)&open, m.lease.asked)
		}
	}
	for _, r := range c.reqs {
		late |= c.lateOf(bit(r.to), r.sent)
	}
	if r := c.round; r != nil && !r.patient && c.now-r.began >= c.o.OpTimeout {
		late |= r.want &^ r.got & open
	}
	for i := range c.m {
		c.pardon(i, slow)
		if late.has(i) {
			c.requestEvict(i, slow)
		}
	}
}

// lateOf is the members of s that have had a request of time sent for too long.
func (c *Coordinator) lateOf(s mask, sent int64) (late mask) {
	for i, m := range c.m {
		if s.has(i) && c.now-max(sent, m.upAt) >= c.o.OpTimeout {
			late |= bit(i)
		}
	}
	return late
}

// tellStable lets idle replicas retire their activity log.
func (c *Coordinator) tellStable() {
	for i, m := range c.m {
		if m.open && m.stable < c.stable && (c.isr | c.syncing()).has(i) {
			c.send(i, replication.Message{Type: replication.MsgStable})
		}
	}
}

func (c *Coordinator) connect(i int) {
	m := c.m[i]
	m.sess = 0
	for m.sess == 0 {
		m.sess = replication.SessionID(c.o.Rand())
	}
	m.pending = true
	c.ready.Connect = append(c.ready.Connect, Session{
		To: i, ID: m.sess, Term: c.term,
		Hello: replication.Hello{Volume: c.o.Volume, Replica: m.id, AttachID: c.o.Attach, Epoch: c.cfg.Epoch, Gen: c.cfg.Gen},
	})
}

// SessionUp brings the answer to a hello.
func (c *Coordinator) SessionUp(now int64, i int, id replication.SessionID, ack replication.HelloAck) {
	c.now = now
	m := c.m[i]
	if m.sess != id || !m.pending || c.over() {
		return
	}
	m.pending = false
	if c.stage != stageServing {
		c.earlySession(i, ack)
		return
	}
	if m.boot != (replication.BootID{}) && m.boot != ack.Boot {
		c.lostPower(i)
		c.progress()
		return
	}
	c.opened(i, ack)
	if m.up {
		c.pardon(i, suspected)
	}
	c.askLease(i)
	c.resend(i)
	c.retry = true
	c.progress()
}

func (c *Coordinator) opened(i int, ack replication.HelloAck) {
	m := c.m[i]
	m.boot, m.open, m.lag, m.upAt = ack.Boot, true, 0, c.now
	m.snapshots = ack.Snapshots
	// A replica whose process lost its activity log learns here which numbers may
	// have been lost with it.
	c.send(i, replication.Message{Type: replication.MsgStable, Seq: c.lastSeq})
}

// Sessions are opened while a takeover goes on, with replicas that have promised its term, so that it is served as soon as it is committed
// (protocol.md 5.1). Until then they carry nothing of a consumer, and a lease is asked for only when the activation is in force: who follows a coordinator
// that was not activated does not wait for one.

// earlySession takes the answer to a hello before the volume is served. A replica in another boot than it was sealed in may have lost what
// it had then: it is found to have when it is connected to again.
func (c *Coordinator) earlySession(i int, ack replication.HelloAck) {
	if r := c.seals[i]; r == nil || r.Boot != ack.Boot {
		c.dropSession(i)
		return
	}
	c.opened(i, ack)
	c.askFirstLeases()
}

// askFirstLeases asks for what the first read needs, once the activation is in force.
func (c *Coordinator) askFirstLeases() {
	for i, m := range c.m {
		if c.stage == stageCommitting && c.isr.has(i) && m.open {
			c.askLease(i)
		}
	}
}

// keepSessions ends the sessions with all members but those of s.
func (c *Coordinator) keepSessions(s mask) {
	for i, m := range c.m {
		if !s.has(i) && (m.open || m.pending) {
			c.dropSession(i)
		}
	}
}

// resend sends member i every request that it has not acknowledged. Applying
// twice does no harm: nothing overlapping is in flight (I15). What it refused is under
// way again too, and may still be after the others have answered.
func (c *Coordinator) resend(i int) {
	var ios []*IO
	for _, io := range c.flight.ios {
		if io.copy == nil && io.Kind != replication.MsgRead && (io.targets &^ io.acked).has(i) {
			ios = append(ios, io)
		}
	}
	slices.SortFunc(ios, func(a, b *IO) int { return cmp.Compare(a.seq, b.seq) })
	for _, io := range ios {
		io.full &^= bit(i)
		io.failed &^= bit(i)
		c.sendIO(i, io)
	}
}

// SessionDown tells that a session ended, or could not be opened.
func (c *Coordinator) SessionDown(now int64, i int, id replication.SessionID) {
	c.now = now
	if c.m[i].sess != id || c.over() {
		return
	}
	c.sessionLost(i)
	c.progress()
}

// SessionRefused brings the answer of a replica that did not accept the hello.
// term is the one that it has promised.
func (c *Coordinator) SessionRefused(now int64, i int, id replication.SessionID, st replication.Status, term replication.Term) {
	c.now = now
	if c.m[i].sess == id && c.stage == stageServing && st == replication.StatusFenced && term > c.term && c.fenced() {
		return
	}
	if c.m[i].sess == id && c.stage == stageServing && st == replication.StatusIO {
		c.requestEvict(i, diskFailed)
	}
	c.SessionDown(now, i, id)
}

func (c *Coordinator) sessionLost(i int) {
	m := c.m[i]
	if m.open {
		m.downAt = c.now
	}
	m.open, m.pending, m.lag = false, false, 0
	m.lease = lease{}
	m.tryAt = c.now + c.o.RetryInterval
	if c.join != nil && c.join.q == i && c.join.connected {
		c.join.fail("connection lost")
	}
	for _, io := range slices.Clone(c.flight.ios) {
		if io.Kind == replication.MsgRead && io.copy == nil && io.from == i {
			c.again(io)
		}
	}
	c.failRequests(i)
	c.retry = true
}

// Step takes a message from member i.
func (c *Coordinator) Step(now int64, i int, msg *replication.Message) {
	c.now = now
	m := c.m[i]
	if msg.Session != m.sess || !m.open || c.stage != stageServing && (c.stage != stageCommitting || msg.Type != replication.MsgGrant) {
		return
	}
	if msg.Type == replication.MsgGrant { // asks for nothing: a replica that has nothing else to do needs no room
		c.granted(i, msg)
	} else if leave := msg.Flags&replication.FlagCrowded != 0; leave || c.evictReq.has(i) {
		c.asked(i, leave)
	}
	switch msg.Type {
	case replication.MsgAck, replication.MsgNack:
		c.answer(i, msg)
	case replication.MsgData, replication.MsgHash, replication.MsgFindings:
		if r, ok := c.reqs[msg.Seq]; ok && r.to == i {
			c.copyAnswer(r, msg)
		} else if io := c.flight.bySeq[msg.Seq]; io != nil && io.from == i && msg.Type == replication.MsgData {
			c.readDone(io, msg)
		}
	default: // nothing else is for a coordinator
	}
	if c.retry || c.change != nil || c.evictReq != 0 || c.join != nil || c.detachReq || c.reconcile.Count() != 0 {
		c.progress()
	}
}

// answer takes an ack or a nack.
func (c *Coordinator) answer(i int, msg *replication.Message) {
	if msg.Type == replication.MsgNack && msg.Status == replication.StatusFenced && msg.Term > c.term && c.fenced() {
		return
	}
	if msg.Type == replication.MsgNack && (msg.Status == replication.StatusFenced || msg.Status == replication.StatusShuttingDown) {
		c.dropSession(i) // the replica does not serve it any more
		return
	}
	if r, ok := c.reqs[msg.Seq]; ok && r.to == i {
		c.copyAnswer(r, msg)
		return
	}
	io := c.flight.bySeq[msg.Seq]
	if io == nil || io.copy != nil {
		return
	}
	if io.Kind == replication.MsgRead {
		if io.from == i && msg.Type == replication.MsgNack {
			c.readFailed(io, i, msg.Status)
		}
		return
	}
	if !io.targets.has(i) || io.acked.has(i) {
		return
	}
	c.m[i].lag -= int64(len(io.Data))
	if msg.Type == replication.MsgNack {
		c.refused(io, i, msg.Status)
		return
	}
	if io.Flags&replication.FlagFUA != 0 && msg.Flags&replication.FlagStable == 0 {
		c.refused(io, i, replication.StatusIO) // a replica that breaks the rules is no replica
		return
	}
	c.timeAnswer(i, io)
	io.acked |= bit(i)
	c.settle(io)
}

// dropSession gives a session up; another one is opened.
func (c *Coordinator) dropSession(i int) {
	c.ready.Disconnect = append(c.ready.Disconnect, Session{To: i, ID: c.m[i].sess})
	c.sessionLost(i)
}

// refused handles a nack of a write or a flush.
func (c *Coordinator) refused(io *IO, i int, st replication.Status) {
	switch st {
	case replication.StatusNoSpace:
		io.full |= bit(i)
	case replication.StatusCRC: // sent again, then over another connection, then given up
		switch {
		case !io.damaged.has(i):
			io.damaged |= bit(i)
			c.sendIO(i, io)
			return
		case !io.spoilt.has(i):
			io.spoilt |= bit(i)
			c.dropSession(i)
			return
		}
		io.failed |= bit(i)
		c.requestEvict(i, corrupting)
	default:
		io.failed |= bit(i)
		c.requestEvict(i, refusal(st))
	}
	if c.join != nil && c.join.q == i {
		c.join.fail(refusal(st))
		return
	}
	c.settle(io)
}
