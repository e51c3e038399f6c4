package clusterdomain

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap/zaptest"

	"github.com/tandem-storage/tandem/audit"
	"github.com/tandem-storage/tandem/clusterdomain/arbiter"
	"github.com/tandem-storage/tandem/kvdb"
	"github.com/tandem-storage/tandem/kvdb/memkv"
)

// sharedVolumes are volumes, attached on a1, that attach moves; all replicas stay in sync.
type sharedVolumes struct {
	mu sync.Mutex
	m  map[string]*arbiter.Volume
}

func newVolumes(names ...string) *sharedVolumes {
	s := &sharedVolumes{m: map[string]*arbiter.Volume{}}
	for _, n := range names {
		s.m[n] = &arbiter.Volume{ID: n, Name: n, Epoch: 5, Coordinator: arbiter.Coordinator{Node: "a1", Domain: "a"}, Replicas: []arbiter.Replica{
			{Node: "a1", Domain: "a", State: "IN_SYNC", InSync: true}, {Node: "b1", Domain: "b", State: "IN_SYNC", InSync: true},
			{Node: "b2", Domain: "b", State: "IN_SYNC", InSync: true},
		}}
	}
	return s
}

func (s *sharedVolumes) Facts(context.Context) ([]arbiter.Volume, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var vs []arbiter.Volume
	for _, v := range s.m {
		vs = append(vs, *v)
	}
	slices.SortFunc(vs, func(a, b arbiter.Volume) int { return strings.Compare(a.ID, b.ID) })
	return vs, nil
}

func (*sharedVolumes) EvictDetached(context.Context, string, string) error { return nil }

func (s *sharedVolumes) attach(volume, node string) uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	v := s.m[volume]
	v.Coordinator = arbiter.Coordinator{Node: node, Domain: node[:1]}
	v.Epoch++
	return v.Epoch
}

func (s *sharedVolumes) at(volume string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.m[volume].Coordinator.Node
}

// sites are a cluster of a1, b1 and b2 over a memkv, with automatic failover.
type sites struct {
	srv  *memkv.Server
	vols *sharedVolumes
	down map[string]bool // nodes that answer nobody
	mu   sync.Mutex
	ms   map[string]*Manager
	kv   map[string]*memkv.Store
	stop map[string]func()
	fail map[string]error // of an attach, by node
	term uint64           // of the kvdb's leader
	// onFence, if not nil, is called with the transaction that fences a domain, by node.
	onFence func(node string, do func() (kvdb.TxnResult, error)) (kvdb.TxnResult, error)
}

// fencing is a store that shows transactions that fence a domain.
type fencing struct {
	kvdb.Store
	node string
	s    *sites
}

func (f *fencing) Txn(ctx context.Context, t kvdb.Txn) (kvdb.TxnResult, error) {
	do := func() (kvdb.TxnResult, error) { return f.Store.Txn(ctx, t) }
	if !slices.ContainsFunc(t.Then, func(o kvdb.Op) bool { return o.Key == lastFailoverKey("c") }) {
		return do()
	}
	f.s.mu.Lock()
	on := f.s.onFence
	f.s.mu.Unlock()
	if on == nil {
		return do()
	}
	return on(f.node, do)
}

func newSites(t *testing.T, vols *sharedVolumes, names ...string) *sites {
	return newSitesWith(t, vols, func(*Options) {}, names...)
}

