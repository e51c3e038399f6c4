package volume

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/tandem-storage/tandem/replication"
)

// What an import does about one volume (protocol.md 10.5, docs/design/0014): a function of what was found, without I/O.

// importAction is what is to be done about a volume.
type importAction uint8

const (
	importNone importAction = iota + 1
	importWrite
	importRefused
)

// evidence is everything that is known of one volume.
type evidence struct {
	id      replication.VolumeID
	cfg     *replication.Config // of the kvdb, nil if it has none
	spec    *Spec               // of the kvdb, nil if it has none
	mark    *Rollback           // who was found to know more than the kvdb, nil if nobody was
	life    *life               // of the kvdb
	found   []FoundReplica
	serving []*replication.Config // of the coordinators that serve it
	accept  bool                  // the operator accepts that a replica that does not answer may know more
}

// importPlan is the answer.
type importPlan struct {
	action importAction
	text   string
	known  replication.Epoch   // highest that a replica or coordinator knows
	config *replication.Config // to be written
	spec   *Spec               // to be written
	loss   bool                // only because the operator accepts it
}

func refusedImport(known replication.Epoch, format string, a ...any) importPlan {
	return importPlan{action: importRefused, known: known, text: fmt.Sprintf(format, a...)}
}

// planImport decides. The configuration to be written has no gen or proposal id of its own yet, unless it is a coordinator's.
func planImport(e *evidence) importPlan {
	var readable []FoundReplica
	for _, f := range e.found {
		if f.Err == "" {
			readable = append(readable, f)
		}
	}
	co, known := latest(e.serving), replication.Epoch(0)
	for _, f := range readable {
		known = max(known, f.Epoch)
	}
	if co != nil {
		known = max(known, co.Epoch)
	}
	switch {
	case e.spec != nil && e.spec.State == Deleting:
		return importPlan{action: importNone, known: known, text: "is being deleted"}
	case e.spec != nil && e.spec.State == Creating && known == 0:
		return importPlan{action: importNone, known: known, text: "is being created"}
	case e.current(readable, co):
		return importPlan{action: importNone, known: known, text: "the kvdb knows as much as the replicas"}
	case len(readable) == 0:
		return refusedImport(known, "no replica of it that can be read answers")
	}
	p := importPlan{action: importWrite, known: known}
	if co != nil {
		p = e.planServing(co, readable)
	} else {
		p = e.planDetached(known, readable)
	}
	if p.action != importWrite {
		return p
	}
	p.spec = e.specFor(p.config, readable)
	var err error
	if p.spec.Reverting, err = e.revertOf(p.config, readable); err != nil {
		return refusedImport(known, "%v", err)
	}
	return p
}

// current reports whether the kvdb knows all that was found.
func (e *evidence) current(readable []FoundReplica, co *replication.Config) bool {
	if e.cfg == nil || e.spec == nil {
		return false
	}
	if e.mark != nil && !slices.ContainsFunc(readable, func(f FoundReplica) bool { return f.Replica == e.mark.Replica }) {
		return false // who knew more does not answer
	}
	if co != nil && !replication.Follows(e.cfg.Epoch, e.cfg.Lineage(), replication.Ancestor{Epoch: co.Epoch, Gen: co.Gen}) {
		return false
	}
	return !slices.ContainsFunc(readable, func(f FoundReplica) bool { return f.ahead(e.cfg, e.life) != "" })
}

// latest is the configuration of the coordinator of the highest term, nil if there is none.
func latest(serving []*replication.Config) *replication.Config {
	var co *replication.Config
	for _, c := range serving {
		if c.Coord != nil && (co == nil || c.Coord.Term > co.Coord.Term) {
			co = c
		}
	}
	return co
}

// sizeOf is the volume's size by the replicas that are in sync with top: each of them is at least as large as the volume, and what one
// has more is zeroes.
func sizeOf(top *FoundReplica, isr []replication.ReplicaID, fs []FoundReplica) int64 {
	size := top.Size
	for _, f := range fs {
		if slices.Contains(isr, f.Replica) {
			size = min(size, f.Size)
		}
	}
	return size
}

