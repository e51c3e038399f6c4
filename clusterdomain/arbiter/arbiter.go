package arbiter

import (
	"fmt"
	"slices"
)

// View is what is known of the cluster at one moment.
type View struct {
	Domains map[string]State
	Volumes []Volume
}

// Volume is what a decision needs to know of a volume.
type Volume struct {
	ID, Name    string
	Strict      bool     // max-protection: writes wait while a domain has no in-sync replica
	Needed      []string // domains whose replicas in sync its protection asks for
	Manual      bool     // it is attached elsewhere by people only, see Failover
	Group       string   // its consistency group, of which all volumes go on in the same domain or none; "": none
	Epoch       uint64
	Coordinator Coordinator
	Replicas    []Replica
	// Unreadable says which of its records cannot be read, "" if all can. Without
	// its configuration it has no Replicas here, and may have its last one anywhere.
	Unreadable string
	// RolledBack says which replica knows more than the kvdb, "" if none was found. What the kvdb tells of
	// the volume is not to be believed then.
	RolledBack string
}

// unknown says why nothing is known of where the volume's data are, "" if something is.
func (v Volume) unknown() Cause {
	switch {
	case v.RolledBack != "":
		return RolledBack
	case v.Unreadable != "" && len(v.Replicas) == 0:
		return Unreadable
	default:
		return ""
	}
}

// Coordinator is where a volume is attached; the zero value means detached.
type Coordinator struct {
	Node, Domain string
	Online       bool // the node keeps its registration alive (a hint)
}

// Replica is one replica of a volume.
type Replica struct {
	Node, Domain string
	State        string // as the configuration says: IN_SYNC, STALE, SYNCING, FAULTED
	InSync       bool   // a member of the in-sync set
}

// Attached reports whether the volume has a coordinator.
func (v Volume) Attached() bool { return v.Coordinator.Node != "" }

// Is reports whether ref is the volume's id or name.
func (v Volume) Is(ref string) bool { return ref != "" && (v.ID == ref || v.Name == ref) }

// Command is what an operator asks of a domain.
type Command string

// Commands.
const (
	Activate Command = "activate"
	Drain    Command = "drain" // deactivate by plan
	Fence    Command = "fence" // deactivate at once: the domain is lost
)

// Question asks what Command does to Domain. The in-sync replicas of the volumes
// in Accept (ids or names) may become unreachable.
type Question struct {
	Domain  string
	Command Command
	Accept  []string
}

// Decision is the answer to a Question.
type Decision struct {
	Next State // equal to the present state: nothing is to be done
	Why  string
	// LastCopies are the volumes whose last usable in-sync replica is in the
	// domain and that were not accepted: if there are any, the command is refused.
	LastCopies []Volume
	// Accepted are the ids of the volumes in Accept whose last copy it is.
	Accepted []string
}

// Decide answers an operator's question. The domain must be in the view.
func Decide(v View, q Question) Decision {
	now := v.Domains[q.Domain]
	d := Decision{Next: now}
	switch q.Command {
	case Activate:
		switch now {
		case Active:
			d.Why = "already active"
		case Rejoining:
			d.Why = "already rejoining"
		case Standby, Draining:
			d.Next, d.Why = Active, "replicas were never taken out of service"
		case Inactive, Fenced:
			d.Next, d.Why = Rejoining, "replicas are resynced first"
		}
		return d
	case Drain:
		switch now {
		case Draining, Inactive, Fenced:
			d.Why = "already deactivated"
			return d
		case Active, Standby, Rejoining:
		}
		d.Next, d.Why = Draining, "what is attached there ends by plan"
	case Fence:
		if now == Fenced {
			d.Why = "already fenced"
			return d
		}
		d.Next, d.Why = Fenced, "its coordinators are refused from now on"
	}
	for _, vol := range v.Volumes {
		if !lastCopy(v, vol, q.Domain) {
			continue
		}
		if slices.ContainsFunc(q.Accept, vol.Is) {
			d.Accepted = append(d.Accepted, vol.ID)
		} else {
			d.LastCopies = append(d.LastCopies, vol)
		}
	}
	if len(d.LastCopies) > 0 {
		d.Next, d.Why = now, "the last usable in-sync replica of a volume is there"
	}
	return d
}

