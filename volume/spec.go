package volume

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"time"

	"github.com/tandem-storage/tandem/kvdb"
	"github.com/tandem-storage/tandem/replication"
)

// State of a volume in the catalogue.
type State string

// States.
const (
	Creating State = "CREATING" // its replicas are being made; it has no configuration yet
	Ready    State = "READY"    // it has a configuration
	Deleting State = "DELETING" // its replicas are being removed; for ever, once it is that
)

// Spec is what the catalogue knows of a volume.
type Spec struct {
	ID      replication.VolumeID `json:"id"`
	Request                      // as it was asked for
	State   State                `json:"state"`
	Created time.Time            `json:"created"` // by the creator's clock
	Placed  []Placement          `json:"placed"`
	// Replacing is the replica that is being replaced, nil if none is.
	Replacing *Replacement `json:"replacing,omitempty"`
	// Reverting says that it is being put back to a snapshot, nil if it is not.
	Reverting *Reverting `json:"reverting,omitempty"`
	// Retired are replicas that are no members any more, or never became one, and may still be on disk.
	Retired []Placement `json:"retired,omitempty"`
	// Limited are the limits that are in force instead of the Request's, nil if they were never changed.
	Limited *Limits `json:"limited,omitempty"`
	// Prioritised is the priority that is in force instead of the Request's, nil if it was never changed.
	Prioritised *replication.ResyncPriority `json:"prioritised,omitempty"`
	// Failure says why it went from CREATING to DELETING by itself.
	Failure string `json:"failure,omitempty"`
}

// Request is what a volume is asked to be.
type Request struct {
	Name       string                 `json:"name"`
	Size       int64                  `json:"size"`              // bytes
	Replicas   int                    `json:"replicas"`          // 0: one per domain that can take one, at most MaxReplicas
	Protection replication.Protection `json:"protection"`        // "": max_availability
	Needs      replication.Needs      `json:"needs,omitzero"`    //
	Labels     map[string]string      `json:"labels,omitempty"`  //
	Domains    []string               `json:"domains,omitempty"` // place replicas in these only; empty: in any
	// Failover says who attaches it elsewhere when the domain is lost where it is attached; "": FailoverAutomatic.
	Failover Failover `json:"failover,omitempty"`
	Limits   Limits   `json:"limits,omitzero"`
	Placing  Placing  `json:"placing,omitzero"`
	Thick    bool     `json:"thick,omitempty"` // all its space is taken when it is made, and when it grows
	// NearNode has a replica if one may lie there, "": none before others. It is a wish of the moment, and no part of the record.
	NearNode replication.NodeID `json:"-"`
	// ResyncPriority is how its resyncs stand to those of other volumes.
	ResyncPriority replication.ResyncPriority `json:"resyncPriority,omitempty"`
	// Joins is the consistency group that it is in from its first configuration on, made for it if there is none; "": none. It may be taken out later.
	Joins string `json:"joins,omitempty"`
	// From is the snapshot that it begins with, nil: none, and it is blank.
	From *Source `json:"from,omitempty"`
}

// Failover is who moves a volume when the domain is lost where it is attached. A fence stops a domain as a whole: a volume that is
// moved by hand keeps no other where it is.
type Failover = replication.Failover

// The policies of failover.
const (
	FailoverAutomatic = replication.FailoverAutomatic
	FailoverManual    = replication.FailoverManual
)

// Placement is where a replica lies.
type Placement struct {
	Replica replication.ReplicaID `json:"replica"`
	Node    replication.NodeID    `json:"node"`
	Domain  replication.DomainID  `json:"domain"`
	Pool    string                `json:"pool"` // its UUID
}

// Limits of a volume.
const (
	MaxReplicas = 3
	MaxSize     = 1 << 50 // 1 PiB: offsets and counters are far from overflowing
	MaxName     = 128     // what Kubernetes makes of a claim fits
	MaxLabels   = 64
	MaxLabel    = 255  // bytes, of a key or a value
	MaxSelector = 1024 // bytes
	SizeUnit    = 4096
)

