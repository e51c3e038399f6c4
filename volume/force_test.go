package volume

import (
	"slices"
	"testing"
	"time"

	"github.com/tandem-storage/tandem/audit"
	"github.com/tandem-storage/tandem/clusterdomain"
	"github.com/tandem-storage/tandem/kvdb"
	"github.com/tandem-storage/tandem/replication"
)

// A replica that was evicted becomes the only one in sync when the domain of the others is out of service, with what it was told as
// the end of the history: who knows more is no relative of the volume any more.
func TestForce(t *testing.T) {
	w, reports, truth, c := importWorld(t)
	w.follows = true
	w.setDomain("a", clusterdomain.Fenced)
	epoch := truth.Epoch
	got, err := importer(w, w.store, reports).Force(audit.By(t.Context(), "me", "burnt"), truth.Volume, ForceRequest{Replica: "n-b", ExpectedEpoch: &epoch})
	if err != nil {
		t.Fatal(err)
	}
	b := reports["n-b"].Replicas[0]
	if got.Node != "n-b" || got.Epoch != truth.Epoch+1 || got.As != b.Epoch || !slices.Equal(got.Lost, []replication.NodeID{"n-a"}) {
		t.Errorf("forced: %+v", got)
	}
	cfg, _, err := c.Load(t.Context(), truth.Volume)
	if err != nil {
		t.Fatal(err)
	}
	if cfg.Phase != replication.PhaseDetached || cfg.Coord != nil || cfg.Epoch != truth.Epoch+1 || cfg.Gen == truth.Gen || cfg.ForkGen != truth.ForkGen+1 ||
		!slices.Equal(cfg.ISR, []replication.ReplicaID{b.Replica}) {
		t.Errorf("configuration: %+v", cfg)
	}
	for r, m := range cfg.Members {
		if (m.State == replication.MemberInSync) != (r == b.Replica) || m.LeftEpoch != 0 || m.LeftGen != 0 {
			t.Errorf("member on %s: %+v", m.Node, m)
		}
	}
	for _, h := range cfg.History {
		if h.Epoch > b.Epoch && h.Epoch != cfg.Epoch {
			t.Errorf("epoch %d is part of the history, the replica knows %d", h.Epoch, b.Epoch)
		}
	}
	for node, want := range map[string]bool{"n-b": true, "n-a": true} { // both may be sealed
		f := reports[node].Replicas[0]
		if replication.Follows(cfg.Epoch, cfg.Lineage(), replication.Ancestor{Epoch: f.Epoch, Gen: f.Gen}) != want {
			t.Errorf("the replica on %s may be sealed: %v, want %v", node, !want, want)
		}
	}
	trail, _, err := audit.New(w.store, "c", "n-a").Entries(t.Context(), time.Time{})
	if err != nil || len(trail) == 0 {
		t.Fatalf("audit trail %v, %v", trail, err)
	}
	if e := trail[len(trail)-1]; e.Actor != "me" || e.Reason != "burnt" || e.Verb != "volume replica force" || !slices.Equal(e.Lost, []string{truth.Volume.String()}) {
		t.Errorf("in the audit trail: %+v", e)
	}
	_, err = importer(w, w.store, reports).Force(t.Context(), truth.Volume, ForceRequest{Replica: "n-b"})
	wantErr(t, err, ErrNotForced)
}

// A replica that left before the oldest epoch that is remembered is the whole history.
func TestForceForgotten(t *testing.T) {
	_, reports, truth, _ := importWorld(t)
	f := reports["n-b"].Replicas[0]
	f.Gen++
	cfg, err := forcedConfig(truth, &f)
	if err != nil {
		t.Fatal(err)
	}
	want := []replication.Ancestor{{Epoch: f.Epoch, Gen: f.Gen}, {Epoch: cfg.Epoch, Gen: cfg.Gen}}
	if !slices.Equal(cfg.Lineage(), want) {
		t.Errorf("lineage %v, want %v", cfg.Lineage(), want)
	}
}

