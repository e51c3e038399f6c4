package volume

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/tandem-storage/tandem/replication"
)

// GroupTaker reaches the coordinators of the volumes of a group snapshot, on any node.
type GroupTaker interface {
	CutCoordinators
	Freezer
	// Lend has v, which is detached, attached on node n without a device until giveBack is called, once, or this process ends. Then it is detached again; giveBack waits for that, for a while.
	Lend(ctx context.Context, n replication.NodeID, v replication.VolumeID) (giveBack func(), err error)
	// TakeHeld has every in-sync replica of v take the snapshot, by its coordinator on node n, while op holds the volume's writes there; it does nothing when op does not hold them, or not any more.
	TakeHeld(ctx context.Context, n replication.NodeID, v replication.VolumeID, id replication.SnapshotID, op replication.UUID) ([]replication.ReplicaID, error)
}

// lendTimeout bounds how long it may take until all detached volumes of a group snapshot are attached. Nothing is held meanwhile.
const lendTimeout = 20 * time.Second

// taken is a snapshot that was taken.
type taken struct {
	holders []replication.ReplicaID
	not     map[replication.VolumeID]string // why it was not frozen, by volume
	lent    bool
}

// take takes the snapshots of g while all its volumes are held (I28), with frozen while their file systems are frozen. hold bounds how long the writes of any of them wait.
// Errors: ErrNotCut; replication.ErrSnapshotUnsupported and replication.ErrTooManySnapshots, which trying again does not help.
func (g *GroupSnapshotRecord) take(ctx context.Context, t GroupTaker, where map[replication.VolumeID]standing, frozen bool, hold time.Duration) (map[replication.VolumeID]taken, error) {
	cut := &Cut{Op: replication.NewUUID(), Group: g.Name, Nodes: map[replication.VolumeID]replication.NodeID{}}
	freezes := map[replication.VolumeID]replication.NodeID{}
	for v, at := range where {
		cut.Nodes[v] = at.node
		if frozen && !at.lend {
			freezes[v] = at.node
		}
	}
	// A detached volume is attached first, so that from then on it is held and cut as the others are: nobody else can write to it.
	back, err := cut.lend(ctx, t, where)
	defer back()
	if err == nil {
		thaw := freeze(ctx, t, cut.Op, freezes)
		var holders map[replication.VolumeID][]replication.ReplicaID
		holders, err = g.takeAttached(ctx, t, cut, hold)
		not := thaw()
		if err == nil {
			all := map[replication.VolumeID]taken{}
			for v, h := range holders {
				all[v] = taken{h, not, where[v].lend}
			}
			return all, nil
		}
	}
	for _, last := range []error{replication.ErrSnapshotUnsupported, replication.ErrTooManySnapshots} {
		if errors.Is(err, last) {
			return nil, fmt.Errorf("%w: group snapshot %s: %s", last, g.Name, err.Error())
		}
	}
	// Not wrapped: that one of them did not answer in time is not that the caller was not answered.
	return nil, fmt.Errorf("%w: group snapshot %s: %s", ErrNotCut, g.Name, err.Error())
}

// takeAttached holds all, cuts all, and releases all. The cut counts if each was held by this operation from when the last one was until after the last cut.
func (g *GroupSnapshotRecord) takeAttached(ctx context.Context, t GroupTaker, cut *Cut, hold time.Duration) (map[replication.VolumeID][]replication.ReplicaID, error) {
	var mu sync.Mutex
	holders := map[replication.VolumeID][]replication.ReplicaID{}
	ids := map[replication.VolumeID]replication.SnapshotID{}
	for i, v := range g.Volumes {
		ids[v] = g.Snapshots[i]
	}
	held, cancel := context.WithTimeout(ctx, hold)
	defer cancel()
	err := cut.each(func(v replication.VolumeID, n replication.NodeID) error {
		return t.HoldForCut(held, n, v, cut.Op, hold)
	})
	if err == nil {
		err = cut.each(func(v replication.VolumeID, n replication.NodeID) error {
			h, err := t.TakeHeld(held, n, v, ids[v], cut.Op)
			if err != nil {
				return fmt.Errorf("volume %s: %w", v, err)
			}
			mu.Lock()
			defer mu.Unlock()
			holders[v] = h
			return nil
		})
	}
	return holders, errors.Join(err, cut.release(ctx, t, hold))
}

// release lets the writes of all volumes go on, and returns nil if each had been held until then.
func (cut *Cut) release(ctx context.Context, cs CutCoordinators, within time.Duration) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), within)
	defer cancel()
	return cut.each(func(v replication.VolumeID, n replication.NodeID) error {
		if was, err := cs.ReleaseCut(ctx, n, v, cut.Op); err != nil || !was {
			return fmt.Errorf("volume %s was not held to the end: %w", v, errors.Join(err, errHoldEnded))
		}
		return nil
	})
}

// lend has the volumes attached that are detached. back, which is never nil, has them detached again.
func (cut *Cut) lend(ctx context.Context, t GroupTaker, where map[replication.VolumeID]standing) (back func(), _ error) {
	ctx, cancel := context.WithTimeout(ctx, lendTimeout)
	defer cancel()
	var mu sync.Mutex
	var give []func()
	err := cut.each(func(v replication.VolumeID, n replication.NodeID) error {
		if !where[v].lend {
			return nil
		}
		b, err := t.Lend(ctx, n, v)
		if err != nil {
			return fmt.Errorf("volume %s is not attached for the snapshot: %w", v, err)
		}
		mu.Lock()
		defer mu.Unlock()
		give = append(give, b)
		return nil
	})
	return func() {
		var wg sync.WaitGroup
		for _, b := range give {
			wg.Go(b)
		}
		wg.Wait()
	}, err
}

// groupSnapshots gives up the group snapshots whose maker has gone, and returns those that there are.
func (r *Reconciler) groupSnapshots(ctx context.Context) (map[replication.UUID]bool, error) {
	kvs, _, err := r.c.store.List(ctx, r.c.keys.groupSnapshots())
	if err != nil {
		return nil, fmt.Errorf("read group snapshots: %w", err)
	}
	there := map[replication.UUID]bool{}
	creating := map[replication.UUID]time.Time{}
	var errs []error
	for _, kv := range kvs {
		g, err := parseGroupSnapshot(kv)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		there[g.ID] = true
		if g.State != Creating {
			continue
		}
		since, ok := r.seenGroups[g.ID]
		if !ok {
			since = time.Now()
		}
		creating[g.ID] = since
		died := g.Node == r.o.Node && g.Process != r.c.process
		if !died && time.Since(since) < snapshotTimeout {
			continue
		}
		r.lg.Warn("group snapshot given up, whoever asked for it has gone", zap.Stringer("group-snapshot-id", g.ID), zap.String("name", g.Name), zap.String("node", string(g.Node)))
		if _, err := r.c.dropGroupSnapshot(ctx, g.ID, Creating); err != nil {
			errs = append(errs, fmt.Errorf("group snapshot %s: %w", g.Name, err))
		}
	}
	r.seenGroups = creating
	return there, errors.Join(errs...)
}
