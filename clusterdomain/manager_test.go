package clusterdomain

import (
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap/zaptest"

	"github.com/tandem-storage/tandem/clusterdomain/arbiter"
	"github.com/tandem-storage/tandem/clusterdomain/clusterdomainpb"
	"github.com/tandem-storage/tandem/kvdb"
	"github.com/tandem-storage/tandem/kvdb/memkv"
)

// volumes are the same at every look.
type volumes []arbiter.Volume

func (v volumes) Facts(context.Context) ([]arbiter.Volume, error) {
	return append([]arbiter.Volume{}, v...), nil
}
func (v volumes) Receipt(context.Context, string, uint64) (*Receipt, error) { return nil, nil }
func (v volumes) EvictDetached(context.Context, string, string) error       { return nil }

// flaky is a store that loses the answers, or the requests, of the first writing transactions.
type flaky struct {
	kvdb.Store
	lose  atomic.Int32
	late  bool   // the request is carried out
	after func() // runs before the error is returned
}

func (f *flaky) Txn(ctx context.Context, t kvdb.Txn) (kvdb.TxnResult, error) {
	if t.ReadOnly() || f.lose.Add(-1) < 0 {
		return f.Store.Txn(ctx, t)
	}
	if f.late {
		if _, err := f.Store.Txn(ctx, t); err != nil {
			return kvdb.TxnResult{}, err
		}
	}
	if f.after != nil {
		f.after()
	}
	return kvdb.TxnResult{}, kvdb.ErrUnavailable
}

func node(t *testing.T, s kvdb.Store, name, domain string, vols Volumes) *Manager {
	t.Helper()
	m, err := New(s, Options{Cluster: "c", Node: Node{Name: name, Domain: domain, Address: name + ":1"}, Volumes: vols, Logger: zaptest.NewLogger(t)})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// run runs the managers until the returned function is called.
func run(t *testing.T, ms ...*Manager) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for _, m := range ms {
		wg.Go(func() {
			if err := m.Run(ctx); err != nil {
				t.Error(err)
			}
		})
	}
	return func() { cancel(); wg.Wait() }
}

// later lets the bubble's time pass.
func later(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}

func TestNodesAndDomainsAppear(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := memkv.NewServer(memkv.Options{})
		a, b := node(t, srv.Open(), "n1", "a", volumes{}), node(t, srv.Open(), "n2", "b", volumes{})
		w, err := New(srv.Open(), Options{Cluster: "c", Node: Node{Name: "w", Domain: "witness", Witness: true}, Volumes: volumes{}})
		if err != nil {
			t.Fatal(err)
		}
		stop := run(t, a, b, w)
		later(time.Second)
		for _, m := range []*Manager{a, b, w} {
			<-m.Ready()
			v := m.View()
			if len(v.Domains) != 2 || len(v.Nodes) != 3 || m.DomainState("a") != Active || m.DomainState("witness") != "" {
				t.Fatalf("%+v", v)
			}
			if n, ok := v.Node("n2"); !ok || !n.Online || n.Address != "n2:1" {
				t.Errorf("%+v", n)
			}
		}
		stop()
		// Whoever stops is offline at once, and still known.
		c := node(t, srv.Open(), "n3", "a", volumes{})
		stop = run(t, c)
		later(time.Second)
		if n, ok := c.View().Node("n1"); !ok || n.Online {
			t.Errorf("%+v", n)
		}
		if d, _ := c.View().Domain("a"); d.Epoch != 1 || d.Actor != "node n1" {
			t.Errorf("%+v", d)
		}
		stop()
	})
}

