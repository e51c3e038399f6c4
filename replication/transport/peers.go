package transport

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"
	"google.golang.org/grpc"

	"github.com/tandem-storage/tandem/replication"
)

// PeersConfig says how to reach other nodes. Security is required.
type PeersConfig struct {
	Security *Security
	Boot     replication.BootID // of this node's kernel; told to peers in beats

	// BeatInterval is the time between beats, 0 means 500 ms. SuspectAfter is how
	// long a peer may leave beats unanswered before it is down, 0 means 3 s; at
	// least four intervals.
	BeatInterval time.Duration
	SuspectAfter time.Duration

	// OnLiveness, if not nil, is told of every change of a peer's liveness, in
	// order for each peer. It must not block.
	OnLiveness func(Liveness)

	Logger *zap.Logger // nil: no logs
}

func (c *PeersConfig) ensureDefaults() error {
	if c.BeatInterval == 0 {
		c.BeatInterval = 500 * time.Millisecond
	}
	if c.SuspectAfter == 0 {
		c.SuspectAfter = 3 * time.Second
	}
	if c.Logger == nil {
		c.Logger = zap.NewNop()
	}
	switch {
	case c.Security == nil:
		return fmt.Errorf("%w: no certificate", ErrConfig)
	case c.BeatInterval < 0 || c.SuspectAfter < 4*c.BeatInterval:
		return fmt.Errorf("%w: suspect after %v is less than four beats of %v", ErrConfig, c.SuspectAfter, c.BeatInterval)
	}
	return nil
}

// Peers knows the other nodes of the cluster, connects to them as needed and
// watches over their liveness. Its methods may be called at any time from any
// goroutine.
type Peers struct {
	c       PeersConfig
	setting sync.Mutex // held by SetNodes and Close throughout
	mu      struct {
		sync.Mutex // never held while waiting: OnLiveness may call Peers
		closed     bool
		nodes      map[replication.NodeID]*node
	}
}

// NewPeers returns Peers that know no node yet: SetNodes tells them.
func NewPeers(c PeersConfig) (*Peers, error) {
	if err := c.ensureDefaults(); err != nil {
		return nil, err
	}
	p := &Peers{c: c}
	p.mu.nodes = make(map[replication.NodeID]*node)
	return p, nil
}

