package volume

import (
	"context"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/tandem-storage/tandem/datapath/block"
	"github.com/tandem-storage/tandem/datapath/block/blocktest"
	"github.com/tandem-storage/tandem/replication"
)

// TestConformance: a replicated volume is a block device like any other, and its
// replicas are identical afterwards.
func TestConformance(t *testing.T) {
	blocktest.Run(t, "replicated", func(t *testing.T, size int64) block.Device {
		c := newTestCluster(t, size)
		t.Cleanup(c.compare)
		return c.nodes[0].attach()
	})
}

// writer keeps requests in flight and remembers what was acknowledged.
type writer struct {
	v      *Volume
	mu     sync.Mutex
	writes int              // acknowledged
	acked  map[int64]uint64 // sector -> last acknowledged tag
	maybe  map[int64]uint64 // sector -> tag without an answer, or with an error
	stop   chan struct{}
	wg     sync.WaitGroup
	errs   []error
}

// startWriter writes unique tags; each goroutine has sectors of its own.
func startWriter(v *Volume, goroutines int) *writer {
	w := &writer{v: v, acked: map[int64]uint64{}, maybe: map[int64]uint64{}, stop: make(chan struct{})}
	sectors := v.Info().Size / block.SectorSize
	for g := range goroutines {
		w.wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(g), 7))
			p := make([]byte, block.SectorSize)
			for tag := uint64(1); ; tag++ {
				select {
				case <-w.stop:
					return
				default:
				}
				s := rng.Int64N(sectors/int64(goroutines))*int64(goroutines) + int64(g)
				binary.LittleEndian.PutUint64(p, tag)
				w.mu.Lock()
				w.maybe[s] = tag
				w.mu.Unlock()
				err := block.WriteAt(v, p, s*block.SectorSize, 0)
				if err == nil && tag%64 == 0 {
					err = block.Flush(v)
				}
				w.mu.Lock()
				if err != nil {
					w.errs = append(w.errs, err)
					w.mu.Unlock()
					return
				}
				w.acked[s] = tag
				w.writes++
				delete(w.maybe, s)
				w.mu.Unlock()
			}
		})
	}
	return w
}

// count is how many writes were acknowledged.
func (w *writer) count() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.writes
}

// finish ends the writing and returns the errors that it met.
func (w *writer) finish() []error {
	close(w.stop)
	w.wg.Wait()
	return w.errs
}

// check reads everything acknowledged through v.
func (w *writer) check(t *testing.T, v *Volume) {
	t.Helper()
	p := make([]byte, block.SectorSize)
	for s, tag := range w.acked {
		if err := block.ReadAt(v, p, s*block.SectorSize); err != nil {
			t.Fatalf("read sector %d: %v", s, err)
		}
		if got := binary.LittleEndian.Uint64(p); got != tag && (w.maybe[s] == 0 || got != w.maybe[s]) {
			t.Fatalf("sector %d has %d; acknowledged was %d, under way %d", s, got, tag, w.maybe[s])
		}
	}
}

// TestEvictAndReturn: a replica goes away under load, the writer sees no error,
// the replica comes back and is resynced while the writing goes on.
func TestEvictAndReturn(t *testing.T) {
	c := newTestCluster(t, 64<<20)
	a, b := c.nodes[0], c.nodes[1]
	v := a.attach()
	w := startWriter(v, 8)
	c.eventually("writes", func() bool { return w.count() > 100 })
	c.net.Down(b.id)
	c.awaitInSync(1)
	n := w.count()
	c.eventually("writes after the eviction", func() bool { return w.count() > n+100 })
	c.net.Up(b.id)
	c.awaitInSync(2)
	n = w.count()
	c.eventually("writes after the join", func() bool { return w.count() > n+100 })
	if errs := w.finish(); errs != nil {
		t.Fatalf("the writer met %v", errs)
	}
	w.check(t, v)
	detach(t, a)
	c.compare()
}

