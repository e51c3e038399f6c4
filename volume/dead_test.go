package volume

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"go.uber.org/zap"
	"google.golang.org/grpc"

	"github.com/tandem-storage/tandem/clusterdomain"
	"github.com/tandem-storage/tandem/replication"
	"github.com/tandem-storage/tandem/volume/volumepb"
)

// enders are the nodes of a world as far as they end dead attachments.
type enders struct {
	w      *world
	serves map[replication.NodeID]bool // has its attachments still
	ended  []replication.NodeID        // who took one over and detached it
	asked  func()                      // before one that is asked by another node looks
}

// endersOf has these nodes serve what they have attached.
func endersOf(w *world, serve ...replication.NodeID) *enders {
	n := &enders{w: w, serves: map[replication.NodeID]bool{}}
	for _, s := range serve {
		n.serves[s] = true
	}
	return n
}

// ender is one of them.
type ender struct {
	Mover
	*enders
	node replication.NodeID
}

func (n ender) EndAttachment(ctx context.Context, v replication.VolumeID, dead replication.Coord) error {
	if n.serves[n.node] {
		return fmt.Errorf("%w: node %s has it", ErrAttached, n.node)
	}
	c, d := n.w.configs(n.w.store), replication.DomainID(strings.TrimPrefix(string(n.node), "n-"))
	cfg, rev, err := c.Load(ctx, v)
	if err != nil || cfg.Coord == nil || *cfg.Coord != dead {
		return err
	}
	cfg = elect(cfg, d)
	for _, next := range []func(*replication.Config) *replication.Config{activate, detach} {
		if rev, err = c.CompareAndSwap(ctx, rev, cfg, d); err != nil {
			return err
		}
		cfg = next(cfg)
	}
	if _, err = c.CompareAndSwap(ctx, rev, cfg, d); err == nil {
		n.ended = append(n.ended, n.node)
	}
	return err
}

// line is a connection with a node.
type line struct {
	volumepb.HandoversClient
	*enders
	to *Switcher
}

func (l line) EndAttachment(ctx context.Context, r *volumepb.EndAttachmentRequest, _ ...grpc.CallOption) (*volumepb.EndAttachmentResponse, error) {
	if l.asked != nil {
		l.asked()
	}
	return l.to.EndAttachment(ctx, r)
}

func (n *enders) switcher(node replication.NodeID) *Switcher {
	return &Switcher{
		Catalogue: n.w.catalogue(n.w.store), Node: node, Mover: ender{enders: n, node: node}, Logger: zap.NewNop(),
		Dial: func(to clusterdomain.Node) (volumepb.HandoversClient, func() error, error) {
			return line{enders: n, to: n.switcher(replication.NodeID(to.Name))}, func() error { return nil }, nil
		},
	}
}

func (n *enders) server(node replication.NodeID) *Server {
	return NewServer(n.w.catalogue(n.w.store), ServerOptions{
		Node: node, Runtime: runtime{n.w.configs(n.w.store), new(Verify)}, Orphans: func() []LocalReplica { return nil }, Switcher: n.switcher(node),
	})
}

