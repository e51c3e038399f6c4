package csi

import (
	"context"
	"errors"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tandem-storage/tandem/volume/volumepb"
)

// A volume that is made from a snapshot or another volume is made with the size of that, and is resized then if it is to be larger: it has no pod yet, so that is
// a matter of its record, and of whoever attaches it first. Its file system grows when it is mounted, because no orchestrator asks for it: to it the volume
// was never any smaller.

// copied reports whether a volume began with what another one had.
func copied(v *volumepb.Volume) bool { return v.GetFromSnapshot() != "" || v.GetFromVolume() != "" }

// copySize sets the size of a volume that is made from something of so many bytes, and returns the one that it has to get. OUT_OF_RANGE: it would have to shrink.
func copySize(want *volumepb.CreateVolumeRequest, bytes int64, c *spec.CapacityRange) (grow int64, _ error) {
	if c.GetLimitBytes() > 0 && bytes > c.GetLimitBytes() {
		return 0, status.Errorf(codes.OutOfRange, "capacity_range: a volume has at least the size of what it is made from, which is %d bytes", bytes)
	}
	grow = bytes
	if c.GetRequiredBytes() > bytes {
		grow = want.SizeBytes
	}
	want.SizeBytes = bytes
	return grow, nil
}

// unfinished reports whether v may be what an earlier call made that was cut short before it had its size: from the same, and nobody was given it yet.
func unfinished(v *volumepb.Volume, want *volumepb.CreateVolumeRequest) bool {
	return copied(v) && v.GetFromSnapshot() == want.FromSnapshot && v.GetFromVolume() == want.FromVolume &&
		v.GetPhase() == volumepb.Phase_PHASE_DETACHED && v.GetPublication() == nil
}

// grown gives a volume that was just made the size that it has to get.
func (d *Driver) grown(ctx context.Context, v *volumepb.Volume, size int64) (*volumepb.Volume, error) {
	if int64(v.GetSizeBytes()) >= size {
		return v, nil
	}
	resp, err := d.o.Backend.ResizeVolume(ctx, &volumepb.ResizeVolumeRequest{Volume: v.GetId(), SizeBytes: size, Actor: actor})
	if err != nil {
		return nil, err
	}
	return resp.GetVolume(), nil
}

// whole wants an attached volume that was copied to have the size of its record: it is attached also if it could not grow, and nobody would be told.
func (d *Driver) whole(ctx context.Context, v *volumepb.Volume) error {
	if !copied(v) {
		return nil
	}
	_, err := d.o.Backend.ResizeVolume(ctx, &volumepb.ResizeVolumeRequest{Volume: v.GetId(), SizeBytes: int64(v.GetSizeBytes()), Actor: actor})
	return err
}

// fillDevice makes the file system of a volume that was copied as large as its device, just after it was mounted at path. It is unmounted if that fails: what is mounted
// counts as staged.
func (d *Driver) fillDevice(ctx context.Context, v *volumepb.Volume, device, path string, u use) error {
	if !copied(v) || u.readOnly {
		return nil
	}
	if err := d.o.Mounter.Grow(ctx, device, path, u.fs); err != nil {
		return errors.Join(err, d.o.Mounter.Unmount(path, false))
	}
	return nil
}
