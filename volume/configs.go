package volume

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tandem-storage/tandem/clusterdomain"
	"github.com/tandem-storage/tandem/kvdb"
	"github.com/tandem-storage/tandem/replication"
)

// Configs is the door to the configurations of all volumes of a cluster. Methods
// may be called concurrently.
type Configs struct {
	store      kvdb.Store
	cluster    string
	keys       keys
	life       atomic.Pointer[life] // of the kvdb, see checkIncarnation
	domains    sync.Map             // clusterdomain.Domain by replication.DomainID, as last read: what blind goes by
	formatting sync.Map             // has each replication.VolumeID that this node attaches for mkfs, see Formatting
	unshown    unshown              // volumes that this node attaches for nobody

	// Resynced tells how much the resync of a replica that is under way, of a volume that is attached on this node, has to go through, in
	// bytes; 0: not known. For the exposure ledger. It must not block. Set before the first change; nil: never known.
	Resynced func(replication.VolumeID, replication.ReplicaID) int64
	// Sealed tells what the in-sync replicas said of themselves at the takeover of a volume that is under way on this node. For the
	// receipt. It must not block. Set before the first change; nil: never known.
	Sealed func(replication.VolumeID) map[replication.ReplicaID]Sealed
}

// NewConfigs reads the incarnation of the kvdb, which must have been made (clusterdomain.Incarnation), and
// returns the Configs of that incarnation and of those that imports make its successors: in another one it changes nothing.
func NewConfigs(ctx context.Context, store kvdb.Store, cluster string) (*Configs, error) {
	kv, err := store.Get(ctx, clusterdomain.IncarnationKey(cluster))
	if err != nil {
		return nil, fmt.Errorf("volume: read the incarnation of the kvdb: %w", err)
	}
	l, err := parseLife(kv)
	if err != nil {
		return nil, err
	}
	c := &Configs{store: store, cluster: cluster, keys: newKeys(cluster)}
	c.life.Store(l)
	return c, nil
}

// Load returns a volume's configuration and its revision, a linearizable read.
// Errors: replication.ErrVolumeNotFound, ErrIncarnation, those of the store.
func (c *Configs) Load(ctx context.Context, id replication.VolumeID) (*replication.Config, kvdb.Revision, error) {
	cfg, rev, _, err := c.read(ctx, id)
	return cfg, rev, err
}

// read is Load with the mark, nil if there is none; it may be there without a configuration.
func (c *Configs) read(ctx context.Context, id replication.VolumeID) (*replication.Config, kvdb.Revision, *Rollback, error) {
	look, err := c.store.Txn(ctx, kvdb.Txn{Then: []kvdb.Op{
		{Kind: kvdb.OpGet, Key: c.keys.config(id)}, {Kind: kvdb.OpGet, Key: c.keys.rollback(id)},
		{Kind: kvdb.OpGet, Key: clusterdomain.IncarnationKey(c.cluster)},
	}})
	if err != nil {
		return nil, 0, nil, fmt.Errorf("volume: load configuration of %s: %w", id, err)
	}
	if err := c.checkIncarnation(look.Gets[2]); err != nil {
		return nil, 0, nil, fmt.Errorf("volume %s: %w", id, err)
	}
	var mark *Rollback
	if kv := look.Gets[1]; kv != nil {
		mark = parseRollback(*kv)
	}
	if look.Gets[0] == nil {
		return nil, 0, mark, notFound(id)
	}
	cfg, rev, err := parseConfig(*look.Gets[0])
	return cfg, rev, mark, err
}

func notFound(id replication.VolumeID) error {
	return fmt.Errorf("%w: %s", replication.ErrVolumeNotFound, id)
}

func parseConfig(kv kvdb.KV) (*replication.Config, kvdb.Revision, error) {
	cfg := new(replication.Config)
	if err := json.Unmarshal(kv.Value, cfg); err != nil {
		return nil, 0, fmt.Errorf("%w: %s: %w", ErrBadRecord, kv.Key, err)
	}
	if cfg.Version < 1 || cfg.Version > replication.ConfigVersion {
		return nil, 0, fmt.Errorf("%w: %s: schema version %d, want 1 to %d", ErrBadRecord, kv.Key, cfg.Version, replication.ConfigVersion)
	}
	if cfg.Coord == nil && (cfg.Phase == replication.PhaseRecovering || cfg.Phase == replication.PhaseActive) {
		return nil, 0, fmt.Errorf("%w: %s: %s without a coordinator", ErrBadRecord, kv.Key, cfg.Phase)
	}
	return cfg, kv.Mod, nil
}

