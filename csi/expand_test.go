package csi

import (
	"testing"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"

	"github.com/tandem-storage/tandem/csi/mount"
)

// TestExpand: the volume grows, then its file system where it is mounted for writing; a raw one has nothing to grow, and without room nothing does.
func TestExpand(t *testing.T) {
	h := newHost(t)
	v := h.published(t, "data", mounted(mount.XFS, writer))
	want := int64(v.SizeBytes) * 2
	controller := func(id string, required, limit int64, vc *spec.VolumeCapability) (*spec.ControllerExpandVolumeResponse, error) {
		resp, err := h.ControllerExpandVolume(t.Context(), &spec.ControllerExpandVolumeRequest{
			VolumeId: id, CapacityRange: &spec.CapacityRange{RequiredBytes: required, LimitBytes: limit}, VolumeCapability: vc,
		})
		return resp, plainIf(err)
	}
	node := func(path, staged string, required int64) error {
		_, err := h.NodeExpandVolume(t.Context(), &spec.NodeExpandVolumeRequest{
			VolumeId: v.Id, VolumePath: path, StagingTargetPath: staged, CapacityRange: &spec.CapacityRange{RequiredBytes: required},
		})
		return plainIf(err)
	}
	if err := node(h.path(v, "staged"), "", 0); err == nil {
		t.Error("the file system of a volume that is not staged")
	}
	if err := h.stage(t.Context(), v, mounted(mount.XFS, writer)); err != nil {
		t.Fatal(err)
	}
	_, err := controller(v.Id, want, want-1, nil)
	wantCode(t, err, codes.OutOfRange)
	_, err = controller(v.Id, 0, want/4, nil)
	wantCode(t, err, codes.OutOfRange)
	h.c.full = true
	_, err = controller(v.Id, want, 0, nil)
	wantCode(t, err, codes.ResourceExhausted)
	wantCode(t, node(h.path(v, "staged"), "", 0), codes.ResourceExhausted)
	h.c.full = false
	for range 2 {
		resp, err := controller(v.Id, want-1, 0, mounted(mount.XFS, writer))
		if err != nil || resp.GetCapacityBytes() != want || !resp.GetNodeExpansionRequired() {
			t.Fatalf("%v (%v)", resp, err)
		}
	}
	if resp, err := controller(v.Id, want/2, 0, nil); err != nil || resp.GetCapacityBytes() != want {
		t.Errorf("less than it has: %v (%v)", resp, err)
	}
	target := h.path(v, "target")
	if err := h.publishAt(t.Context(), v, mounted(mount.XFS, writer), target, true); err != nil {
		t.Fatal(err)
	}
	wantCode(t, node(target, "", want), codes.FailedPrecondition) // it is read-only there
	wantCode(t, node(target, h.path(v, "staged"), want+1), codes.OutOfRange)
	if err := node(target, h.path(v, "staged"), want); err != nil {
		t.Error(err)
	}
	if n := h.c.machine.Plug(device(v), h.backing(t, v.Id)).Grown; n != 1 {
		t.Errorf("the file system has grown %d times", n)
	}

	raws := h.published(t, "raw", raw())
	if resp, err := controller(raws.Id, want, 0, raw()); err != nil || resp.GetNodeExpansionRequired() {
		t.Errorf("raw: %v (%v)", resp, err)
	}
}

// backing is what is behind the device of a volume that is staged.
func (h *host) backing(t *testing.T, id string) string {
	t.Helper()
	at, err := h.c.machine.At(h.path(h.c.volumes[id], "staged"))
	if err != nil || at == nil {
		t.Fatal("not staged: ", err)
	}
	return at.Backing
}
