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

	"github.com/tandem-storage/tandem/clusterdomain/arbiter"
	"github.com/tandem-storage/tandem/clusterdomain/clusterdomainpb"
	"github.com/tandem-storage/tandem/kvdb"
	"github.com/tandem-storage/tandem/kvdb/memkv"
)

// mirrored is a volume with replicas on n1 in domain a and n2 in domain b, attached on a node, "" for none, with these in sync.
func mirrored(name, at string, inSync ...string) arbiter.Volume {
	v := arbiter.Volume{ID: name, Name: name, Coordinator: arbiter.Coordinator{Node: at}}
	for node, domain := range map[string]string{"n1": "a", "n2": "b"} {
		r := arbiter.Replica{Node: node, Domain: domain, State: "STALE"}
		if slices.Contains(inSync, node) {
			r.State, r.InSync = "IN_SYNC", true
		}
		v.Replicas = append(v.Replicas, r)
	}
	return v
}

func TestRestartWaits(t *testing.T) {
	single := mirrored("one", "n1", "n1")
	single.Replicas = slices.DeleteFunc(single.Replicas, func(r arbiter.Replica) bool { return r.Node != "n1" })
	odd := mirrored("odd", "n2", "n1", "n2")
	odd.RolledBack = "n1"
	three := []string{"n1", "n2", "w"}
	many := volumes{}
	for i := range mostWaits + 2 {
		many = append(many, mirrored(fmt.Sprint("v", i), "n1", "n1"))
	}
	for name, tc := range map[string]struct {
		vols    volumes
		members []string
		others  restarts
		change  func(*View)
		says    []string // parts of what is waited for, in order
	}{
		"nothing there":                   {},
		"both in sync":                    {vols: volumes{mirrored("v", "n1", "n1", "n2"), mirrored("u", "n2", "n1", "n2")}, members: three},
		"last copy":                       {vols: volumes{mirrored("v", "n2", "n1")}, says: []string{"volume v: its last in-sync copy is there; that on n2 is STALE"}},
		"last copy, the client is here":   {vols: volumes{mirrored("v", "n1", "n1")}, says: []string{"volume v: its last in-sync copy"}},
		"the copy here is the stale one":  {vols: volumes{mirrored("v", "n1", "n2")}},
		"detached":                        {vols: volumes{mirrored("v", "", "n1")}},
		"one replica":                     {vols: volumes{single}},
		"the kvdb was rolled back":        {vols: volumes{odd}, says: []string{"import it first"}},
		"unreadable":                      {vols: volumes{{Name: "v", Unreadable: "bad checksum"}}, says: []string{"volume v: its configuration cannot be read: bad checksum"}},
		"the other copy is away":          {vols: volumes{mirrored("v", "n1", "n1", "n2")}, change: offline("n2"), says: []string{"n2 is away"}},
		"the other copy is restarted":     {vols: volumes{mirrored("v", "n1", "n1", "n2")}, others: restarts{"n2": "x"}, says: []string{"plan-restart n2 --cancel", "n2 is away"}},
		"the other domain is fenced":      {vols: volumes{mirrored("v", "n1", "n1", "n2")}, change: func(v *View) { v.Domains[1].State = Fenced }, says: []string{"last in-sync copy"}},
		"it is gone itself, and the last": {vols: volumes{mirrored("v", "n2", "n1")}, change: offline("n1"), says: []string{"last in-sync copy"}},
		"another one has leave":           {others: restarts{"w": "x"}, says: []string{"node w has leave"}},
		"a member is away":                {members: three, change: offline("w"), says: []string{"no majority: its members on w are away"}},
		"of five members one is away":     {members: append([]string{"m4", "m5"}, three...), change: offline("m5")},
		"of five members two are":         {members: append([]string{"m4", "m5"}, three...), change: func(v *View) { offline("m5")(v); offline("m4")(v) }, says: []string{"m4, m5 are away"}},
		"the only member":                 {members: []string{"n1"}},
		"no member itself":                {members: []string{"n2", "w"}, change: offline("w")},
		"devices end with it":             {change: func(v *View) { v.Nodes[0].Fragile = 2 }, says: []string{"2 volumes are attached there with devices"}},
		"of a version before":             {change: func(v *View) { v.Nodes[0].Instance = "" }, says: []string{"restart it by hand, this once"}},
		"they have ended":                 {change: func(v *View) { v.Nodes[0].Fragile = 2; v.Nodes[0].Online = false }},
		"many volumes":                    {vols: many, says: []string{"v0", "v1", "v2", "v3", "v4", "and 2 more"}},
	} {
		t.Run(name, func(t *testing.T) {
			v := &View{Domains: []Domain{{Name: "a", State: Active}, {Name: "b", State: Active}}}
			for _, n := range []string{"n1", "n2", "w", "m4", "m5"} {
				v.Nodes = append(v.Nodes, Node{Name: n, Online: true, Instance: "x"})
			}
			if tc.change != nil {
				tc.change(v)
			}
			got := restartWaits(v, tc.vols, tc.members, tc.others, v.Nodes[0])
			if len(got) != len(tc.says) {
				t.Fatalf("%q", got)
			}
			for i, w := range got {
				if !strings.Contains(w, tc.says[i]) {
					t.Errorf("%q, want %q", w, tc.says[i])
				}
			}
		})
	}
}

