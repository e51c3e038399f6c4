package backing

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"github.com/tandem-storage/tandem/datapath/block"
	"github.com/tandem-storage/tandem/datapath/block/blocktest"
	"github.com/tandem-storage/tandem/datapath/frontend/fuseloop"
	"github.com/tandem-storage/tandem/datapath/meta"
)

// TestGrow: a replica that has grown has what it had, zeroes behind, and maps and a log that reach as far, before and after
// it is opened anew; and what cannot be changes nothing.
func TestGrow(t *testing.T) {
	p := openTestPool(t, t.TempDir(), EngineAuto)
	const odd = 2*testChunk + 3*block.SectorSize
	createTestReplica(t, p, odd)
	r := openTestReplica(t, p)
	had := randomBytes(1, odd)
	must(t, block.WriteAt(r, had, 0, 0))
	m, err := r.CreateDirtyMap(sweepPeer)
	must(t, err)
	m.Set(odd-1, 1)
	must(t, r.SaveDirtyMap(sweepPeer))

	for _, size := range []int64{testChunk, odd - block.SectorSize, odd + 1, -1} {
		if err := r.Grow(size); !errors.Is(err, ErrInvalid) {
			t.Errorf("grow to %d: %v", size, err)
		}
	}
	c, err := p.Capacity()
	must(t, err)
	if err := r.Grow(c.Total&^(block.SectorSize-1) + block.SectorSize); !errors.Is(err, ErrPoolFull) {
		t.Errorf("grow above the pool: %v", err)
	}
	must(t, r.Grow(odd))
	if err := activate(r.Log(), 100); !errors.Is(err, ErrInvalid) {
		t.Errorf("a region behind the end: %v", err)
	}
	if r.Info().Size != odd || r.Superblock().Size != odd {
		t.Fatalf("size %d, in the superblock %d", r.Info().Size, r.Superblock().Size)
	}

	const size = 5 << 30 // more than a page of a dirty map
	must(t, r.Grow(size))
	must(t, activate(r.Log(), size/regionSize-1))
	last := randomBytes(2, 2*block.SectorSize)
	must(t, block.WriteAt(r, last, size-int64(len(last)), 0))
	must(t, block.WriteAt(r, last, odd, block.FUA))
	if m.Test(size - 1) {
		t.Error("what is new is dirty")
	}
	m.Set(size-1, 1)
	must(t, r.SaveDirtyMap(sweepPeer))
	other, err := r.CreateDirtyMap(testPeer)
	must(t, err)
	other.SetAll()
	must(t, r.SaveDirtyMap(testPeer))
	for again := range 3 {
		if info := r.Info(); info.Size != size {
			t.Fatalf("size %d", info.Size)
		}
		got := make([]byte, odd+2*block.SectorSize+testChunk)
		must(t, block.ReadAt(r, got, 0))
		must(t, sameData(got, slices.Concat(had, last, make([]byte, testChunk))))
		must(t, block.ReadAt(r, got[:len(last)], size-int64(len(last))))
		must(t, sameData(got, last))
		m, damaged, err := r.DirtyMap(sweepPeer)
		must(t, err)
		if len(damaged) > 0 || m.Count() != 2 || !m.Test(odd-1) || !m.Test(size-1) {
			t.Errorf("the dirty map has %d, damaged %v", m.Count(), damaged)
		}
		if m, damaged, err := r.DirtyMap(testPeer); err != nil || len(damaged) > 0 || m.Count() != size/meta.DirtyBlock {
			t.Errorf("the other map: %v, damaged %v", err, damaged)
		}
		if sums := r.Checksums(); sums.Off != nil {
			t.Errorf("checksums: %v", sums.Off)
		}
		if again == 0 {
			must(t, r.Close())
		} else {
			must(t, r.CloseClean())
		}
		r = openTestReplica(t, p)
	}
	if c, err := p.Capacity(); err != nil || c.Provisioned != size {
		t.Errorf("provisioned %d of %d (%v)", c.Provisioned, int64(size), err)
	}
	if got := r.Checksums(); got.Damaged != 0 {
		t.Errorf("%d blocks damaged", got.Damaged)
	}
}