// planServing writes what the coordinator serves by: nobody else changes it, so it is the latest unless somebody has taken
// over from it. Then a member of its in-sync set promised a later term.
func (e *evidence) planServing(co *replication.Config, readable []FoundReplica) importPlan {
	for _, f := range readable {
		_, member := co.Members[f.Replica]
		if member && (f.Epoch > co.Epoch || f.Epoch == co.Epoch && f.Gen != co.Gen || co.InISR(f.Replica) && f.Term > co.Coord.Term || f.without(co.ISR)) {
			return refusedImport(max(f.Epoch, co.Epoch), "it is DIVERGED: it is served on node %s (epoch %d, term %d), and the replica on node %s knows epoch %d, term %d; %s",
				co.Coord.Node, co.Epoch, co.Coord.Term, f.Node, f.Epoch, f.Term, whenDiverged)
		}
	}
	silent := e.silent(co.ISR, co, readable)
	if len(silent) > 0 && !e.accept {
		return refusedImport(co.Epoch, "it is served on node %s, but %s: somebody may have taken over from it; bring it back, or give up what it may know with --accept-data-loss=%s",
			co.Coord.Node, strings.Join(silent, ", "), e.id)
	}
	return importPlan{
		action: importWrite, known: co.Epoch, config: co.Clone(), loss: len(silent) > 0,
		text: "as it is served on node " + string(co.Coord.Node),
	}
}

// whenDiverged is what to do when nobody but the operator can tell which state is the right one.
const whenDiverged = "stop the daemon on the node whose state is to be given up, then import with --accept-data-loss"

// without reports whether f says that it is in sync, not with any of isr: it has gone another way, as far as it can be told.
func (f *FoundReplica) without(isr []replication.ReplicaID) bool {
	return f.State == replication.MemberInSync && f.Epoch > 0 && !slices.Contains(isr, f.Replica) &&
		!slices.ContainsFunc(f.ISR, func(r replication.ReplicaID) bool { return slices.Contains(isr, r) })
}

// silent are the replicas of ids that were not found, described.
func (e *evidence) silent(ids []replication.ReplicaID, cfg *replication.Config, readable []FoundReplica) []string {
	var out []string
	for _, r := range ids {
		if slices.ContainsFunc(readable, func(f FoundReplica) bool { return f.Replica == r }) {
			continue
		}
		where := "a node that is not known"
		if p, ok := e.place(r, cfg, readable); ok {
			where = "node " + string(p.Node)
		} else if e.mark != nil && e.mark.Replica == r {
			where = "node " + string(e.mark.Node)
		}
		why := "does not answer"
		if i := slices.IndexFunc(e.found, func(f FoundReplica) bool { return f.Replica == r }); i >= 0 {
			why = "cannot be read: " + e.found[i].Err
		}
		out = append(out, fmt.Sprintf("replica %s on %s %s", r, where, why))
	}
	return out
}

// planDetached makes a configuration of what the replicas know, of which known is the highest epoch.
func (e *evidence) planDetached(known replication.Epoch, readable []FoundReplica) importPlan {
	top, isr, members, refusal := e.newest(known, readable)
	if refusal != "" {
		return refusedImport(known, "%s", refusal)
	}
	needed := members
	if e.mark != nil {
		needed = union(slices.Clone(members), e.mark.Replica)
	}
	silent := e.silent(needed, e.cfg, readable)
	if len(silent) > 0 && !e.accept {
		// Also of one that was out of sync: it may have been resynced, and the others evicted, without their being told.
		return refusedImport(known, "%s: it may know more than epoch %d; bring it back, or give up what it may know with --accept-data-loss=%s",
			strings.Join(silent, ", "), known, e.id)
	}
	p := importPlan{action: importWrite, known: known, loss: len(silent) > 0, text: fmt.Sprintf("as of epoch %d on node %s", known, top.Node)}
	has := func(r replication.ReplicaID) bool {
		return slices.ContainsFunc(readable, func(f FoundReplica) bool { return f.Replica == r && f.State != replication.MemberFaulted })
	}
	left := slices.DeleteFunc(slices.Clone(isr), func(r replication.ReplicaID) bool { return !has(r) })
	if len(left) == 0 && p.loss {
		if f := consistent(readable); f != nil {
			left, members = []replication.ReplicaID{f.Replica}, union(members, f.Replica)
			p.text = fmt.Sprintf("as of epoch %d on node %s, which is the newest that is consistent", f.Epoch, f.Node)
		}
	}
	switch {
	case len(left) == 0:
		return refusedImport(known, "none of the replicas that answer holds consistent data (in sync by epoch %d: %s)", known, strings.Join(e.nodes(isr, readable), ", "))
	case p.loss:
		isr = left
	}
	p.config = e.newConfig(top, isr, members, readable)
	if p.loss {
		p.config.ForkGen++
	}
	return p
}