// TestDeadAttachment deletes a volume, takes its promise back, and promises and attaches it elsewhere, while its configuration names an attachment on n-a.
func TestDeadAttachment(t *testing.T) {
	for _, tc := range []struct {
		name    string
		serves  bool                                                               // n-a has the attachment still
		gone    []string                                                           // nodes that do not answer
		alone   bool                                                               // only n-a is in sync
		states  map[string]clusterdomain.State                                     // of domains that are not ACTIVE
		change  func(w *world, cfg *replication.Config) (next *replication.Config) // of the configuration, past all rules
		by      replication.NodeID                                                 // ends it; "": nobody may
		says    string
		refused error
	}{
		{name: "served", serves: true, refused: ErrAttached, says: "node n-a has it"},
		{name: "came back without it", by: "n-a"},
		{name: "came back without it, alone in sync", alone: true, by: "n-a"},
		{name: "silent", gone: []string{"n-a"}, by: "n-b"},
		{name: "silent, though it runs", serves: true, gone: []string{"n-a"}, by: "n-b"},
		{name: "silent, alone in sync", gone: []string{"n-a"}, alone: true, refused: replication.ErrNoInSyncReplica, says: "start n-a"},
		{name: "both silent", gone: []string{"n-a", "n-b"}, refused: replication.ErrNoInSyncReplica, says: "start n-a or n-b"},
		{name: "its domain is fenced", states: map[string]clusterdomain.State{"a": clusterdomain.Fenced}, by: "n-b"},
		{name: "its domain is drained", states: map[string]clusterdomain.State{"a": clusterdomain.Draining}, refused: replication.ErrBusy},
		{name: "silent, the other domain on standby", gone: []string{"n-a"}, states: map[string]clusterdomain.State{"b": clusterdomain.Standby}, refused: ErrDomainNotActive},
		{name: "on its way from b", change: func(_ *world, cfg *replication.Config) *replication.Config {
			next := elect(cfg, "a")
			next.Coord.From = replication.Handover{Node: "n-b", AttachID: replication.AttachID(replication.NewUUID()), Term: 1}
			return next
		}, refused: ErrAttached, says: "handed over from node n-b"},
		{name: "stopped on its way from one that is lost", gone: []string{"n-b"}, change: func(_ *world, cfg *replication.Config) *replication.Config {
			next := elect(cfg, "a")
			next.Coord.From = replication.Handover{Node: "n-b", AttachID: replication.AttachID(replication.NewUUID()), Term: 1}
			return next
		}, by: "n-a"},
	} {
		for _, asked := range []replication.NodeID{"n-a", "n-b", "n-c"} {
			for _, order := range []string{"delete", "delete as seen", "unpublish", "publish", "attach"} {
				if order == "attach" && asked != "n-b" || order == "publish" && slices.Contains(tc.gone, "n-b") || slices.Contains(tc.gone, string(asked)) {
					continue
				}
				t.Run(fmt.Sprintf("%s/%s/%s", tc.name, order, asked), func(t *testing.T) {
					w := newWorld(t, "a", "b", "c")
					w.follows = true
					e := w.create(Request{Name: "v", Size: gib, Replicas: 2, Domains: []string{"a", "b"}})
					c, n := w.catalogue(w.store), endersOf(w)
					if order == "unpublish" {
						wantErr(t, c.Publish(t.Context(), e.ID, "n-a", false), nil)
					}
					c.attachAs(t, e.ID, "a")
					if tc.alone {
						c.swapAs(t, e.ID, "a", func(cfg *replication.Config) *replication.Config { return evict(cfg, "b") })
					}
					cfg, _, err := c.configs.Load(t.Context(), e.ID)
					wantErr(t, err, nil)
					if tc.change != nil {
						cfg = tc.change(w, cfg)
						w.putConfig(cfg)
					}
					n.serves["n-a"] = tc.serves
					for i := range w.view.Nodes {
						w.view.Nodes[i].Online = !slices.Contains(tc.gone, w.view.Nodes[i].Name)
					}
					for d, s := range tc.states {
						w.setDomain(d, s)
					}
					was := uint64(cfg.Epoch)
					s := n.server(asked)
					switch order {
					case "delete":
						_, err = s.DeleteVolume(t.Context(), &volumepb.DeleteVolumeRequest{Volume: "v"})
					case "delete as seen":
						stale := was - 1
						_, err = s.DeleteVolume(t.Context(), &volumepb.DeleteVolumeRequest{Volume: "v", ExpectedEpoch: &stale})
						wantErr(t, err, ErrConflict)
						_, err = s.DeleteVolume(t.Context(), &volumepb.DeleteVolumeRequest{Volume: "v", ExpectedEpoch: &was})
					case "unpublish":
						_, err = s.UnpublishVolume(t.Context(), &volumepb.UnpublishVolumeRequest{Volume: "v", Node: "n-a"})
					case "publish":
						_, err = s.PublishVolume(t.Context(), &volumepb.PublishVolumeRequest{Volume: "v", Node: "n-b"})
					case "attach":
						_, err = s.AttachVolume(t.Context(), &volumepb.AttachVolumeRequest{Volume: "v"})
					}
					now, _, loadErr := c.configs.Load(t.Context(), e.ID)
					wantErr(t, loadErr, nil)
					allowed := slices.Contains(tc.gone, "n-a") || tc.states["a"] == clusterdomain.Fenced
					if order != "delete" && order != "delete as seen" && allowed {
						return // needs no end of it
					}
					if tc.by == "" {
						if err == nil || !errors.Is(err, tc.refused) || !strings.Contains(err.Error(), tc.says) {
							t.Errorf("error %v, want %v that says %q", err, tc.refused, tc.says)
						}
						if len(n.ended) > 0 || now.Coord == nil || *now.Coord != *cfg.Coord || now.Epoch != cfg.Epoch {
							t.Errorf("a refusal has changed the configuration: %+v, ended by %v", now, n.ended)
						}
						return
					}
					if err != nil {
						t.Fatal(err)
					}
					if !slices.Equal(n.ended, []replication.NodeID{tc.by}) {
						t.Errorf("ended by %v, want %v", n.ended, tc.by)
					}
					if now.Coord != nil && order != "attach" {
						t.Errorf("still attached: %+v", now.Coord)
					}
					if trail := trailOf(t, w); !slices.ContainsFunc(trail, func(s string) bool { return strings.Contains(s, "attachment end") }) {
						t.Errorf("not in the audit trail: %v", trail)
					}
				})
			}
		}
	}
}

