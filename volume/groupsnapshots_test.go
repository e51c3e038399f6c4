package volume

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tandem-storage/tandem/internal/testseed"
	"github.com/tandem-storage/tandem/kvdb"
	"github.com/tandem-storage/tandem/replication"
)

// heldVolume is what a coordinator is to a group snapshot: its hold ends by itself, and what is written is in the snapshots that are taken later.
type heldVolume struct {
	op      replication.UUID
	free    chan struct{} // closed when it is not held any more; nil: it never was
	timer   *time.Timer
	written int
	lent    bool
}

// groupTakers are the coordinators of all volumes.
type groupTakers struct {
	w     *world
	delay func() time.Duration // of every call
	late  replication.VolumeID // its cut takes longer than any hold
	fail  error                // of every cut, after half of the replicas took it
	freezes

	mu       sync.Mutex
	vols     map[replication.VolumeID]*heldVolume
	contents map[replication.SnapshotID]int
	lends    int
}

var _ GroupTaker = (*groupTakers)(nil)

func newGroupTakers(w *world) *groupTakers {
	return &groupTakers{w: w, vols: map[replication.VolumeID]*heldVolume{}, contents: map[replication.SnapshotID]int{}}
}

func (g *groupTakers) vol(v replication.VolumeID) *heldVolume {
	if g.vols[v] == nil {
		g.vols[v] = &heldVolume{}
	}
	return g.vols[v]
}

func (g *groupTakers) wait(ctx context.Context) error {
	if g.delay != nil && !kvdb.Pause(ctx, g.delay()) {
		return ctx.Err()
	}
	return nil
}

func (h *heldVolume) held() bool {
	if h.free == nil {
		return false
	}
	select {
	case <-h.free:
		return false
	default:
		return true
	}
}

