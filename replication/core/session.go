package core

import (
	"cmp"
	"slices"

	"github.com/tandem-storage/tandem/replication"
)

// Tick tells the time. It is due every few hundred milliseconds.
func (c *Coordinator) Tick(now int64) {
	c.now = now
	c.proposeAgain()
	if c.stage == stageServing {
		c.watchMembers()
		c.watchRequests()
		if c.wroteSeq && !c.flushing && !c.hold && now-c.lastFlush >= c.o.FlushInterval {
			c.flushNow()
		}
		c.tellStable()
	}
	c.progress()
}

// watchMembers connects whom it should be connected to and suspects who stays away.
func (c *Coordinator) watchMembers() {
	want := c.isr | c.syncing()
	for i, m := range c.m {
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
	want := c.isr | c.syncing()
	for _, io := range slices.Clone(c.flight.ios) {
		age := c.now - io.born
		if io.copy == nil && age >= c.o.OpTimeout {
			late := io.targets & want &^ io.acked & c.openSet()
			if io.Kind == replication.MsgRead && io.from >= 0 {
				late = bit(io.from) & want
			}
			for i := range c.m {
				if late.has(i) {
					c.requestEvict(i, "does not answer a request")
				}
			}
		}
		if c.o.StallTimeout > 0 && age >= c.o.StallTimeout && io.copy == nil {
			// The consumer gets its error; the request keeps its range until its
			// outcome is the same everywhere.
			c.complete(io, replication.ErrStalled)
		}
	}
	if c.o.StallTimeout <= 0 {
		return
	}
	c.waiting = slices.DeleteFunc(c.waiting, func(io *IO) bool {
		if io.copy != nil || c.now-io.born < c.o.StallTimeout {
			return false
		}
		c.complete(io, replication.ErrStalled)
		c.release(io)
		return true
	})
}

// tellStable lets idle replicas retire their activity log.
func (c *Coordinator) tellStable() {
	for i, m := range c.m {
		if m.open && m.stable < c.stable && c.isr.has(i) {
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
	if m.sess != id || !m.pending || c.stage != stageServing {
		return
	}
	m.pending = false
	if m.boot != (replication.BootID{}) && m.boot != ack.Boot {
		c.lostPower(i)
		c.progress()
		return
	}
	m.boot, m.open, m.lag = ack.Boot, true, 0
	if m.up {
		c.pardon(i)
	}
	c.resend(i)
	c.retry = true
	c.progress()
}

// lostPower handles a member whose node booted again under a living consumer
// (I19, D9): completed writes that were not flushed may be missing there.
func (c *Coordinator) lostPower(i int) {
	m := c.m[i]
	c.ready.Disconnect = append(c.ready.Disconnect, Session{To: i, ID: m.sess})
	m.downAt, m.tryAt = c.now, c.now+c.o.RetryInterval
	switch {
	case c.isr == bit(i):
		c.die(replication.ErrPoisoned)
	case c.isr.has(i):
		c.requestEvict(i, "lost power")
	case c.join != nil && c.join.q == i:
		c.join.fail("lost power")
	}
}

// resend sends member i every request that it has not acknowledged. Applying
// twice does no harm: nothing overlapping is in flight (I15).
func (c *Coordinator) resend(i int) {
	var ios []*IO
	for _, io := range c.flight.ios {
		if io.copy == nil && io.Kind != replication.MsgRead && (io.targets &^ io.acked).has(i) {
			ios = append(ios, io)
		}
	}
	slices.SortFunc(ios, func(a, b *IO) int { return cmp.Compare(a.seq, b.seq) })
	for _, io := range ios {
		c.sendIO(i, io)
	}
}

// SessionDown tells that a session ended, or could not be opened.
func (c *Coordinator) SessionDown(now int64, i int, id replication.SessionID) {
	c.now = now
	if c.m[i].sess != id || c.stage == stageDead || c.stage == stageDetached {
		return
	}
	c.sessionLost(i)
	c.progress()
}

// SessionRefused brings the answer of a replica that did not accept the hello.
// term is the one that it has promised.
func (c *Coordinator) SessionRefused(now int64, i int, id replication.SessionID, st replication.Status, term replication.Term) {
	c.now = now
	if c.m[i].sess == id && c.stage == stageServing && st == replication.StatusFenced && term > c.term {
		c.die(replication.ErrDeposed)
		return
	}
	c.SessionDown(now, i, id)
}

func (c *Coordinator) sessionLost(i int) {
	m := c.m[i]
	if m.open {
		m.downAt = c.now
	}
	m.open, m.pending, m.lag = false, false, 0
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
	if c.stage != stageServing || msg.Session != m.sess || !m.open {
		return
	}
	switch msg.Type {
	case replication.MsgAck, replication.MsgNack:
		c.answer(i, msg)
	case replication.MsgData, replication.MsgHash:
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
	if msg.Type == replication.MsgNack && msg.Status == replication.StatusFenced && msg.Term > c.term {
		c.die(replication.ErrDeposed)
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
	io.acked |= bit(i)
	c.settle(io)
}

// refused handles a nack of a write or a flush.
func (c *Coordinator) refused(io *IO, i int, st replication.Status) {
	switch st {
	case replication.StatusNoSpace:
		io.full |= bit(i)
	case replication.StatusCRC:
		if io.damaged.has(i) {
			c.ready.Disconnect = append(c.ready.Disconnect, Session{To: i, ID: c.m[i].sess})
			c.sessionLost(i)
			return
		}
		io.damaged |= bit(i)
		c.sendIO(i, io)
		return
	case replication.StatusIO:
		io.failed |= bit(i)
		if c.isr != bit(i) {
			c.requestEvict(i, diskFailed)
		}
	default:
		io.failed |= bit(i)
		c.requestEvict(i, "refused a write: "+st.String())
	}
	if c.join != nil && c.join.q == i {
		c.join.fail("refused a write: " + st.String())
		return
	}
	c.settle(io)
}