func offline(name string) func(*View) {
	return func(v *View) {
		i := slices.IndexFunc(v.Nodes, func(n Node) bool { return n.Name == name })
		v.Nodes[i].Online = false
	}
}

// TestPlanRestart: leave is one node's until its daemon is another one, or it is taken back.
func TestPlanRestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := memkv.NewServer(memkv.Options{})
		vols := volumes{mirrored("v", "n1", "n1", "n2")}
		a, b := node(t, srv.Open(), "n1", "a", vols), node(t, srv.Open(), "n2", "b", vols)
		stopA, stopB := run(t, a), run(t, b)
		later(time.Second)
		plan := func(node string, cancel, granted bool) {
			t.Helper()
			later(time.Second)
			resp, err := NewServer(b, ServerOptions{}).PlanRestart(t.Context(), &clusterdomainpb.PlanRestartRequest{Node: node, Cancel: cancel})
			if err != nil || resp.Granted != granted || !cancel && granted != (len(resp.Waits) == 0) {
				t.Fatalf("%v, %v", resp, err)
			}
		}
		plan("n1", false, true)
		plan("n1", false, true) // again is no harm
		plan("n2", false, false)
		stopA() // it does what it has leave for
		plan("n2", false, false)
		a = node(t, srv.Open(), "n1", "a", vols)
		stopA = run(t, a)
		plan("n2", false, true)
		plan("n1", false, false)
		plan("n2", true, false)
		plan("n1", false, true)
		plan("n1", true, false)
		plan("n1", true, false) // it has none
		plan("n2", false, true)
		if _, err := b.PlanRestart(t.Context(), "n3", false, nil); !errors.Is(err, ErrNodeNotFound) {
			t.Errorf("a node that is none: %v", err)
		}
		if _, err := kvdb.Put(t.Context(), srv.Open(), restartsKey("c"), []byte("{")); err != nil {
			t.Fatal(err)
		}
		if _, err := b.PlanRestart(t.Context(), "n1", false, nil); !errors.Is(err, ErrBadRecord) {
			t.Errorf("a record that cannot be read: %v", err)
		}
		stopA()
		stopB()
	})
}

// meeting is a store whose first read of a key is followed by nothing before the others have read it, too.
type meeting struct {
	kvdb.Store
	key  string
	once sync.Once
	all  *sync.WaitGroup
}

func (s *meeting) Get(ctx context.Context, key string) (kvdb.KV, error) {
	kv, err := s.Store.Get(ctx, key)
	if key == s.key {
		s.once.Do(s.all.Done)
		s.all.Wait()
	}
	return kv, err
}

// TestPlanRestartAtOnce: of two nodes with the copies of a volume one has leave, whatever each of them has read before the other one wrote.
func TestPlanRestartAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := memkv.NewServer(memkv.Options{})
		vols := volumes{mirrored("v", "n1", "n1", "n2")}
		var read sync.WaitGroup
		read.Add(2)
		open := func() kvdb.Store { return &meeting{Store: srv.Open(), key: restartsKey("c"), all: &read} }
		managers := []*Manager{node(t, open(), "n1", "a", vols), node(t, open(), "n2", "b", vols)}
		defer run(t, managers...)()
		later(time.Second)
		var both sync.WaitGroup
		var granted atomic.Int32
		for _, m := range managers {
			both.Go(func() {
				waits, err := m.PlanRestart(t.Context(), m.o.Node.Name, false, nil)
				if err != nil {
					t.Error(err)
				}
				if waits == nil {
					granted.Add(1)
				}
			})
		}
		both.Wait()
		if n := granted.Load(); n != 1 {
			t.Errorf("%d have leave", n)
		}
	})
}