// TestCrowdedPool: under load, a replica in a pool that is nearly full leaves, comes
// back when there is room, and stays when the other one has none either.
func TestCrowdedPool(t *testing.T) {
	c := newTestCluster(t, 64<<20)
	a, b := c.nodes[0], c.nodes[1]
	v := a.attach()
	w := startWriter(v, 8)
	c.eventually("writes", func() bool { return w.count() > 100 })
	b.st.crowded.Store(true)
	c.awaitInSync(1)
	cfg := c.kv.config()
	if m := cfg.Members[b.rep]; !cfg.InISR(a.rep) || m.State != replication.MemberStale || m.Reason != "pool nearly full" {
		t.Errorf("in sync %v, the crowded one is %+v", cfg.ISR, m)
	}
	b.st.crowded.Store(false)
	c.awaitInSync(2)
	a.st.crowded.Store(true) // the coordinator's own
	c.eventually("only the other one in sync", func() bool {
		cfg := c.kv.config()
		return len(cfg.ISR) == 1 && cfg.InISR(b.rep)
	})
	b.st.crowded.Store(true)
	n := b.st.looks.Load()
	c.eventually("the last copy has looked", func() bool { return b.st.looks.Load() > n })
	for range 3 { // it asks to leave in its answers
		if err := block.Flush(v); err != nil {
			t.Errorf("flush with the last copy: %v", err)
		}
	}
	if cfg := c.kv.config(); !cfg.InISR(b.rep) {
		t.Errorf("in sync %v: the last copy left", cfg.ISR)
	}
	a.st.crowded.Store(false)
	c.eventually("only the first one in sync", func() bool {
		cfg := c.kv.config()
		return len(cfg.ISR) == 1 && cfg.InISR(a.rep)
	})
	b.st.crowded.Store(false)
	c.awaitInSync(2)
	if errs := w.finish(); errs != nil {
		t.Fatalf("the writer met %v", errs)
	}
	w.check(t, v)
	detach(t, a)
	c.compare()
}

// detach waits until the replicas are reconciled, and detaches: they are identical then.
func detach(t *testing.T, n *testNode) {
	t.Helper()
	if v := n.m.Volume(n.c.vol); v != nil {
		n.c.eventually("everything reconciled", func() bool { return v.Status().Unreconciled == 0 })
	}
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
	defer cancel()
	if err := n.m.Detach(ctx, n.c.vol); err != nil {
		t.Fatalf("detach on %s: %v", n.id, err)
	}
}

// TestTakeover: the other node takes a volume over from a living coordinator; the
// old one is deposed, and nothing acknowledged is missing.
func TestTakeover(t *testing.T) {
	c := newTestCluster(t, 32<<20)
	a, b := c.nodes[0], c.nodes[1]
	old := a.attach()
	w := startWriter(old, 8)
	c.eventually("writes", func() bool { return w.count() > 200 })
	v := b.attach()
	<-old.Dead()
	if !errors.Is(old.Err(), replication.ErrDeposed) {
		t.Errorf("the old coordinator ended with %v", old.Err())
	}
	if errs := w.finish(); len(errs) == 0 {
		t.Error("the old consumer met no error")
	}
	w.check(t, v)
	c.awaitInSync(2)
	detach(t, b)
	c.compare()
}

// TestFencedDomain: when a domain is fenced, its coordinator gets nothing
// acknowledged any more, and the volume is served in the other one.
func TestFencedDomain(t *testing.T) {
	c := newTestCluster(t, 32<<20)
	a, b := c.nodes[0], c.nodes[1]
	old := a.attach()
	w := startWriter(old, 4)
	c.eventually("writes", func() bool { return w.count() > 100 })
	c.down.Store(a.dom, true)
	b.m.DomainsChanged() // a itself does not hear of it
	v := b.attach()
	<-old.Dead()
	w.finish()
	w.check(t, v)
	if got := c.kv.config().ISR; len(got) != 1 || got[0] != b.rep {
		t.Errorf("in-sync set is %v, want only the replica of the usable domain", got)
	}
	c.fence(a.dom, false)
	c.awaitInSync(2)
	detach(t, b)
	c.compare()
}

