package replication

import "slices"

// Phase of a volume, in its configuration.
type Phase string

// Phases. RECOVERING means that nobody has acknowledged anything in this epoch,
// so that a second takeover may start from the same in-sync set. DETACHED means that no coordinator
// serves reads: whoever says it of a volume that had one knows that it has ended.
const (
	PhaseDetached   Phase = "DETACHED"
	PhaseRecovering Phase = "RECOVERING"
	PhaseActive     Phase = "ACTIVE"
	PhaseDeleting   Phase = "DELETING"
)

// MemberState is what the configuration says of a replica.
type MemberState string

// Member states. IN_SYNC is said exactly of the members of the in-sync set.
const (
	MemberInSync  MemberState = "IN_SYNC"
	MemberStale   MemberState = "STALE"   // lacks writes; may be resynced
	MemberSyncing MemberState = "SYNCING" // being resynced; inconsistent, never read
	MemberFaulted MemberState = "FAULTED" // its disk failed; an operator replaces it
)

// Config is the configuration of one volume: the only authority on who may
// write and who holds the data. It is changed by compare-and-set only.
type Config struct {
	Version    uint32               `json:"version"` // of this schema, see ConfigVersion
	Volume     VolumeID             `json:"volume"`
	Epoch      Epoch                `json:"epoch"`
	Gen        uint64               `json:"gen"` // random per epoch: tells two epochs of the same number apart
	Phase      Phase                `json:"phase"`
	Coord      *Coord               `json:"coord,omitempty"` // nil when detached
	ISR        []ReplicaID          `json:"isr"`             // the in-sync set; never empty (I2)
	Members    map[ReplicaID]Member `json:"members"`
	Protection Protection           `json:"protection"`
	Size       int64                `json:"size"` // bytes
	History    []EpochRecord        `json:"history"`
	ForkGen    uint64               `json:"fork_gen"`    // bumped only by an operator's force
	ProposalID UUID                 `json:"proposal_id"` // nonce of the writer: tells whether a write of unknown outcome took effect
	// Forced is the incarnation of the kvdb in which an operator last forced a configuration, with the loss of what
	// replicas know that did not answer; zero: never.
	Forced UUID  `json:"forced,omitzero"`
	Needs  Needs `json:"needs,omitzero"`
}

// HistoryLen is how many epochs Config.History keeps. A replica whose epoch is no
// longer in it is compared in full.
const HistoryLen = 64

// Coord names the coordinator.
type Coord struct {
	Node     NodeID   `json:"node"`
	Domain   DomainID `json:"domain"`
	Boot     BootID   `json:"boot,omitzero"` // of the node; zero if a version without read leases wrote it
	AttachID AttachID `json:"attach_id"`
	Term     Term     `json:"term"`
	// From is who handed the volume over to this coordinator, zero if nobody did. While the phase is RECOVERING it tells that
	// neither of them serves: the one before has ended, all that it acknowledged is stable, and this one has not come to serve.
	From Handover `json:"from,omitzero"`
}

// Handover names the coordinator that gave a volume up to another one by plan.
type Handover struct {
	Node     NodeID   `json:"node"`
	AttachID AttachID `json:"attach_id"`
	Term     Term     `json:"term"`
}

// Member is one replica of the volume.
type Member struct {
	Node      NodeID      `json:"node"`
	Domain    DomainID    `json:"domain"`
	Pool      string      `json:"pool"`
	State     MemberState `json:"state"`
	LeftEpoch Epoch       `json:"left_epoch,omitempty"` // epoch that dropped it from the in-sync set
	LeftGen   uint64      `json:"left_gen,omitempty"`
	Reason    string      `json:"reason,omitempty"` // why it is not in sync
}

// EpochRecord is one line of the history.
type EpochRecord struct {
	Epoch Epoch       `json:"epoch"`
	Gen   uint64      `json:"gen"`
	Node  NodeID      `json:"node"` // coordinator, "" when detached
	ISR   []ReplicaID `json:"isr"`
	Cause string      `json:"cause"`
}

// Lineage returns the epochs of the history, oldest first.
func (c *Config) Lineage() []Ancestor {
	as := make([]Ancestor, len(c.History))
	for i, h := range c.History {
		as[i] = Ancestor{h.Epoch, h.Gen}
	}
	return as
}

// Follows reports whether a configuration of that lineage, at epoch e, may come after or be the one with the epoch and gen known: false
// means that it is older, or of another lineage. A lineage that does not reach back so far is believed.
func Follows(e Epoch, lineage []Ancestor, known Ancestor) bool {
	if e < known.Epoch {
		return false
	}
	i := slices.IndexFunc(lineage, func(a Ancestor) bool { return a.Epoch == known.Epoch })
	return i < 0 || lineage[i].Gen == known.Gen
}

// InISR reports whether r is in the in-sync set.
func (c *Config) InISR(r ReplicaID) bool { return slices.Contains(c.ISR, r) }

// Clone returns a deep copy.
func (c *Config) Clone() *Config {
	d := *c
	if c.Coord != nil {
		co := *c.Coord
		d.Coord = &co
	}
	d.ISR = slices.Clone(c.ISR)
	d.Members = make(map[ReplicaID]Member, len(c.Members))
	for id, m := range c.Members {
		d.Members[id] = m
	}
	d.History = slices.Clone(c.History)
	d.Needs.Domains = slices.Clone(c.Needs.Domains)
	return &d
}
