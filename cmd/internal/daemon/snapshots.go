package daemon

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.uber.org/zap"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tandem-storage/tandem/datapath/backing"
	"github.com/tandem-storage/tandem/datapath/meta"
	"github.com/tandem-storage/tandem/kvdb"
	"github.com/tandem-storage/tandem/replication"
	"github.com/tandem-storage/tandem/replication/core"
	replvolume "github.com/tandem-storage/tandem/replication/volume"
	"github.com/tandem-storage/tandem/volume"
	"github.com/tandem-storage/tandem/volume/volumepb"
)

// Bounds of a snapshot: how long a volume may take to come to it, and how long its writes wait then.
const (
	snapshotWait = 10 * time.Second
	snapshotHold = 5 * time.Second
)

// TakeSnapshot implements volume.LocalTaker. A volume that is detached is attached for as long, without a device; nobody can write to it, so that
// the mark of a blank volume stays.
func (r *runtime) TakeSnapshot(ctx context.Context, id replication.VolumeID, snap replication.SnapshotID, attach bool) ([]replication.ReplicaID, error) {
	ctx, cancel := context.WithTimeout(ctx, attachTimeout)
	defer cancel()
	v := r.volumes.Volume(id)
	if err := r.mayCut(id); err != nil {
		return nil, err
	}
	if v != nil {
		return v.Snapshot(ctx, snap, snapshotWait, snapshotHold)
	}
	if !attach {
		return nil, replication.ErrNotCoordinator
	}
	var holders []replication.ReplicaID
	err := r.lend(ctx, id, func(v *replvolume.Volume) (err error) {
		holders, err = v.Snapshot(ctx, snap, snapshotWait, snapshotHold)
		return err
	})
	return holders, err
}

// TakeHeld implements volume.LocalTaker. The hold of op bounds it: what comes late finds none, and takes nothing.
func (r *runtime) TakeHeld(ctx context.Context, id replication.VolumeID, snap replication.SnapshotID, op replication.UUID) ([]replication.ReplicaID, error) {
	v := r.volumes.Volume(id)
	if v == nil {
		return nil, replication.ErrNotCoordinator
	}
	if err := r.mayCut(id); err != nil {
		return nil, err
	}
	if _, held, err := v.Cut(ctx, op); err != nil || !held {
		return nil, fmt.Errorf("%w: operation %s does not hold its writes any more: %w", replication.ErrNotCut, op, errors.Join(err, replication.ErrStalled))
	}
	left := volume.MaxCutHold
	if end, ok := ctx.Deadline(); ok {
		left = min(left, time.Until(end))
	}
	return v.Snapshot(ctx, snap, left/2, left/2) // it may not begin so late that it cannot end
}

// Lend implements volume.LocalTaker.
func (r *runtime) Lend(ctx context.Context, id replication.VolumeID, use func() error) error {
	return r.lend(ctx, id, func(v *replvolume.Volume) error {
		settle(ctx, v)
		return use()
	})
}

// settle waits until a volume could be held at once: it has been told of its group, and its replicas have been compared. If that takes longer than snapshotWait, whoever holds it finds out.
func settle(ctx context.Context, v *replvolume.Volume) {
	ctx, cancel := context.WithTimeout(ctx, snapshotWait)
	defer cancel()
	for {
		if st := v.Status(); st.Stall == core.StallNone && st.Unreconciled == 0 || !kvdb.Pause(ctx, 10*time.Millisecond) {
			return
		}
	}
}