// What may not be forced leaves everything as it is.
func TestForceRefused(t *testing.T) {
	one := replication.Epoch(1)
	for _, tc := range []struct {
		name    string
		replica string
		epoch   *replication.Epoch
		ill     func(w *world, reports map[string]*NodeReport, truth *replication.Config)
		want    error
	}{
		{name: "in sync", replica: "n-a", want: ErrNotForced},
		{name: "nobody", replica: "n-c", want: ErrReplicaNotFound},
		{name: "changed", epoch: &one, want: ErrConflict},
		{name: "domain in service", ill: func(w *world, _ map[string]*NodeReport, _ *replication.Config) {
			w.setDomain("a", clusterdomain.Active)
		}, want: ErrNotForced},
		{name: "domain draining", ill: func(w *world, _ map[string]*NodeReport, _ *replication.Config) {
			w.setDomain("a", clusterdomain.Draining)
		}, want: ErrNotForced},
		{name: "own domain", ill: func(w *world, _ map[string]*NodeReport, _ *replication.Config) {
			w.setDomain("b", clusterdomain.Fenced)
		}, want: ErrNotForced},
		{name: "silent", ill: func(_ *world, r map[string]*NodeReport, _ *replication.Config) { delete(r, "n-b") }, want: ErrNotForced},
		{name: "gone", ill: func(_ *world, r map[string]*NodeReport, _ *replication.Config) { r["n-b"].Replicas = nil }, want: ErrNotForced},
		{name: "unreadable", ill: func(_ *world, r map[string]*NodeReport, _ *replication.Config) { r["n-b"].Replicas[0].Err = "torn" }, want: ErrNotForced},
		{name: "empty", ill: func(_ *world, r map[string]*NodeReport, _ *replication.Config) { r["n-b"].Replicas[0].Epoch = 0 }, want: ErrNotForced},
		{name: "half resynced", ill: func(_ *world, r map[string]*NodeReport, _ *replication.Config) {
			r["n-b"].Replicas[0].State = replication.MemberSyncing
		}, want: ErrNotForced},
		{name: "knows more", ill: func(_ *world, r map[string]*NodeReport, truth *replication.Config) {
			r["n-b"].Replicas[0].Epoch = truth.Epoch + 1
		}, want: ErrNotForced},
		{name: "syncing by the kvdb", ill: func(w *world, _ map[string]*NodeReport, truth *replication.Config) {
			setState(truth, member(truth, "b"), replication.MemberSyncing)
			w.putConfig(truth)
		}, want: ErrNotForced},
		{name: "faulted", ill: func(w *world, _ map[string]*NodeReport, truth *replication.Config) {
			setState(truth, member(truth, "b"), replication.MemberFaulted)
			w.putConfig(truth)
		}, want: ErrNotForced},
		{name: "attached where it may be", ill: func(w *world, _ map[string]*NodeReport, truth *replication.Config) {
			truth.Coord.Domain = "b"
			w.putConfig(truth)
		}, want: ErrNotForced},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w, reports, truth, c := importWorld(t)
			w.follows = true
			w.setDomain("a", clusterdomain.Fenced)
			if tc.ill != nil {
				tc.ill(w, reports, truth)
			}
			if tc.replica == "" {
				tc.replica = "n-b"
			}
			_, before, err := c.Load(t.Context(), truth.Volume)
			if err != nil {
				t.Fatal(err)
			}
			_, err = importer(w, w.store, reports).Force(t.Context(), truth.Volume, ForceRequest{Replica: tc.replica, ExpectedEpoch: tc.epoch})
			wantErr(t, err, tc.want)
			if _, after, err := c.Load(t.Context(), truth.Volume); err != nil || after != before {
				t.Errorf("revision %d became %d, %v", before, after, err)
			}
		})
	}
}

// The domain may return, and the coordinator go on, between the look and the order: nothing is forced then.
func TestForceRace(t *testing.T) {
	for name, meanwhile := range map[string]func(w *world, truth *replication.Config){
		"domain": func(w *world, _ *replication.Config) { w.setDomain("a", clusterdomain.Rejoining) },
		"volume": func(w *world, truth *replication.Config) { w.putConfig(evict(truth, "b")) },
	} {
		t.Run(name, func(t *testing.T) {
			w, reports, truth, _ := importWorld(t)
			w.follows = true
			w.setDomain("a", clusterdomain.Fenced)
			f := &filter{Store: w.store}
			f.beforeTxn = func(kvdb.Txn) {
				f.beforeTxn = nil
				meanwhile(w, truth)
			}
			_, err := importer(w, f, reports).Force(t.Context(), truth.Volume, ForceRequest{Replica: "n-b"})
			wantErr(t, err, ErrConflict)
		})
	}
}

// An order whose answer is lost says that it is not known whether it is in force.
func TestForceUnknown(t *testing.T) {
	w, reports, truth, _ := importWorld(t)
	w.follows = true
	w.setDomain("a", clusterdomain.Fenced)
	f := &filter{Store: w.store, lose: func() (bool, bool) { return false, true }}
	_, err := importer(w, f, reports).Force(t.Context(), truth.Volume, ForceRequest{Replica: "n-b"})
	wantErr(t, err, ErrOutcomeUnknown)
}
