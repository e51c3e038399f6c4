package volume

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tandem-storage/tandem/audit"
	"github.com/tandem-storage/tandem/clusterdomain"
	"github.com/tandem-storage/tandem/clusterdomain/arbiter"
	"github.com/tandem-storage/tandem/kvdb"
	"github.com/tandem-storage/tandem/replication"
)

// elect is the first change of a takeover by the node of the domain.
func elect(cfg *replication.Config, d replication.DomainID) *replication.Config {
	n := nextConfig(cfg, replication.PhaseRecovering, "takeover")
	n.Coord = &replication.Coord{Node: replication.NodeID("n-" + d), Domain: d, AttachID: replication.AttachID(replication.NewUUID()), Term: replication.Term(n.Epoch)}
	return n
}

func activate(cfg *replication.Config) *replication.Config {
	return nextConfig(cfg, replication.PhaseActive, "takeover")
}

func detach(cfg *replication.Config) *replication.Config {
	n := nextConfig(cfg, replication.PhaseDetached, "detach")
	n.Coord = nil
	return n
}

func setState(cfg *replication.Config, r replication.ReplicaID, s replication.MemberState) {
	m := cfg.Members[r]
	m.State = s
	cfg.Members[r] = m
}

func evict(cfg *replication.Config, d replication.DomainID) *replication.Config {
	n := nextConfig(cfg, replication.PhaseActive, "evict")
	r := member(cfg, d)
	n.ISR = slices.DeleteFunc(n.ISR, func(x replication.ReplicaID) bool { return x == r })
	setState(n, r, replication.MemberStale)
	return n
}

// attached returns a world with a volume attached in domain a, over domains a and b.
func attached(t *testing.T) (*world, *Configs, *replication.Config, kvdb.Revision) {
	w := newWorld(t, "a", "b")
	e := w.create(Request{Name: "v", Size: gib, Replicas: 2})
	c := w.configs(w.store)
	cfg, rev, err := c.Load(t.Context(), e.ID)
	if err != nil {
		t.Fatal(err)
	}
	for _, step := range []func(*replication.Config) *replication.Config{
		func(c *replication.Config) *replication.Config { return elect(c, "a") }, activate,
	} {
		cfg = step(cfg)
		if rev, err = c.CompareAndSwap(t.Context(), rev, cfg, "a"); err != nil {
			t.Fatal(err)
		}
	}
	return w, c, cfg, rev
}

func TestLifeOfAConfiguration(t *testing.T) {
	_, c, cfg, rev := attached(t)
	b := member(cfg, "b")
	steps := []*replication.Config{evict(cfg, "b")}
	syncing := nextConfig(steps[0], replication.PhaseActive, "resync")
	setState(syncing, b, replication.MemberSyncing)
	joined := nextConfig(syncing, replication.PhaseActive, "join")
	setState(joined, b, replication.MemberInSync)
	joined.ISR = append(joined.ISR, b)
	steps = append(steps, syncing, joined, detach(joined))
	for _, s := range steps {
		var err error
		if rev, err = c.CompareAndSwap(t.Context(), rev, s, "a"); err != nil {
			t.Fatal(s.History[len(s.History)-1].Cause, err)
		}
	}
	got, now, err := c.Load(t.Context(), cfg.Volume)
	if err != nil || now != rev || got.Epoch != 7 || got.Phase != replication.PhaseDetached {
		t.Fatal(got, now, err)
	}
	// The history stays bounded, and the door accepts what it trimmed.
	for range replication.HistoryLen {
		for _, step := range []func(*replication.Config) *replication.Config{
			func(c *replication.Config) *replication.Config { return elect(c, "a") }, activate, detach,
		} {
			got = step(got)
			if rev, err = c.CompareAndSwap(t.Context(), rev, got, "a"); err != nil {
				t.Fatal(err)
			}
		}
	}
	if len(got.History) != replication.HistoryLen {
		t.Error(len(got.History), "records")
	}
}

