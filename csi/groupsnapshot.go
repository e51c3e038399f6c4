package csi

import (
	"context"
	"slices"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/tandem-storage/tandem/volume/volumepb"
)

// toldOfGroupSnapshots are what the external snapshotter adds to the parameters of a VolumeGroupSnapshotClass.
var toldOfGroupSnapshots = []string{
	"csi.storage.k8s.io/volumegroupsnapshot/name", "csi.storage.k8s.io/volumegroupsnapshot/namespace", "csi.storage.k8s.io/volumegroupsnapshotcontent/name",
}

// GroupControllerGetCapabilities implements GroupController.
func (d *Driver) GroupControllerGetCapabilities(context.Context, *spec.GroupControllerGetCapabilitiesRequest) (*spec.GroupControllerGetCapabilitiesResponse, error) {
	return &spec.GroupControllerGetCapabilitiesResponse{Capabilities: []*spec.GroupControllerServiceCapability{{
		Type: &spec.GroupControllerServiceCapability_Rpc{Rpc: &spec.GroupControllerServiceCapability_RPC{
			Type: spec.GroupControllerServiceCapability_RPC_CREATE_DELETE_GET_VOLUME_GROUP_SNAPSHOT,
		}},
	}}}, nil
}

// groupSnapshotOf makes g a message of the specification.
func groupSnapshotOf(g *volumepb.GroupSnapshot) *spec.VolumeGroupSnapshot {
	m := &spec.VolumeGroupSnapshot{
		GroupSnapshotId: g.GetId(), ReadyToUse: g.GetState() == volumepb.SnapshotState_SNAPSHOT_STATE_READY,
		CreationTime: &timestamppb.Timestamp{Seconds: g.GetCreatedUnixMs() / 1000, Nanos: int32(g.GetCreatedUnixMs()%1000) * 1e6},
	}
	for _, s := range g.GetSnapshots() {
		m.Snapshots = append(m.Snapshots, snapshotOf(s))
	}
	return m
}

// CreateVolumeGroupSnapshot implements GroupController.
func (d *Driver) CreateVolumeGroupSnapshot(ctx context.Context, r *spec.CreateVolumeGroupSnapshotRequest) (*spec.CreateVolumeGroupSnapshotResponse, error) {
	if r.GetName() == "" {
		return nil, invalid("name is missing")
	}
	if len(r.GetSourceVolumeIds()) == 0 {
		return nil, invalid("source_volume_ids are missing")
	}
	frozen, err := parseFreeze(r.GetParameters(), toldOfGroupSnapshots)
	if err != nil {
		return nil, err
	}
	want := &volumepb.CreateGroupSnapshotRequest{Name: volumeName(r.GetName()), NoFreeze: !frozen, Actor: actor}
	for _, handle := range r.GetSourceVolumeIds() {
		id, err := ParseVolumeID(handle)
		if err != nil {
			return nil, err
		}
		if slices.Contains(want.Volumes, id.String()) {
			return nil, invalid("source_volume_ids: volume %s is there twice", id)
		}
		want.Volumes = append(want.Volumes, id.String())
	}
	leave, err := d.pass("group-snapshot/"+want.Name, "CreateVolumeGroupSnapshot")
	if err != nil {
		return nil, err
	}
	defer leave()
	resp, err := d.o.Backend.CreateGroupSnapshot(ctx, want)
	if err != nil {
		return nil, err
	}
	return &spec.CreateVolumeGroupSnapshotResponse{GroupSnapshot: groupSnapshotOf(resp.GetGroupSnapshot())}, nil
}

// groupSnapshot reads a group snapshot by handle. NOT_FOUND: there is none. INVALID_ARGUMENT: it does not have these snapshots, and no others.
func (d *Driver) groupSnapshot(ctx context.Context, id string, snapshots []string) (*volumepb.GroupSnapshot, error) {
	if !idSyntax.MatchString(id) {
		return nil, status.Errorf(codes.NotFound, "no group snapshot has the handle %.64q", id)
	}
	resp, err := d.o.Backend.GetGroupSnapshot(ctx, &volumepb.GetGroupSnapshotRequest{GroupSnapshot: id})
	if err != nil {
		return nil, err
	}
	g := resp.GetGroupSnapshot()
	var has []string
	for _, s := range g.GetSnapshots() {
		has = append(has, s.GetId())
	}
	slices.Sort(has)
	if !slices.Equal(has, slices.Compact(slices.Sorted(slices.Values(snapshots)))) {
		return nil, invalid("snapshot_ids: group snapshot %s has other snapshots than the %d that are named: it has %v", id, len(snapshots), has)
	}
	return g, nil
}

// DeleteVolumeGroupSnapshot implements GroupController.
func (d *Driver) DeleteVolumeGroupSnapshot(ctx context.Context, r *spec.DeleteVolumeGroupSnapshotRequest) (*spec.DeleteVolumeGroupSnapshotResponse, error) {
	id := r.GetGroupSnapshotId()
	if id == "" {
		return nil, invalid("group_snapshot_id is missing")
	}
	leave, err := d.pass("group-snapshot/"+id, "DeleteVolumeGroupSnapshot")
	if err != nil {
		return nil, err
	}
	defer leave()
	_, err = d.groupSnapshot(ctx, id, r.GetSnapshotIds())
	if status.Code(err) == codes.NotFound {
		return &spec.DeleteVolumeGroupSnapshotResponse{}, nil
	}
	if err != nil {
		return nil, err
	}
	if _, err := d.o.Backend.DeleteGroupSnapshot(ctx, &volumepb.DeleteGroupSnapshotRequest{GroupSnapshot: id, Actor: actor}); err != nil {
		return nil, err
	}
	return &spec.DeleteVolumeGroupSnapshotResponse{}, nil
}

// GetVolumeGroupSnapshot implements GroupController.
func (d *Driver) GetVolumeGroupSnapshot(ctx context.Context, r *spec.GetVolumeGroupSnapshotRequest) (*spec.GetVolumeGroupSnapshotResponse, error) {
	if r.GetGroupSnapshotId() == "" {
		return nil, invalid("group_snapshot_id is missing")
	}
	g, err := d.groupSnapshot(ctx, r.GetGroupSnapshotId(), r.GetSnapshotIds())
	if err != nil {
		return nil, err
	}
	return &spec.GetVolumeGroupSnapshotResponse{GroupSnapshot: groupSnapshotOf(g)}, nil
}
