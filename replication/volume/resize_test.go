package volume

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/tandem-storage/tandem/datapath/block"
	"github.com/tandem-storage/tandem/replication"
	"github.com/tandem-storage/tandem/replication/core"
)

// TestGrow: an attached volume grows while it is written; the new end is there when Grow returns, on every replica, also on one that was away;
// without room on one of them nothing changes, and the error names it.
func TestGrow(t *testing.T) {
	const size = 8 << 20
	c := newTestCluster(t, size)
	v := c.nodes[0].attach()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	data := bytes.Repeat([]byte{7}, 8192)
	grow := func(n int64) {
		t.Helper()
		if err := v.Grow(ctx, n); err != nil {
			t.Fatal(err)
		}
		if got := v.Info().Size; got != n || c.kv.config().Size != n {
			t.Fatalf("%d bytes, in the configuration %d, want %d", got, c.kv.config().Size, n)
		}
		if err := block.WriteAt(v, data, n-int64(len(data)), block.FUA); err != nil {
			t.Fatal(err)
		}
	}
	if err := block.WriteAt(v, data, size, 0); err == nil {
		t.Error("a write behind the end")
	}
	grow(size + 8192)
	grow(size + 8192) // nothing to do
	if err := v.Grow(ctx, size); !errors.Is(err, core.ErrNotChanged) {
		t.Errorf("smaller: %v", err)
	}
	err := v.Grow(ctx, size+roomToGrow+4096)
	if !errors.Is(err, replication.ErrNoRoom) || !strings.Contains(err.Error(), "on node ") {
		t.Errorf("without room: %v", err)
	}
	if v.Info().Size != size+8192 || c.kv.config().Size != size+8192 {
		t.Errorf("%d bytes after that, in the configuration %d", v.Info().Size, c.kv.config().Size)
	}

	// One that is away grows when it comes back.
	b := c.nodes[1]
	if err := b.m.Close(ctx); err != nil {
		t.Fatal(err)
	}
	c.awaitInSync(1)
	grow(size + 4<<20)
	b.start()
	c.awaitInSync(2)
	c.compare()
	if got := b.st.Info().Size; got != size+4<<20 {
		t.Errorf("the replica that came back has %d bytes", got)
	}

	// And without room it stays away.
	if err := b.m.Close(ctx); err != nil {
		t.Fatal(err)
	}
	c.awaitInSync(1)
	if err := c.nodes[0].m.Detach(ctx, c.vol); err != nil {
		t.Fatal(err)
	}
	if err := v.Grow(ctx, size+8<<20); !errors.Is(err, replication.ErrNotCoordinator) {
		t.Errorf("detached: %v", err)
	}
	if got := c.nodes[0].attach().Info().Size; got != size+4<<20 {
		t.Errorf("attached again with %d bytes", got)
	}
}
