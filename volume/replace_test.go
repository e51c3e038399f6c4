package volume

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tandem-storage/tandem/clusterdomain"
	"github.com/tandem-storage/tandem/kvdb"
	"github.com/tandem-storage/tandem/replication"
)

// spare adds a node without replicas to a domain.
func (w *world) spare(node, domain string) {
	w.disks[node] = newDisks()
	w.view.Nodes = append(w.view.Nodes, clusterdomain.Node{
		Name: node, Domain: domain, Online: true, Address: node + ":1",
		Pools: []clusterdomain.Pool{{UUID: "pool-" + node, Path: "/p", Total: 50 * gib}},
	})
}

// reconfigure writes a configuration past the catalogue, as a coordinator that is not of this test.
func (w *world) reconfigure(id replication.VolumeID, change func(cfg *replication.Config)) {
	w.t.Helper()
	c := w.configs(w.store)
	cfg, _, err := c.Load(context.Background(), id)
	if err != nil {
		w.t.Fatal(err)
	}
	next := nextConfig(cfg, cfg.Phase, "test")
	change(next)
	op, err := put(c.keys.config(id), next)
	if err != nil {
		w.t.Fatal(err)
	}
	if _, err := kvdb.Put(context.Background(), w.store, op.Key, op.Value); err != nil {
		w.t.Fatal(err)
	}
}

// fault lets the replica in the domain leave the in-sync set for good, and returns it.
func (w *world) fault(id replication.VolumeID, d replication.DomainID) (r replication.ReplicaID) {
	w.t.Helper()
	w.reconfigure(id, func(cfg *replication.Config) {
		r = member(cfg, d)
		m := cfg.Members[r]
		m.State, m.Reason, m.LeftEpoch, m.LeftGen = replication.MemberFaulted, "disk failed", cfg.Epoch-1, 7
		cfg.Members[r] = m
		cfg.ISR = []replication.ReplicaID{member(cfg, "a")}
	})
	return r
}

func (w *world) get(id replication.VolumeID) *Entry {
	w.t.Helper()
	e, err := w.catalogue(w.store).Get(context.Background(), id)
	if err != nil {
		w.t.Fatal(err)
	}
	return e
}

// newWorldWithFault has a volume v of which the replica in b is FAULTED.
func newWorldWithFault(t *testing.T) (*world, *Entry, replication.ReplicaID) {
	w := newWorld(t, "a", "b")
	e := w.create(Request{Name: "v", Size: gib, Replicas: 2})
	return w, e, w.fault(e.ID, "b")
}

// checkReplaced fails unless the volume has a new STALE replica without history on the node, and nothing is left of the old one.
func (w *world) checkReplaced(id replication.VolumeID, old replication.ReplicaID, node string) {
	w.t.Helper()
	w.checkWhole()
	e := w.get(id)
	if len(e.Config.Members) != 2 || len(e.Placed) != 2 || e.Replacing != nil || len(e.Retired) != 0 || len(e.Config.ISR) != 1 {
		w.t.Fatalf("spec %+v, configuration %+v", e.Spec, e.Config)
	}
	if _, there := e.Config.Members[old]; there {
		w.t.Error("the old replica is a member")
	}
	r := member(e.Config, "b")
	if m := e.Config.Members[r]; m.State != replication.MemberStale || string(m.Node) != node || m.LeftEpoch != 0 || m.LeftGen != 0 || m.Reason == "" {
		w.t.Errorf("the new replica is %+v", m)
	}
	if h := e.Config.History[len(e.Config.History)-1]; h.Cause != "replica replaced" || h.Epoch != e.Config.Epoch {
		w.t.Errorf("history ends with %+v", h)
	}
}

func TestReplaceOnTheSameNode(t *testing.T) {
	w, e, old := newWorldWithFault(t)
	c := w.catalogue(w.store)
	for range 2 { // idempotent
		if err := c.Replace(t.Context(), e.ID, ReplaceRequest{Replica: "n-b"}); err != nil {
			t.Fatal(err)
		}
	}
	if got := w.get(e.ID); got.Replacing == nil || !strings.Contains(got.Progress(), "has to make it") {
		t.Errorf("progress %q", got.Progress())
	}
	w.settle("n-a", "n-b")
	w.checkReplaced(e.ID, old, "n-b")
	wantErr(t, c.Replace(t.Context(), e.ID, ReplaceRequest{Replica: old.String()}), ErrReplicaNotFound)
}