// TestLeaseLost: a node that is cut off is offline for the others in time, knows its last view, and is
// back when it can be. Its domain, fenced meanwhile, stays so.
func TestLeaseLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := memkv.NewServer(memkv.Options{})
		cut := srv.Open()
		a, b := node(t, cut, "n1", "a", volumes{}), node(t, srv.Open(), "n2", "b", volumes{})
		defer run(t, a, b)()
		later(time.Second)
		cut.SetReachable(false)
		later(15 * time.Second)
		if n, _ := b.View().Node("n1"); n.Online {
			t.Error("online without a lease")
		}
		if _, err := b.Deactivate(t.Context(), Change{Domain: "a", PeerLost: true, Actor: "op"}); err != nil {
			t.Fatal(err)
		}
		if a.DomainState("a") != Active {
			t.Error("it cannot know yet")
		}
		later(time.Minute)
		cut.SetReachable(true)
		later(5 * time.Second)
		if n, _ := b.View().Node("n1"); !n.Online {
			t.Error("not registered again")
		}
		if a.DomainState("a") != Fenced || a.LocalState() != Fenced || b.DomainState("a") != Fenced {
			t.Error("a node that returned activated its domain:", a.LocalState())
		}
	})
}

// TestLeaseRevoked: the store forgets the lease (all of them, say) while everything is well.
func TestLeaseRevoked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := memkv.NewServer(memkv.Options{})
		s := srv.Open()
		a := node(t, s, "n1", "a", volumes{})
		defer run(t, a)()
		later(time.Second)
		s.SetReachable(false)
		later(11 * time.Second)
		s.SetReachable(true)
		later(3 * time.Second)
		kv, err := s.Get(t.Context(), "/tandem/c/node/n1")
		if err != nil || kv.Lease == 0 {
			t.Error(kv, err)
		}
	})
}

func TestPoolsAreRefreshed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := memkv.NewServer(memkv.Options{})
		var used atomic.Int64
		a, err := New(srv.Open(), Options{
			Cluster: "c", Node: Node{Name: "n1", Domain: "a"}, Volumes: volumes{},
			Pools: func() []Pool { return []Pool{{UUID: "p", Total: 100, Used: used.Load()}} },
		})
		if err != nil {
			t.Fatal(err)
		}
		defer run(t, a)()
		later(time.Second)
		used.Store(7)
		later(11 * time.Second)
		if n, _ := a.View().Node("n1"); len(n.Pools) != 1 || n.Pools[0].Used != 7 {
			t.Errorf("%+v", n)
		}
	})
}

func TestNodeMayNotMove(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := memkv.NewServer(memkv.Options{})
		stop := run(t, node(t, srv.Open(), "n1", "a", volumes{}))
		later(time.Second)
		stop()
		err := node(t, srv.Open(), "n1", "b", volumes{}).Run(t.Context())
		if !errors.Is(err, ErrNodeDomain) || !strings.Contains(err.Error(), "domain a") {
			t.Error(err)
		}
	})
}