// DomainStateError is ErrDomainNotActive with the state.
type DomainStateError struct {
	Domain replication.DomainID
	State  clusterdomain.State // "" if there is no such domain
}

func (e *DomainStateError) Error() string {
	s := string(e.State)
	if s == "" {
		s = "unknown"
	}
	return fmt.Sprintf("%v: domain %s is %s", ErrDomainNotActive, e.Domain, s)
}

func (e *DomainStateError) Unwrap() error { return ErrDomainNotActive }

// casPause is the first pause before a change is tried again; it doubles up to casPauseMax.
const (
	casPause    = 20 * time.Millisecond
	casPauseMax = time.Second
)

// CompareAndSwap makes next the configuration if the one in force is that of
// revision rev, on behalf of a coordinator in domain actor, and returns next's
// revision. When it returns nil the change is in force, and no coordinator of a
// domain that was deactivated before has made it (see the package comment).
//
// A domain that is ACTIVE may do everything. One that is DRAINING takes nothing over, but what is attached there runs on: it evicts,
// joins and detaches, for a write that waits for an eviction would wait until the volume is detached, which waits for the
// write. It is not INACTIVE before everything is detached, so the gate holds. One that is STANDBY may detach; any other
// nothing.
//
// An outcome that is not known is resolved by looking whether next.ProposalID came into force, and by
// sending the same change again, until ctx ends. Only then ErrOutcomeUnknown is returned: the change may be in force, or come
// into force later. The same call may be repeated to find out. ErrNotSent means that the kvdb is out of reach and this call changed nothing, and says nothing of
// an earlier one. Every other error means that the change is not in force and will not be, whatever became of earlier calls:
// ErrConflict (another is in force, which may have come on top of this one: Load and decide again), *DomainStateError, ErrIncarnation, ErrInvalidChange,
// ErrReverting, ErrDeleting, replication.ErrRolledBack (the volume waits for an import), replication.ErrVolumeNotFound.
func (c *Configs) CompareAndSwap(ctx context.Context, rev kvdb.Revision, next *replication.Config, actor replication.DomainID) (kvdb.Revision, error) {
	return c.CompareAndSwapFrom(ctx, nil, rev, next, actor)
}

// CompareAndSwapFrom is CompareAndSwap by one who has prev, the configuration of revision rev; nil if he has not. A change that leaves
// the in-sync set alone is made without a look then, in one round trip: the transaction compares all that a look would have found,
// prev itself included, and a comparison that fails leads to a look. prev need not be trusted.
func (c *Configs) CompareAndSwapFrom(ctx context.Context, prev *replication.Config, rev kvdb.Revision, next *replication.Config, actor replication.DomainID) (kvdb.Revision, error) {
	s := swap{c: c, prev: prev, rev: rev, next: next, actor: actor}
	for pause := casPause; ; pause = min(2*pause, casPauseMax) {
		mod, done, err := s.attempt(ctx)
		switch {
		case done && err != nil:
			return 0, fmt.Errorf("volume %s: change to epoch %d: %w", next.Volume, next.Epoch, err)
		case done:
			return mod, nil
		}
		if err != nil && (errors.Is(err, kvdb.ErrClosed) || !s.sent || !kvdb.Pause(ctx, pause)) || ctx.Err() != nil {
			is := ErrNotSent
			if s.sent {
				is = ErrOutcomeUnknown
			}
			if err == nil {
				err = ctx.Err()
			}
			return 0, fmt.Errorf("volume %s: change to epoch %d: %w: %w", next.Volume, next.Epoch, is, err)
		}
	}
}

