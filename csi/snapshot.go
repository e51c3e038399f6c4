package csi

import (
	"cmp"
	"context"
	"slices"
	"strings"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/tandem-storage/tandem/volume/volumepb"
)

// toldOfSnapshots are what the external snapshotter adds to the parameters of a VolumeSnapshotClass.
var toldOfSnapshots = []string{
	"csi.storage.k8s.io/volumesnapshot/name", "csi.storage.k8s.io/volumesnapshot/namespace", "csi.storage.k8s.io/volumesnapshotcontent/name",
}

// paramFreeze is the parameter of a VolumeSnapshotClass or VolumeGroupSnapshotClass that says whether file systems are frozen at the cut.
const paramFreeze = "freeze"

// parseFreeze reads the parameters of such a class, to which others are added. INVALID_ARGUMENT: there are more, or it is neither "true" nor "false".
func parseFreeze(params map[string]string, added []string) (frozen bool, _ error) {
	for k := range params {
		if k != paramFreeze && !slices.Contains(added, k) {
			return false, invalid("parameter %.64q is not known: use %s", k, paramFreeze)
		}
	}
	switch v, ok := params[paramFreeze]; {
	case !ok, v == "true":
		return true, nil
	case v == "false":
		return false, nil
	default:
		return false, invalid("parameter %s: %.64q is none of its values: true, false", paramFreeze, v)
	}
}

// snapshotOf makes s a message of the specification.
func snapshotOf(s *volumepb.Snapshot) *spec.Snapshot {
	return &spec.Snapshot{
		SnapshotId: s.GetId(), SourceVolumeId: s.GetVolumeId(), SizeBytes: int64(s.GetSizeBytes()),
		CreationTime: &timestamppb.Timestamp{Seconds: s.GetCreatedUnixMs() / 1000, Nanos: int32(s.GetCreatedUnixMs()%1000) * 1e6},
		ReadyToUse:   s.GetState() == volumepb.SnapshotState_SNAPSHOT_STATE_READY, GroupSnapshotId: s.GetGroupSnapshotId(),
	}
}

// snapshot reads a snapshot by handle. One that is being deleted is none.
func (d *Driver) snapshot(ctx context.Context, id string) (*volumepb.Snapshot, error) {
	if !idSyntax.MatchString(id) {
		return nil, status.Errorf(codes.NotFound, "no snapshot has the handle %.64q", id)
	}
	resp, err := d.o.Backend.GetSnapshot(ctx, &volumepb.GetSnapshotRequest{Snapshot: id})
	if err != nil {
		return nil, err
	}
	if s := resp.GetSnapshot(); s.GetState() != volumepb.SnapshotState_SNAPSHOT_STATE_DELETING {
		return s, nil
	}
	return nil, status.Errorf(codes.NotFound, "snapshot %s is being deleted", id)
}

// CreateSnapshot implements Controller.
func (d *Driver) CreateSnapshot(ctx context.Context, r *spec.CreateSnapshotRequest) (*spec.CreateSnapshotResponse, error) {
	if r.GetName() == "" {
		return nil, invalid("name is missing")
	}
	if r.GetSourceVolumeId() == "" {
		return nil, invalid("source_volume_id is missing")
	}
	frozen, err := parseFreeze(r.GetParameters(), toldOfSnapshots)
	if err != nil {
		return nil, err
	}
	id, err := ParseVolumeID(r.GetSourceVolumeId())
	if err != nil {
		return nil, err
	}
	name := volumeName(r.GetName())
	leave, err := d.pass("snapshot/"+name, "CreateSnapshot")
	if err != nil {
		return nil, err
	}
	defer leave()
	resp, err := d.o.Backend.CreateSnapshot(ctx, &volumepb.CreateSnapshotRequest{Name: name, Volume: id.String(), NoFreeze: !frozen, Actor: actor})
	if err != nil {
		return nil, err
	}
	return &spec.CreateSnapshotResponse{Snapshot: snapshotOf(resp.GetSnapshot())}, nil
}

// DeleteSnapshot implements Controller.
func (d *Driver) DeleteSnapshot(ctx context.Context, r *spec.DeleteSnapshotRequest) (*spec.DeleteSnapshotResponse, error) {
	id := r.GetSnapshotId()
	switch {
	case id == "":
		return nil, invalid("snapshot_id is missing")
	case !idSyntax.MatchString(id):
		return &spec.DeleteSnapshotResponse{}, nil
	}
	leave, err := d.pass("snapshot/"+id, "DeleteSnapshot")
	if err != nil {
		return nil, err
	}
	defer leave()
	if s, err := d.snapshot(ctx, id); err == nil && s.GetGroupSnapshotId() != "" {
		return nil, invalid("snapshot %s is part of group snapshot %s, and is deleted with it", id, s.GetGroupSnapshotId())
	}
	if _, err := d.o.Backend.DeleteSnapshot(ctx, &volumepb.DeleteSnapshotRequest{Snapshot: id, Actor: actor}); err != nil {
		return nil, err
	}
	return &spec.DeleteSnapshotResponse{}, nil
}

