package volume

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/tandem-storage/tandem/replication"
)

// A file system is frozen at the cut and never for longer, and the record says whether it was. What cannot be frozen is taken all the same.
func TestSnapshotFrozen(t *testing.T) {
	w := newWorld(t, "a", "b")
	v, u := pair(w)
	w.attach(v.ID)
	c, ctx := w.catalogue(w.store), t.Context()
	taker := &fakeTaker{w: w}
	atCut := false
	taker.during = func() { _, atCut = taker.frozen[v.ID] }
	for i, tt := range []struct {
		of                     *Entry
		asked, mounted, frozen bool
		failing, ended, fail   error
		why                    string
	}{
		{of: v, asked: true, mounted: true, frozen: true},
		{of: v, asked: false, mounted: true},
		{of: v, asked: true, mounted: false, why: notMounted},
		{of: v, asked: true, mounted: true, failing: errors.New("too slow"), why: "too slow"},
		{of: v, asked: true, mounted: true, ended: errors.New("thawed by itself"), why: "thawed by itself"},
		{of: u, asked: true, mounted: true, why: notAttached},
		{of: v, asked: true, mounted: true, fail: fmt.Errorf("%w: no", replication.ErrNotCut)},
	} {
		atCut, taker.log = false, nil
		taker.mounted, taker.failing, taker.ended, taker.fail = map[replication.VolumeID]bool{tt.of.ID: tt.mounted}, tt.failing, tt.ended, tt.fail
		s, err := c.CreateSnapshot(ctx, taker, fmt.Sprintf("s%d", i), tt.of.ID, tt.asked)
		if !errors.Is(err, tt.fail) {
			t.Errorf("%d: %v", i, err)
		}
		if err == nil && (s.Frozen != tt.frozen || s.NotFrozen != tt.why) {
			t.Errorf("%d: frozen %v, or not: %q", i, s.Frozen, s.NotFrozen)
		}
		if want := tt.frozen || tt.ended != nil || tt.fail != nil; atCut != want {
			t.Errorf("%d: frozen at the cut: %v", i, atCut)
		}
		if len(taker.frozen) > 0 {
			t.Errorf("%d: frozen for ever", i)
		}
	}
}

// orderedTakers note what comes after what.
type orderedTakers struct {
	*groupTakers
	order []string
}

func (o *orderedTakers) note(what string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.order) == 0 || o.order[len(o.order)-1] != what {
		o.order = append(o.order, what)
	}
}

func (o *orderedTakers) HoldForCut(ctx context.Context, n replication.NodeID, v replication.VolumeID, op replication.UUID, d time.Duration) error {
	o.note("hold")
	return o.groupTakers.HoldForCut(ctx, n, v, op, d)
}

func (o *orderedTakers) ReleaseCut(ctx context.Context, n replication.NodeID, v replication.VolumeID, op replication.UUID) (bool, error) {
	o.note("release")
	return o.groupTakers.ReleaseCut(ctx, n, v, op)
}

func (o *orderedTakers) Freeze(ctx context.Context, n replication.NodeID, v replication.VolumeID, op replication.UUID, d time.Duration) (bool, error) {
	o.note("freeze")
	return o.groupTakers.Freeze(ctx, n, v, op, d)
}

func (o *orderedTakers) Thaw(ctx context.Context, n replication.NodeID, v replication.VolumeID, op replication.UUID) error {
	o.note("thaw")
	return o.groupTakers.Thaw(ctx, n, v, op)
}

// File systems are frozen before any write is held, because what they have in memory is written out, and thawed when writes go on again.
func TestGroupSnapshotFrozen(t *testing.T) {
	w := newWorld(t, "a", "b")
	v, u := pair(w)
	idle := w.create(Request{Name: "idle", Size: gib})
	w.attach(v.ID)
	w.attach(u.ID)
	c, g := w.catalogue(w.store), &orderedTakers{groupTakers: newGroupTakers(w)}
	g.mounted = map[replication.VolumeID]bool{v.ID: true, idle.ID: true}
	r := GroupSnapshotRequest{Name: "g", Volumes: []replication.VolumeID{v.ID, u.ID, idle.ID}, Frozen: true}
	e, err := c.CreateGroupSnapshot(t.Context(), g, r)
	must(t, err)
	why := map[string]string{"v": "", "u": notMounted, "idle": notAttached}
	for _, s := range e.Members {
		if s.Frozen != (s.VolumeName == "v") || s.NotFrozen != why[s.VolumeName] {
			t.Errorf("%s: frozen %v, or not: %q", s.VolumeName, s.Frozen, s.NotFrozen)
		}
	}
	if want := []string{"freeze", "hold", "release", "thaw"}; !slices.Equal(g.order, want) {
		t.Errorf("in the order %v, want %v", g.order, want)
	}
	if len(g.freezes.frozen) > 0 || !slices.Equal(g.freezes.log, []string{"freeze", "thaw"}) {
		t.Errorf("frozen still: %d; of one volume that is mounted: %v", len(g.freezes.frozen), g.freezes.log)
	}
	r.Name, r.Frozen, g.freezes.log = "h", false, nil
	if e, err = c.CreateGroupSnapshot(t.Context(), g, r); err != nil || len(g.freezes.log) > 0 || e.Members[0].Frozen || e.Members[0].NotFrozen != "" {
		t.Errorf("frozen though nobody asked: %v, %v", g.freezes.log, err)
	}
}
