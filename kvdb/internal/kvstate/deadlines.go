package kvstate

import (
	"time"

	"github.com/tandem-storage/tandem/kvdb"
)

// Deadlines says when each lease ends, under one owner's clock. Not safe for
// concurrent use.
type Deadlines struct {
	at map[kvdb.LeaseID]time.Time
}

// NewDeadlines gives every lease its whole duration from now: whoever takes the
// clock over must not hold its predecessor's silence against anyone.
func NewDeadlines(now time.Time, leases map[kvdb.LeaseID]time.Duration) *Deadlines {
	d := &Deadlines{at: make(map[kvdb.LeaseID]time.Time, len(leases))}
	for id, ttl := range leases {
		d.at[id] = now.Add(ttl)
	}
	return d
}

// Extend lets the lease run until the given time, if that is later.
func (d *Deadlines) Extend(id kvdb.LeaseID, until time.Time) {
	if until.After(d.at[id]) {
		d.at[id] = until
	}
}

// Forget drops a lease that has ended.
func (d *Deadlines) Forget(id kvdb.LeaseID) { delete(d.at, id) }

// Due returns the leases whose time is up.
func (d *Deadlines) Due(now time.Time) []kvdb.LeaseID {
	var ids []kvdb.LeaseID
	for id, at := range d.at {
		if !now.Before(at) {
			ids = append(ids, id)
		}
	}
	return ids
}
