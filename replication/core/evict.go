package core

import "github.com/tandem-storage/tandem/replication"

// Why a member has to leave the in-sync set. Other reasons name a request that it refused.
const (
	suspected    = "not reachable"
	slow         = "does not answer a request"
	noSpace      = "no space"
	unreadable   = "cannot be read"
	corrupting   = "data arrive damaged"
	diskFailed   = "disk failed"
	lostPower    = "lost power"
	domainClosed = "cluster domain is not active"
	domainDrains = "cluster domain is being deactivated"
	crowded      = "pool nearly full"
	groupSplit   = "group is split from the domain"
	gray         = "answers slowly"
)

// severity orders the reasons: below 0 a member that has everything and is to
// leave, of its own accord or by plan, 0 a member that may have everything once it is
// heard again, 1 one that lacks writes, 2 one that lost data it had acknowledged.
func severity(why string) int {
	switch why {
	case gray:
		return -3
	case crowded:
		return -2
	case domainDrains:
		return -1
	case suspected, slow:
		return 0
	case diskFailed, lostPower:
		return 2
	default:
		return 1
	}
}

// refusal is why a member that answered a request with st is evicted.
func refusal(st replication.Status) string {
	switch st {
	case replication.StatusIO:
		return diskFailed
	case replication.StatusNoSpace:
		return noSpace
	default:
		return "refused a request: " + st.String()
	}
}

// requestEvict notes that member i should leave the in-sync set. A worse reason
// replaces a milder one.
func (c *Coordinator) requestEvict(i int, why string) {
	if c.isr.has(i) && (!c.evictReq.has(i) || severity(why) > severity(c.evictWhy[i])) {
		c.evictReq |= bit(i)
		c.evictWhy[i] = why
	}
	if c.join != nil && c.join.q == i {
		c.join.fail(why)
	}
}

// asked takes note of whether member i asks to leave.
func (c *Coordinator) asked(i int, leave bool) {
	if leave {
		c.requestEvict(i, crowded)
	} else {
		c.pardon(i, crowded)
	}
}

// pardon drops the wish to evict member i if why was all that spoke against it.
func (c *Coordinator) pardon(i int, why string) {
	if c.evictReq.has(i) && c.evictWhy[i] == why {
		c.evictReq &^= bit(i)
	}
}

// wished is the members that are to be evicted. Somebody always stays (I2): those
// for whom the mildest reason speaks. A member that may come back with everything is waited for if the volume's
// protection wants that.
func (c *Coordinator) wished() mask {
	q := c.evictReq & c.isr
	if q == 0 {
		return 0
	}
	least := 2
	for i := range c.m {
		if q.has(i) {
			least = min(least, severity(c.evictWhy[i]))
		}
	}
	all, wait := q == c.isr, c.waitsFor(c.isr&^q)
	for i := range c.m {
		s := severity(c.evictWhy[i])
		if all && s == least || s <= 0 && wait {
			q &^= bit(i)
		}
	}
	return q
}

// must is those of the wished that may lack something: no write is acknowledged
// with them any more.
func (c *Coordinator) must() mask {
	q := c.wished()
	for i := range c.m {
		if severity(c.evictWhy[i]) < 0 {
			q &^= bit(i)
		}
	}
	return q
}

// evictable reports whether the eviction wished for may begin (5.2, guards).
func (c *Coordinator) evictable() (rest mask, ok bool) {
	q := c.wished()
	rest = c.isr &^ q
	return rest, q != 0 && c.openSet().covers(rest)
}

// lostPower handles a member whose node booted again under a living consumer
// (I19, D9): completed writes that were not flushed may be missing there.
func (c *Coordinator) lostPower(i int) {
	m := c.m[i]
	c.ready.Disconnect = append(c.ready.Disconnect, Session{To: i, ID: m.sess})
	m.downAt, m.tryAt = c.now, c.now+c.o.RetryInterval
	c.requestEvict(i, lostPower)
	for k := range c.m {
		if c.isr.has(k) && !(c.evictReq.has(k) && severity(c.evictWhy[k]) == 2) {
			return
		}
	}
	if c.isr.has(i) {
		c.die(replication.ErrPoisoned) // nobody has everything any more
	}
}
