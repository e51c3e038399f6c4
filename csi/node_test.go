package csi

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"go.uber.org/zap/zaptest"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tandem-storage/tandem/csi/mount"
	"github.com/tandem-storage/tandem/volume/volumepb"
)

// host is node-a with a driver, and a directory to stage in, by way of a symbolic link as /var/lib/kubelet often is.
type host struct {
	*Driver
	c   *cluster
	dir string
}

func newHost(t *testing.T) *host {
	t.Helper()
	c, dir := newCluster(), filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(t.TempDir(), dir); err != nil {
		t.Fatal(err)
	}
	return &host{New(Options{Node: "node-a", Domain: "a", Backend: c, Mounter: c.machine, Logger: zaptest.NewLogger(t)}), c, dir}
}

func mounted(fs string, mode accessMode) *spec.VolumeCapability {
	return &spec.VolumeCapability{
		AccessMode: &spec.VolumeCapability_AccessMode{Mode: mode},
		AccessType: &spec.VolumeCapability_Mount{Mount: &spec.VolumeCapability_MountVolume{FsType: fs}},
	}
}

func raw() *spec.VolumeCapability {
	return &spec.VolumeCapability{
		AccessMode: &spec.VolumeCapability_AccessMode{Mode: spec.VolumeCapability_AccessMode_SINGLE_NODE_WRITER},
		AccessType: &spec.VolumeCapability_Block{Block: &spec.VolumeCapability_BlockVolume{}},
	}
}

const writer = spec.VolumeCapability_AccessMode_SINGLE_NODE_WRITER

// published makes a volume that is published to node-a.
func (h *host) published(t *testing.T, name string, vc *spec.VolumeCapability) *volumepb.Volume {
	t.Helper()
	resp, err := h.CreateVolume(t.Context(), &spec.CreateVolumeRequest{Name: name, VolumeCapabilities: []*spec.VolumeCapability{vc}})
	if err != nil {
		t.Fatal(err)
	}
	id := resp.GetVolume().GetVolumeId()
	if _, err := h.ControllerPublishVolume(t.Context(), &spec.ControllerPublishVolumeRequest{VolumeId: id, NodeId: "node-a", VolumeCapability: vc}); err != nil {
		t.Fatal(err)
	}
	return h.c.volumes[id]
}

func (h *host) stage(ctx context.Context, v *volumepb.Volume, vc *spec.VolumeCapability) error {
	_, err := h.NodeStageVolume(ctx, &spec.NodeStageVolumeRequest{VolumeId: v.Id, StagingTargetPath: h.path(v, "staged"), VolumeCapability: vc})
	return err
}

func (h *host) unstage(ctx context.Context, v *volumepb.Volume) error {
	_, err := h.NodeUnstageVolume(ctx, &spec.NodeUnstageVolumeRequest{VolumeId: v.Id, StagingTargetPath: h.path(v, "staged")})
	return err
}

func (h *host) publishAt(ctx context.Context, v *volumepb.Volume, vc *spec.VolumeCapability, target string, readOnly bool) error {
	_, err := h.NodePublishVolume(ctx, &spec.NodePublishVolumeRequest{
		VolumeId: v.Id, StagingTargetPath: h.path(v, "staged"), TargetPath: target, VolumeCapability: vc, Readonly: readOnly,
	})
	return err
}

func (h *host) path(v *volumepb.Volume, what string) string {
	return filepath.Join(h.dir, v.Name+"-"+what)
}

func wantCode(t *testing.T, err error, want codes.Code) {
	t.Helper()
	if got := status.Code(plainIf(err)); got != want {
		t.Fatalf("%v: %v, want %v", got, err, want)
	}
}

func plainIf(err error) error {
	if err == nil {
		return nil
	}
	return plain(err)
}

