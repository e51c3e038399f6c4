package volume

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tandem-storage/tandem/replication"
	"github.com/tandem-storage/tandem/replication/core"
)

// keeper tells a volume that it is in a group, from which nobody else has left anything, until it is out.
type keeper struct {
	m   *Manager
	out atomic.Bool
}

func (*keeper) Grouped(context.Context, replication.VolumeID) (bool, error) { return true, nil }

func (k *keeper) Changed(id replication.VolumeID) { go k.tell(id) }

func (k *keeper) tell(id replication.VolumeID) {
	v := k.m.Volume(id)
	if v == nil {
		return
	}
	st, err := v.GroupStatus(context.Background())
	if err != nil {
		return
	}
	g := replication.GroupOrder{}
	if !k.out.Load() {
		g = replication.GroupOrder{In: true, Term: st.Term}
	}
	_, _ = v.SetGroup(context.Background(), g) // it may have ended
}

// TestOutOfTheGroup takes a volume out of its group while it is attached, when it is served, while it is detached, and while a detach waits for the
// others to leave a domain. It waits for nobody then, however long it would have.
func TestOutOfTheGroup(t *testing.T) {
	c := newTestCluster(t, 16<<20)
	a := c.nodes[0].m
	k := &keeper{m: a}
	a.o.Groups, a.o.Timing.Group = k, time.Hour
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	detach := func() {
		t.Helper()
		if err := a.Detach(ctx, c.vol); err != nil {
			t.Fatal(err)
		}
	}
	attach := func(out bool) {
		t.Helper()
		k.out.Store(out)
		if _, err := a.Attach(ctx, c.vol, AttachOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	for range 20 {
		attach(true)
		detach()
		attach(false)
		k.out.Store(true)
		k.tell(c.vol)
		detach()
		attach(false)
		k.out.Store(true)
		k.Changed(c.vol)
		detach()
	}
	attach(false)
	v := a.Volume(c.vol)
	c.fence("b", true)
	c.eventually("acknowledgements wait for the group", func() bool { return v.Status().Stall == core.StallGroup })
	done := make(chan error, 1)
	go func() { done <- a.Detach(ctx, c.vol) }()
	c.eventually("the detach has begun", func() bool { return v.Status().Detaching })
	k.out.Store(true)
	k.tell(c.vol)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}
