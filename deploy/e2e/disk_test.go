package e2e

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tandem-storage/tandem/datapath/block"
	"github.com/tandem-storage/tandem/datapath/block/blocktest"
	"github.com/tandem-storage/tandem/datapath/frontend"
	"github.com/tandem-storage/tandem/datapath/frontend/fuseloop"
	"github.com/tandem-storage/tandem/deploy/lab"
)

// diskSize is that of a node's disk, in bytes. XFS wants 300 MiB.
const diskSize = 512 << 20

// disk is the disk of a node's pool: a file system on a loop device whose requests this process answers, from memory, in FUSE. It fails or hangs
// when the test wants it to.
//
// This process must not look into the pool while the disk hangs: a thread that waits in the kernel for a request that only its own process
// answers cannot even be killed. So what hangs is mended before anything else is cleaned up; and if this process dies, the kernel fails every request.
type disk struct {
	undo   *lab.Undo
	path   string // of the device
	pool   string // where it is mounted
	hang   *blocktest.Delay
	inject *blocktest.Inject // over hang
}

// needDisks skips the test where there can be no such disks.
func needDisks(t *testing.T, mkfs string) {
	t.Helper()
	if err := fuseloop.Available(); err != nil {
		t.Skip(err)
	}
	need(t, mkfs, "mount")
}

// disks gives every node with a pool a disk of its own, with a file system that mkfs makes.
func disks(t *testing.T, u *lab.Undo, c *cluster, mkfs ...string) map[string]*disk {
	t.Helper()
	return disksOf(t, u, c, diskSize, mkfs...)
}

// disksOf is disks of another size.
func disksOf(t *testing.T, u *lab.Undo, c *cluster, size int64, mkfs ...string) map[string]*disk {
	t.Helper()
	front, err := fuseloop.New(fuseloop.Options{Dir: filepath.Join(c.dir, "disks")})
	if err != nil {
		t.Fatal(err)
	}
	u.Add("disks", front.Close)
	all := map[string]*disk{}
	for _, n := range []string{"a1", "a2", "b1", "b2"} {
		d := &disk{undo: u, pool: c.Node(n).Pool()}
		d.hang = blocktest.NewDelay(blocktest.NewMem(blocktest.MemOptions{Size: size}))
		d.inject = blocktest.NewInject(d.hang)
		shown, err := front.Attach(t.Context(), n, d.inject)
		if err != nil {
			t.Fatal(err)
		}
		d.path = shown.Path()
		u.Add("disk of "+n, func() error { return d.remove(shown) })
		if err := os.MkdirAll(d.pool, 0o755); err != nil {
			t.Fatal(err)
		}
		sh(t, append(mkfs, d.path)...)
		d.mount(t)
		all[n] = d
	}
	return all
}

// fails has every request fail from now on.
func (d *disk) fails() { d.inject.Add(blocktest.Rule{Err: block.ErrIO}) }

// hangs has every request hang from now on, until it is mended.
func (d *disk) hangs() {
	d.undo.Add("hang of "+d.path, func() error { d.mended(); return nil })
	d.hang.Pause(blocktest.BeforeStart, nil)
}

// mended takes a fault back. What hung is carried out now; what failed has not been.
func (d *disk) mended() {
	d.inject.Clear()
	d.hang.Resume()
}

func (d *disk) mount(t *testing.T) {
	t.Helper()
	sh(t, "mount", d.path, d.pool)
}

// unmount takes the file system away from a node whose daemon has ended. What the dead process had in the kernel goes shortly after it.
func (d *disk) unmount() error {
	return lab.Until(context.Background(), "unmount "+d.pool, 20*time.Second, 50*time.Millisecond, func() (bool, error) {
		err := unix.Unmount(d.pool, 0)
		return err == nil || errors.Is(err, unix.EINVAL), err // EINVAL: it is not mounted
	})
}

// remove takes the disk away, come what may.
func (d *disk) remove(shown frontend.Attachment) error {
	err := d.unmount()
	if err != nil {
		err = errors.Join(err, unix.Unmount(d.pool, unix.MNT_DETACH))
		shown.Kill()
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	return errors.Join(err, shown.Detach(ctx))
}
