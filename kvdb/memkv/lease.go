package memkv

import (
	"context"
	"fmt"
	"time"

	"github.com/tandem-storage/tandem/kvdb"
)

// lease implements kvdb.Lease. While its client can reach the Server it is as
// if it were renewed at every moment, so a timer runs only when it cannot.
// The fields below done are guarded by store.mu.
type lease struct {
	store *Store
	id    kvdb.LeaseID
	ttl   time.Duration
	done  chan struct{}

	ended   bool
	running bool      // the timer runs
	expires time.Time // while it does
	stop    func()
}

func (l *lease) ID() kvdb.LeaseID      { return l.id }
func (l *lease) Done() <-chan struct{} { return l.done }

func (l *lease) Expires() time.Time {
	l.store.mu.Lock()
	defer l.store.mu.Unlock()
	if l.running || l.ended {
		return l.expires
	}
	return l.store.server.clock.Now().Add(l.ttl)
}

func (l *lease) Revoke(ctx context.Context) error {
	if err := l.store.check(ctx); err != nil {
		return err
	}
	if !l.end(l.store.server.clock.Now()) {
		return fmt.Errorf("%w: %d", kvdb.ErrLeaseGone, l.id)
	}
	return nil
}

func (l *lease) startTimerLocked() {
	if l.running || l.ended {
		return
	}
	l.running = true
	l.expires = l.store.server.clock.Now().Add(l.ttl)
	at := l.expires
	l.stop = l.store.server.clock.AfterFunc(l.ttl, func() { l.expire(at) })
}

func (l *lease) stopTimerLocked() {
	if l.running {
		l.running = false
		l.stop()
	}
}

// expire ends the lease unless the timer that calls it was stopped too late to notice.
func (l *lease) expire(at time.Time) {
	l.store.mu.Lock()
	current := l.running && l.expires.Equal(at)
	l.store.mu.Unlock()
	if current {
		l.end(at)
	}
}

func (l *lease) end(at time.Time) bool {
	l.store.mu.Lock()
	defer l.store.mu.Unlock()
	if l.ended {
		return false
	}
	l.stopTimerLocked()
	l.ended, l.expires = true, at
	delete(l.store.mu.leases, l.id)
	if err := l.store.server.state.EndLease(l.id); err != nil {
		return false
	}
	close(l.done)
	return true
}