func newSitesWith(t *testing.T, vols *sharedVolumes, change func(*Options), names ...string) *sites {
	s := &sites{
		srv: memkv.NewServer(memkv.Options{}), vols: vols, down: map[string]bool{}, ms: map[string]*Manager{},
		kv: map[string]*memkv.Store{}, stop: map[string]func(){}, fail: map[string]error{},
	}
	for _, n := range names {
		s.kv[n] = s.srv.Open()
		o := Options{
			Cluster: "c", Node: Node{Name: n, Domain: n[:1], Address: n + ":1"}, Volumes: vols, Logger: zaptest.NewLogger(t),
			Failover: Failover{
				Enabled: true,
				LastHeard: func(node string) time.Time {
					s.mu.Lock()
					defer s.mu.Unlock()
					if s.down[node] || s.down[n] {
						return time.Time{}.Add(time.Second)
					}
					return time.Now()
				},
				Term: func(context.Context) (uint64, error) {
					s.mu.Lock()
					defer s.mu.Unlock()
					return s.term, nil
				},
				Attach: func(_ context.Context, volume, reason string) (uint64, error) {
					if !strings.HasPrefix(reason, "automatic failover ") {
						t.Errorf("attached because of %q", reason)
					}
					s.mu.Lock()
					defer s.mu.Unlock()
					if err := s.fail[n]; err != nil {
						return 0, err
					}
					return vols.attach(volume, n), nil
				},
			},
		}
		change(&o)
		m, err := New(&fencing{Store: s.kv[n], node: n, s: s}, o)
		if err != nil {
			t.Fatal(err)
		}
		s.ms[n] = m
		s.stop[n] = run(t, m)
	}
	return s
}

func (s *sites) fenceWith(f func(node string, do func() (kvdb.TxnResult, error)) (kvdb.TxnResult, error)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.onFence = f
}

// lose cuts a node from the kvdb and from all others.
func (s *sites) lose(n string) {
	s.mu.Lock()
	s.down[n] = true
	s.mu.Unlock()
	s.kv[n].SetReachable(false)
}

func (s *sites) find(n string) {
	s.mu.Lock()
	delete(s.down, n)
	s.mu.Unlock()
	s.kv[n].SetReachable(true)
}

func (s *sites) end() {
	for _, n := range s.kv {
		n.SetReachable(true)
	}
	for _, stop := range s.stop {
		stop()
	}
}

// TestFailover: a site that is lost is fenced in time, what was attached there goes on in the other one, and the record tells it.
func TestFailover(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		vols := newVolumes("v1", "v2", "elsewhere")
		vols.attach("elsewhere", "b2")
		s := newSites(t, vols, "a1", "b1", "b2")
		defer s.end()
		later(30 * time.Second)
		s.lose("a1")
		later(24 * time.Second)
		if st := s.ms["b1"].DomainState("a"); st != Active {
			t.Fatalf("fenced before its time: %s", st)
		}
		later(5 * time.Second)
		d, _ := s.ms["b1"].View().Domain("a")
		if d.State != Fenced || d.Failover == nil || d.Failover.ID != 1 || d.Failover.To != "b" || !strings.HasPrefix(d.Reason, "automatic failover 1: ") {
			t.Fatalf("%+v", d)
		}
		later(2 * time.Second)
		for _, v := range []string{"v1", "v2"} {
			if at := vols.at(v); at != "b1" {
				t.Errorf("%s is attached on %s", v, at)
			}
		}
		if at := vols.at("elsewhere"); at != "b2" {
			t.Errorf("a volume that was not attached in the lost site was moved to %s", at)
		}
		r, err := s.ms["b2"].FailoverReport(t.Context(), 0)
		if err != nil || r.ID != 1 || r.Domain != "a" || r.To != "b" || r.DomainEpoch != d.Epoch || !slices.Equal(r.Nodes, []string{"a1"}) || len(r.Volumes) != 2 {
			t.Fatalf("%+v %v", r, err)
		}
		for _, v := range r.Volumes {
			if mv := v.Moved; v.Epoch != 5 || v.From != "a1" || v.To != "b1" || mv == nil || mv.Epoch != 6 || mv.Node != "b1" || mv.Attached.Before(r.Fenced) {
				t.Errorf("%+v %+v", v, v.Moved)
			}
		}
		if !r.Heard.Before(r.Gone) || !r.Gone.Before(r.Fenced) {
			t.Errorf("%v %v %v", r.Heard, r.Gone, r.Fenced)
		}
		entries, _, err := audit.New(s.kv["b1"], "c", "b1").Entries(t.Context(), time.Time{})
		fenced := slices.IndexFunc(entries, func(e audit.Entry) bool { return e.Verb == "failover" })
		if err != nil || fenced < 0 || entries[fenced].Object != "domain/a" || entries[fenced].Reason != d.Reason || entries[fenced].Actor != d.Actor || entries[fenced].Epoch != d.Epoch {
			t.Errorf("in the audit trail: %+v, %v", entries, err)
		}
		s.find("a1")
		later(time.Minute)
		if st := s.ms["b1"].DomainState("a"); st != Fenced {
			t.Errorf("a domain returned to service by itself: %s", st)
		}
		if _, err := s.ms["b1"].FailoverReport(t.Context(), 9); !errors.Is(err, ErrFailoverNotFound) {
			t.Error(err)
		}
	})
}

