package e2e

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tandem-storage/tandem/deploy/lab"
)

// TestNBDClients drives a replicated volume with NBD clients that nobody here wrote.
func TestNBDClients(t *testing.T) {
	need(t, "nbdinfo", "nbdcopy", python, "qemu-img", "qemu-io", "fio", "cmp")
	c := shared(t)
	v := c.create(t, "clients", "128Mi")
	uri := c.attach(t, v.home, v.name)
	dir := t.TempDir()
	image, back := filepath.Join(dir, "image"), filepath.Join(dir, "back")

	chapters(t, chapter{"nbdinfo", func(t *testing.T) {
		var info struct {
			Exports []struct {
				Size  int64 `json:"export-size"`
				Flush bool  `json:"can_flush"`
				FUA   bool  `json:"can_fua"`
				Trim  bool  `json:"can_trim"`
				Zero  bool  `json:"can_zero"`
				Multi bool  `json:"can_multi_conn"`
				Block int   `json:"block_size_minimum"`
			} `json:"exports"`
		}
		out := sh(t, "nbdinfo", "--json", uri)
		if err := json.Unmarshal([]byte(out), &info); err != nil || len(info.Exports) != 1 {
			t.Fatalf("nbdinfo printed %q: %v", out, err)
		}
		e := info.Exports[0]
		if e.Size != 128<<20 || !e.Flush || !e.FUA || !e.Trim || !e.Zero || !e.Multi || e.Block == 0 || e.Block > 4096 {
			t.Errorf("nbdinfo says %+v", e)
		}
	}}, chapter{"nbdcopy", func(t *testing.T) {
		scatter(t, image, 128<<20)
		sh(t, "nbdcopy", "--flush", image, uri)
		sh(t, "nbdcopy", uri, back)
		sh(t, "cmp", image, back)
		c.identical(t, v.name)
	}}, chapter{"nbdsh", func(t *testing.T) {
		sh(t, python, "-m", "nbd", "-u", uri, "-c", `
h.pwrite(b"a" * 65536, 0, nbd.CMD_FLAG_FUA)
h.zero(4096, 8192)
h.trim(1 << 20, 64 << 20)
h.flush()
assert h.pread(8192, 0) == b"a" * 8192
assert h.pread(4096, 8192) == bytes(4096)
for bad in (lambda: h.pread(4096, 128 << 20), lambda: h.pwrite(bytes(4096), (128 << 20) - 512)):
    try:
        bad()
    except nbd.Error:
        continue
    raise SystemExit("a request beyond the end was accepted")
assert h.pread(4096, 0) == b"a" * 4096
`)
		c.identical(t, v.name)
	}}, chapter{"qemu", func(t *testing.T) {
		sh(t, "qemu-io", "-f", "raw", "-c", "write -P 0x5a 1M 1M", "-c", "write -z 1536k 64k", "-c", "flush", uri)
		if out := sh(t, "qemu-io", "-f", "raw", "-c", "read -P 0x5a 1M 512k", "-c", "read -P 0 1536k 64k", "-c", "read -P 0x5a 1600k 448k", uri); strings.Contains(out, "verification failed") {
			t.Errorf("qemu-io read something else: %s", out)
		}
		sh(t, "qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", image, uri)
		sh(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", image, uri)
		c.identical(t, v.name)
	}}, chapter{"fio", func(t *testing.T) {
		sh(t, "fio", "--name=verify", "--ioengine=nbd", "--uri="+uri, "--rw=randwrite", "--bsrange=4k-64k", "--size=64M", "--iodepth=16",
			"--verify=crc32c", "--verify_fatal=1", "--do_verify=1", "--fsync=64", "--randseed=1", "--output="+filepath.Join(dir, "fio"))
		c.identical(t, v.name)
	}})
	c.detach(t, v.home, v.name)
	c.identical(t, v.name)
}

// scatter makes a file with data here and there.
func scatter(t *testing.T, path string, size int64) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	rng := rand.NewChaCha8([32]byte{1})
	buf := make([]byte, 1<<20)
	for off := int64(0); off < size; off += 5 << 20 {
		_, _ = rng.Read(buf) // never fails
		if _, err := f.WriteAt(buf, off); err != nil {
			t.Fatal(err)
		}
	}
}

