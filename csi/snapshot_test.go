package csi

import (
	"slices"
	"testing"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tandem-storage/tandem/volume/volumepb"
)

func fromSnapshot(id string) *spec.VolumeContentSource {
	return &spec.VolumeContentSource{Type: &spec.VolumeContentSource_Snapshot{Snapshot: &spec.VolumeContentSource_SnapshotSource{SnapshotId: id}}}
}

func fromVolume(id string) *spec.VolumeContentSource {
	return &spec.VolumeContentSource{Type: &spec.VolumeContentSource_Volume{Volume: &spec.VolumeContentSource_VolumeSource{VolumeId: id}}}
}

// A volume that is made from a snapshot or another volume has its size, if no more is asked for, and lies where that is held.
func TestContentSource(t *testing.T) {
	h := newHost(t)
	ctx, vc := t.Context(), mounted("xfs", writer)
	source := h.published(t, "source", vc)
	snap, err := h.CreateSnapshot(ctx, &spec.CreateSnapshotRequest{Name: "snap", SourceVolumeId: source.Id})
	if err != nil || !snap.GetSnapshot().GetReadyToUse() || snap.GetSnapshot().GetSizeBytes() != int64(source.SizeBytes) {
		t.Fatalf("%+v, %v", snap, err)
	}
	id := snap.GetSnapshot().GetSnapshotId()
	in := func(domain string) *spec.TopologyRequirement {
		return &spec.TopologyRequirement{Requisite: []*spec.Topology{{Segments: map[string]string{TopologyDomain: domain}}}}
	}
	none := "99999999-0000-4000-8000-000000000008"
	n := int64(source.SizeBytes)
	for _, tt := range []struct {
		name string
		from *spec.VolumeContentSource
		size *spec.CapacityRange
		top  *spec.TopologyRequirement
		want codes.Code
	}{
		{"restored", fromSnapshot(id), nil, nil, codes.OK},
		{"restored", fromSnapshot(id), &spec.CapacityRange{RequiredBytes: n}, in("a"), codes.OK},
		{"restored", fromVolume(source.Id), nil, nil, codes.AlreadyExists},
		{"restored", nil, &spec.CapacityRange{RequiredBytes: n}, nil, codes.AlreadyExists},
		{"source", fromSnapshot(id), nil, nil, codes.AlreadyExists},
		{"cloned", fromVolume(source.Id), &spec.CapacityRange{LimitBytes: n}, nil, codes.OK},
		{"smaller", fromVolume(source.Id), &spec.CapacityRange{LimitBytes: n - 1}, nil, codes.OutOfRange},
		{"elsewhere", fromSnapshot(id), nil, in("c"), codes.ResourceExhausted},
		{"none", fromSnapshot(none), nil, nil, codes.NotFound},
		{"none", fromSnapshot("what"), nil, nil, codes.NotFound},
		{"none", fromVolume(none), nil, nil, codes.NotFound},
		{"none", &spec.VolumeContentSource{}, nil, nil, codes.InvalidArgument},
	} {
		resp, err := h.CreateVolume(ctx, &spec.CreateVolumeRequest{
			Name: tt.name, VolumeCapabilities: []*spec.VolumeCapability{vc}, VolumeContentSource: tt.from, CapacityRange: tt.size, AccessibilityRequirements: tt.top,
		})
		if status.Code(err) != tt.want {
			t.Errorf("%s from %v: %v, want %v", tt.name, tt.from, err, tt.want)
		}
		if err == nil && (resp.GetVolume().GetCapacityBytes() != n || resp.GetVolume().GetContentSource() == nil) {
			t.Errorf("%s: %+v", tt.name, resp.GetVolume())
		}
	}
	for _, r := range []*spec.CreateSnapshotRequest{
		{SourceVolumeId: source.Id}, {Name: "s"}, {Name: "s", SourceVolumeId: source.Id, Parameters: map[string]string{"freeze": "no"}},
	} {
		if _, err := h.CreateSnapshot(ctx, r); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%+v: %v", r, err)
		}
	}
}

// What is made from a snapshot is never formatted, and can be mounted beside the one that it was made from.
func TestCopyIsNotFormatted(t *testing.T) {
	h := newHost(t)
	ctx, vc := t.Context(), mounted("xfs", writer)
	source := h.published(t, "source", vc)
	for i, from := range []func() *spec.VolumeContentSource{
		func() *spec.VolumeContentSource { return fromVolume(source.Id) },
		func() *spec.VolumeContentSource {
			s, err := h.CreateSnapshot(ctx, &spec.CreateSnapshotRequest{Name: "snap", SourceVolumeId: source.Id})
			if err != nil {
				t.Fatal(err)
			}
			return fromSnapshot(s.GetSnapshot().GetSnapshotId())
		},
	} {
		resp, err := h.CreateVolume(ctx, &spec.CreateVolumeRequest{Name: string(rune('a' + i)), VolumeCapabilities: []*spec.VolumeCapability{vc}, VolumeContentSource: from()})
		if err != nil {
			t.Fatal(err)
		}
		v := h.c.volumes[resp.GetVolume().GetVolumeId()]
		v.Publication = &volumepb.Publication{Node: "node-a"}
		dev := h.c.machine.Plug(device(v), "other")
		if err := h.stage(ctx, v, vc); err == nil || dev.Formats > 0 {
			t.Errorf("a copy of nothing is staged: %v, formatted %d times", err, dev.Formats)
		}
		dev.Holds = "xfs"
		if err := h.stage(ctx, v, vc); err != nil || dev.Formats > 0 || !slices.Contains(h.c.machine.Options, "nouuid") {
			t.Errorf("%v, formatted %d times, mounted with %v", err, dev.Formats, h.c.machine.Options)
		}
	}
}

// File systems are frozen for snapshots unless the class says otherwise.
func TestSnapshotFreeze(t *testing.T) {
	h := newHost(t)
	ctx := t.Context()
	v := h.published(t, "data", mounted("xfs", writer))
	for i, tt := range []struct {
		params map[string]string
		frozen bool
		want   codes.Code
	}{
		{nil, true, codes.OK}, {map[string]string{"freeze": "true"}, true, codes.OK}, {map[string]string{"freeze": "false"}, false, codes.OK},
		{map[string]string{"freeze": ""}, false, codes.InvalidArgument}, {map[string]string{"Freeze": "true"}, false, codes.InvalidArgument},
	} {
		name := string(rune('a' + i))
		one, err := h.CreateSnapshot(ctx, &spec.CreateSnapshotRequest{Name: name, SourceVolumeId: v.Id, Parameters: tt.params})
		if status.Code(err) != tt.want || err == nil && h.c.snaps[one.GetSnapshot().GetSnapshotId()].Frozen != tt.frozen {
			t.Errorf("%v: %v, %v", tt.params, one, err)
		}
		all, err := h.CreateVolumeGroupSnapshot(ctx, &spec.CreateVolumeGroupSnapshotRequest{Name: name, SourceVolumeIds: []string{v.Id}, Parameters: tt.params})
		if status.Code(err) != tt.want || err == nil && h.c.snaps[all.GetGroupSnapshot().GetSnapshots()[0].GetSnapshotId()].Frozen != tt.frozen {
			t.Errorf("of a group, %v: %v, %v", tt.params, all, err)
		}
	}
}
