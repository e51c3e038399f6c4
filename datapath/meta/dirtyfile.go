package meta

import (
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math/bits"
)

// Layout of a dirty page; see FORMAT.md.
const (
	dmMagic  = 0x4d445454 // "TTDM", little endian
	dmHeader = 32

	// PageBits is how many blocks one page of a dirty map has.
	PageBits  = (PageSize - dmHeader) * 8
	pageWords = PageBits / 64
)

func dirtyPages(blocks int64) int64 { return (blocks + PageBits - 1) / PageBits }

// DirtyPages is the length of the dirty map file of a volume of size bytes, in pages.
func DirtyPages(size int64) int64 { return dirtyPages((size + DirtyBlock - 1) / DirtyBlock) }

// dirtyPage is the head of one stored page.
type dirtyPage struct {
	No   uint32
	Gen  uint32
	Peer UUID
}

// encodeDirtyPage writes h and the page's pageWords words to p.
func encodeDirtyPage(p []byte, h dirtyPage, words []uint64) {
	le := binary.LittleEndian
	p = p[:PageSize]
	le.PutUint32(p, dmMagic)
	le.PutUint32(p[8:], h.No)
	le.PutUint32(p[12:], h.Gen)
	copy(p[16:], h.Peer[:])
	for i, w := range words[:pageWords] {
		le.PutUint64(p[dmHeader+8*i:], w)
	}
	le.PutUint32(p[4:], crc32.Checksum(p[8:], castagnoli))
}

// decodeDirtyPage checks a stored page. Its bits follow the head.
func decodeDirtyPage(p []byte) (dirtyPage, error) {
	le := binary.LittleEndian
	if len(p) != PageSize || le.Uint32(p) != dmMagic {
		return dirtyPage{}, fmt.Errorf("%w: not a dirty map page", ErrCorrupt)
	}
	if got, sum := le.Uint32(p[4:]), crc32.Checksum(p[8:], castagnoli); got != sum {
		return dirtyPage{}, fmt.Errorf("%w: dirty map page checksum %08x, computed %08x", ErrCorrupt, got, sum)
	}
	return dirtyPage{No: le.Uint32(p[8:]), Gen: le.Uint32(p[12:]), Peer: UUID(p[16:])}, nil
}

// DirtyFile keeps a DirtyMap on a PageFile of DirtyPages pages. Not safe for
// concurrent use; the map may be used while it is saved.
type DirtyFile struct {
	f    PageFile
	peer UUID
	gen  uint32 // random per file: a page of another file's life is not taken for one of this
	m    *DirtyMap
	page [PageSize]byte
}

// CreateDirty writes every page of m to f. On nil they are stable.
func CreateDirty(f PageFile, peer UUID, m *DirtyMap) (*DirtyFile, error) {
	var gen [4]byte
	rand.Read(gen[:]) // never fails, see crypto/rand
	d := &DirtyFile{f: f, peer: peer, gen: binary.LittleEndian.Uint32(gen[:]), m: m}
	m.mu.Lock()
	for p := range dirtyPages(m.blocks) {
		m.touch(p)
	}
	m.mu.Unlock()
	return d, d.Save()
}

// LoadDirty reads the map of peer for a volume of size bytes. A page that is
// damaged, unreadable or another file's reads as all ones, which is safe, and its
// number is in damaged; the next Save repairs it.
func LoadDirty(f PageFile, peer UUID, size int64) (d *DirtyFile, damaged []int64) {
	d = &DirtyFile{f: f, peer: peer, m: NewDirtyMap(size)}
	m := d.m // nobody else has it yet
	clear(m.changed)
	known := false
	for p := range dirtyPages(m.blocks) {
		h, err := d.readPage(p)
		if err == nil && !known {
			d.gen, known = h.Gen, true
		}
		if err != nil || h.Gen != d.gen {
			damaged = append(damaged, p)
			m.fillLocked(p*PageBits, (p+1)*PageBits, true)
			m.touch(p)
			continue
		}
		for i := range int64(pageWords) {
			w := p*pageWords + i
			m.words[w] = binary.LittleEndian.Uint64(d.page[dmHeader+8*i:]) & m.usedBits(w)
			m.count += int64(bits.OnesCount64(m.words[w]))
		}
	}
	return d, damaged
}

func (d *DirtyFile) readPage(p int64) (dirtyPage, error) {
	if _, err := d.f.ReadAt(d.page[:], p*PageSize); err != nil {
		return dirtyPage{}, err
	}
	h, err := decodeDirtyPage(d.page[:])
	if err == nil && (int64(h.No) != p || h.Peer != d.peer) {
		err = fmt.Errorf("%w: dirty map page %d of peer %x found at page %d of peer %x", ErrCorrupt, h.No, h.Peer, p, d.peer)
	}
	return h, err
}

// Map is the map in memory. The same one always.
func (d *DirtyFile) Map() *DirtyMap { return d.m }

// Save writes the pages that changed since the last Save. On nil every change
// made before the call is stable. After an error some pages may be; they stay
// marked as changed.
func (d *DirtyFile) Save() error {
	m := d.m
	for p := range dirtyPages(m.Blocks()) {
		bit := uint64(1) << (p % 64)
		m.mu.Lock()
		if m.changed[p/64]&bit == 0 {
			m.mu.Unlock()
			continue
		}
		m.changed[p/64] &^= bit
		encodeDirtyPage(d.page[:], dirtyPage{No: uint32(p), Gen: d.gen, Peer: d.peer}, m.words[p*pageWords:(p+1)*pageWords])
		m.mu.Unlock()
		if _, err := d.f.WriteAt(d.page[:], p*PageSize); err != nil {
			m.mu.Lock()
			m.touch(p)
			m.mu.Unlock()
			return fmt.Errorf("meta: write page %d of the dirty map: %w", p, err)
		}
	}
	return nil
}
