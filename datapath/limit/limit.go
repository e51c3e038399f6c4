// Package limit holds a block device to a rate, so that one volume does not take what its neighbours need.
package limit

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/tandem-storage/tandem/datapath/block"
)

// Rates bound what a device is asked for in a second. 0 is no bound.
type Rates struct {
	IOPS      int64 // requests; a flush is none
	Bandwidth int64 // bytes read and written; discards and zeroes move none
}

// burst is how far a device may be ahead of its rates: what a pause of this length has left unused is not lost.
const burst = 100 * time.Millisecond

// Device is a block.Device that passes requests on to another one no faster than its Rates, in the order in which they came; flushes at once. A request
// passes as soon as those before it have paid for themselves, however large it is itself: none is too large for any rate.
//
// Without rates it costs one load. The generic cell rate algorithm (ITU-T I.371, as a virtual schedule) keeps two times and no tokens.
type Device struct {
	block.Device

	held atomic.Bool // there are rates, or requests wait

	mu      sync.Mutex
	rates   Rates
	due     [2]time.Time // when what has passed is paid for, in requests and in bytes
	waiting []*block.Request
	timer   *time.Timer // runs while requests wait
}

// New returns d held to r.
func New(d block.Device, r Rates) *Device {
	l := &Device{Device: d, rates: r}
	l.held.Store(r != Rates{})
	return l
}

// SetRates changes the rates for what has not passed yet; the same ones again change nothing. It may be called at any time.
func (l *Device) SetRates(r Rates) {
	l.mu.Lock()
	if l.rates == r {
		l.mu.Unlock()
		return
	}
	l.rates, l.due = r, [2]time.Time{}
	l.held.Store(true) // what waits goes first
	batch := l.passLocked()
	l.mu.Unlock()
	l.submit(batch)
}

// Submit implements block.Device.
func (l *Device) Submit(batch []*block.Request) {
	if !l.held.Load() {
		l.Device.Submit(batch)
		return
	}
	var now []*block.Request
	l.mu.Lock()
	for _, r := range batch {
		if r.Op == block.OpFlush {
			now = append(now, r) // of what has completed, and nothing that waits has
		} else {
			l.waiting = append(l.waiting, r)
		}
	}
	now = append(now, l.passLocked()...)
	l.mu.Unlock()
	l.submit(now)
}

// Close implements block.Device. What waits is passed on before.
func (l *Device) Close() error {
	l.SetRates(Rates{})
	return l.Device.Close()
}

func (l *Device) submit(batch []*block.Request) {
	if len(batch) > 0 {
		l.Device.Submit(batch)
	}
}

// passLocked takes those that may pass off the queue, and has itself called again for the others.
func (l *Device) passLocked() []*block.Request {
	now := time.Now()
	n := 0
	var wait time.Duration
	for ; n < len(l.waiting); n++ {
		if wait = max(0, l.due[0].Sub(now), l.due[1].Sub(now)) - burst; wait > 0 {
			break
		}
		l.charge(now, l.waiting[n])
	}
	passed := l.waiting[:n:n]
	l.waiting = l.waiting[n:]
	switch {
	case len(l.waiting) == 0:
		l.waiting = nil
		l.held.Store(l.rates != Rates{})
	case l.timer == nil:
		l.timer = time.AfterFunc(wait, l.wake)
	default:
		l.timer.Reset(wait)
	}
	return passed
}

func (l *Device) wake() {
	l.mu.Lock()
	batch := l.passLocked()
	l.mu.Unlock()
	l.submit(batch)
}

// charge moves the times on by what r costs.
func (l *Device) charge(now time.Time, r *block.Request) {
	var bytes int64
	if r.Op == block.OpRead || r.Op == block.OpWrite {
		bytes = int64(len(r.Data))
	}
	for i, c := range [2]struct{ cost, rate int64 }{{1, l.rates.IOPS}, {bytes, l.rates.Bandwidth}} {
		if c.rate == 0 {
			continue
		}
		if l.due[i].Before(now) {
			l.due[i] = now
		}
		l.due[i] = l.due[i].Add(time.Duration(float64(c.cost) / float64(c.rate) * float64(time.Second)))
	}
}
