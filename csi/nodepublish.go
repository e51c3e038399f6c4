package csi

import (
	"context"
	"errors"
	"os"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tandem-storage/tandem/csi/mount"
	"github.com/tandem-storage/tandem/volume/volumepb"
)

// NodePublishVolume implements Node: it shows what is staged at one more path.
func (d *Driver) NodePublishVolume(ctx context.Context, r *spec.NodePublishVolumeRequest) (*spec.NodePublishVolumeResponse, error) {
	if r.GetVolumeId() == "" {
		return nil, invalid("volume_id is missing")
	}
	target, staged := r.GetTargetPath(), r.GetStagingTargetPath()
	if err := checkPath("target_path", target); err != nil {
		return nil, err
	}
	if r.GetVolumeCapability() == nil {
		return nil, invalid("volume_capability is missing")
	}
	u, err := parseUse(r.GetVolumeCapability())
	if err != nil {
		return nil, err
	}
	u.readOnly = u.readOnly || r.GetReadonly()
	if staged == "" {
		return nil, refused("staging_target_path is missing: the volume is staged first")
	}
	if err := checkPath("staging_target_path", staged); err != nil {
		return nil, err
	}
	id, leave, err := d.enter(r.GetVolumeId(), "NodePublishVolume")
	if err != nil {
		return nil, err
	}
	defer leave()
	v, err := d.volume(ctx, id)
	if err != nil {
		return nil, err
	}
	if err := d.publish(v, staged, target, u); err != nil {
		return nil, err
	}
	return &spec.NodePublishVolumeResponse{}, nil
}

func (d *Driver) publish(v *volumepb.Volume, staged, target string, u use) error {
	id := VolumeID(v.GetId())
	a := v.GetAttachment()
	if a.GetNode() != d.o.Node || a.GetPath() == "" {
		return refused("volume %s is not attached on node %s: it is staged first", v.GetName(), d.o.Node)
	}
	source, stagedAt := a.GetPath(), ""
	if u.block {
		u.readOnly = u.readOnly || v.GetPublication().GetReadOnly()
	} else {
		at, err := d.o.Mounter.At(staged)
		if err != nil {
			return err
		}
		if !current(at, v, d.o.Node) {
			return refused("volume %s is not staged at %s, or was before its attachment ended: it is staged first", v.GetName(), staged)
		}
		if at.ReadOnly && !u.readOnly {
			return refused("volume %s is staged read-only", v.GetName())
		}
		source, stagedAt = staged, at.Target
	}
	at, err := d.o.Mounter.At(target)
	switch {
	case err != nil:
		return err
	case current(at, v, d.o.Node):
		if at.ReadOnly != u.readOnly || at.Block != u.block {
			return status.Errorf(codes.AlreadyExists, "volume %s is published at %s in another way", v.GetName(), target)
		}
		return nil
	case of(at, id) || ended(at):
		if err := d.o.Mounter.Unmount(target, true); err != nil {
			return err
		}
	case at != nil:
		return refused("%s is mounted at %s", at.Device, target)
	}
	if err := d.single(id, stagedAt, u); err != nil {
		return err
	}
	if err := makeTarget(target, u.block); err != nil {
		return err
	}
	return d.o.Mounter.Bind(source, target, u.readOnly)
}

// single refuses a second target for a volume that has one writer. staged is where it is staged, without symbolic links; "" = nowhere.
func (d *Driver) single(id VolumeID, staged string, u use) error {
	if u.mode != spec.VolumeCapability_AccessMode_SINGLE_NODE_SINGLE_WRITER {
		return nil
	}
	points, err := d.o.Mounter.List()
	if err != nil {
		return err
	}
	for i := range points {
		if of(&points[i], id) && points[i].Target != staged {
			return refused("the volume has one writer, and is published at another path already")
		}
	}
	return nil
}

