package core

import (
	"slices"

	"github.com/tandem-storage/tandem/replication"
)

// Groups (protocol.md 15.3): volumes whose writes depend on each other. What lies in a cluster domain is an image of the group as long as no
// volume acknowledges a write without the replicas there while another one still writes to them. Two rules see to it, here and in
// the coordinators of the other volumes:
//
//   - a domain that has no replica in sync any more holds acknowledgements back until every other volume of the group has none there either, or
//     is not attached;
//   - once the group is split from a domain, no write is sent before the replicas there have left; nor while it is not known whether they have.
//
// Who tells which is the case reads the group's record and the configurations (SetGroup). Nothing waits longer than
// Options.GroupTimeout; then I/O goes on and there is no image. The coordinator's own domain has no part in it.
//
// What the volume's protection asks for holds beside that. While it has a volume's writes wait for a replica there, nothing is acknowledged without
// the domain and the others need not leave it: the split begins when the protection lets writes go on. A volume that is to leave does so whatever
// its protection asks for, and its writes wait then, for as long as that says.

// side is one cluster domain other than the coordinator's own, with its members.
type side struct {
	domain  replication.DomainID
	members mask
	leave   bool // those in sync have to leave before anything is sent
	stayed  bool // they were to leave, and have not
	state   sideState
}

type sideState uint8

const (
	sideMirrored sideState = iota // it has a member in sync
	sideLost                      // it has none, and acknowledgements wait
	sideKept                      // it has none, and none was acknowledged before the group had left
	sideLate                      // it has none, and some may have been
)

// groupState is what the coordinator does for the sake of its group.
type groupState struct {
	in    bool
	known bool  // what the group is split from is known, as of this term
	since int64 // when something began to be held back; 0 nothing is
	sides []side
}

// newGroupState knows no group unless in says so.
func (c *Coordinator) newGroupState(in bool) groupState {
	g := groupState{in: in}
	for i, m := range c.m {
		d := c.cfg.Members[m.id].Domain
		if d == c.o.Domain {
			continue
		}
		k := slices.IndexFunc(g.sides, func(s side) bool { return s.domain == d })
		if k < 0 {
			k = len(g.sides)
			// What it has none of in sync from the start, an earlier coordinator may have acknowledged without.
			g.sides = append(g.sides, side{domain: d, state: sideLate})
		}
		g.sides[k].members |= bit(i)
	}
	return g
}

// SetGroup tells what is known of the group, and answers how the volume stands. What was known before the election is not what is asked for:
// the group may have been split since, and have taken the volume for idle.
func (c *Coordinator) SetGroup(now int64, v replication.GroupOrder) replication.GroupStatus {
	c.now = now
	g := &c.group
	if !v.In && !g.in {
		return c.GroupStatus()
	}
	g.in = v.In
	g.known = g.known || !v.In || v.Term == c.term && c.term != 0
	for k := range g.sides {
		s := &g.sides[k]
		told := v.In && slices.Contains(v.Leave, s.domain)
		s.stayed = s.stayed && (told || c.leaving(s))
		if s.leave = told && !s.stayed; !s.leave {
			c.pardonAll(s.members, groupSplit)
		}
		switch {
		case s.state != sideMirrored && !v.In:
			s.state = sideLate
		case s.state == sideLost && slices.Contains(v.Left, s.domain):
			s.state = sideKept
		}
	}
	c.settleAll()
	c.retry = true
	c.progress()
	return c.GroupStatus()
}

// GroupStatus returns how the volume stands to its group.
func (c *Coordinator) GroupStatus() replication.GroupStatus {
	r := replication.GroupStatus{Term: c.term}
	if c.over() {
		return r // it does nothing any more that others have to follow
	}
	for _, s := range c.group.sides {
		switch {
		case s.state == sideLost && c.protectionStall():
		case s.state == sideLost:
			r.Lost = append(r.Lost, s.domain)
		case s.state == sideKept:
			r.Kept = append(r.Kept, s.domain)
		case s.state == sideLate, s.stayed:
			r.Late = append(r.Late, s.domain)
		}
	}
	return r
}

// lookAtGroup follows the in-sync set, has those leave that are to, and gives up what took too long.
func (c *Coordinator) lookAtGroup() {
	g := &c.group
	if c.stage == stageIdle || c.over() {
		return
	}
	for k := range g.sides {
		s := &g.sides[k]
		switch {
		case c.isr&s.members != 0:
			s.state = sideMirrored
		case s.state == sideMirrored && g.in:
			s.state = sideLost
		case s.state == sideMirrored:
			s.state = sideLate
		}
		s.leave = s.leave && s.state == sideMirrored
		if s.leave && c.stage == stageServing {
			for i := range c.m {
				if s.members.has(i) {
					c.requestEvict(i, groupSplit)
				}
			}
		}
	}
	switch {
	case !c.groupHoldsAcks() && !c.groupHoldsWrites():
		g.since = 0
	case c.stage != stageServing:
	case g.since == 0:
		g.since = c.now
	case c.now-g.since >= c.o.GroupTimeout:
		c.giveGroupUp()
	}
}

// giveGroupUp lets everything go on that waits for the group.
func (c *Coordinator) giveGroupUp() {
	g := &c.group
	for k := range g.sides {
		s := &g.sides[k]
		if s.state == sideMirrored && (s.leave || !g.known || c.leaving(s)) {
			s.stayed = true
		}
		s.leave = false
		c.pardonAll(s.members, groupSplit)
		if s.state == sideLost {
			s.state = sideLate
		}
	}
	g.since, g.known = 0, true
	c.event(Event{Kind: EventGroupLate})
	c.settleAll()
	c.retry = true
}

// groupHoldsAcks reports whether a write may not be acknowledged for the sake of the group.
func (c *Coordinator) groupHoldsAcks() bool {
	if c.protectionStall() {
		return false // nothing is acknowledged anyway, and what ends that is a resync
	}
	for k := range c.group.sides {
		if c.group.sides[k].state == sideLost {
			return true
		}
	}
	return false
}

// groupHoldsWrites reports whether a write may not be sent for the sake of the group.
func (c *Coordinator) groupHoldsWrites() bool {
	g := &c.group
	if g.in && !g.known {
		return true
	}
	for k := range g.sides {
		if s := &g.sides[k]; s.state == sideMirrored && (s.leave || g.in && !s.stayed && c.leaving(s)) {
			return true
		}
	}
	return false
}

// leaving reports whether a change may be in force already, unknown to the coordinator, by which a domain has no member in sync any more. The
// other volumes may have seen it.
func (c *Coordinator) leaving(s *side) bool {
	ch := c.change
	return ch != nil && ch.kind == changeEvict && c.changeSent && c.isr&s.members != 0 && ch.isr&s.members == 0
}

// pardonAll is pardon for each of s.
func (c *Coordinator) pardonAll(s mask, why string) {
	for i := range c.m {
		if s.has(i) {
			c.pardon(i, why)
		}
	}
}

// groupRest is how long a replica that left for the sake of the group alone is not resynced. One that writes wait for rests no longer than
// the group may have anything wait.
func (c *Coordinator) groupRest() int64 {
	if c.protectionStall() {
		return min(c.o.GroupRest, c.o.GroupTimeout)
	}
	return c.o.GroupRest
}
