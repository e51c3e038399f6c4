package volume

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"go.uber.org/zap"

	"github.com/tandem-storage/tandem/audit"
	"github.com/tandem-storage/tandem/clusterdomain"
	"github.com/tandem-storage/tandem/kvdb"
	"github.com/tandem-storage/tandem/replication"
)

// A replica is replaced in three steps, each one transaction on the volume's records, so that a
// crash anywhere leaves one of them to be done by the Reconcilers:
//
//  1. Replace writes into the spec which replica goes and where a new one is to be made. The new one has an id of its own.
//  2. The node of the new one makes it, empty, and then exchanges the two in the spec and in the
//     configuration. From then on the old id is no member: nobody asks it for anything, whatever its disk holds, and no
//     id is ever used again. The new one is STALE, has no history, and is compared in full before it joins.
//  3. The node of the old one removes what is left of it.
//
// A replica is made only while the spec says that it is not a member yet. Otherwise an
// empty one could stand where the configuration believes data.

// Replacement is a replica that is being replaced.
type Replacement struct {
	Old replication.ReplicaID `json:"old"`
	New Placement             `json:"new"`
}

// ReplaceRequest says which replica is to be replaced, and where to. Node and Pool are chosen if they are "".
type ReplaceRequest struct {
	Replica string             // its id, or the node that has it
	Node    replication.NodeID // in the same domain
	Pool    string             // UUID

	ExpectedEpoch *replication.Epoch // refuse if the configuration is at another, or another replacement was begun; nil: whatever there is
}

// Replace begins to replace a replica that is not in sync by a new, empty one in the same domain: on a node that
// has no other replica of the volume, in another pool if there is a choice. The Reconcilers carry it on. While the volume is
// attached the old one remains a member; the two are exchanged when it is detached.
//
// Asked for again it changes nothing, unless another place is named: then what was begun is taken back.
// Errors: replication.ErrVolumeNotFound, ErrNotReady, ErrDeleting, ErrReplicaNotFound, ErrReplicaInSync (so
// that the last in-sync replica never goes), ErrConflict, ErrTooFewNodes, ErrTooLarge, ErrNoRoom, those of the store.
func (c *Catalogue) Replace(ctx context.Context, id replication.VolumeID, r ReplaceRequest) error {
	for {
		done, err := c.replace(ctx, id, r)
		if done {
			return nil
		}
		if err == nil {
			err = ctx.Err()
		}
		if err != nil && (!errors.Is(err, kvdb.ErrUnavailable) || !kvdb.Pause(ctx, casPause)) {
			return err
		}
	}
}

// replace tries once. Neither done nor an error: it is to be repeated.
func (c *Catalogue) replace(ctx context.Context, id replication.VolumeID, r ReplaceRequest) (done bool, _ error) {
	s, cfg, guards, err := c.readForChange(ctx, id)
	if err != nil {
		return false, err
	}
	i, err := findReplica(s, r.Replica)
	if err != nil {
		return false, err
	}
	old := s.Placed[i]
	if cfg.InISR(old.Replica) {
		return false, fmt.Errorf("%w: %s on node %s holds every acknowledged write", ErrReplicaInSync, old.Replica, old.Node)
	}
	if p := s.Replacing; p != nil {
		fits := (r.Node == "" || r.Node == p.New.Node) && (r.Pool == "" || r.Pool == p.New.Pool)
		switch {
		case p.Old == old.Replica && fits:
			return true, nil
		case r.ExpectedEpoch != nil:
			return false, fmt.Errorf("%w: replica %s is being replaced by one on node %s: look and decide again", ErrConflict, p.Old, p.New.Node)
		case p.Old != old.Replica:
			return false, fmt.Errorf("%w: replica %s of volume %s is being replaced; one at a time", ErrConflict, p.Old, s.Name)
		}
		s.Retired = append(s.Retired, p.New)
	}
	if err := checkEpoch(cfg, r.ExpectedEpoch); err != nil {
		return false, err
	}
	by, err := c.rules(ctx, s.Placing, id)
	if err != nil {
		return false, err
	}
	place, err := placeInstead(c.cluster.View(), s, old, r, by)
	if err != nil {
		return false, err
	}
	place.Replica = replication.ReplicaID(replication.NewUUID())
	s.Replacing = &Replacement{Old: old.Replica, New: place}
	return c.change(ctx, guards, s, nil, audit.Record{
		Verb: "volume replica replace", Object: object(id), Epoch: uint64(cfg.Epoch),
		Outcome: fmt.Sprintf("replica %s on node %s is replaced by %s on node %s", old.Replica, old.Node, place.Replica, place.Node),
	})
}

