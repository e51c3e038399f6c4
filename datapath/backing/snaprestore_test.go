package backing

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/tandem-storage/tandem/datapath/block"
	"github.com/tandem-storage/tandem/datapath/meta"
)

// readAll reads all of a device.
func readAll(t testing.TB, d block.Device) []byte {
	t.Helper()
	p := make([]byte, d.Info().Size)
	must(t, block.ReadAt(d, p, 0))
	return p
}

// newSnapHistory makes a replica with chunks of the given size in p: snapshot 1, changes, snapshot 2, changes, of which one makes a
// chunk. It returns what the snapshots and the head have. One chunk has not changed, one was never made.
func newSnapHistory(t testing.TB, p *Pool, chunk int64) (r *Replica, first, second, head []byte) {
	t.Helper()
	must(t, p.Create(ReplicaSpec{Cluster: testCluster, Volume: testVolume, Replica: testReplica, Size: 6 * chunk, ChunkSize: chunk}))
	r = openTestReplica(t, p)
	must(t, activate(r.Log(), 0, uint32((6*chunk-1)/meta.SumRegion)))
	head = make([]byte, 6*chunk)
	write := func(seed uint64, n int64, length int) {
		copy(head[n*chunk:], randomBytes(seed, length))
		must(t, block.WriteAt(r, head[n*chunk:n*chunk+int64(length)], n*chunk, block.FUA))
	}
	for n := range int64(4) {
		write(uint64(n), n, int(chunk))
	}
	must(t, r.cut(snapID(1)))
	first = bytes.Clone(head)
	write(10, 0, 4096)
	write(11, 1, 8192)
	must(t, r.cut(snapID(2)))
	second = bytes.Clone(head)
	write(12, 1, 4096)
	write(13, 2, 4096)
	write(14, 4, 4096)
	return r, first, second, head
}

// TestCreateFrom: a clone of a snapshot has its content and its checksums, and they go separate ways.
func TestCreateFrom(t *testing.T) {
	for _, chunk := range []int64{1 << 20, 4 << 20} {
		p := newSnapPool(t)
		r, first, second, head := newSnapHistory(t, p, chunk)
		spec := ReplicaSpec{Cluster: testCluster, Volume: meta.UUID{20}, Replica: meta.UUID{30}}
		if err := p.CreateFrom(spec, r, snapID(9)); !errors.Is(err, ErrNotFound) {
			t.Errorf("from a snapshot that is not there: %v", err)
		}
		thick := spec
		thick.Thick = true
		if err := p.CreateFrom(thick, r, snapID(1)); !errors.Is(err, ErrInvalid) {
			t.Errorf("a thick clone: %v", err)
		}
		must(t, p.CreateFrom(spec, r, snapID(1)))
		must(t, r.DeleteSnapshot(snapID(1)))
		c, err := p.Open(spec.Volume, spec.Replica)
		must(t, err)
		defer c.Close()
		must(t, sameData(readAll(t, c), first))
		if got := c.Checksums(); got.Off != nil || got.Checked != 4*chunk/block.SectorSize {
			t.Errorf("checksums of the clone: %+v, of %d blocks", got, 4*chunk/block.SectorSize)
		}
		if c.chunk(5) != nil {
			t.Error("the clone has a chunk that nobody has made")
		}
		must(t, block.WriteZeroes(c, 0, 6*chunk, 0))
		must(t, sameData(readAll(t, r), head))
		checkSnapshot(t, r, snapID(2), second)
	}
}

