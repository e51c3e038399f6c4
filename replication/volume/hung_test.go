package volume

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/tandem-storage/tandem/datapath/block"
	"github.com/tandem-storage/tandem/replication/core"
)

// hungDisk is a storage that keeps what it is asked, from the moment that it hangs until it is healed.
type hungDisk struct {
	*testStorage
	mu    sync.Mutex
	hangs bool
	kept  []*block.Request
	clean atomic.Int64 // clean closes
}

func (d *hungDisk) Submit(batch []*block.Request) {
	d.mu.Lock()
	if d.hangs {
		d.kept = append(d.kept, batch...)
		d.mu.Unlock()
		return
	}
	d.mu.Unlock()
	d.testStorage.Submit(batch)
}

func (d *hungDisk) hang() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.hangs = true
}

func (d *hungDisk) heal() {
	d.mu.Lock()
	kept := d.kept
	d.hangs, d.kept = false, nil
	d.mu.Unlock()
	d.testStorage.Submit(kept)
}

func (d *hungDisk) asked() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.kept) > 0
}

func (d *hungDisk) CloseClean(rest core.Rest) error {
	d.clean.Add(1)
	return d.testStorage.CloseClean(rest)
}

// newHungCluster is a cluster with a volume attached on a, whose disk has taken a write and does not answer it.
func newHungCluster(t *testing.T) (*testCluster, *hungDisk, *observer.ObservedLogs) {
	t.Helper()
	c := newTestCluster(t, 16<<20)
	a := c.nodes[0]
	disk := &hungDisk{testStorage: a.st}
	t.Cleanup(disk.heal)
	if err := a.m.RemoveReplica(t.Context(), c.vol, a.rep); err != nil {
		t.Fatal(err)
	}
	if err := a.m.AddReplica(c.vol, a.rep, disk); err != nil {
		t.Fatal(err)
	}
	seen, logs := observer.New(zap.ErrorLevel)
	a.m.host(c.vol, a.rep).lg = zap.New(seen).With(zap.Stringer("replica-id", a.rep))
	v := a.attach()
	disk.hang()
	done := make(chan error, 1)
	go func() { done <- block.WriteAt(v, make([]byte, block.SectorSize), 0, 0) }()
	t.Cleanup(func() { <-done })
	c.eventually("a write on the disk", disk.asked)
	return c, disk, logs
}

// TestRemoveHungReplica: a replica whose disk does not answer is not removed, nor closed, while the write may still land.
func TestRemoveHungReplica(t *testing.T) {
	c, disk, _ := newHungCluster(t)
	a := c.nodes[0]
	for range 2 {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		err := a.m.RemoveReplica(ctx, c.vol, a.rep)
		cancel()
		if !errors.Is(err, ErrNotAtRest) || !errors.Is(err, context.DeadlineExceeded) || !a.m.HasReplica(c.vol, a.rep) || disk.clean.Load() != 0 {
			t.Fatalf("while the disk hangs: %v, there %v, clean closes %d", err, a.m.HasReplica(c.vol, a.rep), disk.clean.Load())
		}
	}
	disk.heal()
	if err := a.m.RemoveReplica(t.Context(), c.vol, a.rep); err != nil || a.m.HasReplica(c.vol, a.rep) {
		t.Errorf("when the disk answers: %v, there %v", err, a.m.HasReplica(c.vol, a.rep))
	}
}

// TestCloseWithHungDisk: a manager closes in bounded time, names the replica and its pool, and
// leaves no mark of a clean stop.
func TestCloseWithHungDisk(t *testing.T) {
	c, disk, logs := newHungCluster(t)
	a := c.nodes[0]
	a.m.o.Timing.Rest = 50 * time.Millisecond
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	closed := make(chan error, 1)
	go func() { closed <- a.m.Close(ctx) }()
	select {
	case err := <-closed:
		if !errors.Is(err, ErrNotAtRest) {
			t.Errorf("close: %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("close waits for the disk")
	}
	if n := disk.clean.Load(); n != 0 {
		t.Errorf("%d clean closes with a write on the disk", n)
	}
	es := logs.FilterMessage("replica left in use, its disk does not answer").All()
	if len(es) != 1 || es[0].ContextMap()["pool"] != "memory" || es[0].ContextMap()["replica-id"] != a.rep.String() {
		t.Errorf("logged: %v", logs.All())
	}
}
