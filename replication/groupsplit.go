package replication

import (
	"fmt"
	"maps"
	"slices"
	"time"
)

// Standing is how an attached volume stands to the domains of its group, as its coordinator says.
type Standing struct {
	Volume VolumeID
	Domain DomainID // the coordinator's
	Term   Term
	// Domains without a replica in sync: it waits for the group before it acknowledges without them; it has waited; it has not, or is
	// not known to have.
	Lost, Kept, Late []DomainID
}

// Tell says what the coordinator of v, in domain own, is to be told, by the record and configurations that were read together: leave are the domains
// that it has to leave, left those to which no volume of the group writes any more, or where there is nothing to keep consistent.
func (g *Group) Tell(v VolumeID, own DomainID, cfgs map[VolumeID]*Config) (leave, left []DomainID) {
	for _, d := range slices.Sorted(maps.Keys(g.Splits)) {
		s := g.Splits[d]
		stopped, ok := s.Stopped[v]
		if cfg := cfgs[v]; d != own && s.Broken == "" && (!ok || stopped.Idle) && cfg != nil && cfg.InSyncIn(d) {
			leave = append(leave, d)
		}
		if s.Broken != "" || len(g.Apart(d, cfgs)) == 0 {
			left = append(left, d)
		}
	}
	return leave, left
}

// Advance returns the record as it has to be for what a coordinator says of its volume, g itself if that is how it is. linked tells that a split
// was taken out, which holds only as long as the configurations are those given.
func (g *Group) Advance(st *Standing, cfgs map[VolumeID]*Config, now time.Time) (next *Group, linked bool) {
	n := g.Clone()
	if n.Splits == nil {
		n.Splits = map[DomainID]GroupSplit{}
	}
	changed := false
	put := func(d DomainID, s GroupSplit) {
		if s.Since.IsZero() {
			s.Since, s.By, s.Begun = now, st.Volume, map[VolumeID]Epoch{}
			for v, cfg := range cfgs {
				s.Begun[v] = cfg.Epoch
			}
		}
		n.Splits[d], changed = s, true
	}
	broken := func(d DomainID, format string, a ...any) {
		if s := n.Splits[d]; s.Broken == "" {
			s.Broken = fmt.Sprintf(format, a...)
			put(d, s)
		}
	}
	for _, d := range st.Lost {
		if _, ok := n.Splits[d]; !ok {
			put(d, GroupSplit{})
		}
	}
	for _, d := range st.Late {
		s, split := n.Splits[d]
		if at, ok := s.Stopped[st.Volume]; (!ok || at.Idle) && (split || !g.allInSync(d, cfgs)) {
			broken(d, "volume %s went on without the domain before the others had left it%s", st.Volume, waitedFor(g.Apart(d, cfgs)))
		}
	}
	for _, d := range st.Kept {
		s, split := n.Splits[d]
		cfg := cfgs[st.Volume]
		at, ok := s.Stopped[st.Volume]
		switch {
		case !split:
			broken(d, "volume %s had no replica in sync there when the group was linked", st.Volume)
		case s.Broken != "" || ok && !at.Idle || cfg == nil || cfg.Coord == nil || cfg.Coord.Term != st.Term || cfg.InSyncIn(d):
		case cfg.rejoined(s.Begun[st.Volume]):
			broken(d, "volume %s had a replica resynced while the others left the domain", st.Volume)
		default:
			put(d, s.stop(g, d, st.Volume, cfgs))
		}
	}
	for _, d := range slices.Sorted(maps.Keys(n.Splits)) {
		s := n.Splits[d]
		if d == st.Domain {
			if cfg := cfgs[st.Volume]; cfg != nil && cfg.InSyncIn(d) {
				broken(d, "volume %s is attached there", st.Volume)
			}
		}
		for _, v := range slices.SortedFunc(maps.Keys(s.Stopped), compareVolumes) {
			if cfg := cfgs[v]; cfg != nil && !s.Stopped[v].Idle {
				if why := cfg.touched(d, s.Stopped[v].Epoch); why != "" {
					broken(d, "volume %s: %s", v, why)
				}
			}
		}
		if n.allInSync(d, cfgs) {
			delete(n.Splits, d)
			changed, linked = true, true
		}
	}
	if !changed {
		return g, false
	}
	return n, linked
}

// stop adds a volume, and those that are not attached, to what has stopped.
func (s GroupSplit) stop(g *Group, d DomainID, v VolumeID, cfgs map[VolumeID]*Config) GroupSplit {
	s.Stopped = maps.Clone(s.Stopped)
	if s.Stopped == nil {
		s.Stopped = map[VolumeID]Stopped{}
	}
	s.Stopped[v] = Stopped{Epoch: cfgs[v].Epoch}
	for _, u := range g.Volumes {
		// One that left the domain and was detached since may have gone on without it before: only its coordinator knew.
		if cfg := cfgs[u]; cfg != nil && s.Stopped[u].Epoch == 0 && cfg.Phase == PhaseDetached && cfg.InSyncIn(d) && !cfg.rejoined(s.Begun[u]) {
			s.Stopped[u] = Stopped{Epoch: cfg.Epoch, Idle: true}
		}
	}
	return s
}

// allInSync reports whether every volume has a replica in sync in d.
func (g *Group) allInSync(d DomainID, cfgs map[VolumeID]*Config) bool {
	for _, v := range g.Volumes {
		if cfg := cfgs[v]; cfg == nil || !cfg.InSyncIn(d) {
			return false
		}
	}
	return true
}

// NotInSync returns splits for the domains in which some of the volumes have a replica in sync and others have none: what a group that is made
// of them begins with.
func (g *Group) NotInSync(cfgs map[VolumeID]*Config, now time.Time) map[DomainID]GroupSplit {
	splits := map[DomainID]GroupSplit{}
	for _, v := range g.Volumes {
		cfg := cfgs[v]
		if cfg == nil {
			continue
		}
		for _, m := range cfg.Members {
			if !cfg.InSyncIn(m.Domain) {
				splits[m.Domain] = GroupSplit{Since: now, By: v, Broken: fmt.Sprintf("volume %s was not in sync there when it came into the group", v)}
			}
		}
	}
	return splits
}

func waitedFor(vs []VolumeID) string {
	if len(vs) == 0 {
		return ""
	}
	return fmt.Sprintf(" (waited for %s)", vs)
}

func compareVolumes(a, b VolumeID) int { return slices.Compare(a[:], b[:]) }

// GroupOrder is what a coordinator is told of its volume's group, by the record and configurations that were read while its term was Term.
type GroupOrder struct {
	Term  Term
	In    bool       // it is in a group
	Leave []DomainID // the group is split from them, and the volume has not left them yet
	Left  []DomainID // no volume of the group writes there any more
}

// GroupStatus is how a volume stands to the domains of its group.
type GroupStatus struct {
	Term Term // 0 before the election
	// Lost have no replica in sync; acknowledgements wait until the group has left them too, and for nothing else.
	Lost []DomainID
	Kept []DomainID // likewise, and nothing was acknowledged without them before it was told that the group has left them
	// Late are those that the volume did not wait for: something may have been acknowledged without them, or sent there when the group had left.
	Late []DomainID
}
