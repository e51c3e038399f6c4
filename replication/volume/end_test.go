package volume

import (
	"bytes"
	"context"
	"errors"
	"sync"
	"testing"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/tandem-storage/tandem/datapath/block"
	"github.com/tandem-storage/tandem/replication"
)

// lose stops every node, cuts the power of some, and starts them again.
func (c *testCluster) lose(t *testing.T, nodes ...*testNode) {
	t.Helper()
	for _, n := range c.nodes {
		if err := n.m.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	for _, n := range nodes {
		n.boot, n.st.stored.Meta.Lossy = replication.BootID(replication.NewUUID()), true
	}
	for _, n := range c.nodes {
		n.start()
	}
}

// TestResume: a volume that its process left goes on under the same attachment, if that is still the volume's and some in-sync
// replica did not lose power.
func TestResume(t *testing.T) {
	for _, tc := range []struct {
		name      string
		meanwhile func(t *testing.T, c *testCluster)
		want      error
	}{
		{"nothing happened", func(*testing.T, *testCluster) {}, nil},
		{"one lost power", func(t *testing.T, c *testCluster) { c.lose(t, c.nodes[0]) }, nil},
		{"all lost power", func(t *testing.T, c *testCluster) { c.lose(t, c.nodes...) }, replication.ErrPoisoned},
		{"another node has it", func(_ *testing.T, c *testCluster) { c.nodes[1].attach() }, replication.ErrNotCoordinator},
		{"another node had it", func(t *testing.T, c *testCluster) { c.nodes[1].attach(); detach(t, c.nodes[1]) }, replication.ErrNotCoordinator},
		{"attached again here", func(_ *testing.T, c *testCluster) { c.nodes[0].attach() }, replication.ErrNotCoordinator},
		{"attached again and detached", func(t *testing.T, c *testCluster) { c.nodes[0].attach(); detach(t, c.nodes[0]) }, replication.ErrNotCoordinator},
		{"deleted", func(_ *testing.T, c *testCluster) { c.kv.gone = true }, replication.ErrVolumeNotFound},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := newTestCluster(t, 16<<20)
			a := c.nodes[0]
			v := a.attach()
			id, want := v.AttachID(), bytes.Repeat([]byte{7}, 8192)
			if err := block.WriteAt(v, want, 4096, 0); err != nil {
				t.Fatal(err)
			}
			term := v.Status().Term
			v.kill(replication.ErrClosed) // as if the process were
			<-v.Dead()
			if err := a.restart(); err != nil {
				t.Fatal(err)
			}
			if got := c.kv.config().Coord; got == nil || got.AttachID != id {
				t.Fatalf("left behind is coordinator %+v, want attachment %s", got, id)
			}
			tc.meanwhile(t, c)
			v, err := a.m.Attach(t.Context(), c.vol, AttachOptions{Resume: id})
			if !errors.Is(err, tc.want) {
				t.Fatalf("got %v, want %v", err, tc.want)
			}
			if err != nil {
				return
			}
			if s := v.Status(); v.AttachID() != id || s.Config.Coord.AttachID != id || s.Term <= term {
				t.Errorf("attachment %s in term %d after %s in term %d", v.AttachID(), s.Term, id, term)
			}
			got := make([]byte, len(want))
			if err := block.ReadAt(v, got, 4096); err != nil || !bytes.Equal(got, want) {
				t.Errorf("what was acknowledged and not flushed is not there: %v", err)
			}
		})
	}
}

// TestBeforeEnd: nobody is told that a volume is lost before that is noted.
func TestBeforeEnd(t *testing.T) {
	c := newTestCluster(t, 16<<20)
	v := c.nodes[0].attach()
	noting, note := make(chan struct{}), make(chan struct{})
	goOn := sync.OnceFunc(func() { close(note) })
	t.Cleanup(goOn)
	if !v.BeforeEnd(func(error) { close(noting); <-note }) {
		t.Fatal("lost already")
	}
	if err := block.WriteAt(v, make([]byte, 4096), 0, 0); err != nil {
		t.Fatal(err)
	}
	c.fence("a", true)
	<-noting
	told := make(chan error, 1)
	go func() { told <- block.WriteAt(v, make([]byte, 4096), 4096, 0) }()
	c.eventually("a request that waits", func() bool { return v.pending.Load() == 1 })
	if v.BeforeEnd(func(error) {}) {
		t.Error("a volume that is lost was taken for one that is not")
	}
	short, cancel := context.WithCancel(t.Context())
	cancel()
	if err := c.nodes[0].m.Detach(short, c.vol); !errors.Is(err, replication.ErrStalled) {
		t.Errorf("a detach did not wait: %v", err)
	}
	select {
	case err := <-told:
		t.Errorf("a request was told %v", err)
	case <-v.Dead():
		t.Error("the volume is dead")
	default:
	}
	goOn()
	if err := <-told; !errors.Is(err, replication.ErrDomainFenced) {
		t.Errorf("a request was told %v", err)
	}
	<-v.Dead()
	if err := v.Err(); !errors.Is(err, replication.ErrDomainFenced) {
		t.Errorf("it ended with %v", err)
	}
	if err := block.WriteAt(v, make([]byte, 4096), 4096, 0); err == nil {
		t.Error("a write after the end")
	}
}

// TestLeave: what a volume that was left to the next process had written need not be compared by that; what one that was killed had does.
func TestLeave(t *testing.T) {
	for _, leaves := range []bool{true, false} {
		c := newTestCluster(t, 16<<20)
		a := c.nodes[0]
		v := a.attach()
		id := v.AttachID()
		for off := int64(0); off < 8<<20; off += 1 << 20 {
			if err := block.WriteAt(v, bytes.Repeat([]byte{7}, 8192), off, 0); err != nil {
				t.Fatal(err)
			}
		}
		if leaves {
			if err := a.m.Leave(t.Context(), c.vol); err != nil {
				t.Fatal(err)
			}
		} else {
			v.kill(replication.ErrClosed)
		}
		<-v.Dead()
		if got := c.kv.config().Coord; got == nil || got.AttachID != id {
			t.Fatalf("left behind is coordinator %+v, want attachment %s", got, id)
		}
		if err := a.restart(); err != nil {
			t.Fatal(err)
		}
		seen, logs := observer.New(zap.InfoLevel)
		a.m.lg = zap.New(seen)
		if _, err := a.m.Attach(t.Context(), c.vol, AttachOptions{Resume: id}); err != nil {
			t.Fatal(err)
		}
		serving := logs.FilterMessage("volume serving").All()
		if len(serving) != 1 {
			t.Fatalf("it told %d times that it serves", len(serving))
		}
		if n := serving[0].ContextMap()["unreconciled-blocks"]; (n == int64(0)) != leaves {
			t.Errorf("left %v, and %v blocks are to be compared", leaves, n)
		}
		detach(t, a)
		c.compare()
	}
}

// TestLeaveUnsettled: a volume that cannot be flushed is left in bounded time.
func TestLeaveUnsettled(t *testing.T) {
	c := newTestCluster(t, 16<<20)
	a, b := c.nodes[0], c.nodes[1]
	v := a.attach()
	c.net.Hold(a.id, b.id)
	defer c.net.Resume(a.id, b.id)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := a.m.Leave(ctx, c.vol); !errors.Is(err, replication.ErrStalled) {
		t.Errorf("left with %v", err)
	}
	<-v.Dead()
	if err := a.m.Leave(t.Context(), c.vol); err != nil {
		t.Errorf("once more: %v", err)
	}
}