// Errors. Test with errors.Is.
var (
	ErrInvalid         = errors.New("volume: invalid request")
	ErrVolumeExists    = errors.New("volume: a volume of this name exists already, and is different")
	ErrTooFewNodes     = errors.New("volume: too few nodes can take a replica")
	ErrTooLarge        = errors.New("volume: larger than any pool")
	ErrNoRoom          = errors.New("volume: no pool has room")
	ErrCreateFailed    = errors.New("volume: not created")
	ErrNotReady        = errors.New("volume: still being created")
	ErrDeleting        = errors.New("volume: being deleted")
	ErrReplicaNotFound = errors.New("volume: no such replica")
	ErrNotReplaced     = errors.New("volume: the replica is still being replaced")
	ErrReplicaInSync   = errors.New("volume: the replica is in sync and is not replaced")
	ErrNotForced       = errors.New("volume: the replica is not forced to be the one in sync")
	ErrAttached        = errors.New("volume: attached")
	ErrOtherNode       = errors.New("volume: to be asked of another node")
	ErrConflict        = errors.New("volume: the configuration was changed meanwhile")
	ErrDomainNotActive = errors.New("volume: the domain may not do this")
	ErrIncarnation     = errors.New("volume: the kvdb was restored or replaced")
	ErrInvalidChange   = errors.New("volume: change breaks the rules of configurations")
	ErrNotSent         = errors.New("volume: nothing was changed, the kvdb did not take it")
	ErrOutcomeUnknown  = errors.New("volume: not known whether the change took effect")
	ErrBadRecord       = errors.New("volume: unreadable record")
	ErrGroupNotFound   = errors.New("volume: no such group")
	ErrGroupExists     = errors.New("volume: a group of this name exists already, and is different")
	ErrInGroup         = errors.New("volume: the volume is in a group")
	ErrGroupFull       = errors.New("volume: as many volumes as a group can have")
	ErrNotCut          = errors.New("volume: the group was not cut")
	ErrNodeNotFound    = errors.New("volume: no such node")
	ErrPublished       = errors.New("volume: published")
	// ErrPublishedOtherwise: to the same node, with another promise.
	ErrPublishedOtherwise = errors.New("volume: published in another way")
	ErrNotBlank           = errors.New("volume: it may hold data")
	ErrSnapshotNotFound   = errors.New("volume: no such snapshot")
	ErrSnapshotExists     = errors.New("volume: a snapshot of this name exists already, and is of another volume")
	ErrSnapshotSize       = errors.New("volume: a volume has the size of the snapshot that it is made from")
	ErrTooManySnapshots   = errors.New("volume: as many snapshots as a volume can have; delete one")
	// ErrSnapshotNotHeld: by the replica that was asked.
	ErrSnapshotNotHeld = errors.New("volume: the replica does not hold the snapshot")
	ErrHoldersSilent   = errors.New("volume: no replica that holds the snapshot answers")
	ErrHasSnapshots    = errors.New("volume: it has snapshots; delete them first")
	// ErrReverting: and nobody may have the volume, or those snapshots go, before that has come to its end.
	ErrReverting    = errors.New("volume: it is being put back to snapshot")
	ErrNotReverting = errors.New("volume: it is not being put back to a snapshot")
	// ErrGroupSnapshotExists: idempotent by name, for the same volumes only.
	ErrGroupSnapshotExists   = errors.New("volume: a group snapshot of this name exists already, and is of other volumes")
	ErrGroupSnapshotNotFound = errors.New("volume: no such group snapshot")
	ErrNotFrozen             = errors.New("volume: the file system is not frozen")
	ErrInGroupSnapshot       = errors.New("volume: the snapshot is part of a group snapshot, and is deleted with it")
)

