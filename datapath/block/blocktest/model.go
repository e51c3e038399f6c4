package blocktest

import (
	"bytes"
	"fmt"
	"hash/maphash"
	"slices"
	"sync"

	"github.com/tandem-storage/tandem/datapath/block"
)

// Model is a filter that checks every read against what the writes before and
// beside it allow, block by block, and crash clones against what was stable. It
// knows contents by hash, so it takes any workload. The device below has to be
// all zeroes at the start and to be written through the Model only.
//
// With write w of a block, from its submission to its completion, a later write
// v supersedes w if v was submitted after w's completion. A read may return
// every write that no write completed before the read's submission supersedes;
// a crash may leave every write that no stable write supersedes.
type Model struct {
	dev  block.Device
	info block.Info
	unit int64 // bytes of a checked block
	seed maphash.Seed
	zero uint64 // hash of a block of zeroes

	mu       sync.Mutex
	now      uint64 // counts events, from 1
	blocks   map[int64][]version
	unstable map[int64]struct{}  // blocks with a completed version that is not stable
	active   map[uint64]struct{} // events from which on history is needed
	err      error
}

var _ block.Device = (*Model)(nil)

// version is one content that a block was given. Events count from 1; 0 is "not yet".
type version struct {
	hash      uint64
	submitted uint64
	completed uint64
	ok        bool   // completed without error: it supersedes
	stable    uint64 // when it became stable
}

// NewModel puts a checker over d.
func NewModel(d block.Device) *Model {
	m := &Model{
		dev: d, info: d.Info(), seed: maphash.MakeSeed(), now: 1,
		blocks:   make(map[int64][]version),
		unstable: make(map[int64]struct{}),
		active:   make(map[uint64]struct{}),
	}
	m.unit = min(int64(m.info.BlockSize), block.SectorSize)
	m.zero = maphash.Bytes(m.seed, make([]byte, m.unit))
	return m
}

// Err is the first contradiction seen, nil if there was none.
func (m *Model) Err() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.err
}

// Info implements block.Device.
func (m *Model) Info() block.Info { return m.dev.Info() }

// Close implements block.Device.
func (m *Model) Close() error { return m.dev.Close() }

// Submit implements block.Device.
func (m *Model) Submit(batch []*block.Request) {
	down := make([]*block.Request, len(batch))
	for i, r := range batch {
		if r.Check(m.info) != nil {
			down[i] = r
			continue
		}
		c := &modelCall{m: m, up: r, req: *r}
		c.req.By = c
		c.begin()
		down[i] = &c.req
	}
	m.dev.Submit(down)
}

type modelCall struct {
	m     *Model
	up    *block.Request
	req   block.Request
	start uint64
}

func (c *modelCall) begin() {
	var hashes []uint64
	if c.req.Op == block.OpWrite {
		hashes = c.m.hashes(c.req.Data)
	}
	m := c.m
	m.mu.Lock()
	defer m.mu.Unlock()
	c.start = m.tick()
	m.active[c.start] = struct{}{}
	switch c.req.Op {
	case block.OpWrite, block.OpWriteZeroes, block.OpDiscard:
		for i := range c.req.Len / m.unit {
			h := m.zero
			if hashes != nil {
				h = hashes[i]
			}
			n := c.req.Off/m.unit + i
			m.blocks[n] = append(m.history(n), version{hash: h, submitted: c.start})
		}
	case block.OpRead, block.OpFlush:
	}
}

// Complete implements block.Completer.
func (c *modelCall) Complete(_ *block.Request, err error) {
	c.m.end(c, err)
	c.up.By.Complete(c.up, err)
}

