package backing

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tandem-storage/tandem/datapath/block"
	"github.com/tandem-storage/tandem/datapath/block/blocktest"
	"github.com/tandem-storage/tandem/datapath/frontend/fuseloop"
	"github.com/tandem-storage/tandem/datapath/meta"
)

var sweepMost = flag.Int("sweep.most", 60, "power cuts that TestPowerCutAtEveryOperation looks at for each file system; 0 all")

// powerCut is what a disk has after the power went.
type powerCut struct {
	disk *blocktest.Mem
	done int    // steps that were done by then
	how  string // for messages
}

// cutDisk is a disk that keeps, for each request that changes something, what a power cut after it would leave:
// nothing of what is not stable, all of it, and a random part.
type cutDisk struct {
	*blocktest.Mem

	mu     sync.Mutex
	rng    *rand.Rand
	on     bool
	done   int
	n      int
	stable bool // something has become stable since the last cut that keeps nothing else
	cuts   []powerCut
}

// Submit implements block.Device.
func (d *cutDisk) Submit(batch []*block.Request) {
	for _, r := range batch {
		op, flags := r.Op, r.Flags // the request may be used again once it is completed
		d.Mem.Submit([]*block.Request{r})
		if op != block.OpRead {
			d.cut(op, op == block.OpFlush || flags&block.FUA != 0)
		}
	}
}

func (d *cutDisk) cut(op block.Op, stable bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.on {
		return
	}
	d.n++
	d.stable = d.stable || stable
	keep := func(percent int) {
		d.cuts = append(d.cuts, powerCut{
			d.CrashClone(blocktest.CrashOptions{UnsyncedPercent: percent, Rand: rand.New(rand.NewPCG(d.rng.Uint64(), 0))}),
			d.done, fmt.Sprintf("after request %d of the disk (%v), %d %% of what is not stable kept", d.n, op, percent),
		})
	}
	if d.stable {
		keep(0)
		d.stable = false
	}
	keep(100)
	keep(20 + d.rng.IntN(60))
}

// step tells that everything up to here was done.
func (d *cutDisk) step() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.done++
}

// sweepPeer is for whom the replica of the sweep keeps a dirty map.
var sweepPeer = meta.UUID{77}

// What the replica of the sweep is written with.
var (
	sweepFirst  = bytes.Repeat([]byte{1}, block.SectorSize)
	sweepSecond = bytes.Repeat([]byte{2}, block.SectorSize)
	sweepZeroes = make([]byte, block.SectorSize)
)

// The steps of the sweep, by what is certain once they are done.
const (
	sweepNothing = iota
	sweepPool    // the pool has been made
	sweepReplica // and a replica
	sweepFlushed // and the first block of chunk 0 has been written and flushed
	sweepFUA     // and the first of chunk 1 written with FUA
	sweepTrimmed // and the second of chunk 0 written, discarded and flushed
	sweepTerm    // and the superblock written
	sweepMap     // and a dirty map
	sweepClosed  // and the replica closed in order
	sweepRemoved // and removed
)

// sweep does everything that a pool and a replica do with files, step by step.
func sweep(t *testing.T, dir string, step func()) {
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	p, err := OpenPool(Options{Path: dir, Cluster: testCluster, Node: "n1", Engine: EngineThreads})
	must(err)
	step()
	createTestReplica(t, p, 4*testChunk)
	step()
	r, err := p.Open(testVolume, testReplica)
	must(err)
	must(block.WriteAt(r, sweepFirst, 0, 0))
	must(block.Flush(r))
	step()
	must(block.WriteAt(r, sweepSecond, 0, 0))
	must(block.WriteAt(r, sweepFirst, testChunk, block.FUA))
	step()
	must(block.WriteAt(r, sweepFirst, block.SectorSize, block.FUA))
	must(block.Discard(r, block.SectorSize, block.SectorSize))
	must(block.Flush(r))
	step()
	must(r.UpdateSuperblock(func(sb *meta.Superblock) { sb.Term = 7 }))
	step()
	m, err := r.CreateDirtyMap(sweepPeer)
	must(err)
	m.ClearAll()
	m.Set(0, testChunk)
	must(r.SaveDirtyMap(sweepPeer))
	step()
	must(r.CloseClean())
	step()
	must(p.Remove(testVolume, testReplica))
	step()
	must(p.Close())
}