// swap is one CompareAndSwap under way.
type swap struct {
	c     *Configs
	prev  *replication.Config // of rev, as the caller says; nil if he does not, or it was tried
	rev   kvdb.Revision
	next  *replication.Config
	actor replication.DomainID
	sent  bool // a transaction whose outcome was not told is or was on its way
}

// blind is the transaction that makes the change without a look, once; ok is false if there has to be one.
func (s *swap) blind() (t kvdb.Txn, ok bool) {
	prev := s.prev
	s.prev = nil
	known, found := s.c.domains.Load(s.actor)
	if prev == nil || !found || checkChange(prev, s.next) != nil || !slices.Equal(prev.ISR, s.next.ISR) {
		return t, false // a ledger and a gate want to know of another in-sync set
	}
	if attaches(prev, s.next) && s.next.ForkGen == prev.ForkGen && s.c.unshown.has(s.next.Volume) {
		return t, false // it may not be handed over
	}
	if takes(prev, s.next) || prev.Phase == replication.PhaseRecovering && !isHandover(prev) {
		return t, false // the ledger has a receipt of a takeover
	}
	d := known.(clusterdomain.Domain)
	if s.permitted(prev, &d) != nil {
		return t, false
	}
	was, err := put(s.c.keys.config(s.next.Volume), prev)
	if err != nil {
		return t, false
	}
	record, err := put(s.c.keys.config(s.next.Volume), s.next)
	if err != nil {
		return t, false
	}
	t = s.txn(d.Mod, append(s.c.written(prev, s.next), record))
	t.If = append(t.If, kvdb.Cmp{Key: was.Key, Target: kvdb.CmpValue, Value: was.Value})
	return t, true
}

// txn makes ops if all is as it was decided by: the configuration, that the actor's domain may do it, the kvdb, and that no import is wanted.
func (s *swap) txn(domain kvdb.Revision, ops []kvdb.Op) kvdb.Txn {
	return kvdb.Txn{
		If: []kvdb.Cmp{
			{Key: s.c.keys.config(s.next.Volume), Target: kvdb.CmpMod, Revision: s.rev},
			{Key: clusterdomain.DomainKey(s.c.cluster, string(s.actor)), Target: kvdb.CmpMod, Revision: domain},
			s.c.guard(), s.c.unmarked(s.next.Volume),
		},
		Then: ops,
	}
}

// attempt sends the change, after a look if it takes one and if that permits it. done: the outcome is known. Otherwise
// it is to be repeated; an error says why.
func (s *swap) attempt(ctx context.Context) (_ kvdb.Revision, done bool, _ error) {
	if t, ok := s.blind(); ok {
		return s.send(ctx, t)
	}
	k := s.c.keys
	domKey, incKey := clusterdomain.DomainKey(s.c.cluster, string(s.actor)), clusterdomain.IncarnationKey(s.c.cluster)
	look, err := s.c.store.Txn(ctx, kvdb.Txn{Then: []kvdb.Op{
		{Kind: kvdb.OpGet, Key: k.config(s.next.Volume)}, {Kind: kvdb.OpGet, Key: domKey}, {Kind: kvdb.OpGet, Key: incKey},
		{Kind: kvdb.OpGet, Key: k.rollback(s.next.Volume)}, {Kind: kvdb.OpGet, Key: k.exposure(s.next.Volume)},
		{Kind: kvdb.OpGet, Key: k.spec(s.next.Volume)},
	}})
	if err != nil {
		return 0, false, err
	}
	cur, dom, inc, mark := look.Gets[0], look.Gets[1], look.Gets[2], look.Gets[3]
	if err := s.c.checkIncarnation(inc); err != nil {
		return 0, true, err
	}
	switch {
	case cur == nil && mark != nil:
		return 0, true, rolledBack(s.next.Volume, mark)
	case cur == nil:
		return 0, true, replication.ErrVolumeNotFound
	}
	prev, mod, err := parseConfig(*cur)
	switch {
	case err != nil:
		return 0, true, err
	case prev.ProposalID == s.next.ProposalID && prev.Epoch == s.next.Epoch:
		return mod, true, nil
	case mod != s.rev:
		return 0, true, fmt.Errorf("%w: epoch %d is in force", ErrConflict, prev.Epoch)
	case mark != nil:
		return 0, true, rolledBack(s.next.Volume, mark)
	}
	if err := checkChange(prev, s.next); err != nil {
		return 0, true, err
	}
	d, err := s.c.domain(s.actor, dom)
	if err != nil {
		return 0, true, err
	}
	if err := s.permitted(prev, d); err != nil {
		return 0, true, err
	}
	unreverted, err := s.unreverted(prev, look.Gets[5])
	if err != nil {
		return 0, true, err
	}
	record, err := put(k.config(s.next.Volume), s.next)
	if err != nil {
		return 0, true, err
	}
	exposed, err := s.c.exposedOp(look.Gets[4], prev, s.next, s.c.fence(ctx, prev, s.next))
	if err != nil {
		return 0, true, err
	}
	t := s.txn(d.Mod, slices.Concat(s.c.shrunk(prev, s.next), s.c.written(prev, s.next), exposed, []kvdb.Op{record}))
	t.If = append(t.If, unreverted...)
	return s.send(ctx, t)
}

