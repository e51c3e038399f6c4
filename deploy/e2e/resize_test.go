package e2e

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tandem-storage/tandem/deploy/lab"
)

// TestResize: with each front end that shows devices.
func TestResize(t *testing.T) {
	for _, kind := range []string{"fuseloop", "device"} {
		t.Run(kind, func(t *testing.T) { resizes(t, kind) })
	}
}

// resizes grows a volume under a mounted file system that is written all the time, asked of another node than the one where it is attached: device and file
// system are larger, and nothing is missing. More than the pool of one replica has room for is refused, and changes nothing. Detached it grows with the
// next attach.
func resizes(t *testing.T, kind string) {
	needRoot(t, "/dev/fuse", "/dev/loop-control")
	need(t, "mkfs.ext4", "losetup", "mkfs.xfs", "xfs_growfs", "mount")
	c := own(t, nil, func(u *lab.Undo, c *cluster) {
		for _, node := range []string{"b1", "b2"} {
			smallDisk(t, u, c, node)
		}
	})
	const mib = 1 << 20
	v := c.create(t, "grows", "304Mi")
	if kind == "device" {
		c.devices(t, v.home)
		c.devices(t, v.away)
	}
	dev := c.attach(t, v.home, v.name, kind)
	dir := filepath.Join(c.dir, "mounted")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	sh(t, "mkfs.xfs", "-q", dev)
	sh(t, "mount", dev, dir)
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) }) // of a test that failed
	size := func() int64 {
		t.Helper()
		f, err := os.Open(dev)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		n, err := f.Seek(0, 2)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	room := func() int64 {
		t.Helper()
		var s unix.Statfs_t
		if err := unix.Statfs(dir, &s); err != nil {
			t.Fatal(err)
		}
		return int64(s.Blocks) * s.Bsize
	}
	content := func(i int) []byte { return bytes.Repeat(fmt.Appendf(nil, "file %d\n", i), 2000) }
	var writer sync.WaitGroup
	stop, files := make(chan struct{}), 0
	writer.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			f, err := os.Create(filepath.Join(dir, fmt.Sprint(files)))
			if err == nil {
				_, err = f.Write(content(files))
			}
			if err == nil {
				err = f.Sync()
			}
			if err != nil || f.Close() != nil {
				t.Errorf("file %d: %v", files, err)
				return
			}
			files++
		}
	})
	before := room()
	c.ctl(t, v.away, "volume", "resize", v.name, "--size", "336Mi", "--reason", "test")
	if n := size(); n != 336*mib {
		t.Errorf("the device has %d bytes", n)
	}
	sh(t, "xfs_growfs", dir)
	if n := room(); n < before+28*mib {
		t.Errorf("the file system has %d bytes, had %d", n, before)
	}
	out, err := c.Ctl(t.Context(), c.Node(v.home), "volume", "resize", v.name, "--size", "2Gi")
	if err == nil || !strings.Contains(err.Error(), "no room") || !strings.Contains(err.Error(), v.away) {
		t.Errorf("more than there is room for: %v\n%s", err, out)
	}
	if n := size(); n != 336*mib {
		t.Errorf("refused, the device has %d bytes", n)
	}
	c.inSync(t, v.home, v.name, 0, v.home, v.away)
	close(stop)
	writer.Wait()
	verify := func() {
		t.Helper()
		for i := range files {
			if got, err := os.ReadFile(filepath.Join(dir, fmt.Sprint(i))); err != nil || !bytes.Equal(got, content(i)) {
				t.Fatalf("file %d of %d: %d bytes, %v", i, files, len(got), err)
			}
		}
	}
	sh(t, "umount", dir)
	sh(t, "mount", dev, dir) // what is read comes from the device
	verify()
	t.Logf("%d files", files)
	sh(t, "umount", dir)
	c.detach(t, v.home, v.name)
	c.identical(t, v.name)

	c.ctl(t, v.home, "volume", "resize", v.name, "--size", "340Mi")
	dev = c.attach(t, v.away, v.name, kind)
	if n := size(); n != 340*mib {
		t.Errorf("attached again, the device has %d bytes", n)
	}
	sh(t, "mount", dev, dir)
	sh(t, "xfs_growfs", dir)
	verify()
	sh(t, "umount", dir)
	c.detach(t, v.away, v.name)
	c.identical(t, v.name)
}