// TestDeadAttachmentRevived: what is attached anew between the question and the answer is left alone, and so is one that has begun to serve.
func TestDeadAttachmentRevived(t *testing.T) {
	for _, serves := range []bool{false, true} {
		w := newWorld(t, "a", "b")
		e := w.create(Request{Name: "v", Size: gib, Replicas: 2})
		c, n := w.catalogue(w.store), endersOf(w)
		c.attachAs(t, e.ID, "a")
		n.asked = func() {
			n.asked = nil
			c.swapAs(t, e.ID, "a", func(cfg *replication.Config) *replication.Config { return elect(cfg, "a") })
			c.swapAs(t, e.ID, "a", activate)
			n.serves["n-a"] = serves
		}
		_, err := n.server("n-b").DeleteVolume(t.Context(), &volumepb.DeleteVolumeRequest{Volume: "v"})
		wantErr(t, err, ErrAttached)
		if trail := trailOf(t, w); len(n.ended) > 0 || slices.ContainsFunc(trail, func(s string) bool { return strings.Contains(s, "attachment end") }) {
			t.Errorf("ended by %v, recorded %v", n.ended, trail)
		}
		if _, err := n.switcher("n-a").EndAttachment(t.Context(), &volumepb.EndAttachmentRequest{Volume: e.ID.String(), AttachId: []byte{1}}); !errors.Is(err, ErrInvalid) {
			t.Errorf("an attachment id of one byte: %v", err)
		}
	}
}

// TestDetachOfADeadAttachment: who detaches a volume on a node that was started again and has nothing of it leaves it detached, and is not held up where that cannot be done.
func TestDetachOfADeadAttachment(t *testing.T) {
	w := newWorld(t, "a", "b")
	w.follows = true
	e := w.create(Request{Name: "v", Size: gib, Replicas: 2})
	c, n := w.catalogue(w.store), endersOf(w)
	s := n.server("n-a")
	s.o.Runtime = idle{s.o.Runtime}
	c.attachAs(t, e.ID, "a")
	w.setDomain("a", clusterdomain.Draining)
	r, err := s.DetachVolume(t.Context(), &volumepb.DetachVolumeRequest{Volume: "v"})
	wantErr(t, err, nil)
	if r.Volume.Phase != volumepb.Phase_PHASE_ACTIVE || len(n.ended) > 0 {
		t.Errorf("in a domain that attaches nothing it is %v, ended by %v", r.Volume.Phase, n.ended)
	}
	w.setDomain("a", clusterdomain.Active)
	r, err = s.DetachVolume(t.Context(), &volumepb.DetachVolumeRequest{Volume: "v"})
	wantErr(t, err, nil)
	if r.Volume.Phase != volumepb.Phase_PHASE_DETACHED || !slices.Equal(n.ended, []replication.NodeID{"n-a"}) {
		t.Errorf("it is %v, ended by %v", r.Volume.Phase, n.ended)
	}
}

// idle has nothing attached.
type idle struct{ Runtime }

func (idle) Detach(context.Context, replication.VolumeID) error { return nil }

// gone takes snapshots where a volume is attached, unless its node has nothing of it.
type gone struct {
	*fakeTaker
	n *enders
}

func (g gone) Take(ctx context.Context, n replication.NodeID, v replication.VolumeID, id replication.SnapshotID, attach bool) ([]replication.ReplicaID, error) {
	if !attach && !g.n.serves[n] {
		return nil, fmt.Errorf("%w: %w", replication.ErrNotCut, replication.ErrNotCoordinator)
	}
	return g.fakeTaker.Take(ctx, n, v, id, attach)
}

// TestSnapshotOfADeadAttachment: a volume that counts as attached at a node that has nothing of it any more is detached for a snapshot. One whose node does not answer is not.
func TestSnapshotOfADeadAttachment(t *testing.T) {
	for _, tc := range []struct {
		name    string
		serves  bool
		silent  bool
		ended   int
		refused error
	}{
		{name: "served", serves: true},
		{name: "came back without it", ended: 1},
		{name: "silent", silent: true, refused: replication.ErrNotCut},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t, "a", "b")
			w.follows = true
			e := w.create(Request{Name: "v", Size: gib, Replicas: 2})
			c, n := w.catalogue(w.store), endersOf(w)
			c.attachAs(t, e.ID, "a")
			n.serves["n-a"] = tc.serves
			w.view.Nodes[0].Online = !tc.silent
			s := NewSnapshotServer(c, gone{&fakeTaker{w: w}, n}, diskSpace{w}, nil, n.switcher("n-b"))
			r, err := s.CreateSnapshot(t.Context(), &volumepb.CreateSnapshotRequest{Volume: "v", Name: "s"})
			wantErr(t, err, tc.refused)
			if len(n.ended) != tc.ended || err == nil && r.Snapshot.State != volumepb.SnapshotState_SNAPSHOT_STATE_READY {
				t.Errorf("ended by %v, %v", n.ended, r)
			}
		})
	}
}
