package backing

import (
	"errors"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/tandem-storage/tandem/datapath/block"
	"github.com/tandem-storage/tandem/datapath/meta"
)

func allocated(t *testing.T, st os.FileInfo) int64 {
	t.Helper()
	s, ok := st.Sys().(*syscall.Stat_t)
	if !ok {
		t.Fatal("no stat")
	}
	return s.Blocks * 512
}

func TestDirtyMaps(t *testing.T) {
	p, r := newTestReplica(t, 64<<20, EngineAuto)
	if _, _, err := r.DirtyMap(testPeer); !errors.Is(err, ErrNotFound) {
		t.Errorf("map of an unknown peer: %v", err)
	}
	m, err := r.CreateDirtyMap(testPeer)
	if err != nil {
		t.Fatal(err)
	}
	m.Set(1<<20, 128<<10)
	if err := r.SaveDirtyMap(testPeer); err != nil {
		t.Fatal(err)
	}
	m.Set(2<<20, 1) // never saved
	if again, err := r.CreateDirtyMap(testPeer); err != nil || again != m {
		t.Errorf("another map for the same peer: %v", err)
	}
	r.Close()
	r = openTestReplica(t, p)
	if peers, err := r.DirtyPeers(); err != nil || len(peers) != 1 || peers[0] != testPeer {
		t.Errorf("peers %x, %v", peers, err)
	}
	m, damaged, err := r.DirtyMap(testPeer)
	if err != nil || damaged != nil || m.Count() != 2 || !m.Test(1<<20) {
		t.Fatalf("loaded %d dirty blocks, damaged %v, %v", m.Count(), damaged, err)
	}
	r.Close()
	garbage(t, r.dir+"/"+dirtyName(testPeer), 0)
	r = openTestReplica(t, p)
	m, damaged, err = r.DirtyMap(testPeer)
	if err != nil || len(damaged) != 1 || m.Count() != m.Blocks() {
		t.Errorf("a damaged page reads as %d of %d dirty, damaged %v, %v", m.Count(), m.Blocks(), damaged, err)
	}
	for range 2 {
		if err := r.RemoveDirtyMap(testPeer); err != nil {
			t.Error(err)
		}
	}
	if m, err := r.CreateDirtyMap(testPeer); err != nil || m.Count() != 0 {
		t.Errorf("a new map is not empty: %v", err)
	}
	files, err := os.ReadDir(r.dir)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, f := range files {
		if strings.HasPrefix(f.Name(), dirtyPrefix) {
			n++
		}
	}
	if n != spareMaps {
		t.Errorf("%d files for dirty maps, want %d", n, spareMaps)
	}
}

func TestSuperblockRules(t *testing.T) {
	p, r := newTestReplica(t, 4<<20, EngineAuto)
	sb := r.Superblock()
	sb.Term, sb.Epoch, sb.Gen, sb.State = 3, 4, 5, meta.StateInSync
	sb.ISR, sb.Missing = []meta.UUID{testReplica}, []meta.UUID{testPeer}
	sb.Replica, sb.Size = meta.UUID{99}, 1<<40 // the store's own: ignored
	if err := r.WriteSuperblock(sb); err != nil {
		t.Fatal(err)
	}
	if got := r.Superblock(); got.Replica != testReplica || got.Size != 4<<20 || got.Term != 3 || len(got.Missing) != 1 {
		t.Errorf("stored %+v", got)
	}
	for _, change := range []func(*meta.Superblock){
		func(sb *meta.Superblock) { sb.Term-- },
		func(sb *meta.Superblock) { sb.Epoch-- },
	} {
		if err := r.UpdateSuperblock(change); !errors.Is(err, ErrRegress) {
			t.Errorf("a promise taken back: %v", err)
		}
	}
	err := r.UpdateSuperblock(func(sb *meta.Superblock) { sb.ISR = make([]meta.UUID, meta.MaxPeers+1) })
	if !errors.Is(err, meta.ErrInvalid) {
		t.Errorf("too long an in-sync set: %v", err)
	}
	list, err := p.List()
	if err != nil || list[0].Superblock.Term != 3 {
		t.Errorf("the mirror says %+v, %v", list, err)
	}
}

// TestUncleanIsSticky: neither a clean close nor another stop in the same boot
// makes an unclean stop forgotten.
func TestUncleanIsSticky(t *testing.T) {
	p, r := newTestReplica(t, 4<<20, EngineAuto)
	r.Close()
	p.boot = meta.UUID{1} // the kernel was booted in between
	for _, end := range []func(*Replica) error{(*Replica).Close, (*Replica).CloseClean, (*Replica).Close} {
		r = openTestReplica(t, p)
		if !r.Unclean() || !r.Lossy() {
			t.Fatalf("unclean %v, lossy %v", r.Unclean(), r.Lossy())
		}
		if err := end(r); err != nil {
			t.Fatal(err)
		}
	}
	r = openTestReplica(t, p)
	if err := r.UpdateSuperblock(func(sb *meta.Superblock) { sb.Unclean, sb.Lossy = false, false }); err != nil {
		t.Fatal(err)
	}
	if err := r.CloseClean(); err != nil {
		t.Fatal(err)
	}
	p.boot = meta.UUID{2}
	if r = openTestReplica(t, p); r.Unclean() || r.Lossy() {
		t.Errorf("repaired and closed in order: unclean %v, lossy %v", r.Unclean(), r.Lossy())
	}
}

func TestNoAllocations(t *testing.T) {
	for _, e := range []Engine{EngineThreads, EngineURing} {
		_, r := newTestReplica(t, 4<<20, e)
		buf := block.NewBuffer(4096)
		copy(buf.Bytes(), randomBytes(1, 4096))
		if err := block.WriteAt(r, buf.Bytes(), 0, 0); err != nil {
			t.Fatal(err)
		}
		for _, op := range []block.Op{block.OpWrite, block.OpRead} {
			res := &result{Request: block.Request{Op: op, Len: 4096, Data: buf.Bytes()}, err: make(chan error, 1)}
			res.By = res
			batch := []*block.Request{&res.Request}
			n := testing.AllocsPerRun(200, func() {
				r.Submit(batch)
				if err := <-res.err; err != nil {
					t.Fatal(err)
				}
			})
			if n >= 1 {
				t.Errorf("%v: %v allocations per %v of 4 KiB", e, n, op)
			}
		}
		buf.Release()
	}
}