// TestKVDBLost: the kvdb is gone and nothing is noticed (G6); then a replica is
// gone too and the volume stalls with a cause; it goes on when the replica is back.
func TestKVDBLost(t *testing.T) {
	c := newTestCluster(t, 32<<20)
	a, b := c.nodes[0], c.nodes[1]
	v := a.attach()
	w := startWriter(v, 4)
	c.kv.mu.Lock()
	c.kv.down = errors.New("test: kvdb is gone")
	c.kv.mu.Unlock()
	n := w.count()
	c.eventually("writes without kvdb", func() bool { return w.count() > n+200 })
	c.net.Down(b.id)
	c.eventually("a named stall", func() bool { return v.Status().Stall == "KVDB" })
	c.net.Up(b.id)
	n = w.count()
	c.eventually("writes after the return", func() bool { return w.count() > n+200 })
	if errs := w.finish(); errs != nil {
		t.Fatalf("the writer met %v", errs)
	}
	c.kv.mu.Lock()
	c.kv.down = nil
	c.kv.mu.Unlock()
	w.check(t, v)
	detach(t, a)
	c.compare()
}

// TestCleanStop: a replica that stops in order and comes back is resynced by its
// dirty map, not compared in full.
func TestCleanStop(t *testing.T) {
	c := newTestCluster(t, 256<<20)
	a, b := c.nodes[0], c.nodes[1]
	v := a.attach()
	buf := make([]byte, block.SectorSize)
	buf[0] = 1
	if err := block.WriteAt(v, buf, 0, block.FUA); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := b.m.Close(ctx); err != nil {
		t.Fatal(err)
	}
	c.net.Down(b.id)
	c.awaitInSync(1)
	buf[0] = 2
	if err := block.WriteAt(v, buf, 100<<20, 0); err != nil {
		t.Fatal(err)
	}
	var most int
	c.net.Up(b.id)
	b.start()
	c.eventually("back in sync", func() bool {
		if p := v.Status().Resync; p != nil {
			most = max(most, p.Total)
		}
		return len(c.kv.config().ISR) == 2
	})
	if all := 256 << 20 / replication.ResyncBlock; most > all/4 {
		t.Errorf("resync looked at %d of %d blocks after a clean stop", most, all)
	}
	detach(t, a)
	c.compare()
}

// TestDamage: a payload that is damaged on the way is sent again.
func TestDamage(t *testing.T) {
	c := newTestCluster(t, 16<<20)
	v := c.nodes[0].attach()
	c.net.Damage(c.nodes[0].id, c.nodes[1].id, 1)
	buf := make([]byte, 64<<10)
	for i := range buf {
		buf[i] = byte(i * 7)
	}
	if err := block.WriteAt(v, buf, 1<<20, 0); err != nil {
		t.Fatal(err)
	}
	detach(t, c.nodes[0])
	if n := len(c.kv.config().ISR); n != 2 {
		t.Errorf("%d replicas in sync after one damaged frame, want 2", n)
	}
	c.compare()
}

// TestLargeDiscard: a discard larger than a frame can say.
func TestLargeDiscard(t *testing.T) {
	c := newTestCluster(t, 3<<30)
	v := c.nodes[0].attach()
	buf := make([]byte, block.SectorSize)
	buf[0] = 9
	for _, off := range []int64{0, 64<<20 - block.SectorSize, 64 << 20, 3<<30 - block.SectorSize} {
		if err := block.WriteAt(v, buf, off, 0); err != nil {
			t.Fatal(err)
		}
	}
	if err := block.Discard(v, block.SectorSize, 3<<30-2*block.SectorSize); err != nil {
		t.Fatal(err)
	}
	for off, want := range map[int64]byte{0: 9, 64<<20 - block.SectorSize: 0, 64 << 20: 0, 3<<30 - block.SectorSize: 9} {
		if err := block.ReadAt(v, buf, off); err != nil {
			t.Fatal(err)
		}
		if buf[0] != want {
			t.Errorf("byte at %d is %d, want %d", off, buf[0], want)
		}
	}
}

// TestSilentPeer: a replica whose node falls silent with its connection open is
// evicted when the beats say so, not when a request has waited long enough.
func TestSilentPeer(t *testing.T) {
	c := newTestCluster(t, 16<<20)
	a, b := c.nodes[0], c.nodes[1]
	v := a.attach()
	c.net.Hold(a.id, b.id)
	a.m.PeerUp(b.id, false)
	c.awaitInSync(1)
	if err := block.WriteAt(v, make([]byte, block.SectorSize), 0, 0); err != nil {
		t.Fatal(err)
	}
	c.net.Resume(a.id, b.id)
	a.m.PeerUp(b.id, true)
	c.awaitInSync(2)
	detach(t, a)
	c.compare()
}