// readForChange reads the records of a volume that is READY, and what guards a change of them.
func (c *Catalogue) readForChange(ctx context.Context, id replication.VolumeID) (*Spec, *replication.Config, []kvdb.Cmp, error) {
	inc := clusterdomain.IncarnationKey(c.configs.cluster)
	look, err := c.store.Txn(ctx, kvdb.Txn{Then: []kvdb.Op{
		{Kind: kvdb.OpGet, Key: c.keys.spec(id)}, {Kind: kvdb.OpGet, Key: c.keys.config(id)}, {Kind: kvdb.OpGet, Key: inc},
		{Kind: kvdb.OpGet, Key: c.keys.rollback(id)},
	}})
	if err != nil {
		return nil, nil, nil, err
	}
	kv, cfgKV := look.Gets[0], look.Gets[1]
	if err := c.configs.checkIncarnation(look.Gets[2]); err != nil {
		return nil, nil, nil, err
	}
	if mark := look.Gets[3]; mark != nil {
		return nil, nil, nil, rolledBack(id, mark)
	}
	if kv == nil {
		return nil, nil, nil, notFound(id)
	}
	s, err := parseSpec(*kv)
	if err != nil {
		return nil, nil, nil, err
	}
	if s.State != Ready || cfgKV == nil {
		return nil, nil, nil, (&Entry{Spec: s}).notReady()
	}
	cfg, mod, err := parseConfig(*cfgKV)
	if err != nil {
		return nil, nil, nil, err
	}
	return &s, cfg, []kvdb.Cmp{
		{Key: c.keys.spec(id), Target: kvdb.CmpMod, Revision: kv.Mod},
		{Key: c.keys.config(id), Target: kvdb.CmpMod, Revision: mod},
		c.configs.guard(), c.configs.unmarked(id),
	}, nil
}

// change writes the spec, and the configuration if it is not nil. What an operator asked for has a record for the audit trail.
func (c *Catalogue) change(ctx context.Context, guards []kvdb.Cmp, s *Spec, cfg *replication.Config, orders ...audit.Record) (done bool, _ error) {
	spec, err := put(c.keys.spec(s.ID), s)
	if err != nil {
		return false, err
	}
	t := kvdb.Txn{If: guards, Then: []kvdb.Op{spec}}
	if cfg != nil {
		config, err := put(c.keys.config(s.ID), cfg)
		if err != nil {
			return false, err
		}
		exposed, err := c.configs.exposed(ctx, nil, cfg)
		if err != nil {
			return false, err
		}
		t.Then = append(append(t.Then, config), exposed...)
	}
	for _, r := range orders {
		entry, err := c.trail.Stage(ctx, r)
		if err != nil {
			return false, err
		}
		entry.AddTo(&t)
	}
	res, err := c.store.Txn(ctx, t)
	return err == nil && res.Succeeded, err
}

// findReplica is the index in s.Placed of the replica with that id or on that node.
func findReplica(s *Spec, ref string) (int, error) {
	i := slices.IndexFunc(s.Placed, func(p Placement) bool { return p.Replica.String() == ref || string(p.Node) == ref })
	if i < 0 {
		return 0, fmt.Errorf("%w: volume %s has no replica %s, nor one on a node of that name", ErrReplicaNotFound, s.Name, ref)
	}
	return i, nil
}

