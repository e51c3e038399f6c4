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

// NewDeadlines returns Deadlines that know no lease yet.
func NewDeadlines() *Deadlines {
	return &Deadlines{at: make(map[kvdb.LeaseID]time.Time)}
}

// Sync takes in the leases that exist. One not known before gets its whole
// duration from now: whoever takes the clock over must not hold its
// predecessor's silence against anyone.
func (d *Deadlines) Sync(now time.Time, leases map[kvdb.LeaseID]time.Duration) {
	for id, ttl := range leases {
		if _, known := d.at[id]; !known {
			d.at[id] = now.Add(ttl)
		}
	}
	for id := range d.at {
		if _, exists := leases[id]; !exists {
			delete(d.at, id)
		}
	}
}

// Extend lets the lease run until the given time, if that is later.
func (d *Deadlines) Extend(id kvdb.LeaseID, until time.Time) {
	if until.After(d.at[id]) {
		d.at[id] = until
	}
}

// Postpone gives every lease the same more, for a time in which the owner of the clock stood still.
func (d *Deadlines) Postpone(by time.Duration) {
	for id, at := range d.at {
		d.at[id] = at.Add(by)
	}
}

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
