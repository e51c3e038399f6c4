package core

import (
	"fmt"

	"github.com/tandem-storage/tandem/replication"
)

// Cut (protocol.md 15.2): the coordinators of a group hold their writes, and while all of them do, each notes where it stands. Everything that
// was acknowledged by any of them before is in it; what depends on such an acknowledgement, and was not dispatched before, is not.
// One whose hold ended by itself makes the whole cut void (I28).

// cutHold keeps writes and flushes of the consumer back; reads go on.
type cutHold struct {
	op    replication.UUID
	until int64 // when it ends by itself
	held  bool  // nothing is in flight any more
	at    replication.CutPosition
}

// HoldForCut holds writes back for the operation op until ReleaseCut, or until the time given. EventHeld tells when nothing is in flight any
// more. Errors: replication.ErrBusy another operation holds them; replication.ErrStalled they do not proceed anyway.
func (c *Coordinator) HoldForCut(now int64, op replication.UUID, until int64) error {
	c.now = now
	c.endCut()
	if s := c.Stall(); s != StallNone {
		return fmt.Errorf("%w: %s", replication.ErrStalled, s)
	}
	if c.cut != nil {
		return fmt.Errorf("%w: operation %s", replication.ErrBusy, c.cut.op)
	}
	c.cut = &cutHold{op: op, until: until}
	c.progress()
	return nil
}

// Cut is where the volume stands while op holds it with nothing in flight.
func (c *Coordinator) Cut(now int64, op replication.UUID) (at replication.CutPosition, held bool) {
	c.now = now
	c.endCut()
	if c.cut == nil || c.cut.op != op || !c.cut.held {
		return replication.CutPosition{}, false
	}
	return c.cut.at, true
}

// ReleaseCut lets writes go on, and reports whether op held them until now, with nothing in flight: only then its cut counts.
func (c *Coordinator) ReleaseCut(now int64, op replication.UUID) bool {
	_, held := c.Cut(now, op)
	if c.cut != nil && c.cut.op == op {
		c.cut, c.retry = nil, true
		c.progress()
	}
	return held
}

// endCut ends a hold whose time is up.
func (c *Coordinator) endCut() {
	if c.cut != nil && (c.now >= c.cut.until || c.stage != stageServing) {
		c.cut, c.retry = nil, true
	}
}

// lookAtCut notes where a volume that is held stands.
func (c *Coordinator) lookAtCut() {
	c.endCut()
	if c.cut == nil || c.cut.held {
		return
	}
	for _, io := range c.flight.ios {
		if io.modifies() {
			return
		}
	}
	c.cut.held = true
	c.cut.at = replication.CutPosition{Epoch: c.cfg.Epoch, Term: c.term, Seq: c.lastSeq, Writes: c.writes}
	c.event(Event{Kind: EventHeld})
}
