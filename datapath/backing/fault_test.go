package backing

import (
	"errors"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tandem-storage/tandem/datapath/block"
	"github.com/tandem-storage/tandem/datapath/meta"
)

// faultEngine fails ops by a rule, and counts them by kind.
type faultEngine struct {
	engine
	rule  atomic.Pointer[func(o *op) error]
	count [opZero + 1]atomic.Int64
}

func (f *faultEngine) submit(ops []*op) {
	for _, o := range ops {
		f.count[o.kind].Add(1)
		var err error
		if rule := f.rule.Load(); rule != nil {
			err = (*rule)(o)
		}
		if err != nil {
			o.owner.opDone(o, err)
		} else {
			f.engine.submit([]*op{o})
		}
	}
}

func (f *faultEngine) fail(kind opKind, err error) {
	rule := func(o *op) error {
		if o.kind == kind {
			return err
		}
		return nil
	}
	f.rule.Store(&rule)
}

// injectFaults puts a faultEngine under the pool's replicas.
func injectFaults(p *Pool) *faultEngine {
	f := &faultEngine{engine: p.engine}
	p.engine = f
	return f
}

func TestWriteErrorFaults(t *testing.T) {
	p, r := newTestReplica(t, 8<<20, EngineAuto)
	f := injectFaults(p)
	data := randomBytes(1, 8192)
	if err := block.WriteAt(r, data, 0, block.FUA); err != nil {
		t.Fatal(err)
	}
	f.fail(opWrite, unix.EIO)
	if err := block.WriteAt(r, data, 4096, 0); !errors.Is(err, ErrFaulted) || !errors.Is(err, block.ErrIO) || !errors.Is(err, unix.EIO) {
		t.Fatalf("write on a failing disk: %v", err)
	}
	<-r.Faulted()
	f.rule.Store(nil) // the disk is well again; the replica must not be
	for _, do := range []func() error{
		func() error { return block.WriteAt(r, data, 0, 0) },
		func() error { return block.ReadAt(r, data, 0) },
		func() error { return block.Flush(r) },
		func() error { return block.Discard(r, 0, 4096) },
		func() error { return r.WriteSuperblock(r.Superblock()) },
		r.CloseClean,
	} {
		if err := do(); !errors.Is(err, ErrFaulted) {
			t.Errorf("on a faulted replica: %v", err)
		}
	}
	r = openTestReplica(t, p)
	if !r.Unclean() || !r.Lossy() {
		t.Errorf("after a fault: unclean %v, lossy %v", r.Unclean(), r.Lossy())
	}
}

// TestSyncErrorFaults: no sync is tried again, and the other replicas of the file
// system are faulted too (I25).
func TestSyncErrorFaults(t *testing.T) {
	p, r := newTestReplica(t, 8<<20, EngineAuto)
	f := injectFaults(p)
	other := meta.UUID{9}
	if err := p.Create(ReplicaSpec{Cluster: testCluster, Volume: other, Replica: other, Size: 1 << 20, ChunkSize: testChunk}); err != nil {
		t.Fatal(err)
	}
	r2, err := p.Open(other, other)
	if err != nil {
		t.Fatal(err)
	}
	defer r2.Close()
	data := randomBytes(1, 4096)
	if err := block.WriteAt(r, data, 0, 0); err != nil {
		t.Fatal(err)
	}
	f.fail(opDataSync, unix.EIO)
	if err := block.Flush(r); !errors.Is(err, ErrFaulted) {
		t.Fatalf("flush on a failing disk: %v", err)
	}
	f.rule.Store(nil)
	if err := block.Flush(r); !errors.Is(err, ErrFaulted) {
		t.Fatalf("second flush: %v", err)
	}
	if n := f.count[opDataSync].Load(); n != 1 {
		t.Errorf("%d syncs, want one", n)
	}
	<-r2.Faulted()
	if err := block.ReadAt(r2, data, 0); !errors.Is(err, ErrFaulted) {
		t.Errorf("read on another replica of the pool: %v", err)
	}
}

func TestErrorsThatDoNotFault(t *testing.T) {
	p, r := newTestReplica(t, 8<<20, EngineAuto)
	f := injectFaults(p)
	data := randomBytes(1, 4096)
	if err := block.WriteAt(r, data, 0, 0); err != nil {
		t.Fatal(err)
	}
	f.fail(opRead, unix.EIO)
	if err := block.ReadAt(r, make([]byte, 4096), 0); !errors.Is(err, block.ErrIO) || errors.Is(err, ErrFaulted) {
		t.Errorf("read error: %v", err)
	}
	f.fail(opWrite, unix.ENOSPC)
	if err := block.WriteAt(r, data, 0, 0); !errors.Is(err, block.ErrNoSpace) || errors.Is(err, ErrFaulted) {
		t.Errorf("write without space: %v", err)
	}
	f.rule.Store(nil)
	if err := block.WriteAt(r, data, 0, block.FUA); err != nil {
		t.Errorf("write after errors: %v", err)
	}
	if err := r.CloseClean(); err != nil {
		t.Error(err)
	}
}

// manualEngine holds the ops of one kind until they are let go.
type manualEngine struct {
	engine
	kind opKind
	mu   sync.Mutex
	held []*op
	came chan struct{}
}

func (m *manualEngine) submit(ops []*op) {
	for _, o := range ops {
		if o.kind != m.kind {
			m.engine.submit([]*op{o})
			continue
		}
		m.mu.Lock()
		m.held = append(m.held, o)
		m.mu.Unlock()
		m.came <- struct{}{}
	}
}