// TestFailoverGoesOnElsewhere: the node that was to attach is lost too, or cannot: another one does, or it tries again.
func TestFailoverGoesOnElsewhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		vols := newVolumes("v1")
		s := newSites(t, vols, "a1", "b1", "b2")
		defer s.end()
		later(30 * time.Second)
		s.mu.Lock()
		s.fail["b1"] = errors.New("no loop devices")
		s.mu.Unlock()
		s.lose("a1")
		later(35 * time.Second)
		r, err := s.ms["b1"].FailoverReport(t.Context(), 1)
		if err != nil || r.Volumes[0].Moved == nil || r.Volumes[0].Moved.Error != "no loop devices" || r.Volumes[0].Moved.Attempts < 2 || vols.at("v1") != "a1" {
			t.Fatalf("%+v %v", r, err)
		}
		s.lose("b1")
		later(15 * time.Second)
		if at := vols.at("v1"); at != "b2" {
			t.Errorf("attached on %s", at)
		}
	})
}

// TestFailoverSuperseded: an operator who activates the domain, or detaches the volume, ends what was going to be attached.
func TestFailoverSuperseded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		vols := newVolumes("v1", "v2")
		s := newSites(t, vols, "a1", "b1")
		defer s.end()
		later(30 * time.Second)
		s.mu.Lock()
		s.fail["b1"] = errors.New("not now")
		s.mu.Unlock()
		s.lose("a1")
		later(35 * time.Second)
		vols.mu.Lock()
		vols.m["v1"].Coordinator = arbiter.Coordinator{}
		vols.mu.Unlock()
		if d, err := s.ms["b1"].Activate(t.Context(), Change{Domain: "a", Actor: "op"}); err != nil || d.Failover != nil {
			t.Fatal(d, err)
		}
		s.mu.Lock()
		delete(s.fail, "b1")
		s.mu.Unlock()
		later(time.Minute)
		if v1, v2 := vols.at("v1"), vols.at("v2"); v1 != "" || v2 != "a1" {
			t.Errorf("attached on %q and %q", v1, v2)
		}
	})
}

