package backing

import (
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tandem-storage/tandem/datapath/block"
)

// TestFlushFindsDirtyChunk: a write that completes because another one has made
// its chunk dirty is covered by the flush that follows.
func TestFlushFindsDirtyChunk(t *testing.T) {
	_, r := newTestReplica(t, 8<<20, EngineThreads)
	if err := block.WriteAt(r, randomBytes(1, block.SectorSize), 0, block.FUA); err != nil {
		t.Fatal(err)
	}
	c := r.chunks[0].Load()
	for i := range 200_000 {
		c.mu.Lock()
		c.dirty.Store(false)
		r.unsynced.clear(0)
		c.mu.Unlock()
		var first sync.WaitGroup
		first.Go(c.written)
		for !c.dirty.Load() { // as the second write finds it
		}
		found := false
		r.unsynced.each(func(int64) { found = true })
		first.Wait()
		if !found {
			t.Fatalf("round %d: a flush after a completed write found nothing to sync", i)
		}
	}
}

// TestFlushAfterReopen: what a process left unflushed when it ended is covered by
// the first flush of the next one.
func TestFlushAfterReopen(t *testing.T) {
	p, r := newTestReplica(t, 8<<20, EngineThreads)
	if err := block.WriteAt(r, randomBytes(1, block.SectorSize), 0, 0); err != nil {
		t.Fatal(err)
	}
	syncs := func() int64 {
		t.Helper()
		f := injectFaults(p)
		defer func() { p.engine = f.engine }()
		r = openTestReplica(t, p)
		if err := block.Flush(r); err != nil {
			t.Fatal(err)
		}
		return f.count[opDataSync].Load()
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	if n := syncs(); n != 1 {
		t.Errorf("%d syncs by the first flush after an unclean stop, want one", n)
	}
	if err := r.CloseClean(); err != nil {
		t.Fatal(err)
	}
	if n := syncs(); n != 0 {
		t.Errorf("%d syncs by the first flush after a clean stop", n)
	}
}

// TestNoSuccessAfterFault: what completes after a sync has failed does not say that
// all is well, whether it needed that sync or not (I25).
func TestNoSuccessAfterFault(t *testing.T) {
	p, r := newTestReplica(t, 8<<20, EngineThreads)
	data := randomBytes(1, block.SectorSize)
	if err := block.WriteAt(r, data, 0, 0); err != nil {
		t.Fatal(err)
	}
	f := injectFaults(p)
	f.fail(opDataSync, unix.EIO)
	m := &manualEngine{engine: f, kind: opWrite, came: make(chan struct{}, 1)}
	p.engine = m
	defer func() { p.engine = f.engine }()
	w := start(r, block.Request{Op: block.OpWrite, Data: data, Len: block.SectorSize})
	if err := block.Flush(r); !errors.Is(err, ErrFaulted) {
		t.Fatalf("flush on a failing disk: %v", err)
	}
	m.next()
	if err := <-w.err; !errors.Is(err, ErrFaulted) {
		t.Errorf("a write that ended after the replica was faulted: %v", err)
	}
}

// TestNameTakenBack: a chunk whose name could not be made stable for want of space
// can be made later.
func TestNameTakenBack(t *testing.T) {
	dir := t.TempDir()
	tmp, path := filepath.Join(dir, newPrefix+"1"), filepath.Join(dir, "1")
	give := func(sync func(string) error) error {
		t.Helper()
		if err := os.WriteFile(tmp, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		return giveName(tmp, path, sync)
	}
	if err := give(func(string) error { return unix.ENOSPC }); !isNoSpace(err) {
		t.Fatalf("a folder without space: %v", err)
	}
	if err := give(syncDir); err != nil {
		t.Errorf("the next attempt: %v", err)
	}
}
