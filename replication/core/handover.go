package core

import (
	"errors"
	"fmt"
	"slices"

	"github.com/tandem-storage/tandem/replication"
)

// Handover (protocol.md 10.2): the coordinator names the one that follows it, while the consumer waits. Requests are held, what
// is in flight ends, everything is flushed on every in-sync replica, which settles the activity logs; no read is served any more, which gives the read leases
// back; and one compare-and-set makes the volume RECOVERING under the other. That one begins where an ordinary takeover has been
// elected: nothing is to be waited for and nothing to be compared.
//
// What was held is given back by Ready.Returned, for the caller to forget, when the other one serves, or to propose to
// another coordinator of the same attachment that takes the volume back. That one is made with the configuration of the handover, and
// its election is compared with it: it succeeds only if the other one has not been activated, so that nobody else has served.

// errNotHandedOver is why a volume stayed where it is.
var errNotHandedOver = errors.New("replication: the volume was not handed over")

// HandOver gives the volume to the coordinator of another attachment: to names its node, domain, boot and attachment. It ends with Dead returning
// replication.ErrHandedOver, or with EventKept. It does not begin while the in-sync set is not whole: the caller bounds it by Keep.
func (c *Coordinator) HandOver(now int64, to replication.Coord) {
	c.now = now
	switch {
	case c.over():
	case c.stage != stageServing || c.detachReq || c.handTo != nil:
		c.event(Event{Kind: EventKept, Err: fmt.Errorf("%w: %w", errNotHandedOver, replication.ErrBusy)})
	default:
		c.handTo = &to
		c.progress()
	}
}

// Keep calls a handover off, unless it has been proposed: then it ends as the kvdb tells.
func (c *Coordinator) Keep(now int64, why error) {
	c.now = now
	if c.handTo != nil && !c.over() && !c.handing() {
		c.keep(why)
		c.progress()
	}
}

// keep ends a handover that came to nothing.
func (c *Coordinator) keep(why error) {
	c.handTo = nil
	if c.change != nil && c.change.kind == changeHandover {
		c.endChange()
		c.releaseRequests()
	}
	c.event(Event{Kind: EventKept, Err: why})
}

// HandedOver reports whether the configuration names another coordinator because this one gave it the volume. Config and
// Revision are those of the handover then, or of what came after it.
func (c *Coordinator) HandedOver() bool { return c.stage == stageHandedOver }

// Revision is that of Config in the kvdb.
func (c *Coordinator) Revision() uint64 { return c.rev }

// beginHandover holds the requests, once nothing else is under way.
func (c *Coordinator) beginHandover() bool {
	switch {
	case !slices.ContainsFunc(c.cfg.ISR, func(r replication.ReplicaID) bool { return c.cfg.Members[r].Node == c.handTo.Node }):
		c.keep(fmt.Errorf("%w: node %s has no in-sync replica of it", errNotHandedOver, c.handTo.Node))
		return true
	case c.protectionStall(): // it cannot be flushed
		c.keep(fmt.Errorf("%w: its writes wait for what its protection asks for", errNotHandedOver))
		return true
	case c.join != nil:
		c.join.fail("volume is being handed over")
		return true
	case c.reconcile.Count() > 0:
		c.sweep() // the other one is to find replicas that are equal
		return false
	}
	c.holdRequests(StallHandover, true)
	c.change = &change{kind: changeHandover, step: stepQuiesce}
	return true
}

func (c *Coordinator) advanceHandover(ch *change) bool {
	if ch.step != stepCAS && c.wished() != 0 {
		c.keep(fmt.Errorf("%w: an in-sync replica is lost", errNotHandedOver))
		return true
	}
	switch ch.step {
	case stepQuiesce:
		if c.drained() {
			ch.step = stepFlush
			c.flushNow()
		}
	case stepFlush:
		switch {
		case !c.drained():
		case !c.flushGood:
			c.keep(fmt.Errorf("%w: its last flush failed", errNotHandedOver))
			return true
		default:
			ch.step = stepSettle
			c.flushNow() // it tells what the one before has made stable, and its answer that this was heard (REGION_CLEAN)
		}
	case stepSettle:
		if c.drained() {
			ch.step = stepPropose
			return true
		}
	case stepPropose:
		n := c.next("handover")
		n.Phase = replication.PhaseRecovering
		to := *c.handTo
		to.Term = replication.Term(n.Epoch)
		to.From = replication.Handover{Node: c.o.Node, AttachID: c.o.Attach, Term: c.term}
		n.Coord = &to
		n.History[len(n.History)-1].ISR = slices.Clone(n.ISR)
		ch.next, ch.step = n, stepCAS
		c.propose(n) // from here on no lease of this term is waited for: reads are held until it is known not to be in force
	default: // stepCAS: wait for ChangeDone
	}
	return false
}

// handing reports whether a handover was proposed and its outcome is not known. Nothing is served until it is.
func (c *Coordinator) handing() bool {
	return c.change != nil && c.change.kind == changeHandover && c.changeSent
}

// fenced ends a coordinator of which a replica tells that it has promised a later term. While a handover is open that may be
// the term of the other one, as was intended: the kvdb tells.
func (c *Coordinator) fenced() bool {
	if c.handing() {
		return false
	}
	c.die(replication.ErrDeposed)
	return true
}

// succeeded reports whether cfg names the coordinator to which this one hands over.
func (c *Coordinator) succeeded(cfg *replication.Config) bool {
	return c.handTo != nil && cfg.Coord != nil && cfg.Coord.AttachID == c.handTo.AttachID && cfg.Coord.From.Term == c.term
}

// handedOver is the end of a coordinator that named another one.
func (c *Coordinator) handedOver() {
	c.stage, c.dead = stageHandedOver, replication.ErrHandedOver
	c.endChange()
	for _, io := range c.waiting {
		if io.copy == nil {
			c.ready.Returned = append(c.ready.Returned, io)
		}
	}
	c.waiting = nil
	c.abortAll(replication.ErrHandedOver)
	c.event(Event{Kind: EventHandedOver})
}

// limbo reports whether the configuration is that of a handover by this attachment: nobody serves.
func (c *Coordinator) limbo() bool {
	return c.cfg.Phase == replication.PhaseRecovering && c.cfg.Coord.From.AttachID == c.o.Attach
}

// tooLate is the end of a coordinator that was overtaken: by the one that it handed over to, as was intended, or by another.
func (c *Coordinator) tooLate(cfg *replication.Config) error {
	if c.o.TakeBack && cfg.Coord != nil && cfg.Coord.From.AttachID == c.o.Attach {
		return replication.ErrHandedOver
	}
	return replication.ErrDeposed
}

// named reports whether the configuration says that the volume was handed over to this coordinator, which has not begun.
func (c *Coordinator) named() bool {
	co := c.cfg.Coord
	return c.cfg.Phase == replication.PhaseRecovering && co.From.Term != 0 && co.Node == c.o.Node && co.AttachID == c.o.Attach
}

// succeed begins in the term that the coordinator before has compared and set.
func (c *Coordinator) succeed() {
	c.term, c.earlier = c.cfg.Coord.Term, c.endedTerm(c.cfg)
	c.isr = c.set(c.cfg.ISR)
	c.event(Event{Kind: EventElected})
	c.seal()
}
