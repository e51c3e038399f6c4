package volume

import (
	"context"
	"errors"
	"maps"
	"slices"
	"testing"

	"go.uber.org/zap"

	"github.com/tandem-storage/tandem/clusterdomain"
	"github.com/tandem-storage/tandem/kvdb"
	"github.com/tandem-storage/tandem/replication"
)

// importWorld is a world of two nodes with a volume that is served by the one in domain a, alone since epoch 4; B was evicted. reports is what the
// nodes tell, truth the configuration that the coordinator serves by.
func importWorld(t *testing.T) (w *world, reports map[string]*NodeReport, truth *replication.Config, mine *Configs) {
	t.Helper()
	w, c, cfg, rev := attached(t)
	truth = evict(cfg, "b")
	if _, err := c.CompareAndSwap(t.Context(), rev, truth, "a"); err != nil {
		t.Fatal(err)
	}
	reports = map[string]*NodeReport{}
	id, _ := c.Incarnation()
	for r, m := range truth.Members {
		f := FoundReplica{
			LocalReplica: LocalReplica{Volume: cfg.Volume, Replica: r, Pool: m.Pool}, Node: m.Node, Domain: m.Domain, Size: cfg.Size, Epoch: cfg.Epoch, Gen: cfg.Gen,
			Term: cfg.Coord.Term, State: replication.MemberInSync, ISR: cfg.ISR, Incarnation: id,
		}
		n := &NodeReport{Node: m.Node, Domain: m.Domain}
		if truth.InISR(r) {
			f.Epoch, f.Gen, f.ISR = truth.Epoch, truth.Gen, truth.ISR
			n.Serving = []*replication.Config{truth}
		}
		n.Replicas = []FoundReplica{f}
		reports[string(m.Node)] = n
	}
	return w, reports, truth, c
}

// rollBack puts an older configuration into the kvdb.
func rollBack(t *testing.T, w *world, c *Configs, truth *replication.Config) {
	t.Helper()
	old := truth.Clone()
	old.Epoch, old.Gen, old.History = truth.Epoch-1, truth.History[len(truth.History)-2].Gen, truth.History[:len(truth.History)-1]
	old.ISR = slices.Collect(maps.Keys(old.Members))
	op, err := put(c.keys.config(truth.Volume), old)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := kvdb.Put(t.Context(), w.store, op.Key, op.Value); err != nil {
		t.Fatal(err)
	}
}

func importer(w *world, s kvdb.Store, reports map[string]*NodeReport) *Importer {
	return &Importer{
		Catalogue: w.catalogue(s), Node: "n-a", Logger: zap.NewNop(),
		Ask: func(_ context.Context, n clusterdomain.Node) (*NodeReport, error) {
			if r := reports[n.Name]; r != nil {
				return r, nil
			}
			return nil, errors.New("away")
		},
	}
}

// A volume that is rolled back is marked, nothing changes it any more, and it goes on as it was after the import (I22).
func TestImport(t *testing.T) {
	w, reports, truth, mine := importWorld(t)
	rollBack(t, w, mine, truth)
	next := evict(truth, "b") // the coordinator's next change
	_, rev, err := mine.Load(t.Context(), truth.Volume)
	if err != nil {
		t.Fatal(err)
	}
	var local []FoundReplica
	for _, r := range reports {
		local = append(local, r.Replicas...)
	}
	marks, err := mine.CheckReplicas(t.Context(), func() []FoundReplica { return local })
	if err != nil || marks[truth.Volume] == nil {
		t.Fatalf("found %v, %v", marks, err)
	}
	c := w.catalogue(w.store)
	e, err := c.Get(t.Context(), truth.Volume)
	if err != nil || e.Rollback == nil {
		t.Fatalf("%+v, %v", e, err)
	}
	_, err = mine.CompareAndSwap(t.Context(), rev, nextConfig(e.Config, replication.PhaseActive, "test"), "a")
	wantErr(t, err, replication.ErrRolledBack)
	wantErr(t, c.Delete(t.Context(), truth.Volume), replication.ErrRolledBack)
	wantErr(t, c.Replace(t.Context(), truth.Volume, ReplaceRequest{Replica: "n-b"}), replication.ErrRolledBack)

	im := importer(w, w.store, reports)
	if res, err := im.Run(t.Context(), ImportRequest{All: true, DryRun: true}); err != nil || res.Written || len(res.Volumes) != 1 || res.Volumes[0].action != importWrite {
		t.Fatalf("dry run: %+v, %v", res, err)
	}
	if e, err := c.Get(t.Context(), truth.Volume); err != nil || e.Rollback == nil {
		t.Fatalf("the dry run wrote: %+v, %v", e, err)
	}
	for i, want := range []bool{true, false} {
		if res, err := im.Run(t.Context(), ImportRequest{Volumes: []string{e.Name}}); err != nil || res.Written != want {
			t.Fatalf("import %d: %+v, %v", i, res, err)
		}
	}
	got, rev, err := mine.Load(t.Context(), truth.Volume) // the process that ran all the time
	if err != nil || got.Epoch != truth.Epoch || got.Gen != truth.Gen || !slices.Equal(got.ISR, truth.ISR) || *got.Coord != *truth.Coord {
		t.Fatalf("imported %+v, %v", got, err)
	}
	if _, err := mine.CompareAndSwap(t.Context(), rev, next, "a"); err != nil {
		t.Errorf("the coordinator's next change: %v", err)
	}
	if marks, err := mine.CheckReplicas(t.Context(), func() []FoundReplica { return local }); err != nil || len(marks) != 0 {
		t.Errorf("after the import %v, %v", marks, err)
	}
}

