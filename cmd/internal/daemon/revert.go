package daemon

import (
	"context"
	"errors"
	"fmt"

	"go.uber.org/zap"

	"github.com/tandem-storage/tandem/datapath/backing"
	"github.com/tandem-storage/tandem/datapath/meta"
	"github.com/tandem-storage/tandem/datapath/putback"
	"github.com/tandem-storage/tandem/replication"
	replvolume "github.com/tandem-storage/tandem/replication/volume"
	"github.com/tandem-storage/tandem/volume"
	"github.com/tandem-storage/tandem/volume/volumepb"
)

// revertWait is how long a volume that was taken over may take until its replicas are known to be equal, and a snapshot can be taken of it.
const revertWait = 6 * snapshotWait

// taker takes snapshots on this node, and puts volumes back to them.
type taker struct {
	*runtime
	*volume.Reverter
}

// reverter puts volumes back to snapshots on this node.
func (d *daemon) reverter() *volume.Reverter {
	return &volume.Reverter{Catalogue: d.catalogue, Node: d.node, Borrower: borrower{d}, Marker: d.coords, Logger: d.lg}
}

// borrower implements volume.Borrower.
type borrower struct{ d *daemon }

// Borrow implements volume.Borrower.
func (b borrower) Borrow(ctx context.Context, id replication.VolumeID, from *replication.Coord, use func(volume.Borrowed) error) (err error) {
	r := b.d.runtime
	unlock, err := r.lock(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	if r.showing(id) != nil {
		return fmt.Errorf("%w on node %s: detach it there first", volume.ErrAttached, r.c.NodeID)
	}
	r.borrow(id, true)
	defer r.unshown(id)() // as long as nobody else on this node can attach it
	// An attach that is given up in the middle would leave the volume promised to this node.
	attach, cancel := context.WithTimeout(context.WithoutCancel(ctx), attachTimeout)
	defer cancel()
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), attachTimeout)
		defer cancel()
		if detachErr := r.volumes.Detach(ctx, id); detachErr != nil {
			err = errors.Join(err, fmt.Errorf("it stays attached on node %s: %w", r.c.NodeID, detachErr))
			return
		}
		r.borrow(id, false)
	}()
	v, err := r.volumes.Attach(attach, id, replvolume.AttachOptions{TakeFrom: from})
	if errors.Is(err, replication.ErrRolledBack) {
		r.suspect()
	}
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return err
	}
	b.d.lg.Info("volume attached to be put back to a snapshot", zap.Stringer("volume-id", id))
	return use(borrowed{b.d, v})
}

// borrow notes whether a volume is attached here for nobody but who puts it back, or was left attached by that.
func (r *runtime) borrow(id replication.VolumeID, is bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if is {
		r.borrowed[id] = struct{}{}
	} else {
		delete(r.borrowed, id)
	}
}

// mayCut returns nil if snapshots may be taken of a volume that was found attached here before: not of one that is partly a snapshot and partly not.
func (r *runtime) mayCut(id replication.VolumeID) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, is := r.borrowed[id]; is {
		return fmt.Errorf("%w: %w", replication.ErrNotCut, volume.ErrReverting)
	}
	return nil
}

// borrowed implements volume.Borrowed.
type borrowed struct {
	d *daemon
	v *replvolume.Volume
}

// InForce implements volume.Borrowed.
func (b borrowed) InForce() *replication.Config { return b.v.InForce() }

// Snapshot implements volume.Borrowed.
func (b borrowed) Snapshot(ctx context.Context, id replication.SnapshotID) ([]replication.ReplicaID, error) {
	return b.v.Snapshot(ctx, id, revertWait, snapshotHold)
}

// PutBack implements volume.Borrowed.
func (b borrowed) PutBack(ctx context.Context, id, base replication.SnapshotID, before func() error) (int64, error) {
	r, err := b.d.pools.holder(b.v.ID(), id, base)
	if err != nil {
		return 0, err
	}
	from, err := r.OpenSnapshot(meta.UUID(id))
	if err != nil {
		return 0, err
	}
	// In what base has that the snapshot has not: also what is behind the end of the snapshot, which is the smaller one if they differ in size.
	changed := func(f func(off, length int64) bool) error {
		return r.ChangedBlocks(meta.UUID(id), meta.UUID(base), 0, f)
	}
	written, err := putback.Blocks(ctx, b.v, from, changed, before)
	return written, errors.Join(err, from.Close())
}

// holder is a replica of a volume that is served here and holds all of the snapshots.
func (p *pools) holder(v replication.VolumeID, ids ...replication.SnapshotID) (*backing.Replica, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for l, r := range p.open {
		if l.Volume != v {
			continue
		}
		n := 0
		for _, s := range r.Snapshots() {
			for _, id := range ids {
				if replication.SnapshotID(s.ID) == id {
					n++
				}
			}
		}
		if n == len(ids) {
			return r, nil
		}
	}
	return nil, fmt.Errorf("%w: no replica of volume %s on this node holds both %v", volume.ErrSnapshotNotHeld, v, ids)
}

// RunRevert implements volume.RevertRunner.
func (c *cutCoordinators) RunRevert(ctx context.Context, n replication.NodeID, v replication.VolumeID, id replication.UUID) (int64, error) {
	if n == c.d.node {
		return c.d.reverter().RevertHere(ctx, v, id)
	}
	cc, err := c.conn(n)
	if err != nil {
		return 0, err
	}
	return volume.RunRevertOn(ctx, volumepb.NewSnapshotCoordinatorsClient(cc), v, id)
}

// MarkReplica implements volume.ReplicaMarker.
func (c *cutCoordinators) MarkReplica(ctx context.Context, n replication.NodeID, r volume.LocalReplica, mark []byte) error {
	if n == c.d.node {
		return c.d.pools.markReverting(r, mark)
	}
	cc, err := c.conn(n)
	if err != nil {
		return err
	}
	return volume.MarkReplicaOn(ctx, volumepb.NewReplicasClient(cc), r, mark)
}

// markReplica keeps a mark for another node.
func (d *daemon) markReplica(r volume.LocalReplica, mark []byte) error {
	if _, err := d.late.get(); err != nil {
		return err
	}
	return d.pools.markReverting(r, mark)
}
