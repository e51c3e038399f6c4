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

	// DataConns is the number of connections to each node for sessions, 1 to 16;
	// 0 means 2. Volumes are spread over them.
	DataConns int

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
	if c.DataConns == 0 {
		c.DataConns = 2
	}
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
	case c.DataConns < 1 || c.DataConns > 16:
		return fmt.Errorf("%w: %d data connections, 1 to 16 are possible", ErrConfig, c.DataConns)
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
		// conns[0] is for the control exchange and beats, the others are for sessions.
		conns  []*grpc.ClientConn
		closed bool
		ended  chan struct{} // closed when the beats over conns have ended; nil if there are none
		stop   context.CancelFunc
	}
}

var _ Peer = (*node)(nil)

func newNode(c *PeersConfig, id replication.NodeID) *node {
	return &node{c: c, id: id, beats: newMonitor(c, id)}
}

// setAddr makes n reached under addr. Nothing is dialled yet but for beats.
func (n *node) setAddr(addr string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.mu.addr == addr && n.mu.conns != nil {
		return nil
	}
	n.disconnectLocked()
	n.mu.addr = addr
	for len(n.mu.conns) < 1+n.c.DataConns {
		cc, err := grpc.NewClient("passthrough:///"+addr, n.c.Security.DialOptions(n.id)...)
		if err != nil {
			n.disconnectLocked()
			return fmt.Errorf("%w: node %q: address %q: %w", ErrConfig, n.id, addr, err)
		}
		n.mu.conns = append(n.mu.conns, cc)
	}
	if n.id == n.c.Security.Self().Node {
		return nil
	}
	ctx, stop := context.WithCancel(context.Background())
	ended, control := make(chan struct{}), n.mu.conns[0]
	n.mu.ended, n.mu.stop = ended, stop
	go func() {
		defer close(ended)
		n.beats.run(ctx, openBeats(control))
	}()
	return nil
}

func (n *node) disconnectLocked() {
	if n.mu.stop != nil {
		n.mu.stop()
		<-n.mu.ended
		n.mu.stop, n.mu.ended = nil, nil
	}
	for _, cc := range n.mu.conns {
		_ = cc.Close() // errors only if closed already
	}
	n.mu.conns = nil
}

func (n *node) close() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.mu.closed = true
	n.disconnectLocked()
}

// conn returns the connection for control (nil) or for sessions of v.
func (n *node) conn(v *replication.VolumeID) (*grpc.ClientConn, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	switch {
	case n.mu.closed:
		return nil, fmt.Errorf("%w: node %q", ErrClosed, n.id)
	case n.mu.conns == nil:
		return nil, fmt.Errorf("%w: node %q has no usable address", ErrDisconnected, n.id)
	case v == nil:
		return n.mu.conns[0], nil
	}
	// Volume identifiers are random: one byte is as good as a hash.
	return n.mu.conns[1+int(v[15])%n.c.DataConns], nil
}
