package raftkv

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/raft"
	"go.uber.org/zap"

	"github.com/tandem-storage/tandem/kvdb"
	"github.com/tandem-storage/tandem/kvdb/internal/kvstate"
	"github.com/tandem-storage/tandem/kvdb/kvdbpb"
)

// expiryInterval is how often the leader looks for leases that are due.
const expiryInterval = 250 * time.Millisecond

// tenure is one term of this member as leader, from when it has applied all
// that its predecessors committed. It is the backend that really serves.
type tenure struct {
	node    *raftNode
	fsm     *fsm
	barrier batcher
	end     context.Context // until the end of the tenure

	mu struct {
		sync.Mutex
		deadlines *kvstate.Deadlines
		ending    map[kvdb.LeaseID]bool // an entry that ends it is on its way
	}
}

var _ backend = (*tenure)(nil)

// followLeadership keeps m.mu.tenure up to date. It must not lag: raft waits for it.
func (m *LocalMember) followLeadership(node *raftNode, leads <-chan bool) {
	end := func() {}
	defer func() { end() }()
	for {
		select {
		case <-m.ctx.Done():
			return
		case leading := <-leads:
			end()
			m.setTenure(nil)
			if !leading {
				m.lg.Info("no longer leader", zap.String("member", node.self.ID))
				continue
			}
			ctx, cancel := context.WithCancel(m.ctx)
			end = cancel
			m.wg.Go(func() { m.lead(ctx, node) })
		}
	}
}

func (m *LocalMember) setTenure(t *tenure) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.mu.tenure = t
}

// lead serves one tenure.
func (m *LocalMember) lead(ctx context.Context, node *raftNode) {
	t := &tenure{node: node, fsm: m.fsm, end: ctx}
	t.barrier.do = func() error { return node.Barrier(0).Error() }
	t.mu.deadlines = kvstate.NewDeadlines()
	t.mu.ending = make(map[kvdb.LeaseID]bool)
	if err := t.barrier.wait(ctx); err != nil {
		return // leadership was lost, of which we are told
	}
	m.mu.Lock()
	if ctx.Err() == nil {
		m.mu.tenure = t
	}
	m.mu.Unlock()
	m.lg.Info("leader", zap.String("member", node.self.ID), zap.Uint64("term", node.CurrentTerm()))
	t.runExpiry(ctx)
}

