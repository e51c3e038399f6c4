package volume

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"time"

	"github.com/tandem-storage/tandem/datapath/block"
	"github.com/tandem-storage/tandem/replication"
)

// prepare names an attachment on n.
func (n *testNode) prepare() replication.Coord {
	return replication.Coord{Node: n.id, Domain: n.dom, Boot: n.boot, AttachID: replication.AttachID(replication.NewUUID())}
}

// take attaches on n what was handed over to it.
func (n *testNode) take(ctx context.Context, to replication.Coord, g Given) error {
	_, err := n.m.Attach(ctx, n.c.vol, AttachOptions{Named: to.AttachID, Given: g})
	return err
}

// TestHandOver: a volume goes there and back, and what is asked meanwhile is held and told of nobody but who ends the showing.
func TestHandOver(t *testing.T) {
	c := newTestCluster(t, 16<<20)
	at, v := 0, c.nodes[0].attach()
	for i := range 4 {
		from, other := c.nodes[at], c.nodes[1-at]
		want := bytes.Repeat([]byte{byte(i + 1)}, 8192)
		if err := block.WriteAt(v, want, 4096, 0); err != nil {
			t.Fatal(err)
		}
		noted, held := false, make(chan error, 1)
		v.BeforeEnd(func(err error) {
			noted = errors.Is(err, replication.ErrHandedOver) && len(held) == 0
		})
		to := other.prepare()
		h, err := from.m.HandOver(t.Context(), c.vol, HandoverOptions{To: to, Take: func(ctx context.Context, g Given) error {
			if v.InForce() != nil {
				t.Error("it serves when another node is named")
			}
			go func() { held <- block.WriteAt(v, want, 1<<20, 0) }()
			loads := c.kv.loaded()
			err := other.take(ctx, to, g)
			if c.kv.loaded() != loads {
				t.Error("the configuration was read though it was sent")
			}
			return err
		}})
		if err != nil || h.Hold <= 0 || h.Drained > h.Hold {
			t.Fatal(h, err)
		}
		if err := <-held; !errors.Is(err, replication.ErrHandedOver) && !errors.Is(err, block.ErrClosed) {
			t.Fatalf("a request that was held ended with %v", err)
		}
		if !noted || !errors.Is(v.Err(), replication.ErrHandedOver) || from.m.Volume(c.vol) != nil {
			t.Fatalf("noted first %v, ended with %v", noted, v.Err())
		}
		at, v = 1-at, other.m.Volume(c.vol)
		got := make([]byte, len(want))
		if err := block.ReadAt(v, got, 4096); err != nil || !bytes.Equal(got, want) {
			t.Fatal("what was acknowledged is not there", err)
		}
		if s := v.Status(); s.Unreconciled != 0 || v.AttachID() != to.AttachID || s.Config.Epoch != replication.Epoch(s.Term)+1 {
			t.Errorf("attachment %s, epoch %d, term %d, %d bytes to compare", v.AttachID(), s.Config.Epoch, s.Term, s.Unreconciled)
		}
	}
	c.awaitInSync(2)
	c.compare()
}

// TestTakeBack: a volume whose other coordinator does not come to serve goes on, under the same attachment, and what was held is carried out.
func TestTakeBack(t *testing.T) {
	lost := errors.New("answer lost")
	for _, tc := range []struct {
		name  string
		take  func(ctx context.Context, n *testNode, to replication.Coord, g Given) error
		moved bool
	}{
		{"refused", func(context.Context, *testNode, replication.Coord, Given) error { return lost }, false},
		{"silent", func(ctx context.Context, _ *testNode, _ replication.Coord, _ Given) error {
			<-ctx.Done()
			return ctx.Err()
		}, false},
		{"late", func(ctx context.Context, n *testNode, to replication.Coord, g Given) error {
			n.c.t.Cleanup(func() {
				if err := n.take(context.Background(), to, g); !errors.Is(err, replication.ErrNotCoordinator) {
					n.c.t.Errorf("taken though it was taken back: %v", err)
				}
			})
			return lost
		}, false},
		{"served and not told", func(ctx context.Context, n *testNode, to replication.Coord, g Given) error {
			return errors.Join(n.take(ctx, to, g), lost)
		}, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := newTestCluster(t, 16<<20)
			a, b := c.nodes[0], c.nodes[1]
			a.m.o.Timing.Handover = 300 * time.Millisecond
			v := a.attach()
			id, held, to := v.AttachID(), make(chan error, 1), b.prepare()
			_, err := a.m.HandOver(t.Context(), c.vol, HandoverOptions{To: to, Take: func(ctx context.Context, g Given) error {
				go func() { held <- block.WriteAt(v, bytes.Repeat([]byte{9}, 4096), 0, 0) }()
				return tc.take(ctx, b, to, g)
			}})
			if tc.moved {
				if err != nil || !errors.Is(v.Err(), replication.ErrHandedOver) || b.m.Volume(c.vol) == nil {
					t.Fatal(err, v.Err())
				}
				<-held
				return
			}
			if !errors.Is(err, replication.ErrStalled) || a.m.Volume(c.vol) != v || c.kv.config().Coord.AttachID != id {
				t.Fatalf("%v; coordinator %+v, want attachment %s", err, c.kv.config().Coord, id)
			}
			if err := <-held; err != nil {
				t.Fatal("what was held failed:", err)
			}
			got := make([]byte, 4096)
			if err := block.ReadAt(v, got, 0); err != nil || got[0] != 9 {
				t.Fatal("what was held is not there:", err)
			}
			c.awaitInSync(2)
			c.compare()
			detach(t, a)
		})
	}
}

// TestNotHandedOver: without the kvdb nothing is given away, and nobody notices.
func TestNotHandedOver(t *testing.T) {
	c := newTestCluster(t, 16<<20)
	a, b := c.nodes[0], c.nodes[1]
	v := a.attach()
	c.kv.refuse(ErrNotSent)
	_, err := a.m.HandOver(t.Context(), c.vol, HandoverOptions{To: b.prepare(), Take: func(context.Context, Given) error {
		t.Error("the other one is asked to take what it was not given")
		return nil
	}})
	if err == nil || v.InForce() == nil {
		t.Fatal(err)
	}
	if err := block.WriteAt(v, make([]byte, 4096), 0, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := b.m.HandOver(t.Context(), c.vol, HandoverOptions{}); !errors.Is(err, replication.ErrNotCoordinator) {
		t.Fatal(err)
	}
}
