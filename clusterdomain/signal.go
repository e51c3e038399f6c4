package clusterdomain

import (
	"context"
	"errors"
	"time"

	"github.com/tandem-storage/tandem/kvdb"
)

// retryAfter is how long a loop waits before it asks a kvdb again that failed.
const retryAfter = time.Second

// Signal returns a channel that has a value when something under prefix may have changed since
// it was last received from: once at the start, and then after every change, many changes
// in one. Whoever receives reads what it needs from the store, so that a lost or late event
// never leaves it with the wrong picture. The channel is closed when ctx ends or the store is closed.
func Signal(ctx context.Context, s kvdb.Store, prefix string) <-chan struct{} {
	ch := make(chan struct{}, 1)
	go func() {
		defer close(ch)
		for {
			_, rev, err := s.List(ctx, prefix)
			if err == nil {
				notify(ch)
				err = forward(ctx, s, prefix, rev, ch)
			}
			if errors.Is(err, kvdb.ErrClosed) || !kvdb.Pause(ctx, retryAfter) {
				return
			}
		}
	}()
	return ch
}

// forward turns events into signals until the watch ends, and says why it did.
func forward(ctx context.Context, s kvdb.Store, prefix string, rev kvdb.Revision, ch chan<- struct{}) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for ev := range s.Watch(ctx, prefix, rev) {
		if ev.Err != nil {
			return ev.Err
		}
		notify(ch)
	}
	return ctx.Err()
}

func notify(ch chan<- struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}
