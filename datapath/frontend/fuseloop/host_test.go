package fuseloop

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap/zaptest"
	"golang.org/x/sys/unix"

	"github.com/tandem-storage/tandem/datapath/block"
	"github.com/tandem-storage/tandem/datapath/frontend"
)

const mib = 1 << 20

const stepArgument = "fuseloop-step"

// helper is this program as Options.Helper.
var helper = []string{"/proc/self/exe", stepArgument}

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == stepArgument {
		os.Exit(Step(os.Args[2:]))
	}
	os.Exit(m.Run())
}

// newFront makes a front end in a directory of its own. At the end nothing of
// it may be left on the machine; what a failed test left is taken away first.
func newFront(t *testing.T) *Frontend {
	t.Helper()
	if err := Available(); err != nil {
		t.Skip(err)
	}
	dir := t.TempDir()
	f, err := New(Options{Dir: dir, Helper: helper, Logger: zaptest.NewLogger(t)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			for _, a := range f.all() {
				a.Kill()
				<-a.Done()
			}
		}
		if err := f.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
		if left := leftovers(t, dir); len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
	})
	return f
}

func (f *Frontend) all() []*Attachment {
	f.mu.Lock()
	defer f.mu.Unlock()
	var all []*Attachment
	for _, a := range f.attachments {
		all = append(all, a)
	}
	return all
}

// leftovers are the mounts and loop devices that dir still has.
func leftovers(t *testing.T, dir string) []string {
	t.Helper()
	var left []string
	mounts, err := mountPoints("fuse." + fsType)
	if err != nil {
		t.Fatal(err)
	}
	loops, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range loops {
		if b, err := os.ReadFile(l); err == nil && strings.HasPrefix(string(b), dir) {
			left = append(left, l)
		}
	}
	for _, m := range mounts {
		if strings.HasPrefix(m, dir) {
			left = append(left, m)
		}
	}
	return left
}

func attach(t *testing.T, f *Frontend, id string, d block.Device) *Attachment {
	t.Helper()
	a, err := f.Attach(t.Context(), id, d)
	if err != nil {
		t.Fatal(err)
	}
	return a.(*Attachment)
}

func detach(t *testing.T, a frontend.Attachment) {
	t.Helper()
	if err := a.Detach(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := a.Err(); err != nil {
		t.Fatalf("after Detach Err is %v", err)
	}
}

// run runs a program that has to succeed and returns what it printed.
func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := try(t, name, args...)
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return out
}

// try runs a program. One that hangs is a failure.
func try(t *testing.T, name string, args ...string) (string, error) {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Skipf("%s is not installed: %v", name, err)
	}
	cmd := exec.Command(path, args...)
	cmd.Dir = t.TempDir() // fio leaves files behind
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	select {
	case err := <-done:
		return out.String(), err
	case <-time.After(3 * time.Minute):
		t.Fatalf("%s %s hangs", name, strings.Join(args, " "))
		return "", nil
	}
}

// mountAt mounts path and unmounts it at the end of a test that did not.
func mountAt(t *testing.T, path string, options ...string) string {
	t.Helper()
	dir := t.TempDir()
	run(t, "mount", append(options, path, dir)...)
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil && !errors.Is(err, unix.EINVAL) {
			t.Errorf("unmount %s: %v", dir, err)
			_ = unix.Unmount(dir, unix.MNT_DETACH)
		}
	})
	return dir
}

func unmount(t *testing.T, dir string) {
	t.Helper()
	if err := unix.Unmount(dir, 0); err != nil {
		t.Fatalf("unmount %s: %v", dir, err)
	}
}

// openDirect opens a device node past the page cache.
func openDirect(t *testing.T, path string) *os.File {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() }) // mostly closed by then
	return f
}

func sysfs(t *testing.T, a *Attachment, name string) string {
	t.Helper()
	b, err := os.ReadFile("/sys/block/" + filepath.Base(a.Path()) + "/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}