// TestRevert: the head becomes the snapshot, all snapshots stay, and what others lack is not known any more.
func TestRevert(t *testing.T) {
	for _, chunk := range []int64{1 << 20, 4 << 20} {
		p := newSnapPool(t)
		r, first, second, _ := newSnapHistory(t, p, chunk)
		_, err := r.CreateDirtyMap(testPeer)
		must(t, err)
		if err := p.Revert(testVolume, testReplica, snapID(1)); !errors.Is(err, ErrInUse) {
			t.Errorf("revert of an open replica: %v", err)
		}
		must(t, r.CloseClean())
		if err := p.Revert(testVolume, testReplica, snapID(9)); !errors.Is(err, ErrNotFound) {
			t.Errorf("revert to what is not there: %v", err)
		}
		must(t, p.Revert(testVolume, testReplica, snapID(1)))
		r = openTestReplica(t, p)
		if r.Unclean() {
			t.Error("unclean after a revert")
		}
		must(t, sameData(readAll(t, r), first))
		if got := r.Checksums(); got.Off != nil || got.Checked != 4*chunk/block.SectorSize {
			t.Errorf("checksums after the revert: %+v", got)
		}
		if m, _, err := r.DirtyMap(testPeer); err != nil || m.Count() != m.Blocks() {
			t.Errorf("a missing peer is not told: %v", err)
		}
		must(t, block.WriteZeroes(r, 0, 6*chunk, 0))
		checkSnapshot(t, r, snapID(1), first)
		checkSnapshot(t, r, snapID(2), second)
		must(t, r.Close())
		must(t, p.Revert(testVolume, testReplica, snapID(2)))
		r = openTestReplica(t, p)
		must(t, sameData(readAll(t, r), second))
		checkSnapshot(t, r, snapID(1), first)
	}
}

// TestRevertCutShort: wherever the swap of the data is cut short, the next opening ends it.
func TestRevertCutShort(t *testing.T) {
	p := newSnapPool(t)
	r, first, second, head := newSnapHistory(t, p, 1<<20)
	dir := r.dir
	must(t, r.revert(snapID(1)))
	must(t, r.CloseClean())
	move := func(from, to string) {
		must(t, os.Rename(filepath.Join(dir, from), filepath.Join(dir, to)))
	}
	for name, steps := range map[string]func(){
		"not begun": func() {},
		"chunk map": func() { move("revert/chunks", "chunks") },
		"old head":  func() { move("revert/chunks", "chunks"); move("revert/cs", "cs"); move("head", "revert/old") },
		"new head":  func() { move("head", "revert/old"); move("revert/head", "head") },
		"all but the trash": func() {
			move("revert/chunks", "chunks")
			move("revert/cs", "cs")
			move("head", "revert/old")
			move("revert/head", "head")
		},
	} {
		steps()
		r := openTestReplica(t, p)
		if err := sameData(readAll(t, r), first); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		checkSnapshot(t, r, snapID(2), second)
		must(t, block.WriteAt(r, head, 0, 0))
		must(t, r.revert(snapID(1)))
		must(t, r.CloseClean())
	}
}

// TestRevertThroughPowerCuts: a power cut at any moment of a revert leaves all of the old data or all of the new.
func TestRevertThroughPowerCuts(t *testing.T) {
	disks := mountImage(t, "xfs", 2<<30)
	img := filepath.Join(disks, "image")
	makeImage(t, img, "xfs", 320<<20)
	p := openSnapPool(t, mountFile(t, img, "xfs"))
	r, first, second, head := newSnapHistory(t, p, 1<<20)
	must(t, r.CloseClean())
	done := make(chan error)
	go func() {
		err := p.Revert(testVolume, testReplica, snapID(1))
		if err == nil {
			var r *Replica
			if r, err = p.Open(testVolume, testReplica); err == nil {
				err = r.CloseClean()
			}
		}
		done <- err
	}()
	var clones []string
	cut := func() {
		clone := fmt.Sprint(img, "-", len(clones))
		run(t, "cp", "--reflink=always", img, clone)
		clones = append(clones, clone)
	}
	for ended := false; !ended; cut() {
		select {
		case err := <-done:
			must(t, err)
			ended = true
		default:
		}
	}
	found := map[bool]int{}
	for i, clone := range clones {
		t.Run(fmt.Sprint("cut", i), func(t *testing.T) {
			r := openTestReplica(t, openSnapPool(t, mountFile(t, clone, "xfs")))
			got := readAll(t, r)
			reverted := sameData(got, head) != nil
			found[reverted]++
			if reverted {
				must(t, sameData(got, first))
			}
			must(t, block.Discard(r, 0, r.Info().Size))
			checkSnapshot(t, r, snapID(1), first)
			checkSnapshot(t, r, snapID(2), second)
		})
	}
	t.Logf("%d cuts, %d left the new data", len(clones), found[true])
	if found[true] == 0 {
		t.Error("the revert is not stable")
	}
}
