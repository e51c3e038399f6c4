package mount

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

const stepArgument = "mount-step"

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == stepArgument {
		os.Exit(Step(os.Args[2:]))
	}
	os.Exit(m.Run())
}

// TestSteps: what a child does is what System does itself, errors among it.
func TestSteps(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("not root")
	}
	for _, s := range []System{{}, {Helper: []string{"/proc/self/exe", stepArgument}}} {
		dir := filepath.Join(t.TempDir(), "mounted here -f")
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount("none", dir, "tmpfs", 0, ""); err != nil {
			if errors.Is(err, unix.EPERM) {
				t.Skip(err) // root of a container that may not mount
			}
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) }) // of a test that failed
		if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := s.SetGroup(dir, 4711); err != nil {
			t.Fatal(err)
		}
		if fi, err := os.Stat(filepath.Join(dir, "file")); err != nil {
			t.Fatal(err)
		} else if gid, ok := gidOf(fi); !ok || gid != 4711 || fi.Mode().Perm() != 0o660 {
			t.Errorf("with %v the file has group %d and mode %v", s.Helper, gid, fi.Mode())
		}
		if err := s.SetGroup(filepath.Join(dir, "nothing"), 4711); err == nil || !strings.Contains(err.Error(), "no such file") {
			t.Errorf("with %v the group of nothing: %v", s.Helper, err)
		}
		if _, err := s.Freeze(dir); !errors.Is(err, unix.EOPNOTSUPP) && (err == nil || !strings.Contains(err.Error(), "not supported")) {
			t.Errorf("with %v a file system in memory is frozen: %v", s.Helper, err)
		}
		if was, err := s.Thaw(dir); was || err != nil {
			t.Errorf("with %v what is not frozen: %v, %v", s.Helper, was, err)
		}
		f, err := os.Open(filepath.Join(dir, "file"))
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Unmount(dir, false); !errors.Is(err, ErrBusy) {
			t.Errorf("with %v what is in use: %v", s.Helper, err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		if err := s.Unmount(dir, false); err != nil {
			t.Error(err)
		}
		if err := s.Unmount(dir, true); err == nil || errors.Is(err, ErrBusy) {
			t.Errorf("with %v what is not mounted: %v", s.Helper, err)
		}
	}
}

func TestNoStep(t *testing.T) {
	for _, args := range [][]string{nil, {"unmount"}, {"unmount", "/a", "false", "more"}, {"set-group", "/nowhere/at/all", "x"}, {"format", "/a", "b"}, {"freeze"}, {"thaw", "/a", "b"}} {
		if code := Step(args); code != 1 {
			t.Errorf("%q ends with %d", args, code)
		}
	}
}
