package arbiter

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
)

const second = int64(1_000_000_000)

// scene is a cluster of two sites whose site a was lost at second 10, and the arbiter of b that has looked every second since 0.
type scene struct {
	policy Policy
	watch  Watch
	sample Sample
}

func (sc *scene) at(s int64, change func(*Sample)) {
	sc.sample.Now = s * second
	for n := range sc.sample.Silence {
		sc.sample.Silence[n] = 0
	}
	for i := range sc.sample.Nodes {
		if n := &sc.sample.Nodes[i]; n.Domain == "a" {
			n.Online = s < 20 // the registration lives for 10 s
			sc.sample.Silence[n.Name] = max(0, s-10) * second
		}
	}
	if change != nil {
		change(&sc.sample)
	}
	sc.watch.See(sc.sample)
}

func (sc *scene) verdict() Verdict { return sc.watch.Failover(sc.policy, sc.sample, "a") }

func lostSite() *scene {
	both := func(name, at string) Volume {
		return Volume{ID: name, Name: name, Coordinator: Coordinator{Node: at, Domain: "a"}, Replicas: []Replica{
			{Node: "a1", Domain: "a", State: "IN_SYNC", InSync: true}, {Node: "b1", Domain: "b", State: "IN_SYNC", InSync: true},
		}}
	}
	return &scene{
		policy: Policy{Enabled: true, Confirm: 15 * second, Grant: 3 * second, MinInterval: 600 * second, QuorumLoss: 100},
		sample: Sample{
			Local: "b", Healthy: true, Late: 5 * second, Term: 7, Own: "r1", SinceLast: -1, Silence: map[string]int64{},
			Nodes: []Node{
				{Name: "a1", Domain: "a", Registration: "x"}, {Name: "a2", Domain: "a", Registration: "y"},
				{Name: "b1", Domain: "b", Online: true}, {Name: "b2", Domain: "b", Online: true},
			},
			Domains: map[string]State{"a": Active, "b": Active},
			Volumes: []Volume{both("v1", "a1"), both("v2", "a2")},
		},
	}
}

// TestFailoverInTime: the domain is fenced when all has held for long enough, and not a second before.
func TestFailoverInTime(t *testing.T) {
	sc := lostSite()
	for s := range int64(35) {
		sc.at(s, nil)
		v := sc.verdict()
		want := Confirming
		if s < 20 {
			want = InService
		}
		if v.Fence || v.Idle != want {
			t.Fatalf("second %d: %+v", s, v)
		}
	}
	sc.at(35, nil) // gone since 20
	v := sc.verdict()
	if !v.Fence || len(v.Moves) != 2 || v.Moves[0].Node != "b1" || len(v.Stay) != 0 || !slices.Equal(v.Gone, []string{"a1", "a2"}) {
		t.Fatalf("%+v", v)
	}
}

