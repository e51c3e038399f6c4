package backing

import (
	"math/bits"
	"sync"
	"sync/atomic"
)

// gate counts requests in flight and can be shut.
type gate struct {
	n    atomic.Int64 // in flight, plus gateShut
	once sync.Once
	idle chan struct{} // closed when shut and nothing is in flight
}

const gateShut = -1 << 62

// enter counts one request; false if the gate is shut.
func (g *gate) enter() bool {
	if g.n.Add(1) > 0 {
		return true
	}
	g.exit()
	return false
}

// more counts one more for a caller that is counted already.
func (g *gate) more() { g.n.Add(1) }

func (g *gate) exit() {
	if g.n.Add(-1) == gateShut {
		g.once.Do(func() { close(g.idle) })
	}
}

// shut lets nothing more in and waits until nothing is in flight. Called once.
func (g *gate) shut() {
	if g.n.Add(gateShut) == gateShut {
		g.once.Do(func() { close(g.idle) })
	}
	<-g.idle
}

// bitmap is a set of small numbers that is changed and read concurrently.
type bitmap []atomic.Uint64

func newBitmap(n int64) bitmap { return make(bitmap, (n+63)/64) }

func (b bitmap) set(n int64)      { b[n/64].Or(1 << (n % 64)) }
func (b bitmap) has(n int64) bool { return b[n/64].Load()&(1<<(n%64)) != 0 }

func (b bitmap) clear(n int64) { b[n/64].And(^uint64(1 << (n % 64))) }

// each calls f for the members.
func (b bitmap) each(f func(n int64)) {
	for i := range b {
		for w := b[i].Load(); w != 0; w &= w - 1 {
			f(int64(i)*64 + int64(bits.TrailingZeros64(w)))
		}
	}
}
