package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"

	"github.com/tandem-storage/tandem/deploy/lab"
)

// devices starts the process that keeps a node's devices.
func (c *cluster) devices(t *testing.T, node string) *lab.Process {
	t.Helper()
	n := c.Node(node)
	p, err := c.StartDevices(n)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Kill() })
	until(t, "the device process listens", 20*time.Second, func() (bool, error) {
		if !p.Running() {
			return false, lab.Final(errors.New(lab.Tail(p.Log, 5)))
		}
		_, err := os.Stat(filepath.Join(n.Dir, "run", "device.sock"))
		return err == nil, nil
	})
	return p
}

// let waits until nobody has a device mounted any more: another mount namespace that was made while it was has it, too, until it ends.
func let(t *testing.T, dev string) {
	t.Helper()
	until(t, dev+" is free", time.Minute, func() (bool, error) {
		f, err := os.OpenFile(dev, os.O_RDONLY|unix.O_EXCL, 0)
		if err != nil {
			return false, fmt.Errorf("%w; mounted in %v", err, mountedIn(dev))
		}
		return true, f.Close()
	})
}

// mountedIn lists the processes that see a device mounted.
func mountedIn(dev string) (seen []string) {
	files, _ := filepath.Glob("/proc/[0-9]*/mountinfo")
	for _, file := range files {
		mounts, _ := os.ReadFile(file) // of a process that may have ended
		if strings.Contains(string(mounts), " "+dev+" ") {
			name, _ := os.ReadFile(filepath.Join(filepath.Dir(file), "comm"))
			seen = append(seen, filepath.Base(filepath.Dir(file))+" "+strings.TrimSpace(string(name)))
		}
	}
	return seen
}

// TestDeviceRestart: a file system on a device that a process of its own keeps, with a writer that calls fsync, sees pauses and no error when
// the daemon is killed, and when it is ended in order, again and again.
func TestDeviceRestart(t *testing.T) {
	needRoot(t, "/dev/fuse", "/dev/loop-control")
	need(t, "mkfs.xfs", "xfs_repair", "mount", "umount", python)
	c := shared(t)
	v := c.create(t, "device", "512Mi")
	keeper := c.devices(t, v.home)
	dev := c.attach(t, v.home, v.name, "device")
	sh(t, "mkfs.xfs", "-q", "-f", dev)
	w := newFileWriter(t, dev)
	w.mount(t)
	w.start(t)
	rng := seeded(t)
	// restarts returns in how many restarts the volume was served again with nothing to compare.
	restarts := func(t *testing.T, end func() error) (settled int) {
		t.Helper()
		var longest time.Duration
		for range 10 {
			w.more(t, 5+rng.IntN(40), time.Minute)
			m, began := c.mark(t, v.home), time.Now()
			if err := end(); err != nil {
				t.Fatal(err)
			}
			if err := c.StartNode(c.Node(v.home)); err != nil {
				t.Fatal(err)
			}
			w.more(t, 1, time.Minute)
			longest = max(longest, w.pause(t, began))
			for _, e := range m.since(t, "volume serving") {
				if e.Dirty == 0 {
					settled++
				}
			}
		}
		t.Logf("longest time without a confirmed fsync, of 10 restarts: %v", longest.Round(time.Millisecond))
		return settled
	}
	chapters(t, chapter{"killed ten times", func(t *testing.T) {
		if n := restarts(t, c.Node(v.home).Kill); n == 10 {
			t.Error("there was nothing to compare after any kill: then the next chapter proves nothing")
		}
	}}, chapter{"ended in order ten times", func(t *testing.T) {
		until(t, "what the last kill left is compared", time.Minute, func() (bool, error) {
			out := c.ctl(t, v.home, "volume", "inspect", v.name)
			return !strings.Contains(out, "Comparing"), errors.New(out)
		})
		m := c.mark(t, v.home)
		if n := restarts(t, c.Node(v.home).Stop); n != 10 {
			t.Errorf("there was nothing to compare after %d ends of 10", n)
		}
		if n := len(m.since(t, "attachment is left to the next process")); n != 10 {
			t.Errorf("it was left settled to the next process %d times of 10", n)
		}
	}}, chapter{"found again, checked and detached", func(t *testing.T) {
		if again := c.attach(t, v.home, v.name, "device"); again != dev {
			t.Errorf("attached as %s, it was %s", again, dev)
		}
		w.stop(t)
		w.check(t)
		c.refused(t, v.home, 4, []string{v.name, "in use"}, "host", "detach", v.name, "--timeout", "20s")
		w.unmount(t)
		let(t, dev)
		sh(t, "xfs_repair", "-n", dev)
		c.detach(t, v.home, v.name)
		if names := c.records(t, v.home); len(names) > 0 {
			t.Errorf("records of attachments are left: %v", names)
		}
		if _, err := os.Stat("/sys/block/" + filepath.Base(dev) + "/loop/backing_file"); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is still there: %v", dev, err)
		}
		c.identical(t, v.name)
	}}, chapter{"the device process killed", func(t *testing.T) {
		w = newFileWriter(t, c.attach(t, v.home, v.name, "device"))
		sh(t, "mkfs.xfs", "-q", "-f", w.dev)
		w.mount(t)
		w.start(t)
		if err := keeper.Kill(); err != nil {
			t.Fatal(err)
		}
		until(t, "the writer gets an error", 30*time.Second, func() (bool, error) { return !w.proc.Running(), nil })
		keeper = c.devices(t, v.home)
		if _, err := lab.Run(t.Context(), "umount", w.mnt); err != nil {
			t.Error(err)
		}
		w.dev = c.attach(t, v.home, v.name, "device")
		w.mount(t)
		w.check(t)
		w.unmount(t)
		let(t, w.dev)
		c.detach(t, v.home, v.name)
		c.identical(t, v.name)
	}})
}

