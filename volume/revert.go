package volume

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/tandem-storage/tandem/audit"
	"github.com/tandem-storage/tandem/kvdb"
	"github.com/tandem-storage/tandem/replication"
)

// Reverting says, in the record of a volume, that it is being put back to one of its snapshots. As long as it is there nobody attaches the volume but for
// that (Configs.CompareAndSwap), and none of the two snapshots is deleted. What the volume has is, block by block, what it had or what the snapshot has.
type Reverting struct {
	ID       replication.UUID       `json:"id"`
	Snapshot replication.SnapshotID `json:"snapshot"`
	Name     string                 `json:"name"`  // of the snapshot
	Since    time.Time              `json:"since"` // by the clock of the node that was asked
	// Before is the snapshot of what the volume had, taken when nobody else could write any more and nothing was put back; zero: not taken yet.
	Before     replication.SnapshotID `json:"before,omitzero"`
	BeforeName string                 `json:"before_name"`
}

// uses reports whether the revert, nil if there is none, needs the snapshot.
func (r *Reverting) uses(s *SnapshotRecord) bool {
	return r != nil && (r.Snapshot == s.ID || r.Before == s.ID || r.BeforeName == s.Name)
}

// spares returns nil if s, a snapshot of the volume with that record, nil if there is none, may be deleted.
func (s *SnapshotRecord) spares(spec *kvdb.KV) error {
	if spec == nil {
		return nil
	}
	v, err := parseSpec(*spec)
	if err == nil && v.Reverting.uses(s) {
		err = fmt.Errorf("snapshot %s is needed: volume %s: %w", s.Name, v.Name, v.Reverting.refuse())
	}
	return err
}

// is reports whether ref, an id or a name, names the snapshot.
func (r *Reverting) is(ref string) bool { return ref == r.Name || ref == r.Snapshot.String() }

// refuse is why something cannot be done to a volume that is being put back.
func (r *Reverting) refuse() error {
	return fmt.Errorf("%w %s, since %s: if nobody is at it any more, \"tandemctl volume snapshot revert\" with the same snapshot goes on with it", ErrReverting, r.Name, r.Since.Format(time.RFC3339))
}

// RevertRunner has reverts carried out, on any node.
type RevertRunner interface {
	ReplicaMarker
	// RunRevert has node n carry revert id of v out, or what is left of it, and returns how many bytes that wrote to each replica. After an error it is not known how far it has come.
	RunRevert(ctx context.Context, n replication.NodeID, v replication.VolumeID, id replication.UUID) (written int64, err error)
}

// Reverted is what a revert did.
type Reverted struct {
	Before  string // name of the snapshot of what the volume had before
	Written int64  // bytes, to each replica, by this call
}

// Revert puts a volume that is detached back to what one of its snapshots has, and returns when every in-sync replica has it, durably. Before that a snapshot is
// taken of what it has. When ctx ends, or a node, or this process, the volume stays as it is, out of everybody's reach; the same call goes on with it, on any node.
//
// Errors: replication.ErrVolumeNotFound, ErrSnapshotNotFound, ErrInvalid (a snapshot of another volume), ErrNotReady, ErrDeleting, ErrAttached, ErrPublished, ErrReverting (to another snapshot),
// ErrNotReverting (it was abandoned meanwhile), ErrTooManySnapshots, ErrSnapshotNotHeld (by no replica in sync), those of checkAttach and of the runner, those of the store.
func (c *Catalogue) Revert(ctx context.Context, run RevertRunner, v replication.VolumeID, ref string) (*Reverted, error) {
	r, nodes, err := c.beginRevert(ctx, v, ref)
	if err != nil {
		return nil, err
	}
	var failed []error
	for _, n := range nodes {
		written, err := run.RunRevert(ctx, n, v, r.ID)
		if err == nil {
			return &Reverted{Before: r.BeforeName, Written: written}, nil
		}
		failed = append(failed, fmt.Errorf("node %s: %w", n, err))
		if ctx.Err() != nil {
			break
		}
		if _, _, err := c.reverting(ctx, v, r.ID); errors.Is(err, ErrNotReverting) { // another call was faster, or it was abandoned
			return nil, err
		}
	}
	return nil, fmt.Errorf("the volume cannot be attached until the revert has come to its end, repeat it when the cause is removed: %w", errors.Join(failed...))
}

