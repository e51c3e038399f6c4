package fuseloop

import (
	"bufio"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tandem-storage/tandem/datapath/block"
	"github.com/tandem-storage/tandem/datapath/block/blocktest"
	"github.com/tandem-storage/tandem/datapath/frontend"
)

func TestAttachIsIdempotent(t *testing.T) {
	f := newFront(t)
	d := memory(16 * mib)
	got := make([]frontend.Attachment, 8)
	var wg sync.WaitGroup
	for i := range got {
		wg.Go(func() {
			a, err := f.Attach(t.Context(), "vol", d)
			if err != nil {
				t.Error(err)
			}
			got[i] = a
		})
	}
	wg.Wait()
	for _, a := range got {
		if a != got[0] {
			t.Fatal("the same id and device have two attachments")
		}
	}
	if _, err := f.Attach(t.Context(), "vol", memory(16*mib)); !errors.Is(err, frontend.ErrBusy) {
		t.Fatalf("another device under the same id: %v", err)
	}
	other := attach(t, f, "other", d)
	if other.Path() == got[0].Path() {
		t.Fatal("two attachments have one path")
	}
	detach(t, got[0])
	again := attach(t, f, "vol", memory(8*mib))
	if s := sysfs(t, again, "size"); s != "16384" {
		t.Fatalf("attached again, the device has %s sectors", s)
	}
	if err := f.Close(); err != nil { // detaches both
		t.Fatal(err)
	}
	if _, err := f.Attach(t.Context(), "vol", d); !errors.Is(err, ErrClosed) {
		t.Fatalf("after Close: %v", err)
	}
}

