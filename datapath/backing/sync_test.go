package backing

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
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
	c := r.chunk(0)
	// A race, so that a wrong order shows after some thousands of rounds and not in
	// each: the first write notes the chunk while the second one looks.
	const rounds = 300_000
	var turn, seen atomic.Int64
	var first sync.WaitGroup
	first.Go(func() {
		for i := int64(1); i <= rounds; i++ {
			for turn.Load() < i {
				runtime.Gosched()
			}
			c.written()
			for seen.Load() < i {
				runtime.Gosched()
			}
		}
	})
	defer first.Wait()
	missed := 0
	for i := int64(1); i <= rounds; i++ {
		c.mu.Lock()
		c.dirty.Store(false)
		r.unsynced.clear(0)
		c.mu.Unlock()
		turn.Store(i)
		for !c.dirty.Load() { // as the second write finds it
			runtime.Gosched()
		}
		found := false
		r.unsynced.each(func(int64) { found = true })
		if !found {
			missed++
		}
		seen.Store(i)
	}
	if missed > 0 {
		t.Errorf("%d of %d flushes after a completed write found nothing to sync", missed, rounds)
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

// TestStableIsASync: a write with FUA is stable by an fdatasync that begins when it has ended, not by O_DSYNC, under
// which kernels have lost what was written to new extents.
func TestStableIsASync(t *testing.T) {
	p, r := newTestReplica(t, 8<<20, EngineThreads)
	if err := block.WriteAt(r, randomBytes(1, block.SectorSize), 0, 0); err != nil { // makes the chunk
		t.Fatal(err)
	}
	f := injectFaults(p)
	m := &manualEngine{engine: f, kind: opWrite, came: make(chan struct{}, 1)}
	p.engine = m
	defer func() { p.engine = f.engine }()
	for n := range int64(3) {
		w := start(r, block.Request{Op: block.OpWrite, Flags: block.FUA, Data: randomBytes(1, block.SectorSize), Len: block.SectorSize})
		<-m.came
		if got := f.count[opDataSync].Load(); got != n {
			t.Errorf("%d syncs before write %d has ended, want %d", got, n, n)
		}
		m.came <- struct{}{}
		m.next()
		if err := <-w.err; err != nil {
			t.Fatal(err)
		}
		if got := f.count[opDataSync].Load(); got != n+1 {
			t.Errorf("%d syncs when write %d is stable, want %d", got, n, n+1)
		}
	}
	flags, err := unix.FcntlInt(uintptr(r.chunk(0).fd), unix.F_GETFL, 0)
	if err != nil || flags&unix.O_DSYNC != 0 {
		t.Errorf("a chunk is written with flags %#x, %v", flags, err)
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
