// Package leasekeep keeps a lease alive from the client's side, for stores
// whose leases have to be renewed.
package leasekeep

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/tandem-storage/tandem/kvdb"
)

// Config says what to keep alive and how.
type Config struct {
	ID     kvdb.LeaseID
	TTL    time.Duration
	Sent   time.Time       // before the request that made the lease was sent
	Closed <-chan struct{} // ends the renewal, not the lease

	// Renew asks the store to let the lease run for TTL from when it is asked.
	// ErrLeaseGone ends the lease; after any other error it is asked again.
	Renew  func(context.Context) error
	Revoke func(context.Context) error
}

// Lease implements kvdb.Lease.
type Lease struct {
	c    Config
	stop context.CancelFunc
	done chan struct{}

	mu struct {
		sync.Mutex
		expires time.Time
		ended   bool
	}
}

var _ kvdb.Lease = (*Lease)(nil)

// Keep starts to renew the lease at a third of its TTL, in the background.
func Keep(c Config) *Lease {
	ctx, stop := context.WithCancel(context.Background())
	l := &Lease{c: c, stop: stop, done: make(chan struct{})}
	l.mu.expires = c.Sent.Add(c.TTL)
	go l.run(ctx)
	return l
}

// ID implements kvdb.Lease.
func (l *Lease) ID() kvdb.LeaseID { return l.c.ID }

// Done implements kvdb.Lease.
func (l *Lease) Done() <-chan struct{} { return l.done }

// Expires implements kvdb.Lease.
func (l *Lease) Expires() time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.mu.expires
}

// Revoke implements kvdb.Lease.
func (l *Lease) Revoke(ctx context.Context) error {
	err := l.c.Revoke(ctx)
	if err == nil || errors.Is(err, kvdb.ErrLeaseGone) {
		l.end()
	}
	return err
}

func (l *Lease) end() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.mu.ended {
		return
	}
	l.mu.ended = true
	l.stop()
	close(l.done)
}

func (l *Lease) run(ctx context.Context) {
	wait := l.c.TTL / 3
	timer := time.NewTimer(wait)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-l.c.Closed:
			time.AfterFunc(time.Until(l.Expires()), l.end)
			return
		case <-timer.C:
		}
		switch err := l.renew(ctx); {
		case err == nil:
			wait = l.c.TTL / 3
		case errors.Is(err, kvdb.ErrLeaseGone), !time.Now().Before(l.Expires()):
			l.end()
			return
		default:
			wait = min(l.c.TTL/20, time.Second)
		}
		timer.Reset(min(wait, time.Until(l.Expires())))
	}
}

// patience is how long a renewal may wait for others: two thirds of the TTL are left then, and a twentieth of it is little of that.
const patience = 500 * time.Millisecond

func (l *Lease) renew(ctx context.Context) error {
	sent := time.Now()
	// One attempt may not use up the time that another has to succeed in.
	ctx, cancel := context.WithTimeout(ctx, min(l.c.TTL/3, max(time.Until(l.Expires()), time.Millisecond)))
	defer cancel()
	if err := l.c.Renew(kvdb.Patient(ctx, min(l.c.TTL/20, patience))); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.mu.expires = sent.Add(l.c.TTL)
	return nil
}