// SetNodes tells which nodes there are and under which address (host:port) each
// is reached. It is the whole set: sessions with a node that is no longer in it,
// or has another address now, end; a Peer of a node with a new address goes on
// with that. Beats with every node but this one begin. Not to be called from
// OnLiveness.
func (p *Peers) SetNodes(addrs map[replication.NodeID]string) error {
	p.setting.Lock()
	defer p.setting.Unlock()
	gone, nodes, err := p.replace(addrs)
	if err != nil {
		return err
	}
	for _, n := range gone {
		n.close()
	}
	var errs []error
	for _, id := range slices.Sorted(maps.Keys(addrs)) {
		if err := nodes[id].setAddr(addrs[id]); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// replace makes the set of nodes that of addrs and returns the ones that left
// and the set.
func (p *Peers) replace(addrs map[replication.NodeID]string) (gone []*node, now map[replication.NodeID]*node, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.mu.closed {
		return nil, nil, ErrClosed
	}
	now = make(map[replication.NodeID]*node, len(addrs))
	for id := range addrs {
		if now[id] = p.mu.nodes[id]; now[id] == nil {
			now[id] = newNode(&p.c, id)
		}
	}
	for id, n := range p.mu.nodes {
		if now[id] == nil {
			gone = append(gone, n)
		}
	}
	p.mu.nodes = now
	return gone, now, nil
}

// Peer returns the node with that name; ErrUnknownPeer if SetNodes did not have it.
func (p *Peers) Peer(id replication.NodeID) (Peer, error) {
	n, err := p.node(id)
	if err != nil {
		return nil, err
	}
	return n, nil
}

// Liveness tells what beats with a node say. The zero value for an unknown node.
func (p *Peers) Liveness(id replication.NodeID) Liveness {
	n, err := p.node(id)
	if err != nil {
		return Liveness{Node: id, Err: err}
	}
	return n.beats.liveness()
}

// RTT is the digest of the round-trip times of beats with a node over the last
// minute. The zero value for an unknown node and for this one.
func (p *Peers) RTT(id replication.NodeID) RTT {
	n, err := p.node(id)
	if err != nil {
		return RTT{}
	}
	return n.beats.rtt()
}

func (p *Peers) node(id replication.NodeID) (*node, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.mu.closed {
		return nil, ErrClosed
	}
	n := p.mu.nodes[id]
	if n == nil {
		return nil, fmt.Errorf("%w: %q", ErrUnknownPeer, id)
	}
	return n, nil
}

// Close ends every connection. It returns when no more OnLiveness will be
// called. Not to be called from OnLiveness.
func (p *Peers) Close() error {
	p.setting.Lock()
	defer p.setting.Unlock()
	p.mu.Lock()
	nodes := p.mu.nodes
	p.mu.closed, p.mu.nodes = true, nil
	p.mu.Unlock()
	for _, n := range nodes {
		n.close()
	}
	return nil
}

// node is one other node. It implements Peer.
type node struct {
	c     *PeersConfig
	id    replication.NodeID
	beats *monitor

	mu struct {
		sync.Mutex
		addr string
		// cc is for the control exchange and beats; nil if addr cannot be used.
		cc       *grpc.ClientConn
		sessions map[*frameConn]struct{} // open ones, with addr
		closed   bool
		ended    chan struct{} // closed when the beats over cc have ended; nil if there are none
		stop     context.CancelFunc
	}
}

var _ Peer = (*node)(nil)

func newNode(c *PeersConfig, id replication.NodeID) *node {
	n := &node{c: c, id: id, beats: newMonitor(c, id)}
	n.mu.sessions = make(map[*frameConn]struct{})
	return n
}

// setAddr makes n reached under addr. Nothing is dialled yet but for beats.
func (n *node) setAddr(addr string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.mu.addr == addr && n.mu.cc != nil {
		return nil
	}
	n.disconnectLocked()
	n.mu.addr = addr
	cc, err := grpc.NewClient("passthrough:///"+addr, n.c.Security.DialOptions(n.id)...)
	if err != nil {
		return fmt.Errorf("%w: node %q: address %q: %w", ErrConfig, n.id, addr, err)
	}
	n.mu.cc = cc
	if n.id == n.c.Security.Self().Node {
		return nil
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan struct{})
	n.mu.ended, n.mu.stop = ended, stop
	go func() {
		defer close(ended)
		n.beats.run(ctx, openBeats(cc))
	}()
	return nil
}

func (n *node) disconnectLocked() {
	if n.mu.stop != nil {
		n.mu.stop()
		<-n.mu.ended
		n.mu.stop, n.mu.ended = nil, nil
	}
	if n.mu.cc != nil {
		_ = n.mu.cc.Close() // errors only if closed already
		n.mu.cc = nil
	}
	for c := range n.mu.sessions {
		_ = c.raw.Close() // its user finds it disconnected; errors only if closed already
	}
	clear(n.mu.sessions)
}

func (n *node) close() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.mu.closed = true
	n.disconnectLocked()
}

// control returns the connection for control and beats.
func (n *node) control() (*grpc.ClientConn, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := n.usableLocked(); err != nil {
		return nil, err
	}
	return n.mu.cc, nil
}

func (n *node) usableLocked() error {
	switch {
	case n.mu.closed:
		return fmt.Errorf("%w: node %q", ErrClosed, n.id)
	case n.mu.cc == nil:
		return fmt.Errorf("%w: node %q has no usable address", ErrDisconnected, n.id)
	}
	return nil
}