// TestChangesRefused: every way to break I1 and I2.
func TestChangesRefused(t *testing.T) {
	w, c, cfg, rev := attached(t)
	b := member(cfg, "b")
	for name, bend := range map[string]func(n *replication.Config) *replication.Config{
		"same epoch":    func(n *replication.Config) *replication.Config { n.Epoch--; return n },
		"epoch jumps":   func(n *replication.Config) *replication.Config { n.Epoch++; return n },
		"same gen":      func(n *replication.Config) *replication.Config { n.Gen = cfg.Gen; return n },
		"no gen":        func(n *replication.Config) *replication.Config { n.Gen = 0; return n },
		"same proposal": func(n *replication.Config) *replication.Config { n.ProposalID = cfg.ProposalID; return n },
		"size":          func(n *replication.Config) *replication.Config { n.Size -= SizeUnit; return n },
		"size, uneven":  func(n *replication.Config) *replication.Config { n.Size++; return n },
		"size and policy": func(n *replication.Config) *replication.Config {
			n.Size *= 2
			n.SetPolicy(replication.Policy{Protection: replication.MaxAvailability, Needs: replication.Needs{InSync: 1}})
			return n
		},
		"fork":   func(n *replication.Config) *replication.Config { n.ForkGen++; return n },
		"schema": func(n *replication.Config) *replication.Config { n.Version = 2; return n },
		"empty set": func(n *replication.Config) *replication.Config {
			n = evict(n, "a")
			n.Epoch--
			n.ISR = nil
			return n
		},
		"state against set": func(n *replication.Config) *replication.Config { setState(n, b, replication.MemberStale); return n },
		"set against state": func(n *replication.Config) *replication.Config { n.ISR = n.ISR[:1]; return n },
		"twice in the set":  func(n *replication.Config) *replication.Config { n.ISR = append(n.ISR, b); return n },
		"stranger": func(n *replication.Config) *replication.Config {
			r := replication.ReplicaID(replication.NewUUID())
			n.Members[r] = replication.Member{State: replication.MemberInSync}
			n.ISR = append(n.ISR, r)
			return n
		},
		"member moved": func(n *replication.Config) *replication.Config {
			m := n.Members[b]
			m.Node = "elsewhere"
			n.Members[b] = m
			return n
		},
		"member lost": func(n *replication.Config) *replication.Config {
			delete(n.Members, b)
			n.ISR = slices.DeleteFunc(n.ISR, func(r replication.ReplicaID) bool { return r == b })
			return n
		},
		"bad state":       func(n *replication.Config) *replication.Config { setState(n, b, "FINE"); return n },
		"new coordinator": func(n *replication.Config) *replication.Config { n.Coord.Node = "n-b"; return n },
		"new term":        func(n *replication.Config) *replication.Config { n.Coord.Term++; return n },
		"no coordinator":  func(n *replication.Config) *replication.Config { n.Coord = nil; return n },
		"deleting":        func(n *replication.Config) *replication.Config { n.Phase = replication.PhaseDeleting; return n },
		"takeover evicts": func(n *replication.Config) *replication.Config {
			n.Phase, n.Coord.Term = replication.PhaseRecovering, replication.Term(n.Epoch)
			n.ISR = n.ISR[:1]
			setState(n, b, replication.MemberStale)
			return n
		},
		"takeover at an old term": func(n *replication.Config) *replication.Config { n.Phase = replication.PhaseRecovering; return n },
		"history cut":             func(n *replication.Config) *replication.Config { n.History = n.History[1:]; return n },
		"history empty":           func(n *replication.Config) *replication.Config { n.History = nil; return n },
		"history rewritten": func(n *replication.Config) *replication.Config {
			n.History[0].Gen++
			return n
		},
		"detach evicts": func(n *replication.Config) *replication.Config {
			n.Phase, n.Coord = replication.PhaseDetached, nil
			n.ISR = n.ISR[:1]
			setState(n, b, replication.MemberStale)
			return n
		},
	} {
		_, err := c.CompareAndSwap(t.Context(), rev, bend(nextConfig(cfg, replication.PhaseActive, "test")), "a")
		if !errors.Is(err, ErrInvalidChange) {
			t.Errorf("%s: error %v", name, err)
		}
	}
	// A stale member does not join.
	stale := evict(cfg, "b")
	rev, err := c.CompareAndSwap(t.Context(), rev, stale, "a")
	if err != nil {
		t.Fatal(err)
	}
	n := nextConfig(stale, replication.PhaseActive, "join")
	n.ISR = append(n.ISR, b)
	setState(n, b, replication.MemberInSync)
	_, err = c.CompareAndSwap(t.Context(), rev, n, "a")
	wantErr(t, err, ErrInvalidChange)
	// Nor does the last one leave, nor another domain's node speak for the coordinator.
	_, err = c.CompareAndSwap(t.Context(), rev, evict(stale, "a"), "a")
	wantErr(t, err, ErrInvalidChange)
	_, err = c.CompareAndSwap(t.Context(), rev, activate(stale), "b")
	wantErr(t, err, ErrInvalidChange)
	if got, now, _ := w.configs(w.store).Load(t.Context(), cfg.Volume); now != rev || got.Epoch != stale.Epoch {
		t.Error("something was changed")
	}
}