// An import that is cut off at any call to the kvdb is completed by the next one.
func TestImportCutOff(t *testing.T) {
	for cut := int64(1); ; cut++ {
		w, reports, truth, mine := importWorld(t)
		rollBack(t, w, mine, truth)
		f := &filter{Store: w.store, cutAt: 1 << 40, cutLate: cut%2 == 0}
		im := importer(w, f, reports)
		f.ops.Store(0)
		f.cutAt = cut/2 + 1
		_, err := im.Run(t.Context(), ImportRequest{All: true})
		done := err == nil
		if _, err := importer(w, w.store, reports).Run(t.Context(), ImportRequest{All: true}); err != nil {
			t.Fatalf("cut at %d: the next import: %v", cut, err)
		}
		if got, _, err := mine.Load(t.Context(), truth.Volume); err != nil || got.Epoch != truth.Epoch || got.Gen != truth.Gen {
			t.Fatalf("cut at %d: %+v, %v", cut, got, err)
		}
		if done {
			return
		}
	}
}

// Of two imports at once one is refused, wherever they meet, and what is written is one or the other.
func TestImportTwice(t *testing.T) {
	w, reports, truth, mine := importWorld(t)
	for n := range 3 { // before the new incarnation, after it, and one that has only begun
		rollBack(t, w, mine, truth)
		f := &filter{Store: w.store}
		im := importer(w, f, reports)
		writes := 0
		f.beforeTxn = func(kvdb.Txn) {
			writes++
			switch other := importer(w, w.store, reports); {
			case n == 2 && writes == 2:
				s, err := other.look(t.Context())
				if err == nil {
					_, err = other.begin(t.Context(), s)
				}
				if err != nil {
					t.Errorf("the one in between: %v", err)
				}
			case n < 2 && writes == n+1:
				if _, err := other.Run(t.Context(), ImportRequest{All: true}); err != nil {
					t.Errorf("the one in between: %v", err)
				}
			}
		}
		_, err := im.Run(t.Context(), ImportRequest{All: true})
		wantErr(t, err, ErrConflict)
		if got, _, err := mine.Load(t.Context(), truth.Volume); err != nil || (got.Epoch == truth.Epoch) != (n < 2) {
			t.Errorf("%+v, %v", got, err)
		}
	}
}

