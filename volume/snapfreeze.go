package volume

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/tandem-storage/tandem/replication"
	"github.com/tandem-storage/tandem/volume/volumepb"
)

// Freezer freezes the file systems of volumes where they are mounted.
type Freezer interface {
	// Freeze writes out what the file system of v has in memory on node n, and lets nobody write to it until Thaw, for at most hold. here is false if none is mounted there. On an error nothing is
	// frozen, or not for longer than it takes to thaw it again.
	Freeze(ctx context.Context, n replication.NodeID, v replication.VolumeID, op replication.UUID, hold time.Duration) (here bool, err error)
	// Thaw ends what Freeze began for op. An error: it was perhaps not frozen any more.
	Thaw(ctx context.Context, n replication.NodeID, v replication.VolumeID, op replication.UUID) error
}

// Bounds of a freeze: how long it is waited for, how long it lasts if nobody ends it, which is longer than any cut, and how long the end of one is waited for.
const (
	freezeWait = 10 * time.Second
	freezeHold = 25 * time.Second
	thawWait   = 5 * time.Second
)

// Why a file system was not frozen that could not be: not an error.
const (
	notMounted  = "no file system of it is mounted where it is attached"
	notAttached = "it was detached: it has what its last consumer left"
)

// freeze freezes the file systems of the volumes at nodes; it comes before writes are held, because what is in memory has to be written. thaw, to be called once, thaws what was frozen and returns for each volume why it was not
// frozen until then, "" if it was.
func freeze(ctx context.Context, f Freezer, op replication.UUID, at map[replication.VolumeID]replication.NodeID) (thaw func() map[replication.VolumeID]string) {
	var mu sync.Mutex
	why := map[replication.VolumeID]string{}
	all := func(ctx context.Context, one func(ctx context.Context, n replication.NodeID, v replication.VolumeID) string) {
		var wg sync.WaitGroup
		for v, n := range at {
			wg.Go(func() {
				reason := one(ctx, n, v)
				mu.Lock()
				defer mu.Unlock()
				why[v] = reason
			})
		}
		wg.Wait()
	}
	waited, cancel := context.WithTimeout(ctx, freezeWait)
	defer cancel()
	all(waited, func(ctx context.Context, n replication.NodeID, v replication.VolumeID) string {
		here, err := f.Freeze(ctx, n, v, op, freezeHold)
		switch {
		case err != nil:
			return err.Error()
		case !here:
			return notMounted
		}
		return ""
	})
	return func() map[replication.VolumeID]string {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), thawWait)
		defer cancel()
		frozen := why
		why = map[replication.VolumeID]string{}
		all(ctx, func(ctx context.Context, n replication.NodeID, v replication.VolumeID) string {
			if frozen[v] == notMounted {
				return notMounted
			}
			err := f.Thaw(ctx, n, v, op) // also what could not be frozen in time: it may be by now
			switch {
			case frozen[v] != "":
				return frozen[v]
			case err != nil:
				return err.Error()
			}
			return ""
		})
		return why
	}
}

// LocalFreezer freezes file systems on this node.
type LocalFreezer interface {
	FreezeHere(ctx context.Context, v replication.VolumeID, op replication.UUID, hold time.Duration) (here bool, err error)
	ThawHere(v replication.VolumeID, op replication.UUID) error
}

// FreezeVolume implements SnapshotCoordinators.
func (s *SnapshotCoordinatorsServer) FreezeVolume(ctx context.Context, r *volumepb.FreezeVolumeRequest) (*volumepb.FreezeVolumeResponse, error) {
	v, op, t, err := s.freezer(r.VolumeId, r.Op)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, freezeWait)
	defer cancel()
	here, err := t.FreezeHere(ctx, v, op, min(time.Duration(min(r.HoldMs, 30_000))*time.Millisecond, 30*time.Second))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNotFrozen, err)
	}
	return &volumepb.FreezeVolumeResponse{Mounted: here}, nil
}

// ThawVolume implements SnapshotCoordinators.
func (s *SnapshotCoordinatorsServer) ThawVolume(_ context.Context, r *volumepb.ThawVolumeRequest) (*volumepb.ThawVolumeResponse, error) {
	v, op, t, err := s.freezer(r.VolumeId, r.Op)
	if err == nil {
		err = t.ThawHere(v, op)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNotFrozen, err)
	}
	return &volumepb.ThawVolumeResponse{}, nil
}

func (s *SnapshotCoordinatorsServer) freezer(volume, op []byte) (replication.VolumeID, replication.UUID, LocalTaker, error) {
	v, badVolume := parseIdentifier(volume)
	o, badOp := parseIdentifier(op)
	if err := errors.Join(badVolume, badOp); err != nil {
		return replication.VolumeID{}, replication.UUID{}, nil, err
	}
	t, err := s.find()
	return replication.VolumeID(v), o, t, err
}

// FreezeOn asks another node for Freeze.
func FreezeOn(ctx context.Context, c volumepb.SnapshotCoordinatorsClient, v replication.VolumeID, op replication.UUID, hold time.Duration) (here bool, err error) {
	r, err := c.FreezeVolume(ctx, &volumepb.FreezeVolumeRequest{VolumeId: v[:], Op: op[:], HoldMs: uint64(hold.Milliseconds())})
	return r.GetMounted(), err
}

// ThawOn asks another node for Thaw.
func ThawOn(ctx context.Context, c volumepb.SnapshotCoordinatorsClient, v replication.VolumeID, op replication.UUID) error {
	_, err := c.ThawVolume(ctx, &volumepb.ThawVolumeRequest{VolumeId: v[:], Op: op[:]})
	return err
}
