package kvdb

import (
	"context"
	"time"
)

// Pause waits for d between two attempts on a Store, and reports whether that passed before ctx ended.
func Pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