// next waits for a held op and lets it go.
func (m *manualEngine) next() {
	<-m.came
	m.mu.Lock()
	o := m.held[0]
	m.held = m.held[1:]
	m.mu.Unlock()
	m.engine.submit([]*op{o})
}

type result struct {
	block.Request
	err chan error
}

func (r *result) Complete(_ *block.Request, err error) { r.err <- err }

func start(d block.Device, req block.Request) *result {
	r := &result{Request: req, err: make(chan error, 1)}
	r.By = r
	d.Submit([]*block.Request{&r.Request})
	return r
}

// TestFlushCoalesces: a flush waits for a sync that began after the writes that it
// covers, and all that wait share one.
func TestFlushCoalesces(t *testing.T) {
	p, r := newTestReplica(t, 4<<20, EngineThreads)
	m := &manualEngine{engine: p.engine, kind: opDataSync, came: make(chan struct{}, 16)}
	data := randomBytes(1, 4096)
	write := func() {
		t.Helper()
		if err := block.WriteAt(r, data, 0, 0); err != nil {
			t.Fatal(err)
		}
	}
	write()
	p.engine = m
	flush := block.Request{Op: block.OpFlush}
	first := start(r, flush)
	joined := start(r, flush) // nothing new: the sync under way covers it
	write()
	var later []*result
	for range 3 {
		later = append(later, start(r, flush)) // cover the second write: the sync under way does not
	}
	m.next()
	for _, f := range []*result{first, joined} {
		if err := <-f.err; err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range later {
		select {
		case <-f.err:
			t.Fatal("a flush completed by a sync that began before the write it covers")
		default:
		}
	}
	m.next()
	for _, f := range later {
		if err := <-f.err; err != nil {
			t.Fatal(err)
		}
	}
	if err := <-start(r, flush).err; err != nil { // nothing dirty: no sync, or it would hang
		t.Fatal(err)
	}
	if n := len(m.came); n != 0 {
		t.Errorf("%d syncs more than the two needed", n)
	}
	p.engine = m.engine
}

func TestFullDisk(t *testing.T) {
	dir := mountImage(t, "ext4", 48<<20)
	p := openTestPool(t, dir, EngineAuto)
	c, err := p.Capacity()
	if err != nil {
		t.Fatal(err)
	}
	size := c.Total &^ (block.MaxIO - 1)
	createTestReplica(t, p, size)
	r := openTestReplica(t, p)
	data := randomBytes(1, block.MaxIO)
	full := int64(-1)
	for off := int64(0); off < size && full < 0; off += block.MaxIO {
		switch err := block.WriteAt(r, data, off, 0); {
		case errors.Is(err, block.ErrNoSpace):
			full = off
		case err != nil:
			t.Fatal(err)
		}
	}
	if full < 0 {
		t.Fatal("the disk never got full")
	}
	// The device lives: reads, overwrites, flush, metadata and dirty maps.
	if err := block.ReadAt(r, make([]byte, block.MaxIO), 0); err != nil {
		t.Error(err)
	}
	if err := block.WriteAt(r, data, 0, block.FUA); err != nil {
		t.Error(err)
	}
	if err := block.Flush(r); err != nil {
		t.Error(err)
	}
	sb := r.Superblock()
	sb.Term, sb.Epoch, sb.State = 7, 7, meta.StateInSync
	if err := r.WriteSuperblock(sb); err != nil {
		t.Error(err)
	}
	for i := range byte(spareMaps) {
		m, err := r.CreateDirtyMap(meta.UUID{50 + i})
		if err != nil {
			t.Fatal(err)
		}
		m.Set(0, size)
		if err := r.SaveDirtyMap(meta.UUID{50 + i}); err != nil {
			t.Error(err)
		}
	}
	if c, err := p.Capacity(); err != nil || c.Level != LevelEvict {
		t.Errorf("capacity %+v, %v", c, err)
	}
	if crowded, err := r.Crowded(); err != nil || !crowded {
		t.Errorf("crowded %v, %v", crowded, err)
	}
	err = p.Create(ReplicaSpec{Cluster: testCluster, Volume: testPeer, Replica: testPeer, Size: 1 << 20})
	if !errors.Is(err, ErrPoolFull) || !errors.Is(err, block.ErrNoSpace) {
		t.Errorf("create on a full pool: %v", err)
	}
	// Space given back is space again.
	if err := block.Discard(r, 0, full); err != nil {
		t.Error(err)
	}
	if err := block.Flush(r); err != nil {
		t.Error(err)
	}
	if err := block.WriteAt(r, data, full, 0); err != nil {
		t.Errorf("write after discard: %v", err)
	}
}

// TestChunkNotMade: an error while a chunk is made is a write error.
func TestChunkNotMade(t *testing.T) {
	_, r := newTestReplica(t, 8<<20, EngineAuto)
	// What stands in the way is a leftover that makeChunk does not expect.
	if err := os.Mkdir(filepath.Join(r.dir, headDir, newPrefix+"1"), 0o700); err != nil {
		t.Fatal(err)
	}
	data := randomBytes(1, 4096)
	if err := block.WriteAt(r, data, testChunk, 0); !errors.Is(err, ErrFaulted) {
		t.Errorf("write without a chunk: %v", err)
	}
}
