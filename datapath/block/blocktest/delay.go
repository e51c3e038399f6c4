package blocktest

import (
	"sync"

	"github.com/tandem-storage/tandem/datapath/block"
)

// Point is where a Delay holds a request.
type Point int

// Points.
const (
	BeforeStart      Point = iota // the device below does not know of it yet
	BeforeCompletion              // the device below has carried it out
)

// Delay is a filter that holds requests until the test lets them go. It needs
// no clock. A new one holds nothing.
type Delay struct {
	dev block.Device

	mu     sync.Mutex
	closed bool
	match  func(*block.Request) bool // nil: nothing is held
	point  Point
	held   []heldRequest // oldest first
	more   chan struct{} // closed and renewed when held grows
}

var _ block.Device = (*Delay)(nil)

type heldRequest struct {
	req   *block.Request // submitter's
	point Point
	err   error // of a BeforeCompletion
}

// NewDelay puts a delay over d.
func NewDelay(d block.Device) *Delay { return &Delay{dev: d, more: make(chan struct{})} }

// Pause holds the requests submitted from now on at p. Match chooses among them
// and may be nil for all; it is called with a lock held and must not submit.
func (d *Delay) Pause(p Point, match func(*block.Request) bool) {
	if match == nil {
		match = func(*block.Request) bool { return true }
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.match, d.point = match, p
}

// Resume lets go what is held, oldest first, and holds nothing from now on.
func (d *Delay) Resume() {
	d.mu.Lock()
	d.match = nil
	n := len(d.held)
	d.mu.Unlock()
	d.Step(n)
}

// Step lets the n oldest go, or all if fewer are held, and returns how many went.
func (d *Delay) Step(n int) int {
	d.mu.Lock()
	n = min(n, len(d.held))
	ready := d.held[:n:n]
	d.held = d.held[n:]
	d.mu.Unlock()
	for _, h := range ready {
		if h.point == BeforeStart {
			d.dev.Submit([]*block.Request{h.req})
		} else {
			h.req.By.Complete(h.req, h.err)
		}
	}
	return n
}

// Held is the number of requests held.
func (d *Delay) Held() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.held)
}

// WaitHeld returns when at least n requests are held.
func (d *Delay) WaitHeld(n int) {
	for {
		d.mu.Lock()
		have, more := len(d.held), d.more
		d.mu.Unlock()
		if have >= n {
			return
		}
		<-more
	}
}

// Info implements block.Device.
func (d *Delay) Info() block.Info { return d.dev.Info() }

// Submit implements block.Device.
func (d *Delay) Submit(batch []*block.Request) {
	info := d.Info()
	pass := make([]*block.Request, 0, len(batch))
	for _, r := range batch {
		d.mu.Lock()
		switch {
		case d.match == nil || d.closed || r.Check(info) != nil || !d.match(r):
			pass = append(pass, r)
		case d.point == BeforeStart:
			d.holdLocked(heldRequest{req: r, point: BeforeStart})
		default:
			pass = append(pass, &hooked(r, func(_ *block.Request, err error) { d.completed(r, err) }).Request)
		}
		d.mu.Unlock()
	}
	if len(pass) > 0 {
		d.dev.Submit(pass)
	}
}

func (d *Delay) completed(r *block.Request, err error) {
	d.mu.Lock()
	if d.match == nil || d.closed {
		d.mu.Unlock()
		r.By.Complete(r, err)
		return
	}
	d.holdLocked(heldRequest{req: r, point: BeforeCompletion, err: err})
	d.mu.Unlock()
}

func (d *Delay) holdLocked(h heldRequest) {
	d.held = append(d.held, h)
	close(d.more)
	d.more = make(chan struct{})
}

// Close implements block.Device: what was held before its start completes with
// ErrClosed, what was held before its completion completes.
func (d *Delay) Close() error {
	d.mu.Lock()
	held := d.held
	d.held, d.closed = nil, true
	d.mu.Unlock()
	for _, h := range held {
		if h.point == BeforeStart {
			h.err = refuse(h.req, block.ErrClosed)
		}
		h.req.By.Complete(h.req, h.err)
	}
	return d.dev.Close()
}
