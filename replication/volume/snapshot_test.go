package volume

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/tandem-storage/tandem/datapath/block"
	"github.com/tandem-storage/tandem/replication"
)

// TestSnapshot takes snapshots under writes that follow each other, each of a number of its own over the last: what all holders have is
// the same, a prefix of them, with all that were acknowledged before and none that was begun after.
func TestSnapshot(t *testing.T) {
	c := newTestCluster(t, 4<<20)
	v := c.nodes[0].attach()
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	var mu sync.Mutex
	begun, acked := 0, 0
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		p := make([]byte, block.SectorSize)
		for n := 1; ; n++ {
			select {
			case <-stop:
				return
			default:
			}
			mu.Lock()
			begun = n
			mu.Unlock()
			copy(p, fmt.Sprintf("%08d", n))
			if err := block.WriteAt(v, p, int64(n%512)*block.SectorSize, 0); err != nil {
				t.Errorf("write %d: %v", n, err)
				return
			}
			mu.Lock()
			acked = n
			mu.Unlock()
		}
	}()
	for k := range 20 {
		c.eventually("writes go on", func() bool { mu.Lock(); defer mu.Unlock(); return acked > 50*k })
		mu.Lock()
		least := acked
		mu.Unlock()
		id := replication.SnapshotID{byte(k + 1)}
		holders, err := v.Snapshot(ctx, id, 5*time.Second, 5*time.Second)
		mu.Lock()
		most := begun
		mu.Unlock()
		if err != nil || len(holders) != len(c.nodes) {
			t.Fatalf("%v, held by %d", err, len(holders))
		}
		var first []byte
		for _, n := range c.nodes {
			n.st.mu.Lock()
			p := n.st.snaps[id]
			n.st.mu.Unlock()
			if first == nil {
				first = p
			}
			if !bytes.Equal(first, p) {
				t.Fatalf("snapshot %d differs on %s", k, n.id)
			}
		}
		last := 0
		has := map[int]bool{0: true}
		for off := 0; off < 512*block.SectorSize; off += block.SectorSize {
			n := 0
			_, _ = fmt.Sscanf(string(first[off:off+8]), "%08d", &n) // of what was never written: 0
			last, has[n] = max(last, n), true
		}
		if last < least || last > most {
			t.Errorf("snapshot %d ends with write %d; %d were acknowledged before, %d begun", k, last, least, most)
		}
		for n := max(1, last-511); n <= last; n++ {
			if !has[n] {
				t.Errorf("snapshot %d has write %d without %d", k, last, n)
			}
		}
	}
	close(stop)
	<-stopped
}

// A storage that takes none harms nobody, and it is told why.
func TestSnapshotRefused(t *testing.T) {
	c := newTestCluster(t, 4<<20)
	v := c.nodes[0].attach()
	st := c.nodes[1].st
	st.mu.Lock()
	st.noCut = replication.ErrSnapshotUnsupported
	st.mu.Unlock()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if _, err := v.Snapshot(ctx, replication.SnapshotID{1}, time.Second, time.Second); !errors.Is(err, replication.ErrSnapshotUnsupported) || !errors.Is(err, replication.ErrNotCut) {
		t.Errorf("%v", err)
	}
	st.mu.Lock()
	st.noCut = nil
	st.mu.Unlock()
	if err := block.WriteAt(v, make([]byte, block.SectorSize), 0, 0); err != nil {
		t.Error(err)
	}
	c.awaitInSync(len(c.nodes))
	if _, err := v.Snapshot(ctx, replication.SnapshotID{2}, 5*time.Second, time.Second); err != nil {
		t.Error(err)
	}
	if err := c.nodes[0].m.Detach(ctx, c.vol); err != nil {
		t.Fatal(err)
	}
	if _, err := v.Snapshot(ctx, replication.SnapshotID{3}, time.Second, time.Second); !errors.Is(err, replication.ErrClosed) {
		t.Errorf("of a volume that is detached: %v", err)
	}
}
