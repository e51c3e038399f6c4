package core

import (
	"fmt"

	"github.com/tandem-storage/tandem/datapath/block"
	"github.com/tandem-storage/tandem/replication"
)

// A volume grows in two steps. First every member that gets its writes makes itself as large as it is to be, durably (PREPARE). Only
// when all of them are, the configuration says so, and only when that is in force anything behind the old end is written or read. So every in-sync
// replica is at least as large as the configuration says, whoever goes by it; one that is larger has nothing there. Who comes later, at a
// takeover or a resync, is made as large before it counts.

// resize is the size that was asked for.
type resize struct {
	id    uint64
	size  int64
	begun bool
}

// SetSize asks that the volume has size bytes from now on, a multiple of the block size. It never shrinks. An EventResized with id tells the end;
// if none comes before the coordinator ends, the size may be in force or not. A later request takes the place of one that has not begun.
func (c *Coordinator) SetSize(now int64, id uint64, size int64) {
	c.now = now
	switch old := c.resize; {
	case c.over():
		return
	case size < c.cfg.Size || size%sector != 0:
		c.event(Event{Kind: EventResized, ID: id, Err: fmt.Errorf("%w: the volume has %d bytes, %d is less or no multiple of %d", ErrNotChanged, c.cfg.Size, size, sector)})
	case old != nil && old.begun:
		c.event(Event{Kind: EventResized, ID: id, Err: fmt.Errorf("%w: the volume is growing to %d bytes already", ErrNotChanged, old.size)})
	default:
		if old != nil {
			c.endResize(fmt.Errorf("%w: another size was asked for meanwhile", ErrNotChanged))
		}
		c.resize = &resize{id: id, size: size}
	}
	c.progress()
}

// Size is that of the volume, bytes: what is in force and every in-sync replica has.
func (c *Coordinator) Size() int64 { return c.cfg.Size }

// beginResize asks everybody who gets writes to grow.
func (c *Coordinator) beginResize() bool {
	w := c.resize
	switch {
	case c.detachReq || c.handTo != nil:
		c.endResize(fmt.Errorf("%w: the volume is leaving this node", ErrNotChanged))
		return true
	case w.size == c.cfg.Size:
		c.endResize(nil)
		return true
	}
	w.begun = true
	ch := &change{kind: changeResize, isr: c.isr}
	c.change = ch
	c.prepareRoundOf(w.size, c.isr|c.syncing(), c.all()&^c.isr)
	c.round.patient = true
	answer := c.round.reply
	c.round.reply = func(i int, r ControlResult) bool {
		switch p := r.Prepare; {
		case p != nil && p.Status == replication.StatusNoSpace:
			ch.noRoom |= bit(i)
		case answer(i, r) && p.Size < w.size:
			ch.cannot |= bit(i)
		default:
			return answer(i, r)
		}
		return false
	}
	return true
}

// advanceResize carries the change on.
func (c *Coordinator) advanceResize(ch *change) bool {
	w, j := c.resize, c.join
	switch ch.step {
	case stepPrepare:
		switch {
		case j != nil && (ch.noRoom | ch.cannot).has(j.q):
			j.fail(noRoomToGrow)
			fallthrough
		case c.lostOf(c.isr) != 0, c.round.want&^c.isr != c.syncing(), j != nil && j.failed != "":
			w.begun = false // anew, with who is left
			c.endChange()
			return true
		case ch.noRoom != 0:
			c.endResizeAt(ch.noRoom, replication.ErrNoRoom)
			return true
		case ch.cannot != 0:
			c.endResizeAt(ch.cannot, fmt.Errorf("%w: the node of a replica runs a version that cannot do that; update it", ErrNotChanged))
			return true
		case c.round.done():
			c.round = nil
			ch.step = stepPropose
			return true
		}
	case stepPropose:
		switch {
		case c.lostOf(c.isr) != 0:
			w.begun = false
			c.endChange()
			return true
		case c.now >= ch.retry:
			n := c.next("resize")
			n.Size = w.size
			c.setISR(n, c.isr, c.evictedState)
			ch.next, ch.step = n, stepCAS
			c.propose(n)
		}
	case stepCommit:
		if c.round.done() || c.lostOf(c.isr) != 0 || c.resize != nil || c.detachReq {
			c.endChange() // one that does not answer learns of it later
			return true
		}
	default: // stepCAS
	}
	return false
}

const noRoomToGrow = "it has no room to grow with the volume"

// endResizeAt ends the change that was asked for because of a member of s.
func (c *Coordinator) endResizeAt(s mask, err error) {
	c.endChange()
	for i, m := range c.m {
		if s.has(i) {
			c.event(Event{Kind: EventResized, ID: c.resize.id, Replica: m.id, Err: err})
			c.resize = nil
			return
		}
	}
}

// endResize tells what became of the change that was asked for.
func (c *Coordinator) endResize(err error) {
	c.event(Event{Kind: EventResized, ID: c.resize.id, Err: err})
	c.resize = nil
}

// resized acts on a new size that is in force.
func (c *Coordinator) resized(ch *change) {
	was := c.blocks
	c.blocks = blocksOf(c.cfg.Size)
	c.reconcile.Grow(c.blocks)
	c.touchedAt = append(c.touchedAt, make([]uint32, regionsIn(c.cfg.Size)-len(c.touchedAt))...)
	if j := c.join; j != nil && j.mirrored {
		j.todo.Grow(c.blocks)
		j.todo.SetRange(was, c.blocks) // whatever it had there
		j.total += c.blocks - was
	}
	c.endResize(nil)
	ch.step = stepCommit
	c.commitRound(c.isr, false)
}

// blocksOf is how many ResyncBlocks a volume of size bytes has.
func blocksOf(size int64) int {
	return int((size + replication.ResyncBlock - 1) / replication.ResyncBlock)
}

// regionsIn is how many regions it has.
func regionsIn(size int64) int {
	return int((size + replication.RegionSize - 1) / replication.RegionSize)
}

// growth is the size that a request wants the replica to have, 0 if that is not to be changed now.
func (r *Replica) growth(t *replicaTask) int64 {
	if q := t.prepare; q != nil && !t.grew && !r.faulted && q.Term == r.meta.Term && q.Size > r.o.Size && q.Size%block.SectorSize == 0 {
		return q.Size
	}
	return 0
}

// grown takes note of the replica's new size: what is new is zeroes, and nobody lacks it.
func (r *Replica) grown(size int64) {
	r.o.Size = size
	r.regions = append(r.regions, make([]region, regionsIn(size)-len(r.regions))...)
	for _, m := range r.dirty {
		m.Grow(blocksOf(size))
		m.saved = append(m.saved, make([]uint64, len(r.regions)-len(m.saved))...)
	}
}
