package backing

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tandem-storage/tandem/datapath/block"
	"github.com/tandem-storage/tandem/datapath/meta"
	"github.com/tandem-storage/tandem/internal/testseed"
)

// crashEngine does one op at a time, when it is told to, and knows what a power cut
// may take back: data that were not synced, and what is in flight.
type crashEngine struct {
	engine
	rng    *rand.Rand
	flight []*op
	steps  int
	cached map[cachedBlock][][]byte // versions that the medium may have; the last one is what a read returns
}

type cachedBlock struct {
	fd  int
	off int64
}

func (c *crashEngine) submit(ops []*op) { c.flight = append(c.flight, ops...) }

// step does one of the ops in flight and tells its owner.
func (c *crashEngine) step() bool {
	if len(c.flight) == 0 {
		return false
	}
	i := c.rng.IntN(len(c.flight))
	o := c.flight[i]
	c.flight = slices.Delete(c.flight, i, i+1)
	c.steps++
	if o.chunk != nil {
		c.cache(o, func(int64) bool { return true })
	}
	if o.kind == opDataSync {
		for b := range c.cached {
			if b.fd == o.fd {
				delete(c.cached, b)
			}
		}
	}
	o.owner.opDone(o, runOp(o))
	return true
}

// cache adds what o writes to the versions of its blocks, of those that land.
func (c *crashEngine) cache(o *op, lands func(off int64) bool) {
	if o.kind == opRead || o.kind == opDataSync {
		return
	}
	for at := int64(0); at < o.length; at += block.SectorSize {
		b := cachedBlock{o.fd, o.off + at}
		if c.cached[b] == nil {
			c.cached[b] = [][]byte{readRaw(o.fd, b.off)}
		}
		now := make([]byte, block.SectorSize)
		if o.kind == opWrite {
			copy(now, o.buf[at:])
		}
		if lands(at) {
			c.cached[b] = append(c.cached[b], now)
		}
	}
}

func readRaw(fd int, off int64) []byte {
	buf := block.NewBuffer(block.SectorSize)
	defer buf.Release()
	if _, err := unix.Pread(fd, buf.Bytes(), off); err != nil {
		panic(err)
	}
	return bytes.Clone(buf.Bytes())
}

func writeRaw(fd int, p []byte, off int64) {
	buf := block.NewBuffer(len(p))
	defer buf.Release()
	copy(buf.Bytes(), p)
	if _, err := unix.Pwrite(fd, buf.Bytes(), off); err != nil {
		panic(err)
	}
}

// sumsCrashModes say how much of what is not stable survives.
var sumsCrashModes = []struct {
	name string
	keep func(rng *rand.Rand, n int) int // one of n versions
}{
	{"none", func(*rand.Rand, int) int { return 0 }},
	{"all", func(_ *rand.Rand, n int) int { return n - 1 }},
	{"some", func(rng *rand.Rand, n int) int { return rng.IntN(n) }},
}

// cut leaves the files as a power cut may.
func (c *crashEngine) cut(keep func(rng *rand.Rand, n int) int) {
	for _, o := range c.flight {
		switch {
		case o.chunk != nil:
			c.cache(o, func(int64) bool { return true })
		case o.kind == opWrite: // metadata: any of its sectors
			now := readRaw(o.fd, o.off)
			for s := 0; s < len(now); s += 512 {
				if keep(c.rng, 2) == 1 {
					copy(now[s:], o.buf[s:s+512])
				}
			}
			writeRaw(o.fd, now, o.off)
		}
	}
	c.flight = nil
	for b, versions := range c.cached {
		writeRaw(b.fd, versions[keep(c.rng, len(versions))], b.off)
	}
	clear(c.cached)
}

const (
	crashRegions = 3
	crashBlocks  = 3 // of a region that are used
)

// sumsCrash runs a replica on a crashEngine.
type sumsCrash struct {
	t   *testing.T
	rng *rand.Rand
	dir string
	p   *Pool
	r   *Replica
	e   *crashEngine

	state    [crashRegions]regionTold
	writing  map[int64]int    // requests in flight by block
	unsynced map[int64]uint64 // block: number of its last write that no flush has covered
	number   uint64
	loose    bool // data were written outside the log
	known    [crashRegions]bool
	saying   [crashRegions]int // retirements

	reads struct { // that have not ended
		sync.Mutex
		of    map[*block.Request]uint32 // region
		ended sync.Cond
	}
}

type regionTold uint8

const (
	toldOut regionTold = iota
	toldComing
	toldIn
)

func (c *sumsCrash) open() {
	c.t.Helper()
	p, err := OpenPool(c.options())
	if err != nil {
		c.t.Fatal(err)
	}
	if c.r, err = p.Open(testVolume, testReplica); err != nil {
		c.t.Fatal(err)
	}
	if why := c.r.Checksums().Off; why != nil {
		c.t.Fatal(why)
	}
	c.p = p
}

