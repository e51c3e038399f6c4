package core

import (
	"fmt"

	"github.com/tandem-storage/tandem/datapath/block"
	"github.com/tandem-storage/tandem/replication"
)

// Snapshots (protocol.md 15.1): the coordinator holds writes and copies, waits until nothing is in flight, and has every in-sync replica cut at that point.
// All of them have the same then: what was acknowledged before is in it, what is dispatched after the last answer is not. It is a change
// like those of the configuration, though it changes none, so that no other one goes on beside it.
//
// It counts only if every in-sync replica has answered that it is stable. Otherwise some have a snapshot and others do not, or not the same: its
// number is never used again, and who keeps the list of snapshots has it deleted. The message goes with the session, before what is dispatched later; a replica
// that has not answered when the hold is given up has its session ended, so that nothing comes to it before it has ended its cut (I17).

// snapshotCut is the one snapshot that is being taken, or is to be.
type snapshotCut struct {
	id    replication.SnapshotID
	begin int64 // when it is given up unless the hold has begun
	hold  int64 // how long it may last, then
	until int64 // when it is given up
	asked mask
	has   mask
	err   error // of a replica
}

// Snapshot has every in-sync replica cut. EventSnapshot tells the end, once. It does not begin while the in-sync replicas are not all heard, or may differ: that is waited
// for until begin. Then writes are held, for at most hold nanoseconds; reads go on.
func (c *Coordinator) Snapshot(now int64, id replication.SnapshotID, begin, hold int64) {
	c.now = now
	s := &snapshotCut{id: id, begin: begin, hold: hold}
	switch {
	case c.over():
		c.tellSnapshot(s, c.deadErr())
	case c.snap != nil:
		c.tellSnapshot(s, fmt.Errorf("%w: snapshot %s is being taken", replication.ErrStalled, c.snap.id))
	default:
		c.snap = s
		c.progress()
	}
}

// tellSnapshot tells how a snapshot ended.
func (c *Coordinator) tellSnapshot(s *snapshotCut, err error) {
	e := Event{Kind: EventSnapshot, Snapshot: s.id, Err: err}
	if err == nil {
		e.Holders = c.ids(s.has)
	} else {
		e.Err = fmt.Errorf("%w: %w", replication.ErrNotCut, err)
	}
	c.event(e)
}

// beginSnapshot holds the requests if it may be taken now. It reports false if something else has to come first.
func (c *Coordinator) beginSnapshot() bool {
	s := c.snap
	switch {
	case c.now >= s.begin, c.snapshotObstacle() != nil:
		return false
	}
	for i, m := range c.m {
		if c.isr.has(i) && !m.snapshots {
			c.endSnapshot(fmt.Errorf("%w: the version of node %s knows no snapshots: upgrade it", replication.ErrSnapshotUnsupported, c.cfg.Members[m.id].Node))
			return true
		}
	}
	s.until = c.now + s.hold
	c.holdRequests(StallSnapshot, false)
	c.change = &change{kind: changeSnapshot, step: stepQuiesce, until: s.until}
	return true
}

// watchSnapshot gives one up that has waited for too long.
func (c *Coordinator) watchSnapshot() {
	s := c.snap
	if s == nil || c.now < s.begin || c.change != nil && c.change.kind == changeSnapshot {
		return
	}
	err := c.snapshotObstacle()
	if err == nil {
		err = fmt.Errorf("%w: the volume does not come to it (%s)", replication.ErrStalled, c.Stall())
	}
	c.endSnapshot(err)
}

// snapshotObstacle is why no snapshot can be taken now.
func (c *Coordinator) snapshotObstacle() error {
	switch {
	case c.protectionStall():
		return fmt.Errorf("%w: writes wait for what its protection asks for", replication.ErrStalled)
	case c.wished() != 0, !c.openSet().covers(c.isr):
		return fmt.Errorf("%w: an in-sync replica does not answer", replication.ErrStalled)
	case c.reconcile.Count() > 0:
		return fmt.Errorf("%w: in-sync replicas are still being compared after a takeover or a failed write", replication.ErrStalled)
	}
	return nil
}

// advanceSnapshot carries the snapshot on.
func (c *Coordinator) advanceSnapshot(ch *change) bool {
	s := c.snap
	if s.err == nil {
		s.err = c.snapshotObstacle()
	}
	if s.err == nil && c.now >= ch.until {
		s.err = fmt.Errorf("%w: it took longer than writes may be held for it", replication.ErrStalled)
	}
	switch {
	case s.err != nil:
		c.endSnapshot(s.err)
		return true
	case ch.step == stepQuiesce && c.drained():
		ch.step, s.asked = stepCut, c.isr
		for i := range c.m {
			if s.asked.has(i) {
				c.request(copyRequest{to: i, kind: askCut},
					replication.Message{Type: replication.MsgSnapCut, Offset: c.Size(), Length: int64(len(s.id)), Data: s.id[:]})
			}
		}
	case ch.step == stepCut && s.has.covers(c.isr):
		c.endSnapshot(nil)
		return true
	}
	return false
}

// endSnapshot tells the end of the snapshot and lets requests go on.
func (c *Coordinator) endSnapshot(err error) {
	s := c.snap
	c.snap = nil
	if c.change != nil && c.change.kind == changeSnapshot {
		c.endChange()
		c.releaseRequests()
	}
	c.tellSnapshot(s, err)
	for i, m := range c.m {
		if (s.asked &^ s.has).has(i) && m.open {
			c.dropSession(i) // it may be at it still
		}
	}
}

// cutAnswer takes the answer of member i; msg is nil if none will come.
func (c *Coordinator) cutAnswer(i int, msg *replication.Message) {
	s := c.snap
	if s == nil {
		return
	}
	node := c.cfg.Members[c.m[i].id].Node
	switch {
	case msg == nil:
		s.err = fmt.Errorf("%w: the connection to node %s was lost", replication.ErrStalled, node)
	case msg.Type == replication.MsgAck && msg.Status == replication.StatusOK && msg.Flags&replication.FlagStable != 0:
		s.has |= bit(i)
	default:
		s.asked &^= bit(i)
		s.err = fmt.Errorf("node %s: %w", node, snapshotRefusal(msg.Status))
		if msg.Status == replication.StatusIO {
			c.requestEvict(i, diskFailed)
		}
	}
}

// snapshotRefusal is why a replica that answered with st has taken no snapshot.
func snapshotRefusal(st replication.Status) error {
	switch st {
	case replication.StatusUnsupported:
		return fmt.Errorf("%w: its pool cannot share blocks between files; snapshots need a pool on XFS made with reflink=1 (tandemctl volume replica replace moves the replica)", replication.ErrSnapshotUnsupported)
	case replication.StatusLimit:
		return replication.ErrTooManySnapshots
	case replication.StatusNoSpace:
		return block.ErrNoSpace
	case replication.StatusIO:
		return replication.ErrReplicaFaulted
	default:
		return fmt.Errorf("%w: it refused: %s", replication.ErrStalled, st)
	}
}
