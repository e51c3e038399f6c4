package csi

import (
	"slices"
	"testing"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// csi-sanity asks a group controller for what does not exist only. This makes some.
func TestGroupSnapshots(t *testing.T) {
	h := newHost(t)
	ctx, vc := t.Context(), mounted("xfs", writer)
	var vols []string
	for _, name := range []string{"data", "log", "other"} {
		vols = append(vols, h.published(t, name, vc).Id)
	}
	create := func(name string, params map[string]string, vols ...string) (*spec.VolumeGroupSnapshot, error) {
		resp, err := h.CreateVolumeGroupSnapshot(ctx, &spec.CreateVolumeGroupSnapshotRequest{Name: name, SourceVolumeIds: vols, Parameters: params})
		return resp.GetGroupSnapshot(), err
	}
	made, err := create("nightly", map[string]string{toldOfGroupSnapshots[0]: "x"}, vols[0], vols[1])
	if err != nil || !made.GetReadyToUse() || len(made.GetSnapshots()) != 2 || made.GetCreationTime() == nil {
		t.Fatal(made, err)
	}
	id, ids := made.GetGroupSnapshotId(), []string{}
	for _, s := range made.GetSnapshots() {
		ids = append(ids, s.GetSnapshotId())
		if s.GetGroupSnapshotId() != id || !s.GetReadyToUse() || !slices.Contains(vols[:2], s.GetSourceVolumeId()) {
			t.Errorf("%v", s)
		}
		if _, err := h.DeleteSnapshot(ctx, &spec.DeleteSnapshotRequest{SnapshotId: s.GetSnapshotId()}); status.Code(err) != codes.InvalidArgument {
			t.Errorf("a part of it is deleted: %v", err)
		}
		if got, err := h.GetSnapshot(ctx, &spec.GetSnapshotRequest{SnapshotId: s.GetSnapshotId()}); err != nil || got.GetSnapshot().GetGroupSnapshotId() != id {
			t.Errorf("%v, %v", got, err)
		}
		if _, err := h.CreateVolume(ctx, &spec.CreateVolumeRequest{Name: "from-" + s.GetSnapshotId(), VolumeCapabilities: []*spec.VolumeCapability{vc}, VolumeContentSource: fromSnapshot(s.GetSnapshotId())}); err != nil {
			t.Errorf("a volume from a part of it: %v", err)
		}
	}
	for _, tt := range []struct {
		name   string
		params map[string]string
		vols   []string
		want   codes.Code
	}{
		{"nightly", nil, []string{vols[1], vols[0]}, codes.OK},
		{"nightly", nil, vols, codes.AlreadyExists},
		{"nightly", nil, vols[:1], codes.AlreadyExists},
		{"new", nil, nil, codes.InvalidArgument},
		{"", nil, vols, codes.InvalidArgument},
		{"new", nil, []string{vols[0], vols[1], vols[0]}, codes.InvalidArgument},
		{"new", map[string]string{"what": "ever"}, vols, codes.InvalidArgument},
		{"new", nil, []string{vols[0], "99999999-0000-4000-8000-000000000007"}, codes.NotFound},
		{"new", nil, []string{vols[0], "what"}, codes.NotFound},
	} {
		got, err := create(tt.name, tt.params, tt.vols...)
		if status.Code(err) != tt.want || err == nil && got.GetGroupSnapshotId() != id {
			t.Errorf("%s of %v with %v: %v, %v, want %v", tt.name, tt.vols, tt.params, got, err, tt.want)
		}
	}
	other := "99999999-0000-4000-8000-000000000009"
	for _, tt := range []struct {
		id       string
		ids      []string
		get, del codes.Code
	}{
		{id, nil, codes.InvalidArgument, codes.InvalidArgument},
		{id, ids[:1], codes.InvalidArgument, codes.InvalidArgument},
		{id, append([]string{other}, ids...), codes.InvalidArgument, codes.InvalidArgument},
		{"", ids, codes.InvalidArgument, codes.InvalidArgument},
		{other, ids, codes.NotFound, codes.OK},
		{"../" + id, ids, codes.NotFound, codes.OK},
		{id, []string{ids[1], ids[0]}, codes.OK, codes.OK},
		{id, ids, codes.NotFound, codes.OK},
	} {
		if _, err := h.GetVolumeGroupSnapshot(ctx, &spec.GetVolumeGroupSnapshotRequest{GroupSnapshotId: tt.id, SnapshotIds: tt.ids}); status.Code(err) != tt.get {
			t.Errorf("get %q with %v: %v, want %v", tt.id, tt.ids, err, tt.get)
		}
		if _, err := h.DeleteVolumeGroupSnapshot(ctx, &spec.DeleteVolumeGroupSnapshotRequest{GroupSnapshotId: tt.id, SnapshotIds: tt.ids}); status.Code(err) != tt.del {
			t.Errorf("delete %q with %v: %v, want %v", tt.id, tt.ids, err, tt.del)
		}
	}
	if n := len(h.c.snaps); n != 0 {
		t.Errorf("%d snapshots are left", n)
	}
}