// TestFailoverIdle breaks one condition after the other, in one look or from then on: nothing is fenced, and the reason is told.
func TestFailoverIdle(t *testing.T) {
	volume := func(s *Sample, change func(*Volume)) {
		s.Volumes = slices.Clone(s.Volumes)
		for i := range s.Volumes {
			change(&s.Volumes[i])
		}
	}
	for _, tc := range []struct {
		name string
		// from second 30 on, or with once only then; checked at 36
		change func(*scene, *Sample)
		once   bool
		want   Idle
	}{
		{"disabled", func(sc *scene, _ *Sample) { sc.policy.Enabled = false }, false, Disabled},
		{"a node registered", func(_ *scene, s *Sample) { s.Nodes[1].Online = true }, false, InService},
		{"a node was registered for a moment", func(_ *scene, s *Sample) { s.Nodes[1].Online = true }, true, Confirming},
		{"a node registered between two looks", func(_ *scene, s *Sample) { s.Nodes[1].Registration = "z" }, false, Confirming},
		{"kvdb out of reach", func(_ *scene, s *Sample) { s.Healthy = false }, false, KvdbUnhealthy},
		{"kvdb out of reach for a moment", func(_ *scene, s *Sample) { s.Healthy = false }, true, Confirming},
		{"own registration gone", func(_ *scene, s *Sample) { s.Own = "" }, false, KvdbUnhealthy},
		{"own registration made anew", func(_ *scene, s *Sample) { s.Own = "r2" }, false, Confirming},
		{"leader of the kvdb changed", func(_ *scene, s *Sample) { s.Term = 8 }, false, Confirming},
		{"coordinator heard", func(_ *scene, s *Sample) { s.Silence["a2"] = 1 }, false, CoordinatorHeard},
		{"coordinator silent not for long", func(_ *scene, s *Sample) { s.Silence["a2"] = 17 * second }, false, Confirming},
		{"own domain not active", func(_ *scene, s *Sample) { s.Domains["b"] = Draining }, false, OwnDomain},
		{"own domain fenced", func(_ *scene, s *Sample) { s.Domains["b"] = Fenced }, false, OwnDomain},
		{"own domain standby", func(_ *scene, s *Sample) { s.Domains["b"] = Standby }, false, OwnDomain},
		{"fenced already", func(_ *scene, s *Sample) { s.Domains["a"] = Fenced }, false, OutOfService},
		{"standby", func(_ *scene, s *Sample) { s.Domains["a"] = Standby }, false, OutOfService},
		{"rejoining", func(_ *scene, s *Sample) { s.Domains["a"] = Rejoining }, false, OutOfService},
		{"a moment after another one", func(_ *scene, s *Sample) { s.SinceLast = 599 * second }, false, BackOff},
		{"nothing attached", func(_ *scene, s *Sample) { volume(s, func(v *Volume) { v.Coordinator = Coordinator{} }) }, false, NothingToMove},
		{"all manual", func(_ *scene, s *Sample) { volume(s, func(v *Volume) { v.Manual = true }) }, false, NothingToMove},
		{"a group of which one volume is not in sync here", func(_ *scene, s *Sample) {
			volume(s, func(v *Volume) { v.Group = "g" })
			s.Volumes[1].Replicas = []Replica{s.Volumes[1].Replicas[0], {Node: "b1", Domain: "b", State: "STALE"}}
		}, false, NothingToMove},
		{"only last copies", func(_ *scene, s *Sample) { volume(s, func(v *Volume) { v.Replicas = v.Replicas[:1] }) }, false, NothingToMove},
		{"replicas here not in sync", func(_ *scene, s *Sample) {
			volume(s, func(v *Volume) { v.Replicas = []Replica{v.Replicas[0], {Node: "b1", Domain: "b", State: "STALE"}} })
		}, false, NothingToMove},
		{"replicas here on a node that is lost too", func(_ *scene, s *Sample) { s.Nodes[2].Online = false }, false, NothingToMove},
		{"kvdb restored", func(_ *scene, s *Sample) { volume(s, func(v *Volume) { v.RolledBack = "r9 knows more" }) }, false, NothingToMove},
		{"not known who may move it", func(_ *scene, s *Sample) { volume(s, func(v *Volume) { v.Unreadable = "damaged" }) }, false, NothingToMove},
	} {
		t.Run(tc.name, func(t *testing.T) {
			sc := lostSite()
			for s := range int64(37) {
				sc.at(s, func(sm *Sample) {
					if s == 30 || s > 30 && !tc.once {
						tc.change(sc, sm)
					} else {
						sm.Healthy = true
					}
				})
			}
			if v := sc.verdict(); v.Fence || v.Idle != tc.want || v.Text == "" {
				t.Errorf("%+v, want %s", v, tc.want)
			}
		})
	}
	t.Run("not looked for a while", func(t *testing.T) {
		sc := lostSite()
		for s := range int64(30) {
			sc.at(s, nil)
		}
		sc.at(36, nil)
		if v := sc.verdict(); v.Fence || v.Idle != Confirming || v.Left != 15*second {
			t.Errorf("%+v", v)
		}
	})
	t.Run("began to look late", func(t *testing.T) {
		sc := lostSite()
		sc.at(100, nil)
		if v := sc.verdict(); v.Fence || v.Idle != Confirming {
			t.Errorf("%+v", v)
		}
	})
}