// TestReplaceElsewhere: another pool goes before the old one, and asking for another place takes the first one back.
func TestReplaceElsewhere(t *testing.T) {
	w, e, old := newWorldWithFault(t)
	w.spare("n-b2", "b")
	w.spare("n-b3", "b")
	w.spare("n-a2", "a")
	c := w.catalogue(w.store)
	if err := c.Replace(t.Context(), e.ID, ReplaceRequest{Replica: old.String()}); err != nil {
		t.Fatal(err)
	}
	if n := w.get(e.ID).Replacing.New.Node; n != "n-b2" {
		t.Errorf("it goes to %s", n)
	}
	w.reconfigure(e.ID, func(cfg *replication.Config) {
		cfg.Phase, cfg.Coord = replication.PhaseActive, &replication.Coord{Node: "n-a"}
	})
	w.settle("n-b2") // makes it, and waits
	if len(w.disks["n-b2"].m) != 1 {
		t.Fatal("the new replica is not made while the volume is attached")
	}
	if err := c.Replace(t.Context(), e.ID, ReplaceRequest{Replica: "n-b", Node: "n-b3"}); err != nil {
		t.Fatal(err)
	}
	w.settle("n-b2", "n-b3", "n-b", "n-a")
	if cfg := w.get(e.ID).Config; cfg.Members[old].State != replication.MemberFaulted {
		t.Errorf("exchanged under a coordinator: %+v", cfg)
	}
	if len(w.disks["n-b2"].m) != 0 {
		t.Error("what was taken back is still there")
	}
	if p := w.get(e.ID).Progress(); !strings.Contains(p, "when the volume is detached") {
		t.Errorf("progress %q", p)
	}
	w.reconfigure(e.ID, func(cfg *replication.Config) { cfg.Phase, cfg.Coord = replication.PhaseDetached, nil })
	w.settle("n-b2", "n-b3", "n-b", "n-a")
	w.checkReplaced(e.ID, old, "n-b3")
}

func TestReplaceRefuses(t *testing.T) {
	w, e, old := newWorldWithFault(t)
	w.spare("n-b2", "b")
	w.spare("n-a2", "a")
	c := w.catalogue(w.store)
	for _, tc := range []struct {
		name string
		set  func()
		r    ReplaceRequest
		want error
		text string
	}{
		{"the last in-sync replica", nil, ReplaceRequest{Replica: "n-a"}, ErrReplicaInSync, "n-a"},
		{"no such replica", nil, ReplaceRequest{Replica: "n-b2"}, ErrReplicaNotFound, "n-b2"},
		{"another domain", nil, ReplaceRequest{Replica: "n-b", Node: "n-a2"}, ErrNoRoom, "domain b only"},
		{"a pool of another node", nil, ReplaceRequest{Replica: "n-b", Node: "n-b2", Pool: "pool-b"}, ErrNoRoom, "pool-b"},
		{"all offline", func() {
			for i := range w.view.Nodes {
				w.view.Nodes[i].Online = w.view.Nodes[i].Domain == "a"
			}
		}, ReplaceRequest{Replica: "n-b"}, ErrTooFewNodes, "offline"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if tc.set != nil {
				tc.set()
			}
			err := c.Replace(t.Context(), e.ID, tc.r)
			wantErr(t, err, tc.want)
			if !strings.Contains(err.Error(), tc.text) {
				t.Errorf("%q does not say %q", err, tc.text)
			}
		})
	}
	if got := w.get(e.ID); got.Replacing != nil || got.Config.Members[old].State != replication.MemberFaulted {
		t.Errorf("something was changed: %+v", got)
	}
	wantErr(t, c.Replace(t.Context(), replication.VolumeID(replication.NewUUID()), ReplaceRequest{Replica: "n-b"}), replication.ErrVolumeNotFound)
}

// TestReplaceKeepsToPlacement: no node gets a second replica.
func TestReplaceKeepsToPlacement(t *testing.T) {
	w := newWorld(t, "a", "b")
	w.spare("n-b2", "b")
	w.domains = append(w.domains, "b2") // its node creates, too
	e := w.create(Request{Name: "v", Size: gib, Replicas: 3})
	w.reconfigure(e.ID, func(cfg *replication.Config) {
		cfg.ISR = []replication.ReplicaID{member(cfg, "a")}
		for r, m := range cfg.Members {
			if m.Domain == "b" {
				m.State = replication.MemberStale
				cfg.Members[r] = m
			}
		}
	})
	c := w.catalogue(w.store)
	err := c.Replace(t.Context(), e.ID, ReplaceRequest{Replica: "n-b", Node: "n-b2"})
	wantErr(t, err, ErrNoRoom)
	if !strings.Contains(err.Error(), "another replica of the volume") {
		t.Error(err)
	}
	if err := c.Replace(t.Context(), e.ID, ReplaceRequest{Replica: "n-b"}); err != nil {
		t.Fatal(err)
	}
	wantErr(t, c.Replace(t.Context(), e.ID, ReplaceRequest{Replica: "n-b2"}), ErrConflict)
}

