package volume

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/tandem-storage/tandem/kvdb"
	"github.com/tandem-storage/tandem/replication"
)

// Times of the Reconciler's part in snapshots, all counted from when this process has first seen what is to be done.
const (
	snapshotTimeout = 2 * time.Minute  // one that is CREATING for longer has no maker any more: that takes a few seconds
	snapshotLinger  = time.Minute      // one that was not taken is looked for after so long: a replica may be at it still
	lateLingers     = 2                // times that for one that a coordinator may be about to take, which has a minute for it (attachTimeout of the daemon)
	cloneTimeout    = 10 * time.Minute // one that was taken for a clone is not needed for longer
)

// snapshots does this node's part for every snapshot: it deletes what its replicas hold of those that are DELETING, and gives up those whose maker has gone.
func (r *Reconciler) snapshots(ctx context.Context) error {
	groups, groupsErr := r.groupSnapshots(ctx) // first: what it gives up is DELETING then
	kvs, _, err := r.c.store.List(ctx, r.c.keys.snapshots())
	if err != nil {
		return fmt.Errorf("read snapshots: %w", err)
	}
	gone := map[replication.SnapshotID]map[string]bool{} // replicas that have said so
	records := map[replication.SnapshotID]*SnapshotRecord{}
	mods := map[replication.SnapshotID]kvdb.Revision{}
	errs := []error{groupsErr}
	for _, kv := range kvs {
		name, replica, is := strings.Cut(strings.TrimPrefix(kv.Key, r.c.keys.snapshots()), "/")
		id, err := replication.ParseSnapshotID(name)
		switch {
		case err != nil:
			errs = append(errs, fmt.Errorf("%w: %s", ErrBadRecord, kv.Key))
		case is:
			if gone[id] == nil {
				gone[id] = map[string]bool{}
			}
			gone[id][replica] = true
		default:
			if records[id], err = parseSnapshot(kv); err != nil {
				errs = append(errs, err)
				delete(records, id)
			}
			mods[id] = kv.Mod
		}
	}
	for k := range r.seen {
		if s := records[k.id]; s == nil || s.State != k.state {
			delete(r.seen, k)
		}
	}
	for id, s := range records {
		k := seenSnapshot{id, s.State}
		if _, ok := r.seen[k]; !ok {
			r.seen[k] = time.Now()
		}
		linger := r.o.SnapshotLinger
		if s.Late {
			linger *= lateLingers
		}
		died := s.Node == r.o.Node && s.Process != r.c.process
		switch since := time.Since(r.seen[k]); {
		case s.State == Creating && (groups[s.Group] || groupsErr != nil && !isNil(s.Group)):
			err = nil // it is given up with its group snapshot
		case s.State == Creating && (died || since >= snapshotTimeout):
			r.lg.Warn("snapshot given up, whoever asked for it has gone", zap.Stringer("volume-id", s.Volume), zap.Stringer("snapshot-id", id))
			why := notTaken
			if since < snapshotTimeout {
				why = late
			}
			_, err = r.c.dropSnapshot(ctx, id, Creating, why)
		case s.State == Ready && s.Clone != "" && since >= cloneTimeout:
			err = r.c.DeleteSnapshot(ctx, id)
		case s.State == Deleting && (!s.Failed || since >= linger):
			err = r.deleteSnapshot(ctx, s, mods[id], gone[id])
		default:
			err = nil
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("snapshot %s of volume %s: %w", s.Name, s.VolumeName, err))
		}
	}
	return errors.Join(errs...)
}

// seenSnapshot is a snapshot in a state.
type seenSnapshot struct {
	id    replication.SnapshotID
	state State
}

// deleteSnapshot deletes what this node's replicas hold of a snapshot whose record is that of mod, and the record when all have.
func (r *Reconciler) deleteSnapshot(ctx context.Context, s *SnapshotRecord, mod kvdb.Revision, gone map[string]bool) error {
	key := r.c.keys.snapshot(s.ID)
	left := 0
	for _, p := range s.Holders {
		id := p.Replica.String()
		if gone[id] {
			continue
		}
		if p.Node != r.o.Node {
			left++
			continue
		}
		if err := r.dropHeld(ctx, s, p); err != nil {
			return err
		}
		res, err := r.c.store.Txn(ctx, kvdb.Txn{
			If:   []kvdb.Cmp{{Key: key, Target: kvdb.CmpMod, Revision: mod}},
			Then: []kvdb.Op{{Kind: kvdb.OpPut, Key: key + "/" + id, Value: []byte(p.Node)}},
		})
		if err != nil || !res.Succeeded {
			return err
		}
	}
	if left > 0 {
		return nil
	}
	t := kvdb.Txn{If: []kvdb.Cmp{{Key: key, Target: kvdb.CmpMod, Revision: mod}}, Then: []kvdb.Op{{Kind: kvdb.OpDelete, Key: key}}}
	for _, p := range s.Holders {
		t.Then = append(t.Then, kvdb.Op{Kind: kvdb.OpDelete, Key: key + "/" + p.Replica.String()})
	}
	res, err := r.c.store.Txn(ctx, t)
	if err == nil && res.Succeeded {
		r.lg.Info("snapshot deleted", zap.Stringer("volume-id", s.Volume), zap.Stringer("snapshot-id", s.ID), zap.String("name", s.Name))
	}
	return err
}

func (r *Reconciler) dropHeld(ctx context.Context, s *SnapshotRecord, p Placement) error {
	ctx, cancel := context.WithTimeout(ctx, r.o.OpTimeout)
	defer cancel()
	return r.o.Replicas.DeleteSnapshot(ctx, LocalReplica{s.Volume, p.Replica, p.Pool}, s.ID)
}
