package volume

import (
	"context"
	"errors"
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

func TestCreateListDelete(t *testing.T) {
	w := newWorld(t, "a", "b")
	e := w.create(Request{Name: "v1", Size: gib, Replicas: 2, Labels: map[string]string{"app": "pg"}})
	w.checkWhole()
	cfg, rev, err := w.configs(w.store).Load(t.Context(), e.ID)
	if err != nil || rev == 0 || cfg.Epoch != 1 || cfg.Gen == 0 || len(cfg.History) != 1 || cfg.Protection != replication.MaxAvailability {
		t.Fatalf("%+v at %d, %v", cfg, rev, err)
	}
	c := w.catalogue(w.store)
	if id, err := c.Resolve(t.Context(), "v1"); err != nil || id != e.ID {
		t.Fatal(id, err)
	}
	if err := c.Delete(t.Context(), e.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Resolve(t.Context(), "v1"); !errors.Is(err, replication.ErrVolumeNotFound) {
		t.Fatal("name is not free:", err)
	}
	w.settle("n-a", "n-b")
	if es := w.checkWhole(); len(es) != 0 {
		t.Fatal("left over:", es)
	}
	if err := c.Delete(t.Context(), e.ID); err != nil {
		t.Fatal("delete of what is gone:", err)
	}
}

func TestCreateRefuses(t *testing.T) {
	w := newWorld(t, "a", "b")
	good := Request{Name: "v", Size: gib, Replicas: 2}
	for name, c := range map[string]struct {
		change func(*Request)
		want   error
		text   string
	}{
		"size 0":            {func(r *Request) { r.Size = 0 }, ErrInvalid, "more than 0"},
		"negative":          {func(r *Request) { r.Size = -4096 }, ErrInvalid, "-4096"},
		"not a multiple":    {func(r *Request) { r.Size = 10000 }, ErrInvalid, "8192 or 12288"},
		"beyond everything": {func(r *Request) { r.Size = MaxSize + 4096 }, ErrInvalid, "at most"},
		"above the pool":    {func(r *Request) { r.Size = 101 * gib }, ErrTooLarge, "largest pool has 100 GiB"},
		"unknown domain":    {func(r *Request) { r.Domains = []string{"mars"} }, clusterdomain.ErrDomainNotFound, "mars"},
		"too many replicas": {func(r *Request) { r.Replicas = 3 }, ErrTooFewNodes, "3 replicas"},
		"absurd replicas":   {func(r *Request) { r.Replicas = 4 }, ErrInvalid, "1 to 3"},
		"no name":           {func(r *Request) { r.Name = "" }, ErrInvalid, "empty"},
		"slash in the name": {func(r *Request) { r.Name = "a/b" }, ErrInvalid, "a/b"},
		"long name":         {func(r *Request) { r.Name = strings.Repeat("x", 129) }, ErrInvalid, "129"},
		"name like an id":   {func(r *Request) { r.Name = replication.NewUUID().String() }, ErrInvalid, "id of a volume"},
		"protection":        {func(r *Request) { r.Protection = "none" }, ErrInvalid, "none"},
		"label":             {func(r *Request) { r.Labels = map[string]string{"": "x"} }, ErrInvalid, "label"},
	} {
		t.Run(name, func(t *testing.T) {
			r := good
			c.change(&r)
			_, err := w.catalogue(w.store).Create(t.Context(), r)
			wantErr(t, err, c.want)
			if !strings.Contains(err.Error(), c.text) {
				t.Errorf("error %q does not say %q", err, c.text)
			}
		})
	}
	if kvs, _, _ := w.store.List(t.Context(), "/tandem/c/vol"); len(kvs) != 0 {
		t.Error("something was written:", kvs)
	}
}

func TestCreateIsIdempotentByName(t *testing.T) {
	w := newWorld(t, "a", "b")
	r := Request{Name: "v", Size: gib, Replicas: 2, Domains: []string{"b", "a"}}
	e := w.create(r)
	r.Domains = []string{"a", "b", "a"}
	r.Protection = replication.MaxAvailability
	if again := w.create(r); again.ID != e.ID {
		t.Fatal("another volume")
	}
	for _, change := range []func(*Request){
		func(r *Request) { r.Size *= 2 }, func(r *Request) { r.Replicas = 1 }, func(r *Request) { r.Domains = nil },
		func(r *Request) { r.Protection = replication.MaxProtection }, func(r *Request) { r.Labels = map[string]string{"a": "b"} },
	} {
		r := r
		change(&r)
		_, err := w.catalogue(w.store).Create(t.Context(), r)
		wantErr(t, err, ErrVolumeExists)
	}
	// A full cluster does not matter to what exists.
	w.view.Nodes[0].Online = false
	if again := w.create(r); again.ID != e.ID {
		t.Fatal("another volume")
	}
}

// TestCreatorDies cuts a node off after every single call to the store, with the last one carried out and not.
// Whatever it left, the nodes make it whole: the volume is READY or nothing of it is left.
func TestCreatorDies(t *testing.T) {
	for _, late := range []bool{false, true} {
		for n := int64(1); ; n++ {
			finished := false
			t.Run(fmt.Sprintf("late=%v/call=%d", late, n), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					w := newWorld(t, "a", "b")
					f := &filter{Store: w.store, cutAt: n, cutLate: late}
					finished = w.createAndDie(f)
					w.settle("n-b", "n-a") // n-a is back
					es := w.checkWhole()
					if finished && len(es) != 1 {
						t.Error("it was confirmed, and is gone")
					}
				})
			})
			if finished || t.Failed() {
				break
			}
			if n > 200 {
				t.Fatal("creation never ends")
			}
		}
	}
}