func (c *sumsCrash) options() Options {
	o := testOptions(c.dir)
	o.Engine = EngineThreads
	return o
}

// drop ends the process without any further I/O.
func (c *sumsCrash) drop() {
	c.p.engine = c.e.engine
	c.r.shut()
	delete(c.p.mu.open, c.r.k)
	if err := c.p.Close(); err != nil {
		c.t.Fatal(err)
	}
}

func (c *sumsCrash) block(g uint32, i int) int64 { return int64(g)*meta.SumBlocks + int64(i)*511 }

// change asks for something.
func (c *sumsCrash) change(loose bool) {
	g := uint32(c.rng.IntN(crashRegions))
	switch k := c.rng.IntN(11); {
	case k < 2 && c.state[g] == toldOut:
		c.state[g] = toldComing
		c.known[g] = false
		c.r.Log().Activate([]uint32{g}, func(err error) {
			if err != nil {
				c.t.Fatal(err)
			}
			c.state[g] = toldIn
		})
	case k < 6:
		if c.state[g] == toldIn || loose && c.rng.IntN(5) == 0 {
			c.write(g)
		}
	case k < 8:
		before := c.number
		c.start(block.Request{Op: block.OpFlush}, func() {
			for b, n := range c.unsynced {
				if n <= before {
					delete(c.unsynced, b)
				}
			}
		})
	case k < 10:
		if c.state[g] != toldIn || !c.settled(g) {
			return
		}
		c.state[g] = toldOut
		c.saying[g]++
		said := c.saying[g]
		c.r.Log().Retire([]uint32{g}, 0)
		c.r.Log().Flush(func(err error) {
			if err != nil {
				c.t.Fatal(err)
			}
			c.known[g] = said == c.saying[g] && c.state[g] == toldOut && c.settled(g)
		})
	default:
		req := block.Request{Op: block.OpRead, Off: c.block(g, c.rng.IntN(crashBlocks)) * block.SectorSize, Len: block.SectorSize}
		req.Data = block.NewBuffer(block.SectorSize).Bytes()
		c.start(req, func() {})
	}
}

// settled reports whether nothing was written to region g that is not synced.
func (c *sumsCrash) settled(g uint32) bool {
	for i := range crashBlocks {
		b := c.block(g, i)
		if _, ok := c.unsynced[b]; ok || c.writing[b] > 0 {
			return false
		}
	}
	return true
}

func (c *sumsCrash) write(g uint32) {
	b := c.block(g, c.rng.IntN(crashBlocks))
	if c.writing[b] > 0 {
		return
	}
	if c.state[g] != toldIn {
		c.loose = true
	}
	c.known[g] = false
	c.writing[b]++
	c.number++
	n := c.number
	req := block.Request{Op: block.OpWrite, Off: b * block.SectorSize, Len: block.SectorSize}
	if c.rng.IntN(4) == 0 {
		req.Op = block.OpDiscard
	} else {
		req.Data = block.NewBuffer(block.SectorSize).Bytes()
		copy(req.Data, randomBytes(n, block.SectorSize))
	}
	c.unsynced[b] = ^uint64(0) // until it has ended
	c.start(req, func() {
		c.writing[b]--
		c.number++
		c.unsynced[b] = c.number
	})
}

func (c *sumsCrash) start(req block.Request, done func()) {
	req.By = block.CompleterFunc(func(r *block.Request, err error) {
		if err != nil {
			c.t.Errorf("after %d steps: %v", c.e.steps, err)
		}
		done()
		c.reads.Lock()
		delete(c.reads.of, r)
		c.reads.Unlock()
		c.reads.ended.Broadcast()
	})
	if req.Op == block.OpRead {
		c.reads.Lock()
		c.reads.of[&req] = uint32(req.Off / meta.SumRegion)
		c.reads.Unlock()
	}
	c.r.Submit([]*block.Request{&req})
	c.rechecked()
}

// rechecked waits for the reads that nothing in flight belongs to: they are looked at once more, with reads that do not come by the engine.
// A process that ends takes those along, the test cannot.
func (c *sumsCrash) rechecked() {
	c.reads.Lock()
	defer c.reads.Unlock()
	for {
		rechecks := 0
		for req, g := range c.reads.of {
			if !slices.ContainsFunc(c.e.flight, func(o *op) bool {
				switch owner := o.owner.(type) {
				case *task:
					return owner.req == req
				case *sumRegion:
					return owner.no == g && o.kind == opRead
				default:
					return false
				}
			}) {
				rechecks++
			}
		}
		if rechecks == 0 {
			return
		}
		c.reads.ended.Wait()
	}
}

