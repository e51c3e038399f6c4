package replication

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"
)

// Group is the record of a consistency group: volumes whose writes depend on each other (protocol.md 15.2, 15.3). It is changed by
// compare-and-set only.
type Group struct {
	Version  uint32     `json:"version"` // of this schema: 1
	Name     string     `json:"name"`    // for ever
	Created  time.Time  `json:"created"`
	Volumes  []VolumeID `json:"volumes"` // sorted
	Failover Failover   `json:"failover"`
	// Made: by the creation of a volume, and it goes with the deletion of its last one.
	Made bool `json:"made,omitempty"`
	// Splits has the domains whose replicas do not follow all volumes any more. None: the group is LINKED.
	Splits map[DomainID]GroupSplit `json:"splits,omitempty"`
}

// GroupSplit is what is known of a domain from which a group is split.
type GroupSplit struct {
	Since time.Time `json:"since"` // by the clock of who began it
	By    VolumeID  `json:"by"`    // whose coordinator had to evict there
	// Begun are the epochs of all volumes before the split began.
	Begun map[VolumeID]Epoch `json:"begun,omitempty"`
	// Stopped are the volumes whose replicas in the domain stopped while nothing had been acknowledged without them by any volume. When it
	// names all volumes, what lies in the domain is an image of the group.
	Stopped map[VolumeID]Stopped `json:"stopped,omitempty"`
	// Broken says why there is no such image, "" while there is or may be.
	Broken string `json:"broken,omitempty"`
}

// Stopped is where the replicas of one volume in a domain stopped.
type Stopped struct {
	Epoch Epoch `json:"epoch"`          // of the configuration by which that was seen
	Idle  bool  `json:"idle,omitempty"` // it was not attached
}

// Failover says who attaches a volume, or the volumes of a group, elsewhere when the domain is lost where they are attached.
type Failover string

// Policies.
const (
	FailoverAutomatic Failover = "automatic" // the arbiter; a group only if the domain that takes over has all of it in sync
	FailoverManual    Failover = "manual"    // operators alone
)

// GroupState sums a group up.
type GroupState string

// States.
const (
	Linked GroupState = "LINKED" // the replicas in every domain follow all volumes, or nobody has found otherwise yet
	Split  GroupState = "SPLIT"  // a domain's do not
)

// State returns LINKED or SPLIT.
func (g *Group) State() GroupState {
	if len(g.Splits) == 0 {
		return Linked
	}
	return Split
}

// Has reports whether v is in the group.
func (g *Group) Has(v VolumeID) bool { return slices.Contains(g.Volumes, v) }

// Clone returns a deep copy.
func (g *Group) Clone() *Group {
	n := *g
	n.Volumes = slices.Clone(g.Volumes)
	n.Splits = maps.Clone(g.Splits)
	for d, s := range n.Splits {
		s.Begun, s.Stopped = maps.Clone(s.Begun), maps.Clone(s.Stopped)
		n.Splits[d] = s
	}
	return &n
}

// in returns how many replicas the volume has in a domain, and how many of them are in sync.
func (c *Config) in(d DomainID) (all, insync int) {
	for id, m := range c.Members {
		if m.Domain == d {
			all++
			if c.InISR(id) {
				insync++
			}
		}
	}
	return all, insync
}

// InSyncIn reports whether the volume has a replica in sync in a domain.
func (c *Config) InSyncIn(d DomainID) bool {
	_, n := c.in(d)
	return n > 0
}

// Apart returns the volumes of the group that may still write to replicas in d, by configurations that were read after the record with the
// split: they have been attached, have a replica in sync there and have not stopped before. A configuration that is missing counts as such.
func (g *Group) Apart(d DomainID, cfgs map[VolumeID]*Config) (not []VolumeID) {
	for _, v := range g.Volumes {
		cfg, stopped := cfgs[v], g.Splits[d].Stopped[v]
		switch {
		case stopped.Epoch != 0 && !stopped.Idle:
		case cfg != nil && cfg.Phase == PhaseDetached:
		case cfg != nil && !cfg.InSyncIn(d):
		default:
			not = append(not, v)
		}
	}
	return not
}

