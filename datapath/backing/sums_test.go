package backing

import (
	"bytes"
	"errors"
	"hash/crc32"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tandem-storage/tandem/datapath/block"
	"github.com/tandem-storage/tandem/datapath/meta"
)

const sumsSize = 3 * meta.SumRegion

// damage changes one bit of the volume behind the replica's back.
func damage(r *Replica, off int64) {
	c := r.chunk(off / r.chunkSize)
	b := readRaw(c.fd, off%r.chunkSize&^(block.SectorSize-1))
	b[off%block.SectorSize] ^= 4
	writeRaw(c.fd, b, off%r.chunkSize&^(block.SectorSize-1))
}

func readErr(r *Replica, off int64, n int) error { return block.ReadAt(r, make([]byte, n), off) }

// TestSumsDamage: a block that is not as it was written is not returned, and is well
// again when it is written anew. Other blocks are not affected.
func TestSumsDamage(t *testing.T) {
	_, r := newTestReplica(t, sumsSize, EngineAuto)
	data := randomBytes(1, 64<<10)
	if err := block.WriteAt(r, data, 0, 0); err != nil {
		t.Fatal(err)
	}
	other := randomBytes(2, 8192)
	sums := []uint32{crc32.Checksum(other[:4096], castagnoli), crc32.Checksum(other[4096:], castagnoli)}
	if err := block.Do(r, block.Request{Op: block.OpWrite, Off: 128 << 10, Len: 8192, Data: other, Sums: sums}); err != nil {
		t.Fatal(err)
	}
	if err := block.Discard(r, 4<<20-8192, 16384); err != nil { // two regions, and several chunks
		t.Fatal(err)
	}
	if err := readErr(r, 0, 256<<10); err != nil {
		t.Fatal(err)
	}
	before := r.Checksums()
	if before.Off != nil || before.Checked != 18 || before.Damaged != 0 {
		t.Errorf("checksums: %+v", before)
	}
	for _, off := range []int64{4096 + 17, 132<<10 + 4095} {
		damage(r, off)
		at := off &^ 4095
		for _, n := range []int64{at, max(at-8192, 0)} {
			if err := readErr(r, n, int(at+4096-n)); !errors.Is(err, block.ErrChecksum) || !errors.Is(err, block.ErrIO) || errors.Is(err, ErrFaulted) {
				t.Errorf("damaged byte %d, read from %d: %v", off, n, err)
			}
		}
		if err := readErr(r, at+4096, 4096); err != nil {
			t.Error(err)
		}
		buf := make([]byte, 4096)
		if err := block.Do(r, block.Request{Op: block.OpRead, Flags: block.AsIs, Off: at, Len: 4096, Data: buf}); err != nil {
			t.Errorf("read as it is: %v", err)
		}
		if err := block.WriteAt(r, buf, at, 0); err != nil {
			t.Fatal(err)
		}
		if err := readErr(r, at, 4096); err != nil {
			t.Errorf("after it was written anew: %v", err)
		}
	}
	// A write that went to the wrong place: its block's own, and that of another one.
	c := r.chunk(0)
	writeRaw(c.fd, data[:4096], 8192)
	if err := readErr(r, 8192, 4096); !errors.Is(err, block.ErrChecksum) {
		t.Errorf("a block that was written in another's place: %v", err)
	}
	// What was discarded is zeroes.
	writeRaw(r.chunk(0).fd, data[:4096], 64<<10)
	if err := readErr(r, 64<<10, 4096); err != nil {
		t.Errorf("a block that was never written has a checksum: %v", err)
	}
	if err := block.Discard(r, 64<<10, 4096); err != nil {
		t.Fatal(err)
	}
	damage(r, 64<<10)
	if err := readErr(r, 64<<10, 4096); !errors.Is(err, block.ErrChecksum) {
		t.Errorf("a discarded block that is not zero: %v", err)
	}
	if r.Err() != nil {
		t.Error(r.Err())
	}
	if got := r.Checksums(); got.Damaged != 6 {
		t.Errorf("checksums: %+v", got)
	}
}