var nameSyntax = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$`)

// normalise fills in what may be left out.
func (r Request) normalise() Request {
	if r.Protection == "" {
		r.Protection = replication.MaxAvailability
	}
	if r.Failover == FailoverAutomatic {
		r.Failover = "" // as in records from before there was a choice
	}
	r.Labels = maps.Clone(r.Labels)
	r.Placing = r.Placing.normalise()
	r.Domains = slices.Compact(slices.Sorted(slices.Values(r.Domains)))
	r.Needs.Domains = slices.Compact(slices.Sorted(slices.Values(r.Needs.Domains)))
	return r
}

// policy is the protection that r asks for.
func (r Request) policy() replication.Policy {
	return replication.Policy{Protection: r.Protection, Needs: r.Needs}
}

// validate reports ErrInvalid for what no cluster could make, all mistakes at once.
func (r Request) validate() error {
	var errs []error
	bad := func(format string, a ...any) {
		errs = append(errs, fmt.Errorf("%w: "+format, append([]any{ErrInvalid}, a...)...))
	}
	_, notID := replication.ParseVolumeID(r.Name)
	switch {
	case r.Name == "":
		bad("the name is empty")
	case len(r.Name) > MaxName:
		bad("the name has %d characters, at most %d are allowed", len(r.Name), MaxName)
	case !nameSyntax.MatchString(r.Name):
		bad("name %q: want letters, digits, '.', '_' or '-', the first and the last a letter or digit", r.Name)
	case notID == nil:
		bad("name %q looks like the id of a volume", r.Name)
	}
	switch {
	case r.Size <= 0:
		bad("size is %d bytes, want more than 0", r.Size)
	case r.Size%SizeUnit != 0:
		bad("size is %d bytes, want a multiple of %d: %d or %d", r.Size, SizeUnit, r.Size/SizeUnit*SizeUnit, (r.Size/SizeUnit+1)*SizeUnit)
	case r.Size > MaxSize:
		bad("size is %d bytes, at most %d are allowed", r.Size, int64(MaxSize))
	}
	if r.Replicas < 0 || r.Replicas > MaxReplicas {
		bad("%d replicas, want 1 to %d", r.Replicas, MaxReplicas)
	}
	// Where its replicas will be is not known yet: this is the most that there can be.
	if err := r.policy().Validate(append(make([]replication.DomainID, MaxReplicas), r.Needs.Domains...)); err != nil {
		errs = append(errs, fmt.Errorf("%w: %w", ErrInvalid, err))
	}
	if r.Failover != "" && r.Failover != FailoverManual {
		bad("failover %q, want %s or %s", r.Failover, FailoverAutomatic, FailoverManual)
	}
	if err := r.Limits.validate(); err != nil {
		errs = append(errs, err)
	}
	if !r.ResyncPriority.Valid() {
		errs = append(errs, badPriority(r.ResyncPriority))
	}
	r.Placing.validate(bad)
	if r.Joins != "" {
		if err := checkGroupName(r.Joins); err != nil {
			errs = append(errs, err)
		}
	}
	if r.Thick && r.From != nil {
		bad("a volume that begins with a snapshot shares its space and cannot be thick")
	}
	if len(r.Labels) > MaxLabels {
		bad("%d labels, at most %d are allowed", len(r.Labels), MaxLabels)
	}
	for k, v := range r.Labels {
		if k == "" || len(k) > MaxLabel || len(v) > MaxLabel {
			bad("label %.32q: want a key of 1 to %d bytes and a value of at most that", k, MaxLabel)
		}
	}
	return errors.Join(errs...)
}

// equal reports whether r asks for the same volume as o. Both are normalised.
func (r Request) equal(o Request) bool {
	return r.Name == o.Name && r.Size == o.Size && r.Replicas == o.Replicas && r.policy().Equal(o.policy()) && r.Failover == o.Failover && r.From.equal(o.From) &&
		r.Limits == o.Limits && r.Placing == o.Placing && r.Thick == o.Thick && r.Joins == o.Joins && r.ResyncPriority == o.ResyncPriority &&
		maps.Equal(r.Labels, o.Labels) && slices.Equal(r.Domains, o.Domains)
}

func parseSpec(kv kvdb.KV) (Spec, error) {
	var s Spec
	if err := json.Unmarshal(kv.Value, &s); err != nil {
		return Spec{}, fmt.Errorf("%w: %s: %w", ErrBadRecord, kv.Key, err)
	}
	return s, nil
}

// put makes the operation that writes v as JSON.
func put(key string, v any) (kvdb.Op, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return kvdb.Op{}, fmt.Errorf("%w: %s: %w", ErrBadRecord, key, err)
	}
	return kvdb.Op{Kind: kvdb.OpPut, Key: key, Value: b}, nil
}