// checkSweep asserts what a power cut must leave when done steps were done and the next one may have begun.
func checkSweep(dir string, done int) (err error) {
	p, err := OpenPool(Options{Path: dir, Cluster: testCluster, Node: "n1", Engine: EngineThreads})
	if err != nil {
		return fmt.Errorf("the pool does not open: %w", err)
	}
	defer p.Close()
	for _, name := range []string{"tmp", "trash"} {
		if left, err := os.ReadDir(filepath.Join(dir, name)); err == nil && len(left) > 0 {
			return fmt.Errorf("%s is left in %s", left[0].Name(), name)
		}
	}
	list, err := p.List()
	if err != nil {
		return err
	}
	switch {
	case len(list) == 0 && (done < sweepReplica || done >= sweepClosed):
		return nil
	case len(list) != 1 || done == sweepRemoved:
		return fmt.Errorf("%d replicas", len(list))
	}
	r, err := p.Open(testVolume, testReplica)
	if err != nil {
		return fmt.Errorf("the replica does not open: %w", err)
	}
	defer r.Close()

	buf := make([]byte, block.SectorSize)
	for _, c := range []struct {
		off int64
		at  int      // the step that writes it
		may [][]byte // what it may be from then on
		was [][]byte // and until then
	}{
		{0, sweepFlushed, [][]byte{sweepFirst, sweepSecond}, [][]byte{sweepZeroes, sweepFirst}},
		{testChunk, sweepFUA, [][]byte{sweepFirst}, [][]byte{sweepZeroes, sweepFirst}},
		{block.SectorSize, sweepTrimmed, [][]byte{sweepZeroes}, [][]byte{sweepZeroes, sweepFirst}},
		{2 * testChunk, sweepRemoved, nil, [][]byte{sweepZeroes}},
	} {
		if err := block.ReadAt(r, buf, c.off); err != nil {
			return err
		}
		may := c.may
		if done < c.at {
			may = c.was
		}
		if !slices.ContainsFunc(may, func(b []byte) bool { return bytes.Equal(b, buf) }) {
			return fmt.Errorf("at %d the block begins with %x", c.off, buf[:4])
		}
	}
	if term := r.Superblock().Term; term != 7 && (done >= sweepTerm || term != 0) {
		return fmt.Errorf("term %d", term)
	}
	if done >= sweepMap {
		m, _, err := r.DirtyMap(sweepPeer)
		if err != nil {
			return fmt.Errorf("dirty map: %w", err)
		}
		if !m.Test(0) || !m.Test(testChunk-1) || m.Test(testChunk) {
			return fmt.Errorf("the dirty map does not have what was saved")
		}
	}
	if done >= sweepClosed && r.Unclean() || done < sweepMap && !r.Unclean() && done >= sweepFlushed {
		return fmt.Errorf("unclean: %v", r.Unclean())
	}
	return nil
}

// TestPowerCutAtEveryOperation makes a pool and a replica, writes, and removes it again on a file system whose disk is
// in memory, and looks at what a power cut after each request of that disk leaves.
func TestPowerCutAtEveryOperation(t *testing.T) {
	if err := fuseloop.Available(); err != nil {
		t.Skip(err)
	}
	for _, c := range []struct {
		kind string
		size int64
	}{{"ext4", 256 << 20}, {"xfs", 320 << 20}} {
		t.Run(c.kind, func(t *testing.T) {
			f, err := fuseloop.New(fuseloop.Options{Dir: t.TempDir()})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := f.Close(); err != nil {
					t.Error(err)
				}
			})
			d := &cutDisk{Mem: blocktest.NewMem(blocktest.MemOptions{Size: c.size}), rng: rand.New(rand.NewPCG(1, 1))}
			onDisk(t, f, d, c.kind, true, func(dir string) {
				d.on = true
				sweep(t, dir, d.step)
				d.on = false
			})
			cuts := d.cuts
			if n := *sweepMost; n > 0 && len(cuts) > n { // spread evenly, from a point that differs by the number of requests
				var some []powerCut
				for i := range n {
					some = append(some, cuts[i*len(cuts)/n])
				}
				cuts = some
			}
			t.Logf("%d power cuts of %d after %d requests", len(cuts), len(d.cuts), d.n)
			for _, cut := range cuts {
				onDisk(t, f, cut.disk, c.kind, false, func(dir string) {
					if err := checkSweep(dir, cut.done); err != nil {
						t.Errorf("%s, with %d steps done: %v", cut.how, cut.done, err)
					}
				})
			}
		})
	}
}

// onDisk calls do with a file system mounted that lies on d.
func onDisk(t *testing.T, f *fuseloop.Frontend, d block.Device, kind string, fresh bool, do func(dir string)) {
	t.Helper()
	ctx := context.Background()
	a, err := f.Attach(ctx, "disk", d)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if fresh {
		run(t, map[string][]string{"xfs": {"mkfs.xfs", "-q", a.Path()}, "ext4": {"mkfs.ext4", "-q", "-F", a.Path()}}[kind]...)
	}
	options := "noatime"
	if kind == "xfs" {
		options += ",nouuid"
	}
	run(t, "mount", "-t", kind, "-o", options, a.Path(), dir)
	do(dir)
	run(t, "umount", dir)
	err = a.Detach(ctx)
	if errors.Is(err, unix.EIO) { // of what was written while the disk failed: said once
		err = a.Detach(ctx)
	}
	if err != nil {
		t.Fatal(err)
	}
}