// createAndDie runs a creation with node n-a's process on f, while n-b is well.
func (w *world) createAndDie(f *filter) (finished bool) {
	ctx, cancel := context.WithTimeout(w.t.Context(), 30*time.Second)
	defer cancel()
	var wg sync.WaitGroup
	wg.Go(func() { w.reconciler(f, "n-a").Run(ctx) })
	wg.Go(func() { w.reconciler(w.store, "n-b").Run(ctx) })
	_, err := w.catalogue(f).Create(ctx, Request{Name: "v", Size: gib, Replicas: 2})
	cancel()
	wg.Wait()
	return err == nil
}

// TestDeleterDies is the same for a deletion.
func TestDeleterDies(t *testing.T) {
	for _, late := range []bool{false, true} {
		for n := int64(1); ; n++ {
			finished := false
			t.Run(fmt.Sprintf("late=%v/call=%d", late, n), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					w := newWorld(t, "a", "b")
					e := w.create(Request{Name: "v", Size: gib, Replicas: 2})
					f := &filter{Store: w.store, cutAt: n, cutLate: late}
					ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
					defer cancel()
					var wg sync.WaitGroup
					wg.Go(func() { w.reconciler(f, "n-a").Run(ctx) })
					c := w.catalogue(f)
					err := c.Delete(ctx, e.ID)
					confirmed := err == nil
					if err == nil {
						wg.Go(func() { w.reconciler(w.store, "n-b").Run(ctx) })
						err = c.waitGone(ctx, e.ID)
					}
					finished = err == nil
					cancel()
					wg.Wait()
					w.settle("n-b", "n-a")
					if es := w.checkWhole(); confirmed && len(es) != 0 {
						t.Error("deletion was confirmed, and is not done")
					}
				})
			})
			if finished || t.Failed() {
				break
			}
			if n > 200 {
				t.Fatal("deletion never ends")
			}
		}
	}
}

// TestCreatorNeverReturns: the volume is given up in bounded time, and the record says what it waits for.
func TestCreatorNeverReturns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "a", "b")
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go w.reconciler(w.store, "n-b").Run(ctx)
		start := time.Now()
		_, err := w.catalogue(w.store).Create(ctx, Request{Name: "v", Size: gib, Replicas: 2})
		wantErr(t, err, ErrCreateFailed)
		if !strings.Contains(err.Error(), "n-a") {
			t.Error("does not name the node:", err)
		}
		if d := time.Since(start); d > 3*time.Minute {
			t.Error("took", d)
		}
		synctest.Wait()
		es, err := w.catalogue(w.store).List(ctx)
		if err != nil || len(es) != 1 || es[0].State != Deleting || !strings.Contains(es[0].Progress(), "n-a") {
			t.Fatalf("%+v %v", es, err)
		}
		// Its name is free, and the volume of that name is another.
		if e := w.create(Request{Name: "v", Size: gib, Replicas: 2}); e.ID == es[0].ID {
			t.Error("the dead volume came back")
		}
		cancel()
		synctest.Wait()
		w.settle("n-a", "n-b")
		w.checkWhole()
	})
}

func TestReplicaCannotBeMade(t *testing.T) {
	w := newWorld(t, "a", "b")
	w.disks["n-b"].makeErr = errors.New("no space left on device")
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for _, n := range []string{"n-a", "n-b"} {
		wg.Go(func() { w.reconciler(w.store, n).Run(ctx) })
	}
	_, err := w.catalogue(w.store).Create(ctx, Request{Name: "v", Size: gib, Replicas: 2})
	cancel()
	wg.Wait()
	wantErr(t, err, ErrCreateFailed)
	// The record may be gone before the creator saw why; it says that it was deleted then.
	w.settle("n-a", "n-b")
	if es := w.checkWhole(); len(es) != 0 {
		t.Error("left over:", es)
	}
}

