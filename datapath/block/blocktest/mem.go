package blocktest

import (
	"maps"
	"math/rand/v2"
	"slices"
	"sync"

	"github.com/tandem-storage/tandem/datapath/block"
)

// maxUnsynced bounds the older contents that a sector remembers for CrashClone:
// the stable one and the latest of those written since.
const maxUnsynced = 4

// MemOptions are the choices of NewMem. Only Size is needed.
type MemOptions struct {
	Size      int64      // bytes, a multiple of BlockSize
	BlockSize int        // bytes; 0 is block.SectorSize
	Without   block.Caps // abilities that the device is not to have
	Async     bool       // complete on other goroutines, each batch in an order of its own
	Seed      uint64     // of that order
}

// Mem is a sparse in-memory Device with a volatile write cache that CrashClone
// can lose. It is a reference for what a Device promises and no more than that:
// what is not stable really goes away.
type Mem struct {
	opt  MemOptions
	info block.Info

	flying sync.WaitGroup // requests between Submit and completion

	mu      sync.Mutex
	closed  bool
	rng     *rand.Rand
	sectors map[int64]*sector  // by offset / SectorSize; absent reads as zeroes
	dirty   map[int64]struct{} // sectors with unsynced contents
}

var _ block.Device = (*Mem)(nil)

// sector is one atomic unit. Contents are never changed in place; nil is zeroes.
type sector struct {
	cur      []byte
	unsynced [][]byte // what it may fall back to: the stable content first
}

// NewMem makes a device of zeroes.
func NewMem(o MemOptions) *Mem {
	if o.BlockSize == 0 {
		o.BlockSize = block.SectorSize
	}
	if o.Size <= 0 || o.Size%int64(o.BlockSize) != 0 {
		panic("blocktest: size of a Mem is not a positive multiple of its block size")
	}
	const all = block.CapFlush | block.CapFUA | block.CapDiscard | block.CapWriteZeroes
	return &Mem{
		opt:     o,
		info:    block.Info{Size: o.Size, BlockSize: o.BlockSize, Caps: all &^ o.Without},
		rng:     rand.New(rand.NewPCG(o.Seed, 0)),
		sectors: make(map[int64]*sector),
		dirty:   make(map[int64]struct{}),
	}
}

// Info implements block.Device.
func (m *Mem) Info() block.Info { return m.info }

// Submit implements block.Device.
func (m *Mem) Submit(batch []*block.Request) {
	m.mu.Lock()
	closed := m.closed
	if !closed {
		m.flying.Add(len(batch))
	}
	if m.opt.Async {
		batch = slices.Clone(batch)
		m.rng.Shuffle(len(batch), func(i, j int) { batch[i], batch[j] = batch[j], batch[i] })
	}
	m.mu.Unlock()
	run := func() {
		for _, r := range batch {
			if closed {
				r.By.Complete(r, refuse(r, block.ErrClosed))
				continue
			}
			err := m.serve(r)
			r.By.Complete(r, err)
			m.flying.Done()
		}
	}
	if m.opt.Async {
		go run()
	} else {
		run()
	}
}

// Close implements block.Device: it waits for the requests in flight, so it is
// not to be called from within a completer.
func (m *Mem) Close() error {
	m.mu.Lock()
	m.closed = true
	m.mu.Unlock()
	m.flying.Wait()
	return nil
}

func (m *Mem) serve(r *block.Request) error {
	if err := r.Check(m.info); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	stable := r.Flags&block.FUA != 0 || m.info.Caps&block.CapFlush == 0
	switch r.Op {
	case block.OpRead:
		m.read(r.Data, r.Off)
	case block.OpWrite:
		m.eachSector(r.Off, r.Len, func(n int64, from, to int, at int64) {
			m.store(n, from, to, r.Data[at:at+int64(to-from)], stable)
		})
	case block.OpWriteZeroes, block.OpDiscard:
		m.eachSector(r.Off, r.Len, func(n int64, from, to int, _ int64) { m.store(n, from, to, nil, stable) })
	case block.OpFlush:
		for n := range m.dirty {
			m.sync(n, m.sectors[n])
		}
	}
	return nil
}