// reopen closes r, changes something, and opens it again.
func reopen(t *testing.T, p *Pool, r *Replica, clean bool, change func()) *Replica {
	t.Helper()
	stop := r.Close
	if clean {
		stop = r.CloseClean
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	change()
	r = openTestReplica(t, p)
	if why := r.Checksums().Off; why != nil {
		t.Fatal(why)
	}
	return r
}

// TestSumsBelieved: checksums are believed as long as every process that had the
// replica open kept them, and nothing was written without a crash leaving a trace of it.
func TestSumsBelieved(t *testing.T) {
	const off = meta.SumRegion + 4096
	for _, c := range []struct {
		name string
		do   func(t *testing.T, p *Pool, r *Replica) *Replica
		want bool
	}{
		{"clean stop", func(t *testing.T, p *Pool, r *Replica) *Replica {
			return reopen(t, p, r, true, func() {})
		}, true},
		{"crash at rest", func(t *testing.T, p *Pool, r *Replica) *Replica {
			r = reopen(t, p, r, true, func() {})
			return reopen(t, p, r, false, func() {})
		}, true},
		{"crash with a write outside the log", func(t *testing.T, p *Pool, r *Replica) *Replica {
			r = reopen(t, p, r, true, func() {})
			if err := block.WriteAt(r, randomBytes(9, 4096), off, 0); err != nil {
				t.Fatal(err)
			}
			return reopen(t, p, r, false, func() {})
		}, false},
		{"crash after the resync was over", func(t *testing.T, p *Pool, r *Replica) *Replica {
			if err := r.UpdateSuperblock(func(sb *meta.Superblock) { sb.State = meta.StateInSync }); err != nil {
				t.Fatal(err)
			}
			return reopen(t, p, r, false, func() {})
		}, true},
		{"crash with the region in the log", func(t *testing.T, p *Pool, r *Replica) *Replica {
			r = reopen(t, p, r, true, func() {})
			if err := activate(r.Log(), 1); err != nil {
				t.Fatal(err)
			}
			return reopen(t, p, r, false, func() {})
		}, false},
		{"crash with another region in the log", func(t *testing.T, p *Pool, r *Replica) *Replica {
			r = reopen(t, p, r, true, func() {})
			if err := activate(r.Log(), 0); err != nil {
				t.Fatal(err)
			}
			if err := block.WriteAt(r, randomBytes(3, 4096), 0, 0); err != nil {
				t.Fatal(err)
			}
			return reopen(t, p, r, false, func() {})
		}, true},
		{"clean stop with the region in the log", func(t *testing.T, p *Pool, r *Replica) *Replica {
			if err := activate(r.Log(), 1); err != nil {
				t.Fatal(err)
			}
			return reopen(t, p, r, true, func() {})
		}, true},
		{"crash with the log lost", func(t *testing.T, p *Pool, r *Replica) *Replica {
			r = reopen(t, p, r, true, func() {})
			r.Log().SetLost(true)
			if err := wait(r.Log().Flush); err != nil {
				t.Fatal(err)
			}
			return reopen(t, p, r, false, func() {})
		}, false},
		{"process that keeps none", func(t *testing.T, p *Pool, r *Replica) *Replica {
			return reopen(t, p, r, true, func() {
				p.self, p.o.NoChecksums = newUUID(), true
				r := openTestReplica(t, p)
				if !errors.Is(r.Checksums().Off, errNoChecksums) {
					t.Errorf("checksums of a pool that keeps none: %v", r.Checksums().Off)
				}
				if err := block.WriteAt(r, randomBytes(3, 4096), 0, 0); err != nil {
					t.Fatal(err)
				}
				if err := r.CloseClean(); err != nil {
					t.Fatal(err)
				}
				p.self, p.o.NoChecksums = newUUID(), false
			})
		}, false},
		{"process that was cut short before it kept any", func(t *testing.T, p *Pool, r *Replica) *Replica {
			return reopen(t, p, r, true, func() { openHalf(t, p) })
		}, true},
		{"no file", func(t *testing.T, p *Pool, r *Replica) *Replica {
			return reopen(t, p, r, true, func() { os.Remove(filepath.Join(r.dir, sumsFile)) })
		}, false},
		{"file cut short", func(t *testing.T, p *Pool, r *Replica) *Replica {
			return reopen(t, p, r, true, func() { os.Truncate(filepath.Join(r.dir, sumsFile), 8192) })
		}, false},
		{"damaged header", func(t *testing.T, p *Pool, r *Replica) *Replica {
			return reopen(t, p, r, true, func() { damagePage(t, r, 100) })
		}, false},
		{"damaged page", func(t *testing.T, p *Pool, r *Replica) *Replica {
			return reopen(t, p, r, true, func() { damagePage(t, r, meta.SumOffset(1)+4000) })
		}, false},
		{"page of another region", func(t *testing.T, p *Pool, r *Replica) *Replica {
			return reopen(t, p, r, true, func() {
				f, err := os.OpenFile(filepath.Join(r.dir, sumsFile), os.O_RDWR, 0)
				if err != nil {
					t.Fatal(err)
				}
				defer f.Close()
				page := make([]byte, meta.PageSize)
				if _, err := f.ReadAt(page, meta.SumOffset(0)); err != nil {
					t.Fatal(err)
				}
				if _, err := f.WriteAt(page, meta.SumOffset(1)); err != nil {
					t.Fatal(err)
				}
			})
		}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			p, r := newTestReplica(t, sumsSize, EngineAuto)
			for g := range int64(3) {
				if err := block.WriteAt(r, randomBytes(uint64(g), 8192), g*meta.SumRegion+4096, 0); err != nil {
					t.Fatal(err)
				}
			}
			r = c.do(t, p, r)
			if err := readErr(r, 0, 1<<20); err != nil {
				t.Fatal(err)
			}
			damage(r, off)
			if err := readErr(r, off, 4096); errors.Is(err, block.ErrChecksum) != c.want {
				t.Errorf("a damaged block: %v", err)
			}
			// What is written from here on has a checksum, whatever was before.
			if err := block.WriteAt(r, randomBytes(5, 4096), off, 0); err != nil {
				t.Fatal(err)
			}
			r = reopen(t, p, r, true, func() {})
			damage(r, off)
			if err := readErr(r, off, 4096); !errors.Is(err, block.ErrChecksum) {
				t.Errorf("a damaged block that was written later: %v", err)
			}
		})
	}
}

