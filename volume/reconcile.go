package volume

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/tandem-storage/tandem/clusterdomain"
	"github.com/tandem-storage/tandem/kvdb"
	"github.com/tandem-storage/tandem/replication"
)

// ReplicaSpec is a replica to be made on this node.
type ReplicaSpec struct {
	Volume  replication.VolumeID
	Replica replication.ReplicaID
	Pool    string  // UUID
	Size    int64   // bytes
	From    *Source // the snapshot that it begins with, held in the same pool; nil: none
	Thick   bool    // all its space is taken at once
}

// LocalReplica is a replica found on this node's disks.
type LocalReplica struct {
	Volume  replication.VolumeID
	Replica replication.ReplicaID
	Pool    string
}

// Replicas makes and removes replicas on this node. It is called by one goroutine.
type Replicas interface {
	// Make makes a replica, empty or with what a snapshot has. When it returns nil the replica is durable, and will be found by List after a
	// power loss. A replica that exists already, or was begun, is completed.
	Make(ctx context.Context, s ReplicaSpec) error
	// Remove ends what uses the replica and removes it for good. One that does not exist, or was removed in part, is no error.
	Remove(ctx context.Context, v replication.VolumeID, r replication.ReplicaID) error
	// DeleteSnapshot deletes a snapshot of a replica. One that is not there, nor the replica, is no error.
	DeleteSnapshot(ctx context.Context, r LocalReplica, id replication.SnapshotID) error
	// List returns every replica on the node's pools, in part made ones too.
	List(ctx context.Context) ([]LocalReplica, error)
	// Note keeps the volume's record beside the replica, durably, for an import (FoundReplica.Spec).
	Note(r LocalReplica, spec []byte) error
}

// ReconcilerOptions of a Reconciler. Node and Replicas are required.
type ReconcilerOptions struct {
	Node     replication.NodeID
	Replicas Replicas
	// Limits is told the limits in force of all volumes that have any, again with each Reconcile. May be nil.
	Limits func(map[replication.VolumeID]Limits)
	// Priorities is told the resync priorities in force of all volumes that are not normal, again with each Reconcile. May be nil.
	Priorities func(map[replication.VolumeID]replication.ResyncPriority)

	CreateTimeout  time.Duration // after which a volume that is still CREATING is given up; default 2 min
	OpTimeout      time.Duration // of one Make or Remove; default 1 min
	SnapshotLinger time.Duration // how long a replica may be at a snapshot that was given up; twice that if it may not have begun; default 1 min
	Poll           time.Duration // how often the records are read in any case; default 10 s
	Logger         *zap.Logger
}

func (o *ReconcilerOptions) ensureDefaults() {
	if o.CreateTimeout == 0 {
		o.CreateTimeout = 2 * time.Minute
	}
	if o.OpTimeout == 0 {
		o.OpTimeout = time.Minute
	}
	if o.SnapshotLinger == 0 {
		o.SnapshotLinger = snapshotLinger
	}
	if o.Poll == 0 {
		o.Poll = 10 * time.Second
	}
	if o.Logger == nil {
		o.Logger = zap.NewNop()
	}
}

// Reconciler does one node's part of creating and deleting volumes.
type Reconciler struct {
	c  *Catalogue
	o  ReconcilerOptions
	lg *zap.Logger

	creating map[replication.VolumeID]time.Time // since when it is seen CREATING
	bad      map[replication.VolumeID]error     // what could not be read the last time
	seen     map[seenSnapshot]time.Time         // since when
	noted    map[LocalReplica]kvdb.Revision     // the record that was noted last beside a replica

	seenGroups map[replication.UUID]time.Time // group snapshots: since when they are seen CREATING

	mu struct {
		sync.Mutex
		orphans []LocalReplica
	}
}

// NewReconciler returns the Reconciler of a node.
func NewReconciler(c *Catalogue, o ReconcilerOptions) *Reconciler {
	o.ensureDefaults()
	return &Reconciler{c: c, o: o, lg: o.Logger, creating: map[replication.VolumeID]time.Time{}, noted: map[LocalReplica]kvdb.Revision{}, seen: map[seenSnapshot]time.Time{}}
}