func (m *Model) end(c *modelCall, err error) {
	var hashes []uint64
	if c.req.Op == block.OpRead && err == nil {
		hashes = m.hashes(c.req.Data)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	now := m.tick()
	first := c.req.Off / m.unit
	switch c.req.Op {
	case block.OpRead:
		for i, h := range hashes {
			m.checkLocked(first+int64(i), h, fmt.Sprintf("read of block %d", first+int64(i)), func(v, w version) bool {
				return w.ok && w.completed < c.start && v.completed != 0 && v.completed < w.submitted
			})
		}
	case block.OpWrite, block.OpWriteZeroes, block.OpDiscard:
		stable := c.req.Flags&block.FUA != 0 || m.info.Caps&block.CapFlush == 0
		for n := first; n < first+c.req.Len/m.unit; n++ {
			vs := m.blocks[n]
			i := slices.IndexFunc(vs, func(v version) bool { return v.submitted == c.start })
			vs[i].completed, vs[i].ok = now, err == nil
			if err == nil && stable {
				vs[i].stable = now
			} else if err == nil {
				m.unstable[n] = struct{}{}
			}
		}
	case block.OpFlush:
		if err == nil {
			m.flushedLocked(c.start, now)
		}
	}
	delete(m.active, c.start)
	if c.req.Op != block.OpRead {
		oldest := m.oldestLocked()
		for n := first; n < first+c.req.Len/m.unit; n++ {
			m.pruneLocked(n, oldest)
		}
	}
}

// flushedLocked marks what completed before start as stable.
func (m *Model) flushedLocked(start, now uint64) {
	oldest := m.oldestLocked()
	for n := range m.unstable {
		left := false
		vs := m.blocks[n]
		for i := range vs {
			if v := &vs[i]; v.ok && v.stable == 0 {
				if v.completed < start {
					v.stable = now
				} else {
					left = true
				}
			}
		}
		if !left {
			delete(m.unstable, n)
		}
		m.pruneLocked(n, oldest)
	}
}

// pruneLocked forgets versions that nothing from event oldest on can meet.
func (m *Model) pruneLocked(n int64, oldest uint64) {
	vs := m.blocks[n]
	if len(vs) < 4 {
		return
	}
	kept := make([]version, 0, len(vs))
	for _, v := range vs {
		if v.completed == 0 || !slices.ContainsFunc(vs, func(w version) bool {
			return w.stable != 0 && w.stable < oldest && w.completed < oldest && v.completed < w.submitted
		}) {
			kept = append(kept, v)
		}
	}
	m.blocks[n] = kept
}

func (m *Model) oldestLocked() uint64 {
	oldest := m.now + 1
	for s := range m.active {
		oldest = min(oldest, s)
	}
	return oldest
}

// checkLocked notes a contradiction if no version of block n with hash h is
// free of versions that supersede it.
func (m *Model) checkLocked(n int64, h uint64, what string, supersedes func(v, w version) bool) {
	vs := m.history(n)
	known := false
	for _, v := range vs {
		if v.hash != h {
			continue
		}
		known = true
		if !slices.ContainsFunc(vs, func(w version) bool { return supersedes(v, w) }) {
			return
		}
	}
	if m.err != nil {
		return
	}
	why := "a content that was overwritten before"
	switch {
	case !known && h == m.zero:
		why = "zeroes, which were overwritten long before"
	case !known:
		why = "a content that was never written there, or was overwritten long before"
	}
	m.err = fmt.Errorf("%s at offset %d returned %s", what, n*m.unit, why)
}

// AfterCrash calls crash, which returns what a power cut during the call
// leaves, and checks all of that device. I/O may go on meanwhile.
func (m *Model) AfterCrash(crash func() block.Device) (block.Device, error) {
	m.mu.Lock()
	before := m.tick()
	m.active[before] = struct{}{}
	m.mu.Unlock()
	d := crash()
	m.mu.Lock()
	after := m.tick()
	m.mu.Unlock()
	defer func() {
		m.mu.Lock()
		delete(m.active, before)
		m.mu.Unlock()
	}()

	buf := make([]byte, block.MaxIO)
	for off := int64(0); off < m.info.Size; off += int64(len(buf)) {
		p := buf[:min(int64(len(buf)), m.info.Size-off)]
		if err := block.ReadAt(d, p, off); err != nil {
			return d, fmt.Errorf("after the crash: %w", err)
		}
		hashes := m.hashes(p)
		m.mu.Lock()
		for i, h := range hashes {
			n := off/m.unit + int64(i)
			m.checkLocked(n, h, fmt.Sprintf("after the crash, block %d", n), func(v, w version) bool {
				return v.submitted > after ||
					w.stable != 0 && w.stable < before && v.completed != 0 && v.completed < w.submitted
			})
		}
		m.mu.Unlock()
	}
	return d, m.Err()
}

// history is the versions of block n. At the start it has a stable one of zeroes.
func (m *Model) history(n int64) []version {
	if vs, ok := m.blocks[n]; ok {
		return vs
	}
	return []version{{hash: m.zero, submitted: 1, completed: 1, ok: true, stable: 1}}
}

func (m *Model) tick() uint64 {
	m.now++
	return m.now
}

func (m *Model) hashes(p []byte) []uint64 {
	out := make([]uint64, int64(len(p))/m.unit)
	for i := range out {
		b := p[int64(i)*m.unit : int64(i+1)*m.unit]
		if b[0] == 0 && bytes.Count(b, []byte{0}) == len(b) {
			out[i] = m.zero
			continue
		}
		out[i] = maphash.Bytes(m.seed, b)
	}
	return out
}
