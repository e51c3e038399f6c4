package raftkv

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
	"go.uber.org/zap"

	"github.com/tandem-storage/tandem/kvdb"
	"github.com/tandem-storage/tandem/kvdb/internal/kvstate"
)

// LocalMember is one member of the store, in this process. It implements
// kvdb.Store; all its methods may be called concurrently.
type LocalMember struct {
	*store

	o        Options
	lg       *zap.Logger
	fsm      *fsm
	listener net.Listener // nil: cannot be reached by other members
	peers    *pool
	ctx      context.Context // of the background work
	stop     context.CancelFunc
	wg       sync.WaitGroup
	formed   chan struct{} // closed when mu.raft or mu.err is set
	rejoins  bool          // it was a member with data that are lost: it never founds a cluster
	relayed  atomic.Uint32 // which member is asked first where the leader is out of reach

	mu struct {
		sync.Mutex
		id     identity
		raft   *raftNode // nil until this node belongs to a cluster
		tenure *tenure   // nil unless this member leads and has caught up
		err    error     // why this node will never belong to one
		closed bool
	}
}

var _ kvdb.Store = (*LocalMember)(nil)

// raftNode is a running raft with what it stands on.
type raftNode struct {
	*raft.Raft
	self      Member
	disk      *disk
	transport *raft.NetworkTransport
}

// OpenMember starts this node's member. It returns once what is on disk has
// been read. A node that has yet to become a member does that in the background;
// until then requests fail with kvdb.ErrNoLeader and Ready tells what came of it.
//
// Errors: kvdb.ErrInvalid for o, ErrMemberLost, and what the disk reports.
func OpenMember(o Options) (*LocalMember, error) {
	o = o.withDefaults()
	if err := o.check(); err != nil {
		return nil, err
	}
	m := &LocalMember{
		o:      o,
		lg:     o.Logger,
		fsm:    &fsm{state: kvstate.New(o.KeepEvents)},
		peers:  newPool(o.ClientTLS),
		formed: make(chan struct{}),
	}
	m.ctx, m.stop = context.WithCancel(context.Background())
	m.store = newStore(m, o.RequestTimeout)
	if err := m.open(); err != nil {
		return nil, errors.Join(err, m.Close())
	}
	return m, nil
}

func (m *LocalMember) open() error {
	id, err := findIdentity(m.o)
	if lost := new(lostError); errors.As(err, &lost) && m.removed(lost.was) {
		m.lg.Warn("the former member of this node was removed, it joins anew", zap.String("member", lost.was.MemberID))
		id, err = nil, nil
		m.rejoins = true
	}
	if err != nil {
		return err
	}
	if m.o.PeerListen != "" {
		if m.listener, err = net.Listen("tcp", m.o.PeerListen); err != nil {
			return fmt.Errorf("raftkv: listen for other members: %w", err)
		}
	}
	if id == nil && (!m.o.Bootstrap || len(m.o.Peers) > 0) {
		m.wg.Go(m.form)
		return nil
	}
	if id == nil {
		fresh := newIdentity(m.o.Node, randomHex(16), stateForming)
		id = &fresh
	}
	return m.start(*id)
}

// start runs raft as id, for which this node may have a log or not yet.
func (m *LocalMember) start(id identity) error {
	if err := remember(m.o, id); err != nil {
		return err
	}
	leads := make(chan bool, 16)
	node, err := m.openRaft(id, leads)
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.mu.closed {
		return errors.Join(kvdb.ErrClosed, node.stop())
	}
	m.mu.id, m.mu.raft = id, node
	close(m.formed)
	m.wg.Go(func() { m.followLeadership(node, leads) })
	m.wg.Go(func() { m.settle(node, id) })
	return nil
}

