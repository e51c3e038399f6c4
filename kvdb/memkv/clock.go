package memkv

import (
	"slices"
	"sync"
	"time"
)

// Clock is a Server's time.
type Clock interface {
	Now() time.Time
	// AfterFunc calls f once d has passed, on a goroutine of the clock's; stop prevents that if it is not too late.
	AfterFunc(d time.Duration, f func()) (stop func())
}

type realClock struct{}

func (realClock) Now() time.Time { return time.Now() }

func (realClock) AfterFunc(d time.Duration, f func()) func() {
	t := time.AfterFunc(d, f)
	return func() { t.Stop() }
}

// ManualClock is a Clock that stands still until Advance.
type ManualClock struct {
	mu struct {
		sync.Mutex
		now    time.Time
		timers []*manualTimer
	}
}

type manualTimer struct {
	at time.Time
	f  func()
}

// NewManualClock returns a clock that shows now.
func NewManualClock(now time.Time) *ManualClock {
	c := &ManualClock{}
	c.mu.now = now
	return c
}

// Now implements Clock.
func (c *ManualClock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.mu.now
}

// AfterFunc implements Clock.
func (c *ManualClock) AfterFunc(d time.Duration, f func()) func() {
	c.mu.Lock()
	defer c.mu.Unlock()
	t := &manualTimer{at: c.mu.now.Add(d), f: f}
	c.mu.timers = append(c.mu.timers, t)
	return func() { c.remove(t) }
}

func (c *ManualClock) remove(t *manualTimer) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if i := slices.Index(c.mu.timers, t); i >= 0 {
		c.mu.timers = slices.Delete(c.mu.timers, i, i+1)
	}
}

// Advance moves the clock on by d and runs what became due, in order of time,
// before it returns.
func (c *ManualClock) Advance(d time.Duration) {
	until := c.Now().Add(d)
	for {
		t := c.next(until)
		if t == nil {
			return
		}
		t.f()
	}
}

// next takes the earliest timer up to until, setting the clock to its time, or
// sets the clock to until if there is none.
func (c *ManualClock) next(until time.Time) *manualTimer {
	c.mu.Lock()
	defer c.mu.Unlock()
	first := -1
	for i, t := range c.mu.timers {
		if !t.at.After(until) && (first < 0 || t.at.Before(c.mu.timers[first].at)) {
			first = i
		}
	}
	if first < 0 {
		c.mu.now = until
		return nil
	}
	t := c.mu.timers[first]
	c.mu.timers = slices.Delete(c.mu.timers, first, first+1)
	c.mu.now = t.at
	return t
}