// TestDomainStates: what a coordinator may change in which state of its domain (I23a).
func TestDomainStates(t *testing.T) {
	for s, may := range map[clusterdomain.State]struct{ takeover, evict, detach bool }{
		clusterdomain.Active:    {true, true, true},
		clusterdomain.Standby:   {false, false, true},
		clusterdomain.Draining:  {false, true, true},
		clusterdomain.Inactive:  {},
		clusterdomain.Fenced:    {},
		clusterdomain.Rejoining: {},
	} {
		for kind, allowed := range map[string]bool{"evict": may.evict, "takeover": may.takeover, "detach": may.detach} {
			w, c, cfg, rev := attached(t)
			w.setDomain("a", s)
			next := map[string]func() *replication.Config{
				"evict":    func() *replication.Config { return evict(cfg, "b") },
				"takeover": func() *replication.Config { return elect(cfg, "a") },
				"detach":   func() *replication.Config { return detach(cfg) },
			}[kind]()
			_, err := c.CompareAndSwap(t.Context(), rev, next, "a")
			if (err == nil) != allowed {
				t.Errorf("%s in %s: %v", kind, s, err)
			}
			var de *DomainStateError
			if err != nil && (!errors.As(err, &de) || de.State != s || !errors.Is(err, ErrDomainNotActive)) {
				t.Errorf("%s in %s: %v", kind, s, err)
			}
		}
	}
	w, c, cfg, rev := attached(t)
	if err := kvdb.Delete(t.Context(), w.store, clusterdomain.DomainKey("c", "a")); err != nil {
		t.Fatal(err)
	}
	_, err := c.CompareAndSwap(t.Context(), rev, evict(cfg, "b"), "a")
	wantErr(t, err, ErrDomainNotActive)
}

// TestFencedInBetween: the domain is fenced after the door has looked and before its
// transaction. Nothing may come through.
func TestFencedInBetween(t *testing.T) {
	w, _, cfg, rev := attached(t)
	f := &filter{Store: w.store}
	f.beforeTxn = func(kvdb.Txn) { f.beforeTxn = nil; w.setDomain("a", clusterdomain.Fenced) }
	_, err := w.configs(f).CompareAndSwap(t.Context(), rev, evict(cfg, "b"), "a")
	wantErr(t, err, ErrDomainNotActive)
	if _, now, _ := w.configs(w.store).Load(t.Context(), cfg.Volume); now != rev {
		t.Error("a fenced domain changed the configuration")
	}
	// A record that was rewritten without a change of what matters is looked at again.
	w.setDomain("a", clusterdomain.Active)
	f.beforeTxn = func(kvdb.Txn) { f.beforeTxn = nil; w.setDomain("a", clusterdomain.Active) }
	if _, err := w.configs(f).CompareAndSwap(t.Context(), rev, evict(cfg, "b"), "a"); err != nil {
		t.Error(err)
	}
}

func TestIncarnationChanged(t *testing.T) {
	w, c, cfg, rev := attached(t)
	f := &filter{Store: w.store}
	restore := func(kvdb.Txn) {
		f.beforeTxn = nil
		if _, err := kvdb.Put(t.Context(), w.store, clusterdomain.IncarnationKey("c"), []byte(`{"uuid":"00000000-0000-4000-8000-000000000001"}`)); err != nil {
			t.Error(err)
		}
	}
	f.beforeTxn = restore
	_, err := w.configs(f).CompareAndSwap(t.Context(), rev, evict(cfg, "b"), "a")
	wantErr(t, err, ErrIncarnation)
	_, err = c.CompareAndSwap(t.Context(), rev, evict(cfg, "b"), "a")
	wantErr(t, err, ErrIncarnation)
}

