// Package transporttest has an in-memory network with faults that are switched
// on and off explicitly, for tests of what stands above package transport, and
// the conformance suite that this network and the real one both pass.
//
// The network uses no clock and works within testing/synctest.
package transporttest

import (
	"context"
	"fmt"
	"sync"

	"github.com/tandem-storage/tandem/replication"
	"github.com/tandem-storage/tandem/replication/transport"
)

// Net is a network of nodes in memory. What a node sends to another one arrives
// at once, in order, unless a fault is on. All methods may be called from any
// goroutine.
type Net struct {
	mu    sync.Mutex
	moved *sync.Cond // something changed that a Send, a Recv or a call may wait for
	nodes map[replication.NodeID]*member
	ways  map[way]*direction
	conns map[*conn]struct{} // open, both ends
	// served counts sessions whose Handler has not returned.
	served sync.WaitGroup
}

type member struct {
	id   transport.Identity
	h    transport.Handler
	down bool
}

// way is from one node to another.
type way struct{ from, to replication.NodeID }

// direction is what goes one way, between all conns and calls.
type direction struct {
	hold   bool
	held   []*parcel // in the order of sending
	damage int       // payloads still to damage
}

// parcel is one thing that travels: a batch, a request or a response.
type parcel struct {
	arrived bool
	lost    bool
}

var errReset = fmt.Errorf("%w: connection reset by the test", transport.ErrDisconnected)

// NewNet returns an empty network.
func NewNet() *Net {
	n := &Net{nodes: make(map[replication.NodeID]*member), ways: make(map[way]*direction), conns: make(map[*conn]struct{})}
	n.moved = sync.NewCond(&n.mu)
	return n
}

// Join adds a node, or replaces it after a restart: what it had open is reset.
// Requests of others are served by h; nil for a node that only asks.
func (n *Net) Join(id transport.Identity, h transport.Handler) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.resetLocked(func(w way) bool { return w.from == id.Node || w.to == id.Node })
	n.nodes[id.Node] = &member{id: id, h: h}
}

// Peer returns node to as node from sees it. Both must have joined when it is used.
func (n *Net) Peer(from, to replication.NodeID) transport.Peer {
	return &peer{n: n, way: way{from, to}}
}

// Hold keeps everything that from sends to to, new sessions and calls included,
// until Release or Resume. Nobody is told: as when a cable is cut in one
// direction. What is held counts against the window, so that Send blocks in the
// end.
func (n *Net) Hold(from, to replication.NodeID) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.wayLocked(way{from, to}).hold = true
}

// Held is the number of batches, requests and responses that Hold keeps.
func (n *Net) Held(from, to replication.NodeID) int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.wayLocked(way{from, to}).held)
}

// WaitHeld returns when at least count of them are kept.
func (n *Net) WaitHeld(from, to replication.NodeID, count int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for len(n.wayLocked(way{from, to}).held) < count {
		n.moved.Wait()
	}
}

// Release lets the oldest count of the held ones arrive; Hold stays on.
func (n *Net) Release(from, to replication.NodeID, count int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.releaseLocked(n.wayLocked(way{from, to}), count)
}

// Resume ends Hold: everything held arrives.
func (n *Net) Resume(from, to replication.NodeID) {
	n.mu.Lock()
	defer n.mu.Unlock()
	d := n.wayLocked(way{from, to})
	d.hold = false
	n.releaseLocked(d, len(d.held))
}

// Damage flips a bit in each of the next count payloads from from to to.
func (n *Net) Damage(from, to replication.NodeID, count int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.wayLocked(way{from, to}).damage += count
}

// Reset breaks every session and call between a and b. What was held, in either
// direction, is lost; what had arrived can still be received. New sessions work.
func (n *Net) Reset(a, b replication.NodeID) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.resetLocked(func(w way) bool { return w == way{a, b} || w == way{b, a} })
}

// Down resets everything of node and refuses what is new, until Up.
func (n *Net) Down(node replication.NodeID) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.nodes[node].down = true
	n.resetLocked(func(w way) bool { return w.from == node || w.to == node })
}

// Up ends Down.
func (n *Net) Up(node replication.NodeID) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.nodes[node].down = false
}

// Close breaks everything and returns when the Handlers have returned from every session.
func (n *Net) Close() {
	n.mu.Lock()
	for _, m := range n.nodes {
		m.down = true
	}
	n.resetLocked(func(way) bool { return true })
	n.mu.Unlock()
	n.served.Wait()
}

func (n *Net) wayLocked(w way) *direction {
	d := n.ways[w]
	if d == nil {
		d = new(direction)
		n.ways[w] = d
	}
	return d
}

func (n *Net) releaseLocked(d *direction, count int) {
	for _, p := range d.held[:min(count, len(d.held))] {
		p.arrived = true
	}
	d.held = d.held[min(count, len(d.held)):]
	n.moved.Broadcast()
}

func (n *Net) resetLocked(hit func(way) bool) {
	for w, d := range n.ways {
		if !hit(w) {
			continue
		}
		for _, p := range d.held {
			p.lost = true
		}
		d.held = nil
	}
	for c := range n.conns {
		if hit(c.way) {
			c.breakLocked(errReset)
		}
	}
	n.moved.Broadcast()
}

// sendLocked starts a parcel on its way.
func (n *Net) sendLocked(w way) *parcel {
	p := new(parcel)
	if d := n.wayLocked(w); d.hold {
		d.held = append(d.held, p)
	} else {
		p.arrived = true
	}
	n.moved.Broadcast()
	return p
}

// targetLocked returns the other node if it can be reached.
func (n *Net) targetLocked(w way) (from, to *member, err error) {
	from, to = n.nodes[w.from], n.nodes[w.to]
	switch {
	case from == nil:
		return nil, nil, fmt.Errorf("%w: %q has not joined", transport.ErrUnknownPeer, w.from)
	case to == nil:
		return nil, nil, fmt.Errorf("%w: %q has not joined", transport.ErrUnknownPeer, w.to)
	case from.down || to.down || to.h == nil:
		return nil, nil, fmt.Errorf("%w: node %q is down", transport.ErrDisconnected, w.to)
	}
	return from, to, nil
}

// travel sends a request or a session's opening and waits for its arrival.
func (n *Net) travel(ctx context.Context, w way) (from, to *member, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if _, _, err := n.targetLocked(w); err != nil {
		return nil, nil, err
	}
	if err := n.waitLocked(ctx, w); err != nil {
		return nil, nil, err
	}
	return n.targetLocked(w)
}

// travelBack sends the response to what came by w and waits for its arrival.
func (n *Net) travelBack(ctx context.Context, w way) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if _, _, err := n.targetLocked(w); err != nil {
		return err
	}
	return n.waitLocked(ctx, way{w.to, w.from})
}

func (n *Net) waitLocked(ctx context.Context, w way) error {
	stop := context.AfterFunc(ctx, func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.moved.Broadcast()
	})
	defer stop()
	p := n.sendLocked(w)
	for !p.arrived && !p.lost && ctx.Err() == nil {
		n.moved.Wait()
	}
	switch {
	case p.lost:
		return errReset
	case ctx.Err() != nil:
		return fmt.Errorf("%w: %w", transport.ErrDisconnected, context.Cause(ctx))
	}
	return nil
}
