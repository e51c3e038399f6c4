package meta

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"testing"

	"github.com/tandem-storage/tandem/internal/testseed"
)

func testRand(t *testing.T) *rand.Rand {
	t.Helper()
	return rand.New(rand.NewPCG(testseed.Of(t), 0))
}

// TestDirtyMapModel compares a map with a plain slice of booleans.
func TestDirtyMapModel(t *testing.T) {
	rng := testRand(t)
	for range 50 {
		size := 1 + rng.Int64N(3*64*DirtyBlock)
		blocks := (size + DirtyBlock - 1) / DirtyBlock
		m, model := NewDirtyMap(size), make([]bool, blocks)
		for range 100 {
			off, length := rng.Int64N(size+DirtyBlock), rng.Int64N(size+DirtyBlock)
			if rng.IntN(2) == 0 {
				off, length = off/DirtyBlock*DirtyBlock, length/DirtyBlock*DirtyBlock
			}
			set := rng.IntN(2) == 0
			if set {
				m.Set(off, length)
			} else {
				m.Clear(off, length)
			}
			for b := range model {
				first, end := int64(b)*DirtyBlock, min(int64(b+1)*DirtyBlock, size)
				switch {
				case set && length > 0 && off < end && first < off+length:
					model[b] = true
				case !set && length > 0 && off <= first && end <= off+length:
					model[b] = false
				}
			}
			checkModel(t, m, model, size)
		}
		o := NewDirtyMap(size)
		if err := o.OrBytes(m.Bytes()); err != nil {
			t.Fatal(err)
		}
		checkModel(t, o, model, size)
		o.SetAll()
		if o.Count() != blocks {
			t.Fatalf("%d of %d blocks are dirty", o.Count(), blocks)
		}
		o.ClearAll()
		if err := o.Or(m); err != nil {
			t.Fatal(err)
		}
		checkModel(t, o, model, size)
	}
	if err := NewDirtyMap(10 * DirtyBlock).OrBytes(make([]byte, 3)); !errors.Is(err, ErrInvalid) {
		t.Errorf("bits of another length: %v", err)
	}
}

func checkModel(t *testing.T, m *DirtyMap, model []bool, size int64) {
	t.Helper()
	var count int64
	for b, want := range model {
		if m.Test(int64(b)*DirtyBlock) != want {
			t.Fatalf("block %d: dirty is %v, want %v", b, !want, want)
		}
		if want {
			count++
		}
	}
	if m.Count() != count {
		t.Fatalf("count %d, want %d", m.Count(), count)
	}
	seen := make([]bool, len(model))
	for off := int64(0); ; {
		start, length, ok := m.NextSet(off, 5*DirtyBlock)
		if !ok {
			break
		}
		if length <= 0 || length > 5*DirtyBlock || start < off || start+length > size {
			t.Fatalf("next from %d: %d bytes at %d", off, length, start)
		}
		for b := start / DirtyBlock; b*DirtyBlock < start+length; b++ {
			seen[b] = true
		}
		off = start + length
	}
	for b := range model {
		if seen[b] != model[b] {
			t.Fatalf("block %d: iterated is %v, want %v", b, seen[b], model[b])
		}
	}
}

const bigSize = 5*PageBits*DirtyBlock - 3*DirtyBlock - 17 // five pages, the last one cut short

// TestDirtyCrash cuts power during every write of a Save: no block that was dirty
// at an earlier Save and was not cleared since is forgotten.
func TestDirtyCrash(t *testing.T) {
	rng := testRand(t)
	for crashAt := range 5 {
		for torn := 0; torn <= PageSize; torn += 512 {
			f := newMemPages(int(DirtyPages(bigSize)))
			m := NewDirtyMap(bigSize)
			d, err := CreateDirty(f, UUID{1}, m)
			if err != nil {
				t.Fatal(err)
			}
			var must []int64
			for range 20 {
				off := rng.Int64N(bigSize)
				m.Set(off, 1)
				must = append(must, off)
			}
			if err := d.Save(); err != nil {
				t.Fatal(err)
			}
			for p := range DirtyPages(bigSize) {
				m.Set((p*PageBits+rng.Int64N(1000))*DirtyBlock, 1)
			}
			f.writes, f.crashAt, f.tornAt = 0, crashAt, torn
			if err := d.Save(); !errors.Is(err, errPower) {
				t.Fatal(err)
			}
			after, damaged := LoadDirty(f, UUID{1}, bigSize)
			if len(damaged) > 1 {
				t.Errorf("damaged pages %v", damaged)
			}
			for _, off := range must {
				if !after.Map().Test(off) {
					t.Fatalf("crash at write %d, %d bytes: block at %d is forgotten", crashAt, torn, off)
				}
			}
			// The one that failed stays marked: saved again it is whole.
			f.crashAt = -1
			if err := d.Save(); err != nil {
				t.Fatal(err)
			}
			if again, damaged := LoadDirty(f, UUID{1}, bigSize); damaged != nil || !bytes.Equal(again.Map().Bytes(), m.Bytes()) {
				t.Errorf("saved again: damaged %v", damaged)
			}
		}
	}
}

