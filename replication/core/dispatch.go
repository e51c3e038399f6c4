package core

import (
	"slices"

	"github.com/tandem-storage/tandem/datapath/block"
	"github.com/tandem-storage/tandem/replication"
)

// dispatchable reports whether io may be sent now: the volume serves, nothing
// overlapping is in flight (I15, I16), and for a read every in-sync member has granted a
// lease (I8) and the blocks are reconciled.
func (c *Coordinator) dispatchable(io *IO) bool {
	if c.stage != stageServing {
		return false
	}
	switch {
	case io.copy != nil:
		if c.holding() {
			return false
		}
	case io.Kind == replication.MsgRead:
		if c.hold.reads || !c.readable() || c.unreconciled(io.Off, io.Len) {
			return false
		}
	default:
		if c.holding() || c.protectionStall() {
			return false
		}
		if c.cut != nil || c.groupHoldsWrites() {
			return false
		}
	}
	return !c.flight.blocks(io)
}

// behind reports whether io has to wait for one that came before it.
func (c *Coordinator) behind(io *IO) bool {
	for _, w := range c.waiting {
		if overlap(w, io) {
			return true
		}
	}
	return false
}

func (c *Coordinator) enqueue(io *IO) {
	c.waiting = append(c.waiting, io)
	if io.Kind == replication.MsgRead && c.stage == stageServing && c.unreconciled(io.Off, io.Len) {
		c.progress() // brings its blocks forward
	}
}

// dispatchWaiting sends what may go now, keeping the order of requests that overlap.
func (c *Coordinator) dispatchWaiting() {
	for c.retry && len(c.waiting) > 0 {
		c.retry = false
		kept := c.waiting[:0]
		for _, io := range c.waiting {
			if io.copy != nil && io.copy.failed {
				c.abandon(io.copy)
				continue
			}
			blocked := !c.dispatchable(io)
			// A copy waits only for what is in flight: what waits may be waiting for it.
			for k := 0; !blocked && io.copy == nil && k < len(kept); k++ {
				blocked = overlap(kept[k], io)
			}
			if blocked {
				kept = append(kept, io)
				continue
			}
			c.dispatch(io)
		}
		clear(c.waiting[len(kept):])
		c.waiting = kept
	}
	c.retry = false
}

// dispatch numbers a request and sends it.
func (c *Coordinator) dispatch(io *IO) {
	c.lastSeq++
	io.seq, io.sent = c.lastSeq, c.now
	c.flight.add(io)
	switch {
	case io.copy != nil:
		c.startCopy(io.copy)
		return
	case io.Kind == replication.MsgRead:
		c.reads++
		io.number = c.reads
		c.sendRead(io)
		c.askConfirmations()
		return
	case io.Kind == replication.MsgFlush:
		io.cover = io.seq - 1
		if w := c.flight.minWrite(); w != 0 {
			io.cover = w - 1
		}
		c.unflushed, c.wroteSeq, c.lastFlush = 0, c.flight.minWrite() != 0, c.now
		c.flushes, c.touched = c.flushes+1, 0
	default:
		c.unflushed += io.Len
		c.wroteSeq = true
		c.writes++
		c.touch(io)
	}
	io.targets = c.isr | c.syncing()
	for i, m := range c.m {
		if io.targets.has(i) && m.open {
			c.sendIO(i, io)
		}
	}
	c.flushIfDue()
}

// touch counts the regions that a write touches.
func (c *Coordinator) touch(io *IO) {
	first, last := regionsOf(io.Off, io.Len)
	for g := first; g <= last; g++ {
		if c.touchedAt[g] != c.flushes {
			c.touchedAt[g] = c.flushes
			c.touched++
		}
	}
}

// flushIfDue flushes when much was written, or in many places.
func (c *Coordinator) flushIfDue() {
	if (c.unflushed >= c.o.FlushBytes || c.touched >= c.o.FlushRegions) && !c.flushing && !c.holding() {
		c.flushNow()
	}
}

func (c *Coordinator) sendIO(i int, io *IO) {
	msg := replication.Message{Type: io.Kind, Flags: io.Flags, Seq: io.seq, Offset: io.Off, Length: io.Len}
	if io.Kind == replication.MsgWrite {
		msg.Data, msg.Buf, msg.Sums = io.Data, io.Buf, io.Sums
		c.m[i].lag += io.Len
	}
	c.send(i, msg)
}

// flushNow flushes in the background: it bounds what a power cut of every
// replica could take, and lets the activity logs retire.
func (c *Coordinator) flushNow() {
	var io *IO
	if n := len(c.freeIOs); n > 0 {
		io, c.freeIOs = c.freeIOs[n-1], c.freeIOs[:n-1]
		*io = IO{}
	} else {
		io = &IO{}
	}
	io.Kind, io.internal, io.born, io.from = replication.MsgFlush, true, c.now, -1
	c.flushing = true
	c.dispatch(io)
}

// need is the set whose acknowledgements a request waits for (I3, I5, I18).
func (c *Coordinator) need() mask {
	n := c.isr
	if j := c.join; j != nil && j.mirrored && (j.wait || c.m[j.q].lag > c.o.JoinerLag) {
		n |= bit(j.q)
	}
	return n
}

