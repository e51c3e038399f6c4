package backing

import (
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
