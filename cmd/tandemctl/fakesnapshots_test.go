package main

import (
	"context"

	"google.golang.org/grpc"

	"github.com/tandem-storage/tandem/volume/volumepb"
)

func heldSnapshot() *volumepb.Snapshot {
	return &volumepb.Snapshot{
		Id: "5a000000-0000-4000-8000-000000000001", Name: "before-upgrade", VolumeId: "11111111-1111-4111-8111-111111111111", VolumeName: "data",
		SizeBytes: 2 << 30, CreatedUnixMs: 1_760_000_000_000, State: volumepb.SnapshotState_SNAPSHOT_STATE_READY,
		Holders: []*volumepb.SnapshotHolder{
			{Replica: "r-a", Node: "a1", Domain: "primary", Pool: "pool-a", FreesBytes: 5 << 20}, {Replica: "r-b", Node: "b1", Domain: "dr-site", Pool: "pool-b", FreesUnknown: "node b1 does not answer"},
		},
	}
}

func (f *fakeDaemon) CreateSnapshot(_ context.Context, r *volumepb.CreateSnapshotRequest) (*volumepb.CreateSnapshotResponse, error) {
	f.note(r)
	return &volumepb.CreateSnapshotResponse{Snapshot: heldSnapshot()}, f.err
}

func (f *fakeDaemon) ListSnapshots(_ context.Context, r *volumepb.ListSnapshotsRequest) (*volumepb.ListSnapshotsResponse, error) {
	f.note(r)
	return &volumepb.ListSnapshotsResponse{Snapshots: []*volumepb.Snapshot{heldSnapshot()}}, f.err
}

func (f *fakeDaemon) GetSnapshot(_ context.Context, r *volumepb.GetSnapshotRequest) (*volumepb.GetSnapshotResponse, error) {
	f.note(r)
	return &volumepb.GetSnapshotResponse{Snapshot: heldSnapshot()}, f.err
}

func (f *fakeDaemon) DeleteSnapshot(_ context.Context, r *volumepb.DeleteSnapshotRequest) (*volumepb.DeleteSnapshotResponse, error) {
	f.note(r)
	return &volumepb.DeleteSnapshotResponse{}, f.err
}

func (f *fakeDaemon) RevertVolume(_ context.Context, r *volumepb.RevertVolumeRequest) (*volumepb.RevertVolumeResponse, error) {
	f.note(r)
	return &volumepb.RevertVolumeResponse{Before: "before-revert-5a000000", WrittenBytes: 3 << 20}, f.err
}

func (f *fakeDaemon) ListBlocks(r *volumepb.ListBlocksRequest, stream grpc.ServerStreamingServer[volumepb.ListBlocksResponse]) error {
	f.note(r)
	for _, off := range []uint64{0, 1 << 20} {
		if err := stream.Send(&volumepb.ListBlocksResponse{SizeBytes: 1 << 30, Ranges: []*volumepb.BlockRange{{Offset: off, Length: 8192}}}); err != nil {
			return err
		}
	}
	return f.err
}

func heldGroupSnapshot() *volumepb.GroupSnapshot {
	const id = "5b000000-0000-4000-8000-000000000001"
	data, log := heldSnapshot(), heldSnapshot()
	data.Name, data.GroupSnapshotId, data.Frozen, log.NotFrozen = "nightly.data", id, true, "no file system of it is mounted where it is attached"
	log.Id, log.Name, log.VolumeName, log.VolumeId, log.GroupSnapshotId = "5a000000-0000-4000-8000-000000000002", "nightly.log", "log", "22222222-2222-4222-8222-222222222222", id
	return &volumepb.GroupSnapshot{
		Id: id, Name: "nightly", Group: "db", CreatedUnixMs: 1_760_000_000_000, State: volumepb.SnapshotState_SNAPSHOT_STATE_READY, Snapshots: []*volumepb.Snapshot{data, log},
	}
}

func (f *fakeDaemon) CreateGroupSnapshot(_ context.Context, r *volumepb.CreateGroupSnapshotRequest) (*volumepb.CreateGroupSnapshotResponse, error) {
	f.note(r)
	return &volumepb.CreateGroupSnapshotResponse{GroupSnapshot: heldGroupSnapshot()}, f.err
}

func (f *fakeDaemon) ListGroupSnapshots(_ context.Context, r *volumepb.ListGroupSnapshotsRequest) (*volumepb.ListGroupSnapshotsResponse, error) {
	f.note(r)
	return &volumepb.ListGroupSnapshotsResponse{GroupSnapshots: []*volumepb.GroupSnapshot{heldGroupSnapshot()}}, f.err
}

func (f *fakeDaemon) GetGroupSnapshot(_ context.Context, r *volumepb.GetGroupSnapshotRequest) (*volumepb.GetGroupSnapshotResponse, error) {
	f.note(r)
	return &volumepb.GetGroupSnapshotResponse{GroupSnapshot: heldGroupSnapshot()}, f.err
}

func (f *fakeDaemon) DeleteGroupSnapshot(_ context.Context, r *volumepb.DeleteGroupSnapshotRequest) (*volumepb.DeleteGroupSnapshotResponse, error) {
	f.note(r)
	return &volumepb.DeleteGroupSnapshotResponse{}, f.err
}