// eachSector calls f with every sector of the range, the part [from, to) of it
// that is meant, and where that part is in the range.
func (m *Mem) eachSector(off, length int64, f func(n int64, from, to int, at int64)) {
	for at := int64(0); at < length; {
		n := (off + at) / block.SectorSize
		from := int((off + at) % block.SectorSize)
		to := int(min(int64(block.SectorSize), int64(from)+length-at))
		f(n, from, to, at)
		at += int64(to - from)
	}
}

func (m *Mem) read(p []byte, off int64) {
	m.eachSector(off, int64(len(p)), func(n int64, from, to int, at int64) {
		dst := p[at : at+int64(to-from)]
		if s := m.sectors[n]; s != nil && s.cur != nil {
			copy(dst, s.cur[from:to])
		} else {
			clear(dst)
		}
	})
}

// store puts p, or zeroes if p is nil, into [from, to) of sector n.
func (m *Mem) store(n int64, from, to int, p []byte, stable bool) {
	s := m.sectors[n]
	if s == nil {
		if p == nil {
			return // nothing changes, whatever becomes of it
		}
		s = &sector{}
		m.sectors[n] = s
	}
	var next []byte
	if p != nil || to-from < block.SectorSize {
		next = make([]byte, block.SectorSize)
		copy(next, s.cur)
		clear(next[from:to])
		copy(next[from:to], p)
	}
	if stable {
		s.cur = next
		m.sync(n, s)
		return
	}
	if len(s.unsynced) == maxUnsynced {
		s.unsynced = slices.Delete(s.unsynced, 1, 2)
	}
	s.unsynced = append(s.unsynced, s.cur)
	s.cur = next
	m.dirty[n] = struct{}{}
}

// sync makes the content of sector n stable.
func (m *Mem) sync(n int64, s *sector) {
	s.unsynced = nil
	delete(m.dirty, n)
	if s.cur == nil {
		delete(m.sectors, n)
	}
}

// CrashOptions say what a power cut leaves.
type CrashOptions struct {
	// UnsyncedPercent is the chance of each sector written since it was last
	// stable to hold something newer than its stable content: 0 loses all that
	// was not flushed, 100 loses nothing.
	UnsyncedPercent int
	// Rand decides. It may be nil if UnsyncedPercent is 0 or 100.
	Rand *rand.Rand
}

// CrashClone returns a device with what a power cut at this moment would leave,
// sector by sector. The original goes on undisturbed. Requests in flight are in
// the clone as a whole or not at all, but not stable.
func (m *Mem) CrashClone(o CrashOptions) *Mem {
	c := NewMem(m.opt)
	m.mu.Lock()
	defer m.mu.Unlock()
	// In order, so that the same Rand leaves the same clone.
	for _, n := range slices.Sorted(maps.Keys(m.sectors)) {
		s := m.sectors[n]
		content := s.cur
		if k := len(s.unsynced); k > 0 && o.UnsyncedPercent < 100 {
			content = s.unsynced[0]
			if o.UnsyncedPercent > 0 && o.Rand.IntN(100) < o.UnsyncedPercent {
				if i := 1 + o.Rand.IntN(k); i == k {
					content = s.cur
				} else {
					content = s.unsynced[i]
				}
			}
		}
		if content != nil {
			c.sectors[n] = &sector{cur: content}
		}
	}
	return c
}

// Allocated is the space that the content takes, in bytes; it shrinks by
// discards that are stable.
func (m *Mem) Allocated() int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return int64(len(m.sectors)) * block.SectorSize
}

// refuse is the error of a request that was not served.
func refuse(r *block.Request, err error) error {
	return &block.RequestError{Op: r.Op, Off: r.Off, Len: r.Len, Err: err}
}
