package volume

import (
	"context"
	"errors"
	"slices"
	"testing"

	"github.com/tandem-storage/tandem/replication"
	"github.com/tandem-storage/tandem/volume/volumepb"
)

// diskSpace are the pools of all nodes; n-b does not answer.
type diskSpace struct{ w *world }

func (d diskSpace) SnapshotFrees(_ context.Context, n replication.NodeID, r LocalReplica, id replication.SnapshotID) (int64, error) {
	disks := d.w.disks[string(n)]
	disks.mu.Lock()
	defer disks.mu.Unlock()
	switch {
	case n == "n-b":
		return 7, errors.New("does not answer")
	case !disks.snaps[heldSnapshot{r, id}]:
		return 0, ErrSnapshotNotFound
	}
	return 4096, nil
}

// Whoever asks is told what the deletion of a snapshot gives back on each holder, or why that is not known; nobody else waits for it.
func TestSnapshotSpace(t *testing.T) {
	w := newWorld(t, "a", "b")
	e := w.create(Request{Name: "data", Size: gib})
	c := w.catalogue(w.store)
	taker := &fakeTaker{w: w}
	if _, err := c.CreateSnapshot(t.Context(), taker, "s", e.ID, false); err != nil {
		t.Fatal(err)
	}
	s := NewSnapshotServer(c, taker, diskSpace{w}, nil, endersOf(w).switcher("n-a"))
	for _, asked := range []bool{false, true} {
		resp, err := s.GetSnapshot(t.Context(), &volumepb.GetSnapshotRequest{Snapshot: "s", Space: asked})
		if err != nil {
			t.Fatal(err)
		}
		list, err := s.ListSnapshots(t.Context(), &volumepb.ListSnapshotsRequest{Space: asked})
		if err != nil || len(list.Snapshots) != 1 {
			t.Fatal(list, err)
		}
		want := map[string]*volumepb.SnapshotHolder{"n-a": {}, "n-b": {}}
		if asked {
			want["n-a"].FreesBytes, want["n-b"].FreesUnknown = 4096, "does not answer"
		}
		for _, h := range slices.Concat(resp.Snapshot.Holders, list.Snapshots[0].Holders) {
			if h.FreesBytes != want[h.Node].FreesBytes || h.FreesUnknown != want[h.Node].FreesUnknown {
				t.Errorf("asked %v: %v", asked, h)
			}
		}
	}
}