// lend has a volume attached here, without a device if it is not shown, while use runs. Nobody can write to one that is not shown, so that the mark of a blank volume stays.
func (r *runtime) lend(ctx context.Context, id replication.VolumeID, use func(v *replvolume.Volume) error) error {
	// An attach that is given up in the middle leaves the volume promised to this node: so it is ended though nobody waits for it any more, and taken back.
	attach, cancel := context.WithTimeout(context.WithoutCancel(ctx), attachTimeout)
	defer cancel()
	unlock, err := r.lock(ctx, id)
	if err != nil {
		return fmt.Errorf("%w: %w", replication.ErrNotCut, err)
	}
	defer unlock()
	if err := r.reverting(attach, id); err != nil {
		return fmt.Errorf("%w: %w", replication.ErrNotCut, err)
	}
	if r.showing(id) == nil {
		defer r.formatting(id)()
		defer func() {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), attachTimeout)
			defer cancel()
			if err := r.volumes.Detach(ctx, id); err != nil {
				r.lg.Error("volume stays attached after a snapshot", zap.Stringer("volume-id", id), zap.Error(err))
			}
		}()
	}
	v, err := r.volumes.Attach(attach, id, replvolume.AttachOptions{})
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return fmt.Errorf("%w: %w", replication.ErrNotCut, err)
	}
	return use(v)
}

// localTaker finds who takes snapshots here.
func (d *daemon) localTaker() (volume.LocalTaker, error) {
	if _, err := d.late.get(); err != nil {
		return nil, err
	}
	return taker{d.runtime, d.reverter()}, nil
}

// Take implements volume.SnapshotTaker.
func (c *cutCoordinators) Take(ctx context.Context, n replication.NodeID, v replication.VolumeID, id replication.SnapshotID, attach bool) ([]replication.ReplicaID, error) {
	if n == c.d.node {
		return c.d.runtime.TakeSnapshot(ctx, v, id, attach)
	}
	cc, err := c.conn(n)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", replication.ErrNotCut, err)
	}
	return answered(volume.TakeSnapshotOn(ctx, volumepb.NewSnapshotCoordinatorsClient(cc), v, id, attach))
}

// TakeHeld implements volume.GroupTaker.
func (c *cutCoordinators) TakeHeld(ctx context.Context, n replication.NodeID, v replication.VolumeID, id replication.SnapshotID, op replication.UUID) ([]replication.ReplicaID, error) {
	if n == c.d.node {
		return c.d.runtime.TakeHeld(ctx, v, id, op)
	}
	cc, err := c.conn(n)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", replication.ErrNotCut, err)
	}
	return answered(volume.TakeHeldOn(ctx, volumepb.NewSnapshotCoordinatorsClient(cc), v, id, op))
}

// FreezeHere implements volume.LocalTaker.
func (r *runtime) FreezeHere(ctx context.Context, id replication.VolumeID, op replication.UUID, hold time.Duration) (bool, error) {
	return r.freezer.Freeze(ctx, id.String(), op.String(), hold)
}

// ThawHere implements volume.LocalTaker.
func (r *runtime) ThawHere(id replication.VolumeID, op replication.UUID) error {
	return r.freezer.Thaw(id.String(), op.String())
}

// Freeze implements volume.Freezer.
func (c *cutCoordinators) Freeze(ctx context.Context, n replication.NodeID, v replication.VolumeID, op replication.UUID, hold time.Duration) (bool, error) {
	if n == c.d.node {
		return c.d.runtime.FreezeHere(ctx, v, op, hold)
	}
	cc, err := c.conn(n)
	if err != nil {
		return false, err
	}
	here, err := volume.FreezeOn(ctx, volumepb.NewSnapshotCoordinatorsClient(cc), v, op, hold)
	return here, inWords(err)
}

// Thaw implements volume.Freezer.
func (c *cutCoordinators) Thaw(ctx context.Context, n replication.NodeID, v replication.VolumeID, op replication.UUID) error {
	if n == c.d.node {
		return c.d.runtime.ThawHere(v, op)
	}
	cc, err := c.conn(n)
	if err != nil {
		return err
	}
	return inWords(volume.ThawOn(ctx, volumepb.NewSnapshotCoordinatorsClient(cc), v, op))
}

// inWords is what another node said was wrong, as a person reads it in a snapshot's record.
func inWords(err error) error {
	switch s := status.Convert(err); s.Code() {
	case codes.OK:
		return nil
	case codes.Unimplemented:
		return fmt.Errorf("%w: the version of that node freezes nothing", volume.ErrNotFrozen)
	case codes.FailedPrecondition:
		return errors.New(s.Message())
	default:
		return fmt.Errorf("%w: that node does not answer: %s", volume.ErrNotFrozen, s.Message())
	}
}

