package backing

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/tandem-storage/tandem/datapath/block"
	"github.com/tandem-storage/tandem/datapath/block/blocktest"
)

// mountImage makes a file system of its own on a sparse file and mounts it until
// the test ends.
func mountImage(t testing.TB, kind string, size int64) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root to mount")
	}
	if _, err := os.Stat("/dev/loop-control"); err != nil {
		t.Skip("needs loop devices: ", err)
	}
	img := filepath.Join(imageDir(t), "image")
	makeImage(t, img, kind, size)
	return mountFile(t, img, kind)
}

// makeImage makes a file system on a sparse file.
func makeImage(t testing.TB, img, kind string, size int64) {
	t.Helper()
	f, err := os.Create(img)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	f.Close()
	args := map[string][]string{
		"xfs":  {"mkfs.xfs", "-q", "-m", "reflink=1", img},
		"ext4": {"mkfs.ext4", "-q", "-F", img},
	}[kind]
	run(t, args...)
}

// imageDir is a directory for images: in memory if there is such a place, because
// the tests sync all the time.
func imageDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "tandem-test-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// mountFile mounts an image until the test ends.
func mountFile(t testing.TB, img, kind string) string {
	t.Helper()
	dir := t.TempDir()
	options := "loop,noatime"
	if kind == "xfs" {
		options += ",nouuid" // a clone has the id of the original
	}
	run(t, "mount", "-t", kind, "-o", options, img, dir)
	t.Cleanup(func() {
		if out, err := exec.Command("umount", dir).CombinedOutput(); err != nil {
			t.Errorf("umount: %v\n%s", err, out)
			run(t, "umount", "-l", dir) // leave nothing behind, whatever failed
		}
	})
	return dir
}

func run(t testing.TB, args ...string) {
	t.Helper()
	if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", args, err, out)
	}
}

func TestConformance(t *testing.T) {
	local := t.TempDir()
	ext4, xfs := local, local
	if os.Geteuid() == 0 {
		ext4, xfs = mountImage(t, "ext4", 1<<30), mountImage(t, "xfs", 1<<30)
	}
	for _, c := range []struct {
		name string
		dir  string
		e    Engine
	}{
		{"threads ext4", ext4, EngineThreads},
		{"io_uring ext4", ext4, EngineURing},
		{"io_uring xfs", xfs, EngineURing},
	} {
		blocktest.Run(t, c.name, func(t *testing.T, size int64) block.Device {
			dir, err := os.MkdirTemp(c.dir, "pool")
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { os.RemoveAll(dir) })
			p := openTestPool(t, dir, c.e)
			createTestReplica(t, p, size)
			return openTestReplica(t, p)
		})
	}
}

// TestPowerCut runs the crash checks on a pool whose disk is an image: the power
// is cut by cloning the image at one instant, with the file system mounted and
// writing. What the file system holds back in memory is lost then, so that a
// missing fdatasync or fsync shows.
func TestPowerCut(t *testing.T) {
	for _, kind := range []string{"ext4", "xfs"} {
		disks := mountImage(t, "xfs", 2<<30) // can clone files
		count := 0
		blocktest.RunCrash(t, kind, func(t *testing.T, size int64) (block.Device, func(t *testing.T) block.Device) {
			count++
			img := filepath.Join(disks, fmt.Sprint(kind, count))
			makeImage(t, img, kind, 320<<20)
			p := openTestPool(t, mountFile(t, img, kind), EngineAuto)
			createTestReplica(t, p, size)
			cuts := 0
			return openTestReplica(t, p), func(t *testing.T) block.Device {
				cuts++
				clone := fmt.Sprint(img, "-", cuts)
				run(t, "cp", "--reflink=always", img, clone)
				t.Cleanup(func() { os.Remove(clone) })
				return openTestReplica(t, openTestPool(t, mountFile(t, clone, kind), EngineAuto))
			}
		})
	}
}