func (g *groupTakers) HoldForCut(ctx context.Context, _ replication.NodeID, v replication.VolumeID, op replication.UUID, d time.Duration) error {
	if err := g.wait(ctx); err != nil {
		return err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	h := g.vol(v)
	if h.held() {
		return replication.ErrBusy
	}
	free := make(chan struct{})
	h.op, h.free, h.timer = op, free, time.AfterFunc(d, func() { close(free) })
	return nil
}

func (g *groupTakers) Cut(context.Context, replication.NodeID, replication.VolumeID, replication.UUID) (replication.CutPosition, bool, error) {
	panic("nobody asks where it stands")
}

func (g *groupTakers) ReleaseCut(ctx context.Context, _ replication.NodeID, v replication.VolumeID, op replication.UUID) (bool, error) {
	if err := g.wait(ctx); err != nil {
		return false, err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	h := g.vol(v)
	if h.op != op || !h.held() || !h.timer.Stop() {
		return false, nil
	}
	close(h.free)
	return true, nil
}

// TakeHeld does not look whether it is held, as a version without that does not.
func (g *groupTakers) TakeHeld(ctx context.Context, n replication.NodeID, v replication.VolumeID, id replication.SnapshotID, _ replication.UUID) ([]replication.ReplicaID, error) {
	if v == g.late {
		ctx = context.WithoutCancel(ctx)
		kvdb.Pause(ctx, MaxCutHold+time.Millisecond)
	} else if err := g.wait(ctx); err != nil {
		return nil, err
	}
	g.mu.Lock()
	g.contents[id] = g.vol(v).written
	g.mu.Unlock()
	taker := fakeTaker{w: g.w, fail: g.fail}
	return taker.Take(ctx, n, v, id, false)
}

func (g *groupTakers) Lend(ctx context.Context, _ replication.NodeID, v replication.VolumeID) (func(), error) {
	if err := g.wait(ctx); err != nil {
		return nil, err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.vol(v).lent = true
	g.lends++
	return func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.vol(v).lent = false
	}, nil
}

// write writes to a volume that is not held.
func (g *groupTakers) write(v replication.VolumeID, number int) {
	for {
		g.mu.Lock()
		h := g.vol(v)
		if !h.held() {
			h.written = number
			g.mu.Unlock()
			return
		}
		free := h.free
		g.mu.Unlock()
		<-free
	}
}

// idle fails if a volume is held or lent still.
func (g *groupTakers) idle() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for v, h := range g.vols {
		if h.held() || h.lent {
			g.w.t.Errorf("volume %s: held %v, lent %v", v, h.held(), h.lent)
		}
	}
}

// attach has a volume attached on node n-a.
func (w *world) attach(v replication.VolumeID) {
	w.t.Helper()
	if _, err := (runtime{w.configs(w.store), new(Verify)}).Attach(w.t.Context(), v, AttachOptions{}); err != nil {
		w.t.Fatal(err)
	}
}

func TestGroupSnapshot(t *testing.T) {
	w := newWorld(t, "a", "b")
	v, u := pair(w)
	other := w.create(Request{Name: "other", Size: gib})
	w.attach(v.ID)
	c, g, ctx := w.catalogue(w.store), newGroupTakers(w), t.Context()
	both := []replication.VolumeID{v.ID, u.ID}
	made, err := c.CreateGroupSnapshot(ctx, g, GroupSnapshotRequest{Name: "g", Volumes: both})
	if err != nil || made.State != Ready || len(made.Members) != 2 || g.lends != 1 {
		t.Fatalf("%+v, %v, %d volumes attached for it", made, err, g.lends)
	}
	g.idle()
	for i, name := range []string{"u", "v"} {
		if s := made.Members[i]; s.State != Ready || s.Name != "g."+name || s.VolumeName != name || len(s.Holders) != 2 || s.Group != made.ID {
			t.Errorf("%+v", s)
		}
	}
	again, err := c.CreateGroupSnapshot(ctx, g, GroupSnapshotRequest{Name: "g", Volumes: []replication.VolumeID{u.ID, v.ID}})
	if err != nil || again.ID != made.ID || len(g.contents) != 2 {
		t.Errorf("once more: %+v, %v", again, err)
	}
	if err := c.Delete(ctx, u.ID); !errors.Is(err, ErrHasSnapshots) {
		t.Errorf("a volume of it is deleted: %v", err)
	}
	_, err = c.CreateGroup(ctx, "cg", replication.FailoverManual, both)
	must(t, err)
	if _, err := c.CreateSnapshot(ctx, &fakeTaker{w: w}, "taken.other", other.ID, true); err != nil {
		t.Fatal(err)
	}
	many := make([]replication.VolumeID, MaxGroupSnapshot+1)
	for i := range many {
		many[i] = replication.VolumeID{byte(i + 1)}
	}
	for _, bad := range []struct {
		r    GroupSnapshotRequest
		want error
	}{
		{GroupSnapshotRequest{Name: "g", Volumes: []replication.VolumeID{v.ID}}, ErrGroupSnapshotExists},
		{GroupSnapshotRequest{Name: "h", Volumes: []replication.VolumeID{v.ID, u.ID, v.ID}}, ErrInvalid},
		{GroupSnapshotRequest{Name: "h"}, ErrInvalid}, {GroupSnapshotRequest{Name: "", Volumes: both}, ErrInvalid}, {GroupSnapshotRequest{Name: "h", Group: "cg", Volumes: both}, ErrInvalid},
		{GroupSnapshotRequest{Name: made.ID.String(), Volumes: both}, ErrInvalid}, {GroupSnapshotRequest{Name: "h", Volumes: many}, ErrInvalid},
		{GroupSnapshotRequest{Name: "h", Volumes: []replication.VolumeID{v.ID, {9}}}, replication.ErrVolumeNotFound}, {GroupSnapshotRequest{Name: "h", Group: "none"}, ErrGroupNotFound},
		{GroupSnapshotRequest{Name: "taken", Volumes: []replication.VolumeID{v.ID, other.ID}}, ErrSnapshotExists},
	} {
		if _, err := c.CreateGroupSnapshot(ctx, g, bad.r); !errors.Is(err, bad.want) {
			t.Errorf("%+v: %v, want %v", bad.r, err, bad.want)
		}
	}
	if err := c.DeleteSnapshot(ctx, made.Members[0].ID); !errors.Is(err, ErrInGroupSnapshot) {
		t.Errorf("a part of it is deleted: %v", err)
	}
	byGroup, err := c.CreateGroupSnapshot(ctx, g, GroupSnapshotRequest{Name: "h", Group: "cg"})
	if err != nil || byGroup.Group != "cg" || !slices.Equal(byGroup.Volumes, sortVolumes(both)) {
		t.Errorf("of a consistency group: %+v, %v", byGroup, err)
	}
	if all, err := c.GroupSnapshots(ctx); err != nil || len(all) != 2 || all[0].Name != "g" || all[1].Name != "h" {
		t.Errorf("%+v, %v", all, err)
	}
	w.reconcileSnapshots()
	if n := w.held(); n != 10 {
		t.Errorf("%d are held, of 2 groups of 2 volumes and 1 other on 2 replicas each", n)
	}
	for _, ref := range []string{"g", byGroup.ID.String(), byGroup.ID.String()} {
		if e, err := c.GroupSnapshot(ctx, ref); err == nil {
			must(t, c.DeleteGroupSnapshot(ctx, e.ID))
		}
		if _, err := c.GroupSnapshot(ctx, ref); !errors.Is(err, ErrGroupSnapshotNotFound) {
			t.Errorf("deleted: %v", err)
		}
	}
	s, err := c.Snapshot(ctx, "taken.other")
	must(t, err)
	must(t, c.DeleteSnapshot(ctx, s.ID))
	w.reconcileSnapshots()
	if left := w.leftovers(); w.held() != 0 || len(left) != 0 {
		t.Errorf("%d are held still, records %v", w.held(), left)
	}
}

// As many volumes as may be fit into the transactions, with names that are as long as they may be.
func TestGroupSnapshotOfMany(t *testing.T) {
	w := newWorld(t, "a", "b")
	c, g, ctx := w.catalogue(w.store), newGroupTakers(w), t.Context()
	r := GroupSnapshotRequest{Name: strings.Repeat("g", MaxName)}
	w.makes(func(ctx context.Context) {
		for i := range MaxGroupSnapshot {
			e, err := c.Create(ctx, Request{Name: fmt.Sprintf("%s%02d", strings.Repeat("v", MaxName-2), i), Size: SizeUnit})
			must(t, err)
			r.Volumes = append(r.Volumes, e.ID)
		}
	})
	e, err := c.CreateGroupSnapshot(ctx, g, r)
	must(t, err)
	if all, err := c.Snapshots(ctx); err != nil || len(all) != MaxGroupSnapshot || len(all[0].Name) != MaxName {
		t.Errorf("%d snapshots, %v", len(all), err)
	}
	must(t, c.DeleteGroupSnapshot(ctx, e.ID))
	w.reconcileSnapshots()
	if left := w.leftovers(); w.held() != 0 || len(left) != 0 {
		t.Errorf("%d are held still, %d records", w.held(), len(left))
	}
}

// A group snapshot of which one cut could not be made leaves nothing, and its name is free.
func TestGroupSnapshotNotTaken(t *testing.T) {
	w := newWorld(t, "a", "b")
	v, u := pair(w)
	w.attach(v.ID)
	c, g, ctx := w.catalogue(w.store), newGroupTakers(w), t.Context()
	r := GroupSnapshotRequest{Name: "g", Volumes: []replication.VolumeID{v.ID, u.ID}}
	g.fail = fmt.Errorf("%w: no", replication.ErrNotCut)
	_, err := c.CreateGroupSnapshot(ctx, g, r)
	wantErr(t, err, ErrNotCut)
	if len(g.contents) != 2*cutAttempts {
		t.Errorf("%d cuts were tried", len(g.contents))
	}
	g.fail = fmt.Errorf("%w: %w", replication.ErrNotCut, replication.ErrSnapshotUnsupported)
	_, err = c.CreateGroupSnapshot(ctx, g, r)
	wantErr(t, err, replication.ErrSnapshotUnsupported)
	if len(g.contents) != 2*cutAttempts+2 {
		t.Errorf("%d cuts were tried", len(g.contents)-2*cutAttempts)
	}
	g.idle()
	w.reconcileSnapshots()
	if left := w.leftovers(); w.held() != 0 || len(left) != 0 {
		t.Errorf("%d are held still, records %v", w.held(), left)
	}
	g.fail = nil
	if _, err = c.CreateGroupSnapshot(ctx, g, r); err != nil {
		t.Error(err)
	}
}

// A consumer writes 1 to a, then to b when that is acknowledged, then 2 to a, and so on, while group snapshots are taken over ways of any length. Whatever was cut late or held too short,
// each group snapshot that there is has in b what a has, or the number before (I28).
func TestGroupSnapshotMoment(t *testing.T) {
	seed := testseed.Of(t)
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "a", "b")
		a, b := pair(w)
		w.attach(a.ID)
		w.attach(b.ID)
		var mu sync.Mutex
		rng := rand.New(rand.NewPCG(seed, 0))
		upTo := func(d time.Duration) time.Duration {
			mu.Lock()
			defer mu.Unlock()
			return time.Duration(rng.Int64N(int64(d)))
		}
		ctx, stop := context.WithCancel(t.Context())
		c, g := w.catalogue(w.store), newGroupTakers(w)
		var wg sync.WaitGroup
		defer wg.Wait()
		defer stop()
		wg.Go(func() {
			for n := 1; kvdb.Pause(ctx, upTo(2*time.Millisecond)); n++ {
				g.write(a.ID, n)
				g.write(b.ID, n)
			}
		})
		good, bad := 0, 0
		for i := range 60 {
			longest := []time.Duration{2 * time.Millisecond, 300 * time.Millisecond, 6 * time.Second}[i%3] // well within the hold, about as long, and longer
			g.delay, g.late = func() time.Duration { return upTo(longest) }, replication.VolumeID{}
			if i%10 == 9 {
				g.late = b.ID
			}
			e, err := c.CreateGroupSnapshot(t.Context(), g, GroupSnapshotRequest{Name: fmt.Sprintf("g%d", i), Volumes: []replication.VolumeID{a.ID, b.ID}})
			if err != nil {
				wantErr(t, err, ErrNotCut)
				bad++
				continue
			}
			good++
			has := map[replication.VolumeID]int{}
			for _, s := range e.Members {
				has[s.Volume] = g.contents[s.ID]
			}
			if has[a.ID] != has[b.ID] && has[a.ID] != has[b.ID]+1 {
				t.Errorf("g%d has %d of a and %d of b", i, has[a.ID], has[b.ID])
			}
			must(t, c.DeleteGroupSnapshot(t.Context(), e.ID))
		}
		stop()
		if good < 20 || bad < 6 {
			t.Errorf("%d were taken, %d were not: that tries too little", good, bad)
		}
		nodes := []*Reconciler{w.reconciler(w.store, "n-a"), w.reconciler(w.store, "n-b")}
		for range 3 {
			for _, r := range nodes {
				must(t, r.Reconcile(t.Context()))
			}
			kvdb.Pause(t.Context(), snapshotLinger)
		}
		if left := w.leftovers(); w.held() != 0 || len(left) != 0 {
			t.Errorf("%d are held still, %d records", w.held(), len(left))
		}
	})
}

