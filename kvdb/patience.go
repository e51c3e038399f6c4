package kvdb

import (
	"context"
	"time"
)

type patienceKey struct{}

// Patient returns a context under which a read, or the renewal of a lease, may be kept waiting for up to d to be answered together with others: for
// what is looked at from time to time, which costs the members of an embedded store an entry of the log each time that it is not shared. It changes nothing of what
// the answer says: that is not older than the question. A store may do without.
func Patient(ctx context.Context, d time.Duration) context.Context {
	return context.WithValue(ctx, patienceKey{}, d)
}

// Patience is what Patient gave ctx; 0 if it did not.
func Patience(ctx context.Context) time.Duration {
	d, _ := ctx.Value(patienceKey{}).(time.Duration)
	return d
}

// Background is the Patience of what looks every few seconds.
const Background = time.Second