// Run reconciles after every change of a volume's records, and every Poll, until ctx ends.
func (r *Reconciler) Run(ctx context.Context) {
	changes := clusterdomain.Signal(ctx, r.c.store, r.c.keys.volumes())
	configs := clusterdomain.Signal(ctx, r.c.store, r.c.keys.configs())
	snapshots := clusterdomain.Signal(ctx, r.c.store, r.c.keys.snapshots())
	tick := time.NewTicker(r.o.Poll)
	defer tick.Stop()
	for failing := false; ; {
		select {
		case _, ok := <-changes:
			if !ok {
				return
			}
		case _, ok := <-configs:
			if !ok {
				return
			}
		case _, ok := <-snapshots:
			if !ok {
				return
			}
		case <-tick.C:
		}
		err := r.Reconcile(ctx)
		if err != nil && !failing && ctx.Err() == nil {
			r.lg.Warn("volumes not reconciled", zap.Error(err))
		}
		failing = err != nil
	}
}

// Orphans are the replicas on this node that no volume claims, as of the last Reconcile.
func (r *Reconciler) Orphans() []LocalReplica {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.mu.orphans)
}

// Reconcile looks at every volume once and does what this node can do for it. It goes on with the others
// when one fails, and returns all errors; one of which a record cannot be read is named in the log and left alone. Not to be called by two goroutines at once.
func (r *Reconciler) Reconcile(ctx context.Context) error {
	// The disks before the records: a replica that is found is claimed by a record, unless that is gone for good.
	local, err := r.o.Replicas.List(ctx)
	if err != nil {
		return fmt.Errorf("list replicas: %w", err)
	}
	kvs, _, err := r.c.store.List(ctx, r.c.keys.volumes())
	if err != nil {
		return fmt.Errorf("read volumes: %w", err)
	}
	es, bad := r.c.entries(kvs)
	r.noteBad(bad)
	local = slices.DeleteFunc(local, func(l LocalReplica) bool { return bad[l.Volume] != nil }) // claimed, maybe
	r.noteOrphans(local, es)
	r.noteSpecs(local, kvs, es)
	r.tellLimits(es)
	r.tellPriorities(es)
	for id := range r.creating {
		if e := es[id]; e == nil || e.State != Creating {
			delete(r.creating, id)
		}
	}
	var errs []error
	for _, kv := range kvs {
		id, rest, ok := r.c.keys.splitVolume(kv.Key)
		e := es[id]
		if !ok || rest != "spec" || e == nil {
			continue
		}
		switch e.State {
		case Creating:
			err = r.create(ctx, e, kv.Mod)
		case Deleting:
			err = r.remove(ctx, e, kv.Mod)
		case Ready:
			err = r.replace(ctx, e)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("volume %s (%s): %w", e.Name, id, err))
		}
	}
	if err := r.snapshots(ctx); err != nil {
		errs = append(errs, err)
	}
	for _, kv := range kvs { // last: disks that have failed may take their time
		if e := es[r.c.keys.specOf(kv.Key)]; e != nil {
			if err := r.retire(ctx, e, kv.Mod); err != nil {
				errs = append(errs, fmt.Errorf("volume %s (%s): %w", e.Name, e.ID, err))
			}
		}
	}
	return errors.Join(errs...)
}

// noteBad names the volumes that are left alone because a record cannot be read, once.
func (r *Reconciler) noteBad(bad map[replication.VolumeID]error) {
	for id, err := range bad {
		if r.bad[id] == nil || r.bad[id].Error() != err.Error() {
			r.lg.Error("volume left alone, a record of it cannot be read", zap.Stringer("volume-id", id), zap.Error(err))
		}
	}
	r.bad = bad
}

