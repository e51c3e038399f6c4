package meta

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"sync"

	"github.com/tandem-storage/tandem/datapath/invariant"
)

// DirtyBlock is how many bytes of the volume one bit of a dirty map stands for.
const DirtyBlock = 64 << 10

// DirtyMap says which blocks of a volume a missing peer may lack: one bit a
// DirtyBlock. It also knows which of its pages differ from the stored ones. All
// methods may be called concurrently.
type DirtyMap struct {
	mu      sync.Mutex
	size    int64    // of the volume, bytes
	blocks  int64    // bits in use
	words   []uint64 // a whole number of pages; bits past blocks are zero
	count   int64    // ones
	changed []uint64 // one bit a page: differs from what is stored, or may
}

// NewDirtyMap returns a map for a volume of size bytes with nothing dirty and no page stored.
func NewDirtyMap(size int64) *DirtyMap {
	invariant.Check(size > 0, "dirty map of a volume of %d bytes", size)
	blocks := (size + DirtyBlock - 1) / DirtyBlock
	pages := dirtyPages(blocks)
	m := &DirtyMap{
		size:    size,
		blocks:  blocks,
		words:   make([]uint64, pages*pageWords),
		changed: make([]uint64, (pages+63)/64),
	}
	for p := range pages {
		m.touch(p)
	}
	return m
}

// Blocks is how many blocks the map has.
func (m *DirtyMap) Blocks() int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.blocks
}

// Grow makes the map one for a volume of size bytes; a smaller size than it has changes nothing. What is new is not
// dirty: a missing peer lacks none of it before it is written. The page that the volume ended in counts as not stored.
func (m *DirtyMap) Grow(size int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if size <= m.size {
		return
	}
	was := dirtyPages(m.blocks)
	m.size, m.blocks = size, (size+DirtyBlock-1)/DirtyBlock
	pages := dirtyPages(m.blocks)
	m.words = append(m.words, make([]uint64, (pages-was)*pageWords)...)
	m.changed = append(m.changed, make([]uint64, (pages+63)/64-int64(len(m.changed)))...)
	for p := was - 1; p < pages; p++ {
		m.touch(p)
	}
}

// Count is how many blocks are dirty.
func (m *DirtyMap) Count() int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.count
}

// Set marks every block that [off, off+length) touches. Bytes past the end of the volume are ignored.
func (m *DirtyMap) Set(off, length int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if end := min(off+length, m.size); off < end {
		m.fillLocked(off/DirtyBlock, (end+DirtyBlock-1)/DirtyBlock, true)
	}
}

// SetAll marks every block.
func (m *DirtyMap) SetAll() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.fillLocked(0, m.blocks, true)
}

// Clear unmarks every block that lies wholly within [off, off+length), a last
// block that is cut short by the end of the volume included.
func (m *DirtyMap) Clear(off, length int64) {
	if length <= 0 {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	end := (off + length) / DirtyBlock
	if off+length >= m.size {
		end = m.blocks
	}
	m.fillLocked((off+DirtyBlock-1)/DirtyBlock, end, false)
}

// ClearAll unmarks every block.
func (m *DirtyMap) ClearAll() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.fillLocked(0, m.blocks, false)
}

// Test reports whether the block with the byte at off is dirty.
func (m *DirtyMap) Test(off int64) bool {
	b := off / DirtyBlock
	m.mu.Lock()
	defer m.mu.Unlock()
	return off >= 0 && b < m.blocks && m.words[b/64]&(1<<(b%64)) != 0
}

// NextSet returns the first run of dirty blocks at or after the block of off: its
// first byte and its length in bytes, at most limit (at least one block) and not
// beyond the end of the volume. ok is false if there is none. The search goes on
// at start+length.
func (m *DirtyMap) NextSet(off, limit int64) (start, length int64, ok bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	b := m.blocks
	if off < m.size {
		b = m.scan(max(off, 0)/DirtyBlock, 0)
	}
	if b >= m.blocks {
		return 0, 0, false
	}
	e := min(m.scan(b, ^uint64(0)), m.blocks, b+max(limit/DirtyBlock, 1))
	return b * DirtyBlock, min(e*DirtyBlock, m.size) - b*DirtyBlock, true
}

// scan returns the first block from b on whose bit differs from those of skip (0 or all ones).
func (m *DirtyMap) scan(b int64, skip uint64) int64 {
	for w := b / 64; w < int64(len(m.words)); w++ {
		x := m.words[w] ^ skip
		if w == b/64 {
			x &= ^uint64(0) << (b % 64)
		}
		if x != 0 {
			return w*64 + int64(bits.TrailingZeros64(x))
		}
	}
	return int64(len(m.words)) * 64
}

// Or marks every block that is marked in o, which is of the same volume.
func (m *DirtyMap) Or(o *DirtyMap) error { return m.OrBytes(o.Bytes()) }

// Bytes returns the bits: block n is bit n%8 of byte n/8.
func (m *DirtyMap) Bytes() []byte {
	m.mu.Lock()
	defer m.mu.Unlock()
	p := make([]byte, 0, len(m.words)*8)
	for _, w := range m.words {
		p = binary.LittleEndian.AppendUint64(p, w)
	}
	return p[:(m.blocks+7)/8]
}

// OrBytes marks the blocks marked in p, which has the form of Bytes and its length.
func (m *DirtyMap) OrBytes(p []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if int64(len(p)) != (m.blocks+7)/8 {
		return fmt.Errorf("%w: dirty map of %d bytes for %d blocks", ErrInvalid, len(p), m.blocks)
	}
	var w [8]byte
	for i := range (len(p) + 7) / 8 {
		w = [8]byte{}
		copy(w[:], p[i*8:])
		m.orWordLocked(int64(i), binary.LittleEndian.Uint64(w[:]))
	}
	return nil
}

// orWordLocked marks the ones of x in word w.
func (m *DirtyMap) orWordLocked(w int64, x uint64) {
	x &= m.usedBits(w)
	if n := x &^ m.words[w]; n != 0 {
		m.words[w] |= n
		m.count += int64(bits.OnesCount64(n))
		m.touch(w / pageWords)
	}
}

// usedBits has ones where word w has bits of blocks that exist.
func (m *DirtyMap) usedBits(w int64) uint64 {
	switch n := m.blocks - w*64; {
	case n <= 0:
		return 0
	case n >= 64:
		return ^uint64(0)
	default:
		return 1<<n - 1
	}
}

// fillLocked makes the bits of blocks [b, e) one or zero.
func (m *DirtyMap) fillLocked(b, e int64, one bool) {
	b, e = max(b, 0), min(e, m.blocks)
	if b >= e {
		return
	}
	for w := b / 64; w <= (e-1)/64; w++ {
		mask := ^uint64(0)
		if w == b/64 {
			mask &= ^uint64(0) << (b % 64)
		}
		if w == (e-1)/64 {
			mask &= ^uint64(0) >> (63 - (e-1)%64)
		}
		if one {
			m.orWordLocked(w, mask)
		} else if n := m.words[w] & mask; n != 0 {
			m.words[w] &^= n
			m.count -= int64(bits.OnesCount64(n))
			m.touch(w / pageWords)
		}
	}
}

// touch notes that page p is not as stored.
func (m *DirtyMap) touch(p int64) { m.changed[p/64] |= 1 << (p % 64) }
