package volume

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/tandem-storage/tandem/replication"
)

// Fixtures: volume with replicas A, B, C on nodes a, b, c of the domains of these names.
var (
	lifeOld, lifeNow, lifeNew = replication.UUID{1}, replication.UUID{2}, replication.UUID{3}

	repA, repB, repC = replication.ReplicaID{0xa}, replication.ReplicaID{0xb}, replication.ReplicaID{0xc}
)

func reps(s string) (ids []replication.ReplicaID) {
	for _, r := range s {
		ids = append(ids, replication.ReplicaID{byte(r - 'A' + 0xa)})
	}
	return ids
}

// foundAs is a replica as its superblock says: epoch with gen 10 times that, of the current life.
func foundAs(name string, epoch, term uint64, state replication.MemberState, isr, missing string) FoundReplica {
	id := reps(name)[0]
	return FoundReplica{
		LocalReplica: LocalReplica{Volume: replication.VolumeID{9}, Replica: id, Pool: "pool"},
		Node:         replication.NodeID(strings.ToLower(name)), Domain: replication.DomainID(strings.ToLower(name)), Size: gib,
		Epoch: replication.Epoch(epoch), Gen: 10 * epoch, Term: replication.Term(term), State: state, ISR: reps(isr), Missing: reps(missing),
		Incarnation: lifeNow,
	}
}

// configAt is a configuration with a coordinator on a node, or none.
func configAt(epoch, term uint64, coord, isr string) *replication.Config {
	cfg := &replication.Config{
		Version: 1, Volume: replication.VolumeID{9}, Epoch: replication.Epoch(epoch), Gen: 10 * epoch, Phase: replication.PhaseDetached,
		ISR: reps(isr), Members: map[replication.ReplicaID]replication.Member{}, Protection: replication.MaxProtection, Size: gib,
	}
	if coord != "" {
		cfg.Phase, cfg.Coord = replication.PhaseActive, &replication.Coord{Node: replication.NodeID(coord), Term: replication.Term(term)}
	}
	for _, r := range []struct{ n, id string }{{"a", "A"}, {"b", "B"}} {
		m := replication.Member{Node: replication.NodeID(r.n), Domain: replication.DomainID(r.n), Pool: "pool", State: replication.MemberStale}
		if cfg.InISR(reps(r.id)[0]) {
			m.State = replication.MemberInSync
		}
		cfg.Members[reps(r.id)[0]] = m
	}
	for e := max(1, epoch-5); e <= epoch; e++ {
		cfg.History = append(cfg.History, replication.EpochRecord{Epoch: replication.Epoch(e), Gen: 10 * e})
	}
	return cfg
}

func specOf(state State) *Spec {
	s := &Spec{ID: replication.VolumeID{9}, State: state, Request: Request{Name: "data", Size: gib, Replicas: 2, Protection: replication.MaxProtection}}
	s.Placed = []Placement{{Replica: repA, Node: "a", Domain: "a", Pool: "pool"}, {Replica: repB, Node: "b", Domain: "b", Pool: "pool"}}
	return s
}

const (
	inSync  = replication.MemberInSync
	stale   = replication.MemberStale
	syncing = replication.MemberSyncing
)

