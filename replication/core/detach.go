package core

import (
	"fmt"
	"slices"

	"github.com/tandem-storage/tandem/replication"
)

// errNotFlushed is how a detach ends whose last flush failed on every in-sync replica.
var errNotFlushed = fmt.Errorf("%w: the volume is detached, but its last flush failed: acknowledged writes may be lost", replication.ErrReplicaFaulted)

// beginDetach drains, flushes and gives the volume up.
func (c *Coordinator) beginDetach() bool {
	if c.join != nil {
		c.join.fail("volume is being detached")
		return true
	}
	c.dropWaitingCopies()
	c.change = &change{kind: changeDetach, step: stepQuiesce}
	return true
}

// dropWaitingCopies gives up the copies that have not begun: what begins now waits until nothing is in flight.
func (c *Coordinator) dropWaitingCopies() {
	for _, io := range c.waiting {
		if io.copy != nil {
			io.copy.failed = true
		}
	}
	c.retry = true
}

// writesStalled reports whether writes wait for what their protection asks for: nothing can be drained before a replica is back, or
// less is asked for.
func (c *Coordinator) writesStalled() bool {
	return c.protectionStall() && slices.ContainsFunc(c.waiting, func(io *IO) bool { return io.copy == nil && io.Kind != replication.MsgRead })
}

func (c *Coordinator) advanceDetach(ch *change) bool {
	if ch.step == stepQuiesce && (c.policy.wanted != nil || c.writesStalled()) {
		c.endChange() // it has held nothing yet
		return true
	}
	if lost := c.lostOf(c.isr); lost != 0 && ch.step != stepCommit && ch.step != stepCAS {
		if _, ok := c.evictable(); ok {
			c.endChange()
			c.releaseRequests()
			return true
		}
	}
	switch ch.step {
	case stepQuiesce:
		if c.quiet() && len(c.waiting) == 0 {
			c.holdRequests(StallDetaching, false)
			ch.step = stepFlush
			c.flushNow()
		}
	case stepFlush:
		if c.quiet() {
			ch.step = stepPropose
			return true
		}
	case stepPropose:
		if c.now >= ch.retry {
			n := c.next("detach")
			n.Phase, n.Coord = replication.PhaseDetached, nil
			n.History[len(n.History)-1].ISR = slices.Clone(n.ISR)
			ch.next, ch.step = n, stepCAS
			c.ended = true // the COMMIT releases the leases
			c.propose(n)
		}
	case stepCommit:
		if c.round.done() || c.now >= ch.until {
			// A replica that did not get the message counts as stopped uncleanly: slower, not wrong.
			c.stage = stageDetached
			if !c.flushGood {
				c.dead = errNotFlushed
			}
			c.endChange()
			c.abortAll(replication.ErrClosed) // what came after the drain
			c.event(Event{Kind: EventDetached, Err: c.dead})
		}
	default:
	}
	return false
}
