package core

// hold keeps requests of the consumer back: they wait, in order, and nobody is told anything. Copies are held with
// the writes.
type hold struct {
	why   Stall // StallNone: nothing is held
	reads bool  // reads are held too, not writes and flushes alone
}

// holdRequests dispatches nothing any more of the kinds that are held. When what was dispatched before
// has ended too, drained says so; whoever holds asks it after each input, and sets a bound if there has to be one.
func (c *Coordinator) holdRequests(why Stall, reads bool) {
	c.hold = hold{why: why, reads: reads}
	c.dropWaitingCopies()
}

// releaseRequests lets what was held go on.
func (c *Coordinator) releaseRequests() {
	c.hold = hold{}
	c.retry = true
}

func (c *Coordinator) holding() bool { return c.hold.why != StallNone }

// drained reports whether nothing is in flight of the kinds that are held, the core's own flushes and copies included.
func (c *Coordinator) drained() bool {
	return c.quiet() && !c.copying() && !(c.hold.reads && len(c.flight.ios) > 0)
}
