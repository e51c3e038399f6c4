package volume

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/tandem-storage/tandem/clusterdomain"
	"github.com/tandem-storage/tandem/clusterdomain/arbiter"
	"github.com/tandem-storage/tandem/kvdb"
	"github.com/tandem-storage/tandem/replication"
)

// TestUnreadableRecord: a volume of which a record cannot be read is left alone and named; the others are listed, made
// and deleted as if it were not there, its replicas are nobody's orphans, and its records stay.
func TestUnreadableRecord(t *testing.T) {
	for _, which := range []string{"spec", "config", "report"} {
		t.Run(which, func(t *testing.T) {
			w := newWorld(t, "a", "b")
			ill, well := w.create(Request{Name: "ill", Size: gib, Replicas: 2}), w.create(Request{Name: "well", Size: gib, Replicas: 2})
			c := w.catalogue(w.store)
			key := map[string]string{"spec": c.keys.spec(ill.ID), "config": c.keys.config(ill.ID), "report": c.keys.made(ill.ID) + "x"}[which]
			if _, err := kvdb.Put(t.Context(), w.store, key, []byte(`{"version":`)); err != nil {
				t.Fatal(err)
			}
			es, err := c.List(t.Context())
			if err != nil || len(es) != 1 || es[0].Name != "well" {
				t.Errorf("list: %v, %v", es, err)
			}
			if _, err := c.Get(t.Context(), ill.ID); !errors.Is(err, ErrBadRecord) {
				t.Errorf("get: %v", err)
			}
			if err := c.Delete(t.Context(), ill.ID); which != "report" && !errors.Is(err, ErrBadRecord) {
				t.Errorf("delete: %v", err)
			}
			if err := c.Delete(t.Context(), well.ID); err != nil {
				t.Fatal(err)
			}
			seen, logs := observer.New(zap.WarnLevel)
			for _, n := range []string{"n-a", "n-b"} {
				r := w.reconciler(w.store, n)
				r.lg = zap.New(seen)
				for range 3 {
					if err := r.Reconcile(t.Context()); err != nil {
						t.Fatal(err)
					}
				}
				if len(r.Orphans()) != 0 {
					t.Errorf("orphans: %v", r.Orphans())
				}
				named := logs.FilterMessage("volume left alone, a record of it cannot be read").Len()
				if want := map[bool]int{true: 0, false: 1}[which == "config"]; named != want { // the configurations' watch names it
					t.Errorf("named %d times, want %d", named, want)
				}
				logs.TakeAll()
			}
			if _, err := c.Resolve(t.Context(), "well"); !errors.Is(err, replication.ErrVolumeNotFound) {
				t.Errorf("the other was not deleted: %v", err)
			}
			if len(w.disks["n-a"].m) != 1 || len(w.disks["n-b"].m) != 1 {
				t.Errorf("replicas: %v, %v", w.disks["n-a"].m, w.disks["n-b"].m)
			}
			if kv, err := w.store.Get(t.Context(), key); err != nil || string(kv.Value) != `{"version":` {
				t.Errorf("the record: %q, %v", kv.Value, err)
			}
		})
	}
}

// TestFactsOfFailover: who moves a volume is told, and what is not said is automatic, as in records from before there was a choice.
func TestFactsOfFailover(t *testing.T) {
	w := newWorld(t, "a", "b")
	w.create(Request{Name: "byhand", Size: gib, Replicas: 2, Failover: FailoverManual})
	w.create(Request{Name: "byitself", Size: gib, Replicas: 2, Failover: FailoverAutomatic})
	vols, err := NewDomainView(w.configs(w.store)).Facts(t.Context())
	if err != nil || len(vols) != 2 {
		t.Fatalf("%+v, %v", vols, err)
	}
	for _, v := range vols {
		if v.Manual != (v.Name == "byhand") || v.Epoch == 0 {
			t.Errorf("%+v", v)
		}
	}
	if err := (Request{Name: "x", Size: gib, Failover: "never"}).validate(); err == nil || !strings.Contains(err.Error(), "want automatic or manual") {
		t.Error(err)
	}
}

// TestUnreadableFacts: the gate knows of a volume that it cannot know, and lets no domain go that may hold all of it.
func TestUnreadableFacts(t *testing.T) {
	w := newWorld(t, "a", "b")
	ill := w.create(Request{Name: "ill", Size: gib, Replicas: 2})
	w.create(Request{Name: "well", Size: gib, Replicas: 2})
	view := NewDomainView(w.configs(w.store))
	damage := func(key string) []arbiter.Volume {
		t.Helper()
		if _, err := kvdb.Put(t.Context(), w.store, key, []byte("{")); err != nil {
			t.Fatal(err)
		}
		vols, err := view.Facts(t.Context())
		if err != nil || len(vols) != 2 {
			t.Fatalf("%+v, %v", vols, err)
		}
		slices.SortFunc(vols, func(a, b arbiter.Volume) int { return strings.Compare(a.Unreadable, b.Unreadable) })
		if vols[0].Name != "well" || vols[1].ID != ill.ID.String() || vols[1].Unreadable == "" {
			t.Fatalf("%+v", vols)
		}
		return vols
	}
	if vols := damage(view.c.keys.spec(ill.ID)); len(vols[1].Replicas) != 2 {
		t.Errorf("%+v", vols)
	}
	m := gateManager(t, w, view)
	if _, err := m.Deactivate(context.Background(), clusterdomain.Change{Domain: "a", PeerLost: true}); err != nil {
		t.Fatalf("a volume whose configuration is there: %v", err)
	}
	if vols := damage(view.c.keys.config(ill.ID)); len(vols[1].Replicas) != 0 {
		t.Errorf("%+v", vols)
	}
	_, err := m.Deactivate(context.Background(), clusterdomain.Change{Domain: "b"})
	wantErr(t, err, clusterdomain.ErrLastCopy)
	if !strings.Contains(err.Error(), ill.ID.String()) {
		t.Error(err)
	}
}
