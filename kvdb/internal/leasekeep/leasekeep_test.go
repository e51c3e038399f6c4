package leasekeep

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tandem-storage/tandem/kvdb"
)

const ttl = 9 * time.Second

// pass lets time go on in a bubble.
func pass(d time.Duration) { <-time.After(d) }

func ended(l kvdb.Lease) bool {
	select {
	case <-l.Done():
		return true
	default:
		return false
	}
}

func keep(renew func(context.Context) error, closed <-chan struct{}) *Lease {
	return Keep(Config{
		ID: 1, TTL: ttl, Sent: time.Now(), Closed: closed, Renew: renew,
		Revoke: func(context.Context) error { return nil },
	})
}

// Expires is counted from before the renewal was sent, however long it took.
func TestExpiresFromSending(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		l := keep(func(context.Context) error { pass(2 * time.Second); return nil }, nil)
		pass(4 * time.Second) // the renewal is under way
		if got := l.Expires().Sub(start); got != ttl {
			t.Errorf("expires after %v, want %v", got, ttl)
		}
		pass(time.Second + time.Millisecond)
		if got := l.Expires().Sub(start); got != ttl/3+ttl {
			t.Errorf("expires after %v, want %v", got, ttl/3+ttl)
		}
		pass(10 * ttl)
		if ended(l) {
			t.Error("ended though it was renewed")
		}
		if err := l.Revoke(t.Context()); err != nil || !ended(l) {
			t.Errorf("revoked: %v, ended %v", err, ended(l))
		}
	})
}

func TestEndsWithoutRenewal(t *testing.T) {
	for name, renew := range map[string]func(context.Context) error{
		"refused": func(context.Context) error { return kvdb.ErrUnavailable },
		"hangs":   func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := keep(renew, nil)
				pass(ttl - time.Millisecond)
				if ended(l) {
					t.Error("ended early")
				}
				pass(2 * time.Millisecond)
				if !ended(l) {
					t.Error("did not end in time")
				}
			})
		})
	}
}

func TestSurvivesFailedRenewals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		l := keep(func(context.Context) error {
			if time.Since(start) < ttl-time.Second {
				return errors.New("no leader")
			}
			return nil
		}, nil)
		pass(2 * ttl)
		if ended(l) {
			t.Error("ended though it was renewed in time")
		}
		_ = l.Revoke(t.Context())
	})
}

func TestGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := keep(func(context.Context) error { return kvdb.ErrLeaseGone }, nil)
		pass(ttl/3 + time.Millisecond)
		if !ended(l) {
			t.Error("the store said that it is gone")
		}
	})
}

func TestStoreClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		closed := make(chan struct{})
		var renewals atomic.Int32
		l := keep(func(context.Context) error { renewals.Add(1); return nil }, closed)
		pass(ttl/3 + time.Millisecond)
		close(closed)
		pass(ttl - 10*time.Millisecond)
		if ended(l) || renewals.Load() != 1 {
			t.Errorf("ended %v after %d renewals", ended(l), renewals.Load())
		}
		pass(20 * time.Millisecond)
		if !ended(l) {
			t.Error("its time is up")
		}
	})
}
