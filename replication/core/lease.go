package core

import (
	"math"

	"github.com/tandem-storage/tandem/replication"
)

// Read leases (protocol.md 5.6, I8). A coordinator completes a read only while it holds a
// lease from every replica that a takeover may start from. A replica promises a later term
// only when what it granted to the earlier one has run out, so that nobody reads from a
// coordinator that another one has followed. Each side counts by its own clock, from an
// instant that is the safe one for it: the coordinator from before it asked, the replica
// from after it heard. Writes are fenced by terms and sessions alone, whatever the clocks do.
//
// Where clocks are not to be trusted (Options.ConfirmReads) a read needs no lease: it is completed when each of these
// replicas has told, of a request that was sent after the read was, that it has promised no later term. So no other
// coordinator had served a write when the read began. One request confirms all reads that were sent before it.

// ClockError bounds how much the clocks of two nodes may drift apart while a lease runs:
// 1/ClockError of it. A kernel slews its clock by 1/2000 at most.
const ClockError = 100

// renewals is how often a lease is renewed while it would run.
const renewals = 4

// lease is what a coordinator holds of one member.
type lease struct {
	until  int64 // reads may be completed before, or with ConfirmReads sent; 0 if it holds nothing
	asked  int64 // when it last asked; it numbers the request
	asking bool  // no answer has come yet

	covers    uint64 // reads up to this are confirmed by the answer
	confirmed uint64 // reads up to this are confirmed
}

// A coordinator whose consumer asks for nothing lets its leases run out. The next request asks for them before it is due: a read that comes first
// waits for one answer of each reader.

// idle reports whether the consumer has asked for nothing for so long that no lease is renewed.
func (c *Coordinator) idle() bool {
	return c.o.LeaseRest > 0 && c.stage == stageServing && c.now-max(c.proposed, c.servedAt) >= c.o.LeaseRest && len(c.flight.ios) == 0 && len(c.waiting) == 0
}

// Resting reports whether nothing is under way that time alone carries on: Tick may be late until another input comes.
func (c *Coordinator) Resting() bool {
	switch {
	case !c.idle(), c.change != nil, c.changeSent, c.round != nil, len(c.ctl) > 0, c.evictReq != 0, c.detachReq, c.handTo != nil, c.holdAcks, c.holding():
		return false
	case c.cut != nil, c.snap != nil, c.group.in, c.join != nil, c.resize != nil, c.verify != nil, c.healing != nil, len(c.suspicions) > 0:
		return false
	case len(c.answered) > 0, len(c.reqs) > 0, c.copying(), c.wroteSeq, c.flushing, c.reconcile.Count() > 0, !c.reached().covers(c.need()):
		return false
	}
	for i, m := range c.m {
		if !c.isr.has(i) || !m.open || m.pending || m.lease.asking || !m.usable || !m.kept || m.stable < c.stable {
			return false
		}
	}
	return true
}

// askLeases asks for the leases that are due. A joiner is asked too: from the moment in which
// it may be in the in-sync set a takeover may start from it.
func (c *Coordinator) askLeases() {
	if c.o.ConfirmReads {
		c.confirmReads()
		return
	}
	if c.idle() {
		return
	}
	want := c.isr | c.syncing()
	for i, m := range c.m {
		if want.has(i) && m.open && c.now-m.lease.asked >= c.o.LeaseTime/renewals {
			c.askLease(i)
		}
	}
}

// askLease asks member i, unless an answer is on its way.
func (c *Coordinator) askLease(i int) {
	l := &c.m[i].lease
	if l.asking || c.ended {
		return
	}
	l.asked, l.asking, l.covers = c.now, true, c.reads
	msg := replication.Message{Type: replication.MsgLease, Offset: c.now, Length: (c.o.LeaseTime + 1e6 - 1) / 1e6}
	if c.o.ConfirmReads {
		msg.Length, l.until = 0, c.now+c.o.LeaseTime
	}
	c.send(i, msg)
}

// confirmReads completes the reads that have become confirmed, and asks for what the others lack.
func (c *Coordinator) confirmReads() {
	left := c.answered[:0]
	for _, io := range c.answered {
		if c.confirmed(io) {
			c.readEnd(io)
		} else {
			left = append(left, io)
		}
	}
	clear(c.answered[len(left):])
	c.answered = left
	c.askConfirmations()
}