// newest finds the replica of the highest epoch, the in-sync set and the members by that epoch. refusal: they contradict each other.
func (e *evidence) newest(known replication.Epoch, readable []FoundReplica) (top *FoundReplica, isr, members []replication.ReplicaID, refusal string) {
	if known == 0 { // never attached: all that were made are in sync, and empty
		for i := range readable {
			isr = append(isr, readable[i].Replica)
		}
		if s := e.anySpec(readable); s != nil {
			isr = nil
			for _, p := range s.Placed {
				isr = append(isr, p.Replica)
			}
		}
		return &readable[0], isr, isr, ""
	}
	for i := range readable {
		f := &readable[i]
		switch {
		case f.Epoch < known:
		case top == nil, f.State == replication.MemberInSync && top.State != replication.MemberInSync && f.Gen == top.Gen:
			top = f
		case f.Gen != top.Gen:
			return nil, nil, nil, fmt.Sprintf("it is DIVERGED: the replicas on nodes %s and %s know different configurations of epoch %d; %s", top.Node, f.Node, known, whenDiverged)
		}
	}
	isr = top.ISR
	members = union(nil, slices.Concat(isr, top.Missing, []replication.ReplicaID{top.Replica})...)
	for i := range readable {
		f := &readable[i]
		if f.State == replication.MemberInSync && slices.Contains(isr, f.Replica) {
			members = union(members, f.Missing...) // one that is not in sync does not know the other members
		}
	}
	for i := range readable {
		if f := &readable[i]; slices.Contains(members, f.Replica) && f.without(isr) {
			return nil, nil, nil, fmt.Sprintf("it is DIVERGED: the replica on node %s (epoch %d) and the one on node %s (epoch %d) are each in sync without the other; %s",
				top.Node, top.Epoch, f.Node, f.Epoch, whenDiverged)
		}
	}
	return top, isr, members, ""
}

func union(a []replication.ReplicaID, b ...replication.ReplicaID) []replication.ReplicaID {
	for _, r := range b {
		if !slices.Contains(a, r) {
			a = append(a, r)
		}
	}
	return a
}

// consistent is the replica of the highest epoch that shows a state which the volume once had, nil if none does.
func consistent(readable []FoundReplica) *FoundReplica {
	var best *FoundReplica
	rank := func(f *FoundReplica) int {
		if f.State == replication.MemberInSync {
			return 1
		}
		return 0
	}
	for i := range readable {
		f := &readable[i]
		ok := f.Epoch > 0 && (f.State == replication.MemberInSync || f.State == replication.MemberStale)
		if ok && (best == nil || cmp.Or(cmp.Compare(f.Epoch, best.Epoch), cmp.Compare(rank(f), rank(best))) > 0) {
			best = f
		}
	}
	return best
}

