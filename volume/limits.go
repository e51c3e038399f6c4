package volume

import (
	"context"
	"fmt"

	"github.com/tandem-storage/tandem/audit"
	"github.com/tandem-storage/tandem/kvdb"
	"github.com/tandem-storage/tandem/replication"
	"github.com/tandem-storage/tandem/volume/volumepb"
)

// Limits bound what the consumers of a volume get of it in a second, on the node where it is attached. 0 is no bound.
type Limits struct {
	IOPS      int64 `json:"iops,omitempty"`
	Bandwidth int64 `json:"bandwidth,omitempty"` // bytes
}

// Less than this would look like a fault: of a request of 1 MiB, or of ten that wait for each other, none takes longer than a second.
const (
	MinIOPS      = 10
	MinBandwidth = 1 << 20
)

func (l Limits) validate() error {
	if l.IOPS != 0 && l.IOPS < MinIOPS {
		return fmt.Errorf("%w: %d IOPS, want 0 for no limit, or at least %d", ErrInvalid, l.IOPS, MinIOPS)
	}
	if l.Bandwidth != 0 && l.Bandwidth < MinBandwidth {
		return fmt.Errorf("%w: a bandwidth of %d bytes per second, want 0 for no limit, or at least %d", ErrInvalid, l.Bandwidth, MinBandwidth)
	}
	return nil
}

// limits are the limits in force.
func (s *Spec) limits() Limits {
	if s.Limited != nil {
		return *s.Limited
	}
	return s.Limits
}

// Limit changes the limits of a volume. The node where it is attached follows within moments. Errors: ErrInvalid, ErrDeleting,
// replication.ErrVolumeNotFound, those of the store.
func (c *Catalogue) Limit(ctx context.Context, id replication.VolumeID, l Limits) error {
	if err := l.validate(); err != nil {
		return err
	}
	return c.amend(ctx, id, func(s *Spec) *audit.Record {
		if s.limits() == l {
			return nil
		}
		s.Limited = &l
		return &audit.Record{Verb: "volume limit", Outcome: fmt.Sprintf("%d IOPS, %d bytes per second; 0 is no limit", l.IOPS, l.Bandwidth)}
	})
}

// amend changes the spec of a volume as f says, which may be called more than once, and returns what is to stand in the audit trail of that, or nil: there is nothing to change. Errors: ErrDeleting,
// replication.ErrVolumeNotFound, those of the store.
func (c *Catalogue) amend(ctx context.Context, id replication.VolumeID, f func(s *Spec) *audit.Record) error {
	for {
		look, err := c.store.Txn(ctx, kvdb.Txn{Then: []kvdb.Op{{Kind: kvdb.OpGet, Key: c.keys.spec(id)}}})
		switch {
		case err != nil:
			return err
		case look.Gets[0] == nil:
			return notFound(id)
		}
		s, err := parseSpec(*look.Gets[0])
		switch {
		case err != nil:
			return err
		case s.State == Deleting:
			return ErrDeleting
		}
		rec := f(&s)
		if rec == nil {
			return nil
		}
		record, err := put(c.keys.spec(id), s)
		if err != nil {
			return err
		}
		rec.Object = object(id)
		entry, err := c.trail.Stage(ctx, *rec)
		if err != nil {
			return err
		}
		t := kvdb.Txn{
			If:   []kvdb.Cmp{{Key: c.keys.spec(id), Target: kvdb.CmpMod, Revision: look.Gets[0].Mod}, c.configs.guard()},
			Then: []kvdb.Op{record},
		}
		entry.AddTo(&t)
		res, err := c.store.Txn(ctx, t)
		if err != nil || res.Succeeded {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
}

// LimitVolume implements Volumes.
func (s *Server) LimitVolume(ctx context.Context, r *volumepb.LimitVolumeRequest) (*volumepb.LimitVolumeResponse, error) {
	e, err := s.entry(ctx, r.Volume)
	if err != nil {
		return nil, err
	}
	if err := s.c.Limit(by(ctx, r), e.ID, parseLimits(r.Limits)); err != nil {
		return nil, fmt.Errorf("limit volume %s: %w", e.Name, err)
	}
	v, err := s.again(ctx, e)
	if err != nil {
		return nil, err
	}
	return &volumepb.LimitVolumeResponse{Volume: v}, nil
}

func parseLimits(l *volumepb.Limits) Limits {
	return Limits{IOPS: l.GetIops(), Bandwidth: l.GetBandwidthBytesPerSecond()}
}

func limitsPB(l Limits) *volumepb.Limits {
	if l == (Limits{}) {
		return nil
	}
	return &volumepb.Limits{Iops: l.IOPS, BandwidthBytesPerSecond: l.Bandwidth}
}
