package core

// busy reports whether the consumer is at work, so that copies make room for it.
func (c *Coordinator) busy() bool { return c.o.ResyncFloor > 0 && c.now-c.proposed < busyFor }

// unit is how much is compared and copied under one range lock now, in bytes.
func (c *Coordinator) unit() int64 {
	if c.busy() {
		return paceUnit
	}
	return copySpan
}

// budget says whether another span may start, and takes it from the rate, in bytes a second, 0 unlimited.
func (c *Coordinator) budget(rate int64) bool {
	if len(c.jobs) >= c.o.ResyncWindow || c.now < c.copyAt {
		return false
	}
	unit := c.unit()
	if !c.busy() {
		return c.bucket.take(c.now, rate, max(rate, unit), unit)
	}
	if c.pace.paused(c.now) {
		c.bucket = bucket{at: c.now} // nothing gathers meanwhile
		return false
	}
	c.pace.judge(c.now, c.o.ResyncFloor)
	if rate <= 0 || rate > c.pace.rate {
		rate = c.pace.rate
	}
	ok := c.bucket.take(c.now, rate, max(rate/10, unit), unit)
	c.pace.held = c.pace.held || !ok
	return ok
}

// bucket bounds how much is done in a second.
type bucket struct {
	tokens int64 // bytes that may be done now
	at     int64 // when they were counted
}

// take takes n out of the bucket if there is that much in it. rate is in bytes a second, 0 unlimited; full, n or more, is
// the most that may gather.
func (b *bucket) take(now, rate, full, n int64) bool {
	if rate <= 0 {
		return true
	}
	if b.at == 0 {
		b.at = now
	}
	earned := float64(now-b.at) * float64(rate) / 1e9
	b.tokens = min(b.tokens+int64(min(earned, float64(full))), full)
	b.at = now
	if b.tokens < n {
		return false
	}
	b.tokens -= n
	return true
}