// A volume that somebody may have written to is never formatted, whatever reading it says.
func TestNeverFormatsWritten(t *testing.T) {
	for _, tc := range []struct {
		name    string
		content volumepb.Content
		holds   string // what the device has before it is staged
		want    codes.Code
		formats int
	}{
		{"blank", volumepb.Content_CONTENT_BLANK, "", codes.OK, 1},
		{"written with a file system", volumepb.Content_CONTENT_WRITTEN, "xfs", codes.OK, 0},
		{"written, first blocks damaged", volumepb.Content_CONTENT_WRITTEN, "noise", codes.Internal, 0},
		{"written, reads as zeros", volumepb.Content_CONTENT_WRITTEN, "", codes.Internal, 0},
		{"written with a partition table", volumepb.Content_CONTENT_WRITTEN, "gpt", codes.Internal, 0},
		{"written with another file system", volumepb.Content_CONTENT_WRITTEN, "ext4", codes.Internal, 0},
		{"on record as blank, and not", volumepb.Content_CONTENT_BLANK, "noise", codes.DataLoss, 0},
		{"mkfs was interrupted", volumepb.Content_CONTENT_FORMATTING, "half of xfs", codes.OK, 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			h := newHost(t)
			v := h.published(t, "v", mounted("xfs", writer))
			v.Content = tc.content
			dev := h.c.machine.Plug(device(v), "")
			dev.Holds = tc.holds
			wantCode(t, h.stage(t.Context(), v, mounted("xfs", writer)), tc.want)
			if tc.want == codes.OK {
				if dev.Holds != "xfs" || dev.Formats != tc.formats {
					t.Fatalf("holds %q, formatted %d times", dev.Holds, dev.Formats)
				}
				return
			}
			for range 3 { // no attempt makes the next one bolder
				if err := h.stage(t.Context(), v, mounted("xfs", writer)); err == nil {
					t.Fatal("staged at a later attempt")
				}
			}
			if dev.Holds != tc.holds || dev.Formats != 0 {
				t.Fatalf("holds %q, formatted %d times", dev.Holds, dev.Formats)
			}
			if at, err := h.c.machine.At(h.path(v, "staged")); err != nil || at != nil {
				t.Errorf("mounted: %+v, %v", at, err)
			}
		})
	}
}

// A mkfs that fails half-way, or whose end was not recorded, is repeated; one that was recorded never is.
func TestMkfsInterrupted(t *testing.T) {
	h := newHost(t)
	vc := mounted("ext4", writer)
	v := h.published(t, "v", vc)
	h.c.machine.FormatErr = errors.New("killed")
	if err := h.stage(t.Context(), v, vc); err == nil {
		t.Fatal("staged without a file system")
	}
	dev := h.c.machine.Plug(device(v), "")
	if v.Content != volumepb.Content_CONTENT_FORMATTING || dev.Holds != "half of ext4" {
		t.Fatalf("content %v, holds %q", v.Content, dev.Holds)
	}
	h.c.machine.Plug(device(v), "/run/tandem/fuse/"+v.Id+"."+v.Attachment.AttachId+"/device")
	if err := h.stage(t.Context(), v, vc); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := h.unstage(t.Context(), v); err != nil {
			t.Fatal(err)
		}
		if err := h.stage(t.Context(), v, vc); err != nil {
			t.Fatal(err)
		}
	}
	if dev.Formats != 2 || v.Content != volumepb.Content_CONTENT_WRITTEN {
		t.Fatalf("formatted %d times, content %v", dev.Formats, v.Content)
	}
}

// A raw volume is nobody's to format, then or later.
func TestRawBlock(t *testing.T) {
	h := newHost(t)
	v := h.published(t, "v", raw())
	if err := h.stage(t.Context(), v, raw()); err != nil {
		t.Fatal(err)
	}
	target := h.path(v, "target")
	for range 2 {
		if err := h.publishAt(t.Context(), v, raw(), target, false); err != nil {
			t.Fatal(err)
		}
	}
	wantCode(t, h.publishAt(t.Context(), v, raw(), target, true), codes.AlreadyExists)
	reader := h.path(v, "reader")
	for range 2 {
		if err := h.publishAt(t.Context(), v, raw(), reader, true); err != nil {
			t.Fatal(err)
		}
	}
	wantCode(t, h.publishAt(t.Context(), v, raw(), reader, false), codes.AlreadyExists)
	if at, err := h.c.machine.At(reader); err != nil || at == nil || !at.ReadOnly || !at.Block {
		t.Errorf("read-only: %+v, %v", at, err)
	}
	if _, err := h.NodeUnpublishVolume(t.Context(), &spec.NodeUnpublishVolumeRequest{VolumeId: v.Id, TargetPath: reader}); err != nil {
		t.Fatal(err)
	}
	v.Publication.ReadOnly = true // the volume was published to the node for reading
	if err := h.publishAt(t.Context(), v, raw(), reader, false); err != nil {
		t.Fatal(err)
	}
	if at, err := h.c.machine.At(reader); err != nil || at == nil || !at.ReadOnly {
		t.Errorf("published read-only: %+v, %v", at, err)
	}
	if _, err := h.NodeUnpublishVolume(t.Context(), &spec.NodeUnpublishVolumeRequest{VolumeId: v.Id, TargetPath: reader}); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, err := h.NodeUnpublishVolume(t.Context(), &spec.NodeUnpublishVolumeRequest{VolumeId: v.Id, TargetPath: target}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Lstat(target); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("target is left: %v", err)
	}
	for range 2 {
		if err := h.unstage(t.Context(), v); err != nil {
			t.Fatal(err)
		}
	}
	if err := h.stage(t.Context(), v, mounted("xfs", writer)); err == nil {
		t.Error("a raw volume was given a file system")
	}
}