// TestFailoverRaces: at the last moment the operator decides otherwise, a node comes back, another arbiter fences, or an in-sync set changes
// (F28): exactly one transaction wins, and it is not that of an arbiter that did not know.
func TestFailoverRaces(t *testing.T) {
	for name, tc := range map[string]struct {
		before func(t *testing.T, s *sites)
		state  State // of a, when the arbiter's transaction has been carried out
		again  bool  // the arbiter may find that the domain is lost all the same
	}{
		"an operator drains it": {func(t *testing.T, s *sites) {
			if _, err := s.ms["b2"].Deactivate(t.Context(), Change{Domain: "a", Actor: "op"}); err != nil {
				t.Error(err)
			}
		}, Draining, true},
		"an operator fences it": {func(t *testing.T, s *sites) {
			if _, err := s.ms["b2"].Deactivate(t.Context(), Change{Domain: "a", PeerLost: true, Actor: "op"}); err != nil {
				t.Error(err)
			}
		}, Fenced, false},
		"the own domain is fenced": {func(t *testing.T, s *sites) {
			if _, err := s.ms["b2"].Deactivate(t.Context(), Change{Domain: "b", PeerLost: true, Actor: "op"}); err != nil {
				t.Error(err)
			}
		}, Active, false},
		"a node comes back": {func(t *testing.T, s *sites) {
			if _, err := kvdb.Put(t.Context(), s.kv["b2"], "/tandem/c/node/a1", []byte(`{"name":"a1","domain":"a"}`)); err != nil {
				t.Error(err)
			}
		}, Active, false},
		"a coordinator there shrinks an in-sync set": {func(t *testing.T, s *sites) {
			if _, err := kvdb.Put(t.Context(), s.kv["b2"], ShrunkKey("c", "a"), []byte("x")); err != nil {
				t.Error(err)
			}
		}, Active, true},
		"another failover": {func(t *testing.T, s *sites) {
			if _, err := kvdb.Put(t.Context(), s.kv["b2"], lastFailoverKey("c"), fmt.Appendf(nil, `{"id":7,"fenced":%q}`, time.Now().Format(time.RFC3339Nano))); err != nil {
				t.Error(err)
			}
		}, Active, false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newSites(t, newVolumes("v1"), "a1", "b1", "b2")
				defer s.end()
				later(30 * time.Second)
				var raced atomic.Bool
				s.fenceWith(func(_ string, do func() (kvdb.TxnResult, error)) (kvdb.TxnResult, error) {
					if !raced.Swap(true) {
						tc.before(t, s)
					}
					return do()
				})
				s.lose("a1")
				for i := 0; !raced.Load() && i < 300; i++ {
					later(100 * time.Millisecond)
				}
				later(10 * time.Millisecond)
				d, _, err := readDomains(t.Context(), s.kv["b2"], "c", &View{})
				if err != nil || !raced.Load() || d[0].State != tc.state || d[0].Failover != nil {
					t.Fatalf("raced %v: %+v %v", raced.Load(), d[0], err)
				}
				later(10 * time.Second)
				if d, _, _ = readDomains(t.Context(), s.kv["b2"], "c", &View{}); (d[0].Failover != nil) != tc.again {
					t.Errorf("%+v", d[0])
				}
			})
		})
	}
}

// TestFailoverOutcomeUnknown: the answer to the transaction is lost. It is not sent again blindly; what it did is found.
func TestFailoverOutcomeUnknown(t *testing.T) {
	for _, done := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			s := newSites(t, newVolumes("v1"), "a1", "b1")
			defer s.end()
			later(30 * time.Second)
			var lost atomic.Int32
			s.fenceWith(func(_ string, do func() (kvdb.TxnResult, error)) (kvdb.TxnResult, error) {
				if lost.Add(1) > 1 {
					return do()
				}
				if done {
					if _, err := do(); err != nil {
						return kvdb.TxnResult{}, err
					}
				}
				return kvdb.TxnResult{}, kvdb.ErrUnavailable
			})
			s.lose("a1")
			later(60 * time.Second)
			rs, err := s.ms["b1"].Failovers(t.Context())
			if d := s.ms["b1"].DomainState("a"); err != nil || len(rs) != 1 || d != Fenced || done != (lost.Load() == 1) {
				t.Errorf("done %v: %s %+v %v", done, d, rs, err)
			}
		})
	}
}

// TestFailoversAreForgotten: the last ones are kept, with what became of their volumes.
func TestFailoversAreForgotten(t *testing.T) {
	s := memkv.New()
	m := node(t, s, "b1", "b", volumes{})
	for id := uint64(1); id <= keepFailovers+5; id++ {
		value, _ := encode(FailoverRecord{ID: id})
		for _, key := range []string{failoverKey("c", id), movedPrefix("c", id) + "v1", movedPrefix("c", id) + "v2"} {
			if _, err := kvdb.Put(t.Context(), s, key, value); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := m.forgetFailovers(t.Context(), keepFailovers+5); err != nil {
		t.Fatal(err)
	}
	rs, err := m.Failovers(t.Context())
	if err != nil || len(rs) != keepFailovers || rs[0].ID != keepFailovers+5 || rs[keepFailovers-1].ID != 6 {
		t.Errorf("%+v %v", rs, err)
	}
	if kvs, _, _ := s.List(t.Context(), "/tandem/c/failover/volume/"); len(kvs) != 2*keepFailovers {
		t.Errorf("%d records of volumes", len(kvs))
	}
}
