package csi

import (
	"errors"
	"testing"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"

	"github.com/tandem-storage/tandem/volume/volumepb"
)

// A copy may be larger than what it is made from, also if the call that makes it is cut short in the middle. Its file system is as large as it is when it is staged, or
// it is not staged.
func TestLargerCopy(t *testing.T) {
	h := newHost(t)
	ctx, vc := t.Context(), mounted("xfs", writer)
	source := h.published(t, "source", vc)
	n := int64(source.SizeBytes)
	create := func(from *spec.VolumeContentSource, required, limit int64) (*spec.Volume, error) {
		resp, err := h.CreateVolume(ctx, &spec.CreateVolumeRequest{
			Name: "copy", VolumeCapabilities: []*spec.VolumeCapability{vc}, VolumeContentSource: from, CapacityRange: &spec.CapacityRange{RequiredBytes: required, LimitBytes: limit},
		})
		return resp.GetVolume(), plainIf(err)
	}
	h.c.full = true // it is made, and gets no size
	_, err := create(fromVolume(source.Id), n+1, 0)
	wantCode(t, err, codes.ResourceExhausted)
	h.c.full = false
	if _, err := create(nil, n+1, 0); err == nil {
		t.Error("what was begun was taken for a volume that is made from nothing")
	}
	var made *spec.Volume
	for range 2 {
		if made, err = create(fromVolume(source.Id), n+1, n+2*unit); err != nil || made.GetCapacityBytes() != n+unit {
			t.Fatalf("%v, %v; want %d bytes", made, err, n+unit)
		}
	}
	v := h.c.volumes[made.GetVolumeId()]
	v.Publication = &volumepb.Publication{Node: "node-a"}
	_, err = create(fromVolume(source.Id), n+2*unit, 0)
	wantCode(t, err, codes.AlreadyExists) // somebody has it, of that size
	dev := h.c.machine.Plug(device(v), "other")
	dev.Holds = "xfs"

	h.c.full = true
	if err := h.stage(ctx, v, vc); err == nil {
		t.Error("it could not grow, and is staged")
	}
	h.c.full = false
	dev.GrowErr = errors.New("injected")
	for range 2 {
		if err := h.stage(ctx, v, vc); err == nil {
			t.Error("its file system could not grow, and it is staged")
		}
	}
	dev.GrowErr = nil
	if err := h.stage(ctx, v, vc); err != nil || dev.Grown != 1 {
		t.Errorf("%v, its file system has grown %d times", err, dev.Grown)
	}
	if dev := h.c.machine.Plug(device(source), "other"); dev.Grown > 0 {
		t.Error("the file system of what it was made from has grown")
	}
}