// beginRevert notes that v is being put back to the snapshot, unless it is, and finds the nodes that can do it, the best first.
func (c *Catalogue) beginRevert(ctx context.Context, v replication.VolumeID, ref string) (*Reverting, []replication.NodeID, error) {
	if err := c.cluster.Refresh(ctx); err != nil {
		return nil, nil, err
	}
	for {
		rec, err := c.Snapshot(ctx, ref)
		if err != nil && !isSnapshotNotFound(err) {
			return nil, nil, err
		}
		var id replication.SnapshotID
		if rec != nil {
			id = rec.ID
		}
		look, lookErr := c.store.Txn(ctx, kvdb.Txn{Then: []kvdb.Op{
			{Kind: kvdb.OpGet, Key: c.keys.spec(v)}, {Kind: kvdb.OpGet, Key: c.keys.published(v)}, {Kind: kvdb.OpGet, Key: c.keys.snapshot(id)}, {Kind: kvdb.OpGet, Key: c.keys.snapshotsOf(v)},
		}})
		if lookErr != nil {
			return nil, nil, lookErr
		}
		e, getErr := c.Get(ctx, v)
		if getErr != nil {
			return nil, nil, getErr
		}
		if r := e.Reverting; r != nil { // also after an import, when no snapshot is known any more
			if !r.is(ref) {
				return nil, nil, r.refuse()
			}
			nodes, err := c.revertNodes(e, rec)
			return r, nodes, err
		}
		if err != nil {
			return nil, nil, err
		}
		ids, err := parseSnapshotsOf(look.Gets[3])
		if err != nil {
			return nil, nil, err
		}
		if err := mayRevert(e, rec, look.Gets[2], len(ids)); err != nil {
			return nil, nil, err
		}
		nodes, err := c.revertNodes(e, rec)
		if err != nil {
			return nil, nil, err
		}
		r := &Reverting{ID: replication.NewUUID(), Snapshot: rec.ID, Name: rec.Name, Since: time.Now().UTC()}
		r.BeforeName = "before-revert-" + r.ID.String()[:8]
		s := e.Spec
		s.Reverting = r
		ok, err := c.putReverting(ctx, look.Gets[0], &s, []kvdb.Cmp{
			{Key: c.keys.config(v), Target: kvdb.CmpMod, Revision: e.Revision}, c.configs.unmarked(v), unchanged(c.keys.published(v), look.Gets[1]),
			unchanged(c.keys.snapshot(id), look.Gets[2]), unchanged(c.keys.snapshotsOf(v), look.Gets[3]),
		}, audit.Record{
			Verb: "volume revert", Epoch: uint64(e.epoch()),
			Outcome: fmt.Sprintf("begun: %s is being put back to snapshot %s (%s), what it has is kept as snapshot %s", e.Name, r.Name, r.Snapshot, r.BeforeName),
		})
		if err != nil {
			return nil, nil, err
		}
		if ok {
			return r, nodes, nil
		}
	}
}