// GetSnapshot implements Controller.
func (d *Driver) GetSnapshot(ctx context.Context, r *spec.GetSnapshotRequest) (*spec.GetSnapshotResponse, error) {
	if r.GetSnapshotId() == "" {
		return nil, invalid("snapshot_id is missing")
	}
	s, err := d.snapshot(ctx, r.GetSnapshotId())
	if err != nil {
		return nil, err
	}
	return &spec.GetSnapshotResponse{Snapshot: snapshotOf(s)}, nil
}

// ListSnapshots implements Controller. They are in the order of their ids, as volumes are.
func (d *Driver) ListSnapshots(ctx context.Context, r *spec.ListSnapshotsRequest) (*spec.ListSnapshotsResponse, error) {
	token := r.GetStartingToken()
	if r.GetMaxEntries() < 0 {
		return nil, invalid("max_entries is negative")
	}
	if token != "" && !idSyntax.MatchString(token) {
		return nil, status.Errorf(codes.Aborted, "starting_token is not one of this driver: list from the beginning")
	}
	l, err := d.o.Backend.ListSnapshots(ctx, &volumepb.ListSnapshotsRequest{})
	if err != nil {
		return nil, err
	}
	ss := slices.DeleteFunc(l.GetSnapshots(), func(s *volumepb.Snapshot) bool {
		return s.GetState() != volumepb.SnapshotState_SNAPSHOT_STATE_READY || s.GetId() <= token ||
			r.GetSnapshotId() != "" && s.GetId() != r.GetSnapshotId() || r.GetSourceVolumeId() != "" && s.GetVolumeId() != r.GetSourceVolumeId()
	})
	slices.SortFunc(ss, func(a, b *volumepb.Snapshot) int { return cmp.Compare(a.GetId(), b.GetId()) })
	resp := &spec.ListSnapshotsResponse{}
	if n := int(r.GetMaxEntries()); n > 0 && len(ss) > n {
		ss = ss[:n]
		resp.NextToken = ss[n-1].GetId()
	}
	for _, s := range ss {
		resp.Entries = append(resp.Entries, &spec.ListSnapshotsResponse_Entry{Snapshot: snapshotOf(s)})
	}
	return resp, nil
}

// fill has a volume begin with the content source of r: it has its size, and its replicas lie where that is held. It returns the size that it has to get then. NOT_FOUND: there is no such source.
// OUT_OF_RANGE: another size is asked for. RESOURCE_EXHAUSTED: it is not held where the CO requires the volume.
func (d *Driver) fill(ctx context.Context, want *volumepb.CreateVolumeRequest, r *spec.CreateVolumeRequest) (grow int64, _ error) {
	var bytes uint64
	var held []string
	switch src := r.GetVolumeContentSource(); {
	case src.GetSnapshot() != nil:
		s, err := d.snapshot(ctx, src.GetSnapshot().GetSnapshotId())
		if err != nil {
			return 0, err
		}
		want.FromSnapshot, bytes = s.GetId(), s.GetSizeBytes()
		for _, h := range s.GetHolders() {
			held = append(held, h.GetDomain())
		}
	case src.GetVolume() != nil:
		id, err := ParseVolumeID(src.GetVolume().GetVolumeId())
		if err != nil {
			return 0, err
		}
		v, err := d.volume(ctx, id)
		if err != nil {
			return 0, err
		}
		want.FromVolume, bytes = v.GetId(), v.GetSizeBytes()
		for _, m := range v.GetReplicas() {
			if m.GetInSync() {
				held = append(held, m.GetDomain())
			}
		}
	default:
		return 0, invalid("volume_content_source: it is neither a snapshot nor a volume")
	}
	grow, err := copySize(want, int64(bytes), r.GetCapacityRange())
	if err != nil {
		return 0, err
	}
	want.Thick = false // it shares the space of what it is made from
	ds, err := required(r.GetAccessibilityRequirements())
	if err != nil {
		return 0, err
	}
	held = slices.DeleteFunc(held, func(d string) bool { return len(want.Domains) > 0 && !slices.Contains(want.Domains, d) })
	if len(ds) > 0 && !slices.ContainsFunc(held, func(d string) bool { return slices.Contains(ds, d) }) {
		return 0, status.Errorf(codes.ResourceExhausted, "accessibility_requirements: what the volume is made from is held in %s only", strings.Join(slices.Compact(slices.Sorted(slices.Values(held))), ", "))
	}
	return grow, nil
}
