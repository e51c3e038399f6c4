package e2e

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
)

var asDevice = &spec.VolumeCapability{
	AccessMode: onXFS.GetAccessMode(),
	AccessType: &spec.VolumeCapability_Block{Block: &spec.VolumeCapability_BlockVolume{}},
}

// TestCSIReadOnlyDevice: a volume that is published as a raw device to one pod for reading and to another for writing. The reader sees what the writer writes
// and cannot write, also after the daemon was killed and both were published again, and nothing is left of either.
func TestCSIReadOnlyDevice(t *testing.T) {
	needRoot(t, "/dev/fuse", "/dev/loop-control")
	sockets := map[string]string{}
	c := own(t, serveCSI(sockets))
	a := orchestrate(t, sockets["a1"], filepath.Join(c.dir, "stage-a"))
	made, err := a.CreateVolume(t.Context(), &spec.CreateVolumeRequest{
		Name: "raw", VolumeCapabilities: []*spec.VolumeCapability{asDevice}, CapacityRange: &spec.CapacityRange{RequiredBytes: 64 << 20},
		Parameters: map[string]string{"replicas": "2"},
	})
	if err != nil {
		t.Fatal(err)
	}
	id := made.GetVolume().GetVolumeId()
	if _, err := a.ControllerPublishVolume(t.Context(), &spec.ControllerPublishVolumeRequest{VolumeId: id, NodeId: "a1", VolumeCapability: asDevice}); err != nil {
		t.Fatal(err)
	}
	writer, reader := filepath.Join(a.dir, "writer"), filepath.Join(a.dir, "reader")
	show := func() error {
		if _, err := a.NodeStageVolume(t.Context(), &spec.NodeStageVolumeRequest{VolumeId: id, StagingTargetPath: a.staged(id), VolumeCapability: asDevice}); err != nil {
			return err
		}
		for _, target := range []string{writer, reader} {
			if _, err := a.NodePublishVolume(t.Context(), &spec.NodePublishVolumeRequest{
				VolumeId: id, StagingTargetPath: a.staged(id), TargetPath: target, VolumeCapability: asDevice, Readonly: target == reader,
			}); err != nil {
				return err
			}
		}
		return nil
	}
	for _, target := range []string{writer, reader} {
		t.Cleanup(func() { _ = unix.Unmount(target, unix.MNT_DETACH) }) // of a test that failed
	}
	if err := show(); err != nil {
		t.Fatal(err)
	}
	check := func(first byte) {
		t.Helper()
		want := bytes.Repeat([]byte{first}, 1<<20)
		overwrite(t, writer, want)
		f, err := os.OpenFile(reader, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		got := make([]byte, len(want))
		if _, err := f.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
			t.Errorf("the reader has something else: %v", err)
		}
		if n, err := f.WriteAt([]byte("no"), 0); err == nil || n != 0 {
			t.Errorf("the reader wrote %d bytes, %v", n, err)
		}
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	}
	check('1')
	if err := c.Node("a1").Kill(); err != nil {
		t.Fatal(err)
	}
	if err := c.StartNode(c.Node("a1")); err != nil {
		t.Fatal(err)
	}
	c.online(t, "a1")
	until(t, "publish the volume anew", time.Minute, func() (bool, error) {
		err := show()
		return err == nil, err
	})
	check('2')
	for range 2 {
		for _, target := range []string{writer, reader} {
			if _, err := a.NodeUnpublishVolume(t.Context(), &spec.NodeUnpublishVolumeRequest{VolumeId: id, TargetPath: target}); err != nil {
				t.Fatal(err)
			}
		}
	}
	a.leave(t, id, "a1")
	if _, err := a.DeleteVolume(t.Context(), &spec.DeleteVolumeRequest{VolumeId: id}); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if file, err := os.ReadFile(f); err == nil && strings.Contains(string(file), id) { // one that was over it would have kept it
			t.Errorf("%s is over %s", f, file)
		}
	}
}
