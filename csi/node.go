package csi

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tandem-storage/tandem/csi/mount"
	"github.com/tandem-storage/tandem/volume/volumepb"
)

// NodeGetCapabilities implements Node.
func (d *Driver) NodeGetCapabilities(context.Context, *spec.NodeGetCapabilitiesRequest) (*spec.NodeGetCapabilitiesResponse, error) {
	resp := &spec.NodeGetCapabilitiesResponse{}
	for _, t := range []spec.NodeServiceCapability_RPC_Type{
		spec.NodeServiceCapability_RPC_STAGE_UNSTAGE_VOLUME,
		spec.NodeServiceCapability_RPC_GET_VOLUME_STATS,
		spec.NodeServiceCapability_RPC_SINGLE_NODE_MULTI_WRITER,
		spec.NodeServiceCapability_RPC_VOLUME_MOUNT_GROUP,
		spec.NodeServiceCapability_RPC_GET_VOLUME_HEALTH,
		spec.NodeServiceCapability_RPC_EXPAND_VOLUME,
	} {
		resp.Capabilities = append(resp.Capabilities, &spec.NodeServiceCapability{
			Type: &spec.NodeServiceCapability_Rpc{Rpc: &spec.NodeServiceCapability_RPC{Type: t}},
		})
	}
	return resp, nil
}

// NodeGetInfo implements Node.
func (d *Driver) NodeGetInfo(context.Context, *spec.NodeGetInfoRequest) (*spec.NodeGetInfoResponse, error) {
	return &spec.NodeGetInfoResponse{
		NodeId: d.o.Node, MaxVolumesPerNode: maxVolumes,
		AccessibleTopology: &spec.Topology{Segments: map[string]string{TopologyDomain: d.o.Domain, TopologyNode: d.o.Node}},
	}, nil
}

// checkPath reports INVALID_ARGUMENT unless path is absolute, clean and below a directory, and its last element, if it is there, no symbolic link.
func checkPath(field, path string) error {
	switch {
	case path == "":
		return invalid("%s is missing", field)
	case !filepath.IsAbs(path) || filepath.Clean(path) != path || filepath.Dir(path) == "/":
		return invalid("%s is not an absolute path in its shortest form, below a directory", field)
	}
	if fi, err := os.Lstat(path); err == nil && fi.Mode()&os.ModeSymlink != 0 {
		return invalid("%s is a symbolic link", field)
	}
	return nil
}

// of reports whether what is mounted at p is volume id, attached now or before.
func of(p *mount.Point, id VolumeID) bool {
	return p != nil && strings.Contains(p.Backing, "/"+id.String()+".")
}

// current reports whether it is what v's attachment on node shows.
func current(p *mount.Point, v *volumepb.Volume, node string) bool {
	a := v.GetAttachment()
	return p != nil && a.GetNode() == node && strings.Contains(p.Backing, "/"+v.GetId()+"."+a.GetAttachId()+"/")
}

// ended reports whether p is of a device that a daemon which has died left behind: every request fails. Whose volume it was cannot be told
// any more.
func ended(p *mount.Point) bool {
	return p != nil && strings.HasPrefix(p.Device, "/dev/loop") && (p.Backing == "" || p.Backing == "/device")
}

// mayBeCovered returns nil if path is an empty directory or is not there: mounting hides nothing then.
func mayBeCovered(path string) error {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }() // it was only read
	switch names, err := f.Readdirnames(1); {
	case len(names) > 0:
		return refused("%s is not empty, nothing is mounted over it", path)
	case errors.Is(err, io.EOF):
		return nil
	default:
		return err
	}
}

// makeDir makes path if it is not there; its parent has to be.
func makeDir(path string) error {
	if err := os.Mkdir(path, 0o750); !errors.Is(err, os.ErrExist) {
		return err
	}
	return nil
}

// NodeStageVolume implements Node: it attaches the volume here, makes its file system if it is blank, and mounts it.
func (d *Driver) NodeStageVolume(ctx context.Context, r *spec.NodeStageVolumeRequest) (*spec.NodeStageVolumeResponse, error) {
	if r.GetVolumeId() == "" {
		return nil, invalid("volume_id is missing")
	}
	path := r.GetStagingTargetPath()
	if err := checkPath("staging_target_path", path); err != nil {
		return nil, err
	}
	if r.GetVolumeCapability() == nil {
		return nil, invalid("volume_capability is missing")
	}
	u, err := parseUse(r.GetVolumeCapability())
	if err != nil {
		return nil, err
	}
	mkfs, ok := mkfsOptions(r.GetVolumeContext()[contextMkfs])
	if !ok {
		return nil, invalid("volume_context: %s has an argument that is not allowed", contextMkfs)
	}
	id, leave, err := d.enter(r.GetVolumeId(), "NodeStageVolume")
	if err != nil {
		return nil, err
	}
	defer leave()
	v, err := d.volume(ctx, id)
	if err != nil {
		return nil, err
	}
	p := v.GetPublication()
	if p.GetNode() != d.o.Node {
		return nil, refused("volume %s is not published to node %s", v.GetName(), d.o.Node)
	}
	u.readOnly = u.readOnly || p.GetReadOnly()
	if u.block {
		if _, err = d.attach(ctx, v, false); err == nil {
			err = d.whole(ctx, v)
		}
	} else {
		err = d.stage(ctx, v, path, u, mkfs)
	}
	if err != nil {
		return nil, err
	}
	return &spec.NodeStageVolumeResponse{}, nil
}