// Whoever takes a group snapshot dies at any of its calls of the kvdb. When the node runs again all of it is there or nothing, and its name can be used.
func TestGroupSnapshotMakerDies(t *testing.T) {
	finished := false
	for at := int64(1); !finished; at++ {
		for _, late := range []bool{false, true} {
			w := newWorld(t, "a", "b")
			v, u := pair(w)
			w.attach(v.ID)
			f := &filter{Store: w.store, cutAt: at, cutLate: late}
			g, ctx := newGroupTakers(w), t.Context()
			r := GroupSnapshotRequest{Name: "g", Volumes: []replication.VolumeID{v.ID, u.ID}}
			_, err := w.catalogue(f).CreateGroupSnapshot(ctx, g, r)
			finished = err == nil
			// The next process of that node, before and after which others look.
			w.restart()
			for _, n := range []string{"n-b", "n-a", "n-b"} {
				must(t, w.reconciler(w.store, n).Reconcile(ctx))
			}
			c := w.catalogue(w.store)
			all, err := c.GroupSnapshots(ctx)
			must(t, err)
			ready := 0
			snaps, err := c.Snapshots(ctx)
			must(t, err)
			for _, s := range snaps {
				if s.State == Creating {
					t.Errorf("call %d: snapshot %s is %s for ever", at, s.Name, s.State)
				}
				if s.State == Ready {
					ready++
				}
			}
			if len(all) > 1 || ready != 2*len(all) || len(all) == 1 && all[0].State != Ready {
				t.Errorf("call %d: %d group snapshots, %d snapshots", at, len(all), ready)
			}
			e, err := c.CreateGroupSnapshot(ctx, g, r)
			if err != nil || len(all) == 1 && e.ID != all[0].ID {
				t.Fatalf("call %d: again: %v", at, err)
			}
			must(t, c.DeleteGroupSnapshot(ctx, e.ID))
			w.reconcileSnapshots()
			if left := w.leftovers(); w.held() != 0 || len(left) != 0 {
				t.Errorf("call %d: %d are held still, records %v", at, w.held(), left)
			}
		}
	}
}

