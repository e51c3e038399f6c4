package volume

import (
	"cmp"
	"context"
	"fmt"

	"github.com/tandem-storage/tandem/audit"
	"github.com/tandem-storage/tandem/replication"
	"github.com/tandem-storage/tandem/volume/volumepb"
)

func badPriority(p replication.ResyncPriority) error {
	return fmt.Errorf("%w: resync priority %q, want low, normal or high", ErrInvalid, string(p))
}

// resyncPriority is the priority in force.
func (s *Spec) resyncPriority() replication.ResyncPriority {
	if s.Prioritised != nil {
		return *s.Prioritised
	}
	return s.ResyncPriority
}

// Prioritise changes how the resyncs of a volume stand to those of others. All nodes follow within moments, with resyncs that run too. Errors: ErrInvalid, ErrDeleting,
// replication.ErrVolumeNotFound, those of the store.
func (c *Catalogue) Prioritise(ctx context.Context, id replication.VolumeID, p replication.ResyncPriority) error {
	if !p.Valid() {
		return badPriority(p)
	}
	return c.amend(ctx, id, func(s *Spec) *audit.Record {
		if s.resyncPriority() == p {
			return nil
		}
		s.Prioritised = &p
		return &audit.Record{Verb: "volume resync-priority", Outcome: cmp.Or(string(p), "normal")}
	})
}

// tellPriorities tells the priorities of all volumes.
func (r *Reconciler) tellPriorities(es map[replication.VolumeID]*Entry) {
	if r.o.Priorities == nil {
		return
	}
	in := map[replication.VolumeID]replication.ResyncPriority{}
	for id, e := range es {
		if p := e.resyncPriority(); p != replication.ResyncNormal {
			in[id] = p
		}
	}
	r.o.Priorities(in)
}

// PrioritiseVolume implements Volumes.
func (s *Server) PrioritiseVolume(ctx context.Context, r *volumepb.PrioritiseVolumeRequest) (*volumepb.PrioritiseVolumeResponse, error) {
	p, err := parseResyncPriority(r.ResyncPriority)
	if err != nil {
		return nil, err
	}
	e, err := s.entry(ctx, r.Volume)
	if err != nil {
		return nil, err
	}
	if err := s.c.Prioritise(by(ctx, r), e.ID, p); err != nil {
		return nil, fmt.Errorf("set the resync priority of volume %s: %w", e.Name, err)
	}
	v, err := s.again(ctx, e)
	if err != nil {
		return nil, err
	}
	return &volumepb.PrioritiseVolumeResponse{Volume: v}, nil
}

func parseResyncPriority(p volumepb.ResyncPriority) (replication.ResyncPriority, error) {
	switch p {
	case volumepb.ResyncPriority_RESYNC_PRIORITY_UNSPECIFIED, volumepb.ResyncPriority_RESYNC_PRIORITY_NORMAL:
		return replication.ResyncNormal, nil
	case volumepb.ResyncPriority_RESYNC_PRIORITY_LOW:
		return replication.ResyncLow, nil
	case volumepb.ResyncPriority_RESYNC_PRIORITY_HIGH:
		return replication.ResyncHigh, nil
	default:
		return "", fmt.Errorf("%w: resync priority %d", ErrInvalid, p)
	}
}

func resyncPriorityPB(p replication.ResyncPriority) volumepb.ResyncPriority {
	switch p {
	case replication.ResyncLow:
		return volumepb.ResyncPriority_RESYNC_PRIORITY_LOW
	case replication.ResyncHigh:
		return volumepb.ResyncPriority_RESYNC_PRIORITY_HIGH
	default:
		return volumepb.ResyncPriority_RESYNC_PRIORITY_NORMAL
	}
}