func TestAttachRefuses(t *testing.T) {
	f := newFront(t)
	for _, id := range []string{"", ".", "..", ".lock", "a/b", "-x", "a b", strings.Repeat("x", 129)} {
		if _, err := f.Attach(t.Context(), id, memory(mib)); !errors.Is(err, ErrInvalidID) {
			t.Errorf("id %q: %v", id, err)
		}
	}
	odd := blocktest.NewMem(blocktest.MemOptions{Size: mib + 512, BlockSize: 512})
	if _, err := f.Attach(t.Context(), "vol", odd); !errors.Is(err, block.ErrMisaligned) {
		t.Errorf("odd size: %v", err)
	}
	coarse := blocktest.NewMem(blocktest.MemOptions{Size: mib, BlockSize: 8192})
	if _, err := f.Attach(t.Context(), "vol", coarse); !errors.Is(err, block.ErrNotSupported) {
		t.Errorf("large blocks: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := f.Attach(ctx, "vol", memory(mib)); !errors.Is(err, context.Canceled) {
		t.Errorf("ended context: %v", err)
	}
	if left := leftovers(t, f.dir); len(left) > 0 {
		t.Errorf("refused attachments left %v", left)
	}
	if _, err := os.Stat(filepath.Join(f.dir, "vol")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("refused attachment left its mount point: %v", err)
	}
}

func TestDetachRefusesInUse(t *testing.T) {
	f := newFront(t)
	a := attach(t, f, "vol", memory(512*mib))
	run(t, "mkfs.xfs", "-q", "-f", a.Path())

	dir := mountAt(t, a.Path())
	if err := a.Detach(t.Context()); !errors.Is(err, frontend.ErrBusy) {
		t.Fatalf("mounted: %v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "x"), []byte("still there"), 0o600); err != nil {
		t.Fatalf("a refused Detach changed something: %v", err)
	}
	if s := sysfs(t, a, "loop/autoclear"); s != "0" {
		t.Fatal("a refused Detach left the device to go with its last close")
	}
	if err := f.Close(); !errors.Is(err, frontend.ErrBusy) {
		t.Fatalf("Close with a mounted device: %v", err)
	}
	unmount(t, dir)

	open, err := os.OpenFile(a.Path(), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Detach(t.Context()); !errors.Is(err, frontend.ErrBusy) {
		t.Fatalf("open: %v", err)
	}
	if s := sysfs(t, a, "loop/autoclear"); s != "0" {
		t.Fatal("a refused Detach left the device to go with its last close")
	}
	// It was not for nothing: closed and opened again, it works.
	if err := open.Close(); err != nil {
		t.Fatal(err)
	}
	run(t, "xfs_repair", "-n", a.Path())
	detach(t, a)
}

// Somebody who lets go while Detach looks does not make it fail.
func TestDetachWaitsForProbes(t *testing.T) {
	f := newFront(t)
	a := attach(t, f, "vol", memory(16*mib))
	open, err := os.Open(a.Path())
	if err != nil {
		t.Fatal(err)
	}
	detached := make(chan error)
	go func() { detached <- a.Detach(context.Background()) }()
	a.busy <- struct{}{} // not before Detach is at work, or after it
	<-a.busy
	if err := open.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-detached; err != nil && !errors.Is(err, frontend.ErrBusy) {
		t.Fatal(err)
	}
	detach(t, a)
}

// Blocks written through the page cache and not synced are not lost by Detach.
func TestDetachWritesBack(t *testing.T) {
	m := memory(16 * mib)
	f := newFront(t)
	a := attach(t, f, "vol", m)
	// Two openers: the close of the first is not the last one, which would sync.
	hold, err := os.Open(a.Path())
	if err != nil {
		t.Fatal(err)
	}
	run(t, "dd", "if=/dev/urandom", "of="+a.Path(), "bs=1M", "count=4", "status=none")
	if err := hold.Close(); err != nil {
		t.Fatal(err)
	}
	detach(t, a)
	if got := m.Allocated(); got != 4*mib {
		t.Fatalf("%d bytes reached the device, 4 MiB were written", got)
	}
}

func TestKillWhileMounted(t *testing.T) {
	for _, fs := range []string{"xfs", "ext4"} {
		t.Run(fs, func(t *testing.T) {
			rec := blocktest.NewRecord(memory(512 * mib))
			f := newFront(t)
			a := attach(t, f, "vol", rec)
			run(t, "mkfs."+fs, a.Path())
			dir := mountAt(t, a.Path())
			file, err := os.Create(filepath.Join(dir, "x"))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := file.Write(make([]byte, mib)); err != nil {
				t.Fatal(err)
			}
			a.Kill()
			after := len(rec.History())
			<-a.Done()
			if !errors.Is(a.Err(), ErrKilled) {
				t.Fatalf("Err is %v", a.Err())
			}
			if err := file.Sync(); !errors.Is(err, unix.EIO) {
				t.Fatalf("fsync after Kill: %v", err)
			}
			_ = file.Close()
			for _, e := range rec.History()[after:] {
				if !e.Done {
					t.Errorf("after Kill the device was asked for %v", e)
				}
			}
			// The same id can be attached beside the dead consumer.
			b := attach(t, f, "vol", memory(16*mib))
			if b.Path() == a.Path() {
				t.Fatal("the path of a device in use was given out again")
			}
			detach(t, b)
			unmount(t, dir)
			mustBeUnbound(t, a.Path(), f.dir)
			if err := a.Detach(t.Context()); err != nil {
				t.Fatalf("Detach after Kill: %v", err)
			}
		})
	}
}

// mustBeUnbound: the loop driver lets go within the last close. The device may
// be somebody else's by now.
func mustBeUnbound(t *testing.T, path, dir string) {
	t.Helper()
	if isOurs(path, dir) {
		t.Fatalf("%s is still bound", path)
	}
}

// isOurs tells whether a loop device is bound to a file of dir, or to one whose
// mount was taken away.
func isOurs(path, dir string) bool {
	b, err := os.ReadFile("/sys/block/" + filepath.Base(path) + "/loop/backing_file")
	file := strings.TrimSpace(string(b))
	return err == nil && (strings.HasPrefix(file, dir+"/") || file == "/"+fileName)
}

// Kill does not need the device: here it hangs with requests in flight.
func TestKillWhileDeviceHangs(t *testing.T) {
	hang := blocktest.NewDelay(memory(64 * mib))
	f := newFront(t)
	a := attach(t, f, "vol", hang)
	hang.Pause(blocktest.BeforeStart, nil)
	file := openDirect(t, a.Path())
	const requests = 8
	errs := make(chan error, requests)
	for i := range requests {
		go func() {
			b := block.NewBuffer(64 << 10)
			defer b.Release()
			_, err := file.WriteAt(b.Bytes(), int64(i)*mib)
			errs <- err
		}()
	}
	hang.WaitHeld(requests)

	ctx, cancel := context.WithCancel(t.Context())
	detached := make(chan error)
	go func() { detached <- a.Detach(ctx) }()
	cancel()
	if err := <-detached; !errors.Is(err, context.Canceled) && !errors.Is(err, frontend.ErrBusy) {
		t.Fatalf("Detach of a device that hangs: %v", err)
	}

	a.Kill()
	for range requests {
		if err := <-errs; !errors.Is(err, unix.EIO) {
			t.Errorf("a write in flight at Kill ended with %v", err)
		}
	}
	<-a.Done()
	if err := file.Close(); err != nil {
		t.Fatal(err)
	}
	mustBeUnbound(t, a.Path(), f.dir)
	hang.Resume() // now the device wakes up and completes to nobody
}

func TestTakenAwayFromOutside(t *testing.T) {
	f := newFront(t)
	for name, take := range map[string]func(a *Attachment){
		"losetup": func(a *Attachment) { run(t, "losetup", "-d", a.Path()) },
		"umount":  func(a *Attachment) { _, _ = try(t, "umount", "-f", a.mount) },
	} {
		a := attach(t, f, name, memory(16*mib))
		take(a)
		<-a.Done()
		if !errors.Is(a.Err(), ErrLost) {
			t.Errorf("%s: Err is %v", name, a.Err())
		}
		if err := a.Detach(t.Context()); err != nil {
			t.Errorf("%s: Detach: %v", name, err)
		}
		mustBeUnbound(t, a.Path(), f.dir)
	}
}

// A loop device that somebody else got after ours was taken away is left alone.
func TestForeignLoopDevice(t *testing.T) {
	if err := Available(); err != nil {
		t.Skip(err)
	}
	image := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(image, make([]byte, mib), 0o600); err != nil {
		t.Fatal(err)
	}
	path := strings.TrimSpace(run(t, "losetup", "-f", "--show", image))
	defer run(t, "losetup", "-d", path)
	l := loopDevice{path: path, tag: tag("/somewhere", "vol")}
	if err := errors.Join(l.release(), l.abandon()); err != nil {
		t.Fatal(err)
	}
	if out := run(t, "losetup", path); !strings.Contains(out, image) {
		t.Fatalf("the device of somebody else was touched: %s", out)
	}
}

// A loop device whose node is still shown somewhere is not given to anybody else: who opens it there would have another volume.
func TestShownDeviceIsNotReused(t *testing.T) {
	f := newFront(t)
	a := attach(t, f, "first", memory(mib))
	target := filepath.Join(t.TempDir(), "target")
	if err := os.WriteFile(target, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, "mount", "--bind", a.Path(), target)
	t.Cleanup(func() { _, _ = try(t, "umount", target) }) // of a test that failed
	detach(t, a)
	var others []*Attachment
	for _, id := range []string{"second", "third"} {
		b := attach(t, f, id, memory(mib))
		if b.Path() == a.Path() {
			t.Errorf("%s is shown at the target of the first", id)
		}
		others = append(others, b)
	}
	run(t, "umount", target)
	for _, b := range others {
		detach(t, b)
	}
}

const childDir = "FUSELOOP_TEST_DIR"

// TestChildDaemon is not a test: it is the process that TestRecover kills.
func TestChildDaemon(t *testing.T) {
	dir := os.Getenv(childDir)
	if dir == "" {
		t.Skip("runs as a child of TestRecover only")
	}
	f, err := New(Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"idle", "mounted"} {
		a, err := f.Attach(t.Context(), id, memory(512*mib))
		if err != nil {
			t.Fatal(err)
		}
		_, _ = os.Stdout.WriteString(id + " " + a.Path() + "\n")
	}
	_, _ = io.Copy(io.Discard, os.Stdin) // until killed
}

func TestRecover(t *testing.T) {
	if err := Available(); err != nil {
		t.Skip(err)
	}
	dir := t.TempDir()
	cmd := exec.Command(os.Args[0], "-test.run=^TestChildDaemon$")
	cmd.Env = append(os.Environ(), childDir+"="+dir)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer stdin.Close()
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	paths := map[string]string{}
	for s := bufio.NewScanner(stdout); len(paths) < 2 && s.Scan(); {
		if id, path, ok := strings.Cut(s.Text(), " "); ok && strings.HasPrefix(path, "/dev/loop") {
			paths[id] = path
		}
	}
	if len(paths) < 2 {
		_ = cmd.Process.Kill()
		t.Fatalf("the child attached %v: %v", paths, cmd.Wait())
	}
	run(t, "mkfs.xfs", "-q", "-f", paths["mounted"])
	at := mountAt(t, paths["mounted"])

	if _, err := New(Options{Dir: dir}); !errors.Is(err, ErrInUse) {
		t.Fatalf("directory of a live process: %v", err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // killed
	if _, err := os.Stat(filepath.Join(dir, "idle")); !errors.Is(err, unix.ENOTCONN) {
		t.Fatalf("the mount of a killed process answers %v", err)
	}

	f, err := New(Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	}()
	mustBeUnbound(t, paths["idle"], dir)
	if mounts, err := mountPoints("fuse." + fsType); err != nil || strings.Contains(strings.Join(mounts, " "), dir) {
		t.Fatalf("mounts after New: %v, %v", mounts, err)
	}
	// The old consumer is still there, and does not hinder a new attachment.
	if err := os.WriteFile(filepath.Join(at, "x"), make([]byte, mib), 0o600); err == nil {
		if err := syncDir(at); !errors.Is(err, unix.EIO) {
			t.Errorf("sync on the device of a killed process: %v", err)
		}
	}
	for _, id := range []string{"idle", "mounted"} {
		a := attach(t, f, id, memory(64*mib))
		run(t, "dd", "if=/dev/zero", "of="+a.Path(), "bs=1M", "count=1", "oflag=direct", "status=none")
		detach(t, a)
	}
	unmount(t, at)
	mustBeUnbound(t, paths["mounted"], dir)
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer d.Close()
	return unix.Syncfs(int(d.Fd()))
}

// A mount point of a process that died before it mounted there, or after it had unmounted, goes with the next New; what is not of ours stays.
func TestRecoverMountPoints(t *testing.T) {
	if err := Available(); err != nil {
		t.Skip(err)
	}
	dir := t.TempDir()
	for _, d := range []string{"left", "full/of", "not an id"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	f, err := New(Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	for name, there := range map[string]bool{"left": false, "full": true, "not an id": true} {
		if _, err := os.Stat(filepath.Join(dir, name)); (err == nil) != there {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestUnescape(t *testing.T) {
	for in, want := range map[string]string{`/a\040b`: "/a b", `/a\134`: `/a\`, `/a\`: `/a\`, `/a\9`: `/a\9`, `\011x`: "\tx"} {
		if got := unescape(in); got != want {
			t.Errorf("%q gives %q, want %q", in, got, want)
		}
	}
}

func TestTagFits(t *testing.T) {
	long := strings.Repeat("y", 128)
	if n := len(tag("/run/tandem", long)); n > 63 {
		t.Errorf("tag of a long id has %d bytes, the kernel keeps 63", n)
	}
	if tag("/a", long+"1") == tag("/a", long+"2") || tag("/a", "x") == tag("/b", "x") {
		t.Error("two attachments have one tag")
	}
}