// placeInstead chooses where the successor of old goes.
func placeInstead(v *clusterdomain.View, s *Spec, old Placement, r ReplaceRequest, by *rules) (Placement, error) {
	req := s.Request
	req.Domains = []string{string(old.Domain)}
	cands, why := candidates(v, req, by)
	cands = slices.DeleteFunc(cands, func(c candidate) bool {
		taken := slices.ContainsFunc(s.Placed, func(p Placement) bool { return p.Replica != old.Replica && string(p.Node) == c.node })
		if taken {
			why.add("node %s has another replica of the volume", c.node)
		}
		other := slices.ContainsFunc(s.Placed, func(p Placement) bool {
			n, _ := v.Node(string(p.Node))
			return by.Spread != "" && p.Replica != old.Replica && n.Labels[by.Spread] == c.spread
		})
		if other && !taken {
			why.add("node %s has the same label %s=%s as one with another replica", c.node, by.Spread, c.spread)
		}
		return taken || other || r.Node != "" && c.node != string(r.Node) || r.Pool != "" && c.pool != r.Pool
	})
	if len(cands) == 0 {
		if r.Node != "" || r.Pool != "" {
			why.add("asked for was node %q, pool %q", r.Node, r.Pool)
		}
		why.add("replicas go to domain %s only", old.Domain)
		return Placement{}, why.error(1, 0, s.Size)
	}
	same := func(c candidate) (n int) {
		if c.pool == old.Pool {
			n += 2 // its disk has failed, maybe
		}
		if c.node != string(old.Node) {
			n++
		}
		return n
	}
	best := slices.MinFunc(cands, func(a, b candidate) int {
		return cmp.Or(cmp.Compare(same(a), same(b)), cmp.Compare(b.free, a.free), cmp.Compare(a.node, b.node), cmp.Compare(a.pool, b.pool))
	})
	return Placement{Node: replication.NodeID(best.node), Domain: old.Domain, Pool: best.pool}, nil
}

// exchanged is the volume with the new replica in the place of the old one.
func exchanged(s *Spec, cfg *replication.Config) (*Spec, *replication.Config) {
	p, t := s.Replacing, *s
	i := slices.IndexFunc(s.Placed, func(q Placement) bool { return q.Replica == p.Old })
	t.Placed, t.Retired = slices.Clone(s.Placed), append(slices.Clone(s.Retired), s.Placed[i])
	t.Placed[i], t.Replacing = p.New, nil
	next := nextConfig(cfg, replication.PhaseDetached, "replica replaced")
	delete(next.Members, p.Old)
	next.Members[p.New.Replica] = replication.Member{
		Node: p.New.Node, Domain: p.New.Domain, Pool: p.New.Pool, State: replication.MemberStale, Reason: "new, in the place of " + p.Old.String(),
	}
	return &t, next
}

// replace does this node's part of a replacement.
func (r *Reconciler) replace(ctx context.Context, e *Entry) error {
	p := e.Replacing
	if p == nil || p.New.Node != r.o.Node {
		return nil
	}
	if err := r.make(ctx, e, p.New); err != nil {
		return fmt.Errorf("make replica %s: %w", p.New.Replica, err)
	}
	s, cfg, guards, err := r.c.readForChange(ctx, e.ID)
	if err != nil {
		return err
	}
	switch {
	case s.Replacing == nil || s.Replacing.New != p.New:
		return nil // taken back meanwhile
	case cfg.InISR(p.Old):
		s.Retired = append(s.Retired, p.New)
		s.Replacing = nil
		r.lg.Warn("replica not replaced, it is in sync again", zap.Stringer("volume-id", e.ID), zap.Stringer("replica", p.Old))
		_, err := r.c.change(ctx, guards, s, nil)
		return err
	case cfg.Phase != replication.PhaseDetached:
		return nil // until it is
	}
	t, next := exchanged(s, cfg)
	done, err := r.c.change(ctx, guards, t, next)
	if done {
		r.lg.Info("replica replaced", zap.Stringer("volume-id", e.ID), zap.Stringer("replica", p.Old),
			zap.Stringer("by", p.New.Replica), zap.String("pool", p.New.Pool))
	}
	return err // not done: it moved, the next look tells how
}

// retire removes what this node still has of replicas that were replaced.
func (r *Reconciler) retire(ctx context.Context, e *Entry, mod kvdb.Revision) error {
	here := func(p Placement) bool { return p.Node == r.o.Node }
	if !slices.ContainsFunc(e.Retired, here) {
		return nil
	}
	for _, p := range e.Retired {
		if !here(p) {
			continue
		}
		if err := r.unmake(ctx, e, p); err != nil {
			return fmt.Errorf("remove replica %s, which was replaced: %w", p.Replica, err)
		}
		r.lg.Info("replaced replica removed", zap.Stringer("volume-id", e.ID), zap.Stringer("replica", p.Replica))
	}
	s := e.Spec
	s.Retired = slices.DeleteFunc(slices.Clone(s.Retired), here)
	_, err := r.c.change(ctx, []kvdb.Cmp{{Key: r.c.keys.spec(e.ID), Target: kvdb.CmpMod, Revision: mod}}, &s, nil)
	return err
}