// Paths of a hostile caller, and of one that is late.
func TestPaths(t *testing.T) {
	h := newHost(t)
	vc := mounted("xfs", writer)
	v := h.published(t, "v", vc)
	full, link, file := filepath.Join(h.dir, "full"), filepath.Join(h.dir, "link"), filepath.Join(h.dir, "file")
	for _, err := range []error{os.MkdirAll(filepath.Join(full, "data"), 0o700), os.Symlink(full, link), os.WriteFile(file, []byte("x"), 0o600)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for path, want := range map[string]codes.Code{
		"relative": codes.InvalidArgument, "/": codes.InvalidArgument, "/etc": codes.InvalidArgument, full + "/../full": codes.InvalidArgument,
		full + "/": codes.InvalidArgument, link: codes.InvalidArgument, full: codes.FailedPrecondition,
	} {
		_, err := h.NodeStageVolume(t.Context(), &spec.NodeStageVolumeRequest{VolumeId: v.Id, StagingTargetPath: path, VolumeCapability: vc})
		wantCode(t, err, want)
	}
	if err := h.stage(t.Context(), v, vc); err != nil {
		t.Fatal(err)
	}
	wantCode(t, h.publishAt(t.Context(), v, vc, full, false), codes.FailedPrecondition)
	for _, path := range []string{file, full} {
		_, err := h.NodeUnpublishVolume(t.Context(), &spec.NodeUnpublishVolumeRequest{VolumeId: v.Id, TargetPath: path})
		wantCode(t, err, codes.FailedPrecondition)
		if _, err := os.Lstat(path); err != nil {
			t.Errorf("%s was removed", path)
		}
	}
	other := h.published(t, "other", vc)
	_, err := h.NodeUnstageVolume(t.Context(), &spec.NodeUnstageVolumeRequest{VolumeId: other.Id, StagingTargetPath: h.path(v, "staged")})
	wantCode(t, err, codes.FailedPrecondition)
}

// One writer has one path; a device whose attachment has ended is replaced, and until then the volume is not healthy there.
func TestPublishTargets(t *testing.T) {
	h := newHost(t)
	one := mounted("xfs", spec.VolumeCapability_AccessMode_SINGLE_NODE_SINGLE_WRITER)
	v := h.published(t, "v", one)
	wantCode(t, h.publishAt(t.Context(), v, one, h.path(v, "t1"), false), codes.FailedPrecondition) // not staged
	if err := h.stage(t.Context(), v, one); err != nil {
		t.Fatal(err)
	}
	if err := h.publishAt(t.Context(), v, one, h.path(v, "t1"), false); err != nil {
		t.Fatal(err)
	}
	wantCode(t, h.publishAt(t.Context(), v, one, h.path(v, "t1"), true), codes.AlreadyExists)
	wantCode(t, h.publishAt(t.Context(), v, one, h.path(v, "t2"), false), codes.FailedPrecondition)
	if err := h.publishAt(t.Context(), v, mounted("xfs", spec.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER), h.path(v, "t2"), false); err != nil {
		t.Fatal(err)
	}

	v.Attachment = nil // the daemon died; its loop device has lost its file
	h.c.machine.Plug(device(v), "")
	dead := h.c.machine.Plug(device(v), "/device")
	health, err := h.NodeGetVolumeHealth(t.Context(), &spec.NodeGetVolumeHealthRequest{VolumeId: v.Id, StagingTargetPath: h.path(v, "staged")})
	if err != nil || len(health.GetVolumeHealth().GetHealthStatuses()) != 1 {
		t.Fatalf("health %v, %v", health, err)
	}
	wantCode(t, h.publishAt(t.Context(), v, one, h.path(v, "t1"), false), codes.FailedPrecondition)
	if err := h.stage(t.Context(), v, one); err != nil {
		t.Fatal(err)
	}
	if dead.Formats != 1 {
		t.Errorf("formatted %d times", dead.Formats)
	}
	if at, err := h.c.machine.At(h.path(v, "staged")); err != nil || !current(at, v, "node-a") {
		t.Errorf("staged %+v, %v", at, err)
	}
}

// The file system of a machine is checked for zeros at both ends.
func TestCheckZero(t *testing.T) {
	path := filepath.Join(t.TempDir(), "device")
	for at, want := range map[int64]bool{-1: true, 0: false, 1<<20 - 1: false, 4<<20 - 1: false, 3 << 20: false} {
		data := make([]byte, 4<<20)
		if at >= 0 {
			data[at] = 1
		}
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := (mount.System{}).CheckZero(path); (err == nil) != want || err != nil && !errors.Is(err, mount.ErrNotZero) {
			t.Errorf("a byte at %d: %v", at, err)
		}
	}
	if err := (mount.System{}).CheckZero(path + "-none"); !errors.Is(err, mount.ErrNotZero) {
		t.Errorf("unreadable: %v", err)
	}
}