// mayRevert returns nil if e may be put back to rec, of which kv is the record; it has so many snapshots.
func mayRevert(e *Entry, rec *SnapshotRecord, kv *kvdb.KV, snapshots int) error {
	switch {
	case e.State != Ready:
		return e.notReady()
	case e.Rollback != nil:
		return fmt.Errorf("%w: %s", replication.ErrRolledBack, e.Rollback.describe(e.ID))
	case rec.Volume != e.ID:
		return fmt.Errorf("%w: %s is a snapshot of volume %s", ErrInvalid, rec.Name, rec.VolumeName)
	case rec.State == Creating:
		return fmt.Errorf("%w: snapshot %s is being taken", ErrNotReady, rec.Name)
	case rec.State != Ready || kv == nil:
		return fmt.Errorf("%w: %s is being deleted", ErrSnapshotNotFound, rec.Name)
	case coordinator(e.Config).Node != "":
		return fmt.Errorf("%w on node %s: unmount and detach it there first, its consumer would not see that it changes", ErrAttached, coordinator(e.Config).Node)
	case e.Config.Phase != replication.PhaseDetached:
		return fmt.Errorf("%w: it is %s", ErrAttached, e.Config.Phase)
	case e.Damage != nil:
		return e.Damage
	case e.Published != nil:
		return fmt.Errorf("%w to node %s, where a consumer may be starting", ErrPublished, e.Published.Node)
	case snapshots >= MaxSnapshots:
		return fmt.Errorf("%w: one is taken of what the volume has before the revert", ErrTooManySnapshots)
	}
	return nil
}

// revertNodes are the nodes that may carry a revert of e out: with a replica that is in sync and holds the snapshot, of which rec is the record, nil if that is not known. The one where
// it is attached for that, or was, is the first.
func (c *Catalogue) revertNodes(e *Entry, rec *SnapshotRecord) (nodes []replication.NodeID, _ error) {
	if e.Config == nil {
		return nil, e.notReady()
	}
	view := c.cluster.View()
	var why reasons
	for _, p := range e.Placed {
		n, known := view.Node(string(p.Node))
		switch {
		case !e.Config.InISR(p.Replica):
			why.add("the replica on node %s is not in sync", p.Node)
		case rec != nil && !slices.ContainsFunc(rec.Holders, func(h Placement) bool { return h.Replica == p.Replica }):
			why.add("the replica on node %s does not hold it", p.Node)
		case !known || !n.Online:
			why.add("node %s does not answer", p.Node)
		default:
			if err := checkAttach(e.Config, view, p.Node); err != nil {
				why.add("node %s: %v", p.Node, err)
				continue
			}
			nodes = append(nodes, p.Node)
		}
	}
	if len(nodes) == 0 {
		return nil, fmt.Errorf("%w that is in sync and on a node that may attach the volume%s", ErrSnapshotNotHeld, why.detail())
	}
	at := coordinator(e.Config).Node
	slices.SortStableFunc(nodes, func(a, b replication.NodeID) int {
		switch {
		case a == b:
			return 0
		case a == at:
			return -1
		case b == at:
			return 1
		}
		return 0
	})
	return nodes, nil
}

// putReverting writes s, the record of a volume that was kv, with r in the audit trail. It reports false if something has changed meanwhile.
func (c *Catalogue) putReverting(ctx context.Context, kv *kvdb.KV, s *Spec, guards []kvdb.Cmp, r audit.Record) (bool, error) {
	record, err := put(c.keys.spec(s.ID), s)
	if err != nil {
		return false, err
	}
	t := kvdb.Txn{If: append(guards, unchanged(c.keys.spec(s.ID), kv), c.configs.guard()), Then: []kvdb.Op{record}}
	var res kvdb.TxnResult
	if r.Verb == "" {
		res, err = c.store.Txn(ctx, t)
	} else {
		r.Object = object(s.ID)
		res, err = c.trail.Txn(ctx, t, r)
	}
	return err == nil && res.Succeeded, err
}