// makeTarget makes what is mounted over: an empty directory, or an empty file for a device. What is there and holds something is refused.
func makeTarget(target string, block bool) error {
	if !block {
		if err := mayBeCovered(target); err != nil {
			return err
		}
		return makeDir(target)
	}
	f, err := os.OpenFile(target, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err == nil {
		return f.Close()
	}
	if fi, lerr := os.Lstat(target); errors.Is(err, os.ErrExist) && lerr == nil && isEmptyFile(fi) {
		return nil
	}
	return refused("%s cannot be a device: %v", target, err)
}

func isEmptyFile(fi os.FileInfo) bool { return fi.Mode().IsRegular() && fi.Size() == 0 }

// NodeUnpublishVolume implements Node.
func (d *Driver) NodeUnpublishVolume(_ context.Context, r *spec.NodeUnpublishVolumeRequest) (*spec.NodeUnpublishVolumeResponse, error) {
	if r.GetVolumeId() == "" {
		return nil, invalid("volume_id is missing")
	}
	target := r.GetTargetPath()
	if err := checkPath("target_path", target); err != nil {
		return nil, err
	}
	id, leave, err := d.enter(r.GetVolumeId(), "NodeUnpublishVolume")
	if err != nil {
		return nil, err
	}
	defer leave()
	if err := d.unmount(target, id); err != nil {
		return nil, err
	}
	// What was mounted over. Never anything that holds something: the path may be another one than it was.
	fi, err := os.Lstat(target)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return &spec.NodeUnpublishVolumeResponse{}, nil
	case err != nil:
		return nil, err
	case !fi.IsDir() && !isEmptyFile(fi):
		return nil, refused("%s is not what a volume was published at, it is left", target)
	}
	if err := os.Remove(target); err != nil {
		return nil, refused("%v", err)
	}
	return &spec.NodeUnpublishVolumeResponse{}, nil
}

// at returns a volume and what of it is mounted at path. NOT_FOUND: it is not there.
func (d *Driver) at(ctx context.Context, volumeID, path string) (*volumepb.Volume, *mount.Point, error) {
	if volumeID == "" {
		return nil, nil, invalid("volume_id is missing")
	}
	if path == "" {
		return nil, nil, invalid("volume_path is missing")
	}
	id, err := ParseVolumeID(volumeID)
	if err != nil {
		return nil, nil, err
	}
	v, err := d.volume(ctx, id)
	if err != nil {
		return nil, nil, err
	}
	if checkPath("volume_path", path) != nil { // nothing was ever published there
		return nil, nil, status.Errorf(codes.NotFound, "volume %s is not at that path", v.GetName())
	}
	at, err := d.o.Mounter.At(path)
	if err != nil {
		return nil, nil, err
	}
	if !of(at, id) {
		return nil, nil, status.Errorf(codes.NotFound, "volume %s is not at %s", v.GetName(), path)
	}
	return v, at, nil
}

// NodeGetVolumeStats implements Node.
func (d *Driver) NodeGetVolumeStats(ctx context.Context, r *spec.NodeGetVolumeStatsRequest) (*spec.NodeGetVolumeStatsResponse, error) {
	v, at, err := d.at(ctx, r.GetVolumeId(), r.GetVolumePath())
	if err != nil {
		return nil, err
	}
	if at.Block {
		return &spec.NodeGetVolumeStatsResponse{Usage: []*spec.VolumeUsage{{Unit: spec.VolumeUsage_BYTES, Total: int64(v.GetSizeBytes())}}}, nil
	}
	s, err := d.o.Mounter.Usage(r.GetVolumePath())
	if err != nil {
		return nil, err
	}
	return &spec.NodeGetVolumeStatsResponse{Usage: []*spec.VolumeUsage{
		{Unit: spec.VolumeUsage_BYTES, Total: s.TotalBytes, Used: s.TotalBytes - s.FreeBytes, Available: s.AvailableBytes},
		{Unit: spec.VolumeUsage_INODES, Total: s.TotalInodes, Used: s.TotalInodes - s.FreeInodes, Available: s.FreeInodes},
	}}, nil
}

// NodeGetVolumeHealth implements Node.
func (d *Driver) NodeGetVolumeHealth(ctx context.Context, r *spec.NodeGetVolumeHealthRequest) (*spec.NodeGetVolumeHealthResponse, error) {
	id, err := ParseVolumeID(r.GetVolumeId())
	if err != nil {
		return nil, err
	}
	v, err := d.volume(ctx, id)
	if err != nil {
		return nil, err
	}
	h := health(v)
	for field, path := range map[string]string{"volume_publish_path": r.GetVolumePublishPath(), "staging_target_path": r.GetStagingTargetPath()} {
		if path == "" {
			continue
		}
		if err := checkPath(field, path); err != nil {
			return nil, err
		}
		at, err := d.o.Mounter.At(path)
		if err != nil {
			return nil, err
		}
		if ended(at) || of(at, id) && !current(at, v, d.o.Node) {
			h.HealthStatuses = append(h.HealthStatuses, &spec.VolumeHealth_VolumeHealthEntry{
				Status: spec.VolumeHealthErrorType_INACCESSIBLE, Reason: "AttachmentEnded",
				Message: "the attachment behind " + path + " has ended, every request fails: stage and publish the volume again",
			})
			break
		}
	}
	return &spec.NodeGetVolumeHealthResponse{VolumeHealth: h}, nil
}