// TestBlockDevice drives a replicated volume as a real block device: fio on it, file systems, their checkers, and
// fstrim, which must give space back on both replicas.
func TestBlockDevice(t *testing.T) {
	needRoot(t, "/dev/fuse", "/dev/loop-control")
	need(t, "fio", "mkfs.xfs", "xfs_repair", "mkfs.ext4", "e2fsck", "fstrim", "mount")
	c := shared(t)
	v := c.create(t, "device", "512Mi")
	dev := c.attach(t, v.home, v.name, "fuseloop")
	if !strings.HasPrefix(dev, "/dev/") {
		t.Fatalf("attached as %q, want a device", dev)
	}
	dir := t.TempDir()
	mnt := filepath.Join(dir, "mnt")
	if err := os.Mkdir(mnt, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(mnt, unix.MNT_DETACH) })

	use := func(t *testing.T, mkfs, fsck []string) {
		sh(t, append(mkfs, dev)...)
		sh(t, "mount", dev, mnt)
		before := c.allocated(t, v)
		scatter(t, filepath.Join(mnt, "file"), 200<<20)
		sh(t, "cp", filepath.Join(mnt, "file"), filepath.Join(mnt, "copy"))
		sh(t, "sync", "-f", mnt)
		full := c.allocated(t, v)
		sh(t, "cmp", filepath.Join(mnt, "file"), filepath.Join(mnt, "copy"))
		for _, f := range []string{"file", "copy"} {
			if err := os.Remove(filepath.Join(mnt, f)); err != nil {
				t.Fatal(err)
			}
		}
		var after [2]int64
		until(t, "fstrim gives the space back on both replicas", 20*time.Second, func() (bool, error) { // xfs frees in the background
			sh(t, "sync", "-f", mnt)
			sh(t, "fstrim", mnt)
			after = c.allocated(t, v)
			ok := true
			for i := range after {
				grown, kept := full[i]-before[i], after[i]-before[i]
				ok = ok && grown > 30<<20 && kept < grown/4
			}
			return ok, fmt.Errorf("allocated before, with the files, after fstrim: %d %d %d", before, full, after)
		})
		t.Logf("allocated before, with the files, after fstrim: %d %d %d", before, full, after)
		sh(t, "umount", mnt)
		sh(t, append(fsck, dev)...)
		c.identical(t, v.name)
	}
	chapters(t, chapter{"fio", func(t *testing.T) {
		sh(t, "fio", "--name=verify", "--ioengine=io_uring", "--direct=1", "--filename="+dev, "--rw=randwrite", "--bsrange=4k-128k", "--size=96M", "--iodepth=16",
			"--verify=crc32c", "--verify_fatal=1", "--do_verify=1", "--fsync=64", "--randseed=2", "--output="+filepath.Join(dir, "fio"))
		c.identical(t, v.name)
	}}, chapter{"xfs", func(t *testing.T) { use(t, []string{"mkfs.xfs", "-q", "-f"}, []string{"xfs_repair", "-n"}) }},
		chapter{"ext4", func(t *testing.T) { use(t, []string{"mkfs.ext4", "-q", "-F"}, []string{"e2fsck", "-f", "-n"}) }},
		chapter{"mounted it cannot be detached", func(t *testing.T) {
			sh(t, "mount", dev, mnt)
			c.refused(t, v.home, 4, []string{v.name, "in use"}, "host", "detach", v.name, "--timeout", "20s")
			sh(t, "umount", mnt)
		}})
	c.detach(t, v.home, v.name)
	c.identical(t, v.name)
	if _, err := os.Stat(filepath.Join("/sys/block", filepath.Base(dev), "loop", "backing_file")); err == nil {
		t.Errorf("%s still has a file after detach", dev)
	}
}

