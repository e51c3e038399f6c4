package clusterdomain

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tandem-storage/tandem/clusterdomain/arbiter"
)

// TestFailoverAlerts: what an arbiter does, does not do, or would not be able to do.
func TestFailoverAlerts(t *testing.T) {
	nodes := []Node{{Name: "a1", Domain: "a", Online: true}, {Name: "b1", Domain: "b", Online: true}, {Name: "w", Domain: "c", Online: true, Witness: true}}
	view := func(a State, f *FailoverRef) *View {
		return &View{Domains: []Domain{{Name: "a", State: a, Failover: f}, {Name: "b", State: Active}}, Nodes: nodes}
	}
	members := func(names ...string) (ms []KvdbMember) {
		for _, n := range names {
			ms = append(ms, KvdbMember{Name: n})
		}
		return ms
	}
	left := func(change func(*arbiter.Volume)) []arbiter.Volume {
		v := arbiter.Volume{ID: "1", Name: "v", Coordinator: arbiter.Coordinator{Node: "a1", Domain: "a"}, Replicas: []arbiter.Replica{
			{Node: "a1", Domain: "a", InSync: true}, {Node: "b1", Domain: "b", InSync: true},
		}}
		change(&v)
		return []arbiter.Volume{v}
	}
	outlook := func(v arbiter.Verdict) map[string]arbiter.Verdict { return map[string]arbiter.Verdict{"a": v} }
	const fenced = "domain-fenced domain/a"
	for name, c := range map[string]struct {
		o    Observed
		want string
	}{
		"well":            {Observed{View: view(Active, nil), Failover: true, Members: members("a1", "b1", "w"), Outlook: outlook(arbiter.Verdict{Idle: arbiter.InService})}, ""},
		"confirming":      {Observed{View: view(Active, nil), Outlook: outlook(arbiter.Verdict{Idle: arbiter.Confirming, Text: "soon"})}, "failover-due domain/a"},
		"now":             {Observed{View: view(Active, nil), Outlook: outlook(arbiter.Verdict{Fence: true, Text: "now"})}, "failover-due domain/a"},
		"back-off":        {Observed{View: view(Active, nil), Outlook: outlook(arbiter.Verdict{Idle: arbiter.BackOff})}, "failover-idle domain/a"},
		"all in one site": {Observed{View: view(Active, nil), Failover: true, Members: members("a1", "a1", "b1")}, "failover-impossible domain/a"},
		"one in each":     {Observed{View: view(Active, nil), Failover: true, Members: members("a1", "b1")}, "failover-impossible domain/a, failover-impossible domain/b"},
		"turned off":      {Observed{View: view(Active, nil), Members: members("a1")}, ""},
		"being attached":  {Observed{View: view(Fenced, &FailoverRef{ID: 1, To: "b"}), Volumes: left(func(*arbiter.Volume) {})}, fenced + ", failover-pending volume/1"},
		"manual":          {Observed{View: view(Fenced, &FailoverRef{ID: 1, To: "b"}), Volumes: left(func(v *arbiter.Volume) { v.Manual = true })}, fenced + ", failover-pending volume/1"},
		"by an operator":  {Observed{View: view(Fenced, nil), Volumes: left(func(*arbiter.Volume) {})}, fenced},
		"moved":           {Observed{View: view(Fenced, &FailoverRef{ID: 1, To: "b"}), Volumes: left(func(v *arbiter.Volume) { v.Coordinator = arbiter.Coordinator{Node: "b1", Domain: "b"} })}, fenced},
	} {
		var got []string
		for _, a := range Alerts(c.o) {
			got = append(got, string(a.Code)+" "+a.Resource)
		}
		if s := strings.Join(got, ", "); s != c.want {
			t.Errorf("%s: %s, want %s", name, s, c.want)
		}
	}
}