// TestGrowThick: a thick replica has its new space when it has grown.
func TestGrowThick(t *testing.T) {
	p := openTestPool(t, t.TempDir(), EngineAuto)
	must(t, p.Create(ReplicaSpec{Cluster: testCluster, Volume: testVolume, Replica: testReplica, Size: testChunk, ChunkSize: testChunk, Thick: true}))
	r := openTestReplica(t, p)
	c, err := p.Capacity()
	must(t, err)
	if err := r.Grow(2*testChunk + c.Free&^(block.SectorSize-1)); !errors.Is(err, ErrPoolFull) {
		t.Errorf("grow by more than is free: %v", err)
	}
	must(t, r.Grow(3*testChunk))
	for range 2 {
		for n := range int64(3) {
			st, err := r.chunk(n).f.Stat()
			must(t, err)
			if got := allocated(t, st); got < testChunk {
				t.Errorf("chunk %d has %d bytes allocated", n, got)
			}
		}
		must(t, block.WriteAt(r, randomBytes(1, 8192), 2*testChunk-4096, 0))
		must(t, r.Close())
		r = openTestReplica(t, p)
	}
	if _, err := os.Stat(filepath.Join(r.dir, growDir)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s is left (%v)", growDir, err)
	}
}

// lengths are those of a replica's files.
func lengths(t *testing.T, dir string) map[string]int64 {
	t.Helper()
	all := make(map[string]int64)
	must(t, filepath.Walk(dir, func(path string, st fs.FileInfo, err error) error {
		if err == nil && !st.IsDir() {
			all[path] = st.Size()
		}
		return err
	}))
	return all
}

// TestGrowWithoutRoom: a file system that is full when the space is taken gets all of it back.
func TestGrowWithoutRoom(t *testing.T) {
	for _, thick := range []bool{false, true} {
		dir := mountImage(t, "ext4", 64<<20)
		p := openTestPool(t, dir, EngineAuto)
		must(t, p.Create(ReplicaSpec{Cluster: testCluster, Volume: testVolume, Replica: testReplica, Size: testChunk, ChunkSize: testChunk, Thick: thick}))
		r := openTestReplica(t, p)
		was := lengths(t, r.dir)
		fill, err := os.Create(filepath.Join(dir, tmpDir, "fill"))
		must(t, err)
		c, err := p.Capacity()
		must(t, err)
		_, err = fill.Write(make([]byte, c.Free-2*testChunk))
		must(t, err)
		must(t, fill.Sync())
		if err := r.Grow(4 * testChunk); !errors.Is(err, ErrPoolFull) {
			t.Errorf("thick %v: a pool that is full: %v", thick, err)
		}
		// As if others had taken the space after the first look.
		size := int64(64 * testChunk)
		if !thick {
			size = 64 << 40 // by its metadata
		}
		undo, err := r.makeRoom(size)
		if !isNoSpace(err) {
			t.Fatalf("thick %v: %v", thick, err)
		}
		must(t, undo())
		if got := lengths(t, r.dir); fmt.Sprint(got) != fmt.Sprint(was) {
			t.Errorf("thick %v: the files have %v, had %v", thick, got, was)
		}
		must(t, block.WriteAt(r, make([]byte, 4096), 0, 0))
		must(t, fill.Truncate(0))
		must(t, fill.Sync())
		must(t, r.Grow(4*testChunk))
		must(t, fill.Close())
		must(t, r.Close())
	}
}

