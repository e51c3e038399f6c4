package volume

import (
	"strings"
	"testing"

	"github.com/tandem-storage/tandem/clusterdomain"
	"github.com/tandem-storage/tandem/kvdb"
	"github.com/tandem-storage/tandem/replication"
)

// before runs f once, before the first transaction through the filter that writes a key with the given part.
func (w *world) before(part string, f func()) *filter {
	fl := &filter{Store: w.store}
	fl.beforeTxn = func(t kvdb.Txn) {
		for _, op := range t.Then {
			if op.Kind == kvdb.OpPut && strings.Contains(op.Key, part) {
				fl.beforeTxn = nil
				f()
				return
			}
		}
	}
	return fl
}

// TestNameTaken: another volume takes the name between the look and the creation.
func TestNameTaken(t *testing.T) {
	w := newWorld(t, "a", "b")
	r := Request{Name: "v", Size: gib, Replicas: 2}
	var first *Entry
	f := w.before("volname/", func() { first = w.create(r) })
	e, err := w.catalogue(f).Create(t.Context(), r)
	if err != nil || e.ID != first.ID {
		t.Fatal(e, first, err)
	}
	r.Name = "w"
	f = w.before("volname/", func() { w.create(r) })
	other := r
	other.Size *= 2
	_, err = w.catalogue(f).Create(t.Context(), other)
	wantErr(t, err, ErrVolumeExists)
	if es := w.checkWhole(); len(es) != 2 {
		t.Error(len(es), "volumes")
	}
}

// TestDeletedWhileMade deletes a volume right before a report of its creation, and before it is made READY,
// and lets the deletion be finished or not: it never comes back, and leaves nothing.
func TestDeletedWhileMade(t *testing.T) {
	for _, part := range []string{"/made/", "/cfg"} {
		for _, finished := range []bool{false, true} {
			w := newWorld(t, "a", "b")
			c := w.catalogue(w.store)
			id := replication.VolumeID(replication.NewUUID())
			r := Request{Name: "v", Size: gib, Replicas: 2}.normalise()
			if _, err := c.create(t.Context(), id, r); err != nil {
				t.Fatal(err)
			}
			if part == "/cfg" { // n-a is to be the one that finishes
				if err := w.reconciler(w.store, "n-b").Reconcile(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			f := w.before(part, func() {
				if err := c.Delete(t.Context(), id); err != nil {
					t.Error(err)
				}
				if finished {
					w.settle("n-b", "n-a")
				}
			})
			if err := w.reconciler(f, "n-a").Reconcile(t.Context()); err != nil {
				t.Fatal(err)
			}
			if f.beforeTxn != nil {
				t.Fatal("the test is wrong: no such write")
			}
			if e, err := c.Get(t.Context(), id); err == nil && e.State != Deleting {
				t.Error("deleted, and", e.State)
			}
			w.settle("n-a", "n-b")
			if es := w.checkWhole(); len(es) != 0 {
				t.Errorf("%s, finished=%v: it came back", part, finished)
			}
		}
	}
}

// TestEvictDetached leaves alone what is attached, what has no other copy, and what a domain that does not drain has.
func TestEvictDetached(t *testing.T) {
	w, c, cfg, rev := attached(t)
	v := NewDomainView(c)
	unchanged := func(what string) {
		t.Helper()
		if err := v.EvictDetached(t.Context(), cfg.Volume.String(), "a"); err != nil {
			t.Error(what, err)
		}
		if _, now, _ := c.Load(t.Context(), cfg.Volume); now != rev {
			t.Error(what, "was evicted from")
		}
	}
	w.setDomain("a", clusterdomain.Draining)
	unchanged("an attached volume")
	w.setDomain("a", clusterdomain.Active)
	alone := evict(cfg, "b")
	var err error
	for _, n := range []*replication.Config{alone, detach(alone)} {
		if rev, err = c.CompareAndSwap(t.Context(), rev, n, "a"); err != nil {
			t.Fatal(err)
		}
	}
	w.setDomain("a", clusterdomain.Draining)
	unchanged("the last copy")

	e := w.create(Request{Name: "both", Size: gib, Domains: []string{"a", "b"}, Replicas: 2})
	cfg, rev, _ = c.Load(t.Context(), e.ID)
	w.setDomain("a", clusterdomain.Fenced)
	unchanged("a volume of a domain that does not drain")
	w.setDomain("a", clusterdomain.Draining)
	// It is attached between the look and the eviction.
	f := w.before("/cfg", func() {
		if rev, err = c.CompareAndSwap(t.Context(), rev, elect(cfg, "b"), "b"); err != nil {
			t.Error(err)
		}
	})
	if err := NewDomainView(w.configs(f)).EvictDetached(t.Context(), e.ID.String(), "a"); err != nil {
		t.Error(err)
	}
	unchanged("a volume that was attached meanwhile")
	e = w.create(Request{Name: "third", Size: gib, Domains: []string{"b"}, Replicas: 1})
	cfg, rev, _ = c.Load(t.Context(), e.ID)
	unchanged("a volume without a replica there")

	w.setDomain("a", clusterdomain.Active)
	e = w.create(Request{Name: "fourth", Size: gib, Domains: []string{"a", "b"}, Replicas: 2})
	cfg, rev, _ = c.Load(t.Context(), e.ID)
	w.setDomain("a", clusterdomain.Draining)
	f = w.before("/cfg", func() { w.setDomain("a", clusterdomain.Active) })
	if err := NewDomainView(w.configs(f)).EvictDetached(t.Context(), e.ID.String(), "a"); err != nil {
		t.Error(err)
	}
	unchanged("a volume of a domain that was activated meanwhile")
}
