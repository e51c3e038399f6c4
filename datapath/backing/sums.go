package backing

import (
	"fmt"
	"hash/crc32"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/tandem-storage/tandem/datapath/block"
	"github.com/tandem-storage/tandem/datapath/meta"
)

const (
	sumsFile = "cs"

	// cachedSums is how many regions whose checksums are stored stay in memory, 8 KiB each.
	cachedSums = 1024
	// looseSums is how many regions outside the activity log may have checksums that are not stored.
	looseSums = 64
	// looseRequest is the largest number of regions that a request outside the log may have.
	looseRequest = 256
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// zeroSum is the CRC32C of a block of zeroes.
var zeroSum = crc32.Checksum(make([]byte, block.SectorSize), castagnoli)

// sums are the checksums of a replica's blocks, one page of the file cs a region
// (FORMAT.md). What is in memory is right as soon as a write has ended. What is in
// the file is believed after a crash unless the region is in the activity log:
// therefore the page of a region is stored before its retirement is
// (ActivityLog.Retire), and a write to a region that is not in the log first makes
// it durable that nothing is to be believed (loose).
//
// Whatever goes wrong with the file, blocks lose their checksums, and no request fails:
// then off is set when the file is such that nobody will believe it.
type sums struct {
	r     *Replica
	off   atomic.Bool
	pages *meta.Pages // nil if there are none

	regions table[atomic.Pointer[sumRegion]] // nil: nothing in memory
	unsaved atomic.Int64                     // pages that the next record of the log waits for

	checked, damaged atomic.Int64 // blocks read, see Checksums

	mu struct {
		sync.Mutex
		why      error // off, or about to be
		header   meta.SumHeader
		loose    looseState
		writing  int              // requests to loose regions in flight
		stores   int              // pages on their way
		held     []*block.Request // until loose is durable
		dirty    []*sumRegion     // loose, and not stored; oldest first
		resident []*sumRegion     // in regions
		hand     int              // of the clock, in resident
	}
	stored    sync.Cond // on mu: stores is 0
	headerOp  op
	headerBuf *block.Buffer
	gone      sync.Once // of the file, see invalidate
}

// looseState says whether data may be written to regions that are not in the log.
type looseState uint8

const (
	looseOff    looseState = iota
	looseComing            // being stored
	looseOn                // durable
	looseGoing             // being taken back
)

// sumRegion has the checksums of one region. An entry is the number of writes to the block
// since it is in memory << 32, entryBusy while one is in flight, and the Sum.
// A busy entry without a Sum had two writes in flight at once: nobody knows which
// one came last, and it stays so until the region is read anew.
type sumRegion struct {
	s       *sums
	no      uint32
	entries [meta.SumBlocks]atomic.Uint64
	covered atomic.Bool  // the log has the region, durably
	dirty   atomic.Bool  // entries have changed since the page was made
	writes  atomic.Int32 // in flight
	loaded  atomic.Bool
	used    atomic.Bool // since the clock's hand passed

	// Under s.mu.
	waiting []func() // for loaded
	storing bool     // the page is on its way
	again   bool     // and another one goes after it
	saves   int64    // of unsaved
	loose   bool     // in mu.dirty
	op      op
	buf     *block.Buffer
	batch   [1]*op
}

// sumsMode is how a task counts in sums.
type sumsMode uint8

const (
	sumsNone    sumsMode = iota
	sumsCovered          // begun, in regions that the log has
	sumsLoose            // begun, in other ones
	sumsVerify           // a read
)

const (
	entryBusy    = 1 << 31
	entryVersion = 1 << 32
)

func entrySum(e uint64) meta.Sum { return meta.Sum(e & meta.SumBits) }

// Checksums tells about the checksums of a replica's blocks.
type Checksums struct {
	Off     error // why there are none; nil if they are kept
	Checked int64 // blocks that were read and had a checksum
	Damaged int64 // those that did not match it
}

// Checksums tells how the replica's checksums are since it was opened.
func (r *Replica) Checksums() Checksums {
	s := &r.sums
	s.mu.Lock()
	defer s.mu.Unlock()
	return Checksums{Off: s.mu.why, Checked: s.checked.Load(), Damaged: s.damaged.Load()}
}

// region is what is in memory of region g, nil if that is nothing.
func (s *sums) region(g uint32) *sumRegion {
	if p := s.regions.at(int64(g)); p != nil {
		return p.Load()
	}
	return nil
}

// regionsOf is the first and the last region of a request.
func regionsOf(req *block.Request) (first, last uint32) {
	return uint32(req.Off / meta.SumRegion), uint32((req.Off + req.Len - 1) / meta.SumRegion)
}

// start lets t in. It reports false if its request is held, see begin.
func (s *sums) start(t *task) bool {
	switch t.req.Op {
	case block.OpFlush:
	case block.OpRead:
		if t.req.Flags&block.AsIs == 0 {
			s.await(t)
		}
	default:
		return s.begin(t)
	}
	return true
}

// begin notes that t is going to change blocks. It reports false if t's request
// is held until the file says that it is not to be believed; it is started anew then.
func (s *sums) begin(t *task) bool {
	first, last := regionsOf(t.req)
	covered := true
	for g := first; g <= last && covered; g++ {
		p := s.region(g)
		covered = p != nil && p.covered.Load()
	}
	if covered {
		t.sums = sumsCovered
		for g := first; g <= last; g++ {
			s.region(g).begin(t.req)
		}
		return true
	}
	s.mu.Lock()
	ops, ok := s.beginLooseLocked(t, first, last)
	s.mu.Unlock()
	s.submit(ops)
	return ok
}

func (s *sums) beginLooseLocked(t *task, first, last uint32) (ops []*op, ok bool) {
	switch {
	case s.off.Load():
		return nil, true
	case s.mu.why == nil && s.mu.loose == looseOn && last-first < looseRequest:
		t.sums = sumsLoose
		s.mu.writing++
		for g := first; g <= last; g++ {
			var p *sumRegion
			p, ops = s.regionLocked(g, ops)
			p.begin(t.req)
			if !p.loose {
				p.loose = true
				s.mu.dirty = append(s.mu.dirty, p)
			}
		}
		return ops, true
	}
	s.mu.held = append(s.mu.held, t.req)
	switch {
	case s.mu.why != nil: // off soon
	case last-first >= looseRequest:
		s.failLocked(fmt.Errorf("%w: %v of %d bytes outside the activity log", ErrInvalid, t.req.Op, t.req.Len), nil)
	case s.mu.loose == looseOff:
		s.mu.loose = looseComing
		s.mu.header.Loose = true
		s.mu.header.Encode(s.headerBuf.Bytes())
		s.headerOp = op{kind: opWrite, fd: s.pages.Fd(), buf: s.headerBuf.Bytes(), owner: s}
		s.r.gate.more()
		ops = append(ops, &s.headerOp)
	}
	return ops, false
}

// opDone implements opOwner for the header that says loose.
func (s *sums) opDone(_ *op, err error) {
	s.mu.Lock()
	if err != nil {
		s.failLocked(fmt.Errorf("write to the header of the checksum file: %w", err), nil)
		s.mu.Unlock()
		s.r.gate.exit()
		return
	}
	s.mu.loose = looseOn
	s.mu.Unlock()
	s.release()
	s.r.gate.exit()
}

// release starts what was held.
func (s *sums) release() {
	s.mu.Lock()
	held := s.mu.held
	s.mu.held = nil
	s.mu.Unlock()
	if len(held) > 0 {
		s.r.startAll(held)
	}
}

// begin notes that req is going to change blocks of p.
func (p *sumRegion) begin(req *block.Request) {
	p.writes.Add(1)
	if !p.dirty.Load() {
		p.dirty.Store(true)
	}
	p.each(req, func(i int, n int64) {
		crc := zeroSum
		switch k := int(n - req.Off/meta.SumBlock); {
		case req.Op != block.OpWrite:
		case req.Sums != nil:
			crc = req.Sums[k]
		default:
			crc = crc32.Checksum(req.Data[k*meta.SumBlock:(k+1)*meta.SumBlock], castagnoli)
		}
		for e := &p.entries[i]; ; {
			old := e.Load()
			next := old&^(entryVersion-1) + entryVersion | entryBusy
			if old&entryBusy == 0 {
				next |= uint64(meta.MakeSum(crc, n))
			}
			if e.CompareAndSwap(old, next) {
				return
			}
		}
	})
}

// each calls f for the blocks of p that req has: i in the region, n in the volume.
func (p *sumRegion) each(req *block.Request, f func(i int, n int64)) {
	base := int64(p.no) * meta.SumBlocks
	from := max(req.Off/meta.SumBlock, base)
	to := min((req.Off+req.Len)/meta.SumBlock, base+meta.SumBlocks)
	for n := from; n < to; n++ {
		f(int(n-base), n)
	}
}

// end notes that t, which has begun, has ended.
func (s *sums) end(t *task, err error) {
	first, last := regionsOf(t.req)
	for g := first; g <= last; g++ {
		p := s.region(g)
		if p == nil {
			continue // its region was retired before it had ended
		}
		p.each(t.req, func(i int, _ int64) {
			e := &p.entries[i]
			old := e.Load()
			if entrySum(old) == meta.NoSum {
				return // there were two at once
			}
			next := old &^ entryBusy
			if err != nil {
				next &^= meta.SumBits
			}
			e.CompareAndSwap(old, next) // else there is another one now
		})
		p.writes.Add(-1)
	}
	if t.sums == sumsLoose {
		s.ended()
	}
}

// ended uncounts a request to loose regions, and stores the oldest of them if
// there are many.
func (s *sums) ended() {
	var ops []*op
	s.mu.Lock()
	s.mu.writing--
	for i := 0; i < len(s.mu.dirty) && len(s.mu.dirty) > looseSums; {
		p := s.mu.dirty[i]
		if p.writes.Load() > 0 || !p.loaded.Load() || p.storing {
			i++
			continue
		}
		s.mu.dirty = slices.Delete(s.mu.dirty, i, i+1)
		p.loose = false
		if p.dirty.Load() && !p.covered.Load() {
			ops = p.storeLocked(ops)
		}
	}
	s.mu.Unlock()
	s.submit(ops)
}

// uncovered lists those of regions whose blocks are not known to be in the activity log.
func (s *sums) uncovered(regions []uint32) (list []uint32) {
	if s.off.Load() {
		return nil
	}
	for _, g := range regions {
		if int64(g) < s.r.shape.Load().regions {
			if p := s.region(g); p == nil || !p.covered.Load() {
				list = append(list, g)
			}
		}
	}
	return list
}

// cover takes note that regions are durably in the activity log. The caller is
// counted by the gate.
func (s *sums) cover(regions []uint32) {
	var ops []*op
	s.mu.Lock()
	if s.mu.why == nil {
		for _, g := range regions {
			var p *sumRegion
			p, ops = s.regionLocked(g, ops)
			p.covered.Store(true)
		}
	}
	s.mu.Unlock()
	s.submit(ops)
}

// retire takes note that regions are about to leave the activity log. Their pages are
// to be stored by ops, and the next record of the log waits for that (unsaved).
// The caller is counted by the gate.
func (s *sums) retire(regions []uint32) (ops []*op) {
	if s.off.Load() {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, g := range regions {
		if int64(g) >= s.r.shape.Load().regions {
			continue
		}
		p := s.region(g)
		if p == nil || !p.covered.Load() {
			continue
		}
		p.covered.Store(false)
		if !p.dirty.Load() && !p.storing {
			continue // what is stored is right
		}
		s.unsaved.Add(1)
		p.saves++
		ops = p.storeLocked(ops)
	}
	return ops
}

// regionLocked returns the checksums of region g. Perhaps they have to be
// read: that is added to ops. The caller is counted by the gate.
func (s *sums) regionLocked(g uint32, ops []*op) (*sumRegion, []*op) {
	if p := s.region(g); p != nil {
		return p, ops
	}
	p := s.addLocked(g)
	p.buf = block.NewBuffer(meta.PageSize)
	p.op = op{kind: opRead, fd: s.pages.Fd(), off: meta.SumOffset(g), buf: p.buf.Bytes(), owner: p}
	p.batch[0] = &p.op
	s.r.gate.more()
	return p, append(ops, &p.op)
}

// addLocked puts a region into memory.
func (s *sums) addLocked(g uint32) *sumRegion {
	p := &sumRegion{s: s, no: g}
	s.mu.resident = append(s.mu.resident, p)
	s.regions.need(int64(g)).Store(p)
	s.shrinkLocked()
	return p
}

// shrinkLocked makes room for a region: the clock takes one that was not used for a round.
func (s *sums) shrinkLocked() {
	const steps = 8
	for i := 0; i < steps && len(s.mu.resident) > cachedSums; i++ {
		s.mu.hand %= len(s.mu.resident)
		p := s.mu.resident[s.mu.hand]
		switch {
		case p.used.Swap(false), p.covered.Load(), p.dirty.Load(), p.storing, !p.loaded.Load(), p.writes.Load() > 0, p.loose:
			s.mu.hand++
		default:
			s.regions.need(int64(p.no)).Store(nil)
			last := len(s.mu.resident) - 1
			s.mu.resident[s.mu.hand] = s.mu.resident[last]
			s.mu.resident[last] = nil
			s.mu.resident = s.mu.resident[:last]
		}
	}
}

func (s *sums) submit(ops []*op) {
	if len(ops) > 0 {
		s.r.pool.engine.submit(ops)
	}
}
