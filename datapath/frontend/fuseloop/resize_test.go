package fuseloop

import (
	"bytes"
	"context"
	"os/exec"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tandem-storage/tandem/datapath/block"
	"github.com/tandem-storage/tandem/datapath/block/blocktest"
)

// growing is a device of which more and more is shown.
type growing struct {
	*blocktest.Mem
	size atomic.Int64
}

func (g *growing) Info() block.Info {
	i := g.Mem.Info()
	i.Size = g.size.Load()
	return i
}

// TestResize: a device that is mounted grows, the kernel knows it, and so does the file system after xfs_growfs.
func TestResize(t *testing.T) {
	f := newFront(t)
	g := &growing{Mem: blocktest.NewMem(blocktest.MemOptions{Size: 640 * mib})}
	g.size.Store(320 * mib)
	a, err := f.Attach(context.Background(), "grows", g)
	if err != nil {
		t.Fatal(err)
	}
	command := func(args ...string) {
		t.Helper()
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", args, err, out)
		}
	}
	size := func() int64 {
		t.Helper()
		fd, err := unix.Open(a.Path(), unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		n, err := unix.Seek(fd, 0, unix.SEEK_END)
		if err != nil || unix.Close(fd) != nil {
			t.Fatal(err)
		}
		return n
	}
	blocks := func(dir string) int64 {
		t.Helper()
		var s unix.Statfs_t
		if err := unix.Statfs(dir, &s); err != nil {
			t.Fatal(err)
		}
		return int64(s.Blocks) * s.Bsize
	}
	dir := t.TempDir()
	command("mkfs.xfs", "-q", a.Path())
	command("mount", a.Path(), dir)
	mounted := true
	defer func() {
		if mounted {
			command("umount", "-l", dir)
		}
	}()
	before := blocks(dir)
	g.size.Store(640 * mib)
	for range 2 { // again is no harm
		if err := a.Resize(context.Background()); err != nil {
			t.Fatal(err)
		}
		if n := size(); n != 640*mib {
			t.Fatalf("the kernel knows %d bytes", n)
		}
	}
	command("xfs_growfs", dir)
	if n := blocks(dir); n < before+300*mib {
		t.Errorf("the file system has %d bytes, had %d", n, before)
	}
	command("umount", dir)
	mounted = false
	fd, err := unix.Open(a.Path(), unix.O_RDWR|unix.O_CLOEXEC|unix.O_SYNC, 0)
	if err != nil {
		t.Fatal(err)
	}
	data := bytes.Repeat([]byte{5}, 4096)
	if _, err := unix.Pwrite(fd, data, 640*mib-4096); err != nil {
		t.Error(err)
	}
	if err := unix.Close(fd); err != nil {
		t.Error(err)
	}
	got := make([]byte, 4096)
	if err := block.ReadAt(g.Mem, got, 640*mib-4096); err != nil || !bytes.Equal(got, data) {
		t.Errorf("the end of the device has %x (%v)", got[:4], err)
	}
	if err := a.Detach(context.Background()); err != nil {
		t.Fatal(err)
	}
	if err := a.Resize(context.Background()); err == nil {
		t.Error("a showing that is gone has a new size")
	}
}