// TestFailoverOfSome: what cannot be moved is named with its reason and holds up nothing else.
func TestFailoverOfSome(t *testing.T) {
	sc := lostSite()
	vols := sc.sample.Volumes
	add := func(name string, change func(*Volume)) {
		v := vols[0]
		v.ID, v.Name, v.Replicas = name, name, slices.Clone(v.Replicas)
		change(&v)
		sc.sample.Volumes = append(sc.sample.Volumes, v)
	}
	add("manual", func(v *Volume) { v.Manual = true })
	add("lastcopy", func(v *Volume) { v.Replicas[1].InSync, v.Replicas[1].State = false, "STALE" })
	add("nonode", func(v *Volume) { v.Replicas[1].Node = "b9" })
	add("rolledback", func(v *Volume) { v.RolledBack = "x" })
	add("elsewhere", func(v *Volume) { v.Coordinator = Coordinator{Node: "b1", Domain: "b"} })
	for s := range int64(36) {
		sc.at(s, nil)
	}
	v := sc.verdict()
	got := map[string]Cause{}
	for _, b := range v.Stay {
		got[b.Volume.Name] = b.Cause
		if b.Text() == string(b.Cause) {
			t.Errorf("%s: nothing is said to people", b.Cause)
		}
	}
	if want := (map[string]Cause{"manual": ManualFailover, "lastcopy": LastCopy, "nonode": NoNode, "rolledback": RolledBack}); !v.Fence || !maps.Equal(got, want) || len(v.Moves) != 2 {
		t.Errorf("%+v", v)
	}
}

func TestFailoverPromotes(t *testing.T) {
	sc := lostSite()
	sc.sample.Domains["b"], sc.policy.AutoPromote = Standby, true
	for s := range int64(36) {
		sc.at(s, nil)
	}
	if v := sc.verdict(); !v.Fence || !v.Promote || len(v.Moves) != 2 {
		t.Errorf("%+v", v)
	}
}

func TestFailoverQuorumLoss(t *testing.T) {
	sc := lostSite()
	sc.policy.QuorumLoss = 50
	for s := range int64(36) {
		sc.at(s, func(s *Sample) { s.Nodes[1].Online = true })
	}
	if v := sc.verdict(); !v.Fence || !slices.Equal(v.Gone, []string{"a1"}) {
		t.Errorf("%+v", v)
	}
}

// TestTarget: the node is one that is there, in sync and in the domain that took over; all who ask are told the same.
func TestTarget(t *testing.T) {
	vol := Volume{ID: "v", Coordinator: Coordinator{Node: "a1", Domain: "a"}, Replicas: []Replica{
		{Node: "c1", Domain: "c", InSync: true}, {Node: "b2", Domain: "b", InSync: true}, {Node: "a1", Domain: "a", InSync: true}, {Node: "b1", Domain: "b"},
	}}
	v := View{Domains: map[string]State{"a": Fenced, "b": Active, "c": Active}}
	nodes := []Node{{Name: "a1", Domain: "a", Online: true}, {Name: "b1", Domain: "b", Online: true}, {Name: "b2", Domain: "b", Online: true}, {Name: "c1", Domain: "c", Online: true}}
	if n, d, cause := Target(v, nodes, vol, "b"); n != "b2" || d != "b" || cause != "" {
		t.Error(n, d, cause)
	}
	if n, _, _ := Target(v, nodes, vol, "c"); n != "c1" {
		t.Error(n)
	}
	nodes[2].Online = false
	if n, _, _ := Target(v, nodes, vol, "b"); n != "c1" {
		t.Error("the node that is lost too is not replaced:", n)
	}
	v.Domains["c"] = Standby
	if n, _, cause := Target(v, nodes, vol, "b"); n != "" || cause != NoNode {
		t.Error(n, cause)
	}
}

func TestLeader(t *testing.T) {
	nodes := []Node{{Name: "b2", Domain: "b", Online: true}, {Name: "b1", Domain: "b"}, {Name: "a1", Domain: "a", Online: true}}
	if l := Leader(nodes, "b"); l != "b2" {
		t.Error(l)
	}
	if l := Leader(nodes, "c"); l != "" {
		t.Error(l)
	}
}

