package volume

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/tandem-storage/tandem/clusterdomain"
	"github.com/tandem-storage/tandem/kvdb"
	"github.com/tandem-storage/tandem/replication"
)

// The exposure ledger: when, for how long and why a volume had fewer replicas in sync than members. It is a record beside the
// configuration, and is written by the transaction that changes the in-sync set and by no other: no interval is lost by a crash, and
// the comparison of the configuration guards both. Times are those of the node that sends the transaction, at the attempt that took effect.

// maxIntervals is how many intervals are kept one by one; of older ones the sum is.
const maxIntervals = 64

// Exposure is what is known of the times in which a volume was not in sync everywhere.
type Exposure struct {
	Open   *Interval   `json:"open,omitempty"` // goes on; nil: every replica is in sync
	Past   []Interval  `json:"past,omitempty"` // the oldest first
	Before ExposureSum `json:"before"`         // of those that are older than Past
	// Receipts are of the takeovers, the oldest first.
	Receipts []clusterdomain.Receipt `json:"receipts,omitempty"`
	// Verified is the last verify that came to its end, from its own record; nil: none is on record.
	Verified *clusterdomain.Verified `json:"-"`
}

// Interval is a time in which the same replicas were out of sync.
type Interval struct {
	From      time.Time         `json:"from"` // zero: before this was recorded
	To        time.Time         `json:"to,omitzero"`
	FromEpoch replication.Epoch `json:"from_epoch"`         // that began it
	ToEpoch   replication.Epoch `json:"to_epoch,omitempty"` // that ended it
	Cause     string            `json:"cause"`              // of FromEpoch, as the configuration's history has it
	End       string            `json:"end,omitempty"`      // of ToEpoch
	Missing   []MissingReplica  `json:"missing"`            // by domain, then node
	Without   []string          `json:"without,omitempty"`  // domains with a member and none in sync
	InSync    int               `json:"in_sync"`
	// Resynced is what had to be compared or copied before the replicas that ended it were in sync, in bytes: at most so much had been
	// written while they were missing. 0: it is not known, or they did not come back.
	Resynced int64 `json:"resynced,omitempty"`
}

// MissingReplica is a member that is not in sync.
type MissingReplica struct {
	Replica replication.ReplicaID `json:"replica"`
	Node    replication.NodeID    `json:"node"`
	Domain  replication.DomainID  `json:"domain"`
	Reason  string                `json:"reason,omitempty"`
}

// ExposureSum sums up intervals.
type ExposureSum struct {
	Count    int           `json:"count,omitempty"`
	Duration time.Duration `json:"ns,omitempty"`
	Resynced int64         `json:"resynced,omitempty"` // bytes
	Until    time.Time     `json:"until,omitzero"`     // end of the last of them
}

// Duration is how long i lasted, until now if it goes on; 0 if its beginning is not known.
func (i *Interval) Duration(now time.Time) time.Duration {
	to := i.To
	if to.IsZero() {
		to = now
	}
	if i.From.IsZero() {
		return 0
	}
	return max(0, to.Sub(i.From))
}

// At returns the interval in which t lies, nil if every replica was in sync then, or it is too long ago to be known.
func (x *Exposure) At(t time.Time) *Interval {
	in := func(i *Interval) bool { return !t.Before(i.From) && (i.To.IsZero() || t.Before(i.To)) }
	if x.Open != nil && in(x.Open) {
		return x.Open
	}
	for i := range x.Past {
		if in(&x.Past[i]) {
			return &x.Past[i]
		}
	}
	return nil
}

// Total sums up everything until now.
func (x *Exposure) Total(now time.Time) ExposureSum {
	s := x.Before
	for i := range x.Past {
		s.add(&x.Past[i], now)
	}
	if x.Open != nil {
		s.add(x.Open, now)
	}
	return s
}

func (s *ExposureSum) add(i *Interval, now time.Time) {
	s.Count++
	s.Duration += i.Duration(now)
	s.Resynced += i.Resynced
	if s.Until = i.To; i.To.IsZero() {
		s.Until = now
	}
}

// change enters that cfg came into force at now. resynced tells what the resync of a replica had to go through, in bytes.
func (x *Exposure) change(cfg *replication.Config, now time.Time, resynced func(replication.ReplicaID) int64) {
	next := intervalOf(cfg)
	if x.Open != nil && next != nil && slices.EqualFunc(x.Open.Missing, next.Missing, func(a, b MissingReplica) bool { return a.Replica == b.Replica }) {
		return
	}
	cause := cfg.History[len(cfg.History)-1].Cause
	if old := x.Open; old != nil {
		old.To, old.ToEpoch, old.End = now, cfg.Epoch, cause
		if now.Before(old.From) {
			old.To = old.From // another node's clock
		}
		for _, m := range old.Missing {
			if cfg.InISR(m.Replica) {
				old.Resynced += resynced(m.Replica)
			}
		}
		x.Past = append(x.Past, *old)
		for len(x.Past) > maxIntervals {
			x.Before.add(&x.Past[0], now)
			x.Past = slices.Delete(x.Past, 0, 1)
		}
	}
	if x.Open = next; next != nil {
		next.From, next.Cause = now, cause
	}
}