// Lend implements volume.GroupTaker.
func (c *cutCoordinators) Lend(ctx context.Context, n replication.NodeID, v replication.VolumeID) (giveBack func(), err error) {
	if n == c.d.node {
		return volume.LendHere(ctx, taker{c.d.runtime, c.d.reverter()}, v)
	}
	cc, err := c.conn(n)
	if err != nil {
		return nil, err
	}
	return volume.LendOn(ctx, volumepb.NewSnapshotCoordinatorsClient(cc), v)
}

// answered adds to the error of another node that it has taken no snapshot, if it says so.
func answered(holders []replication.ReplicaID, err error) ([]replication.ReplicaID, error) {
	switch status.Code(err) {
	case codes.Aborted, codes.FailedPrecondition, codes.ResourceExhausted, codes.NotFound, codes.Unimplemented, codes.DataLoss:
		return nil, fmt.Errorf("%w: %w", replication.ErrNotCut, err) // it has answered
	default:
		return holders, err
	}
}

// source finds the replica in the pool that a new one with the content of a snapshot is made from.
func (p *pools) source(pool *backing.Pool, from *volume.Source) (*backing.Replica, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for l, r := range p.open {
		if l.Volume != from.Volume || l.Pool != replication.UUID(pool.ID()).String() {
			continue
		}
		for _, s := range r.Snapshots() {
			if replication.SnapshotID(s.ID) == from.Snapshot {
				return r, nil
			}
		}
	}
	return nil, fmt.Errorf("%w: no replica of volume %s that is served from pool %s holds snapshot %s", backing.ErrNotFound, from.Volume, pool.Path(), from.Snapshot)
}

// DeleteSnapshot implements volume.Replicas.
func (l *localReplicas) DeleteSnapshot(_ context.Context, r volume.LocalReplica, id replication.SnapshotID) error {
	l.pools.mu.Lock()
	open := l.pools.open[r]
	l.pools.mu.Unlock()
	if open != nil {
		if err := open.DeleteSnapshot(meta.UUID(id)); err != nil && !errors.Is(err, backing.ErrNotFound) {
			return err
		}
		return nil
	}
	pool := l.pools.find(r.Pool)
	if pool == nil {
		return fmt.Errorf("%w: pool %s is not on this node", backing.ErrNotFound, r.Pool)
	}
	entries, err := pool.List()
	if err != nil {
		return err
	}
	for _, e := range entries {
		if replication.VolumeID(e.Volume) == r.Volume && replication.ReplicaID(e.Replica) == r.Replica {
			return fmt.Errorf("%w: replica %s in pool %s is not served, and may hold the snapshot; see the log of when the daemon was started", backing.ErrInUse, r.Replica, pool.Path())
		}
	}
	return nil
}

// FreesHere implements volume.LocalTaker.
func (r *runtime) FreesHere(_ context.Context, l volume.LocalReplica, id replication.SnapshotID) (int64, error) {
	return r.frees(l, id)
}

// frees is what the deletion of a snapshot of a replica here would give back to its pool.
func (p *pools) frees(l volume.LocalReplica, id replication.SnapshotID) (int64, error) {
	p.mu.Lock()
	open := p.open[l]
	p.mu.Unlock()
	if open == nil {
		return 0, fmt.Errorf("%w: replica %s is not served", backing.ErrNotFound, l.Replica)
	}
	return open.SnapshotFrees(meta.UUID(id))
}

// SnapshotFrees implements volume.SnapshotSpace.
func (c *cutCoordinators) SnapshotFrees(ctx context.Context, n replication.NodeID, l volume.LocalReplica, id replication.SnapshotID) (int64, error) {
	if n == c.d.node {
		return c.d.runtime.FreesHere(ctx, l, id)
	}
	cc, err := c.conn(n)
	if err != nil {
		return 0, err
	}
	bytes, err := volume.MeasureOn(ctx, volumepb.NewSnapshotCoordinatorsClient(cc), l, id)
	if err != nil {
		return 0, errors.New(status.Convert(err).Message())
	}
	return bytes, nil
}
