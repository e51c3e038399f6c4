package meta

import (
	"errors"
	"io"
	"reflect"
	"testing"
)

// memPages is a PageFile in memory that can crash during a write.
type memPages struct {
	b []byte
	// crashAt is the index of the write during which power is cut, -1 for never;
	// tornAt is how many bytes of that one reach the medium.
	crashAt, tornAt int
	writes          int
	bad             map[int64]bool // pages that cannot be read
}

var errPower = errors.New("power cut")

func newMemPages(n int) *memPages { return &memPages{b: make([]byte, n*PageSize), crashAt: -1} }

func (m *memPages) ReadAt(p []byte, off int64) (int, error) {
	for at := off; at < off+int64(len(p)); at += PageSize {
		if m.bad[at/PageSize] {
			return 0, errPower
		}
	}
	n := copy(p, m.b[min(off, int64(len(m.b))):])
	if n < len(p) {
		return n, io.ErrUnexpectedEOF
	}
	return n, nil
}

func (m *memPages) WriteAt(p []byte, off int64) (int, error) {
	m.writes++
	switch {
	case m.crashAt >= 0 && m.writes-1 == m.crashAt:
		copy(m.b[off:], p[:m.tornAt])
		return 0, errPower
	case m.crashAt >= 0 && m.writes-1 > m.crashAt:
		return 0, errPower
	}
	return copy(m.b[off:], p), nil
}

func testSuperblock() *Superblock {
	return &Superblock{
		Cluster: UUID{1}, Volume: UUID{2}, Replica: UUID{3}, Inode: [16]byte{4}, KVIncarnation: UUID{5},
		Epoch: 6, Gen: 7, ForkGen: 8, Term: 9,
		ISR: []UUID{{3}, {10}}, Missing: []UUID{{11}},
		State: StateInSync, BootID: UUID{12}, Instance: UUID{13}, CleanFlush: true, Unclean: true, Lossy: true, Thick: true,
		Size: 2 << 30, BlockSize: 4096, RegionSize: 4 << 20, ChunkSize: 256 << 20,
	}
}

func TestSuperblockRoundTrip(t *testing.T) {
	sb := testSuperblock()
	f := newMemPages(SuperblockPages)
	if _, err := CreateSuperblock(f, sb); err != nil {
		t.Fatal(err)
	}
	s, damaged, err := OpenSuperblock(f)
	if err != nil || damaged != nil {
		t.Fatal(damaged, err)
	}
	want := sb.Clone()
	want.Seq = 2
	if got := s.Get(); !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	mirror, err := DecodeSuperblock(f.b[:SuperblockLen]) // slot 0, without the zeroes behind
	if err != nil || !reflect.DeepEqual(mirror, want) {
		t.Errorf("mirror %+v, %v", mirror, err)
	}
}

// TestSuperblockCrash cuts power during every write, with every number of sectors
// on the medium: what is found is the old superblock or the new one.
func TestSuperblockCrash(t *testing.T) {
	const updates = 4
	for crashAt := range updates {
		for torn := 0; torn <= PageSize; torn += 512 {
			f := newMemPages(SuperblockPages)
			s, err := CreateSuperblock(f, testSuperblock())
			if err != nil {
				t.Fatal(err)
			}
			f.writes, f.crashAt, f.tornAt = 0, crashAt, torn
			stable := s.Get().Term
			for n := uint64(1); n <= updates; n++ {
				sb := s.Get()
				sb.Term = 100 + n
				if s.Write(sb) != nil {
					break
				}
				stable = sb.Term
			}
			after, _, err := OpenSuperblock(f)
			if err != nil {
				t.Fatalf("crash at write %d, %d bytes: %v", crashAt, torn, err)
			}
			next := uint64(100 + crashAt + 1)
			if got := after.Get().Term; got != stable && got != next {
				t.Errorf("crash at write %d, %d bytes: term %d, neither %d nor %d", crashAt, torn, got, stable, next)
			}
			f.crashAt = -1
			sb := after.Get()
			sb.Term = 999
			if err := after.Write(sb); err != nil {
				t.Fatal(err)
			}
			if again, damaged, err := OpenSuperblock(f); err != nil || again.Get().Term != 999 || damaged != nil && torn == 0 {
				t.Errorf("crash at write %d, %d bytes: written again: %v, %v", crashAt, torn, damaged, err)
			}
		}
	}
}