// allocated returns what both replicas take on disk, at home and away.
func (c *cluster) allocated(t *testing.T, v vol) [2]int64 {
	t.Helper()
	var sizes [2]int64
	id := c.inspect(t, "b1", v.name).Volume.ID
	for i, node := range []string{v.home, v.away} {
		files, err := filepath.Glob(filepath.Join(c.Node(node).Pool(), "replicas", strings.ReplaceAll(id, "-", "")+".*", "head", "*"))
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			var st unix.Stat_t
			if err := unix.Stat(f, &st); err != nil {
				t.Fatal(err)
			}
			sizes[i] += st.Blocks * 512
		}
	}
	return sizes
}

// TestCleanEnd ends daemons with SIGTERM, one with a device attached: nothing is left behind, and the next start
// has nothing to compare.
func TestCleanEnd(t *testing.T) {
	needRoot(t, "/dev/fuse", "/dev/loop-control")
	need(t, "fio")
	c := shared(t)
	v := c.create(t, "clean", "256Mi")
	dev := c.attach(t, v.home, v.name, "fuseloop")
	sh(t, "fio", "--name=fill", "--ioengine=psync", "--direct=1", "--filename="+dev, "--rw=randwrite", "--bs=64k", "--size=64M", "--end_fsync=1", "--output=/dev/null")

	for _, n := range []string{v.home, v.away} {
		at := time.Now()
		if err := c.Node(n).Stop(); err != nil {
			t.Fatal(err)
		}
		t.Logf("%s ended in %v", n, time.Since(at))
		leftovers(t, c.Node(n))
	}
	m := map[string]mark{v.home: c.mark(t, v.home), v.away: c.mark(t, v.away)}
	for n := range m {
		if err := c.StartNode(c.Node(n)); err != nil {
			t.Fatal(err)
		}
	}
	c.online(t, v.home)
	c.online(t, v.away)
	at := time.Now()
	c.attach(t, v.home, v.name)
	c.inSync(t, v.home, v.name, 30*time.Second, v.home, v.away)
	t.Logf("attached and in sync after %v", time.Since(at))
	for n := range m {
		for _, e := range m[n].since(t, "resync started") {
			if e.Blocks > 64 {
				t.Errorf("after a clean end a resync of %d blocks: %s", e.Blocks, e.raw)
			}
		}
		for _, e := range m[n].since(t, "volume serving") {
			if e.Dirty > 0 {
				t.Errorf("after a clean end %d blocks are to be reconciled: %s", e.Dirty, e.raw)
			}
		}
	}
	c.detach(t, v.home, v.name)
	c.identical(t, v.name)
}

// leftovers looks for what a node that ended must not leave.
func leftovers(t *testing.T, n *lab.Node) {
	t.Helper()
	if data, err := os.ReadFile("/proc/self/mountinfo"); err != nil || strings.Contains(string(data), n.Dir+"/") {
		t.Errorf("%s left a mount below %s (%v)", n.Name, n.Dir, err)
	}
	files, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	for _, f := range files {
		if data, err := os.ReadFile(f); err == nil && strings.HasPrefix(string(data), n.Dir+"/") {
			t.Errorf("%s left %s on %s", n.Name, f, data)
		}
	}
}

// TestAllAtOnce kills every process of the cluster in the middle of a load and starts all of them again.
func TestAllAtOnce(t *testing.T) {
	c := shared(t)
	v := c.create(t, "blackout", "64Mi")
	w := newWriter(t)
	w.start(t, c.attach(t, v.home, v.name))
	w.more(t, 200, 20*time.Second)
	for round := range 2 {
		if err := c.Kill(""); err != nil {
			t.Fatal(err)
		}
		w.failed(t, 10*time.Second)
		at := time.Now()
		c.start(t)
		uri := c.attach(t, v.home, v.name)
		t.Logf("round %d: attached %v after the start of everything", round, time.Since(at))
		w.check(t, uri)
		w.start(t, uri)
		c.inSync(t, v.home, v.name, time.Minute, v.home, v.away)
	}
	w.stop(t)
	c.detach(t, v.home, v.name)
	c.identical(t, v.name)
}
