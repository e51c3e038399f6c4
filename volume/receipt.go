package volume

import (
	"context"
	"fmt"
	"time"

	"github.com/tandem-storage/tandem/clusterdomain"
	"github.com/tandem-storage/tandem/kvdb"
	"github.com/tandem-storage/tandem/replication"
)

// Receipts of takeovers are in the exposure ledger: the transaction that ends an attachment for another one, and the one by
// which that comes to serve, write them, whoever sends them. So there is one for each takeover that took place.

// casTries is how often a verify is put on record of a volume whose configuration changes meanwhile.
const casTries = 5

// maxReceipts is how many receipts of a volume are kept.
const maxReceipts = 16

// Sealed is what an in-sync replica told of itself at a takeover.
type Sealed struct {
	Lossy   bool
	Applied replication.Position
}

// takes reports whether next ends the attachment of prev for another one, or goes on with such a takeover, or forces the volume.
func takes(prev, next *replication.Config) bool {
	if prev == nil {
		return false
	}
	return next.ForkGen > prev.ForkGen || next.Phase == replication.PhaseRecovering && !isHandover(next)
}

// took enters a takeover that begins with next at now, and reports whether it is one. Before change.
func (x *Exposure) took(prev, next *replication.Config, fence *clusterdomain.FenceNote, now time.Time) bool {
	if !takes(prev, next) {
		return false
	}
	forced := next.ForkGen > prev.ForkGen
	if n := len(x.Receipts); n > 0 && x.Receipts[n-1].After == 0 && !forced { // that one came to nothing
		r := &x.Receipts[n-1]
		r.To, r.Attempts = attachment(next.Coord), r.Attempts+1
		return true
	}
	if !forced && (prev.Coord == nil || prev.Coord.AttachID == next.Coord.AttachID) {
		return false // nobody had it, or it goes on as it was
	}
	r := clusterdomain.Receipt{
		From: attachment(prev.Coord), To: attachment(next.Coord), Before: uint64(prev.Epoch), Taken: now, Attempts: 1, Fence: fence, Forced: forced,
	}
	for _, id := range sortedMembers(prev) {
		m := prev.Members[id]
		r.Replicas = append(r.Replicas, clusterdomain.ReceiptReplica{
			ID: id.String(), Node: string(m.Node), Domain: string(m.Domain), Before: prev.InISR(id), Reason: m.Reason,
		})
	}
	open := x.Open
	if open == nil {
		open = intervalOf(prev)
	}
	if open != nil {
		r.Exposed = &clusterdomain.ExposedNote{Since: open.From, Epoch: uint64(open.FromEpoch), Without: open.Without}
	}
	if forced {
		settle(&r, next, nil, now)
		if n := len(next.History); n > 1 {
			r.DataEpoch = uint64(next.History[n-2].Epoch)
		}
	}
	x.Receipts = append(x.Receipts, r)
	x.Receipts = x.Receipts[max(0, len(x.Receipts)-maxReceipts):]
	return true
}

// served enters that the last takeover serves with next from now on, and reports whether it is one.
func (x *Exposure) served(prev, next *replication.Config, sealed map[replication.ReplicaID]Sealed, now time.Time) bool {
	n := len(x.Receipts)
	if prev == nil || prev.Phase != replication.PhaseRecovering || next.Phase != replication.PhaseActive || n == 0 ||
		x.Receipts[n-1].After != 0 || x.Receipts[n-1].To.ID != next.Coord.AttachID.String() {
		return false
	}
	settle(&x.Receipts[n-1], next, sealed, now)
	return true
}

// settle notes of r what is in force with cfg.
func settle(r *clusterdomain.Receipt, cfg *replication.Config, sealed map[replication.ReplicaID]Sealed, now time.Time) {
	r.After, r.Served = uint64(cfg.Epoch), now
	for id, m := range cfg.Members {
		for i := range r.Replicas {
			p := &r.Replicas[i]
			if p.ID != id.String() {
				continue
			}
			if p.After = cfg.InISR(id); !p.After {
				p.Reason = m.Reason
			}
			if s, ok := sealed[id]; ok {
				p.Sealed, p.Lossy, p.Term, p.Seq = true, s.Lossy, uint64(s.Applied.Term), uint64(s.Applied.Seq)
			}
		}
	}
}