// attach attaches a volume here and returns its device.
func (d *Driver) attach(ctx context.Context, v *volumepb.Volume, format bool) (*volumepb.AttachVolumeResponse, error) {
	return d.o.Backend.AttachVolume(ctx, &volumepb.AttachVolumeRequest{Volume: v.GetId(), Frontend: d.o.Frontend, Node: d.o.Node, ForFormat: format, Actor: actor})
}

// stage mounts a volume at path, if it is not.
func (d *Driver) stage(ctx context.Context, v *volumepb.Volume, path string, u use, mkfs []string) error {
	at, err := d.o.Mounter.At(path)
	if err != nil {
		return err
	}
	switch {
	case at == nil:
	case current(at, v, d.o.Node):
		if at.FS != u.fs {
			return status.Errorf(codes.AlreadyExists, "volume %s is staged at %s with %s", v.GetName(), path, at.FS)
		}
		return d.setGroup(path, u)
	case of(at, VolumeID(v.GetId())) || ended(at):
		if err := d.o.Mounter.Unmount(path, true); err != nil {
			return err
		}
	default:
		return refused("%s is mounted at %s", at.Device, path)
	}
	if err := mayBeCovered(path); err != nil {
		return err
	}
	if err := makeDir(path); err != nil {
		return err
	}
	device, err := d.prepare(ctx, v, u, mkfs)
	if err == nil {
		err = d.whole(ctx, v)
	}
	if err != nil {
		return err
	}
	options := slices.Clone(u.options)
	if u.readOnly {
		options = append(options, "ro")
	}
	if copied(v) && u.fs == mount.XFS {
		options = append(options, "nouuid") // the one that it was made from has the same, and may be mounted on this node
	}
	if err := d.o.Mounter.Mount(ctx, device, path, u.fs, options); err != nil {
		return err
	}
	if err := d.fillDevice(ctx, v, device, path, u); err != nil {
		return err
	}
	return d.setGroup(path, u)
}

func (d *Driver) setGroup(path string, u use) error {
	if u.group < 0 || u.readOnly {
		return nil
	}
	return d.o.Mounter.SetGroup(path, u.group)
}

// prepare attaches a volume and makes its file system, if the cluster has it on record that nobody but mkfs ever wrote to it. What
// can be read from the device never leads to a mkfs; it only can keep one away.
func (d *Driver) prepare(ctx context.Context, v *volumepb.Volume, u use, mkfs []string) (device string, _ error) {
	blank := v.GetContent() == volumepb.Content_CONTENT_BLANK || v.GetContent() == volumepb.Content_CONTENT_FORMATTING
	if blank && u.readOnly {
		return "", refused("volume %s has no file system yet and is to be mounted read-only: use it for writing first", v.GetName())
	}
	resp, err := d.attach(ctx, v, blank)
	if err != nil || !blank {
		return resp.GetPath(), err
	}
	if resp.GetFresh() {
		if err := d.o.Mounter.CheckZero(resp.GetPath()); err != nil {
			// The record and the disks do not agree. Whatever this is, no later attempt may format it.
			_, ferr := d.o.Backend.FinishFormat(context.WithoutCancel(ctx), &volumepb.FinishFormatRequest{Volume: v.GetId()})
			return "", status.Errorf(codes.DataLoss, "volume %s is on record as never written, and is not formatted: %v", v.GetName(), errors.Join(err, ferr))
		}
	}
	if err := d.o.Mounter.Format(ctx, resp.GetPath(), u.fs, mkfs); err != nil {
		return "", err
	}
	if _, err := d.o.Backend.FinishFormat(ctx, &volumepb.FinishFormatRequest{Volume: v.GetId()}); err != nil {
		return "", err
	}
	return resp.GetPath(), nil
}

// NodeUnstageVolume implements Node.
func (d *Driver) NodeUnstageVolume(ctx context.Context, r *spec.NodeUnstageVolumeRequest) (*spec.NodeUnstageVolumeResponse, error) {
	if r.GetVolumeId() == "" {
		return nil, invalid("volume_id is missing")
	}
	path := r.GetStagingTargetPath()
	if err := checkPath("staging_target_path", path); err != nil {
		return nil, err
	}
	id, leave, err := d.enter(r.GetVolumeId(), "NodeUnstageVolume")
	if err != nil {
		return nil, err
	}
	defer leave()
	if err := d.unmount(path, id); err != nil {
		return nil, err
	}
	v, err := d.volume(ctx, id)
	if status.Code(err) == codes.NotFound {
		return &spec.NodeUnstageVolumeResponse{}, nil
	}
	if err != nil {
		return nil, err
	}
	if v.GetAttachment().GetNode() == d.o.Node {
		if _, err := d.o.Backend.DetachVolume(ctx, &volumepb.DetachVolumeRequest{Volume: id.String(), Actor: actor}); err != nil {
			return nil, err
		}
	}
	return &spec.NodeUnstageVolumeResponse{}, nil
}

// unmount takes a volume away from path. FAILED_PRECONDITION: something else is mounted there, or it is in use.
func (d *Driver) unmount(path string, id VolumeID) error {
	at, err := d.o.Mounter.At(path)
	switch {
	case err != nil || at == nil:
		return err
	case ended(at):
		return d.o.Mounter.Unmount(path, true)
	case !of(at, id):
		return refused("what is mounted at %s is not volume %s", path, id)
	}
	if err := d.o.Mounter.Unmount(path, false); errors.Is(err, mount.ErrBusy) {
		return refused("%v", err)
	} else if err != nil {
		return err
	}
	return nil
}