// reverting reads a volume that is being put back by revert id; ErrNotReverting if it is not.
func (c *Catalogue) reverting(ctx context.Context, v replication.VolumeID, id replication.UUID) (*kvdb.KV, *Spec, error) {
	kv, err := c.store.Get(ctx, c.keys.spec(v))
	if errors.Is(err, kvdb.ErrNotFound) {
		return nil, nil, notFound(v)
	}
	if err != nil {
		return nil, nil, err
	}
	s, err := parseSpec(kv)
	if err == nil && (s.Reverting == nil || s.Reverting.ID != id) {
		err = fmt.Errorf("%w: volume %s, revert %s has ended, \"tandemctl audit list\" tells how", ErrNotReverting, s.Name, id)
	}
	return &kv, &s, err
}

// changeReverting changes what the record of v says of revert id, which is what was read last; change is called again if something else changed meanwhile. ErrNotReverting: it has ended.
func (c *Catalogue) changeReverting(ctx context.Context, v replication.VolumeID, id replication.UUID, change func(s *Spec) audit.Record) error {
	for {
		kv, s, err := c.reverting(ctx, v, id)
		if err != nil {
			return err
		}
		rec := change(s)
		if ok, err := c.putReverting(ctx, kv, s, nil, rec); err != nil || ok {
			return err
		}
	}
}

// AbandonRevert ends a revert that cannot go on: the volume can be attached with what it has, which is partly from the snapshot and partly from before. Errors: ErrNotReverting,
// ErrAttached (a node is at it), those of the store.
func (c *Catalogue) AbandonRevert(ctx context.Context, marker ReplicaMarker, v replication.VolumeID) (*Reverted, error) {
	if err := c.cluster.Refresh(ctx); err != nil {
		return nil, err
	}
	e, err := c.Get(ctx, v)
	if err != nil {
		return nil, err
	}
	r := e.Reverting
	if r == nil {
		return nil, fmt.Errorf("%w: volume %s", ErrNotReverting, e.Name)
	}
	view := c.cluster.View()
	if n, known := view.Node(string(coordinator(e.Config).Node)); known && n.Online {
		return nil, fmt.Errorf("%w on node %s, which answers and may be at it: \"tandemctl host detach\" there ends what is left of an attempt", ErrAttached, n.Name)
	}
	for {
		kv, s, err := c.reverting(ctx, v, r.ID)
		if err != nil {
			return nil, err
		}
		s.Reverting = nil
		ok, err := c.putReverting(ctx, kv, s, []kvdb.Cmp{{Key: c.keys.config(v), Target: kvdb.CmpMod, Revision: e.Revision}}, audit.Record{
			Verb: "volume revert", Epoch: uint64(e.epoch()), Lost: []string{v.String()},
			Outcome: fmt.Sprintf("abandoned: %s may be partly what snapshot %s has and partly what snapshot %s has", e.Name, r.Name, r.BeforeName),
		})
		if err != nil {
			return nil, err
		}
		if ok {
			break
		}
		if e, err = c.Get(ctx, v); err != nil {
			return nil, err
		}
		if coordinator(e.Config).Node != "" {
			return nil, fmt.Errorf("%w on node %s, since a moment ago", ErrAttached, coordinator(e.Config).Node)
		}
	}
	// An import would go by what replicas were told. Those that are not told now are asked about then.
	m := marks{c: c, to: marker, v: v, r: *r}
	for _, p := range e.Placed {
		_ = m.tell(ctx, p, e.epoch(), true)
	}
	return &Reverted{Before: r.BeforeName}, nil
}

// revertMark is what replicas keep of a revert, as JSON, for an import of the kvdb: what is begun there has to be ended by somebody, and a kvdb that was lost or restored does not know.
type revertMark struct {
	Reverting
	Epoch replication.Epoch `json:"epoch"`          // in force when the replica was told
	Done  bool              `json:"done,omitempty"` // every replica that was in sync then had all of the snapshot
}

// ReplicaMarker tells replicas, on any node, of a revert.
type ReplicaMarker interface {
	// MarkReplica keeps the mark beside a replica on node n. It is durable on nil.
	MarkReplica(ctx context.Context, n replication.NodeID, r LocalReplica, mark []byte) error
}