// The rules of 10.5, as a table.
func TestPlanImport(t *testing.T) {
	forked := configAt(12, 0, "", "AB")
	for i := range forked.History {
		forked.History[i].Gen++
	}
	forced := configAt(12, 0, "", "B")
	forced.Forced, forced.History = lifeNow, forced.History[3:] // epochs 10 to 12
	with := func(f FoundReplica, change func(f *FoundReplica)) FoundReplica { change(&f); return f }
	gen := func(f FoundReplica) FoundReplica { return with(f, func(f *FoundReplica) { f.Gen++ }) }
	of := func(u replication.UUID, f FoundReplica) FoundReplica {
		return with(f, func(f *FoundReplica) { f.Incarnation = u })
	}
	broken := with(foundAs("B", 0, 0, "", "", ""), func(f *FoundReplica) { f.Err = "superblock damaged" })

	for _, tc := range []struct {
		name    string
		cfg     *replication.Config
		spec    *Spec
		found   []FoundReplica
		serving []*replication.Config
		mark    *Rollback
		accept  bool

		want  importAction
		words string             // of the text
		epoch replication.Epoch  // of the configuration
		isr   string             // of it
		other string             // members that are not in sync
		coord replication.NodeID // of it
		loss  bool               //
		prot  replication.Protection
	}{
		{name: "the kvdb is right", cfg: configAt(10, 0, "", "AB"), spec: specOf(Ready), want: importNone,
			found: []FoundReplica{foundAs("A", 10, 8, inSync, "AB", ""), foundAs("B", 9, 8, inSync, "AB", "")}},
		{name: "the kvdb is right and a node is away", cfg: configAt(10, 0, "", "AB"), spec: specOf(Ready), want: importNone,
			found: []FoundReplica{foundAs("A", 10, 8, inSync, "AB", "")}},
		{name: "who knew more is away now", cfg: configAt(10, 0, "", "AB"), spec: specOf(Ready), want: importRefused, words: "replica " + repB.String(),
			found: []FoundReplica{foundAs("A", 10, 8, inSync, "AB", "")}, mark: &Rollback{Node: "b", Replica: repB}},
		{name: "being deleted", spec: specOf(Deleting), want: importNone, found: []FoundReplica{foundAs("A", 10, 8, inSync, "AB", "")}},
		{name: "being made", spec: specOf(Creating), want: importNone, found: []FoundReplica{foundAs("A", 0, 0, stale, "", "")}},
		{name: "of before an operator's force", cfg: forced, spec: specOf(Ready), want: importNone,
			found: []FoundReplica{foundAs("B", 12, 8, inSync, "B", "A"), of(lifeOld, foundAs("A", 15, 8, inSync, "A", "B"))}},

		{name: "an eviction is forgotten", cfg: configAt(8, 8, "a", "AB"), spec: specOf(Ready), want: importWrite, epoch: 12, isr: "A", other: "B", prot: replication.MaxProtection,
			found: []FoundReplica{foundAs("A", 11, 8, inSync, "A", "B"), foundAs("B", 8, 8, inSync, "AB", "")}},
		{name: "an eviction is forgotten, and who was evicted is away", cfg: configAt(8, 8, "a", "AB"), spec: specOf(Ready), want: importRefused, words: "replica " + repB.String() + " on node b",
			found: []FoundReplica{foundAs("A", 11, 8, inSync, "A", "B")}},
		{name: "the same, accepted", cfg: configAt(8, 8, "a", "AB"), spec: specOf(Ready), accept: true, want: importWrite, epoch: 12, isr: "A", other: "B", loss: true,
			found: []FoundReplica{foundAs("A", 11, 8, inSync, "A", "B")}},
		{name: "only who was evicted answers", cfg: configAt(6, 6, "a", "AB"), spec: specOf(Ready), want: importRefused, words: "replica " + repA.String() + " on node a",
			found: []FoundReplica{foundAs("B", 8, 8, inSync, "AB", "")}},
		{name: "that, accepted", cfg: configAt(6, 6, "a", "AB"), spec: specOf(Ready), accept: true, want: importWrite, epoch: 9, isr: "B", other: "A", loss: true,
			found: []FoundReplica{foundAs("B", 8, 8, inSync, "AB", "")}},
		{name: "a term was promised later than any epoch", cfg: configAt(8, 8, "a", "AB"), spec: specOf(Ready), want: importWrite, epoch: 18, isr: "AB",
			found: []FoundReplica{foundAs("A", 11, 8, inSync, "AB", ""), foundAs("B", 11, 17, inSync, "AB", "")}},
		{name: "the kvdb went another way since", cfg: forked, spec: specOf(Ready), want: importWrite, epoch: 13, isr: "A", other: "B",
			found: []FoundReplica{foundAs("A", 11, 8, inSync, "A", "B"), foundAs("B", 5, 4, inSync, "AB", "")}},
		{name: "a join is known to the one that was there", cfg: configAt(8, 8, "a", "A"), spec: specOf(Ready), want: importWrite, epoch: 12, isr: "AB",
			found: []FoundReplica{foundAs("A", 11, 8, inSync, "AB", ""), foundAs("B", 10, 8, syncing, "A", "")}},
		{name: "the one that is resynced knows most", cfg: configAt(6, 6, "a", "A"), spec: specOf(Ready), want: importWrite, epoch: 12, isr: "A", other: "B",
			found: []FoundReplica{foundAs("A", 9, 8, inSync, "A", "B"), foundAs("B", 11, 8, syncing, "A", "")}},
		{name: "and is alone", cfg: configAt(6, 6, "a", "A"), spec: specOf(Ready), accept: true, want: importRefused, words: "consistent",
			found: []FoundReplica{foundAs("B", 11, 8, syncing, "A", "")}},
		{name: "a replica that cannot be read", cfg: configAt(8, 8, "a", "AB"), spec: specOf(Ready), want: importRefused, words: "superblock damaged",
			found: []FoundReplica{foundAs("A", 11, 8, inSync, "A", "B"), broken}},
		{name: "two configurations of an epoch", cfg: configAt(8, 8, "a", "AB"), spec: specOf(Ready), accept: true, want: importRefused, words: "DIVERGED",
			found: []FoundReplica{foundAs("A", 11, 8, inSync, "A", "B"), gen(foundAs("B", 11, 10, inSync, "B", "A"))}},
		{name: "the same, each in sync with the other", cfg: configAt(8, 8, "a", "AB"), spec: specOf(Ready), accept: true, want: importRefused, words: "DIVERGED",
			found: []FoundReplica{foundAs("A", 11, 8, inSync, "AB", ""), gen(foundAs("B", 11, 10, inSync, "AB", ""))}},
		{name: "both in sync without the other", cfg: configAt(12, 10, "b", "B"), spec: specOf(Ready), accept: true, want: importRefused, words: "DIVERGED",
			found: []FoundReplica{gen(foundAs("A", 11, 8, inSync, "A", "B")), foundAs("B", 12, 10, inSync, "B", "A")}},
		{name: "other sizes", cfg: configAt(8, 8, "a", "AB"), spec: specOf(Ready), want: importWrite, epoch: 12, isr: "AB",
			found: []FoundReplica{with(foundAs("A", 11, 8, inSync, "AB", ""), func(f *FoundReplica) { f.Size *= 2 }), foundAs("B", 11, 8, inSync, "AB", "")}},
		{name: "another kvdb", cfg: configAt(10, 0, "", "AB"), spec: specOf(Ready), want: importWrite, epoch: 11, isr: "AB",
			found: []FoundReplica{of(lifeNew, foundAs("A", 10, 8, inSync, "AB", "")), foundAs("B", 10, 8, inSync, "AB", "")}},

		{name: "it is served", cfg: configAt(8, 8, "a", "AB"), spec: specOf(Ready), want: importWrite, epoch: 11, isr: "A", other: "B", coord: "a",
			found:   []FoundReplica{foundAs("A", 11, 8, inSync, "A", "B"), foundAs("B", 8, 8, inSync, "AB", "")},
			serving: []*replication.Config{configAt(11, 8, "a", "A")}},
		{name: "a takeover is in force of which no replica was told", cfg: configAt(8, 0, "", "AB"), spec: specOf(Ready), want: importWrite, epoch: 11, isr: "A", other: "B", coord: "a",
			found:   []FoundReplica{foundAs("A", 9, 10, inSync, "AB", ""), foundAs("B", 9, 8, inSync, "AB", "")},
			serving: []*replication.Config{configAt(11, 10, "a", "A")}},
		{name: "it is served and who is out of sync is away, or promised a takeover that came to nothing", cfg: configAt(8, 8, "a", "AB"), spec: specOf(Ready), want: importWrite, epoch: 11, isr: "A", other: "B", coord: "a",
			found:   []FoundReplica{foundAs("A", 11, 8, inSync, "A", "B"), foundAs("B", 8, 9, inSync, "AB", "")},
			serving: []*replication.Config{configAt(11, 8, "a", "A")}},
		{name: "it is served, but by whom is in doubt", spec: nil, want: importRefused, words: "taken over",
			found: []FoundReplica{foundAs("A", 11, 8, inSync, "AB", "")}, serving: []*replication.Config{configAt(11, 8, "a", "AB")}},
		{name: "it was taken over", cfg: configAt(8, 8, "a", "AB"), spec: specOf(Ready), want: importRefused, words: "DIVERGED", accept: true,
			found:   []FoundReplica{foundAs("A", 9, 8, inSync, "AB", ""), foundAs("B", 12, 11, inSync, "B", "A")},
			serving: []*replication.Config{configAt(9, 8, "a", "AB")}},
		{name: "two serve it", cfg: configAt(8, 8, "a", "AB"), spec: specOf(Ready), want: importRefused, words: "DIVERGED", accept: true,
			found:   []FoundReplica{foundAs("A", 11, 8, inSync, "A", "B"), foundAs("B", 10, 9, inSync, "B", "A")},
			serving: []*replication.Config{configAt(11, 8, "a", "A"), configAt(10, 9, "b", "B")}},

		{name: "all is lost", want: importWrite, epoch: 12, isr: "AB", prot: replication.MaxAvailability,
			found: []FoundReplica{of(lifeOld, foundAs("A", 11, 8, inSync, "AB", "")), of(lifeOld, foundAs("B", 11, 8, inSync, "AB", ""))}},
		{name: "all is lost but a record beside a replica", want: importWrite, epoch: 12, isr: "A", other: "B", prot: replication.MaxProtection,
			found: []FoundReplica{with(foundAs("A", 11, 8, inSync, "A", "B"), func(f *FoundReplica) { f.Spec, _ = json.Marshal(specOf(Ready)) }), foundAs("B", 9, 8, stale, "A", "")}},
		{name: "all is lost, and a replica", want: importRefused, words: "does not answer", found: []FoundReplica{foundAs("A", 11, 8, inSync, "A", "B")}},
		{name: "never attached", want: importWrite, epoch: 1, isr: "AB", found: []FoundReplica{foundAs("A", 0, 0, stale, "", ""), foundAs("B", 0, 0, stale, "", "")}},
		{name: "never attached, as far as is known", want: importRefused, words: "does not answer",
			found: []FoundReplica{with(foundAs("A", 0, 0, stale, "", ""), func(f *FoundReplica) { f.Spec, _ = json.Marshal(specOf(Ready)) })}},
		{name: "made, and attached since", spec: specOf(Creating), want: importWrite, epoch: 6, isr: "AB",
			found: []FoundReplica{foundAs("A", 5, 4, inSync, "AB", ""), foundAs("B", 5, 4, inSync, "AB", "")}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := planImport(&evidence{
				id: replication.VolumeID{9}, cfg: tc.cfg, spec: tc.spec, found: tc.found, serving: tc.serving, accept: tc.accept, mark: tc.mark,
				life: &life{id: lifeNow, former: []replication.UUID{lifeOld}},
			})
			if p.action != tc.want || !strings.Contains(p.text, tc.words) {
				t.Fatalf("do %d: %q, want %d, %q", p.action, p.text, tc.want, tc.words)
			}
			if tc.want != importWrite {
				return
			}
			checkPlanned(t, &p)
			var other []replication.ReplicaID
			for _, r := range []replication.ReplicaID{repA, repB, repC} {
				if m, ok := p.config.Members[r]; ok && m.State != inSync {
					other = append(other, r)
				}
			}
			if got := fmt.Sprint(p.config.ISR, other); got != fmt.Sprint(reps(tc.isr), other) || !slices.Equal(other, reps(tc.other)) {
				t.Errorf("in sync %v, others %v, want %s and %s", p.config.ISR, other, tc.isr, tc.other)
			}
			if p.config.Epoch != tc.epoch || p.loss != tc.loss || coordinator(p.config).Node != tc.coord {
				t.Errorf("epoch %d, loss %v, coordinator %+v", p.config.Epoch, p.loss, p.config.Coord)
			}
			if tc.prot != "" && (p.config.Protection != tc.prot || p.spec.Protection != tc.prot) {
				t.Errorf("protection %s, %s", p.config.Protection, p.spec.Protection)
			}
		})
	}
}

// checkPlanned holds what every configuration that is to be written has to be.
func checkPlanned(t *testing.T, p *importPlan) {
	t.Helper()
	cfg := p.config
	if len(cfg.ISR) == 0 || cfg.Volume != (replication.VolumeID{9}) || cfg.Size != gib || p.spec.State != Ready || len(p.spec.Placed) != len(cfg.Members) {
		t.Errorf("%+v for %+v", cfg, p.spec)
	}
	for _, r := range cfg.ISR {
		if m, ok := cfg.Members[r]; !ok || m.State != replication.MemberInSync || m.Node == "" || m.Pool == "" {
			t.Errorf("in-sync replica %s is %+v", r, m)
		}
	}
	if cfg.Coord == nil && (cfg.Gen != 0 || cfg.Phase != replication.PhaseDetached) {
		t.Errorf("a configuration of nobody: gen %d, %s", cfg.Gen, cfg.Phase)
	}
}
