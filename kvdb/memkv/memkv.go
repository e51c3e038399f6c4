// Package memkv is the store in memory: the reference for what a kvdb.Store
// does, and the store of tests that need no other.
//
// One Server holds the state; each Open is one client of it, as each node of a
// cluster is one of the real stores'. Time is the Server's Clock, and a client
// can be cut off, so that a test decides when leases end.
package memkv

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/tandem-storage/tandem/kvdb"
	"github.com/tandem-storage/tandem/kvdb/internal/eventpipe"
	"github.com/tandem-storage/tandem/kvdb/internal/kvstate"
)

// Options of a Server. The zero value is complete.
type Options struct {
	Clock Clock // nil: the real one

	// KeepEvents is how many changes watches can go back, at least. Default 8192.
	KeepEvents int
}

// Server is the shared state behind any number of Stores.
type Server struct {
	clock Clock
	state *kvstate.Machine

	mu struct {
		sync.Mutex
		nextLease kvdb.LeaseID
	}
}

// NewServer returns a Server without keys.
func NewServer(o Options) *Server {
	if o.Clock == nil {
		o.Clock = realClock{}
	}
	if o.KeepEvents == 0 {
		o.KeepEvents = 8192
	}
	return &Server{clock: o.Clock, state: kvstate.New(o.KeepEvents)}
}

// New returns the only client of a Server of its own, with the real clock.
func New() *Store { return NewServer(Options{}).Open() }

// Compact forgets the changes up to and including rev: a watch from before it ends with ErrCompacted.
func (s *Server) Compact(rev kvdb.Revision) { s.state.Compact(rev) }

// Open returns another client.
func (s *Server) Open() *Store {
	st := &Store{server: s, closed: make(chan struct{})}
	st.mu.leases = make(map[kvdb.LeaseID]*lease)
	st.mu.reachable = make(chan struct{})
	close(st.mu.reachable)
	return st
}

// Store is one client. It implements kvdb.Store.
type Store struct {
	server *Server
	closed chan struct{}

	mu struct {
		sync.Mutex
		isClosed  bool
		cutOff    bool
		reachable chan struct{} // closed unless cutOff
		leases    map[kvdb.LeaseID]*lease
	}
}

var _ kvdb.Store = (*Store)(nil)

// SetReachable cuts the client off from the Server, or lets it back. Cut off,
// its calls fail with ErrUnavailable, its watches stand still, and its leases
// end when their time is up. A new client is reachable.
func (s *Store) SetReachable(reachable bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.isClosed || s.mu.cutOff == !reachable {
		return
	}
	s.mu.cutOff = !reachable
	if reachable {
		close(s.mu.reachable)
	} else {
		s.mu.reachable = make(chan struct{})
	}
	for _, l := range s.mu.leases {
		if reachable {
			l.stopTimerLocked()
		} else {
			l.startTimerLocked()
		}
	}
}

func (s *Store) check(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.mu.isClosed:
		return kvdb.ErrClosed
	case ctx.Err() != nil:
		return ctx.Err()
	case s.mu.cutOff:
		return fmt.Errorf("%w: this client is cut off", kvdb.ErrUnavailable)
	}
	return nil
}

// Get implements kvdb.Store.
func (s *Store) Get(ctx context.Context, key string) (kvdb.KV, error) {
	res, err := s.Txn(ctx, kvdb.Txn{Then: []kvdb.Op{{Kind: kvdb.OpGet, Key: key}}})
	if err != nil {
		return kvdb.KV{}, err
	}
	if res.Gets[0] == nil {
		return kvdb.KV{}, fmt.Errorf("%w: %q", kvdb.ErrNotFound, key)
	}
	return *res.Gets[0], nil
}

// List implements kvdb.Store.
func (s *Store) List(ctx context.Context, prefix string) ([]kvdb.KV, kvdb.Revision, error) {
	if err := s.check(ctx); err != nil {
		return nil, 0, err
	}
	if err := kvdb.CheckPrefix(prefix); err != nil {
		return nil, 0, err
	}
	kvs, rev := s.server.state.List(prefix)
	return kvs, rev, nil
}

// Txn implements kvdb.Store.
func (s *Store) Txn(ctx context.Context, t kvdb.Txn) (kvdb.TxnResult, error) {
	if err := s.check(ctx); err != nil {
		return kvdb.TxnResult{}, err
	}
	if err := t.Check(); err != nil {
		return kvdb.TxnResult{}, err
	}
	t.Then, t.Else = cloneOps(t.Then), cloneOps(t.Else)
	return s.server.state.Txn(t)
}

func cloneOps(ops []kvdb.Op) []kvdb.Op {
	out := make([]kvdb.Op, len(ops))
	for i, op := range ops {
		op.Value = append([]byte(nil), op.Value...)
		out[i] = op
	}
	return out
}

// Watch implements kvdb.Store. A client that is cut off gets what it missed when it is let back.
func (s *Store) Watch(ctx context.Context, prefix string, after kvdb.Revision) <-chan kvdb.Event {
	pipe := eventpipe.New()
	if err := s.checkWatch(prefix, after); err != nil {
		pipe.End(err)
		return pipe.C()
	}
	go func() {
		deliver := true // until the first event that is not delivered
		for e := range s.server.state.Watch(ctx, s.closed, prefix, after) {
			if e.Err != nil {
				pipe.End(e.Err)
				return
			}
			deliver = deliver && s.waitReachable(ctx) && pipe.Send(ctx, s.closed, e)
		}
	}()
	return pipe.C()
}

func (s *Store) waitReachable(ctx context.Context) bool {
	s.mu.Lock()
	reachable := s.mu.reachable
	s.mu.Unlock()
	select {
	case <-reachable:
		return true
	case <-ctx.Done():
	case <-s.closed:
	}
	return false
}

func (s *Store) checkWatch(prefix string, after kvdb.Revision) error {
	if err := s.check(context.Background()); errors.Is(err, kvdb.ErrClosed) {
		return err
	}
	if after < 0 {
		return fmt.Errorf("%w: watch after revision %d", kvdb.ErrInvalid, after)
	}
	return kvdb.CheckPrefix(prefix)
}

// Grant implements kvdb.Store.
func (s *Store) Grant(ctx context.Context, ttl time.Duration) (kvdb.Lease, error) {
	if err := s.check(ctx); err != nil {
		return nil, err
	}
	if err := kvdb.CheckTTL(ttl); err != nil {
		return nil, err
	}
	l := &lease{store: s, id: s.server.newLease(), ttl: ttl, done: make(chan struct{})}
	if err := s.server.state.Grant(l.id, ttl); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mu.leases[l.id] = l
	if s.mu.isClosed || s.mu.cutOff {
		l.startTimerLocked()
	}
	return l, nil
}

func (s *Server) newLease() kvdb.LeaseID {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mu.nextLease++
	return s.mu.nextLease
}

// Close implements kvdb.Store. The client's leases end when their time is up.
func (s *Store) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.isClosed {
		return nil
	}
	s.mu.isClosed = true
	close(s.closed)
	for _, l := range s.mu.leases {
		l.startTimerLocked()
	}
	return nil
}