func (r *Reconciler) noteOrphans(local []LocalReplica, es map[replication.VolumeID]*Entry) {
	var orphans []LocalReplica
	for _, l := range local {
		if e := es[l.Volume]; e == nil || !e.claims(l, r.o.Node) {
			orphans = append(orphans, l)
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, o := range orphans {
		if !slices.Contains(r.mu.orphans, o) {
			r.lg.Warn("replica that no volume claims", zap.Stringer("volume-id", o.Volume), zap.Stringer("replica", o.Replica), zap.String("pool", o.Pool))
		}
	}
	r.mu.orphans = orphans
}

// noteSpecs keeps the records of volumes that are READY beside this node's replicas of them: the name, the protection and the labels are
// nowhere else when the kvdb is lost. It is no harm if one is old.
func (r *Reconciler) noteSpecs(local []LocalReplica, kvs []kvdb.KV, es map[replication.VolumeID]*Entry) {
	here := make(map[replication.VolumeID][]LocalReplica, len(local))
	for _, l := range local {
		here[l.Volume] = append(here[l.Volume], l)
	}
	for _, kv := range kvs {
		e := es[r.c.keys.specOf(kv.Key)]
		if e == nil || e.State != Ready {
			continue
		}
		for _, l := range here[e.ID] {
			if !e.claims(l, r.o.Node) || r.noted[l] == kv.Mod {
				continue
			}
			if err := r.o.Replicas.Note(l, kv.Value); err != nil {
				r.lg.Warn("record of a volume not noted beside its replica", zap.Stringer("volume-id", l.Volume), zap.Stringer("replica", l.Replica), zap.Error(err))
				continue
			}
			r.noted[l] = kv.Mod
		}
	}
	for l := range r.noted {
		if !slices.Contains(here[l.Volume], l) {
			delete(r.noted, l)
		}
	}
}

func (r *Reconciler) tellLimits(es map[replication.VolumeID]*Entry) {
	if r.o.Limits == nil {
		return
	}
	in := map[replication.VolumeID]Limits{}
	for id, e := range es {
		if l := e.limits(); l != (Limits{}) {
			in[id] = l
		}
	}
	r.o.Limits(in)
}

// claims reports whether l, found on the node, is the volume's to use or to remove.
func (e *Entry) claims(l LocalReplica, node replication.NodeID) bool {
	is := func(p Placement) bool { return p.Replica == l.Replica && p.Node == node && p.Pool == l.Pool }
	return slices.ContainsFunc(e.Placed, is) || slices.ContainsFunc(e.Retired, is) || e.Replacing != nil && is(e.Replacing.New)
}

// create makes this node's replicas of a volume that is CREATING at mod, and
// finishes or gives up the volume when that is due.
func (r *Reconciler) create(ctx context.Context, e *Entry, mod kvdb.Revision) error {
	for _, p := range e.Missing() {
		if p.Node != r.o.Node {
			continue
		}
		switch err := r.make(ctx, e, p); {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil:
			r.lg.Error("replica not made", zap.Stringer("volume-id", e.ID), zap.Stringer("replica", p.Replica), zap.Error(err))
			_, err = r.c.toDeleting(ctx, e.ID, fmt.Sprintf("replica on node %s: %v", p.Node, err), nil)
			return err
		}
		if ok, err := r.report(ctx, e, mod, r.c.keys.made(e.ID), p); !ok || err != nil {
			return err // the record moved: the next look tells how
		}
		e.Reported = append(e.Reported, p.Replica)
	}
	missing := e.Missing()
	if len(missing) == 0 {
		return r.finish(ctx, e, mod)
	}
	since, seen := r.creating[e.ID]
	if !seen {
		r.creating[e.ID] = time.Now()
		return nil
	}
	if time.Since(since) < r.o.CreateTimeout {
		return nil
	}
	_, err := r.c.toDeleting(ctx, e.ID, fmt.Sprintf("node %s did not make its replica within %v", missing[0].Node, r.o.CreateTimeout), nil)
	return err
}

func (r *Reconciler) make(ctx context.Context, e *Entry, p Placement) error {
	ctx, cancel := context.WithTimeout(ctx, r.o.OpTimeout)
	defer cancel()
	return r.o.Replicas.Make(ctx, ReplicaSpec{Volume: e.ID, Replica: p.Replica, Pool: p.Pool, Size: e.Size, From: e.From, Thick: e.Thick})
}

// report says that this node's part for p is done, if the spec is still that of mod.
func (r *Reconciler) report(ctx context.Context, e *Entry, mod kvdb.Revision, prefix string, p Placement) (bool, error) {
	res, err := r.c.store.Txn(ctx, kvdb.Txn{
		If:   []kvdb.Cmp{{Key: r.c.keys.spec(e.ID), Target: kvdb.CmpMod, Revision: mod}},
		Then: []kvdb.Op{{Kind: kvdb.OpPut, Key: prefix + p.Replica.String(), Value: []byte(p.Node)}},
	})
	return err == nil && res.Succeeded, err
}

// finish writes READY and the first configuration, with which the volume comes into the group that it joins.
func (r *Reconciler) finish(ctx context.Context, e *Entry, mod kvdb.Revision) error {
	for last := kvdb.Revision(-1); ; {
		group, done, err := r.tryFinish(ctx, e, mod)
		switch {
		case errors.Is(err, ErrGroupFull):
			_, err = r.c.toDeleting(ctx, e.ID, err.Error(), nil)
			return err
		case err != nil || done || e.Joins == "" || group == last:
			return err // not done: another node was faster, or it was deleted
		}
		last = group // another volume has come into the group, maybe
	}
}

// tryFinish tries once to finish, with the record of the group, if there is one, as it was at the revision returned.
func (r *Reconciler) tryFinish(ctx context.Context, e *Entry, mod kvdb.Revision) (group kvdb.Revision, done bool, _ error) {
	c := r.c
	s, cfg := e.Spec, firstConfig(&e.Spec)
	s.State = Ready
	spec, err := put(c.keys.spec(e.ID), s)
	if err != nil {
		return 0, false, err
	}
	config, err := put(c.keys.config(e.ID), cfg)
	if err != nil {
		return 0, false, err
	}
	t := kvdb.Txn{
		If: []kvdb.Cmp{
			{Key: c.keys.spec(e.ID), Target: kvdb.CmpMod, Revision: mod},
			{Key: c.keys.config(e.ID), Target: kvdb.CmpAbsent},
			c.configs.guard(),
		},
		Then: append(c.configs.shrunk(nil, cfg), spec, config),
	}
	for _, p := range e.Placed {
		t.Then = append(t.Then, kvdb.Op{Kind: kvdb.OpDelete, Key: c.keys.made(e.ID) + p.Replica.String()})
	}
	if s.Joins != "" {
		if group, err = c.join(ctx, &t, &s, cfg); err != nil {
			return 0, false, err
		}
	}
	res, err := c.store.Txn(ctx, t)
	if err != nil || !res.Succeeded {
		return group, false, err
	}
	r.lg.Info("volume created", zap.Stringer("volume-id", e.ID), zap.String("name", e.Name), zap.String("group", s.Joins))
	return group, true, nil
}

// remove removes this node's replicas of a volume that is DELETING at mod, and
// the records when nothing is left.
func (r *Reconciler) remove(ctx context.Context, e *Entry, mod kvdb.Revision) error {
	for _, p := range e.Missing() {
		if p.Node != r.o.Node {
			continue
		}
		if err := r.unmake(ctx, e, p); err != nil {
			return fmt.Errorf("remove replica %s: %w", p.Replica, err)
		}
		if ok, err := r.report(ctx, e, mod, r.c.keys.removed(e.ID), p); !ok || err != nil {
			return err
		}
		e.Reported = append(e.Reported, p.Replica)
	}
	if len(e.Missing()) > 0 {
		return nil
	}
	c := r.c
	t := kvdb.Txn{
		If: []kvdb.Cmp{{Key: c.keys.spec(e.ID), Target: kvdb.CmpMod, Revision: mod}},
		Then: []kvdb.Op{
			{Kind: kvdb.OpDelete, Key: c.keys.spec(e.ID)},
			{Kind: kvdb.OpDelete, Key: c.keys.config(e.ID)},
			{Kind: kvdb.OpDelete, Key: c.keys.exposure(e.ID)},
			{Kind: kvdb.OpDelete, Key: c.keys.verified(e.ID)},
			{Kind: kvdb.OpDelete, Key: c.keys.published(e.ID)},
			{Kind: kvdb.OpDelete, Key: c.keys.blank(e.ID)},
		},
	}
	for _, p := range e.Placed {
		for _, prefix := range []string{c.keys.made(e.ID), c.keys.removed(e.ID)} {
			t.Then = append(t.Then, kvdb.Op{Kind: kvdb.OpDelete, Key: prefix + p.Replica.String()})
		}
	}
	res, err := c.store.Txn(ctx, t)
	if err == nil && res.Succeeded {
		r.lg.Info("volume deleted", zap.Stringer("volume-id", e.ID), zap.String("name", e.Name))
	}
	return err
}

func (r *Reconciler) unmake(ctx context.Context, e *Entry, p Placement) error {
	ctx, cancel := context.WithTimeout(ctx, r.o.OpTimeout)
	defer cancel()
	return r.o.Replicas.Remove(ctx, e.ID, p.Replica)
}