// openHalf opens the replica up to the write of the superblock.
func openHalf(t *testing.T, p *Pool) {
	t.Helper()
	self := p.self
	p.self = newUUID()
	defer func() { p.self = self }()
	r := &Replica{pool: p, k: key{testVolume, testReplica}, dir: p.path(replicasDir, key{testVolume, testReplica}.dirName()), faulted: make(chan struct{})}
	var err error
	if r.d, err = os.Open(r.dir); err != nil {
		t.Fatal(err)
	}
	sb, err := r.openSuperblock()
	if err != nil {
		t.Fatal(err)
	}
	r.shape.Store(shapeOf(sb))
	if err := r.openLog(sb.Instance); err != nil {
		t.Fatal(err)
	}
	r.openSums(sb)
	r.shut()
}

func damagePage(t *testing.T, r *Replica, off int64) {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(r.dir, sumsFile), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, off); err != nil {
		t.Fatal(err)
	}
	b[0]++
	if _, err := f.WriteAt(b, off); err != nil {
		t.Fatal(err)
	}
}

// TestSumsOverlap: reads of blocks that are being written never take them for damaged.
func TestSumsOverlap(t *testing.T) {
	_, r := newTestReplica(t, sumsSize, EngineAuto)
	if err := activate(r.Log(), 0); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for w := range 3 {
		wg.Go(func() { // two write the same blocks, which leaves either
			for i := range 200 {
				if err := block.WriteAt(r, randomBytes(uint64(i%2+w*7), 16<<10), int64(w/2)*16<<10, 0); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for range 2 {
		wg.Go(func() {
			for range 400 {
				if err := readErr(r, 0, 32<<10); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	// The readers may have been done before there was a checksum. Here one writer was alone.
	if err := readErr(r, 16<<10, 16<<10); err != nil {
		t.Error(err)
	}
	if c := r.Checksums(); c.Damaged != 0 || c.Checked == 0 {
		t.Errorf("checksums: %+v", c)
	}
}

// TestSumsTwoAtOnce: of two writes to a block that are in flight at once either may be the last
// one on the disk, and neither is taken for damage. A write alone is checked again
// when the region was read anew.
func TestSumsTwoAtOnce(t *testing.T) {
	p, r := newTestReplica(t, sumsSize, EngineThreads)
	if err := activate(r.Log(), 0); err != nil {
		t.Fatal(err)
	}
	if err := block.WriteAt(r, randomBytes(1, 4096), 0, 0); err != nil {
		t.Fatal(err)
	}
	e := &crashEngine{engine: p.engine, rng: rand.New(rand.NewPCG(1, 0)), cached: make(map[cachedBlock][][]byte)}
	var writes []*result
	p.engine = e
	for seed := range uint64(3) {
		data := block.NewBuffer(4096)
		defer data.Release()
		copy(data.Bytes(), randomBytes(seed+2, 4096))
		writes = append(writes, start(r, block.Request{Op: block.OpWrite, Len: 4096, Data: data.Bytes()}))
	}
	for range writes { // the last one first
		slices.Reverse(e.flight)
		o := e.flight[0]
		e.flight = e.flight[1:]
		slices.Reverse(e.flight)
		o.owner.opDone(o, runOp(o))
		p.engine = e.engine
		if err := readErr(r, 0, 4096); err != nil {
			t.Error(err)
		}
		p.engine = e
	}
	p.engine = e.engine
	for _, w := range writes {
		if err := <-w.err; err != nil {
			t.Error(err)
		}
	}
	if err := readErr(r, 0, 4096); err != nil {
		t.Error(err)
	}
	r = reopen(t, p, r, true, func() {})
	if err := block.WriteAt(r, randomBytes(9, 4096), 0, 0); err != nil {
		t.Fatal(err)
	}
	damage(r, 0)
	if err := readErr(r, 0, 4096); !errors.Is(err, block.ErrChecksum) {
		t.Errorf("a damaged block: %v", err)
	}
}

// TestSumsFileFails: a checksum file that cannot be written costs the checksums, and no
// request fails. What is there is not believed by the next process.
func TestSumsFileFails(t *testing.T) {
	for _, c := range []struct {
		name string
		do   func(r *Replica) error
	}{
		{"page", func(r *Replica) error {
			r.Log().Retire([]uint32{1}, 0)
			return wait(r.Log().Flush)
		}},
		{"header", func(r *Replica) error { return block.WriteAt(r, randomBytes(2, 4096), 0, 0) }},
		{"large discard", func(r *Replica) error { return block.Discard(r, 0, looseRequest*meta.SumRegion+4096) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := openTestPool(t, t.TempDir(), EngineAuto)
			spec := ReplicaSpec{Cluster: testCluster, Volume: testVolume, Replica: testReplica, Size: (looseRequest + 2) * meta.SumRegion}
			if err := p.Create(spec); err != nil {
				t.Fatal(err)
			}
			r := openTestReplica(t, p)
			if err := block.WriteAt(r, randomBytes(3, 4096), meta.SumRegion, 0); err != nil {
				t.Fatal(err)
			}
			r = reopen(t, p, r, true, func() {})
			if err := activate(r.Log(), 1); err != nil {
				t.Fatal(err)
			}
			if err := block.WriteAt(r, randomBytes(1, 4096), meta.SumRegion, 0); err != nil {
				t.Fatal(err)
			}
			f := injectFaults(p)
			fd := r.sums.pages.Fd()
			rule := func(o *op) error {
				if o.kind == opWrite && o.fd == fd {
					return unix.EIO
				}
				return nil
			}
			f.rule.Store(&rule)
			if err := c.do(r); err != nil {
				t.Fatal(err)
			}
			if r.Checksums().Off == nil || r.Err() != nil {
				t.Errorf("checksums %v, replica %v", r.Checksums().Off, r.Err())
			}
			f.rule.Store(nil)
			if err := block.WriteAt(r, randomBytes(7, 4096), meta.SumRegion, 0); err != nil {
				t.Fatal(err)
			}
			r = reopen(t, p, r, true, func() {})
			if err := readErr(r, 0, 1<<20); err != nil {
				t.Error(err)
			}
			if err := readErr(r, meta.SumRegion, 1<<20); err != nil {
				t.Error(err)
			}
			if n := r.Checksums().Checked; n != 0 {
				t.Errorf("%d checksums of a file that could not be written are believed", n)
			}
		})
	}
}

// TestSumsCache: checksums of more regions than stay in memory are read when they are needed.
func TestSumsCache(t *testing.T) {
	p := openTestPool(t, t.TempDir(), EngineAuto)
	const regions = cachedSums + 200
	spec := ReplicaSpec{Cluster: testCluster, Volume: testVolume, Replica: testReplica, Size: regions * meta.SumRegion}
	if err := p.Create(spec); err != nil {
		t.Fatal(err)
	}
	r := openTestReplica(t, p)
	data := randomBytes(1, 4096)
	for g := range int64(regions) { // none is in the log
		if err := block.WriteAt(r, data, g*meta.SumRegion+g*4096%meta.SumRegion, 0); err != nil {
			t.Fatal(err)
		}
	}
	r = reopen(t, p, r, true, func() {})
	buf := make([]byte, 4096)
	for range 2 {
		for g := range int64(regions) {
			if err := block.ReadAt(r, buf, g*meta.SumRegion+g*4096%meta.SumRegion); err != nil || !bytes.Equal(buf, data) {
				t.Fatalf("region %d: %v", g, err)
			}
		}
	}
	if c := r.Checksums(); c.Checked != 2*regions {
		t.Errorf("checked %d blocks, want %d", c.Checked, 2*regions)
	}
	r.sums.mu.Lock()
	if n := len(r.sums.mu.resident); n > cachedSums {
		t.Errorf("%d regions in memory", n)
	}
	r.sums.mu.Unlock()
}
