package daemon

import (
	"context"
	"errors"

	"github.com/tandem-storage/tandem/kvdb"
	"github.com/tandem-storage/tandem/replication"
	replvolume "github.com/tandem-storage/tandem/replication/volume"
	"github.com/tandem-storage/tandem/volume"
)

// configStore shows the catalogue's configurations to the replication engine.
type configStore struct{ c *volume.Configs }

// Load implements replvolume.Configs.
func (s configStore) Load(ctx context.Context, v replication.VolumeID) (*replication.Config, uint64, error) {
	cfg, rev, err := s.c.Load(ctx, v)
	return cfg, uint64(rev), err
}

// Swap implements replvolume.Configs.
func (s configStore) Swap(ctx context.Context, rev uint64, next *replication.Config, actor replication.DomainID) (uint64, error) {
	r, err := s.c.CompareAndSwap(ctx, kvdb.Revision(rev), next, actor)
	switch {
	case err == nil:
		return uint64(r), nil
	case errors.Is(err, replication.ErrVolumeNotFound):
		return 0, err
	case errors.Is(err, volume.ErrConflict), errors.Is(err, volume.ErrDeleting):
		return 0, errors.Join(replvolume.ErrConflict, err)
	case errors.Is(err, replication.ErrRolledBack):
		return 0, err
	case errors.Is(err, volume.ErrIncarnation):
		return 0, errors.Join(replication.ErrRolledBack, err)
	case errors.Is(err, volume.ErrDomainNotActive):
		return 0, errors.Join(replvolume.ErrRefused, err)
	case errors.Is(err, volume.ErrNotSent):
		return 0, errors.Join(replvolume.ErrNotSent, err)
	case errors.Is(err, volume.ErrInvalidChange):
		return 0, errors.Join(replvolume.ErrInvalidChange, err)
	default:
		return 0, err // unknown
	}
}

// resynced is how much the resync of a replica that is under way goes through, in bytes.
func (d *daemon) resynced(v replication.VolumeID, r replication.ReplicaID) int64 {
	vol := d.volumes.Volume(v)
	if vol == nil {
		return 0
	}
	if p := vol.Status().Resync; p != nil && p.Replica == r {
		return int64(p.Total) * replication.ResyncBlock
	}
	return 0
}