// A backup of before an import is restored after it: the nodes go by an incarnation that neither the kvdb nor a replica knows, and follow the next
// import all the same, whether there is a volume to be imported or not.
func TestImportAgain(t *testing.T) {
	for name, older := range map[string]bool{"an older configuration": true, "the same configuration": false} {
		t.Run(name, func(t *testing.T) {
			w, reports, truth, mine := importWorld(t)
			old, err := w.store.Get(t.Context(), clusterdomain.IncarnationKey("c"))
			if err != nil {
				t.Fatal(err)
			}
			rollBack(t, w, mine, truth)
			if _, err := importer(w, w.store, reports).Run(t.Context(), ImportRequest{All: true}); err != nil {
				t.Fatal(err)
			}
			if _, _, err := mine.Load(t.Context(), truth.Volume); err != nil {
				t.Fatal(err)
			}
			for _, r := range reports {
				r.Incarnation, _ = mine.Incarnation()
			}
			if _, err := kvdb.Put(t.Context(), w.store, old.Key, old.Value); err != nil {
				t.Fatal(err)
			}
			if older {
				rollBack(t, w, mine, truth)
			}
			_, _, err = mine.Load(t.Context(), truth.Volume)
			wantErr(t, err, ErrIncarnation)
			for i, want := range []bool{true, false} {
				if res, err := importer(w, w.store, reports).Run(t.Context(), ImportRequest{All: true}); err != nil || res.Written != want {
					t.Fatalf("import %d: %+v, %v", i, res, err)
				}
			}
			if got, _, err := mine.Load(t.Context(), truth.Volume); err != nil || got.Epoch != truth.Epoch || got.Gen != truth.Gen {
				t.Errorf("imported %+v, %v", got, err)
			}
		})
	}
}

// Nothing is written when one of the volumes cannot be imported; a kvdb that was lost gets the volume with what is noted beside the replicas.
func TestImportLost(t *testing.T) {
	w, reports, truth, mine := importWorld(t)
	spec, err := w.store.Get(t.Context(), mine.keys.spec(truth.Volume))
	if err != nil {
		t.Fatal(err)
	}
	for _, prefix := range []string{mine.keys.configs(), mine.keys.volumes(), mine.keys.name("")} {
		kvs, _, err := w.store.List(t.Context(), prefix)
		if err != nil {
			t.Fatal(err)
		}
		for _, kv := range kvs {
			if _, err := w.store.Txn(t.Context(), kvdb.Txn{Then: []kvdb.Op{{Kind: kvdb.OpDelete, Key: kv.Key}}}); err != nil {
				t.Fatal(err)
			}
		}
	}
	if _, err := kvdb.Put(t.Context(), w.store, clusterdomain.IncarnationKey("c"), []byte(`{"uuid":"00000000-0000-4000-8000-000000000001"}`)); err != nil {
		t.Fatal(err)
	}
	_, _, err = mine.Load(t.Context(), truth.Volume)
	wantErr(t, err, ErrIncarnation)
	_, err = NewCatalogue(mine, fixedView{w.view, w.refresh}).Resolve(t.Context(), "v")
	wantErr(t, err, ErrIncarnation)
	wantErr(t, NewCatalogue(mine, fixedView{w.view, w.refresh}).Delete(t.Context(), truth.Volume), ErrIncarnation)

	for _, r := range reports {
		r.Serving = nil
		r.Replicas[0].Spec = spec.Value
		if slices.Contains(truth.ISR, r.Replicas[0].Replica) {
			r.Replicas[0].Missing = slices.DeleteFunc(slices.Collect(maps.Keys(truth.Members)), truth.InISR)
		}
	}
	away := reports["n-b"]
	delete(reports, "n-b")
	_, err = importer(w, w.store, reports).Run(t.Context(), ImportRequest{All: true})
	wantErr(t, err, ErrNotImported)
	if l, err := w.store.Get(t.Context(), clusterdomain.IncarnationKey("c")); err != nil || string(l.Value) != `{"uuid":"00000000-0000-4000-8000-000000000001"}` {
		t.Errorf("a refused import wrote %s, %v", l.Value, err)
	}
	reports["n-b"] = away
	if _, err = importer(w, w.store, reports).Run(t.Context(), ImportRequest{All: true}); err != nil {
		t.Fatal(err)
	}
	got, _, err := mine.Load(t.Context(), truth.Volume)
	if err != nil || got.Epoch != truth.Epoch+1 || !slices.Equal(got.ISR, truth.ISR) || got.Phase != replication.PhaseDetached || len(got.Members) != 2 {
		t.Fatalf("imported %+v, %v", got, err)
	}
	e, err := w.catalogue(w.store).byName(t.Context(), "v")
	if err != nil || e.ID != truth.Volume || e.State != Ready || len(e.Placed) != 2 {
		t.Errorf("in the catalogue: %+v, %v", e, err)
	}
}
