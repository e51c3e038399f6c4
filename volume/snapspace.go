package volume

import (
	"context"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/tandem-storage/tandem/replication"
	"github.com/tandem-storage/tandem/volume/volumepb"
)

// SnapshotSpace asks nodes what snapshots take.
type SnapshotSpace interface {
	// SnapshotFrees is how many bytes the deletion of a snapshot of r, on node n, would give back to its pool at this moment.
	SnapshotFrees(ctx context.Context, n replication.NodeID, r LocalReplica, id replication.SnapshotID) (int64, error)
}

// measureWait bounds how long a holder is waited for.
const measureWait = 5 * time.Second

// measure notes in m what the deletion of s would give back on each holder.
func measure(ctx context.Context, space SnapshotSpace, s *SnapshotRecord, m *volumepb.Snapshot) {
	ctx, cancel := context.WithTimeout(ctx, measureWait)
	defer cancel()
	at := map[string]*volumepb.SnapshotHolder{}
	for _, h := range m.Holders {
		at[h.Replica] = h
	}
	var wg sync.WaitGroup
	for _, p := range s.Holders {
		wg.Go(func() {
			h := at[p.Replica.String()]
			var err error
			if h.FreesBytes, err = space.SnapshotFrees(ctx, p.Node, LocalReplica{s.Volume, p.Replica, p.Pool}, s.ID); err != nil {
				h.FreesBytes, h.FreesUnknown = 0, err.Error()
			}
		})
	}
	wg.Wait()
}

// measureAllWait bounds how long the holders of a list are waited for, measureAtOnce how many snapshots are looked at at once. A holder looks at the files that a snapshot has itself, so that all of them together
// are one look at each file.
const (
	measureAllWait = 25 * time.Second
	measureAtOnce  = 4
)

// measureAll is measure for each of ss that is READY, of which ms tell.
func measureAll(ctx context.Context, space SnapshotSpace, ss []*SnapshotRecord, ms []*volumepb.Snapshot) {
	ctx, cancel := context.WithTimeout(ctx, measureAllWait)
	defer cancel()
	var g errgroup.Group
	g.SetLimit(measureAtOnce)
	for i, s := range ss {
		if s.State != Ready {
			continue
		}
		g.Go(func() error {
			measure(ctx, space, s, ms[i])
			return nil
		})
	}
	_ = g.Wait() // of none that fails
}

// MeasureSnapshot implements SnapshotCoordinators.
func (s *SnapshotCoordinatorsServer) MeasureSnapshot(ctx context.Context, r *volumepb.MeasureSnapshotRequest) (*volumepb.MeasureSnapshotResponse, error) {
	v, err := parseIdentifier(r.VolumeId)
	if err != nil {
		return nil, err
	}
	replica, err := parseIdentifier(r.ReplicaId)
	if err != nil {
		return nil, err
	}
	id, err := parseIdentifier(r.SnapshotId)
	if err != nil {
		return nil, err
	}
	t, err := s.find()
	if err != nil {
		return nil, err
	}
	n, err := t.FreesHere(ctx, LocalReplica{replication.VolumeID(v), replication.ReplicaID(replica), r.Pool}, replication.SnapshotID(id))
	return &volumepb.MeasureSnapshotResponse{FreesBytes: n}, err
}

// MeasureOn asks another node for SnapshotFrees.
func MeasureOn(ctx context.Context, c volumepb.SnapshotCoordinatorsClient, r LocalReplica, id replication.SnapshotID) (int64, error) {
	resp, err := c.MeasureSnapshot(ctx, &volumepb.MeasureSnapshotRequest{VolumeId: r.Volume[:], ReplicaId: r.Replica[:], Pool: r.Pool, SnapshotId: id[:]})
	return resp.GetFreesBytes(), err
}
