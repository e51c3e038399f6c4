package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tandem-storage/tandem/deploy/lab"
)

// TestDiskFull fills the disk of one replica (it is evicted, I/O goes on, it returns when there is room) and then of
// both (the consumer gets ENOSPC, nobody is evicted, the device lives).
func TestDiskFull(t *testing.T) {
	needRoot(t, "/dev/loop-control")
	need(t, "mkfs.ext4", "losetup")
	c := own(t, nil, func(u *lab.Undo, c *cluster) {
		for _, node := range []string{"a1", "b1", "a2", "b2"} {
			smallDisk(t, u, c, node)
		}
	})
	v := c.create(t, "tight", "300Mi")
	w := newWriter(t)
	uri := c.attach(t, v.home, v.name)
	w.start(t, uri)
	away, home := c.Node(v.away), c.Node(v.home)

	chapters(t, chapter{"one replica", func(t *testing.T) {
		m, at := c.mark(t, v.home), time.Now()
		fill(t, away)
		e := m.await(t, "replica evicted", 20*time.Second)
		w.more(t, 100, 20*time.Second)
		t.Logf("evicted because %q, longest pause %v", e.Reason, w.pause(t, at))
		c.inSync(t, v.home, v.name, time.Second, v.home)
		empty(t, away)
		c.inSync(t, v.home, v.name, time.Minute, v.home, v.away)
	}}, chapter{"both replicas", func(t *testing.T) {
		w.stop(t)
		m := c.mark(t, v.home)
		fill(t, away)
		fill(t, home)
		var said string
		until(t, "the consumer sees ENOSPC", 30*time.Second, func() (bool, error) {
			// 100 MiB where nothing was written, in small pieces: one of them does not fit.
			out, err := lab.Run(t.Context(), python, "-c", fmt.Sprintf(`
import nbd
h = nbd.NBD()
h.connect_uri(%q)
for off in range(20 << 20, 60 << 20, 65536):
    h.pwrite(b"x" * 65536, off)
`, uri))
			said = out
			if err != nil {
				said = err.Error()
			}
			return strings.Contains(said, "No space left on device"), err
		})
		for _, e := range m.since(t, "replica evicted") {
			if e.Reason != "pool nearly full" { // the one that was filled first may leave before the other one is full
				t.Errorf("a replica was evicted though both are full: %s", e.raw)
			}
		}
		if es := m.since(t, "volume lost"); len(es) > 0 {
			t.Errorf("the device died: %s", es[0].raw)
		}
		w.check(t, uri)
		empty(t, away)
		empty(t, home)
		w.start(t, uri)
		c.inSync(t, v.home, v.name, time.Minute, v.home, v.away)
		w.more(t, 50, 10*time.Second)
	}})
	w.stop(t)
	w.check(t, uri)
	c.detach(t, v.home, v.name)
	c.identical(t, v.name)
}

// smallDisk puts a node's data on a file system of its own, of 400 MiB.
func smallDisk(t *testing.T, u *lab.Undo, c *cluster, node string) {
	t.Helper()
	image, dir := filepath.Join(c.dir, node+".img"), filepath.Join(c.Node(node).Dir, "data")
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(image, 400<<20); err != nil {
		t.Fatal(err)
	}
	sh(t, "mkfs.ext4", "-q", "-F", "-m", "0", image)
	sh(t, "mount", "-o", "loop", image, dir)
	u.Add("mount "+dir, func() error {
		err := unix.Unmount(dir, 0)
		if err == unix.EBUSY {
			err = unix.Unmount(dir, unix.MNT_DETACH)
		}
		return err
	})
}

// fill leaves no block free on a node's disk.
func fill(t *testing.T, n *lab.Node) {
	t.Helper()
	f, err := os.Create(filepath.Join(n.Dir, "data", "filler"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	size := int64(0)
	for step := int64(64 << 20); step >= 4096; {
		if err := unix.Fallocate(int(f.Fd()), 0, size, step); err != nil {
			step /= 2
			continue
		}
		size += step
	}
}

func empty(t *testing.T, n *lab.Node) {
	t.Helper()
	if err := os.Remove(filepath.Join(n.Dir, "data", "filler")); err != nil {
		t.Fatal(err)
	}
}