// Image is what the replicas of a group in one domain are worth together.
type Image struct {
	InSync     bool   // they have everything
	Consistent bool   // they are an image of one moment: every write that they have comes with all that it may depend on. Implied by InSync
	Why        string // they are not in sync, or not consistent
}

// ImageIn judges what lies in d by the record and the configurations in force of all volumes.
func (g *Group) ImageIn(d DomainID, cfgs map[VolumeID]*Config) Image {
	var behind VolumeID
	for _, v := range g.Volumes {
		cfg := cfgs[v]
		if cfg == nil {
			return Image{Why: fmt.Sprintf("volume %s has no configuration", v)}
		}
		all, insync := cfg.in(d)
		if all == 0 {
			return Image{Why: fmt.Sprintf("volume %s has no replica in domain %s", v, d)}
		}
		if insync == 0 {
			behind = v
		}
	}
	s, split := g.Splits[d]
	switch {
	case behind == VolumeID{}:
		return Image{InSync: true, Consistent: true}
	case !split:
		return Image{Why: fmt.Sprintf("volume %s is not in sync in domain %s, and the group has not been split from it", behind, d)}
	case s.Broken != "":
		return Image{Why: s.Broken}
	}
	for _, v := range g.Volumes {
		at, ok := s.Stopped[v]
		if !ok {
			return Image{Why: fmt.Sprintf("volume %s is not known to have stopped with the others", v)}
		}
		if why := cfgs[v].touched(d, at.Epoch); why != "" {
			return Image{Why: fmt.Sprintf("volume %s: %s", v, why)}
		}
	}
	return Image{Consistent: true, Why: "since " + s.Since.UTC().Format(time.RFC3339) + " nothing has been written there"}
}

// Causes of epochs in which a replica is written to by a resync, and is in sync again.
const (
	CauseStartResync = "start resync"
	CauseJoin        = "join"
)

// reaches reports whether the history tells of every epoch after e.
func (c *Config) reaches(e Epoch) bool { return len(c.History) > 0 && c.History[0].Epoch <= e+1 }

// rejoined reports whether a replica may have come back since epoch e.
func (c *Config) rejoined(e Epoch) bool {
	return !c.reaches(e) || slices.ContainsFunc(c.History, func(h EpochRecord) bool {
		return h.Epoch > e && (h.Cause == CauseStartResync || h.Cause == CauseJoin)
	})
}

// touched is why replicas of the volume in d may have been written to since epoch e, "" if they have not.
func (c *Config) touched(d DomainID, e Epoch) string {
	if !c.reaches(e) {
		return "its history does not reach back to when it stopped"
	}
	for _, h := range c.History {
		if h.Epoch <= e {
			continue
		}
		if h.Cause == CauseStartResync {
			return "a resync has begun since"
		}
		for _, r := range h.ISR {
			if c.Members[r].Domain == d {
				return "a replica there was in sync since"
			}
		}
	}
	return ""
}

// ErrGroupMixed means that a domain does not have all of a group.
var ErrGroupMixed = errors.New("replication: the domain does not have all volumes of the group in sync")

// ErrGroupManual means that a group is failed over by operators alone.
var ErrGroupManual = errors.New("replication: the group's policy is manual failover")

// MayFailOver says whether all volumes of the group may be failed over to a domain without an operator: the policy says so, and all of it is in
// sync there. A group with mixed state is not: some of its volumes would go back in time and others not. Errors: ErrGroupManual, ErrGroupMixed.
func (g *Group) MayFailOver(to DomainID, cfgs map[VolumeID]*Config) error {
	if g.Failover != FailoverAutomatic {
		return fmt.Errorf("%w: group %s", ErrGroupManual, g.Name)
	}
	if im := g.ImageIn(to, cfgs); !im.InSync {
		return fmt.Errorf("%w: group %s, domain %s: %s", ErrGroupMixed, g.Name, to, im.Why)
	}
	return nil
}

// CutPosition is where one volume stands in a cut of its group.
type CutPosition struct {
	Epoch  Epoch  `json:"epoch"`
	Term   Term   `json:"term"`   // 0: it was not attached
	Seq    Seq    `json:"seq"`    // the last request that had been dispatched in that term
	Writes uint64 `json:"writes"` // requests that modify, dispatched in that term; each had ended
}
