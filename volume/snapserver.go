package volume

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"github.com/tandem-storage/tandem/replication"
	"github.com/tandem-storage/tandem/volume/volumepb"
)

// SnapshotServer implements the gRPC service Snapshots.
type SnapshotServer struct {
	volumepb.UnimplementedSnapshotsServer
	c     *Catalogue
	taker SnapshotTaker
	space SnapshotSpace
	run   RevertRunner
	ends  *Switcher
}

var _ volumepb.SnapshotsServer = (*SnapshotServer)(nil)

// NewSnapshotServer returns the service over c. ends ends attachments that nobody serves.
func NewSnapshotServer(c *Catalogue, taker SnapshotTaker, space SnapshotSpace, run RevertRunner, ends *Switcher) *SnapshotServer {
	return &SnapshotServer{c: c, taker: taker, space: space, run: run, ends: ends}
}

// CreateSnapshot implements Snapshots.
func (s *SnapshotServer) CreateSnapshot(ctx context.Context, r *volumepb.CreateSnapshotRequest) (*volumepb.CreateSnapshotResponse, error) {
	v, err := s.c.Resolve(ctx, r.Volume)
	if err != nil {
		return nil, fmt.Errorf("snapshot of volume %s: %w", r.Volume, err)
	}
	ctx = by(ctx, r)
	var rec *SnapshotRecord
	err = s.ends.orEndUnserved(ctx, []replication.VolumeID{v}, func() (err error) {
		rec, err = s.c.CreateSnapshot(ctx, s.taker, r.Name, v, !r.NoFreeze)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("snapshot %s of volume %s: %w", r.Name, r.Volume, err)
	}
	return &volumepb.CreateSnapshotResponse{Snapshot: snapshotPB(rec)}, nil
}

// ListSnapshots implements Snapshots.
func (s *SnapshotServer) ListSnapshots(ctx context.Context, r *volumepb.ListSnapshotsRequest) (*volumepb.ListSnapshotsResponse, error) {
	var of replication.VolumeID
	if r.Volume != "" {
		var err error
		if of, err = s.c.Resolve(ctx, r.Volume); err != nil {
			return nil, err
		}
	}
	all, err := s.c.Snapshots(ctx)
	if err != nil {
		return nil, err
	}
	resp := &volumepb.ListSnapshotsResponse{}
	var asked []*SnapshotRecord
	for _, rec := range all {
		if r.Volume == "" || rec.Volume == of {
			asked, resp.Snapshots = append(asked, rec), append(resp.Snapshots, snapshotPB(rec))
		}
	}
	if r.Space {
		measureAll(ctx, s.space, asked, resp.Snapshots)
	}
	return resp, nil
}

// GetSnapshot implements Snapshots.
func (s *SnapshotServer) GetSnapshot(ctx context.Context, r *volumepb.GetSnapshotRequest) (*volumepb.GetSnapshotResponse, error) {
	rec, err := s.c.Snapshot(ctx, r.Snapshot)
	if err != nil {
		return nil, err
	}
	m := snapshotPB(rec)
	if r.Space && rec.State == Ready {
		measure(ctx, s.space, rec, m)
	}
	return &volumepb.GetSnapshotResponse{Snapshot: m}, nil
}

// DeleteSnapshot implements Snapshots.
func (s *SnapshotServer) DeleteSnapshot(ctx context.Context, r *volumepb.DeleteSnapshotRequest) (*volumepb.DeleteSnapshotResponse, error) {
	rec, err := s.c.Snapshot(ctx, r.Snapshot)
	switch {
	case isSnapshotNotFound(err):
		return &volumepb.DeleteSnapshotResponse{}, nil
	case err == nil:
		err = s.c.DeleteSnapshot(by(ctx, r), rec.ID)
	}
	if err != nil {
		return nil, fmt.Errorf("delete snapshot %s: %w", r.Snapshot, err)
	}
	return &volumepb.DeleteSnapshotResponse{}, nil
}

// RevertVolume implements Snapshots.
func (s *SnapshotServer) RevertVolume(ctx context.Context, r *volumepb.RevertVolumeRequest) (*volumepb.RevertVolumeResponse, error) {
	if r.Abandon != (r.Snapshot == "") {
		return nil, fmt.Errorf("%w: volume %s: name the snapshot, or abandon a revert that was begun", ErrInvalid, r.Volume)
	}
	v, err := s.c.Resolve(ctx, r.Volume)
	if err != nil {
		return nil, fmt.Errorf("revert volume %s: %w", r.Volume, err)
	}
	var done *Reverted
	if ctx = by(ctx, r); r.Abandon {
		done, err = s.c.AbandonRevert(ctx, s.run, v)
	} else {
		done, err = s.c.Revert(ctx, s.run, v, r.Snapshot)
	}
	if err != nil {
		return nil, fmt.Errorf("revert volume %s: %w", r.Volume, err)
	}
	return &volumepb.RevertVolumeResponse{Before: done.Before, WrittenBytes: uint64(done.Written)}, nil
}

var snapshotStates = map[State]volumepb.SnapshotState{
	Creating: volumepb.SnapshotState_SNAPSHOT_STATE_CREATING,
	Ready:    volumepb.SnapshotState_SNAPSHOT_STATE_READY,
	Deleting: volumepb.SnapshotState_SNAPSHOT_STATE_DELETING,
}

func snapshotPB(s *SnapshotRecord) *volumepb.Snapshot {
	m := &volumepb.Snapshot{
		Id: s.ID.String(), Name: s.Name, VolumeId: s.Volume.String(), VolumeName: s.VolumeName, SizeBytes: uint64(s.Size),
		CreatedUnixMs: s.Created.UnixMilli(), State: snapshotStates[s.State],
		Frozen: s.Frozen, NotFrozen: s.NotFrozen,
	}
	if !isNil(s.Group) {
		m.GroupSnapshotId = s.Group.String()
	}
	for _, p := range s.Holders {
		m.Holders = append(m.Holders, &volumepb.SnapshotHolder{Replica: p.Replica.String(), Node: string(p.Node), Domain: string(p.Domain), Pool: p.Pool})
	}
	slices.SortFunc(m.Holders, func(a, b *volumepb.SnapshotHolder) int {
		return cmp.Or(cmp.Compare(a.Domain, b.Domain), cmp.Compare(a.Node, b.Node))
	})
	return m
}

// LocalTaker has snapshots taken of volumes that are attached on this node, or attaches them for that.
type LocalTaker interface {
	LocalFreezer
	// FreesHere is what the deletion of a snapshot of a replica on this node would give back, bytes.
	FreesHere(ctx context.Context, r LocalReplica, id replication.SnapshotID) (int64, error)
	TakeSnapshot(ctx context.Context, v replication.VolumeID, id replication.SnapshotID, attach bool) ([]replication.ReplicaID, error)
	// TakeHeld takes one while op holds the writes of v here. ctx has a deadline. Errors: replication.ErrNotCoordinator; replication.ErrNotCut, also: op does not hold them.
	TakeHeld(ctx context.Context, v replication.VolumeID, id replication.SnapshotID, op replication.UUID) ([]replication.ReplicaID, error)
	// RevertHere carries a revert out, or what is left of it (Reverter).
	RevertHere(ctx context.Context, v replication.VolumeID, id replication.UUID) (written int64, err error)
	// Lend attaches v here without a device, if it is not attached here, has it used, and detaches it again. No other attach or detach goes on beside it.
	Lend(ctx context.Context, v replication.VolumeID, use func() error) error
}

// SnapshotCoordinatorsServer implements the gRPC service SnapshotCoordinators, for the other nodes.
type SnapshotCoordinatorsServer struct {
	volumepb.UnimplementedSnapshotCoordinatorsServer
	find func() (LocalTaker, error)
}

var _ volumepb.SnapshotCoordinatorsServer = (*SnapshotCoordinatorsServer)(nil)

// NewSnapshotCoordinatorsServer returns the service of what find returns.
func NewSnapshotCoordinatorsServer(find func() (LocalTaker, error)) *SnapshotCoordinatorsServer {
	return &SnapshotCoordinatorsServer{find: find}
}

// TakeSnapshot implements SnapshotCoordinators.
func (s *SnapshotCoordinatorsServer) TakeSnapshot(ctx context.Context, r *volumepb.TakeSnapshotRequest) (*volumepb.TakeSnapshotResponse, error) {
	v, err := parseIdentifier(r.VolumeId)
	if err != nil {
		return nil, err
	}
	id, err := parseIdentifier(r.SnapshotId)
	if err != nil {
		return nil, err
	}
	t, err := s.find()
	if err != nil {
		return nil, err
	}
	var holders []replication.ReplicaID
	if len(r.Op) == 0 {
		holders, err = t.TakeSnapshot(ctx, replication.VolumeID(v), replication.SnapshotID(id), r.Attach)
	} else {
		op, badOp := parseIdentifier(r.Op)
		if badOp != nil {
			return nil, badOp
		}
		holders, err = t.TakeHeld(ctx, replication.VolumeID(v), replication.SnapshotID(id), op)
	}
	resp := &volumepb.TakeSnapshotResponse{}
	for _, h := range holders {
		resp.Holders = append(resp.Holders, h[:])
	}
	return resp, err
}

// RunRevert implements SnapshotCoordinators.
func (s *SnapshotCoordinatorsServer) RunRevert(ctx context.Context, r *volumepb.RunRevertRequest) (*volumepb.RunRevertResponse, error) {
	v, err := parseIdentifier(r.VolumeId)
	if err != nil {
		return nil, err
	}
	id, err := parseIdentifier(r.RevertId)
	if err != nil {
		return nil, err
	}
	t, err := s.find()
	if err != nil {
		return nil, err
	}
	written, err := t.RevertHere(ctx, replication.VolumeID(v), id)
	return &volumepb.RunRevertResponse{WrittenBytes: uint64(written)}, err
}

// RunRevertOn asks another node for RevertHere.
func RunRevertOn(ctx context.Context, c volumepb.SnapshotCoordinatorsClient, v replication.VolumeID, id replication.UUID) (written int64, err error) {
	resp, err := c.RunRevert(ctx, &volumepb.RunRevertRequest{VolumeId: v[:], RevertId: id[:]})
	return int64(resp.GetWrittenBytes()), err
}

// TakeSnapshotOn asks another node for TakeSnapshot.
func TakeSnapshotOn(ctx context.Context, c volumepb.SnapshotCoordinatorsClient, v replication.VolumeID, id replication.SnapshotID, attach bool) ([]replication.ReplicaID, error) {
	return takeOn(ctx, c, &volumepb.TakeSnapshotRequest{VolumeId: v[:], SnapshotId: id[:], Attach: attach})
}

// TakeHeldOn asks another node for TakeHeld.
func TakeHeldOn(ctx context.Context, c volumepb.SnapshotCoordinatorsClient, v replication.VolumeID, id replication.SnapshotID, op replication.UUID) ([]replication.ReplicaID, error) {
	return takeOn(ctx, c, &volumepb.TakeSnapshotRequest{VolumeId: v[:], SnapshotId: id[:], Op: op[:]})
}

func takeOn(ctx context.Context, c volumepb.SnapshotCoordinatorsClient, q *volumepb.TakeSnapshotRequest) ([]replication.ReplicaID, error) {
	r, err := c.TakeSnapshot(ctx, q)
	if err != nil {
		return nil, err
	}
	var holders []replication.ReplicaID
	for _, b := range r.Holders {
		h, err := parseIdentifier(b)
		if err != nil {
			return nil, err
		}
		holders = append(holders, replication.ReplicaID(h))
	}
	return holders, nil
}