// TestFailoverRandom shows an arbiter random looks. Whenever it wants to fence, the rules of protocol.md 10.3 are looked up in what it was
// shown during the last Confirm.
func TestFailoverRandom(t *testing.T) {
	fenced := 0
	for seed := range uint64(2000) {
		r := rand.New(rand.NewPCG(seed, 18))
		sc := lostSite()
		sc.policy.Confirm = 5 * second
		var shown []Sample
		flaw := r.IntN(40) // how rare a break is differs from run to run
		heard := int64(10)
		for s := int64(20); s < 60; s++ {
			sc.at(s, func(sm *Sample) {
				rare := func() bool { return r.IntN(flaw+4) == 0 }
				sm.Healthy = !rare()
				if rare() {
					sm.Term++
				}
				if rare() {
					sm.Own = fmt.Sprint("r", s)
				}
				if rare() {
					sm.Nodes[r.IntN(2)].Online = true
				}
				if rare() {
					sm.Nodes[r.IntN(2)].Registration = fmt.Sprint("g", s)
				}
				if rare() {
					heard = s
				}
				sm.Silence["a1"] = (s - heard) * second
			})
			cp := sc.sample
			cp.Nodes, cp.Silence = slices.Clone(cp.Nodes), maps.Clone(cp.Silence)
			shown = append(shown, cp)
			if !sc.verdict().Fence {
				continue
			}
			fenced++
			n := len(shown) - 6 // 5 s and the look at their begin
			if n < 0 {
				t.Fatalf("seed %d: fenced after %d looks", seed, len(shown))
			}
			first := shown[n]
			for _, sm := range shown[n:] {
				if !sm.Healthy || sm.Term != first.Term || sm.Own != first.Own || sm.Nodes[0].Online || sm.Nodes[1].Online ||
					sm.Nodes[0].Registration != first.Nodes[0].Registration || sm.Nodes[1].Registration != first.Nodes[1].Registration || sm.Silence["a1"] < sc.policy.Grant {
					t.Fatalf("seed %d: fenced at %d s in spite of %+v", seed, s, sm)
				}
			}
		}
	}
	if fenced == 0 {
		t.Error("nothing was ever fenced: the test tests nothing")
	}
}

// TestTargetOfAGroup: all volumes of a group go on in one domain, or none does.
func TestTargetOfAGroup(t *testing.T) {
	in := func(name string, replicas ...Replica) Volume {
		at := append([]Replica{{Node: "a1", Domain: "a", InSync: true}}, replicas...)
		return Volume{ID: name, Name: name, Group: "g", Coordinator: Coordinator{Node: "a1", Domain: "a"}, Replicas: at}
	}
	b1, c1 := Replica{Node: "b1", Domain: "b", InSync: true}, Replica{Node: "c1", Domain: "c", InSync: true}
	b2 := Replica{Node: "b2", Domain: "b", InSync: true}
	stale := Replica{Node: "b1", Domain: "b"}
	ill, other := in("ill", b1), in("other", b1)
	ill.Unreadable = "damaged"
	other.Group = "h"
	idle := in("idle", stale)
	idle.Coordinator = Coordinator{}
	domains := map[string]State{"a": Fenced, "b": Active, "c": Active}
	nodes := []Node{{Name: "a1", Domain: "a"}, {Name: "b1", Domain: "b", Online: true}, {Name: "b2", Domain: "b"}, {Name: "c1", Domain: "c", Online: true}}
	for name, tc := range map[string]struct {
		volumes []Volume
		want    string // of the first one
	}{
		"all in sync":                {[]Volume{in("v", b1), in("w", b1)}, "b1"},
		"together, not as preferred": {[]Volume{in("v", b1, c1), in("w", c1)}, "c1"},
		"one is not":                 {[]Volume{in("v", b1), in("w", stale)}, string(GroupMixed)},
		"one that is not attached":   {[]Volume{in("v", b1), idle}, string(GroupMixed)},
		"each elsewhere":             {[]Volume{in("v", b1), in("w", c1)}, string(GroupMixed)},
		"a node is offline":          {[]Volume{in("v", b1), in("w", b2)}, string(GroupMixed)},
		"one is not readable":        {[]Volume{in("v", b1), ill}, string(GroupMixed)},
		"another group":              {[]Volume{in("v", c1), other}, "c1"},
	} {
		node, _, cause := Target(View{Domains: domains, Volumes: tc.volumes}, nodes, tc.volumes[0], "b")
		if node+string(cause) != tc.want {
			t.Errorf("%s: node %q, cause %q, want %s", name, node, cause, tc.want)
		}
	}
}