// runExpiry ends the leases whose time is up.
func (t *tenure) runExpiry(ctx context.Context) {
	tick := time.NewTicker(expiryInterval)
	defer tick.Stop()
	last := time.Now()
	for {
		now := time.Now()
		for _, id := range t.due(now, now.Sub(last)) {
			go t.expire(id)
		}
		last = now
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// due takes the leases to end now; sinceLast is the time since it last ran.
func (t *tenure) due(now time.Time, sinceLast time.Duration) []kvdb.LeaseID {
	t.mu.Lock()
	defer t.mu.Unlock()
	if sinceLast > 4*expiryInterval {
		// This process stood still; renewals may be waiting in its sockets. To end
		// every lease now would be a mass revocation for nothing that anyone did.
		t.mu.deadlines.Postpone(sinceLast)
	}
	t.mu.deadlines.Sync(now, t.fsm.state.Leases())
	var ids []kvdb.LeaseID
	for _, id := range t.mu.deadlines.Due(now) {
		if !t.mu.ending[id] {
			t.mu.ending[id] = true
			ids = append(ids, id)
		}
	}
	return ids
}

// expire ends one lease through the log. If that fails it is due again.
func (t *tenure) expire(id kvdb.LeaseID) {
	_ = t.revoke(t.end, id)
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.mu.ending, id)
}

// propose puts a change into the log and waits for its outcome. Only
// kvdb.ErrNoLeader and the outcome's own error are definite.
func (t *tenure) propose(ctx context.Context, c *kvdbpb.Command) (kvdb.TxnResult, error) {
	raw, err := encodeCommand(c)
	if err != nil {
		return kvdb.TxnResult{}, fmt.Errorf("%w: %w", kvdb.ErrInvalid, err)
	}
	if ctx.Err() != nil {
		return kvdb.TxnResult{}, notServed(ctx.Err())
	}
	enqueue := time.Second
	if deadline, ok := ctx.Deadline(); ok {
		enqueue = max(min(enqueue, time.Until(deadline)), time.Millisecond)
	}
	type answer struct {
		out outcome
		err error
	}
	answered := make(chan answer, 1)
	go func() {
		f := t.node.Apply(raw, enqueue)
		a := answer{err: f.Error()}
		if a.err == nil {
			a.out = f.Response().(outcome)
		}
		answered <- a
	}()
	select {
	case a := <-answered:
		if a.err != nil {
			return kvdb.TxnResult{}, fromRaft(a.err)
		}
		return a.out.res, a.out.err
	case <-ctx.Done():
		return kvdb.TxnResult{}, fmt.Errorf("%w: the change was handed over, no answer yet: %w", kvdb.ErrUnavailable, ctx.Err())
	}
}

// fromRaft tells definite refusals from unknown outcomes.
func fromRaft(err error) error {
	switch {
	case errors.Is(err, raft.ErrNotLeader), errors.Is(err, raft.ErrLeadershipTransferInProgress), errors.Is(err, raft.ErrEnqueueTimeout):
		return notServed(err)
	default:
		return fmt.Errorf("%w: %w", kvdb.ErrUnavailable, err)
	}
}

// notServed says that the request had no effect and may be sent elsewhere.
func notServed(why error) error { return fmt.Errorf("%w: %w", kvdb.ErrNoLeader, why) }

func (t *tenure) txn(ctx context.Context, txn kvdb.Txn) (kvdb.TxnResult, error) {
	if err := txn.Check(); err != nil {
		return kvdb.TxnResult{}, err
	}
	if !txn.ReadOnly() {
		return t.propose(ctx, &kvdbpb.Command{Change: &kvdbpb.Command_Txn{Txn: txnToProto(txn)}})
	}
	if err := t.barrier.wait(ctx); err != nil {
		return kvdb.TxnResult{}, err
	}
	return t.fsm.state.Txn(txn)
}

func (t *tenure) list(ctx context.Context, prefix string) ([]kvdb.KV, kvdb.Revision, error) {
	if err := kvdb.CheckPrefix(prefix); err != nil {
		return nil, 0, err
	}
	if err := t.barrier.wait(ctx); err != nil {
		return nil, 0, err
	}
	kvs, rev := t.fsm.state.List(prefix)
	return kvs, rev, nil
}

func (t *tenure) grant(ctx context.Context, id kvdb.LeaseID, ttl time.Duration) error {
	if err := kvdb.CheckTTL(ttl); err != nil {
		return err
	}
	_, err := t.propose(ctx, &kvdbpb.Command{Change: &kvdbpb.Command_Grant{
		Grant: &kvdbpb.GrantLease{Id: int64(id), TtlMs: ttl.Milliseconds()},
	}})
	return err
}

// keepAlive lets the lease run its whole duration from now. The barrier after
// that proves that no successor had begun to count before.
func (t *tenure) keepAlive(ctx context.Context, id kvdb.LeaseID) error {
	if err := t.extend(id); err != nil {
		return err
	}
	return t.barrier.wait(ctx)
}

func (t *tenure) extend(id kvdb.LeaseID) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	ttl, exists := t.fsm.state.LeaseTTL(id)
	switch {
	case !exists:
		return fmt.Errorf("%w: %d", kvdb.ErrLeaseGone, id)
	case t.mu.ending[id]:
		return fmt.Errorf("%w: lease %d is being ended", kvdb.ErrUnavailable, id)
	}
	t.mu.deadlines.Extend(id, time.Now().Add(ttl))
	return nil
}

func (t *tenure) revoke(ctx context.Context, id kvdb.LeaseID) error {
	_, err := t.propose(ctx, &kvdbpb.Command{Change: &kvdbpb.Command_End{End: &kvdbpb.EndLease{Id: int64(id)}}})
	return err
}

// batcher runs do for any number of waiters at once: whoever waits is served by
// a do that began after it came, which is at once, unless all that wait are patient (kvdb.Patient).
type batcher struct {
	do func() error

	mu      sync.Mutex
	running bool
	next    *batch // of those who came while do runs, or wait for others
}

type batch struct {
	done chan struct{}
	err  error
	due  time.Time   // when do is to begin
	wake *time.Timer // then; nil if it is not waited for
}

// mostPatient bounds what somebody on another node asks for.
const mostPatient = time.Second

func (b *batcher) wait(ctx context.Context) error {
	b.mu.Lock()
	due := time.Now().Add(min(kvdb.Patience(ctx), mostPatient))
	if b.next == nil {
		b.next = &batch{done: make(chan struct{}), due: due}
	} else if due.Before(b.next.due) {
		b.next.due = due
	}
	mine := b.next
	b.beginLocked()
	b.mu.Unlock()

	select {
	case <-mine.done:
		return mine.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// beginLocked has do run for those who wait, now or when they are due, unless it runs.
func (b *batcher) beginLocked() {
	if b.running || b.next == nil {
		return
	}
	next := b.next
	if next.wake != nil {
		next.wake.Stop()
	}
	if wait := time.Until(next.due); wait > 0 {
		next.wake = time.AfterFunc(wait, func() {
			b.mu.Lock()
			defer b.mu.Unlock()
			if b.next == next {
				b.beginLocked()
			}
		})
		return
	}
	b.running = true
	go b.run()
}

func (b *batcher) run() {
	for {
		b.mu.Lock()
		current := b.next
		if current == nil || time.Until(current.due) > 0 {
			b.running = false
			b.beginLocked()
			b.mu.Unlock()
			return
		}
		b.next = nil
		b.mu.Unlock()
		if err := b.do(); err != nil {
			current.err = notServed(err) // a barrier changes nothing, whatever became of it
		}
		close(current.done)
	}
}