// newConfig is a configuration, detached, that follows everything that was found.
func (e *evidence) newConfig(top *FoundReplica, isr, members []replication.ReplicaID, readable []FoundReplica) *replication.Config {
	n := &replication.Config{
		Volume: e.id, Phase: replication.PhaseDetached, ISR: slices.Clone(isr), Size: sizeOf(top, isr, readable),
		Members: map[replication.ReplicaID]replication.Member{},
	}
	policy := replication.Policy{Protection: replication.MaxAvailability}
	highest := uint64(0)
	for _, f := range readable {
		highest = max(highest, uint64(f.Epoch), uint64(f.Term))
	}
	if s := e.anySpec(readable); s != nil {
		policy = s.policy()
	}
	if e.cfg != nil {
		highest = max(highest, uint64(e.cfg.Epoch))
		policy, n.ForkGen, n.Forced = e.cfg.Policy(), e.cfg.ForkGen, e.cfg.Forced
	}
	n.SetPolicy(policy)
	n.Epoch = replication.Epoch(highest + 1)
	for _, r := range members {
		p, ok := e.place(r, e.cfg, readable)
		if !ok && !slices.Contains(isr, r) {
			continue // nobody knows where it is; it lacks writes in any case
		}
		m := replication.Member{Node: p.Node, Domain: p.Domain, Pool: p.Pool, State: replication.MemberInSync}
		if !slices.Contains(isr, r) {
			m.State, m.Reason = replication.MemberStale, "not in sync when the kvdb was imported"
		}
		n.Members[r] = m
	}
	if top.Epoch > 0 {
		n.History = []replication.EpochRecord{{Epoch: top.Epoch, Gen: top.Gen, ISR: slices.Clone(top.ISR), Cause: "found"}}
	}
	return n
}

// place is where a replica lies, as far as anybody knows.
func (e *evidence) place(r replication.ReplicaID, cfg *replication.Config, readable []FoundReplica) (Placement, bool) {
	for _, f := range e.found {
		if f.Replica == r {
			return Placement{Replica: r, Node: f.Node, Domain: f.Domain, Pool: f.Pool}, true
		}
	}
	if cfg != nil {
		if m, ok := cfg.Members[r]; ok {
			return Placement{Replica: r, Node: m.Node, Domain: m.Domain, Pool: m.Pool}, true
		}
	}
	for _, s := range e.specs(readable) {
		for _, p := range s.Placed {
			if p.Replica == r {
				return p, true
			}
		}
	}
	return Placement{}, false
}

// nodes names the nodes of replicas.
func (e *evidence) nodes(ids []replication.ReplicaID, readable []FoundReplica) []string {
	var out []string
	for _, r := range ids {
		p, _ := e.place(r, e.cfg, readable)
		out = append(out, cmp.Or(string(p.Node), r.String()))
	}
	return out
}

// specs are the records of the volume in the catalogue that are known: the kvdb's, then those noted beside replicas, the newest first.
func (e *evidence) specs(readable []FoundReplica) []*Spec {
	var all []*Spec
	if e.spec != nil {
		all = append(all, e.spec)
	}
	fs := slices.Clone(readable)
	slices.SortStableFunc(fs, func(a, b FoundReplica) int { return cmp.Compare(b.Epoch, a.Epoch) })
	for _, f := range fs {
		s := new(Spec)
		if len(f.Spec) > 0 && json.Unmarshal(f.Spec, s) == nil && s.ID == e.id {
			all = append(all, s)
		}
	}
	return all
}

func (e *evidence) anySpec(readable []FoundReplica) *Spec {
	if all := e.specs(readable); len(all) > 0 {
		return all[0]
	}
	return nil
}

// specFor is the record in the catalogue of a volume with that configuration.
func (e *evidence) specFor(cfg *replication.Config, readable []FoundReplica) *Spec {
	s := &Spec{ID: e.id, Request: Request{
		Name: "recovered-" + e.id.String()[:8], Size: cfg.Size, Replicas: len(cfg.Members), Protection: cfg.Protection, Needs: cfg.Needs,
	}}
	if known := e.anySpec(readable); known != nil {
		*s = *known
	}
	s.State, s.Failure, s.Size, s.Placed = Ready, "", cfg.Size, nil
	for _, r := range sortedMembers(cfg) {
		m := cfg.Members[r]
		s.Placed = append(s.Placed, Placement{Replica: r, Node: m.Node, Domain: m.Domain, Pool: m.Pool})
	}
	if p := s.Replacing; p != nil {
		if _, member := cfg.Members[p.Old]; !member {
			s.Replacing = nil
		}
	}
	s.Retired = slices.DeleteFunc(slices.Clone(s.Retired), func(p Placement) bool { // never one that is a member
		_, member := cfg.Members[p.Replica]
		return member
	})
	return s
}
