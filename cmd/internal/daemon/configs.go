package daemon

import (
	"context"
	"encoding/hex"
	"errors"
	"time"

	"github.com/tandem-storage/tandem/clusterdomain"
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
func (s configStore) Swap(ctx context.Context, prev *replication.Config, rev uint64, next *replication.Config, actor replication.DomainID) (uint64, error) {
	r, err := s.c.CompareAndSwapFrom(ctx, prev, kvdb.Revision(rev), next, actor)
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
	case errors.Is(err, volume.ErrDomainNotActive), errors.Is(err, volume.ErrReverting):
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

// sealed is what the replicas told of themselves at the takeover of a volume that is attached here, or about to be.
func (d *daemon) sealed(v replication.VolumeID) map[replication.ReplicaID]volume.Sealed {
	vol := d.volumes.Volume(v)
	if vol == nil {
		return nil
	}
	all := make(map[replication.ReplicaID]volume.Sealed)
	for _, s := range vol.Sealed() {
		all[s.Replica] = volume.Sealed{Lossy: s.Lossy, Applied: s.Applied}
	}
	return all
}

// verified puts on record that a verify of a volume that is attached here has come to its end.
func (d *daemon) verified(ctx context.Context, id replication.VolumeID, p *replvolume.Pass) error {
	cfg, _, err := d.configs.Load(ctx, id)
	if err != nil {
		return err
	}
	return d.configs.Verified(ctx, id, verified(cfg, p))
}

// verified tells of p, a verify of the volume of cfg.
func verified(cfg *replication.Config, p *replvolume.Pass) *clusterdomain.Verified {
	v := &clusterdomain.Verified{
		Began: p.Began.UTC().Truncate(time.Millisecond), Ended: p.Ended.UTC().Truncate(time.Millisecond), From: uint64(p.From), To: uint64(p.To),
		Bytes: p.Size, Healed: p.Healed, Recomputed: p.Recomputed, Lost: p.Lost, Differs: p.Differs,
	}
	if cfg.Coord != nil {
		v.Node = string(cfg.Coord.Node)
	}
	for _, s := range p.Sides {
		m := cfg.Members[s.Replica]
		v.Sides = append(v.Sides, clusterdomain.VerifiedSide{
			ID: s.Replica.String(), Node: string(m.Node), Domain: string(m.Domain), Digest: hex.EncodeToString(s.Digest),
		})
	}
	return v
}
