package volume

import (
	"context"
	"errors"
	"fmt"

	"go.uber.org/zap"

	"github.com/tandem-storage/tandem/clusterdomain"
	"github.com/tandem-storage/tandem/kvdb"
	"github.com/tandem-storage/tandem/replication"
	"github.com/tandem-storage/tandem/volume/volumepb"
)

// The size in a volume's record is the one that it is to have, the size in its configuration the one that it has: every in-sync replica is as large.
// They differ while a volume is detached that was resized; whoever attaches it next lets it grow.

// ResizeVolume implements Volumes.
func (s *Server) ResizeVolume(ctx context.Context, r *volumepb.ResizeVolumeRequest) (*volumepb.ResizeVolumeResponse, error) {
	e, err := s.entry(ctx, r.Volume)
	if err != nil {
		return nil, err
	}
	err = s.resize(ctx, e.ID, r.SizeBytes)
	if err != nil || e.Size != r.SizeBytes || e.Config == nil || e.Config.Size != r.SizeBytes { // nothing else is an order that changed something
		s.record(ctx, r, "volume resize", e, err)
	}
	if err != nil {
		return nil, fmt.Errorf("resize volume %s: %w", e.Name, err)
	}
	v, err := s.again(ctx, e)
	if err != nil {
		return nil, err
	}
	return &volumepb.ResizeVolumeResponse{Volume: v}, nil
}

// resize gives the volume the size where it is attached, and in its record.
func (s *Server) resize(ctx context.Context, id replication.VolumeID, size int64) error {
	for {
		e, err := s.c.Get(ctx, id)
		switch {
		case err != nil:
			return err
		case e.State != Ready || e.Config == nil:
			return e.notReady()
		case e.Rollback != nil:
			return fmt.Errorf("%w: %s", replication.ErrRolledBack, e.Rollback.describe(e.ID))
		case size%SizeUnit != 0 || size > MaxSize:
			return fmt.Errorf("%w: size is %d bytes, want a multiple of %d up to %d", ErrInvalid, size, SizeUnit, int64(MaxSize))
		case size < e.Config.Size || e.Config.Phase == replication.PhaseDetached && size < e.Size:
			return fmt.Errorf("%w: size is %d bytes, the volume has %d and never shrinks: what is behind would be lost", ErrInvalid, size, max(e.Size, e.Config.Size))
		}
		err = s.growWhereAttached(ctx, coordinator(e.Config).Node, id, size)
		if err != nil && !errors.Is(err, replication.ErrNotCoordinator) {
			return err
		}
		if err := s.c.setSize(ctx, id, size); err != nil {
			return err
		}
		if e, err = s.c.Get(ctx, id); err != nil {
			return err
		}
		if e.Config == nil || e.Config.Coord == nil || e.Config.Phase != replication.PhaseActive || e.Config.Size >= size {
			return nil
		}
		if !kvdb.Pause(ctx, casPauseMax) { // it was attached meanwhile, or has not come to serve
			return fmt.Errorf("%w: the volume is being attached on node %s, ask again: %w", ErrConflict, e.Config.Coord.Node, ctx.Err())
		}
	}
}

// growWhereAttached lets the volume grow on node, if that is one.
func (s *Server) growWhereAttached(ctx context.Context, node replication.NodeID, id replication.VolumeID, size int64) error {
	switch node {
	case "":
		return nil
	case s.o.Node:
		return s.o.Runtime.Grow(ctx, id, size)
	}
	info, ok := s.c.cluster.View().Node(string(node))
	if !ok {
		return fmt.Errorf("%w: it is attached on node %s, which nobody knows", ErrOtherNode, node)
	}
	return s.o.Switcher.growOn(ctx, info, id, size)
}

// growOn lets a volume grow that is attached on another node.
func (s *Switcher) growOn(ctx context.Context, n clusterdomain.Node, id replication.VolumeID, size int64) error {
	c, hangUp, err := s.Dial(n)
	if err != nil {
		return err
	}
	defer s.close(hangUp)
	if _, err := c.GrowVolume(ctx, &volumepb.GrowVolumeRequest{Volume: id.String(), SizeBytes: size}); err != nil {
		return fmt.Errorf("node %s, where it is attached: %w", n.Name, err)
	}
	return nil
}

// GrowVolume implements Handovers.
func (s *Switcher) GrowVolume(ctx context.Context, r *volumepb.GrowVolumeRequest) (*volumepb.GrowVolumeResponse, error) {
	id, err := replication.ParseVolumeID(r.Volume)
	if err != nil {
		return nil, fmt.Errorf("%w: volume: %w", ErrInvalid, err)
	}
	if err := s.Grow(ctx, id, r.SizeBytes); err != nil {
		return nil, err
	}
	return &volumepb.GrowVolumeResponse{}, nil
}

// catchUp lets a volume grow that was resized while nobody had it attached. It is attached all the same if that is not possible.
func (s *Server) catchUp(ctx context.Context, e *Entry) {
	if e.Config == nil || e.Size <= e.Config.Size {
		return
	}
	if err := s.o.Runtime.Grow(ctx, e.ID, e.Size); err != nil {
		s.o.Logger.Error("volume does not get the size that it was given while it was detached; make room and resize it again", zap.Stringer("volume-id", e.ID),
			zap.Int64("bytes", e.Size), zap.Int64("has-bytes", e.Config.Size), zap.Error(err))
	}
}

// setSize writes the size into the volume's record, unless it says as much.
func (c *Catalogue) setSize(ctx context.Context, id replication.VolumeID, size int64) error {
	for {
		s, cfg, guards, err := c.readForChange(ctx, id)
		done := false
		switch {
		case err != nil:
		case s.Size == size, size < cfg.Size: // in the latter case it has grown further since
			return nil
		default:
			s.Size = size
			done, err = c.change(ctx, guards, s, nil)
		}
		if done {
			return nil
		}
		if err == nil {
			err = ctx.Err()
		}
		if err != nil && (!errors.Is(err, kvdb.ErrUnavailable) || !kvdb.Pause(ctx, casPause)) {
			return err
		}
	}
}