// send is the end of an attempt.
func (s *swap) send(ctx context.Context, t kvdb.Txn) (_ kvdb.Revision, done bool, _ error) {
	res, err := s.c.store.Txn(ctx, t)
	switch {
	case errors.Is(err, kvdb.ErrInvalid):
		return 0, true, err
	case errors.Is(err, kvdb.ErrNoLeader): // definite: this one will not be heard of again
		return 0, false, err
	case err != nil:
		s.sent = true
		return 0, false, err
	case !res.Succeeded:
		return 0, false, nil // something moved: the next look tells what
	}
	return res.Revision, true, nil
}

// LookAhead reads what a change in the name of domain actor depends on beside the volume, so that the next CompareAndSwapFrom needs no look.
func (c *Configs) LookAhead(ctx context.Context, actor replication.DomainID) error {
	look, err := c.store.Txn(ctx, kvdb.Txn{Then: []kvdb.Op{{Kind: kvdb.OpGet, Key: clusterdomain.DomainKey(c.cluster, string(actor))}}})
	if err != nil {
		return fmt.Errorf("read domain %s: %w", actor, err)
	}
	_, err = c.domain(actor, look.Gets[0])
	return err
}

// domain is what kv, nil if there is none, says of a domain.
func (c *Configs) domain(name replication.DomainID, kv *kvdb.KV) (*clusterdomain.Domain, error) {
	if kv == nil {
		return nil, &DomainStateError{Domain: name}
	}
	d, err := clusterdomain.ParseDomain(*kv)
	if err != nil {
		return nil, err
	}
	c.domains.Store(name, d)
	return &d, nil
}

// permitted returns nil if d, the actor's domain, may make the change.
func (s *swap) permitted(prev *replication.Config, d *clusterdomain.Domain) error {
	co := s.next.Coord
	if co == nil || isHandover(s.next) {
		co = prev.Coord // a detach and a handover are the coordinator's own
	}
	if co == nil || co.Domain != s.actor {
		return fmt.Errorf("%w: domain %s speaks for a coordinator of another", ErrInvalidChange, s.actor)
	}
	detach := s.next.Phase == replication.PhaseDetached
	runs := prev.Phase == replication.PhaseActive && s.next.Phase == replication.PhaseActive
	if !d.State.MayAttach() && !(runs && d.State.MayRun()) && !(detach && d.State.MayDetach()) {
		return &DomainStateError{Domain: s.actor, State: d.State}
	}
	return nil
}

// shrunk are the writes that tell the gate of a deactivation that an in-sync set got smaller; prev
// is nil for a new volume.
func (c *Configs) shrunk(prev, next *replication.Config) []kvdb.Op {
	if prev != nil && subset(prev.ISR, next.ISR) {
		return nil
	}
	var ops []kvdb.Op
	seen := map[replication.DomainID]bool{}
	for _, r := range next.ISR {
		if d := next.Members[r].Domain; !seen[d] {
			seen[d] = true
			ops = append(ops, kvdb.Op{
				Kind: kvdb.OpPut, Key: clusterdomain.ShrunkKey(c.cluster, string(d)), Value: []byte(next.Volume.String()),
			})
		}
	}
	return ops
}