// lastCopy reports whether vol has in-sync replicas in the domain and none in
// another one that is in service, or may have.
func lastCopy(v View, vol Volume, domain string) bool {
	if vol.unknown() != "" {
		return true
	}
	inside := false
	for _, r := range vol.Replicas {
		switch {
		case !r.InSync:
		case r.Domain == domain:
			inside = true
		case v.Domains[r.Domain].counts():
			return false
		}
	}
	return inside
}

// Cause says in one machine-readable word why a volume does not go on by itself.
type Cause string

// Causes.
const (
	NotAttached        Cause = "not-attached"        // nobody resyncs its replica until it is attached
	ReplicaFaulted     Cause = "replica-faulted"     // its disk failed; the operator replaces it
	CoordinatorOffline Cause = "coordinator-offline" // the node where it is attached does not answer
	CoordinatorFenced  Cause = "coordinator-fenced"  // the domain where it is attached is out of service
	StillAttached      Cause = "still-attached"      // it is to be detached, or attached elsewhere
	LastCopy           Cause = "last-copy"           // no other replica is in sync
	RolledBack         Cause = "kvdb-rollback"       // a replica knows more than the kvdb
	Unreadable         Cause = "unreadable"          // its configuration cannot be read
	Protection         Cause = "protection"          // its writes would wait for a replica there
	ManualFailover     Cause = "manual"              // people move it, see Volume.Manual
	GroupMixed         Cause = "group-mixed"         // no domain has all volumes of its group, in sync and on nodes that are online
	NoNode             Cause = "no-node"             // no node that may attach it and has it in sync is online
)

// Blocked is a volume that cannot go on by itself.
type Blocked struct {
	Volume Volume
	Cause  Cause
}

// Text says what holds the volume and what to do.
func (b Blocked) Text() string {
	switch b.Cause {
	case NotAttached:
		return "not attached, so its replica is not resynced: attach it in an active domain"
	case ReplicaFaulted:
		return "the disk of its replica failed: replace the replica (tandemctl volume replica replace)"
	case CoordinatorOffline:
		return fmt.Sprintf("attached on node %s, which is offline: bring the node back or attach the volume elsewhere", b.Volume.Coordinator.Node)
	case CoordinatorFenced:
		return fmt.Sprintf("was attached on node %s, whose domain is out of service: attach it in an active domain", b.Volume.Coordinator.Node)
	case StillAttached:
		return fmt.Sprintf("still attached on node %s: detach it", b.Volume.Coordinator.Node)
	case LastCopy:
		return "its last in-sync replica is here: wait for another to be in sync, or activate the domain again"
	case Unreadable:
		return "its configuration in the kvdb cannot be read, so that nobody knows where its data are: " + b.Volume.Unreadable
	case RolledBack:
		return "KVDB_ROLLBACK: " + b.Volume.RolledBack
	case Protection:
		return "max-protection: its writes would wait until a replica here is in sync again: detach it first"
	case ManualFailover:
		return "its failover is manual: attach it in an active domain"
	case GroupMixed:
		return fmt.Sprintf("no domain can go on with all volumes of its group %s: see which has what (tandemctl group inspect %s), and attach them yourself", b.Volume.Group, b.Volume.Group)
	case NoNode:
		return "no node with an in-sync replica is online in an active domain: bring one back"
	default:
		return string(b.Cause)
	}
}

// Progress says how far a DRAINING or REJOINING domain is.
type Progress struct {
	Next State // the state that is due; equal to the present one while there is something to wait for
	// Evict are detached volumes whose replicas here are to leave the in-sync set (DRAINING).
	Evict []Volume
	// Waiting are volumes that go on by themselves.
	Waiting []Volume
	// Blocked are volumes that need the operator. They keep a DRAINING domain as it
	// is, but not a REJOINING one: a stale replica is never used, whatever the domain may do.
	Blocked []Blocked
}

