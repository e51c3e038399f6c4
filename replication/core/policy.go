package core

import (
	"errors"
	"fmt"
	"math/bits"

	"github.com/tandem-storage/tandem/replication"
)

// Protection: what has to be in sync for a write to be acknowledged, and who is not evicted for it.
//
// A policy is changed by the coordinator that serves the volume, in an own change of the configuration. From before that is sent
// until its outcome is known both policies hold, the old one and the new one, so that whatever the kvdb says, and to whomever,
// no write has been acknowledged against it.

// policy is the protection as the coordinator acts by it.
type policy struct {
	unmet  int64 // since when what is in sync and heard does not meet it, 0 if it does
	lapsed bool  // for longer than it wants writes to wait

	wanted *policyChange // nil if no change was asked for; it has begun if it is the change under way
}

type policyChange struct {
	id     uint64
	to     replication.Policy
	expect replication.Epoch
	reason string
}

// ErrEpoch is the end of a request that was made of another configuration than the one in force. Test with errors.Is.
var ErrEpoch = errors.New("core: the configuration was changed meanwhile")

// ErrNotChanged says that a change did not take effect, and will not.
var ErrNotChanged = errors.New("core: the configuration could not be changed")

// SetPolicy asks that the volume is protected by p from now on. expect is the epoch in which that was decided, 0 for any; the history keeps
// the reason, if there is one. An EventPolicy with id tells the
// end; if none comes before the coordinator ends, the policy may be in force or not. A later request takes the place of one that
// has not begun.
func (c *Coordinator) SetPolicy(now int64, id uint64, p replication.Policy, expect replication.Epoch, reason string) {
	c.now = now
	switch {
	case c.over():
		return
	case c.policyOpen():
		c.event(Event{Kind: EventPolicy, ID: id, Err: fmt.Errorf("%w: another change of the protection is on its way", ErrNotChanged)})
	default:
		if c.policy.wanted != nil {
			c.endPolicy(fmt.Errorf("%w: another change of the protection was asked for meanwhile", ErrNotChanged))
		}
		c.policy.wanted = &policyChange{id: id, to: p, expect: expect, reason: reason}
	}
	c.progress()
}

// policyOpen reports whether a new policy may be in force already.
func (c *Coordinator) policyOpen() bool {
	return c.change != nil && c.change.kind == changePolicy && c.change.step != stepCommit
}

// meets reports whether the members of s are what p asks for.
func (c *Coordinator) meets(p replication.Policy, s mask) bool {
	if bits.OnesCount32(uint32(s)) < p.InSync {
		return false
	}
	for _, d := range p.Domains {
		if !c.inDomain(s, d) {
			return false
		}
	}
	if p.Protection == replication.MaxProtection {
		for _, m := range c.m {
			if !c.inDomain(s, c.cfg.Members[m.id].Domain) {
				return false
			}
		}
	}
	return true
}

// inDomain reports whether s has a member in cluster domain d.
func (c *Coordinator) inDomain(s mask, d replication.DomainID) bool {
	for i, m := range c.m {
		if s.has(i) && c.cfg.Members[m.id].Domain == d {
			return true
		}
	}
	return false
}

// protectionStall reports whether writes have to wait for what their protection asks for.
func (c *Coordinator) protectionStall() bool {
	if c.cfg.Protection == replication.MaxAvailability && c.cfg.Needs.IsZero() && !c.policyOpen() {
		return false
	}
	return !c.policy.lapsed && !c.meets(c.cfg.Policy(), c.isr) || c.policyOpen() && !c.meets(c.policy.wanted.to, c.isr)
}

// waitsFor reports whether members that may come back with everything are waited for, because the rest would not do.
func (c *Coordinator) waitsFor(rest mask) bool {
	return !c.policy.lapsed && (c.cfg.Protection == replication.MaxProtection || !c.meets(c.cfg.Policy(), rest))
}

// withheld reports whether a member is out of reach and stays, because it is waited for.
func (c *Coordinator) withheld() bool {
	q := c.evictReq & c.isr &^ c.openSet()
	return q != 0 && c.wished() == 0 && c.waitsFor(c.isr&^q)
}

// watchPolicy takes note of when what is asked for was lost, has been for too long, and is back.
func (c *Coordinator) watchPolicy() {
	p := &c.policy
	heard := c.isr
	for i := range c.m {
		if c.evictReq.has(i) && severity(c.evictWhy[i]) >= 0 {
			heard &^= bit(i)
		}
	}
	switch bound := c.cfg.Needs.StallMs * 1e6; {
	case c.meets(c.cfg.Policy(), heard):
		if p.lapsed {
			c.event(Event{Kind: EventProtected})
		}
		p.unmet, p.lapsed = 0, false
	case p.unmet == 0:
		p.unmet = c.now
	case bound > 0 && !p.lapsed && c.now-p.unmet >= bound:
		p.lapsed = true
		c.event(Event{Kind: EventUnprotected})
		c.settleAll()
	}
}

// Unprotected reports whether writes go on without what their protection asks for, because it was away for too long.
func (c *Coordinator) Unprotected() bool { return c.policy.lapsed }

// beginPolicy begins the change that was asked for.
func (c *Coordinator) beginPolicy() bool {
	w := c.policy.wanted
	if w.expect != 0 && w.expect != c.cfg.Epoch {
		c.endPolicy(fmt.Errorf("%w: epoch %d is in force, not %d", ErrEpoch, c.cfg.Epoch, w.expect))
		return true
	}
	n := c.next(replication.PolicyCause(w.reason))
	n.SetPolicy(w.to)
	c.setISR(n, c.isr, c.evictedState)
	c.change = &change{kind: changePolicy, step: stepCAS, isr: c.isr, next: n}
	c.propose(n)
	return true
}

// advancePolicy ends the change when the members know of it. One that does not answer learns of it later: it binds nobody but coordinators.
func (c *Coordinator) advancePolicy(ch *change) bool {
	if ch.step == stepCommit && (c.round.done() || c.lostOf(c.isr) != 0 || c.policy.wanted != nil || c.detachReq) {
		c.endChange()
		return true
	}
	return false
}

// endPolicy tells what became of the change that was asked for.
func (c *Coordinator) endPolicy(err error) {
	c.event(Event{Kind: EventPolicy, ID: c.policy.wanted.id, Err: err})
	c.policy.wanted = nil
	c.retry = true
}

// policyChanged acts on a new policy. How long it has not been met counts from now.
func (c *Coordinator) policyChanged(ch *change) {
	c.endPolicy(nil)
	c.policy.unmet, c.policy.lapsed = 0, false
	ch.step = stepCommit
	c.commitRound(c.isr, false)
	c.settleAll()
}
