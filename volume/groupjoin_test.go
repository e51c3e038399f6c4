package volume

import (
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"

	"go.uber.org/zap"

	"github.com/tandem-storage/tandem/kvdb"
	"github.com/tandem-storage/tandem/replication"
)

// checkGroup fails unless the group has the volumes of these names, by its record and by their marks; none: it is not there.
func (w *world) checkGroup(name string, want ...string) *GroupEntry {
	w.t.Helper()
	c := w.catalogue(w.store)
	es, err := c.List(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	var marked []string
	var ids []replication.VolumeID
	for _, e := range es {
		if e.Group == name {
			marked, ids = append(marked, e.Name), append(ids, e.ID)
		}
	}
	g, err := c.Group(w.t.Context(), name)
	if len(want) == 0 && errors.Is(err, ErrGroupNotFound) && len(marked) == 0 {
		return nil
	}
	if err != nil || !slices.Equal(marked, want) || !slices.Equal(g.Volumes, sortVolumes(ids)) {
		w.t.Errorf("group %s: %+v, marked are %q, want %q, %v", name, g, marked, want, err)
	}
	return g
}

// A volume comes into its group as it is made, in one transaction, and leaves it as it is deleted; the last one takes the group along that was made for it. A
// group of an operator stays, and what an operator put into one is for him to take out.
func TestJoin(t *testing.T) {
	w := newWorld(t, "a", "b")
	c, ctx := w.catalogue(w.store), t.Context()
	v := w.create(Request{Name: "v", Size: gib, Joins: "g", Failover: FailoverManual})
	if g := w.checkGroup("g", "v"); v.Group != "g" || g.Failover != FailoverManual || !g.Made || g.State() != replication.Linked {
		t.Errorf("%+v, of a volume in %q", g.Group, v.Group)
	}
	u := w.create(Request{Name: "u", Size: gib, Joins: "g"})
	w.create(Request{Name: "x", Size: gib})
	w.checkGroup("g", "u", "v")
	for group, want := range map[string]error{"g": nil, "h": ErrVolumeExists, "": ErrVolumeExists, "../g": ErrInvalid, strings.Repeat("g", MaxName+1): ErrInvalid} {
		if e, err := c.Create(ctx, Request{Name: "u", Size: gib, Joins: group}); !errors.Is(err, want) || err == nil && e.ID != u.ID {
			t.Errorf("again, for group %.20q: %+v, %v", group, e, err)
		} else if errors.Is(want, ErrVolumeExists) && !strings.Contains(err.Error(), `made for group "g"`) {
			t.Errorf("%v does not say in which group it is", err)
		}
	}
	if _, err := c.ChangeGroup(ctx, "g", nil, []replication.VolumeID{u.ID}); err != nil {
		t.Fatal(err)
	}
	if e, err := c.Create(ctx, Request{Name: "u", Size: gib, Joins: "g"}); err != nil || e.Group != "" {
		t.Errorf("again, after it was taken out: %+v, %v", e, err)
	}
	if _, err := c.CreateGroup(ctx, "h", FailoverAutomatic, []replication.VolumeID{u.ID}); err != nil {
		t.Fatal(err)
	}
	wantErr(t, c.Delete(ctx, u.ID), ErrInGroup)
	w.checkGroup("h", "u")
	w.create(Request{Name: "y", Size: gib, Joins: "h"})
	if g := w.checkGroup("h", "u", "y"); g.Failover != FailoverAutomatic || g.Made {
		t.Errorf("%+v", g.Group)
	}
	if _, err := c.ChangeGroup(ctx, "h", nil, []replication.VolumeID{u.ID}); err != nil {
		t.Fatal(err)
	}
	for _, e := range w.byNames("v", "y") {
		if err := c.Delete(ctx, e.ID); err != nil {
			t.Error(err)
		}
	}
	w.checkGroup("g")
	if _, err := c.Group(ctx, "g"); !errors.Is(err, ErrGroupNotFound) {
		t.Errorf("the group that was made for volumes is there without any: %v", err)
	}
	if g := w.checkGroup("h"); g == nil {
		t.Error("a group that an operator made is gone with its last volume")
	}
	w.settle("n-a", "n-b")
	if es := w.byNames("u", "x"); len(es) != 2 {
		t.Errorf("%d volumes are left", len(es))
	}
}

// byNames are the volumes that have one of the names.
func (w *world) byNames(names ...string) []*Entry {
	w.t.Helper()
	es, err := w.catalogue(w.store).List(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	return slices.DeleteFunc(es, func(e *Entry) bool { return !slices.Contains(names, e.Name) })
}

// A volume that comes into a group ends the image that replicas elsewhere are.
func TestJoinEndsImage(t *testing.T) {
	w := newWorld(t, "a", "b")
	v := w.create(Request{Name: "v", Size: gib, Joins: "g"})
	w.lose(v.ID)
	c := w.catalogue(w.store)
	k := NewGroupKeeper(c, "a", nil, zap.NewNop())
	st := &grouped{id: v.ID, st: replication.GroupStatus{Term: 2, Lost: []replication.DomainID{"b"}}}
	for range 2 {
		if _, err := k.tend(t.Context(), st); err != nil {
			t.Fatal(err)
		}
	}
	if g := w.checkGroup("g", "v"); !g.ImageIn("b", g.Configs).Consistent {
		t.Fatalf("%+v: no image to begin with", g.Group)
	}
	w.create(Request{Name: "u", Size: gib, Joins: "g"})
	if g := w.checkGroup("g", "u", "v"); g.ImageIn("b", g.Configs).Consistent || g.Splits["b"].Broken == "" {
		t.Errorf("%+v", g.Group)
	}
}

// full fills a group but for so many places.
func (w *world) full(name string, but int) {
	w.t.Helper()
	g := replication.Group{Version: groupVersion, Name: name, Failover: FailoverManual}
	for i := range MaxGroup - but {
		g.Volumes = append(g.Volumes, replication.VolumeID{15: byte(i + 1)})
	}
	op, err := put(w.configs(w.store).keys.group(name), g)
	if err == nil {
		_, err = kvdb.Put(w.t.Context(), w.store, op.Key, op.Value)
	}
	if err != nil {
		w.t.Fatal(err)
	}
}

// joining begins a volume that joins g, and nobody makes it yet.
func (w *world) joining(name string) {
	w.t.Helper()
	s, err := w.catalogue(w.store).create(w.t.Context(), replication.VolumeID(replication.NewUUID()), Request{Name: name, Size: gib, Joins: "g"}.normalise())
	if err != nil || s == nil {
		w.t.Fatal(s, err)
	}
}

// Two volumes that begin at once with one place left in their group: one comes into it. The other one is never READY outside of it: it is given up, and says why.
func TestJoinFull(t *testing.T) {
	w := newWorld(t, "a", "b")
	w.full("g", 1)
	w.joining("u")
	w.joining("v")
	for _, n := range []string{"n-b", "n-a"} {
		if err := w.reconciler(w.store, n).Reconcile(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	es := w.byNames("u", "v")
	slices.SortFunc(es, func(a, b *Entry) int { return strings.Compare(string(b.State), string(a.State)) })
	if len(es) != 2 || es[0].State != Ready || es[0].Group != "g" || es[1].State != Deleting || es[1].Group != "" || !strings.Contains(es[1].Failure, "group g has 50") {
		t.Fatalf("%+v", es)
	}
	w.settle("n-a", "n-b")
	if es := w.byNames("u", "v"); len(es) != 1 {
		t.Errorf("%d volumes are left", len(es))
	}
	for n, d := range w.disks {
		if len(d.m) != 1 {
			t.Errorf("%d replicas on the disks of %s", len(d.m), n)
		}
	}
	_, err := w.catalogue(w.store).Create(t.Context(), Request{Name: "x", Size: gib, Joins: "g"})
	wantErr(t, err, ErrGroupFull)
}

// Volumes that come into a group at the same moment do not lose each other.
func TestJoinAtOnce(t *testing.T) {
	w := newWorld(t, "a", "b")
	w.joining("v")
	w.settle("n-b") // its part is done
	other := sync.OnceFunc(func() {
		w.joining("u")
		for _, n := range []string{"n-b", "n-a"} {
			u := w.byNames("u")[0]
			kv, err := w.store.Get(t.Context(), newKeys("c").spec(u.ID))
			if err == nil {
				err = w.reconciler(w.store, n).create(t.Context(), u, kv.Mod)
			}
			if err != nil {
				t.Error(err)
			}
		}
	})
	f := &filter{Store: w.store, beforeTxn: func(t kvdb.Txn) {
		if slices.ContainsFunc(t.Then, func(o kvdb.Op) bool { return strings.HasPrefix(o.Key, "/tandem/c/volgroup/") }) {
			other()
		}
	}}
	if err := w.reconciler(f, "n-a").Reconcile(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.checkGroup("g", "u", "v")
	for _, e := range w.byNames("u", "v") {
		if e.State != Ready {
			t.Errorf("volume %s is %s", e.Name, e.State)
		}
	}
}

// Whatever call to the store is the last one of the node that makes a volume, or deletes it: the others end it, and at no time it is READY outside of its group, or
// in a group and not READY.
func TestJoinCrash(t *testing.T) {
	for _, late := range []bool{false, true} {
		for at := int64(1); ; at++ {
			w := newWorld(t, "a", "b")
			whole := func(name string) {
				t.Helper()
				for _, e := range w.byNames(name) {
					if (e.State == Ready) != (e.Group == "g") {
						t.Errorf("cut at %d, late %v: volume %s is %s, in group %q", at, late, name, e.State, e.Group)
					}
				}
			}
			f := &filter{Store: w.store, cutAt: at, cutLate: late}
			w.joining("v")
			w.settle("n-b")
			for range 3 {
				_ = w.reconciler(f, "n-a").Reconcile(t.Context()) // it fails where it is cut
				whole("v")
			}
			w.settle("n-b", "n-a")
			w.checkGroup("g", "v")
			reached := f.ops.Load() >= at
			f = &filter{Store: w.store, cutAt: at, cutLate: late}
			id := w.byNames("v")[0].ID
			_, _ = w.catalogue(f).toDeleting(t.Context(), id, "", nil)
			whole("v")
			if err := w.catalogue(w.store).Delete(t.Context(), id); err != nil {
				t.Fatal(err)
			}
			w.checkGroup("g")
			w.settle("n-a", "n-b")
			if kvs, _, err := w.store.List(t.Context(), "/tandem/c/vol"); err != nil || len(kvs) > 0 {
				t.Fatalf("cut at %d, late %v: %d keys are left, %v", at, late, len(kvs), err)
			}
			if !reached && f.ops.Load() < at {
				break
			}
		}
	}
}
