package mount

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestGrow: a file system gets the size of its device, XFS while it is mounted. That of ext4 is not: the kernel grows one that is mounted for CAP_SYS_RESOURCE
// only, which test machines seldom give.
func TestGrow(t *testing.T) {
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
	const mib = 1 << 20
	for _, fs := range []string{XFS, Ext4} {
		t.Run(fs, func(t *testing.T) {
			image, dir := filepath.Join(t.TempDir(), "image"), t.TempDir()
			if err := os.WriteFile(image, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Truncate(image, 320*mib); err != nil {
				t.Fatal(err)
			}
			device := command("losetup", "--find", "--show", image)
			defer command("losetup", "--detach", device)
			if err := (System{}).Format(t.Context(), device, fs, nil); err != nil {
				t.Fatal(err)
			}
			if err := os.Truncate(image, 640*mib); err != nil {
				t.Fatal(err)
			}
			command("losetup", "--set-capacity", device)
			grow := func() {
				t.Helper()
				for range 2 { // again is no harm
					if err := (System{}).Grow(t.Context(), device, dir, fs); err != nil {
						t.Fatal(err)
					}
				}
			}
			if fs == Ext4 {
				grow()
			}
			if err := (System{}).Mount(t.Context(), device, dir, fs, nil); err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := (System{}).Unmount(dir, false); err != nil {
					t.Error(err)
				}
			}()
			if fs == XFS {
				grow()
			}
			if u, err := (System{}).Usage(dir); err != nil || u.TotalBytes < 500*mib {
				t.Errorf("the file system has %d bytes (%v)", u.TotalBytes, err)
			}
		})
	}
	if err := (System{}).Grow(t.Context(), "/dev/null", t.TempDir(), "btrfs"); !errors.Is(err, ErrCommand) {
		t.Errorf("another file system: %v", err)
	}
}