// intervalOf is what cfg says of missing replicas; nil if there are none.
func intervalOf(cfg *replication.Config) *Interval {
	i := &Interval{FromEpoch: cfg.Epoch, InSync: len(cfg.ISR)}
	for _, r := range sortedMembers(cfg) {
		m := cfg.Members[r]
		if cfg.InISR(r) {
			continue
		}
		i.Missing = append(i.Missing, MissingReplica{Replica: r, Node: m.Node, Domain: m.Domain, Reason: m.Reason})
		covered := slices.ContainsFunc(cfg.ISR, func(s replication.ReplicaID) bool { return cfg.Members[s].Domain == m.Domain })
		if !covered && !slices.Contains(i.Without, string(m.Domain)) {
			i.Without = append(i.Without, string(m.Domain))
		}
	}
	if len(i.Missing) == 0 {
		return nil
	}
	return i
}

// exposedOp is the operation that enters next, which replaces prev (nil: it is new), into the ledger that kv is (nil: none yet); none
// if it changes nothing. A ledger that cannot be read is begun anew: it stops no change of a configuration. fence is for the receipt of a takeover.
func (c *Configs) exposedOp(kv *kvdb.KV, prev, next *replication.Config, fence *clusterdomain.FenceNote) ([]kvdb.Op, error) {
	x := new(Exposure)
	if kv != nil {
		if err := json.Unmarshal(kv.Value, x); err != nil {
			x = new(Exposure)
		}
	}
	if x.Open == nil && prev != nil {
		if x.Open = intervalOf(prev); x.Open != nil { // from before there was a ledger
			x.Open.Cause = prev.History[len(prev.History)-1].Cause
		}
	}
	was, now := x.Open, time.Now().UTC().Truncate(time.Millisecond)
	var sealed map[replication.ReplicaID]Sealed
	if c.Sealed != nil {
		sealed = c.Sealed(next.Volume)
	}
	noted := x.took(prev, next, fence, now) || x.served(prev, next, sealed, now)
	x.change(next, now, func(r replication.ReplicaID) int64 {
		if c.Resynced == nil {
			return 0
		}
		return c.Resynced(next.Volume, r)
	})
	if x.Open == was && !noted {
		return nil, nil
	}
	op, err := put(c.keys.exposure(next.Volume), x)
	return []kvdb.Op{op}, err
}

// exposed is exposedOp for changes of which the ledger was not read; prev must have been before this is called.
func (c *Configs) exposed(ctx context.Context, prev, next *replication.Config) ([]kvdb.Op, error) {
	look, err := c.store.Txn(ctx, kvdb.Txn{Then: []kvdb.Op{{Kind: kvdb.OpGet, Key: c.keys.exposure(next.Volume)}}})
	if err != nil {
		return nil, err
	}
	return c.exposedOp(look.Gets[0], prev, next, c.fence(ctx, prev, next))
}

// Exposure returns the exposure ledger of a volume as it stands; Open is right also if the ledger was begun later than the interval.
// Errors: replication.ErrVolumeNotFound, ErrBadRecord, ErrIncarnation, those of the store.
func (c *Configs) Exposure(ctx context.Context, id replication.VolumeID) (*Exposure, error) {
	look, err := c.store.Txn(ctx, kvdb.Txn{Then: []kvdb.Op{
		{Kind: kvdb.OpGet, Key: c.keys.exposure(id)}, {Kind: kvdb.OpGet, Key: c.keys.config(id)},
		{Kind: kvdb.OpGet, Key: c.keys.verified(id)},
	}})
	if err != nil {
		return nil, fmt.Errorf("read the exposure of volume %s: %w", id, err)
	}
	if look.Gets[1] == nil {
		return nil, c.orReplaced(ctx, notFound(id))
	}
	cfg, _, err := parseConfig(*look.Gets[1])
	if err != nil {
		return nil, err
	}
	x := new(Exposure)
	if kv := look.Gets[0]; kv != nil {
		if err := json.Unmarshal(kv.Value, x); err != nil {
			return nil, fmt.Errorf("%w: %s: %w", ErrBadRecord, kv.Key, err)
		}
	}
	if x.Open == nil {
		if x.Open = intervalOf(cfg); x.Open != nil {
			x.Open.Cause = cfg.History[len(cfg.History)-1].Cause
		}
	}
	if kv := look.Gets[2]; kv != nil {
		x.Verified = new(clusterdomain.Verified)
		if err := json.Unmarshal(kv.Value, x.Verified); err != nil {
			return nil, fmt.Errorf("%w: %s: %w", ErrBadRecord, kv.Key, err)
		}
	}
	return x, nil
}