func TestSuperblockDamage(t *testing.T) {
	pages := func() *memPages {
		f := newMemPages(SuperblockPages)
		if _, err := CreateSuperblock(f, testSuperblock()); err != nil {
			t.Fatal(err)
		}
		return f
	}
	reseal := func(f *memPages, slot int, change func(p []byte)) {
		p := f.b[slot*PageSize : (slot+1)*PageSize]
		change(p)
		seal(p)
	}
	for _, c := range []struct {
		name   string
		damage func(f *memPages)
		want   error
		seq    uint64
	}{
		{"slot 0", func(f *memPages) { f.b[100]++ }, nil, 1},
		{"slot 1", func(f *memPages) { f.b[PageSize+100]++ }, nil, 2},
		{"last byte of slot 0", func(f *memPages) { f.b[PageSize-1]++ }, nil, 1},
		{"unreadable slot", func(f *memPages) { f.bad = map[int64]bool{0: true} }, nil, 1},
		{"both", func(f *memPages) { f.b[100]++; f.b[PageSize+100]++ }, ErrCorrupt, 0},
		{"zeroes", func(f *memPages) { clear(f.b) }, ErrCorrupt, 0},
		{"short file", func(f *memPages) { f.b = f.b[:100] }, ErrCorrupt, 0},
		{"slots swapped", func(f *memPages) {
			a := append([]byte(nil), f.b[:PageSize]...)
			copy(f.b, f.b[PageSize:])
			copy(f.b[PageSize:], a)
		}, ErrCorrupt, 0},
		{"two replicas", func(f *memPages) { reseal(f, 1, func(p []byte) { p[72]++ }) }, ErrCorrupt, 0},
		{"later version in the older slot", func(f *memPages) { reseal(f, 1, func(p []byte) { p[12]++ }) }, ErrIncompatible, 0},
		{"unknown feature", func(f *memPages) { reseal(f, 0, func(p []byte) { p[24] = 1 << 1 }) }, ErrIncompatible, 0},
		{"unknown compatible feature", func(f *memPages) { reseal(f, 0, func(p []byte) { p[32] = 1 }) }, nil, 2},
		{"too many peers", func(f *memPages) { reseal(f, 0, func(p []byte) { p[210] = MaxPeers + 1 }) }, nil, 1},
		{"no state", func(f *memPages) { reseal(f, 0, func(p []byte) { p[208] = 0 }) }, nil, 1},
	} {
		f := pages()
		c.damage(f)
		s, damaged, err := OpenSuperblock(f)
		if !errors.Is(err, c.want) {
			t.Errorf("%s: got %v, want %v", c.name, err, c.want)
		}
		if err == nil && s.Get().Seq != c.seq {
			t.Errorf("%s: read superblock %d, want %d", c.name, s.Get().Seq, c.seq)
		}
		if err == nil && (damaged == nil) != (c.name == "unknown compatible feature") {
			t.Errorf("%s: damage reported: %v", c.name, damaged)
		}
	}
}

func TestSuperblockInvalid(t *testing.T) {
	for name, change := range map[string]func(sb *Superblock){
		"no volume":    func(sb *Superblock) { sb.Volume = UUID{} },
		"no state":     func(sb *Superblock) { sb.State = 0 },
		"many members": func(sb *Superblock) { sb.ISR = make([]UUID, MaxPeers+1) },
		"no size":      func(sb *Superblock) { sb.Size = 0 },
		"odd size":     func(sb *Superblock) { sb.Size++ },
		"odd block":    func(sb *Superblock) { sb.BlockSize = 4095 },
		"odd chunk":    func(sb *Superblock) { sb.ChunkSize = 3 << 20 },
		"no region":    func(sb *Superblock) { sb.RegionSize = 0 },
	} {
		sb := testSuperblock()
		change(sb)
		if _, err := CreateSuperblock(newMemPages(SuperblockPages), sb); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzSuperblock(f *testing.F) {
	var page [PageSize]byte
	if err := testSuperblock().Encode(page[:]); err != nil {
		f.Fatal(err)
	}
	f.Add(page[:])
	f.Add(page[:SuperblockLen])
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		if sb, err := DecodeSuperblock(b); err == nil {
			checkReencode(t, sb)
		} else if !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrIncompatible) {
			t.Errorf("unexpected kind of error: %v", err)
		}
		if len(b) == PageSize { // once more with a checksum that fits
			b = append([]byte(nil), b...)
			copy(b, sbMagic)
			b[12], b[13] = sbVersion, 0
			seal(b)
			if sb, err := DecodeSuperblock(b); err == nil {
				checkReencode(t, sb)
			}
		}
	})
}

func checkReencode(t *testing.T, sb *Superblock) {
	t.Helper()
	var page [PageSize]byte
	if err := sb.Encode(page[:]); err != nil {
		t.Fatalf("decoded and not encodable: %v", err)
	}
	again, err := DecodeSuperblock(page[:])
	if err != nil || !reflect.DeepEqual(again, sb) {
		t.Fatalf("decoded %+v, then %+v (%v)", sb, again, err)
	}
}
