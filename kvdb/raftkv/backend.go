package raftkv

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.uber.org/zap"

	"github.com/tandem-storage/tandem/kvdb"
)

// backend serves one attempt of a request. kvdb.ErrNoLeader: the attempt had no
// effect and another backend may do better. kvdb.ErrUnavailable, or an error
// that is not one of kvdb's: unknown.
type backend interface {
	txn(ctx context.Context, t kvdb.Txn) (kvdb.TxnResult, error)
	list(ctx context.Context, prefix string) ([]kvdb.KV, kvdb.Revision, error)
	grant(ctx context.Context, id kvdb.LeaseID, ttl time.Duration) error
	keepAlive(ctx context.Context, id kvdb.LeaseID) error
	revoke(ctx context.Context, id kvdb.LeaseID) error
}

// router finds backends, and feeds watches.
type router interface {
	// route returns the backend to try now; kvdb.ErrNoLeader if there is none.
	route(ctx context.Context) (backend, error)
	// failed reports what the backend answered, if that speaks against trying it first the next time.
	failed(backend)
	watch(ctx context.Context, closed <-chan struct{}, prefix string, after kvdb.Revision) <-chan kvdb.Event
}

var errStarting = errors.New("raftkv: this node is not yet a member of a cluster")

// route implements router: this member if it leads, else the leader, else another member. Where the network is cut
// between two members only, a majority is there, but one of the two does not hear the leader.
func (m *LocalMember) route(ctx context.Context) (backend, error) {
	b, err := m.direct(ctx)
	if errors.Is(err, kvdb.ErrNoLeader) && !errors.Is(err, kvdb.ErrClosed) {
		if r := m.relay(ctx); r != nil {
			return r, nil
		}
	}
	return b, err
}

// direct returns this member if it leads, else the leader.
func (m *LocalMember) direct(ctx context.Context) (backend, error) {
	m.mu.Lock()
	t, node, err, closed := m.mu.tenure, m.mu.raft, m.mu.err, m.mu.closed
	m.mu.Unlock()
	switch {
	case closed:
		return nil, notServed(kvdb.ErrClosed)
	case err != nil:
		return nil, notServed(err)
	case node == nil:
		return nil, notServed(errStarting)
	case t != nil:
		return t, nil
	}
	address, id := node.LeaderWithID()
	if id == "" || string(id) == node.self.ID {
		return nil, fmt.Errorf("%w: an election is under way or the majority is out of reach", kvdb.ErrNoLeader)
	}
	leader, err := parseServerAddress(address)
	if err != nil {
		return nil, notServed(err)
	}
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	conn, err := m.peers.ready(ctx, leader.ClientAddress)
	if err != nil {
		m.lg.Debug("leader out of reach", zap.String("peer", leader.ID), zap.Error(err))
		return nil, notServed(err)
	}
	return newRemote(conn, leader.ClientAddress, true, m.clusterID()), nil
}

// relay returns another member that can be connected to, which serves a request or passes it on to the leader, once; nil if there is none.
func (m *LocalMember) relay(ctx context.Context) backend {
	st := m.Status()
	n, first := len(st.Members), int(m.relayed.Load())
	for i := range n {
		other := st.Members[(first+i)%n]
		if other.ID == st.MemberID || other.ID == st.LeaderID {
			continue
		}
		bounded, cancel := context.WithTimeout(ctx, dialTimeout)
		conn, err := m.peers.ready(bounded, other.ClientAddress)
		cancel()
		if err == nil {
			return newRemote(conn, other.ClientAddress, false, st.ClusterID)
		}
	}
	return nil
}

// failed implements router: another member may relay better.
func (m *LocalMember) failed(b backend) {
	if r, elsewhere := b.(*remote); elsewhere && !r.origin.GetForwarded() {
		m.relayed.Add(1)
	}
}

func (m *LocalMember) watch(ctx context.Context, closed <-chan struct{}, prefix string, after kvdb.Revision) <-chan kvdb.Event {
	return m.fsm.state.Watch(ctx, closed, prefix, after)
}

func (m *LocalMember) clusterID() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.mu.id.ClusterID
}