// askConfirmations asks the members for what the reads that were sent lack.
func (c *Coordinator) askConfirmations() {
	if !c.o.ConfirmReads {
		return
	}
	for i, m := range c.m {
		if c.readers().has(i) && m.open && m.lease.confirmed < c.reads {
			c.askLease(i)
		}
	}
}

// granted takes the answer of member i. What counts is when the request was sent, and how long
// the replica says that it keeps its promise.
func (c *Coordinator) granted(i int, msg *replication.Message) {
	l := &c.m[i].lease
	if !l.asking || msg.Offset != l.asked {
		return
	}
	if c.o.ConfirmReads {
		l.asking, l.confirmed, l.until = false, l.covers, math.MaxInt64
		c.confirmReads()
		return
	}
	kept := min(msg.Length, math.MaxInt64/int64(1e6)) * 1e6
	was := c.readable()
	l.asking, l.until = false, l.asked+min(c.o.LeaseTime, kept-kept/ClockError)
	c.retry = c.retry || !was
}

// readers are the members that a takeover may start from. A joiner whose join is being decided is one of them (I10).
func (c *Coordinator) readers() mask {
	s := c.isr
	if c.joining() {
		s |= c.change.q
	}
	return s
}

// readable reports whether no other coordinator can have served a write before now: every reader has promised so. With
// ConfirmReads it says only that none has been silent for long.
func (c *Coordinator) readable() bool {
	s := c.readers()
	for i, m := range c.m {
		if s.has(i) && (!m.open || c.now >= m.lease.until) {
			return false
		}
	}
	return !c.ended
}

// confirmed reports whether io may be completed.
func (c *Coordinator) confirmed(io *IO) bool {
	if !c.o.ConfirmReads {
		return c.readable()
	}
	s := c.readers()
	for i, m := range c.m {
		if s.has(i) && m.lease.confirmed < io.number {
			return false
		}
	}
	return true
}

// SetClock tells the replica the time, in nanoseconds of a clock that goes on while the machine sleeps and never
// goes back. It is due before other inputs, no older than they are, and when Ready.Wake says so.
func (r *Replica) SetClock(now int64) {
	r.now = now
	if len(r.queue) > 0 {
		r.run()
	}
}

// grant lets the coordinator of the session complete reads for a time, and tells it for how long. One that asks for
// none is told just that no later term has been promised.
func (r *Replica) grant(conn ConnID, msg *replication.Message) {
	keep := int64(0)
	if msg.Length > 0 {
		keep = r.o.LeaseGrant
		r.leased = r.now + keep
	}
	r.ready.Send = append(r.ready.Send, ReplicaSend{Conn: conn, Msg: replication.Message{
		Type: replication.MsgGrant, Session: msg.Session, Term: r.meta.Term, Offset: msg.Offset, Length: keep / 1e6,
	}})
}

// leasedTo reports whether the coordinator of another term than that of q may still complete reads. That the
// others have ended is believed of a coordinator that was elected in the same kvdb, where it stands.
func (r *Replica) leasedTo(q *replication.SealRequest) bool {
	ended := q.Ended >= r.meta.Term && q.Incarnation == r.meta.Incarnation
	return q.Term != r.meta.Term && r.now < r.leased && !ended
}

// quarantine is the lease that a process begins with: what the one before it granted is not
// known. If no term was promised there was nobody to grant one to.
func (r *Replica) quarantine() {
	if r.meta.Term != 0 {
		r.leased = r.now + r.o.LeaseGrant
	}
}

// endedTerm is the highest term of which it is certain that neither its coordinator nor an earlier one
// reads any more, 0 if there is none. cfg is what the takeover replaces.
//
// After a detach all have ended. So have those up to the coordinator that cfg names if it came to
// serve and ran here: then the leases of the earlier ones had run out, and of one node only one process at a time
// serves, with one coordinator for each volume. A node that has booted again may be a copy of
// another machine that is still running: that is not certain. Who handed over reads no more, and who it
// was handed to never came to read, if what is replaced is the configuration of the handover itself.
func (c *Coordinator) endedTerm(cfg *replication.Config) replication.Term {
	old := cfg.Coord
	switch {
	case old == nil:
		return replication.Term(cfg.Epoch)
	case cfg.Phase == replication.PhaseRecovering && old.From.Term != 0:
		return old.Term
	case cfg.Phase == replication.PhaseActive && old.Node == c.o.Node && old.Boot == c.o.Boot && !replication.UUID(old.Boot).IsZero():
		return old.Term
	default:
		return 0
	}
}