// TestGrowUnderWrites: writes go on while the replica grows, and the new end is theirs as soon as Info tells it.
func TestGrowUnderWrites(t *testing.T) {
	p, r := newTestReplica(t, testChunk, EngineAuto)
	var writers sync.WaitGroup
	done := make(chan struct{})
	for w := range 4 {
		writers.Go(func() {
			rng := rand.New(rand.NewPCG(1, uint64(w)))
			data := bytes.Repeat([]byte{byte(w + 1)}, block.SectorSize)
			got := make([]byte, block.SectorSize)
			for {
				select {
				case <-done:
					return
				default:
				}
				// Each has blocks of its own.
				n := rng.Int64N(r.Info().Size/block.SectorSize/4)*4 + int64(w)
				off := n * block.SectorSize
				err := activate(r.Log(), uint32(off/regionSize))
				if err == nil {
					err = block.WriteAt(r, data, off, 0)
				}
				if err == nil {
					err = block.ReadAt(r, got, off)
				}
				if err == nil {
					err = sameData(got, data)
				}
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for i := range int64(24) {
		must(t, r.Grow(testChunk+(i+1)*(testChunk/2)))
	}
	close(done)
	writers.Wait()
	must(t, r.CloseClean())
	r = openTestReplica(t, p)
	readAll(t, r)
	if sums := r.Checksums(); sums.Off != nil || sums.Damaged > 0 || sums.Checked == 0 {
		t.Errorf("checksums %+v", sums)
	}
}

// The steps of a growth through power cuts, by what is certain once they are done.
const (
	growWritten = iota + 1
	growGrown
	growUsed
	growAgain
)

// growSizes are those of the replica after the steps.
var growSizes = [...]int64{testChunk + block.SectorSize, testChunk + block.SectorSize, 4 * testChunk, 4 * testChunk, 3 << 30}

// TestGrowThroughPowerCuts grows a replica, thin and thick, on a file system whose disk is in memory, and looks at what a power cut after each request of
// that disk leaves: the old size or the new one, with everything that was there.
func TestGrowThroughPowerCuts(t *testing.T) {
	if err := fuseloop.Available(); err != nil {
		t.Skip(err)
	}
	for _, c := range []struct {
		kind  string
		size  int64
		thick bool
	}{{"ext4", 256 << 20, false}, {"xfs", 320 << 20, false}, {"xfs", 320 << 20, true}} {
		t.Run(fmt.Sprint(c.kind, " thick ", c.thick), func(t *testing.T) {
			f, err := fuseloop.New(fuseloop.Options{Dir: t.TempDir()})
			must(t, err)
			t.Cleanup(func() { must(t, f.Close()) })
			sizes := growSizes
			if c.thick {
				sizes[growAgain] = 5*testChunk + block.SectorSize
			} else {
				sizes[growAgain] = 200 << 20
			}
			open := func(dir string) *Pool {
				p, err := OpenPool(Options{Path: dir, Cluster: testCluster, Node: "n1", Engine: EngineThreads})
				must(t, err)
				return p
			}
			d := &cutDisk{Mem: blocktest.NewMem(blocktest.MemOptions{Size: c.size}), rng: rand.New(rand.NewPCG(1, 1))}
			onDisk(t, f, d, c.kind, true, func(dir string) {
				p := open(dir)
				must(t, p.Create(ReplicaSpec{Cluster: testCluster, Volume: testVolume, Replica: testReplica, Size: sizes[0], ChunkSize: testChunk, Thick: c.thick}))
				r, err := p.Open(testVolume, testReplica)
				must(t, err)
				must(t, block.WriteAt(r, sweepFirst, testChunk, 0))
				m, err := r.CreateDirtyMap(sweepPeer)
				must(t, err)
				m.Set(testChunk, 1)
				must(t, r.SaveDirtyMap(sweepPeer))
				must(t, block.Flush(r))
				d.on = true
				d.step()
				must(t, r.Grow(sizes[growGrown]))
				d.step()
				must(t, block.WriteAt(r, sweepSecond, sizes[growGrown]-block.SectorSize, block.FUA))
				m.Set(sizes[growGrown]-1, 1)
				must(t, r.SaveDirtyMap(sweepPeer))
				d.step()
				must(t, r.Grow(sizes[growAgain]))
				d.step()
				d.on = false
				must(t, r.Close())
				must(t, p.Close())
			})
			check := func(dir string, done int) error {
				p := open(dir)
				defer p.Close()
				r, err := p.Open(testVolume, testReplica)
				if err != nil {
					return fmt.Errorf("the replica does not open: %w", err)
				}
				defer r.Close()
				size := r.Info().Size
				if size != sizes[done] && size != sizes[min(done+1, growAgain)] {
					return fmt.Errorf("%d bytes", size)
				}
				m, damaged, err := r.DirtyMap(sweepPeer)
				if err != nil || len(damaged) > 0 || !m.Test(testChunk) || m.Test(0) || m.Blocks() != pieces(size, meta.DirtyBlock) || done < growGrown && m.Count() != 1 {
					return fmt.Errorf("dirty map of %d blocks, %d set, damaged %v (%w)", m.Blocks(), m.Count(), damaged, err)
				}
				got := make([]byte, 2*block.SectorSize)
				for end := r.Info().Size; ; end = sizes[growAgain] {
					if err := block.ReadAt(r, got[:block.SectorSize], testChunk); err != nil || !bytes.Equal(got[:block.SectorSize], sweepFirst) {
						return fmt.Errorf("the block that was there begins with %x (%w)", got[:4], err)
					}
					for off := int64(testChunk + block.SectorSize); off < end; off += testChunk / 2 {
						err := block.ReadAt(r, got[:block.SectorSize], off)
						used := off == sizes[growGrown]-block.SectorSize
						if err != nil || !bytes.Equal(got[:block.SectorSize], sweepZeroes) && !used {
							return fmt.Errorf("at %d of what is new the block begins with %x (%w)", off, got[:4], err)
						}
					}
					if done >= growUsed {
						if err := block.ReadAt(r, got[:block.SectorSize], sizes[growGrown]-block.SectorSize); err != nil || !bytes.Equal(got[:block.SectorSize], sweepSecond) {
							return fmt.Errorf("what was written after growing begins with %x (%w)", got[:4], err)
						}
					}
					if end == sizes[growAgain] {
						break
					}
					if err := r.Grow(sizes[growAgain]); err != nil { // what is left of the first try does not hinder
						return err
					}
				}
				if c.thick {
					for n := range pieces(sizes[growAgain], testChunk) {
						if r.chunk(n) == nil {
							return fmt.Errorf("thick, without chunk %d", n)
						}
					}
				}
				return block.WriteAt(r, sweepSecond, sizes[growAgain]-block.SectorSize, block.FUA)
			}
			cuts := d.cuts
			if n := *sweepMost / 2; n > 0 && len(cuts) > n {
				var some []powerCut
				for i := range n {
					some = append(some, cuts[i*len(cuts)/n])
				}
				cuts = some
			}
			t.Logf("%d power cuts of %d after %d requests", len(cuts), len(d.cuts), d.n)
			for _, cut := range cuts {
				onDisk(t, f, cut.disk, c.kind, false, func(dir string) {
					if err := check(dir, cut.done); err != nil {
						t.Errorf("%s, with %d steps done: %v", cut.how, cut.done, err)
					}
				})
			}
		})
	}
}

// TestSnapshotsOfOtherSizes does things to a replica in random order, growing among them: every snapshot has the size and the data
// of its cut, and tells what differs from another one.
func TestSnapshotsOfOtherSizes(t *testing.T) {
	p := newSnapPool(t)
	const seed = 1
	rng := rand.New(rand.NewPCG(seed, 0))
	head := make([]byte, testChunk+testChunk/2)
	createTestReplica(t, p, int64(len(head)))
	r := openTestReplica(t, p)
	type cut struct {
		id   meta.UUID
		data []byte
	}
	var cuts []cut
	padded := func(p []byte, n int) []byte { // or cut off
		p = bytes.Clone(p[:min(len(p), n)])
		return append(p, make([]byte, n-len(p))...)
	}
	verify := func() {
		list := r.Snapshots()
		if len(list) != len(cuts) {
			t.Fatalf("%d snapshots, want %d", len(list), len(cuts))
		}
		for i, c := range cuts {
			if list[i].ID != c.id || list[i].Size != int64(len(c.data)) {
				t.Fatalf("snapshot %d is %+v, want %x of %d bytes", i, list[i], c.id, len(c.data))
			}
			checkSnapshot(t, r, c.id, c.data)
			for _, base := range []cut{{}, cuts[rng.IntN(len(cuts))]} {
				now := padded(base.data, len(c.data))
				must(t, r.ChangedBlocks(base.id, c.id, 0, func(off, length int64) bool {
					copy(now[off:off+length], c.data[off:])
					return true
				}))
				if err := sameData(now, c.data); err != nil {
					t.Fatalf("snapshot %x made of %x and what has changed: %v", c.id, base.id, err)
				}
			}
		}
		must(t, sameData(readAll(t, r), head))
	}
	id := 0
	for step := range 60 {
		switch k := rng.IntN(12); {
		case k < 6:
			off := rng.Int64N(int64(len(head)/block.SectorSize)) * block.SectorSize
			n := min(int64(1+rng.IntN(24))*block.SectorSize, int64(len(head))-off)
			if rng.IntN(4) == 0 {
				clear(head[off : off+n])
				must(t, block.Discard(r, off, n))
			} else {
				copy(head[off:], randomBytes(rng.Uint64(), int(n)))
				must(t, block.WriteAt(r, head[off:off+n], off, 0))
			}
		case k < 8:
			id++
			must(t, r.cut(snapID(id)))
			cuts = append(cuts, cut{snapID(id), bytes.Clone(head)})
		case k < 9 && len(cuts) > 0:
			i := rng.IntN(len(cuts))
			must(t, r.DeleteSnapshot(cuts[i].id))
			cuts = slices.Delete(cuts, i, i+1)
		case k < 10 && len(head) < 4*testChunk:
			head = append(head, make([]byte, (1+rng.IntN(200))*block.SectorSize)...)
			must(t, r.Grow(int64(len(head))))
		case k < 11:
			must(t, r.Close())
			r = openTestReplica(t, p)
		default:
			verify()
		}
		if step == 30 && len(cuts) > 0 {
			c := cuts[0]
			must(t, r.CloseClean())
			must(t, p.Revert(testVolume, testReplica, c.id))
			r = openTestReplica(t, p)
			head = padded(c.data, len(head)) // the replica keeps its size
			verify()
		}
	}
	verify()
	for i, c := range cuts {
		for j, size := range []int64{0, int64(len(c.data)), int64(len(head)) + 2*testChunk} {
			spec := ReplicaSpec{Cluster: testCluster, Volume: meta.UUID{1, byte(i), byte(j)}, Replica: meta.UUID{2, byte(i), byte(j)}, Size: size}
			must(t, p.CreateFrom(spec, r, c.id))
			made, err := p.Open(spec.Volume, spec.Replica)
			must(t, err)
			if size == 0 {
				size = int64(len(c.data))
			}
			if got := readAll(t, made); len(got) != int(size) || sameData(got, padded(c.data, int(size))) != nil {
				t.Errorf("a clone of snapshot %x has %d bytes, want %d: %v", c.id, len(got), size, sameData(got, padded(c.data, int(size))))
			}
			must(t, made.CloseClean())
		}
		small := ReplicaSpec{Cluster: testCluster, Volume: meta.UUID{3}, Replica: meta.UUID{3}, Size: int64(len(c.data)) - block.SectorSize}
		if err := p.CreateFrom(small, r, c.id); !errors.Is(err, ErrInvalid) {
			t.Errorf("a clone smaller than the snapshot: %v", err)
		}
	}
}

// TestChangesBehindTheEnd: what a snapshot has behind the end of a smaller one has changed, also where both would find the same file.
func TestChangesBehindTheEnd(t *testing.T) {
	p := newSnapPool(t)
	createTestReplica(t, p, testChunk)
	r := openTestReplica(t, p)
	must(t, r.cut(snapID(1)))
	must(t, r.Grow(3*testChunk))
	must(t, block.WriteAt(r, sweepFirst, 2*testChunk, 0)) // in a chunk that the first one does not have, so nothing is cloned
	must(t, r.cut(snapID(2)))
	must(t, block.WriteAt(r, sweepSecond, 2*testChunk, 0)) // and now it is, for the second one
	if list := r.Snapshots(); list[0].Chunks != 0 || list[1].Chunks != 1 {
		t.Errorf("clones: %+v", list)
	}
	want := [][2]int64{{2 * testChunk, block.SectorSize}}
	if got := changes(t, r, snapID(1), snapID(2), 0); !slices.Equal(got, want) {
		t.Errorf("changed are %v, want %v", got, want)
	}
	if got := changes(t, r, snapID(2), snapID(1), 0); len(got) > 0 {
		t.Errorf("of the smaller one %v", got)
	}
}

// TestGrownMapsAreStable: the new pages of a dirty map say that nothing is dirty, also if nothing is written before the process ends.
func TestGrownMapsAreStable(t *testing.T) {
	p, r := newTestReplica(t, testChunk, EngineAuto)
	m, err := r.CreateDirtyMap(sweepPeer)
	must(t, err)
	m.Set(0, 1)
	must(t, r.SaveDirtyMap(sweepPeer))
	must(t, r.Grow(5<<30)) // three pages
	must(t, r.Close())
	r = openTestReplica(t, p)
	m, damaged, err := r.DirtyMap(sweepPeer)
	must(t, err)
	if len(damaged) > 0 || m.Count() != 1 || !m.Test(0) {
		t.Errorf("%d blocks are dirty, pages %v damaged", m.Count(), damaged)
	}
}

// TestSnapshotFromBeforeSizes: a set that does not tell sizes does so before the replica has another one.
func TestSnapshotFromBeforeSizes(t *testing.T) {
	p := newSnapPool(t)
	createTestReplica(t, p, testChunk)
	r := openTestReplica(t, p)
	data := randomBytes(1, testChunk)
	must(t, block.WriteAt(r, data, 0, 0))
	must(t, r.cut(snapID(1)))
	set := r.snaps.mu.file.Get()
	set.Records[0].Size = 0
	must(t, r.snaps.mu.file.Write(set))
	must(t, r.Close())
	r = openTestReplica(t, p)
	must(t, r.Grow(2*testChunk))
	must(t, r.Close())
	r = openTestReplica(t, p)
	if list := r.Snapshots(); list[0].Size != testChunk {
		t.Errorf("the snapshot has %d bytes", list[0].Size)
	}
	checkSnapshot(t, r, snapID(1), data)
}