// openRaft opens the log and runs raft on it.
func (m *LocalMember) openRaft(id identity, leads chan<- bool) (_ *raftNode, err error) {
	self := Member{
		ID: id.MemberID, Node: id.Node, PeerAddress: m.o.PeerAdvertise, ClientAddress: m.o.ClientAdvertise, Witness: m.o.Witness,
	}
	if self.PeerAddress == "" && m.listener != nil {
		self.PeerAddress = m.listener.Addr().String()
	}
	disk, err := openDisk(m.o)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, disk.close())
		}
	}()
	transport := raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
		Stream:  newStreamLayer(m.o, id.ClusterID, self, m.listener),
		MaxPool: 3,
		Timeout: 5 * time.Second,
		Logger:  newHCLog(m.lg),
	})
	defer func() {
		if err != nil {
			err = errors.Join(err, transport.Close())
		}
	}()

	config := raftConfig(m.o, self, leads)
	exists, err := raft.HasExistingState(disk.log, disk.stable, disk.snapshots)
	switch {
	case err != nil:
		return nil, fmt.Errorf("raftkv: look for a log in %s: %w", m.o.Dir, err)
	case !exists && id.State == stateMember:
		return nil, fmt.Errorf("%w: %s has the identity of member %s but no log; remove that member, then the directory and the marker file, and join again",
			ErrMemberLost, m.o.Dir, id.MemberID)
	case !exists && id.State == stateForming:
		alone := raft.Configuration{Servers: []raft.Server{self.server()}}
		if err := raft.BootstrapCluster(config, disk.log, disk.stable, disk.snapshots, transport, alone); err != nil {
			return nil, fmt.Errorf("raftkv: begin a new cluster: %w", err)
		}
		m.lg.Info("new cluster", zap.String("cluster-id", id.ClusterID), zap.String("member", id.MemberID))
	}
	r, err := raft.NewRaft(config, m.fsm, disk.log, disk.stable, disk.snapshots, newQuietTransport(transport))
	if err != nil {
		return nil, fmt.Errorf("raftkv: start raft from %s: %w", m.o.Dir, err)
	}
	return &raftNode{Raft: r, self: self, disk: disk, transport: transport}, nil
}

// stop ends raft; the disk is closed when nothing can write to it any more.
func (n *raftNode) stop() error {
	return errors.Join(n.Shutdown().Error(), n.transport.Close(), n.disk.close())
}

func raftConfig(o Options, self Member, leads chan<- bool) *raft.Config {
	c := raft.DefaultConfig()
	c.LocalID = raft.ServerID(self.ID)
	c.HeartbeatTimeout = o.HeartbeatTimeout
	c.ElectionTimeout = o.ElectionTimeout
	c.LeaderLeaseTimeout = o.LeaderLeaseTimeout
	if self.Witness { // it asks for an election when the others have had time to
		c.HeartbeatTimeout *= 2
		c.ElectionTimeout *= 2
	}
	c.CommitTimeout = 50 * time.Millisecond
	c.MaxAppendEntries = 16 // of at most about 1 MiB each, within the transport's timeout
	c.SnapshotThreshold = o.SnapshotThreshold
	c.SnapshotInterval = o.SnapshotInterval
	c.TrailingLogs = o.SnapshotThreshold
	c.PreVoteDisabled = false
	c.NotifyCh = leads
	c.Logger = newHCLog(o.Logger)
	return c
}

// Ready waits until this node belongs to a cluster that has a leader. It
// returns why that will not happen, or ctx.Err().
func (m *LocalMember) Ready(ctx context.Context) error {
	select {
	case <-m.formed:
	case <-ctx.Done():
		return ctx.Err()
	}
	m.mu.Lock()
	err := m.mu.err
	m.mu.Unlock()
	if err != nil {
		return err
	}
	_, _, err = m.List(ctx, "\x00ready") // any linearizable read
	return err
}

// Close stops this member. The others see it as failed.
func (m *LocalMember) Close() error {
	m.mu.Lock()
	if m.mu.closed {
		m.mu.Unlock()
		return nil
	}
	m.mu.closed = true
	node := m.mu.raft
	m.mu.Unlock()

	err := m.store.Close()
	m.stop()
	if node != nil {
		err = errors.Join(err, node.stop())
	}
	m.wg.Wait()
	if node == nil && m.listener != nil {
		err = errors.Join(err, ignoreClosed(m.listener.Close()))
	}
	return errors.Join(err, m.peers.close())
}

// ignoreClosed drops the error of closing a listener that a failed start has closed already.
func ignoreClosed(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

func (m *LocalMember) node() *raftNode {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.mu.raft
}