// TestReplaceInSyncAgain: a replica that has come back in sync is kept, and its successor removed.
func TestReplaceInSyncAgain(t *testing.T) {
	w, e, old := newWorldWithFault(t)
	w.spare("n-b2", "b")
	if err := w.catalogue(w.store).Replace(t.Context(), e.ID, ReplaceRequest{Replica: "n-b"}); err != nil {
		t.Fatal(err)
	}
	w.reconfigure(e.ID, func(cfg *replication.Config) {
		m := cfg.Members[old]
		m.State = replication.MemberInSync
		cfg.Members[old] = m
		cfg.ISR = append(cfg.ISR, old)
	})
	w.settle("n-b2", "n-b", "n-a")
	w.checkWhole()
	if got := w.get(e.ID); !got.Config.InISR(old) || got.Replacing != nil || len(w.disks["n-b2"].m) != 0 {
		t.Errorf("%+v, %+v", got.Spec, got.Config)
	}
}

// TestReplaceThenDelete: nothing of a replacement outlives the volume.
func TestReplaceThenDelete(t *testing.T) {
	for _, made := range []bool{false, true} {
		w, e, _ := newWorldWithFault(t)
		w.spare("n-b2", "b")
		c := w.catalogue(w.store)
		if err := c.Replace(t.Context(), e.ID, ReplaceRequest{Replica: "n-b"}); err != nil {
			t.Fatal(err)
		}
		if made {
			w.disks["n-b2"].makeErr = context.DeadlineExceeded // begun, not finished
			if err := w.reconciler(w.store, "n-b2").Reconcile(t.Context()); err == nil {
				t.Fatal("made")
			}
		}
		if err := c.Delete(t.Context(), e.ID); err != nil {
			t.Fatal(err)
		}
		w.settle("n-a", "n-b", "n-b2")
		if es := w.checkWhole(); len(es) != 0 {
			t.Errorf("left: %+v", es)
		}
	}
}

// TestReplicaNeverMadeAnew: what a volume has is made only before it is a member. A replica that is gone from its disk
// stays gone: an empty one would stand where the configuration believes data.
func TestReplicaNeverMadeAnew(t *testing.T) {
	w, e, old := newWorldWithFault(t)
	if err := w.catalogue(w.store).Replace(t.Context(), e.ID, ReplaceRequest{Replica: "n-b"}); err != nil {
		t.Fatal(err)
	}
	w.settle("n-b")
	w.checkReplaced(e.ID, old, "n-b")
	for _, n := range []string{"n-a", "n-b"} {
		clear(w.disks[n].m)
		w.settle(n)
		if len(w.disks[n].m) != 0 {
			t.Errorf("a replica was made on %s", n)
		}
	}
}

// TestReplacerDies cuts the node of the new replica off after every single call to the store, with the last one carried
// out and not. The replacement is done when it is back, and no member is missing on its disk at any time.
func TestReplacerDies(t *testing.T) {
	for _, late := range []bool{false, true} {
		for n := int64(1); ; n++ {
			finished := false
			t.Run(fmt.Sprintf("late=%v/call=%d", late, n), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					w, e, old := newWorldWithFault(t)
					w.spare("n-b2", "b")
					f := &filter{Store: w.store, cutAt: n, cutLate: late}
					ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
					defer cancel()
					var wg sync.WaitGroup
					wg.Go(func() { w.reconciler(f, "n-b2").Run(ctx) })
					wg.Go(func() { w.reconciler(w.store, "n-b").Run(ctx) })
					c := w.catalogue(f)
					err := c.Replace(ctx, e.ID, ReplaceRequest{Replica: "n-b"})
					if err == nil {
						err = c.waitReplaced(ctx, e.ID)
					}
					finished = err == nil
					cancel()
					wg.Wait()
					got := w.get(e.ID)
					for r, m := range got.Config.Members {
						if _, there := w.disks[string(m.Node)].m[LocalReplica{e.ID, r, m.Pool}]; !there {
							t.Errorf("member %+v is on no disk", m)
						}
					}
					if err := w.catalogue(w.store).Replace(t.Context(), e.ID, ReplaceRequest{Replica: "n-b"}); err != nil && !strings.Contains(err.Error(), ErrReplicaNotFound.Error()) {
						t.Fatal(err)
					}
					w.settle("n-b2", "n-b", "n-a")
					w.checkReplaced(e.ID, old, "n-b2")
				})
			})
			if finished || t.Failed() {
				break
			}
			if n > 200 {
				t.Fatal("the replacement never ends")
			}
		}
	}
}
