// Package clusterdomain knows the cluster's domains (sites) and nodes, and
// changes what a domain may do.
//
// A domain is a record in the kvdb, dom/<d>: its state (package arbiter has the
// states and all the rules), an epoch that grows by one with every change, who changed it
// and why. It appears, ACTIVE, when its first node registers, and is changed
// by compare-and-set only: two operators who decide at once on the same epoch cannot both win.
//
// # What a deactivation is worth
//
// A node of a deactivated domain may be cut off and never hear of it. It is
// fenced all the same. It cannot change the configuration of a volume, because every such change is
// one transaction guarded on the state of the domain that makes it (package volume, Configs). It cannot get a
// write acknowledged, because that takes all members of the in-sync set, and those in
// other domains refuse it: at the latest when somebody takes over they are sealed. The duty of a node
// to stop its coordinators when it sees its domain FENCED or INACTIVE is
// courtesy, and saves its consumers from waiting.
//
// # The gate
//
// Deactivate refuses to take the last usable in-sync replica of a volume out of
// service (I23c). Volumes change while it looks, so the decision is written by a transaction
// that compares every domain record and the key shrunk/<d>, which each change that makes an in-sync set
// with a member in d smaller writes too (ShrunkKey). If that fails the gate looks again. Evictions of
// the replicas of a lost domain do not disturb its own deactivation.
//
// # Liveness
//
// A node is a record node/<n> attached to a kvdb lease. It says what the node has and that it
// was there a moment ago; it is a hint and gives no right to write.
package clusterdomain

import (
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"time"

	"github.com/tandem-storage/tandem/clusterdomain/arbiter"
	"github.com/tandem-storage/tandem/kvdb"
)

// State is what a domain may do; its methods say what that means.
type State = arbiter.State

// Domain states.
const (
	Active    = arbiter.Active
	Standby   = arbiter.Standby
	Draining  = arbiter.Draining
	Inactive  = arbiter.Inactive
	Fenced    = arbiter.Fenced
	Rejoining = arbiter.Rejoining
)

// Domain is one domain's record in the kvdb.
type Domain struct {
	Name      string    `json:"name"`
	State     State     `json:"state"`
	Epoch     uint64    `json:"dom_epoch"` // +1 on every change, from 1
	PrevState State     `json:"prev_state,omitempty"`
	Actor     string    `json:"actor"`
	Reason    string    `json:"reason"`
	Time      time.Time `json:"ts"` // by the actor's clock; for people
	// AcceptDataLoss are the ids of the volumes whose last in-sync replica the operator gave up with this change.
	AcceptDataLoss []string `json:"accept_data_loss,omitempty"`
	// Failover is the automatic failover that fenced it, nil if something else made it what it is.
	Failover *FailoverRef `json:"failover,omitempty"`
	// Proposal tells whether a write of unknown outcome took effect.
	Proposal string `json:"proposal_id"`

	Mod kvdb.Revision `json:"-"`
}

// FailoverRef names an automatic failover.
type FailoverRef struct {
	ID uint64 `json:"id"`
	To string `json:"to"` // the domain that took over
}

// ParseDomain decodes the record of a domain.
func ParseDomain(kv kvdb.KV) (Domain, error) {
	var d Domain
	if err := json.Unmarshal(kv.Value, &d); err != nil {
		return Domain{}, fmt.Errorf("%w: %s: %w", ErrBadRecord, kv.Key, err)
	}
	if !d.State.Valid() {
		return Domain{}, fmt.Errorf("%w: %s: no such state: %q", ErrBadRecord, kv.Key, d.State)
	}
	d.Mod = kv.Mod
	return d, nil
}

// Node is what a node tells of itself.
type Node struct {
	Name     string `json:"name"`
	Domain   string `json:"domain"`
	Address  string `json:"address"` // host:port where the other nodes reach it
	BootID   string `json:"boot_id"`
	ProtoMin uint32 `json:"proto_min"` // replication protocol versions
	ProtoMax uint32 `json:"proto_max"`
	Version  string `json:"version"`
	Witness  bool   `json:"witness,omitempty"` // a kvdb member without data; makes no domain
	Pools    []Pool `json:"pools,omitempty"`
	// Labels are what its configuration says of it, for the placing of replicas.
	Labels   map[string]string `json:"labels,omitempty"`
	Time     time.Time         `json:"ts"`                 // of the registration, by the node's clock
	Instance string            `json:"instance,omitempty"` // of the daemon's process: another one after a restart
	Fragile  int               `json:"fragile,omitempty"`  // volumes whose devices end with that process

	Online bool `json:"-"` // its registration is alive
}

// Pool is a local file system of a node that holds replicas. Sizes are in bytes.
type Pool struct {
	UUID        string `json:"uuid"`
	Path        string `json:"path"`
	FS          string `json:"fs"`
	Class       string `json:"class,omitempty"` // as its node calls it, for the placing of replicas
	Total       int64  `json:"total"`
	Used        int64  `json:"used"`        // by anybody
	Provisioned int64  `json:"provisioned"` // sum of the sizes of the replicas here
}

// Pool watermarks, in hundredths of Total that are used (protocol.md 12).
const (
	PoolWarnPercent  = 80 // an alert
	PoolFullPercent  = 85 // no new replicas
	PoolEvictPercent = 97 // an alarm: a replica whose write finds no space is evicted
)

// UsedPercent is how full the pool is, rounded down; 100 if its size is not known.
func (p Pool) UsedPercent() int {
	if p.Total <= 0 {
		return 100
	}
	return int(float64(p.Used) / float64(p.Total) * 100)
}

// Errors. Test with errors.Is.
var (
	ErrFailoverNotFound = errors.New("clusterdomain: no such failover")
	ErrDomainNotFound   = errors.New("clusterdomain: no such domain")
	ErrEpochChanged     = errors.New("clusterdomain: the domain was changed meanwhile")
	ErrLastCopy         = errors.New("clusterdomain: the last in-sync replica of a volume is in the domain")
	ErrUnknownVolume    = errors.New("clusterdomain: no such volume")
	ErrOutcomeUnknown   = errors.New("clusterdomain: not known whether the change took effect")
	ErrNodeDomain       = errors.New("clusterdomain: the node belongs to another domain")
	ErrInvalid          = errors.New("clusterdomain: invalid request")
	ErrBadRecord        = errors.New("clusterdomain: unreadable record")
	ErrNodeNotFound     = errors.New("clusterdomain: no such node")
	ErrKvdbMember       = errors.New("clusterdomain: the kvdb has no such member")
	ErrKvdbMajority     = errors.New("clusterdomain: the kvdb would lose its majority")
	ErrNoKvdbMember     = errors.New("clusterdomain: to be asked of a member of the kvdb")
)

var nameSyntax = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$`)

// CheckName reports ErrInvalid for a name that no domain, node or cluster may have.
func CheckName(kind, name string) error {
	if !nameSyntax.MatchString(name) {
		return fmt.Errorf("%w: %s name %q: want 1 to 63 letters, digits, '.', '_' or '-', the first and the last a letter or digit", ErrInvalid, kind, name)
	}
	return nil
}
