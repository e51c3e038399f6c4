package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	spec "github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/tandem-storage/tandem/deploy/lab"
)

// waits reports whether a thread of process pid, or of a child of it, waits in the kernel for a disk.
func waits(pid int) bool {
	own, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
	children, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, file := range children {
		data, _ := os.ReadFile(file) // of a thread that may have ended
		for child := range strings.FieldsSeq(string(data)) {
			more, _ := filepath.Glob("/proc/" + child + "/task/*/stat")
			own = append(own, more...)
		}
	}
	for _, file := range own {
		data, _ := os.ReadFile(file)
		if _, rest, _ := strings.Cut(string(data), ") "); strings.HasPrefix(rest, "D ") {
			return true
		}
	}
	return false
}

// TestKilledWhileItUnmounts kills a daemon while its driver unmounts a file system on one of its own devices, whose writes wait for another node. It ends,
// and so does the mount: no thread of it waits for a request that it would have to answer itself.
func TestKilledWhileItUnmounts(t *testing.T) {
	needRoot(t, "/dev/fuse", "/dev/loop-control")
	need(t, "mkfs.ext4", "mount")
	sockets := map[string]string{}
	c := own(t, serveCSI(sockets))
	a := orchestrate(t, sockets["a1"], filepath.Join(c.dir, "stage"))
	made, err := a.CreateVolume(t.Context(), &spec.CreateVolumeRequest{
		Name: "pvc-1", VolumeCapabilities: []*spec.VolumeCapability{onExt4}, CapacityRange: &spec.CapacityRange{RequiredBytes: 64 << 20},
		Parameters: map[string]string{"replicas": "2"},
	})
	if err != nil {
		t.Fatal(err)
	}
	id := made.GetVolume().GetVolumeId()
	var away string
	for _, r := range c.inspect(t, "a1", "pvc-1").Volume.Replicas {
		if r.Domain == beta {
			away = r.Node
		}
	}
	publish := func() error {
		_, err := a.ControllerPublishVolume(t.Context(), &spec.ControllerPublishVolumeRequest{VolumeId: id, NodeId: "a1", VolumeCapability: onExt4})
		return err
	}
	stage := func() error {
		_, err := a.NodeStageVolume(t.Context(), &spec.NodeStageVolumeRequest{VolumeId: id, StagingTargetPath: a.staged(id), VolumeCapability: onExt4})
		return err
	}
	if err := errors.Join(publish(), stage()); err != nil {
		t.Fatal(err)
	}
	want := []byte("stable before the kill\n")
	if err := os.WriteFile(filepath.Join(a.staged(id), "file"), want, 0o600); err != nil {
		t.Fatal(err)
	}
	sh(t, "sync", "-f", a.staged(id))
	if err := os.WriteFile(filepath.Join(a.staged(id), "dirty"), bytes.Repeat(want, 1<<14), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := c.Node(away).Signal(syscall.SIGSTOP); err != nil { // nobody is evicted for 3 s
		t.Fatal(err)
	}
	go func() { // it is not answered
		_, _ = a.NodeUnstageVolume(context.WithoutCancel(t.Context()), &spec.NodeUnstageVolumeRequest{VolumeId: id, StagingTargetPath: a.staged(id)})
	}()
	if err := lab.Until(t.Context(), "the unmount waits", 20*time.Second, 5*time.Millisecond, func() (bool, error) { return waits(c.Node("a1").PID()), nil }); err != nil {
		t.Fatal(err)
	}
	err = c.Node("a1").Kill()
	if cerr := c.Node(away).Signal(syscall.SIGCONT); cerr != nil {
		t.Fatal(cerr)
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := c.StartNode(c.Node("a1")); err != nil {
		t.Fatal(err)
	}
	c.online(t, "a1")
	until(t, "stage the volume anew", time.Minute, func() (bool, error) {
		err := stage()
		return err == nil, err
	})
	if got, err := os.ReadFile(filepath.Join(a.staged(id), "file")); err != nil || !bytes.Equal(got, want) {
		t.Errorf("after the kill: %q, %v", got, err)
	}
	a.leave(t, id, "a1")
}
