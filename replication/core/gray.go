package core

import (
	"fmt"

	"github.com/tandem-storage/tandem/replication"
)

// Gray replicas (protocol.md 11, F18): a member that answers, but slowly, makes every write slow. If Options.EvictSlow says so it leaves the
// in-sync set when in each of Options.SlowWindows windows, one after the other, more than one in a hundred of its writes took longer, while those of another
// member did not: what slows all of them down is not with them. It has everything, so it leaves as one in a crowded pool does: nothing waits
// for it, and nobody leaves whom the volume's protection asks for, or who is the last one. Only writes are looked at: how long a flush may take
// depends on what there is to flush.

// grayRests is how often its rest before a resync doubles: to 64 times Options.SlowRest.
const grayRests = 6

// grayness is how slowly a member in sync answers.
type grayness struct {
	writes, late int // answered in this window, and those of them that took too long

	runs             int // windows up to now in which too many did
	ofWrites, ofLate int // in those

	rests int   // how often it left for that, up to grayRests
	until int64 // it is not resynced before
}

// tooSlow reports whether member i answers too slowly, for long enough.
func (c *Coordinator) tooSlow(i int) bool {
	g := &c.m[i].gray
	return c.isr.has(i) && g.runs >= c.o.SlowWindows && g.ofWrites >= c.o.SlowWrites
}

// timeAnswer counts a write that member i has answered.
func (c *Coordinator) timeAnswer(i int, io *IO) {
	m := c.m[i]
	if c.o.EvictSlow <= 0 || io.Kind != replication.MsgWrite || !c.isr.has(i) {
		return
	}
	m.gray.writes++
	if c.now-max(io.sent, m.upAt) > c.o.EvictSlow {
		m.gray.late++
	}
}

// watchGray finds out anew who answers too slowly, and asks for the eviction of those whom the rest can do without.
func (c *Coordinator) watchGray() {
	if c.o.EvictSlow <= 0 {
		return
	}
	if c.grayAt == 0 {
		c.grayAt = c.now
	}
	if c.now-c.grayAt >= c.o.SlowWindow {
		c.judgeAnswers()
		c.grayAt = c.now
	}
	var q mask
	for i := range c.m {
		if c.tooSlow(i) {
			q |= bit(i)
		} else {
			c.pardon(i, gray)
		}
	}
	// Who is to leave for another reason is not counted on.
	rest := c.isr &^ (q | c.evictReq)
	spare := rest != 0 && c.openSet().covers(rest) && c.meets(c.cfg.Policy(), rest)
	for i := range c.m {
		switch {
		case !q.has(i):
		case spare:
			c.requestEvict(i, gray)
		default:
			c.pardon(i, gray)
		}
	}
}

// judgeAnswers ends a window.
func (c *Coordinator) judgeAnswers() {
	var late, good mask
	for i, m := range c.m {
		switch {
		case m.gray.late*100 > m.gray.writes:
			late |= bit(i)
		case m.gray.writes > 0:
			good |= bit(i)
		}
	}
	for i, m := range c.m {
		g := &m.gray
		if late.has(i) && good != 0 {
			g.runs, g.ofWrites, g.ofLate = g.runs+1, g.ofWrites+g.writes, g.ofLate+g.late
		} else {
			g.runs, g.ofWrites, g.ofLate = 0, 0, 0
		}
		g.writes, g.late = 0, 0
	}
}

// evictReason is why member i leaves, with figures.
func (c *Coordinator) evictReason(i int) string {
	g := &c.m[i].gray
	if c.evictWhy[i] != gray || !c.tooSlow(i) {
		return c.evictWhy[i]
	}
	return fmt.Sprintf("%s: %d of %d writes in %g s took longer than %g ms", gray, g.ofLate, g.ofWrites,
		float64(g.runs)*float64(c.o.SlowWindow)/1e9, float64(c.o.EvictSlow)/1e6)
}

// restFromGray lets a member that has left begin anew when it is back. One that left because it is slow may be so still: each time it
// stays away for longer.
func (c *Coordinator) restFromGray(i int) {
	g := &c.m[i].gray
	*g = grayness{rests: g.rests, until: g.until}
	if c.evictWhy[i] == gray {
		g.until = c.now + c.o.SlowRest<<g.rests
		g.rests = min(g.rests+1, grayRests)
	}
}

// Rests is for how many ns a member that was evicted because it is slow is not resynced yet, 0 for every other one. What the volume's
// protection asks for does not rest.
func (c *Coordinator) Rests(member int) int64 {
	if c.isr.has(member) || !c.meets(c.cfg.Policy(), c.isr) {
		return 0
	}
	return max(c.m[member].gray.until-c.now, 0)
}
