// Package arbiter decides what becomes of a cluster domain: which state follows
// a command, whether a command would take away the last in-sync replica of a
// volume, and when a domain that drains or rejoins is done.
//
// It is pure: no clock, no store, no goroutine. The same view and the same
// question give the same decision. The manager (package clusterdomain) gathers the view and
// writes the decision by compare-and-set on all that the view was made of.
//
//	          activate                     deactivate                nothing left there
//	STANDBY ------------> ACTIVE|STANDBY -------------> DRAINING ----------------------> INACTIVE
//	                         ^    ^                     |                                 |
//	                         |    +---- activate -------+                        activate |
//	                         |                                                            v
//	                         +---------------- replicas are in sync ---------------- REJOINING
//	                                                                                      ^
//	any state -- deactivate, peer lost --> FENCED ----------------- activate -------------+
package arbiter

// State is what a cluster domain may do. It is enforced by the transactions that
// change a volume's configuration and by the replicas, never by obedience.
type State string

// Domain states (protocol.md 10.1).
const (
	Active    State = "ACTIVE"    // volumes are attached here, replicas here are in sync
	Standby   State = "STANDBY"   // replicas only; nothing is attached here
	Draining  State = "DRAINING"  // nothing new is attached; what is attached runs on until it ends by plan
	Inactive  State = "INACTIVE"  // by plan: no attachment, no session, replicas are stale
	Fenced    State = "FENCED"    // at once: coordinators here are refused by the replicas of the others
	Rejoining State = "REJOINING" // nothing is attached here; replicas are resynced
)

// Valid reports whether s is one of the states.
func (s State) Valid() bool {
	switch s {
	case Active, Standby, Draining, Inactive, Fenced, Rejoining:
		return true
	default:
		return false
	}
}

// MayAttach reports whether a coordinator may take over here.
func (s State) MayAttach() bool { return s == Active }

// MayRun reports whether a coordinator that is here already may go on: evict and join.
func (s State) MayRun() bool { return s == Active || s == Draining }

// MayDetach reports whether a coordinator here may end by plan.
func (s State) MayDetach() bool { return s == Active || s == Standby || s == Draining }

// MayPlace reports whether a new replica may be placed here.
func (s State) MayPlace() bool { return s == Active || s == Standby }

// MustStop reports whether the coordinators here have to be stopped, their devices
// killed, and whether replicas elsewhere refuse them.
func (s State) MustStop() bool { return s == Inactive || s == Fenced }

// counts reports whether an in-sync replica here is one that a volume can go on with.
func (s State) counts() bool { return s == Active || s == Standby || s == Rejoining }