// A group snapshot whose maker's node does not come back is given up by others, and not before it can have no maker any more.
func TestGroupSnapshotGivenUp(t *testing.T) {
	w := newWorld(t, "a", "b")
	v, u := pair(w)
	c, g, ctx := w.catalogue(w.store), newGroupTakers(w), t.Context()
	r := GroupSnapshotRequest{Name: "g", Volumes: []replication.VolumeID{v.ID, u.ID}}
	rec, where, err := c.beginGroupSnapshot(ctx, r)
	must(t, err)
	_, err = c.CreateGroupSnapshot(ctx, g, r)
	wantErr(t, err, ErrNotReady)
	wantErr(t, c.DeleteGroupSnapshot(ctx, rec.ID), ErrNotReady)
	other := w.reconciler(w.store, "n-b")
	must(t, other.Reconcile(ctx))
	other.seenGroups[rec.ID] = time.Now().Add(-snapshotTimeout + time.Minute)
	must(t, other.Reconcile(ctx))
	if _, err := c.GroupSnapshot(ctx, "g"); err != nil {
		t.Errorf("given up too early: %v", err)
	}
	for k := range other.seen {
		other.seen[k] = time.Now().Add(-snapshotTimeout) // its snapshots are not given up by themselves
	}
	must(t, other.Reconcile(ctx))
	if e, err := c.GroupSnapshot(ctx, "g"); err != nil || e.Members[0].State != Creating {
		t.Errorf("%+v, %v", e, err)
	}
	other.seenGroups[rec.ID] = time.Now().Add(-snapshotTimeout)
	must(t, other.Reconcile(ctx))
	// It was slow and not dead: what it has does not count.
	all, err := rec.take(ctx, g, where, true, DefaultCutHold)
	must(t, err)
	wantErr(t, c.endGroupSnapshot(ctx, rec, true, all), ErrNotCut)
	w.reconcileSnapshots()
	if left := w.leftovers(); w.held() != 0 || len(left) != 0 {
		t.Errorf("%d are held still, records %v", w.held(), left)
	}
}
