package volume

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.uber.org/zap"

	"github.com/tandem-storage/tandem/audit"
	"github.com/tandem-storage/tandem/replication"
)

// Borrowed is a volume that is attached on this node for nobody else.
type Borrowed interface {
	// InForce is the configuration in force, nil when the volume is not served here any more.
	InForce() *replication.Config
	// Snapshot has every in-sync replica take a snapshot, as SnapshotTaker does.
	Snapshot(ctx context.Context, id replication.SnapshotID) ([]replication.ReplicaID, error)
	// PutBack writes to the volume what this node's replica has in a snapshot, wherever that differs from base, a later one, and returns when all is stable on every in-sync replica.
	// before is called before anything is written, and again and again later. ErrSnapshotNotHeld: that replica does not hold them.
	PutBack(ctx context.Context, id, base replication.SnapshotID, before func() error) (written int64, err error)
}

// Borrower attaches volumes on this node.
type Borrower interface {
	// Borrow attaches v here without a device, by Configs.Unshown, has it used, and detaches it. It is nobody else's meanwhile: nobody on this node attaches or detaches it, or takes snapshots of it. ErrAttached: somebody on this node has it.
	// from is the coordinator that it is taken from, which has ended; nil: it is detached.
	Borrow(ctx context.Context, v replication.VolumeID, from *replication.Coord, use func(b Borrowed) error) error
}

// Reverter carries reverts out on this node.
type Reverter struct {
	Catalogue *Catalogue
	Node      replication.NodeID
	Borrower  Borrower
	Marker    ReplicaMarker
	Logger    *zap.Logger
}

// RevertHere carries revert id of v out, or what is left of it. The order of its steps is what a crash between any two of them is survived by (docs/design/0040-revert.md):
// whoever comes next does all of them again, but for the snapshot of what was before, which is taken once.
func (r *Reverter) RevertHere(ctx context.Context, v replication.VolumeID, id replication.UUID) (written int64, err error) {
	c := r.Catalogue
	if _, _, err := c.reverting(ctx, v, id); err != nil {
		return 0, err
	}
	if err := c.cluster.Refresh(ctx); err != nil {
		return 0, err
	}
	e, err := c.Get(ctx, v)
	if err != nil {
		return 0, err
	}
	if err := checkAttach(e.Config, c.cluster.View(), r.Node); err != nil {
		return 0, err
	}
	began := time.Now()
	err = r.Borrower.Borrow(ctx, v, e.Config.Coord, func(b Borrowed) error {
		_, s, err := c.reverting(ctx, v, id) // another one may have come first
		if err != nil {
			return err
		}
		now := s.Reverting
		if now.Before == (replication.SnapshotID{}) {
			if now, err = r.keepBefore(ctx, b, v, now); err != nil {
				return err
			}
		}
		m := marks{c: c, to: r.Marker, v: v, r: *now, told: map[replication.ReplicaID]bool{}}
		if written, err = b.PutBack(ctx, now.Snapshot, now.Before, func() error { return m.all(ctx, b.InForce, false) }); err != nil {
			return err
		}
		return m.all(ctx, b.InForce, true)
	})
	if err != nil {
		return written, err
	}
	err = c.changeReverting(ctx, v, id, func(s *Spec) audit.Record {
		rec := audit.Record{Verb: "volume revert", Outcome: fmt.Sprintf("done on node %s: %s has what snapshot %s has, and snapshot %s what it had before", r.Node, s.Name, s.Reverting.Name, s.Reverting.BeforeName)}
		s.Reverting = nil
		return rec
	})
	if err == nil {
		r.Logger.Info("volume put back to a snapshot", zap.Stringer("volume-id", v), zap.Stringer("revert", id), zap.Int64("written", written), zap.Duration("took", time.Since(began)))
	}
	return written, err
}

// keepBefore takes the snapshot of what the volume has, which nobody else can change, and notes it. Nothing has been put back before it is noted.
func (r *Reverter) keepBefore(ctx context.Context, b Borrowed, v replication.VolumeID, now *Reverting) (*Reverting, error) {
	c := r.Catalogue
	taken, err := c.createSnapshot(ctx, takerOf{b}, now.BeforeName, v, false, "", now.ID)
	if errors.Is(err, ErrNotReady) { // of an attempt that ended in the middle: whoever began it is not there any more, or finds that it was given up
		old, lookErr := c.snapshotByName(ctx, now.BeforeName)
		if lookErr == nil {
			_, lookErr = c.dropSnapshot(ctx, old.ID, Creating, late)
		}
		if lookErr == nil {
			taken, err = c.createSnapshot(ctx, takerOf{b}, now.BeforeName, v, false, "", now.ID)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("keep what the volume has: %w", err)
	}
	next := now
	err = c.changeReverting(ctx, v, now.ID, func(s *Spec) audit.Record {
		if s.Reverting.Before == (replication.SnapshotID{}) {
			s.Reverting.Before = taken.ID
		}
		next = s.Reverting
		return audit.Record{}
	})
	return next, err
}

// takerOf takes snapshots of one volume that is attached here.
type takerOf struct{ b Borrowed }

var _ SnapshotTaker = takerOf{}

// Take implements SnapshotTaker.
func (t takerOf) Take(ctx context.Context, _ replication.NodeID, _ replication.VolumeID, id replication.SnapshotID, attach bool) ([]replication.ReplicaID, error) {
	if attach {
		return nil, fmt.Errorf("%w: the volume is not attached any more", errors.Join(replication.ErrNotCut, replication.ErrNotCoordinator))
	}
	return t.b.Snapshot(ctx, id)
}

// Freeze implements SnapshotTaker: there is no device, and no file system is mounted.
func (takerOf) Freeze(context.Context, replication.NodeID, replication.VolumeID, replication.UUID, time.Duration) (bool, error) {
	return false, nil
}

// Thaw implements SnapshotTaker.
func (takerOf) Thaw(context.Context, replication.NodeID, replication.VolumeID, replication.UUID) error {
	return nil
}