// TestOneWins: of many changes of one revision exactly one comes into force.
func TestOneWins(t *testing.T) {
	w, _, cfg, rev := attached(t)
	var won atomic.Int32
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			d := []replication.DomainID{"a", "b"}[i%2]
			_, err := w.configs(w.store).CompareAndSwap(t.Context(), rev, elect(cfg, d), d)
			switch {
			case err == nil:
				won.Add(1)
			case !errors.Is(err, ErrConflict):
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if won.Load() != 1 {
		t.Error(won.Load(), "won")
	}
}

// TestUnknownOutcomes loses requests and answers.
func TestUnknownOutcomes(t *testing.T) {
	lost := func(n int, before bool) func() (bool, bool) {
		return func() (bool, bool) { n--; return n >= 0 && before, n >= 0 && !before }
	}
	t.Run("answer lost", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w, _, cfg, rev := attached(t)
			f := &filter{Store: w.store, lose: lost(1, false)}
			next := evict(cfg, "b")
			got, err := w.configs(f).CompareAndSwap(t.Context(), rev, next, "a")
			if _, now, _ := w.configs(w.store).Load(t.Context(), cfg.Volume); err != nil || got != now || now == rev {
				t.Fatal(got, now, err)
			}
			// The same call again finds out the same.
			if again, err := w.configs(w.store).CompareAndSwap(t.Context(), rev, next, "a"); err != nil || again != got {
				t.Error(again, err)
			}
		})
	})
	t.Run("requests lost", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w, _, cfg, rev := attached(t)
			f := &filter{Store: w.store, lose: lost(5, true)}
			if _, err := w.configs(f).CompareAndSwap(t.Context(), rev, evict(cfg, "b"), "a"); err != nil {
				t.Fatal(err)
			}
		})
	})
	t.Run("never told", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w, _, cfg, rev := attached(t)
			f := &filter{Store: w.store}
			c := w.configs(f)
			f.cutAt, f.cutLate = 2, true // the look gets through, the change too, but not its answer
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			_, err := c.CompareAndSwap(ctx, rev, evict(cfg, "b"), "a")
			wantErr(t, err, ErrOutcomeUnknown)
			if _, now, _ := w.configs(w.store).Load(t.Context(), cfg.Volume); now == rev {
				t.Error("the test is wrong: it did not come into force")
			}
		})
	})
	t.Run("not sent", func(t *testing.T) {
		w, _, cfg, rev := attached(t)
		f := &filter{Store: w.store, cutAt: 1}
		_, err := w.configs(f).CompareAndSwap(t.Context(), rev, evict(cfg, "b"), "a")
		wantErr(t, err, ErrNotSent)
	})
	t.Run("superseded", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w, _, cfg, rev := attached(t)
			f := &filter{Store: w.store, lose: lost(1, true)}
			f.beforeTxn = func(kvdb.Txn) {
				f.beforeTxn = nil
				if _, err := w.configs(w.store).CompareAndSwap(t.Context(), rev, elect(cfg, "b"), "b"); err != nil {
					t.Error(err)
				}
			}
			_, err := w.configs(f).CompareAndSwap(t.Context(), rev, evict(cfg, "b"), "a")
			wantErr(t, err, ErrConflict)
		})
	})
	t.Run("fenced while unknown", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w, _, cfg, rev := attached(t)
			f := &filter{Store: w.store, lose: lost(1, true)}
			f.beforeTxn = func(kvdb.Txn) { w.setDomain("a", clusterdomain.Fenced) }
			_, err := w.configs(f).CompareAndSwap(t.Context(), rev, evict(cfg, "b"), "a")
			wantErr(t, err, ErrDomainNotActive)
		})
	})
}