func TestDirtySavesChangedPagesOnly(t *testing.T) {
	f := newMemPages(int(DirtyPages(bigSize)))
	m := NewDirtyMap(bigSize)
	d, err := CreateDirty(f, UUID{1}, m)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		change func()
		writes int
	}{
		{func() {}, 0},
		{func() { m.Set(0, 1) }, 1},
		{func() { m.Set(0, 1) }, 0}, // it was dirty
		{func() { m.Set((PageBits-1)*DirtyBlock, 2*DirtyBlock) }, 2},
		{func() { m.ClearAll() }, 2},
		{func() { m.SetAll() }, 5},
	} {
		f.writes = 0
		c.change()
		if err := d.Save(); err != nil || f.writes != c.writes {
			t.Errorf("%d writes, want %d (%v)", f.writes, c.writes, err)
		}
	}
}

// TestDirtyDamage: whatever is not certainly this map's page reads as all ones.
func TestDirtyDamage(t *testing.T) {
	for name, damage := range map[string]func(f *memPages){
		"bit":             func(f *memPages) { f.b[2*PageSize+50] ^= 1 },
		"zeroes":          func(f *memPages) { clear(f.b[2*PageSize : 3*PageSize]) },
		"unreadable":      func(f *memPages) { f.bad = map[int64]bool{2: true} },
		"page in place":   func(f *memPages) { copy(f.b[2*PageSize:3*PageSize], f.b[PageSize:]) },
		"of another peer": func(f *memPages) { foreign(f, UUID{2}) },
		"of another life": func(f *memPages) { foreign(f, UUID{1}) },
	} {
		f := newMemPages(int(DirtyPages(bigSize)))
		if _, err := CreateDirty(f, UUID{1}, NewDirtyMap(bigSize)); err != nil {
			t.Fatal(err)
		}
		damage(f)
		d, damaged := LoadDirty(f, UUID{1}, bigSize)
		if len(damaged) != 1 || damaged[0] != 2 || d.Map().Count() != PageBits {
			t.Errorf("%s: damaged %v, %d dirty", name, damaged, d.Map().Count())
		}
		f.bad = nil
		if err := d.Save(); err != nil {
			t.Fatal(err)
		}
		if _, damaged := LoadDirty(f, UUID{1}, bigSize); damaged != nil {
			t.Errorf("%s: still damaged after Save: %v", name, damaged)
		}
	}
	// A file cut short, or of nothing: everything is dirty.
	if d, damaged := LoadDirty(newMemPages(0), UUID{1}, bigSize); len(damaged) != 5 || d.Map().Count() != d.Map().Blocks() {
		t.Errorf("empty file: damaged %v, %d dirty", damaged, d.Map().Count())
	}
}

// foreign puts page 2 of another map in place.
func foreign(f *memPages, peer UUID) {
	g := newMemPages(int(DirtyPages(bigSize)))
	if _, err := CreateDirty(g, peer, NewDirtyMap(bigSize)); err != nil {
		panic(err)
	}
	copy(f.b[2*PageSize:3*PageSize], g.b[2*PageSize:])
}

func FuzzDirtyPage(f *testing.F) {
	var page [PageSize]byte
	encodeDirtyPage(page[:], dirtyPage{No: 1, Gen: 2, Peer: UUID{3}}, make([]uint64, pageWords))
	f.Add(page[:])
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := decodeDirtyPage(b)
		if err != nil && !errors.Is(err, ErrCorrupt) {
			t.Errorf("unexpected kind of error: %v", err)
		}
		// A whole file of it never panics, and marks at most what exists.
		d, _ := LoadDirty(&memPages{b: b, crashAt: -1}, h.Peer, 3*DirtyBlock)
		if n := d.Map().Count(); n > 3 {
			t.Errorf("%d of 3 blocks are dirty", n)
		}
	})
}

func TestPagesOnDisk(t *testing.T) {
	path := t.TempDir() + "/dm"
	f, err := CreatePages(path, DirtyPages(bigSize))
	if err != nil {
		t.Fatal(err)
	}
	m := NewDirtyMap(bigSize)
	d, err := CreateDirty(f, UUID{1}, m)
	if err != nil {
		t.Fatal(err)
	}
	m.Set(bigSize-1, 1)
	if err := d.Save(); err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(make([]byte, 10), 0); !errors.Is(err, ErrInvalid) {
		t.Errorf("a write of part of a page: %v", err)
	}
	for range 2 {
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.Save(); err != nil { // nothing has changed
		t.Fatal(err)
	}
	m.Set(0, 1)
	if err := d.Save(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("save to a closed file: %v", err)
	}
	if f, err = OpenPages(path); err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if d, damaged := LoadDirty(f, UUID{1}, bigSize); damaged != nil || d.Map().Count() != 1 || !d.Map().Test(bigSize-1) {
		t.Errorf("read %d dirty blocks, damaged %v", d.Map().Count(), damaged)
	}
	if _, err := CreatePages(path, 1); !errors.Is(err, os.ErrExist) {
		t.Errorf("made over an existing file: %v", err)
	}
}