func attachment(c *replication.Coord) clusterdomain.Attachment {
	if c == nil {
		return clusterdomain.Attachment{}
	}
	return clusterdomain.Attachment{Node: string(c.Node), Domain: string(c.Domain), ID: c.AttachID.String(), Term: uint64(c.Term)}
}

// fence is what a receipt of the change to next says of the domain of the attachment that it ends. A record that cannot be read now is
// left out: no takeover waits for it.
func (c *Configs) fence(ctx context.Context, prev, next *replication.Config) *clusterdomain.FenceNote {
	if !takes(prev, next) || prev.Coord == nil {
		return nil
	}
	kv, err := c.store.Get(ctx, clusterdomain.DomainKey(c.cluster, string(prev.Coord.Domain)))
	if err != nil {
		return nil
	}
	d, err := clusterdomain.ParseDomain(kv)
	if err != nil {
		return nil
	}
	n := &clusterdomain.FenceNote{State: d.State, Epoch: d.Epoch, Actor: d.Actor, Reason: d.Reason}
	if d.Failover != nil {
		n.Failover = d.Failover.ID
	}
	return n
}

// follow fills in what came after r: all replicas were in sync again, what was gone through for that, and a verify since.
func (x *Exposure) follow(r clusterdomain.Receipt) clusterdomain.Receipt {
	all := x.Past
	if x.Open != nil {
		all = append(all[:len(all):len(all)], *x.Open)
	}
	at := replication.Epoch(r.After)
	if at == 0 {
		return r
	}
	r.Returned = r.Served
	for i := range all {
		v := &all[i]
		if v.FromEpoch > at || v.ToEpoch != 0 && v.ToEpoch <= at {
			continue
		}
		r.Returned, r.ReturnedBytes, at = v.To, r.ReturnedBytes+v.Resynced, v.ToEpoch
		if at == 0 {
			break
		}
	}
	for i := range all {
		if v := &all[i]; r.Exposed != nil && uint64(v.FromEpoch) <= r.Before && (v.ToEpoch == 0 || uint64(v.ToEpoch) > r.Before) {
			r.ExposedBytes = v.Resynced
		}
	}
	if v := x.Verified; v != nil && at != 0 && v.From >= uint64(at) {
		r.Verified = v
	}
	return r
}

// Verified puts v on record as the last verify of a volume. It stands for every receipt before it: a verify goes through the whole
// volume. Errors: ErrConflict (the volume is changed all the time), replication.ErrVolumeNotFound, ErrBadRecord, those of the store.
func (c *Configs) Verified(ctx context.Context, id replication.VolumeID, v *clusterdomain.Verified) error {
	op, err := put(c.keys.verified(id), v)
	if err != nil {
		return err
	}
	for range casTries {
		_, rev, err := c.Load(ctx, id)
		if err != nil {
			return fmt.Errorf("record the verify of volume %s: %w", id, err)
		}
		res, err := c.store.Txn(ctx, kvdb.Txn{
			If:   []kvdb.Cmp{{Key: c.keys.config(id), Target: kvdb.CmpMod, Revision: rev}}, // a volume that is gone has no record
			Then: []kvdb.Op{op},
		})
		if err != nil {
			return fmt.Errorf("record the verify of volume %s: %w", id, err)
		}
		if res.Succeeded {
			return nil
		}
	}
	return fmt.Errorf("record the verify of volume %s: %w", id, ErrConflict)
}

// Receipt implements clusterdomain.Volumes: the receipt of the volume for an automatic failover, nil if there is none (any more).
func (d DomainView) Receipt(ctx context.Context, volume string, failover uint64) (*clusterdomain.Receipt, error) {
	id, err := replication.ParseVolumeID(volume)
	if err != nil {
		return nil, err
	}
	x, err := d.c.Exposure(ctx, id)
	if err != nil {
		return nil, err
	}
	for _, r := range x.Receipts {
		if r.Fence != nil && r.Fence.Failover == failover {
			r = x.follow(r)
			return &r, nil
		}
	}
	return nil, nil
}