// gateWorld has real domain managers over the volumes of attached.
func gateManager(t *testing.T, w *world, vols clusterdomain.Volumes) *clusterdomain.Manager {
	m, err := clusterdomain.New(w.store, clusterdomain.Options{
		Cluster: "c", Node: clusterdomain.Node{Name: "n-b", Domain: "b"}, Volumes: vols,
	})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// racingVolumes evicts right after the gate has read.
type racingVolumes struct {
	DomainView
	after func()
}

func (r *racingVolumes) Facts(ctx context.Context) ([]arbiter.Volume, error) {
	vols, err := r.DomainView.Facts(ctx)
	if f := r.after; f != nil {
		r.after = nil
		f()
	}
	return vols, err
}

// TestGateAgainstEviction: the gate sees both replicas in sync, and then the one that was to remain is evicted.
func TestGateAgainstEviction(t *testing.T) {
	for _, lost := range []bool{true, false} {
		w, c, cfg, rev := attached(t)
		vols := &racingVolumes{DomainView: NewDomainView(c)}
		vols.after = func() {
			if _, err := c.CompareAndSwap(t.Context(), rev, evict(cfg, "b"), "a"); err != nil {
				t.Error(err)
			}
		}
		m := gateManager(t, w, vols)
		_, err := m.Deactivate(t.Context(), clusterdomain.Change{Domain: "a", PeerLost: lost, Actor: "test"})
		wantErr(t, err, clusterdomain.ErrLastCopy)
		var lc *clusterdomain.LastCopyError
		if !errors.As(err, &lc) || len(lc.Volumes) != 1 || lc.Volumes[0].Name != "v" {
			t.Error(err)
		}
		d, err := m.Deactivate(t.Context(), clusterdomain.Change{Domain: "a", PeerLost: lost, Actor: "test", AcceptDataLoss: []string{"v"}})
		if err != nil || d.State.MayAttach() || !slices.Contains(d.AcceptDataLoss, cfg.Volume.String()) {
			t.Error(d, err)
		}
		es, _, err := audit.New(w.store, "c", "n").Entries(t.Context(), time.Time{})
		if err != nil || len(es) == 0 {
			t.Fatal(es, err)
		}
		if e := es[len(es)-1]; e.Object != "domain/a" || e.Actor != "test" || e.Epoch != d.Epoch || !slices.Equal(e.Lost, []string{cfg.Volume.String()}) {
			t.Errorf("the loss is not on record: %+v", e)
		}
	}
}

// TestGateIsNotDisturbed: evictions of the lost domain's replicas do not make its deactivation look again.
func TestGateIsNotDisturbed(t *testing.T) {
	w, c, cfg, rev := attached(t)
	looks := 0
	vols := &racingVolumes{DomainView: NewDomainView(c)}
	vols.after = func() {
		looks++
		next := elect(cfg, "b")
		r, err := c.CompareAndSwap(t.Context(), rev, next, "b")
		if err == nil {
			_, err = c.CompareAndSwap(t.Context(), r, evict(next, "a"), "b")
		}
		if err != nil {
			t.Error(err)
		}
		vols.after = func() { looks++ }
	}
	d, err := gateManager(t, w, vols).Deactivate(t.Context(), clusterdomain.Change{Domain: "a", PeerLost: true})
	if err != nil || d.State != clusterdomain.Fenced || looks != 1 {
		t.Error(d, err, looks)
	}
}

// TestDrain: a planned deactivation of a domain whose volumes are detached ends by itself, and what returns is resynced.
func TestDrain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, c, cfg, rev := attached(t)
		if _, err := c.CompareAndSwap(t.Context(), rev, detach(cfg), "a"); err != nil {
			t.Fatal(err)
		}
		m := gateManager(t, w, NewDomainView(c))
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- m.Run(ctx) }()
		if _, err := m.Deactivate(ctx, clusterdomain.Change{Domain: "a", Actor: "test"}); err != nil {
			t.Fatal(err)
		}
		for v := range m.Watch(ctx) {
			if v.State("a") == clusterdomain.Inactive {
				break
			}
		}
		got, rev, err := c.Load(ctx, cfg.Volume)
		if err != nil || len(got.ISR) != 1 || got.Members[member(cfg, "a")].State != replication.MemberStale {
			t.Fatalf("%+v %v", got, err)
		}
		// The volume is attached in b, a returns: REJOINING until its replica is in sync.
		for _, step := range []func(*replication.Config) *replication.Config{
			func(c *replication.Config) *replication.Config { return elect(c, "b") }, activate,
		} {
			got = step(got)
			if rev, err = c.CompareAndSwap(ctx, rev, got, "b"); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := m.Activate(ctx, clusterdomain.Change{Domain: "a", Actor: "test"}); err != nil {
			t.Fatal(err)
		}
		<-time.After(time.Minute)
		if s := m.DomainState("a"); s != clusterdomain.Rejoining {
			t.Error("active with a stale replica:", s)
		}
		a := member(cfg, "a")
		for _, s := range []replication.MemberState{replication.MemberSyncing, replication.MemberInSync} {
			got = nextConfig(got, replication.PhaseActive, "resync")
			setState(got, a, s)
			if s == replication.MemberInSync {
				got.ISR = append(got.ISR, a)
			}
			if rev, err = c.CompareAndSwap(ctx, rev, got, "b"); err != nil {
				t.Fatal(err)
			}
		}
		<-time.After(time.Minute)
		if s := m.DomainState("a"); s != clusterdomain.Active {
			t.Error("not active again:", s)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func TestWatchAll(t *testing.T) {
	w, c, cfg, rev := attached(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	evs := c.WatchAll(ctx)
	if ev := <-evs; ev.Volume != cfg.Volume || ev.Config.Epoch != cfg.Epoch || ev.Revision != rev {
		t.Fatalf("%+v", ev)
	}
	if ev := <-evs; !ev.Caught {
		t.Fatalf("%+v", ev)
	}
	next := evict(cfg, "b")
	if _, err := c.CompareAndSwap(ctx, rev, next, "a"); err != nil {
		t.Fatal(err)
	}
	if ev := <-evs; ev.Config == nil || ev.Config.Epoch != next.Epoch {
		t.Fatalf("%+v", ev)
	}
	if _, err := kvdb.Put(ctx, w.store, c.keys.config(cfg.Volume), []byte("{")); err != nil {
		t.Fatal(err)
	}
	if ev := <-evs; !errors.Is(ev.Err, ErrBadRecord) || ev.Config != nil {
		t.Fatalf("%+v", ev)
	}
	if err := kvdb.Delete(ctx, w.store, c.keys.config(cfg.Volume)); err != nil {
		t.Fatal(err)
	}
	if ev := <-evs; ev.Volume != cfg.Volume || ev.Config != nil || ev.Err != nil {
		t.Fatalf("%+v", ev)
	}
	cancel()
	for range evs {
	}
}

// TestWatchOfAnotherKVDB: what stands in a kvdb that was restored is not told, not even of a later epoch, until it is made the successor.
func TestWatchOfAnotherKVDB(t *testing.T) { synctest.Test(t, watchOfAnotherKVDB) }

func watchOfAnotherKVDB(t *testing.T) {
	w, c, cfg, _ := attached(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	evs := make(chan ConfigEvent)
	go func() { // it has seen higher revisions before the kvdb was restored
		defer close(evs)
		(&watcher{c: c, ch: evs, known: map[replication.VolumeID]kvdb.Revision{cfg.Volume: 1 << 40}}).run(ctx)
	}()
	if ev := <-evs; !ev.Caught {
		t.Fatalf("%+v", ev)
	}
	life, _ := c.Incarnation()
	put := func(key, value string) {
		t.Helper()
		if _, err := kvdb.Put(ctx, w.store, key, []byte(value)); err != nil {
			t.Fatal(err)
		}
	}
	inc := clusterdomain.IncarnationKey("c")
	put(inc, `{"uuid":"00000000-0000-4000-8000-000000000001"}`)
	other := evict(evict(cfg, "b"), "b")
	data, err := json.Marshal(other)
	if err != nil {
		t.Fatal(err)
	}
	put(c.keys.config(cfg.Volume), string(data))
	synctest.Wait() // until the watch has looked at it
	other = nextConfig(other, replication.PhaseActive, "imported")
	if data, err = json.Marshal(other); err != nil {
		t.Fatal(err)
	}
	if _, err := w.store.Txn(ctx, kvdb.Txn{Then: []kvdb.Op{
		{Kind: kvdb.OpPut, Key: inc, Value: []byte(`{"uuid":"00000000-0000-4000-8000-000000000002","former":["` + life.String() + `"]}`)},
		{Kind: kvdb.OpPut, Key: c.keys.config(cfg.Volume), Value: data},
	}}); err != nil {
		t.Fatal(err)
	}
	synctest.Wait()
	select {
	case ev := <-evs:
		t.Fatalf("told of %+v", ev)
	default:
	}
	if ev := <-evs; ev.Config == nil || ev.Config.Epoch != other.Epoch {
		t.Errorf("told of %+v, want epoch %d, the one after the import", ev, other.Epoch)
	}
	cancel()
	for range evs {
	}
}

// What names no coordinator where there has to be one cannot be read: who takes over looks at the one before.
func TestConfigWithoutCoordinator(t *testing.T) {
	w, c, cfg, _ := attached(t)
	for _, p := range []replication.Phase{replication.PhaseRecovering, replication.PhaseActive} {
		cfg.Phase, cfg.Coord = p, nil
		w.putConfig(cfg)
		_, _, err := c.Load(t.Context(), cfg.Volume)
		wantErr(t, err, ErrBadRecord)
	}
}
