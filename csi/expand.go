package csi

import (
	"context"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tandem-storage/tandem/volume/volumepb"
)

// ControllerExpandVolume implements Controller. A volume that is attached, on whatever node, has the new size when it returns; one that is not when it
// is staged next.
func (d *Driver) ControllerExpandVolume(ctx context.Context, r *spec.ControllerExpandVolumeRequest) (*spec.ControllerExpandVolumeResponse, error) {
	if r.GetVolumeId() == "" {
		return nil, invalid("volume_id is missing")
	}
	if r.GetCapacityRange() == nil {
		return nil, invalid("capacity_range is missing")
	}
	var us []use
	if c := r.GetVolumeCapability(); c != nil {
		u, err := parseUse(c)
		if err != nil {
			return nil, err
		}
		us = append(us, u)
	}
	id, leave, err := d.enter(r.GetVolumeId(), "ControllerExpandVolume")
	if err != nil {
		return nil, err
	}
	defer leave()
	v, err := d.volume(ctx, id)
	if err != nil {
		return nil, err
	}
	has, limit := int64(v.GetSizeBytes()), r.GetCapacityRange().GetLimitBytes()
	if limit > 0 && has > limit {
		return nil, status.Errorf(codes.OutOfRange, "capacity_range: at most %d bytes are allowed, the volume has %d and never shrinks", limit, has)
	}
	n := has
	if r.GetCapacityRange().GetRequiredBytes() != 0 {
		if n, err = size(r.GetCapacityRange(), us); err != nil {
			return nil, err
		}
	}
	// Also if it has that size by its record: an earlier call may have been cut short.
	resp, err := d.o.Backend.ResizeVolume(ctx, &volumepb.ResizeVolumeRequest{Volume: id.String(), SizeBytes: max(n, has), Actor: actor})
	if err != nil {
		return nil, err
	}
	return &spec.ControllerExpandVolumeResponse{
		CapacityBytes: int64(resp.GetVolume().GetSizeBytes()), NodeExpansionRequired: len(us) == 0 || !us[0].block,
	}, nil
}

// NodeExpandVolume implements Node: it makes the file system as large as the device, which has the volume's size when it returns.
func (d *Driver) NodeExpandVolume(ctx context.Context, r *spec.NodeExpandVolumeRequest) (*spec.NodeExpandVolumeResponse, error) {
	if r.GetVolumeId() == "" {
		return nil, invalid("volume_id is missing")
	}
	if r.GetVolumePath() == "" {
		return nil, invalid("volume_path is missing")
	}
	if p := r.GetStagingTargetPath(); p != "" {
		if err := checkPath("staging_target_path", p); err != nil {
			return nil, err
		}
	}
	id, leave, err := d.enter(r.GetVolumeId(), "NodeExpandVolume")
	if err != nil {
		return nil, err
	}
	defer leave()
	v, err := d.volume(ctx, id)
	if err != nil {
		return nil, err
	}
	if err := checkPath("volume_path", r.GetVolumePath()); err != nil {
		return nil, err
	}
	at, err := d.o.Mounter.At(r.GetVolumePath())
	if err != nil {
		return nil, err
	}
	if p := r.GetStagingTargetPath(); p != "" && (at == nil || at.ReadOnly && !at.Block) { // what is published may be read-only, or not be yet
		staged, err := d.o.Mounter.At(p)
		if err != nil {
			return nil, err
		}
		if staged != nil {
			at = staged
		}
	}
	switch has, need, limit := int64(v.GetSizeBytes()), r.GetCapacityRange().GetRequiredBytes(), r.GetCapacityRange().GetLimitBytes(); {
	case !current(at, v, d.o.Node):
		return nil, status.Errorf(codes.NotFound, "volume %s is not at %s on node %s, or was before its attachment ended: it is staged first", v.GetName(), r.GetVolumePath(), d.o.Node)
	case need > has || limit > 0 && has > limit:
		return nil, status.Errorf(codes.OutOfRange, "capacity_range: %d to %d bytes, the volume has %d", need, limit, has)
	}
	// A volume that was resized while it was detached is attached also if it could not grow; the call tells then why.
	if _, err := d.o.Backend.ResizeVolume(ctx, &volumepb.ResizeVolumeRequest{Volume: id.String(), SizeBytes: int64(v.GetSizeBytes()), Actor: actor}); err != nil {
		return nil, err
	}
	switch {
	case at.Block:
	case at.ReadOnly:
		return nil, refused("volume %s is mounted read-only at %s: its file system grows when it is mounted for writing", v.GetName(), at.Target)
	default:
		if err := d.o.Mounter.Grow(ctx, at.Device, at.Target, at.FS); err != nil {
			return nil, err
		}
	}
	return &spec.NodeExpandVolumeResponse{CapacityBytes: int64(v.GetSizeBytes())}, nil
}