// TestDeviceDeposed is a device whose volume is attached on the other site while its daemon is down: when that is back, the device fails. It never
// shows what is written there.
func TestDeviceDeposed(t *testing.T) {
	needRoot(t, "/dev/fuse", "/dev/loop-control")
	need(t, "qemu-io")
	c := own(t, nil)
	v := c.create(t, "deposed", "64Mi")
	c.devices(t, v.home)
	dev := c.attach(t, v.home, v.name, "device")
	io := func(command string) string {
		out, err := lab.Run(t.Context(), "qemu-io", "-f", "raw", "-t", "none", "-c", command, dev)
		if err != nil {
			return fmt.Sprint(out, err)
		}
		return out
	}
	if got := io("write -P 1 0 64k"); !succeeded(got) {
		t.Fatal(got)
	}
	if err := c.Node(v.home).Kill(); err != nil {
		t.Fatal(err)
	}
	uri := c.attach(t, v.spare2, v.name, "nbd")
	sh(t, "qemu-io", "-f", "raw", "-c", "write -P 2 0 64k", uri)
	waiting := make(chan string, 1)
	go func() { waiting <- io("read -P 1 0 64k") }() // asked while nobody serves it
	m := c.mark(t, v.home)
	if err := c.StartNode(c.Node(v.home)); err != nil {
		t.Fatal(err)
	}
	m.await(t, "attachment has ended, its consumers get errors: attach again", 20*time.Second)
	if got := <-waiting; succeeded(got) || strings.Contains(got, "verification") {
		t.Errorf("a read that waited: %s", got)
	}
	for _, command := range []string{"read -P 2 0 64k", "write -P 1 0 64k"} {
		if got := io(command); succeeded(got) {
			t.Errorf("%s on a device whose attachment has ended: %s", command, got)
		}
	}
	sh(t, "qemu-io", "-f", "raw", "-c", "read -P 2 0 64k", uri)
	c.inSync(t, v.spare2, v.name, time.Minute, v.home, v.away)
	c.detach(t, v.spare2, v.name)
	c.identical(t, v.name)
}

// TestDeviceCSI: what an orchestrator has staged goes on through restarts of the daemon, and the driver knows it again.
func TestDeviceCSI(t *testing.T) {
	needRoot(t, "/dev/fuse", "/dev/loop-control")
	need(t, "mkfs.xfs", "mount")
	const node = "a1"
	socket := ""
	c := own(t, func(s *lab.Spec) {
		s.Adjust = func(name string, cfg map[string]any) {
			if name == node {
				socket = filepath.Join(cfg["runDir"].(string), "csi.sock")
				cfg["csi"] = map[string]any{"socket": socket}
				cfg["frontends"] = map[string]any{"default": "device"}
			}
		}
	})
	keeper := c.devices(t, node)
	o := orchestrate(t, socket, filepath.Join(c.dir, "stage"))
	made, err := o.CreateVolume(t.Context(), &spec.CreateVolumeRequest{
		Name: "pvc-1", VolumeCapabilities: []*spec.VolumeCapability{onXFS}, CapacityRange: &spec.CapacityRange{RequiredBytes: 320 << 20},
		Parameters: map[string]string{"replicas": "2"},
	})
	if err != nil {
		t.Fatal(err)
	}
	id := made.GetVolume().GetVolumeId()
	if err := o.use(t, id, node); err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(filepath.Join(o.staged(id), "file")) // open over all restarts
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	// staged stages it once more, and reports whether its health is that of a volume in use.
	staged := func() (bool, error) {
		if err := o.use(t, id, node); err != nil {
			return false, err
		}
		h, err := o.NodeGetVolumeHealth(t.Context(), &spec.NodeGetVolumeHealthRequest{VolumeId: id, StagingTargetPath: o.staged(id)})
		return err == nil && !slices.ContainsFunc(h.GetVolumeHealth().GetHealthStatuses(), func(e *spec.VolumeHealth_VolumeHealthEntry) bool {
			return e.GetStatus() == spec.VolumeHealthErrorType_INACCESSIBLE
		}), err
	}
	for _, end := range []func() error{c.Node(node).Kill, c.Node(node).Stop} {
		if _, err := f.WriteString("one more line\n"); err != nil {
			t.Fatal(err)
		}
		if err := end(); err != nil {
			t.Fatal(err)
		}
		if err := c.StartNode(c.Node(node)); err != nil {
			t.Fatal(err)
		}
		if err := f.Sync(); err != nil {
			t.Fatalf("fsync over a restart: %v", err)
		}
		c.online(t, node)
		until(t, "the volume is staged still", time.Minute, staged)
		if err := f.Sync(); err != nil { // it is the same mount
			t.Fatalf("fsync after the volume was staged again: %v", err)
		}
	}

	if err := keeper.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(); err == nil {
		if _, err = f.WriteString("x"); err == nil && f.Sync() == nil {
			t.Error("fsync without a device succeeded")
		}
	}
	_ = f.Close() // XFS mounts no second time while the dead one is in use
	c.devices(t, node)
	until(t, "the volume is staged anew", time.Minute, staged)
	want := "one more line\none more line\n"
	if got, err := os.ReadFile(filepath.Join(o.staged(id), "file")); err != nil || string(got) != want {
		t.Errorf("there is %q, %v", got, err)
	}
	o.leave(t, id, node)
}