// TestTwoOperators decide on the same epoch at once: one wins, the other is told.
func TestTwoOperators(t *testing.T) {
	srv := memkv.NewServer(memkv.Options{})
	for _, d := range []string{"a", "b"} {
		if err := node(t, srv.Open(), "n-"+d, d, volumes{}).bootstrap(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	epoch := uint64(1)
	var won atomic.Int32
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			m := node(t, srv.Open(), "n-b", "b", volumes{})
			_, err := m.Deactivate(t.Context(), Change{Domain: "a", ExpectedEpoch: &epoch, PeerLost: i%2 == 0, Actor: "op"})
			switch {
			case err == nil:
				won.Add(1)
			case !errors.Is(err, ErrEpochChanged):
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if won.Load() != 1 {
		t.Error(won.Load(), "won")
	}
	if ds, _, _ := readDomains(t.Context(), srv.Open(), "c", &View{}); ds[0].Epoch != 2 {
		t.Errorf("%+v", ds[0])
	}
}

// TestBothDomainsAtOnce: two operators each deactivate one of the two domains of a volume; the gate lets one.
func TestBothDomainsAtOnce(t *testing.T) {
	for range 50 {
		srv := memkv.NewServer(memkv.Options{})
		vols := volumes{{ID: "1", Name: "v", Replicas: []arbiter.Replica{{Domain: "a", InSync: true}, {Domain: "b", InSync: true}}}}
		var won atomic.Int32
		var wg sync.WaitGroup
		ms := map[string]*Manager{}
		for _, d := range []string{"a", "b"} {
			ms[d] = node(t, srv.Open(), "n-"+d, d, vols)
			if err := ms[d].bootstrap(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		for d, m := range ms {
			wg.Go(func() {
				_, err := m.Deactivate(t.Context(), Change{Domain: d, PeerLost: true, Actor: "op"})
				switch {
				case err == nil:
					won.Add(1)
				case !errors.Is(err, ErrLastCopy):
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if won.Load() != 1 {
			t.Fatal(won.Load(), "won")
		}
	}
}

func TestChangeErrors(t *testing.T) {
	srv := memkv.NewServer(memkv.Options{})
	m := node(t, srv.Open(), "n1", "a", volumes{})
	if err := m.bootstrap(t.Context()); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		c    Change
		want error
	}{
		"unknown":      {Change{Domain: "z"}, ErrDomainNotFound},
		"bad name":     {Change{Domain: "a/b"}, ErrInvalid},
		"wrong epoch":  {Change{Domain: "a", ExpectedEpoch: new(uint64)}, ErrEpochChanged},
		"wrong volume": {Change{Domain: "a", AcceptDataLoss: []string{"typo"}}, ErrUnknownVolume},
	} {
		if _, err := m.Deactivate(t.Context(), c.c); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
	d, err := m.Activate(t.Context(), Change{Domain: "a"})
	if err != nil || d.Epoch != 1 {
		t.Error("activation of an active domain changed it:", d, err)
	}
}

func TestChangeOfUnknownOutcome(t *testing.T) {
	setup := func(t *testing.T) (*memkv.Server, *flaky, *Manager) {
		srv := memkv.NewServer(memkv.Options{})
		f := &flaky{Store: srv.Open()}
		m := node(t, f, "n1", "a", volumes{})
		if err := m.bootstrap(t.Context()); err != nil {
			t.Fatal(err)
		}
		return srv, f, m
	}
	for _, late := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			_, f, m := setup(t)
			f.late = late
			f.lose.Store(3)
			d, err := m.Deactivate(t.Context(), Change{Domain: "a", PeerLost: true, Actor: "me"})
			if err != nil || d.State != Fenced || d.Epoch != 2 || d.Actor != "me" {
				t.Error(late, d, err)
			}
		})
	}
	synctest.Test(t, func(t *testing.T) {
		srv, f, m := setup(t)
		f.late = true
		f.lose.Store(1)
		f.after = func() { // it took effect, and somebody undid it before we could look
			if _, err := node(t, srv.Open(), "n2", "b", volumes{}).Activate(t.Context(), Change{Domain: "a", Actor: "other"}); err != nil {
				t.Error(err)
			}
		}
		_, err := m.Deactivate(t.Context(), Change{Domain: "a", PeerLost: true, Actor: "me"})
		if !errors.Is(err, ErrOutcomeUnknown) || !strings.Contains(err.Error(), "other") {
			t.Error(err)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		_, f, m := setup(t)
		f.lose.Store(1 << 30)
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		if _, err := m.Deactivate(ctx, Change{Domain: "a", PeerLost: true}); !errors.Is(err, ErrOutcomeUnknown) {
			t.Error(err)
		}
	})
}

// TestWatchTellsTheLatest: a receiver that sleeps is told the end of the story.
func TestWatchTellsTheLatest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := memkv.NewServer(memkv.Options{})
		a := node(t, srv.Open(), "n1", "a", volumes{})
		defer run(t, a)()
		later(time.Second)
		ctx, cancel := context.WithCancel(t.Context())
		ch := a.Watch(ctx)
		for range 5 {
			if _, err := a.Deactivate(ctx, Change{Domain: "a", PeerLost: true}); err != nil {
				t.Fatal(err)
			}
			if _, err := a.Activate(ctx, Change{Domain: "a"}); err != nil {
				t.Fatal(err)
			}
			later(3 * time.Second)
		}
		v := <-ch
		if d, _ := v.Domain("a"); d.State != Active || d.Epoch != 16 {
			t.Errorf("%+v", d)
		}
		cancel()
		synctest.Wait()
		if _, ok := <-ch; ok {
			t.Error("a view after the end")
		}
	})
}

func TestServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := memkv.NewServer(memkv.Options{})
		s := srv.Open()
		vols := volumes{{ID: "1", Name: "v", Coordinator: arbiter.Coordinator{Node: "n1", Domain: "a"},
			Replicas: []arbiter.Replica{{Domain: "a", State: "IN_SYNC", InSync: true}, {Domain: "b", State: "SYNCING"}}}}
		a := node(t, s, "n1", "a", vols)
		defer run(t, a, node(t, srv.Open(), "n2", "b", vols))()
		later(time.Second)
		sv := NewServer(a, ServerOptions{
			Version: "1", Kvdb: func(context.Context) KvdbStatus { return KvdbStatus{Kind: "mem"} },
			RTTs: func() []RTT {
				return []RTT{{Node: "n2", Domain: "b", P50: time.Millisecond, P99: 11 * time.Millisecond, Samples: 9}}
			},
		})
		l, err := sv.ListDomains(t.Context(), nil)
		if err != nil || len(l.Domains) != 2 || l.Domains[0].Sync != clusterdomainpb.SyncStatus_SYNC_STATUS_IN_SYNC ||
			l.Domains[1].Sync != clusterdomainpb.SyncStatus_SYNC_STATUS_SYNC_IN_PROGRESS || l.Domains[1].NodesOnline != 1 {
			t.Fatal(l, err)
		}
		_, err = sv.DeactivateDomain(t.Context(), &clusterdomainpb.DeactivateDomainRequest{Domain: "a"})
		if !errors.Is(err, ErrLastCopy) || !strings.Contains(err.Error(), "--accept-data-loss=v") {
			t.Error(err)
		}
		d, err := sv.DeactivateDomain(t.Context(), &clusterdomainpb.DeactivateDomainRequest{Domain: "a", AcceptDataLossVolumes: []string{"v"}})
		if err != nil || d.Domain.State != clusterdomainpb.DomainState_DOMAIN_STATE_DRAINING || len(d.Domain.Blocked) != 1 || d.Domain.Blocked[0].Cause != "still-attached" || d.Domain.Actor != "unknown" {
			t.Error(d, err)
		}
		if r, err := sv.ActivateDomain(t.Context(), &clusterdomainpb.ActivateDomainRequest{Domain: "a", Actor: "me"}); err != nil || r.Domain.State != clusterdomainpb.DomainState_DOMAIN_STATE_ACTIVE {
			t.Error(r, err)
		}
		st, err := sv.GetStatus(t.Context(), nil)
		if err != nil || len(st.Nodes) != 2 || !st.Nodes[0].ThisNode || st.ClusterId == "" || !st.Kvdb.Healthy || !st.Rtts[0].Warning {
			t.Error(st, err)
		}
		// Without the kvdb there is still a status, and it says so.
		s.SetReachable(false)
		st, err = sv.GetStatus(t.Context(), nil)
		if err != nil || len(st.Nodes) != 2 || st.Kvdb.Healthy || st.Alerts[0].Code != string(AlertKvdbUnhealthy) ||
			st.Domains[0].Sync != clusterdomainpb.SyncStatus_SYNC_STATUS_UNSPECIFIED {
			t.Error(st, err)
		}
		s.SetReachable(true)
	})
}

// silent is a store that does not answer.
type silent struct{ kvdb.Store }

func (silent) List(ctx context.Context, _ string) ([]kvdb.KV, kvdb.Revision, error) {
	<-ctx.Done()
	return nil, 0, ctx.Err()
}

// TestRefreshInItsTime: whoever refreshes waits no longer than he said, also for another one who waits for the kvdb: the arbiter's look is late otherwise.
func TestRefreshInItsTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := node(t, silent{memkv.New()}, "n1", "a", volumes{})
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			_ = m.Refresh(ctx)
		}()
		synctest.Wait()
		short, done := context.WithTimeout(t.Context(), time.Second)
		defer done()
		began := time.Now()
		if err := m.Refresh(short); !errors.Is(err, context.DeadlineExceeded) || time.Since(began) != time.Second {
			t.Errorf("%v after %v", err, time.Since(began))
		}
		cancel()
		<-ended
	})
}