// Settle tells how a domain that drains or rejoins goes on. Volumes whose ids are in accepted
// keep their last copy in a domain that drains.
func Settle(v View, domain string, accepted []string) Progress {
	p := Progress{Next: v.Domains[domain]}
	switch p.Next {
	case Draining:
		for _, vol := range v.Volumes {
			settleDraining(v, domain, vol, slices.Contains(accepted, vol.ID), &p)
		}
		if len(p.Evict)+len(p.Waiting)+len(p.Blocked) == 0 {
			p.Next = Inactive
		}
	case Rejoining:
		for _, vol := range v.Volumes {
			settleRejoining(v, domain, vol, &p)
		}
		if len(p.Waiting) == 0 {
			p.Next = Active
		}
	case Active, Standby, Inactive, Fenced: // they rest until somebody asks for a change
	}
	return p
}

func settleDraining(v View, domain string, vol Volume, accepted bool, p *Progress) {
	here, syncing := false, false
	for _, r := range vol.Replicas {
		if r.Domain == domain {
			here = here || r.InSync
			syncing = syncing || r.State == "SYNCING"
		}
	}
	switch {
	case vol.unknown() != "":
		if !accepted {
			p.Blocked = append(p.Blocked, Blocked{vol, vol.unknown()})
		}
	case vol.Coordinator.Domain == domain && vol.Attached():
		p.Blocked = append(p.Blocked, Blocked{vol, StillAttached})
	case here && lastCopy(v, vol, domain):
		if !accepted {
			p.Blocked = append(p.Blocked, Blocked{vol, LastCopy})
		}
	case here && !vol.Attached():
		p.Evict = append(p.Evict, vol)
	case here && stuck(v, vol) != "":
		p.Blocked = append(p.Blocked, Blocked{vol, stuck(v, vol)})
	case here && v.Domains[vol.Coordinator.Domain] == Draining:
		p.Blocked = append(p.Blocked, Blocked{vol, StillAttached}) // it is to end itself, and evicts nobody by plan
	case here && (vol.Strict || slices.Contains(vol.Needed, domain)):
		p.Blocked = append(p.Blocked, Blocked{vol, Protection})
	case here, syncing && stuck(v, vol) == "":
		p.Waiting = append(p.Waiting, vol)
	}
}

// stuck says why nobody evicts or resyncs replicas of vol, or "".
func stuck(v View, vol Volume) Cause {
	switch s := v.Domains[vol.Coordinator.Domain]; {
	case !vol.Attached():
		return NotAttached
	case !s.MayRun():
		return CoordinatorFenced
	case !vol.Coordinator.Online:
		return CoordinatorOffline
	default:
		return ""
	}
}

func settleRejoining(v View, domain string, vol Volume, p *Progress) {
	waits, faulted := false, false
	for _, r := range vol.Replicas {
		if r.Domain == domain && !r.InSync {
			faulted = faulted || r.State == "FAULTED"
			waits = waits || r.State != "FAULTED"
		}
	}
	switch {
	case vol.unknown() != "":
		p.Blocked = append(p.Blocked, Blocked{vol, vol.unknown()})
	case waits && stuck(v, vol) != "":
		p.Blocked = append(p.Blocked, Blocked{vol, stuck(v, vol)})
	case waits:
		p.Waiting = append(p.Waiting, vol)
	case faulted:
		p.Blocked = append(p.Blocked, Blocked{vol, ReplicaFaulted})
	}
}

// Sync sums up the replicas of a domain.
type Sync struct {
	Replicas, InSync int
	Syncing          bool // some are being resynced
}

// SyncOf sums up the replicas of a domain.
func SyncOf(vols []Volume, domain string) Sync {
	var s Sync
	for _, vol := range vols {
		for _, r := range vol.Replicas {
			if r.Domain != domain {
				continue
			}
			s.Replicas++
			if r.InSync {
				s.InSync++
			}
			s.Syncing = s.Syncing || r.State == "SYNCING"
		}
	}
	return s
}
