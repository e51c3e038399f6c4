package e2e

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/tandem-storage/tandem/deploy/lab"
)

// orchestrator is what a node's CSI socket is to a kubelet and its sidecars.
type orchestrator struct {
	spec.ControllerClient
	spec.NodeClient
	dir string // of what it stages
}

func orchestrate(t *testing.T, socket, dir string) *orchestrator {
	t.Helper()
	cc, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cc.Close() })
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return &orchestrator{spec.NewControllerClient(cc), spec.NewNodeClient(cc), dir}
}

// serveCSI has every node serve CSI, and fills in its socket.
func serveCSI(sockets map[string]string) func(*lab.Spec) {
	return func(s *lab.Spec) {
		s.Adjust = func(node string, cfg map[string]any) {
			if cfg["role"] == "node" {
				sockets[node] = filepath.Join(cfg["runDir"].(string), "csi.sock")
				cfg["csi"] = map[string]any{"socket": sockets[node]}
			}
		}
	}
}

var onXFS = &spec.VolumeCapability{
	AccessMode: &spec.VolumeCapability_AccessMode{Mode: spec.VolumeCapability_AccessMode_SINGLE_NODE_WRITER},
	AccessType: &spec.VolumeCapability_Mount{Mount: &spec.VolumeCapability_MountVolume{FsType: "xfs"}},
}

var onExt4 = &spec.VolumeCapability{
	AccessMode: onXFS.GetAccessMode(),
	AccessType: &spec.VolumeCapability_Mount{Mount: &spec.VolumeCapability_MountVolume{FsType: "ext4"}},
}

func (o *orchestrator) staged(id string) string { return filepath.Join(o.dir, id) }

// use publishes a volume to node and stages it there.
func (o *orchestrator) use(t *testing.T, id, node string) error {
	t.Helper()
	if _, err := o.ControllerPublishVolume(t.Context(), &spec.ControllerPublishVolumeRequest{VolumeId: id, NodeId: node, VolumeCapability: onXFS}); err != nil {
		return err
	}
	t.Cleanup(func() { _ = unix.Unmount(o.staged(id), unix.MNT_DETACH) }) // of a test that failed
	_, err := o.NodeStageVolume(t.Context(), &spec.NodeStageVolumeRequest{VolumeId: id, StagingTargetPath: o.staged(id), VolumeCapability: onXFS})
	return err
}

func (o *orchestrator) leave(t *testing.T, id, node string) {
	t.Helper()
	if _, err := o.NodeUnstageVolume(t.Context(), &spec.NodeUnstageVolumeRequest{VolumeId: id, StagingTargetPath: o.staged(id)}); err != nil {
		t.Fatal(err)
	}
	if _, err := o.ControllerUnpublishVolume(t.Context(), &spec.ControllerUnpublishVolumeRequest{VolumeId: id, NodeId: node}); err != nil {
		t.Fatal(err)
	}
}

// TestCSI has two domains serve CSI: a volume goes from one to the other with what is on it, a damaged one is never formatted, whatever it looks
// like, and the device of a daemon that was killed is replaced.
func TestCSI(t *testing.T) {
	needRoot(t, "/dev/fuse", "/dev/loop-control")
	need(t, "mkfs.xfs", "mount")
	sockets := map[string]string{}
	c := own(t, serveCSI(sockets))
	a := orchestrate(t, sockets["a1"], filepath.Join(c.dir, "stage-a"))
	b := orchestrate(t, sockets["b1"], filepath.Join(c.dir, "stage-b"))
	made, err := a.CreateVolume(t.Context(), &spec.CreateVolumeRequest{
		Name: "pvc-1", VolumeCapabilities: []*spec.VolumeCapability{onXFS}, CapacityRange: &spec.CapacityRange{RequiredBytes: 320 << 20},
		Parameters: map[string]string{"replicas": "2"},
	})
	if err != nil {
		t.Fatal(err)
	}
	id := made.GetVolume().GetVolumeId()

	if err := a.use(t, id, "a1"); err != nil {
		t.Fatal(err)
	}
	want := bytes.Repeat([]byte("written at a1\n"), 1<<12)
	if err := os.WriteFile(filepath.Join(a.staged(id), "file"), want, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := b.use(t, id, "b1"); status.Code(err) != codes.FailedPrecondition {
		t.Fatalf("published to two nodes: %v", err)
	}
	a.leave(t, id, "a1")
	c.holds(t, b, id, "b1", want)

	t.Run("killed", func(t *testing.T) {
		if err := a.use(t, id, "a1"); err != nil {
			t.Fatal(err)
		}
		if err := c.Node("a1").Kill(); err != nil {
			t.Fatal(err)
		}
		if err := c.StartNode(c.Node("a1")); err != nil {
			t.Fatal(err)
		}
		c.online(t, "a1")
		until(t, "stage the volume anew", time.Minute, func() (bool, error) {
			err := a.use(t, id, "a1")
			return err == nil, err
		})
		if got, err := os.ReadFile(filepath.Join(a.staged(id), "file")); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("after a kill: %d bytes, %v", len(got), err)
		}
		a.leave(t, id, "a1")
	})
	t.Run("damaged", func(t *testing.T) {
		for _, first := range []byte{0, 0xa5} {
			dev := c.attach(t, "a1", "pvc-1", "fuseloop")
			noise := bytes.Repeat([]byte{first}, 1<<20)
			overwrite(t, dev, noise)
			c.detach(t, "a1", "pvc-1")
			for range 2 {
				if err := b.use(t, id, "b1"); err == nil {
					t.Fatal("a damaged volume was staged")
				}
			}
			b.leave(t, id, "b1")
			dev = c.attach(t, "a1", "pvc-1", "fuseloop")
			got := make([]byte, len(noise))
			if f, err := os.Open(dev); err != nil {
				t.Fatal(err)
			} else if _, err := f.ReadAt(got, 0); err != nil || !bytes.Equal(got, noise) {
				t.Fatalf("the data did not stay: %v", err)
			} else if err := f.Close(); err != nil {
				t.Fatal(err)
			}
			c.detach(t, "a1", "pvc-1")
		}
	})
	left, err := a.ListVolumes(t.Context(), &spec.ListVolumesRequest{})
	if err != nil || slices.ContainsFunc(left.GetEntries(), func(e *spec.ListVolumesResponse_Entry) bool { return e.GetVolume().GetVolumeId() != id }) {
		t.Errorf("left over: %v, %v", left, err)
	}
}

// holds has a node stage a volume whose file is as it was written.
func (c *cluster) holds(t *testing.T, o *orchestrator, id, node string, want []byte) {
	t.Helper()
	if err := o.use(t, id, node); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(filepath.Join(o.staged(id), "file")); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("on %s: %d bytes, %v", node, len(got), err)
	}
	o.leave(t, id, node)
}

// overwrite writes data at the beginning of a device, stable.
func overwrite(t *testing.T, dev string, data []byte) {
	t.Helper()
	f, err := os.OpenFile(dev, os.O_WRONLY|os.O_SYNC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(data, 0); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}