// check reads every block, and damages those whose checksums must have survived.
func (c *sumsCrash) check(what string) {
	c.t.Helper()
	buf := make([]byte, block.SectorSize)
	for g := range uint32(crashRegions) {
		for i := range crashBlocks {
			off := c.block(g, i) * block.SectorSize
			if err := block.ReadAt(c.r, buf, off); err != nil {
				c.t.Fatalf("%s: region %d: %v", what, g, err)
			}
			if !c.known[g] || c.loose {
				continue
			}
			ch := c.r.chunk(off / c.r.chunkSize)
			old := readRaw(ch.fd, off%c.r.chunkSize)
			bad := bytes.Clone(old)
			bad[c.rng.IntN(len(bad))] ^= 1 << c.rng.IntN(8)
			writeRaw(ch.fd, bad, off%c.r.chunkSize)
			if err := block.ReadAt(c.r, buf, off); !errors.Is(err, block.ErrChecksum) {
				c.t.Fatalf("%s: damage in region %d, block %d was not noticed: %v", what, g, i, err)
			}
			if err := block.Do(c.r, block.Request{Op: block.OpRead, Flags: block.AsIs, Off: off, Len: block.SectorSize, Data: buf}); err != nil || !bytes.Equal(buf, bad) {
				c.t.Fatalf("%s: damaged block as it is: %v", what, err)
			}
			writeRaw(ch.fd, old, off%c.r.chunkSize)
		}
	}
}

// TestSumsCrash cuts the power after every step of a run in which regions come and go,
// with nothing, all and parts of what was not stable on the medium: no block that is as it was
// written is ever taken for damaged, and what was retired durably is checked.
func TestSumsCrash(t *testing.T) {
	for _, loose := range []bool{false, true} {
		for _, m := range sumsCrashModes {
			t.Run(fmt.Sprintf("loose %v, %s", loose, m.name), func(t *testing.T) {
				seed := testseed.Of(t)
				cuts, noticed := 0, 0
				dir := fastDir(t)
				for at := 0; ; at++ {
					c := &sumsCrash{
						t: t, rng: rand.New(rand.NewPCG(seed, 0)), dir: dir,
						writing: make(map[int64]int), unsynced: make(map[int64]uint64),
					}
					c.reads.of, c.reads.ended.L = make(map[*block.Request]uint32), &c.reads
					whole := c.run(at, loose, m.keep)
					cuts++
					for _, k := range c.known {
						if k && !c.loose {
							noticed++
						}
					}
					if whole {
						break
					}
				}
				t.Logf("%d cuts, %d regions checked", cuts, noticed)
				if !loose && noticed == 0 {
					t.Error("no region was ever known")
				}
			})
		}
	}
}

// run runs up to step at, and reports whether there are no more.
func (c *sumsCrash) run(at int, loose bool, keep func(*rand.Rand, int) int) (whole bool) {
	if at == 0 {
		c.prepare()
	}
	for g := range c.known {
		c.known[g] = true
	}
	c.open()
	c.e = &crashEngine{engine: c.p.engine, rng: c.rng, cached: make(map[cachedBlock][][]byte)}
	c.p.engine = c.e
	const changes = 100
	for n := 0; c.e.steps < at; n++ {
		if n < changes {
			c.change(loose)
		}
		for k := c.rng.IntN(3); (k > 0 || n >= changes) && c.e.steps < at; k-- {
			if !c.e.step() {
				break
			}
			c.rechecked()
		}
		if n >= changes && len(c.e.flight) == 0 {
			whole = true
			break
		}
	}
	c.e.cut(keep)
	c.drop()
	c.open()
	what := fmt.Sprintf("power cut after %d steps", at)
	c.e = &crashEngine{engine: c.p.engine}
	c.check(what)
	if at%8 == 0 {
		c.close()
		c.open()
		c.check(what + ", and a clean stop")
	}
	c.fill()
	c.close()
	return whole
}

func (c *sumsCrash) close() {
	if err := c.r.CloseClean(); err != nil {
		c.t.Fatal(err)
	}
	if err := c.p.Close(); err != nil {
		c.t.Fatal(err)
	}
}

// fastDir is a directory for a pool that syncs without waiting for a disk, if there is such a place.
func fastDir(t *testing.T) string {
	_, err := os.Stat("/dev/loop-control")
	if os.Geteuid() != 0 || err != nil {
		return t.TempDir()
	}
	return mountImage(t, "ext4", 128<<20)
}

// prepare makes the replica.
func (c *sumsCrash) prepare() {
	p, err := OpenPool(c.options())
	if err != nil {
		c.t.Fatal(err)
	}
	createTestReplica(c.t, p, crashRegions*meta.SumRegion)
	if err := p.Close(); err != nil {
		c.t.Fatal(err)
	}
	c.open()
	c.fill()
	c.close()
}

// fill writes every block, and has no region left in the log.
func (c *sumsCrash) fill() {
	c.r.Log().Retire(c.r.Log().Active(), 0)
	for g := range uint32(crashRegions) {
		for i := range crashBlocks {
			if err := block.WriteAt(c.r, randomBytes(1000+uint64(i), block.SectorSize), c.block(g, i)*block.SectorSize, 0); err != nil {
				c.t.Fatal(err)
			}
		}
	}
}
