package raftkv

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/tandem-storage/tandem/kvdb"
	"github.com/tandem-storage/tandem/kvdb/internal/eventpipe"
	"github.com/tandem-storage/tandem/kvdb/internal/leasekeep"
)

// store is kvdb.Store over whatever backend the router finds. It alone
// decides what is tried again: what was definitely refused, and what
// changes nothing.
type store struct {
	router  router
	timeout time.Duration
	open    context.Context // until Close
	close   context.CancelFunc
}

var _ kvdb.Store = (*store)(nil)

// Pauses between attempts, and the share of a request's time that one attempt
// at a read may use up before another backend is tried.
const (
	retryFirst  = 20 * time.Millisecond
	retryMost   = 250 * time.Millisecond
	readAttempt = 3 * time.Second
)

func newStore(r router, timeout time.Duration) *store {
	s := &store{router: r, timeout: timeout}
	s.open, s.close = context.WithCancel(context.Background())
	return s
}

// do runs one request until it has an answer or ctx ends.
func (s *store) do(ctx context.Context, repeatable bool, attempt func(context.Context, backend) error) error {
	if s.open.Err() != nil {
		return kvdb.ErrClosed
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	ctx, cancel := s.bound(ctx)
	defer cancel()
	pause := retryFirst
	for {
		err := s.try(ctx, repeatable, attempt)
		switch {
		case err == nil:
			return nil
		case s.open.Err() != nil && (repeatable || errors.Is(err, kvdb.ErrNoLeader)):
			return kvdb.ErrClosed
		case errors.Is(err, kvdb.ErrNoLeader):
		case errors.Is(err, kvdb.ErrUnavailable) && repeatable:
		default:
			return err
		}
		select {
		case <-time.After(pause):
			pause = min(2*pause, retryMost)
		case <-ctx.Done():
			if s.open.Err() != nil {
				return kvdb.ErrClosed
			}
			if errors.Is(err, ctx.Err()) {
				return err
			}
			return fmt.Errorf("%w: %w", err, ctx.Err())
		}
	}
}

// bound ends ctx when the store is closed, and gives it a deadline if it has none.
func (s *store) bound(ctx context.Context) (context.Context, context.CancelFunc) {
	var cancel context.CancelFunc
	if _, has := ctx.Deadline(); has {
		ctx, cancel = context.WithCancel(ctx)
	} else {
		ctx, cancel = context.WithTimeout(ctx, s.timeout)
	}
	stop := context.AfterFunc(s.open, cancel)
	return ctx, func() { stop(); cancel() }
}

func (s *store) try(ctx context.Context, repeatable bool, attempt func(context.Context, backend) error) error {
	if repeatable {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, readAttempt)
		defer cancel()
	}
	b, err := s.router.route(ctx)
	if err != nil {
		return err
	}
	err = attempt(ctx, b)
	if errors.Is(err, kvdb.ErrNoLeader) || errors.Is(err, kvdb.ErrUnavailable) {
		s.router.failed(b)
	}
	if errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, kvdb.ErrUnavailable) && repeatable {
		return notServed(err)
	}
	return err
}

// Get implements kvdb.Store.
func (s *store) Get(ctx context.Context, key string) (kvdb.KV, error) {
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
func (s *store) List(ctx context.Context, prefix string) (kvs []kvdb.KV, rev kvdb.Revision, err error) {
	if err := kvdb.CheckPrefix(prefix); err != nil {
		return nil, 0, err
	}
	err = s.do(ctx, true, func(ctx context.Context, b backend) (err error) {
		kvs, rev, err = b.list(ctx, prefix)
		return err
	})
	return kvs, rev, err
}

// Txn implements kvdb.Store.
func (s *store) Txn(ctx context.Context, t kvdb.Txn) (res kvdb.TxnResult, err error) {
	if err := t.Check(); err != nil {
		return kvdb.TxnResult{}, err
	}
	err = s.do(ctx, t.ReadOnly(), func(ctx context.Context, b backend) (err error) {
		res, err = b.txn(ctx, t)
		return err
	})
	return res, err
}

// Watch implements kvdb.Store.
func (s *store) Watch(ctx context.Context, prefix string, after kvdb.Revision) <-chan kvdb.Event {
	if err := s.checkWatch(prefix, after); err != nil {
		pipe := eventpipe.New()
		pipe.End(err)
		return pipe.C()
	}
	return s.router.watch(ctx, s.open.Done(), prefix, after)
}

func (s *store) checkWatch(prefix string, after kvdb.Revision) error {
	if s.open.Err() != nil {
		return kvdb.ErrClosed
	}
	if after < 0 {
		return fmt.Errorf("%w: watch after revision %d", kvdb.ErrInvalid, after)
	}
	return kvdb.CheckPrefix(prefix)
}

// Grant implements kvdb.Store. The id is chosen here, so that asking again after an unknown outcome is harmless.
func (s *store) Grant(ctx context.Context, ttl time.Duration) (kvdb.Lease, error) {
	if err := kvdb.CheckTTL(ttl); err != nil {
		return nil, err
	}
	ttl = ttl.Truncate(time.Millisecond) // as it is stored
	id := newLeaseID()
	sent := time.Now()
	err := s.do(ctx, true, func(ctx context.Context, b backend) error { return b.grant(ctx, id, ttl) })
	if err != nil {
		return nil, err
	}
	return leasekeep.Keep(leasekeep.Config{
		ID:     id,
		TTL:    ttl,
		Sent:   sent,
		Closed: s.open.Done(),
		Renew: func(ctx context.Context) error {
			return s.do(ctx, true, func(ctx context.Context, b backend) error { return b.keepAlive(ctx, id) })
		},
		Revoke: func(ctx context.Context) error {
			return s.do(ctx, false, func(ctx context.Context, b backend) error { return b.revoke(ctx, id) })
		},
	}), nil
}

func newLeaseID() kvdb.LeaseID {
	var b [8]byte
	_, _ = rand.Read(b[:]) // documented never to fail
	return kvdb.LeaseID(binary.LittleEndian.Uint64(b[:])>>1 | 1)
}

// Close implements kvdb.Store.
func (s *store) Close() error {
	s.close()
	return nil
}
