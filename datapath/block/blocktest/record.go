package blocktest

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/tandem-storage/tandem/datapath/block"
)

// Event is a step of a request's life as a Record saw it.
type Event struct {
	ID       int  // of the request: the n-th that was submitted, from 1
	Done     bool // a completion; otherwise a submission
	Op       block.Op
	Flags    block.Flags
	Off, Len int64 // bytes
	Err      error // of a completion
}

// String is one line for traces: "3 write 4096+8192 fua" and "3 done: <nil>".
func (e Event) String() string {
	if e.Done {
		return fmt.Sprintf("%d done: %v", e.ID, e.Err)
	}
	s := fmt.Sprintf("%d %v", e.ID, e.Op)
	if e.Op != block.OpFlush {
		s += fmt.Sprintf(" %d+%d", e.Off, e.Len)
	}
	if e.Flags&block.FUA != 0 {
		s += " fua"
	}
	if e.Flags&block.NoHole != 0 {
		s += " no-hole"
	}
	return s
}

// Record is a filter that keeps the history of requests and completions, without data.
type Record struct {
	dev block.Device

	mu     sync.Mutex
	last   int
	events []Event
	more   chan struct{} // closed and renewed when events grows
}

var _ block.Device = (*Record)(nil)

// NewRecord puts a recorder over d.
func NewRecord(d block.Device) *Record { return &Record{dev: d, more: make(chan struct{})} }

// Info implements block.Device.
func (c *Record) Info() block.Info { return c.dev.Info() }

// Close implements block.Device.
func (c *Record) Close() error { return c.dev.Close() }

// Submit implements block.Device.
func (c *Record) Submit(batch []*block.Request) {
	down := make([]*block.Request, len(batch))
	c.mu.Lock()
	for i, r := range batch {
		c.last++
		e := Event{ID: c.last, Op: r.Op, Flags: r.Flags, Off: r.Off, Len: r.Len}
		c.addLocked(e)
		down[i] = &hooked(r, func(_ *block.Request, err error) {
			e.Done, e.Err = true, err
			c.mu.Lock()
			c.addLocked(e)
			c.mu.Unlock()
			r.By.Complete(r, err)
		}).Request
	}
	c.mu.Unlock()
	c.dev.Submit(down)
}

func (c *Record) addLocked(e Event) {
	c.events = append(c.events, e)
	close(c.more)
	c.more = make(chan struct{})
}

// History returns a copy of the events so far.
func (c *Record) History() []Event {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.events)
}

// Reset forgets the events so far.
func (c *Record) Reset() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.events = nil
}

// Completed counts the requests of op that completed without error.
func (c *Record) Completed(op block.Op) int {
	n := 0
	for _, e := range c.History() {
		if e.Done && e.Op == op && e.Err == nil {
			n++
		}
	}
	return n
}

// Wait returns when an event since the last Reset meets the condition, or when ctx ends.
func (c *Record) Wait(ctx context.Context, cond func(Event) bool) error {
	for {
		c.mu.Lock()
		seen, more := slices.ContainsFunc(c.events, cond), c.more
		c.mu.Unlock()
		if seen {
			return nil
		}
		select {
		case <-more:
		case <-ctx.Done():
			return fmt.Errorf("blocktest: no such event: %w", ctx.Err())
		}
	}
}

// String is the history as text, an event a line.
func (c *Record) String() string {
	var b strings.Builder
	for _, e := range c.History() {
		fmt.Fprintln(&b, e)
	}
	return b.String()
}