// settle completes and removes a request as far as its answers allow.
func (c *Coordinator) settle(io *IO) {
	if bad := (io.full | io.failed) & c.isr; bad != 0 {
		if !(io.acked | bad).covers(c.isr) {
			return // some have not answered yet
		}
		for i := range c.m {
			if bad == io.full&c.isr && bad != c.isr && bad.has(i) {
				c.requestEvict(i, noSpace)
			}
		}
		switch {
		case c.must()&bad == 0:
			// No copy took it, or none of those that did not can go (I2): the consumer
			// is told, even while acknowledgements are held, for an error promises nothing.
			err := block.ErrIO
			if io.full&c.isr != 0 {
				err = block.ErrNoSpace
			}
			c.differ(io)
			c.complete(io, err)
			io.acked |= bad
		default:
			return // the eviction is under way
		}
	}
	if c.groupHoldsAcks() {
		return
	}
	if c.holdAcks || !io.acked.covers(c.need()) {
		return
	}
	held := !io.delivered && !io.internal && c.protectionStall()
	if !held {
		c.complete(io, nil)
	}
	if !io.acked.covers(io.targets & (c.isr | c.syncing())) {
		return
	}
	if held {
		c.repeat(io)
		return
	}
	c.flight.remove(io)
	c.retry = true
	switch {
	case io.Kind == replication.MsgFlush:
		c.flushDone(io)
	case len(c.harms) > 0 && (io.failed|io.full)&c.isr == 0:
		c.overwritten(io)
	}
	c.release(io)
}

// repeat puts a request back that every replica has done: it counts only with
// what the volume's protection asks for and was evicted meanwhile, when that is back.
func (c *Coordinator) repeat(io *IO) {
	c.flight.remove(io)
	io.targets, io.acked, io.full, io.failed, io.damaged, io.spoilt = 0, 0, 0, 0, 0, 0
	c.waiting = slices.Insert(c.waiting, 0, io) // nothing that overlaps may pass it
	c.retry = true
}

// differ notes that the in-sync members may differ in the range of io, a joiner
// that may be one already included.
func (c *Coordinator) differ(io *IO) {
	if c.join != nil {
		c.join.fail("a write failed on every replica")
	}
	if c.isr&(c.isr-1) == 0 && !c.joining() || io.Len == 0 {
		return
	}
	c.reconcile.SetRange(int(io.Off/replication.ResyncBlock), int((io.Off+io.Len-1)/replication.ResyncBlock)+1)
	c.cursor = 0
}

func (c *Coordinator) flushDone(io *IO) {
	if io.internal {
		c.flushing = false
		c.flushGood = io.failed|io.full == 0
	}
	if c.reconcile.Count() == 0 && io.failed|io.full == 0 && io.cover > c.stable {
		c.stable = io.cover
		if io.internal {
			c.tellStable() // writes may be waiting for room in an activity log
		}
	}
}

// settleAll looks at every request again after the sets changed.
func (c *Coordinator) settleAll() {
	for k := len(c.flight.ios) - 1; k >= 0; k-- {
		if k < len(c.flight.ios) {
			if io := c.flight.ios[k]; io.copy == nil && io.Kind != replication.MsgRead {
				c.settle(io)
			}
		}
	}
	c.retry = true
}

// quiet reports whether nothing but reads is in flight, flushes of the core's own
// included: they are not sent to a member that comes later.
func (c *Coordinator) quiet() bool {
	for _, io := range c.flight.ios {
		if io.exclusive() {
			return false
		}
	}
	return true
}

// sendRead asks one in-sync member that has not failed it yet.
func (c *Coordinator) sendRead(io *IO) {
	io.from = c.prefer(c.isr & c.openSet() &^ io.failed)
	if io.from < 0 || c.frozen(io.Off, io.Len) {
		io.from = -1
		c.flight.remove(io)
		c.complete(io, block.ErrIO)
		c.release(io)
		return
	}
	c.send(io.from, replication.Message{Type: replication.MsgRead, Seq: io.seq, Offset: io.Off, Length: io.Len})
}

// again asks another member, or waits for one.
func (c *Coordinator) again(io *IO) {
	c.flight.remove(io)
	io.from = -1
	if io.delivered { // given up by the consumer
		c.release(io)
		return
	}
	c.waiting = append(c.waiting, io)
	c.retry = true
}

func (c *Coordinator) readDone(io *IO, msg *replication.Message) {
	if msg.Status == replication.StatusCRC || int64(len(msg.Data)) != io.Len {
		c.readFailed(io, io.from, replication.StatusCRC)
		return
	}
	if !io.delivered {
		copy(io.Data, msg.Data)
	}
	switch {
	case c.confirmed(io):
		c.readEnd(io)
	case c.o.ConfirmReads:
		io.from = -1
		c.answered = append(c.answered, io)
	default: // it was readable, when the read was sent
		c.again(io)
	}
}

// readEnd completes a read.
func (c *Coordinator) readEnd(io *IO) {
	c.complete(io, nil)
	c.flight.remove(io)
	c.retry = len(c.waiting) > 0 || c.change != nil
	c.release(io)
}

func (c *Coordinator) readFailed(io *IO, i int, st replication.Status) {
	if st != replication.StatusCRC || io.damaged.has(i) {
		io.failed |= bit(i)
	}
	io.damaged |= bit(i)
	if st == replication.StatusIO {
		c.suspect(io.Off, io.Len)
	}
	c.again(io)
}
