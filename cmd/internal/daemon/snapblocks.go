package daemon

import (
	"context"
	"errors"
	"fmt"

	"github.com/tandem-storage/tandem/datapath/backing"
	"github.com/tandem-storage/tandem/datapath/meta"
	"github.com/tandem-storage/tandem/replication"
	"github.com/tandem-storage/tandem/volume"
	"github.com/tandem-storage/tandem/volume/volumepb"
)

// ChangedBlocks implements volume.LocalBlocks.
func (p *pools) ChangedBlocks(q volume.BlocksQuery, f func(off, length int64) bool) error {
	r := p.replica(q.Volume, q.Replica)
	if r == nil {
		return fmt.Errorf("%w: replica %s is not served by this node", volume.ErrSnapshotNotHeld, q.Replica)
	}
	err := r.ChangedBlocks(meta.UUID(q.Base), meta.UUID(q.Snapshot), q.Offset, f)
	if errors.Is(err, backing.ErrNotFound) {
		return fmt.Errorf("%w: %w", volume.ErrSnapshotNotHeld, err)
	}
	return err
}

// replica is one that is served, nil if it is not here.
func (p *pools) replica(v replication.VolumeID, id replication.ReplicaID) *backing.Replica {
	p.mu.Lock()
	defer p.mu.Unlock()
	for l, r := range p.open {
		if l.Volume == v && l.Replica == id {
			return r
		}
	}
	return nil
}

// localBlocks finds who knows the blocks of snapshots here.
func (d *daemon) localBlocks() (volume.LocalBlocks, error) {
	if _, err := d.late.get(); err != nil {
		return nil, err
	}
	return d.pools, nil
}

// ListHeld implements volume.BlockHolders.
func (c *cutCoordinators) ListHeld(ctx context.Context, n replication.NodeID, q volume.BlocksQuery, f func([]*volumepb.BlockRange) error) error {
	cc, err := c.conn(n)
	if err != nil {
		return err
	}
	return volume.ListHeldOn(ctx, volumepb.NewSnapshotHoldersClient(cc), q, f)
}