// TestManyAtOnce: the same names created at once on every node, over stores that lose one request or
// answer in five, with some deletions in between.
func TestManyAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "a", "b", "c")
		rnd := seeded(t)
		stores := map[string]*filter{}
		for _, d := range w.domains {
			stores[d] = &filter{Store: w.store, lose: func() (bool, bool) { n := rnd.IntN(10); return n == 0, n == 1 }}
		}
		var mu sync.Mutex // rnd is shared by the three filters
		for _, f := range stores {
			lose := f.lose
			f.lose = func() (bool, bool) { mu.Lock(); defer mu.Unlock(); return lose() }
		}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var nodes, users sync.WaitGroup
		for _, d := range w.domains {
			nodes.Go(func() { w.reconciler(stores[d], "n-"+d).Run(ctx) })
		}
		ids := make(map[string]map[replication.VolumeID]bool)
		for i := range 8 {
			name := fmt.Sprint("v", i)
			ids[name] = map[replication.VolumeID]bool{}
			for _, d := range w.domains {
				users.Go(func() {
					e, err := w.catalogue(stores[d]).Create(ctx, Request{Name: name, Size: gib, Replicas: 1 + i%3})
					if err != nil {
						t.Errorf("create %s on %s: %v", name, d, err)
						return
					}
					mu.Lock()
					ids[name][e.ID] = true
					mu.Unlock()
				})
			}
		}
		users.Wait()
		for i := range 4 {
			for id := range ids[fmt.Sprint("v", i)] {
				users.Go(func() {
					if err := w.catalogue(stores["b"]).Delete(ctx, id); err != nil {
						t.Errorf("delete: %v", err)
					}
				})
			}
		}
		users.Wait()
		cancel()
		nodes.Wait()
		w.settle("n-a", "n-b", "n-c")
		if es := w.checkWhole(); len(es) != 4 {
			t.Errorf("%d volumes, want 4", len(es))
		}
		for name, m := range ids {
			if len(m) != 1 {
				t.Errorf("%s was made %d times", name, len(m))
			}
		}
	})
}

func TestDeleteRefusesAttached(t *testing.T) {
	w := newWorld(t, "a", "b")
	e := w.create(Request{Name: "v", Size: gib, Replicas: 2})
	c := w.configs(w.store)
	cfg, rev, _ := c.Load(t.Context(), e.ID)
	rev, err := c.CompareAndSwap(t.Context(), rev, elect(cfg, "a"), "a")
	if err != nil {
		t.Fatal(err)
	}
	wantErr(t, w.catalogue(w.store).Delete(t.Context(), e.ID), ErrAttached)
	if _, now, _ := c.Load(t.Context(), e.ID); now != rev {
		t.Error("something was changed")
	}
}

// TestDeleteAgainstAttach: exactly one of a deletion and a takeover at the same time wins.
func TestDeleteAgainstAttach(t *testing.T) {
	w := newWorld(t, "a", "b")
	e := w.create(Request{Name: "v", Size: gib, Replicas: 2})
	c := w.configs(w.store)
	f := &filter{Store: w.store}
	f.beforeTxn = func(kvdb.Txn) {
		f.beforeTxn = nil
		cfg, rev, _ := c.Load(t.Context(), e.ID)
		if _, err := c.CompareAndSwap(t.Context(), rev, elect(cfg, "b"), "b"); err != nil {
			t.Error(err)
		}
	}
	wantErr(t, w.catalogue(f).Delete(t.Context(), e.ID), ErrAttached)

	e = w.create(Request{Name: "w", Size: gib, Replicas: 2})
	f.beforeTxn = func(kvdb.Txn) {
		f.beforeTxn = nil
		if err := w.catalogue(w.store).Delete(t.Context(), e.ID); err != nil {
			t.Error(err)
		}
	}
	cfg, rev, _ := c.Load(t.Context(), e.ID)
	_, err := w.configs(f).CompareAndSwap(t.Context(), rev, elect(cfg, "b"), "b")
	wantErr(t, err, ErrConflict)
}

// TestOrphansAreKept: what no record claims is reported and left alone.
func TestOrphansAreKept(t *testing.T) {
	w := newWorld(t, "a", "b")
	e := w.create(Request{Name: "v", Size: gib, Replicas: 2})
	d := w.disks["n-a"]
	stranger := LocalReplica{replication.VolumeID(replication.NewUUID()), replication.ReplicaID(replication.NewUUID()), "pool-a"}
	copied := LocalReplica{e.ID, e.Placed[1].Replica, "pool-a"} // another node's replica of a volume that exists
	d.m[stranger], d.m[copied] = 1, 1
	r := w.reconciler(w.store, "n-a")
	if err := r.Reconcile(t.Context()); err != nil {
		t.Fatal(err)
	}
	if o := r.Orphans(); len(o) != 2 {
		t.Error("orphans:", o)
	}
	if len(d.m) != 3 {
		t.Error("something was removed:", d.m)
	}
}