func TestAlerts(t *testing.T) {
	pool := func(used int64) []Node {
		return []Node{{Name: "n", Online: true, Pools: []Pool{{UUID: "p", Total: 1000, Used: used}}}}
	}
	replicas := func(states ...string) []arbiter.Volume {
		v := arbiter.Volume{ID: "1", Name: "v"}
		for _, s := range states {
			v.Replicas = append(v.Replicas, arbiter.Replica{State: s, InSync: s == "IN_SYNC"})
		}
		return []arbiter.Volume{v}
	}
	domain := func(s State) *View { return &View{Domains: []Domain{{Name: "d", State: s}}} }
	for name, c := range map[string]struct {
		o    Observed
		want string
	}{
		"nothing":      {Observed{View: domain(Active), Volumes: replicas("IN_SYNC", "IN_SYNC")}, ""},
		"standby":      {Observed{View: domain(Standby)}, ""},
		"fenced":       {Observed{View: domain(Fenced)}, "3 domain-fenced domain/d"},
		"inactive":     {Observed{View: domain(Inactive)}, "2 domain-inactive domain/d"},
		"draining":     {Observed{View: domain(Draining)}, "1 domain-draining domain/d"},
		"rejoining":    {Observed{View: domain(Rejoining)}, "1 domain-rejoining domain/d"},
		"offline":      {Observed{View: &View{Nodes: []Node{{Name: "n"}}}}, "2 node-offline node/n"},
		"pool 79":      {Observed{View: &View{Nodes: pool(799)}}, ""},
		"pool 80":      {Observed{View: &View{Nodes: pool(800)}}, "2 pool-nearly-full pool/p"},
		"pool 85":      {Observed{View: &View{Nodes: pool(850)}}, "3 pool-full pool/p"},
		"pool 97":      {Observed{View: &View{Nodes: pool(970)}}, "3 pool-critical pool/p"},
		"rtt 10 ms":    {Observed{View: &View{}, RTTs: []RTT{{Node: "n", P99: 10 * time.Millisecond, Samples: 1}}}, ""},
		"rtt above":    {Observed{View: &View{}, RTTs: []RTT{{Node: "n", P99: 10*time.Millisecond + 1, Samples: 1}}}, "2 rtt-high node/n"},
		"rtt not new":  {Observed{View: &View{}, RTTs: []RTT{{Node: "n", P99: time.Second}}}, ""},
		"single copy":  {Observed{View: &View{}, Volumes: replicas("IN_SYNC")}, ""},
		"last copy":    {Observed{View: &View{}, Volumes: replicas("IN_SYNC", "STALE")}, "3 volume-last-copy volume/1"},
		"two of three": {Observed{View: &View{}, Volumes: replicas("IN_SYNC", "IN_SYNC", "SYNCING")}, "2 volume-not-in-sync volume/1"},
		"unreadable":   {Observed{View: &View{}, Volumes: []arbiter.Volume{{ID: "1", Unreadable: "damaged"}}}, "3 volume-unreadable volume/1"},
		"kvdb":         {Observed{View: &View{}, Kvdb: errors.New("gone")}, "3 kvdb-unhealthy kvdb"},
	} {
		var got []string
		for _, a := range Alerts(c.o) {
			if a.Text == "" {
				t.Errorf("%s: no text", name)
			}
			got = append(got, string('0'+rune(a.Severity))+" "+string(a.Code)+" "+a.Resource)
		}
		if s := strings.Join(got, ", "); s != c.want {
			t.Errorf("%s: %s, want %s", name, s, c.want)
		}
	}
	all := Alerts(Observed{View: &View{Domains: []Domain{{Name: "a", State: Draining}, {Name: "b", State: Fenced}}, Nodes: []Node{{Name: "n"}}}})
	if !slices.IsSortedFunc(all, func(a, b Alert) int { return int(b.Severity - a.Severity) }) || len(all) != 3 {
		t.Error("not worst first:", all)
	}
}

// TestGroupAlerts: a domain that has replicas of a group, and not all of its volumes in sync, is named, once.
func TestGroupAlerts(t *testing.T) {
	vol := func(group string, replicas ...arbiter.Replica) arbiter.Volume {
		return arbiter.Volume{ID: "id", Name: "v", Group: group, Replicas: append(replicas, arbiter.Replica{Domain: "a", InSync: true})}
	}
	b, stale := arbiter.Replica{Domain: "b", InSync: true}, arbiter.Replica{Domain: "b"}
	var got []string
	for _, a := range Alerts(Observed{View: &View{}, Volumes: []arbiter.Volume{
		vol("well", b), vol("well", b, stale), vol("mixed", b), vol("mixed", stale), vol("behind", stale), vol("half"), vol("half", b), vol("", stale),
	}}) {
		if a.Code == AlertGroupSplit {
			text, _, _ := strings.Cut(a.Text, ",")
			got = append(got, text)
		}
	}
	want := []string{
		"group behind has 0 of 1 volumes in sync in domain b", "group half has 1 of 2 volumes in sync in domain b", "group mixed has 1 of 2 volumes in sync in domain b",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
}