// marks are those that one run of a revert makes.
type marks struct {
	c    *Catalogue
	to   ReplicaMarker
	v    replication.VolumeID
	r    Reverting
	told map[replication.ReplicaID]bool // that it is begun
}

func (m *marks) tell(ctx context.Context, p Placement, epoch replication.Epoch, done bool) error {
	b, err := json.Marshal(revertMark{m.r, epoch, done})
	if err != nil {
		return fmt.Errorf("%w: mark of a revert: %w", ErrBadRecord, err)
	}
	ctx, cancel := context.WithTimeout(ctx, markTimeout)
	defer cancel()
	if err := m.to.MarkReplica(ctx, p.Node, LocalReplica{m.v, p.Replica, p.Pool}, b); err != nil {
		return fmt.Errorf("node %s does not keep for its replica that the volume is being put back to a snapshot: %w", p.Node, err)
	}
	return nil
}

// Bounds of what a replica is told: one attempt, and all until it has left the in-sync set.
const (
	markTimeout = 5 * time.Second
	markWait    = time.Minute
	markPause   = 200 * time.Millisecond
)

// all tells every replica that is in sync: that the revert is begun, those that were not told yet, or that it is done. It waits for those that
// do not answer until they are not in sync any more.
func (m *marks) all(ctx context.Context, inForce func() *replication.Config, done bool) error {
	ctx, cancel := context.WithTimeout(ctx, markWait)
	defer cancel()
	told := m.told
	if done {
		told = map[replication.ReplicaID]bool{}
	}
	for {
		cfg := inForce()
		if cfg == nil {
			return fmt.Errorf("%w: the volume is not served here any more", replication.ErrNotCoordinator)
		}
		var failed []error
		for _, id := range cfg.ISR {
			if told[id] {
				continue
			}
			at := cfg.Members[id]
			if err := m.tell(ctx, Placement{Replica: id, Node: at.Node, Domain: at.Domain, Pool: at.Pool}, cfg.Epoch, done); err != nil {
				failed = append(failed, err)
				continue
			}
			told[id] = true
		}
		if len(failed) == 0 {
			return nil
		}
		if !kvdb.Pause(ctx, markPause) {
			return errors.Join(failed...)
		}
	}
}

// revertOf is the revert that the replicas of cfg, which an import is about to write, know to be in the middle; nil if there is none. What the kvdb says of it counts for nothing: it may be old, like all of it.
func (e *evidence) revertOf(cfg *replication.Config, readable []FoundReplica) (*Reverting, error) {
	var begun *revertMark
	var done replication.Epoch
	for _, f := range readable {
		if _, member := cfg.Members[f.Replica]; !member || len(f.Revert) == 0 {
			continue
		}
		m := new(revertMark)
		if err := json.Unmarshal(f.Revert, m); err != nil {
			return nil, fmt.Errorf("%w: what replica %s on node %s keeps of a revert: %w", ErrBadRecord, f.Replica, f.Node, err)
		}
		switch {
		case m.Done && cfg.InISR(f.Replica):
			done = max(done, m.Epoch)
		case !m.Done && (begun == nil || m.Epoch > begun.Epoch):
			begun = m
		}
	}
	// Of a replica that was away at the end the mark stays; those that were there know that it is done.
	if begun == nil || done >= begun.Epoch {
		return nil, nil
	}
	return &begun.Reverting, nil
}

// progress says in words that a volume is being put back.
func (r *Reverting) progress() string {
	var s strings.Builder
	fmt.Fprintf(&s, "is being put back to snapshot %s since %s", r.Name, r.Since.Format(time.RFC3339))
	if r.Before != (replication.SnapshotID{}) {
		fmt.Fprintf(&s, ", snapshot %s is what it had before", r.BeforeName)
	}
	s.WriteString("; repeat the command if nobody is at it any more")
	return s.String()
}
