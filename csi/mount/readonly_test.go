package mount

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestReadOnlyDevice: what a device is bound to read-only reads as the device does and takes no write, also with the rights of root; the device itself does. The
// device that is in between goes when it is unbound, at the latest when its last user ends.
func TestReadOnlyDevice(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("not root")
	}
	if _, err := os.Stat("/dev/loop-control"); err != nil {
		t.Skip(err)
	}
	command := func(args ...string) string {
		t.Helper()
		out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %v\n%s", args, err, out)
		}
		return strings.TrimSpace(string(out))
	}
	// Shared, so that what a process with mounts of its own does here is seen by this one.
	dir := t.TempDir()
	command("mount", "-t", "tmpfs", "none", dir)
	defer command("umount", dir)
	command("mount", "--make-shared", dir)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	image, target := filepath.Join(dir, "image"), filepath.Join(dir, "target")
	want := bytes.Repeat([]byte("tandem.."), 512)
	if err := os.WriteFile(image, bytes.Repeat(want, 256), 0o600); err != nil {
		t.Fatal(err)
	}
	device := command("losetup", "--find", "--show", "--sector-size", "4096", image)
	defer command("losetup", "--detach", device)
	if err := os.WriteFile(target, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	over := func() string { return command("losetup", "--noheadings", "--output", "NAME", "--associated", device) }
	for name, s := range map[string]System{
		"": {}, "by a child": {Helper: []string{self, stepArgument}},
		"by one with mounts of its own, as in a container": {Helper: []string{"unshare", "--mount", "--propagation", "unchanged", self, stepArgument}},
	} {
		t.Run(name, func(t *testing.T) {
			if err := s.Bind(device, filepath.Join(dir, "nowhere"), true); err == nil {
				t.Error("bound to what is not there")
			}
			if l := over(); l != "" {
				t.Errorf("left behind: %s", l)
			}
			if err := s.Bind(device, target, true); err != nil {
				t.Fatal(err)
			}
			at, err := s.At(target)
			if err != nil || at == nil || !at.ReadOnly || !at.Block || at.Device == device || at.Backing != image {
				t.Fatalf("at the target: %+v, %v", at, err)
			}
			for _, set := range []int{1, 0} { // nor if somebody says that the device may be written
				if err := write(target, set); err == nil {
					t.Errorf("written to, with BLKROSET %d", set)
				}
			}
			if err := s.Bind(device, target, false); err != nil { // a second one on top, for writing
				t.Fatal(err)
			}
			if at, err := s.At(target); err != nil || at == nil || at.ReadOnly || !at.Block || at.Device != device {
				t.Errorf("on top: %+v, %v", at, err)
			}
			if err := write(target, 0); err != nil {
				t.Error(err)
			}
			if err := s.Unmount(target, false); err != nil {
				t.Fatal(err)
			}
			if l := over(); l != at.Device {
				t.Errorf("%q is over %s, want %s", l, device, at.Device)
			}
			user, err := os.Open(at.Device)
			if err != nil {
				t.Fatal(err)
			}
			got := make([]byte, len(want))
			if _, err := user.ReadAt(got, 0); err != nil || !bytes.Equal(got[6:], want[6:]) || string(got[:6]) != "TANDEM" {
				t.Errorf("read %.32q, %v", got, err)
			}
			if err := s.Unmount(target, false); err != nil {
				t.Fatal(err)
			}
			if _, err := user.ReadAt(got, int64(len(want))); err != nil || !bytes.Equal(got, want) {
				t.Errorf("its last user reads %.32q, %v", got, err)
			}
			if err := user.Close(); err != nil {
				t.Error(err)
			}
			if l := over(); l != "" {
				t.Errorf("left behind: %s", l)
			}

			// One that was cut short before it had unmounted the target.
			if err := s.Bind(device, target, true); err != nil {
				t.Fatal(err)
			}
			f, err := letGo(target)
			if err != nil || f == nil {
				t.Fatal(f, err)
			}
			if err := f.Close(); err != nil {
				t.Fatal(err)
			}
			if at, err := s.At(target); err != nil || at == nil || at.Backing != "" || over() != "" {
				t.Errorf("at the target of one that was cut short: %+v, %v; over the device: %q", at, err, over())
			}
			if err := s.Unmount(target, true); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// write writes to the start of a device, after it was told to be read-only, or not to be.
func write(device string, readOnly int) error {
	f, err := os.OpenFile(device, os.O_WRONLY|unix.O_SYNC, 0)
	if err != nil {
		return err
	}
	if err = unix.IoctlSetPointerInt(int(f.Fd()), unix.BLKROSET, readOnly); err == nil {
		_, err = f.WriteAt([]byte("TANDEM"), 0)
	}
	return errors.Join(err, f.Close())
}
