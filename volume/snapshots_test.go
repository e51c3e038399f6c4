package volume

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/tandem-storage/tandem/kvdb"
	"github.com/tandem-storage/tandem/replication"
)

// fakeTaker has the disks of the in-sync replicas hold what is taken.
type fakeTaker struct {
	w      *world
	fail   error // of Take; half of the replicas have it all the same
	during func()
	freezes
	asked []bool // whether it had to attach
}

func (f *fakeTaker) Take(_ context.Context, n replication.NodeID, v replication.VolumeID, id replication.SnapshotID, attach bool) ([]replication.ReplicaID, error) {
	f.asked = append(f.asked, attach)
	e, err := f.w.catalogue(f.w.store).Get(f.w.t.Context(), v)
	if err != nil {
		return nil, err
	}
	if !slices.ContainsFunc(e.Placed, func(p Placement) bool { return p.Node == n }) {
		return nil, replication.ErrNotCoordinator
	}
	var holders []replication.ReplicaID
	for _, p := range e.Placed {
		if !e.Config.InISR(p.Replica) || f.fail != nil && len(holders) > 0 {
			continue
		}
		holders = append(holders, p.Replica)
		d := f.w.disks[string(p.Node)]
		d.mu.Lock()
		d.snaps[heldSnapshot{LocalReplica{v, p.Replica, p.Pool}, id}] = true
		d.mu.Unlock()
	}
	if f.during != nil {
		f.during()
	}
	if f.fail != nil {
		return nil, f.fail
	}
	return holders, nil
}

// held counts the snapshots on all disks.
func (w *world) held() (n int) {
	for _, d := range w.disks {
		n += len(d.snaps)
	}
	return n
}

// reconcileSnapshots has every node do its part until nothing changes; what was not taken is looked for at once.
func (w *world) reconcileSnapshots() {
	w.t.Helper()
	for range 3 {
		for _, d := range w.domains {
			r := w.reconciler(w.store, "n-"+d)
			r.o.SnapshotLinger = time.Nanosecond
			if err := r.Reconcile(w.t.Context()); err != nil {
				w.t.Fatal(err)
			}
		}
	}
}

// leftovers are the records of snapshots.
func (w *world) leftovers() (keys []string) {
	w.t.Helper()
	kvs, _, err := w.store.List(w.t.Context(), "/tandem/c/snap")
	if err != nil {
		w.t.Fatal(err)
	}
	for _, kv := range kvs {
		keys = append(keys, kv.Key)
	}
	return keys
}

// makes runs f with all nodes at work.
func (w *world) makes(f func(ctx context.Context)) {
	ctx, cancel := context.WithCancel(w.t.Context())
	var wg sync.WaitGroup
	for _, d := range w.domains {
		wg.Go(func() { w.reconciler(w.store, "n-"+d).Run(ctx) })
	}
	f(ctx)
	cancel()
	wg.Wait()
}

func TestSnapshots(t *testing.T) {
	w := newWorld(t, "a", "b")
	e := w.create(Request{Name: "data", Size: gib})
	c, taker, ctx := w.catalogue(w.store), &fakeTaker{w: w}, t.Context()
	var made []*SnapshotRecord
	for i := range 3 {
		s, err := c.CreateSnapshot(ctx, taker, fmt.Sprintf("s%d", i), e.ID, true)
		if err != nil || s.State != Ready || len(s.Holders) != 2 || s.Size != gib || !taker.asked[i] {
			t.Fatalf("%+v, %v", s, err)
		}
		made = append(made, s)
	}
	again, err := c.CreateSnapshot(ctx, taker, "s1", e.ID, true)
	if err != nil || again.ID != made[1].ID || len(taker.asked) != 3 {
		t.Errorf("once more: %+v, %v", again, err)
	}
	other := w.create(Request{Name: "other", Size: gib})
	for _, bad := range []struct {
		name string
		of   replication.VolumeID
		want error
	}{
		{"s1", other.ID, ErrSnapshotExists}, {"", e.ID, ErrInvalid}, {"a b", e.ID, ErrInvalid}, {replication.NewUUID().String(), e.ID, ErrInvalid},
		{"s9", replication.VolumeID{9}, replication.ErrVolumeNotFound},
	} {
		if _, err := c.CreateSnapshot(ctx, taker, bad.name, bad.of, true); !errors.Is(err, bad.want) {
			t.Errorf("%q: %v, want %v", bad.name, err, bad.want)
		}
	}
	if err := c.Delete(ctx, e.ID); !errors.Is(err, ErrHasSnapshots) {
		t.Errorf("a volume with snapshots: %v", err)
	}
	if all, err := c.Snapshots(ctx); err != nil || len(all) != 3 || all[0].Name != "s0" || all[2].Name != "s2" {
		t.Errorf("%v, %v", all, err)
	}
	w.reconcileSnapshots()
	if w.held() != 6 {
		t.Errorf("%d are held, of 3 on 2 replicas each", w.held())
	}
	for _, i := range []int{1, 0, 2, 2} { // in any order, and again
		if err := c.DeleteSnapshot(ctx, made[i].ID); err != nil {
			t.Errorf("delete s%d: %v", i, err)
		}
		if _, err := c.Snapshot(ctx, fmt.Sprintf("s%d", i)); !errors.Is(err, ErrSnapshotNotFound) {
			t.Errorf("deleted: %v", err)
		}
	}
	w.reconcileSnapshots()
	if left := w.leftovers(); w.held() != 0 || len(left) != 0 {
		t.Errorf("%d are held still, records %v", w.held(), left)
	}
	if err := c.Delete(ctx, e.ID); err != nil {
		t.Error(err)
	}
}

// A snapshot that was not taken leaves nothing behind, and its name is free at once, whoever knows that it was not.
func TestSnapshotNotTaken(t *testing.T) {
	w := newWorld(t, "a", "b")
	e := w.create(Request{Name: "data", Size: gib})
	c, ctx := w.catalogue(w.store), t.Context()
	taker := &fakeTaker{w: w, fail: fmt.Errorf("%w: no", replication.ErrNotCut)}
	if _, err := c.CreateSnapshot(ctx, taker, "s", e.ID, true); !errors.Is(err, replication.ErrNotCut) {
		t.Fatal(err)
	}
	if w.held() != 1 {
		t.Fatalf("%d are held", w.held())
	}
	if err := w.reconciler(w.store, "n-a").Reconcile(ctx); err != nil || w.held() != 1 {
		t.Errorf("looked for while a replica may be at it: %v, %d held", err, w.held())
	}
	taker.fail = nil
	s, err := c.CreateSnapshot(ctx, taker, "s", e.ID, true)
	if err != nil {
		t.Fatal(err)
	}
	w.reconcileSnapshots()
	if w.held() != 2 || len(w.leftovers()) != 3 {
		t.Errorf("%d are held, records %v", w.held(), w.leftovers())
	}
	must(t, c.DeleteSnapshot(ctx, s.ID))

	// Whether it is taken is not known: its name can be used at once, and it is looked for later, when nobody begins with it any more.
	taker.fail = context.DeadlineExceeded
	if _, err := c.CreateSnapshot(ctx, taker, "s", e.ID, true); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatal(err)
	}
	taker.fail = nil
	s, err = c.CreateSnapshot(ctx, taker, "s", e.ID, true)
	must(t, err)
	must(t, c.DeleteSnapshot(ctx, s.ID))
	ra, rb := w.reconciler(w.store, "n-a"), w.reconciler(w.store, "n-b")
	ago := func(d time.Duration) {
		t.Helper()
		for range 3 {
			for _, r := range []*Reconciler{ra, rb} {
				for k := range r.seen {
					r.seen[k] = time.Now().Add(-d)
				}
				must(t, r.Reconcile(ctx))
			}
		}
	}
	ago(lateLingers*snapshotLinger - time.Minute)
	if w.held() != 1 || len(w.leftovers()) != 1 {
		t.Errorf("looked for while a coordinator may begin with it: %d are held, records %v", w.held(), w.leftovers())
	}
	ago(lateLingers * snapshotLinger)
	if left := w.leftovers(); w.held() != 0 || len(left) != 0 {
		t.Errorf("%d are held still, records %v", w.held(), left)
	}

	// Its maker is at it, or has gone with its node: it is given up when it can have no maker any more.
	_, _, _, err = c.beginSnapshot(ctx, "s", e.ID, "", replication.UUID{})
	must(t, err)
	if _, err := c.CreateSnapshot(ctx, taker, "s", e.ID, true); !errors.Is(err, ErrNotReady) {
		t.Errorf("beside another one: %v", err)
	}
	ago(snapshotTimeout - time.Minute)
	if all, err := c.Snapshots(ctx); err != nil || len(all) != 1 || all[0].State != Creating {
		t.Errorf("given up too early: %+v, %v", all, err)
	}
	ago(snapshotTimeout)
	w.reconcileSnapshots()
	if left := w.leftovers(); w.held() != 0 || len(left) != 0 {
		t.Errorf("%d are held still, records %v", w.held(), left)
	}

	// It is given up while it is taken: it does not count.
	taker.during = func() {
		all, err := c.Snapshots(ctx)
		must(t, err)
		_, err = c.dropSnapshot(ctx, all[0].ID, Creating, notTaken)
		must(t, err)
	}
	if _, err := c.CreateSnapshot(ctx, taker, "s", e.ID, true); !errors.Is(err, replication.ErrNotCut) {
		t.Errorf("given up meanwhile: %v", err)
	}
	w.reconcileSnapshots()
	if left := w.leftovers(); w.held() != 0 || len(left) != 0 {
		t.Errorf("%d are held still, records %v", w.held(), left)
	}
}

// Whoever takes a snapshot dies at any of its calls of the kvdb. When its node runs again the snapshot is there, or its name can be used.
func TestSnapshotMakerDies(t *testing.T) {
	finished := false
	for at := int64(1); !finished; at++ {
		for _, answerLost := range []bool{false, true} {
			w := newWorld(t, "a", "b")
			v := w.create(Request{Name: "data", Size: gib})
			f := &filter{Store: w.store, cutAt: at, cutLate: answerLost}
			ctx, taker := t.Context(), &fakeTaker{w: w}
			_, err := w.catalogue(f).CreateSnapshot(ctx, taker, "s", v.ID, false)
			finished = err == nil
			w.restart()
			must(t, w.reconciler(w.store, "n-b").Reconcile(ctx)) // which may have it be taken by a process that lives
			must(t, w.reconciler(w.store, "n-a").Reconcile(ctx))
			c := w.catalogue(w.store)
			all, err := c.Snapshots(ctx)
			must(t, err)
			for _, s := range all {
				if s.State == Creating {
					t.Errorf("call %d: snapshot %s is %s for ever", at, s.Name, s.State)
				}
			}
			s, err := c.CreateSnapshot(ctx, taker, "s", v.ID, false)
			if err != nil {
				t.Fatalf("call %d: again: %v", at, err)
			}
			must(t, c.DeleteSnapshot(ctx, s.ID))
			w.reconcileSnapshots()
			if left := w.leftovers(); w.held() != 0 || len(left) != 0 {
				t.Errorf("call %d: %d are held still, records %v", at, w.held(), left)
			}
		}
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// A volume that is made from a snapshot has its replicas where that is held, and is never blank.
func TestRestore(t *testing.T) {
	w := newWorld(t, "a", "b", "c")
	e := w.create(Request{Name: "data", Size: gib, Replicas: 2})
	c, taker, ctx := w.catalogue(w.store), &fakeTaker{w: w}, t.Context()
	s, err := c.CreateSnapshot(ctx, taker, "s", e.ID, true)
	must(t, err)
	var r *Entry
	w.makes(func(ctx context.Context) { r, err = c.Restore(ctx, Request{Name: "restored"}, "s") })
	must(t, err)
	if r.Blank != nil || r.Size != gib || len(r.Placed) != 2 || len(r.Config.ISR) != 2 {
		t.Errorf("%+v", r)
	}
	for _, p := range r.Placed {
		from := w.disks[string(p.Node)].from[LocalReplica{r.ID, p.Replica, p.Pool}]
		if from == nil || from.Snapshot != s.ID || !slices.ContainsFunc(s.Holders, func(h Placement) bool { return h.Node == p.Node && h.Pool == p.Pool }) {
			t.Errorf("replica on %s is made from %+v", p.Node, from)
		}
	}
	if e, err = c.Get(ctx, e.ID); err != nil || e.Blank == nil {
		t.Errorf("a blank volume is not any more, for a snapshot: %v", err)
	}
	again, err := c.Restore(ctx, Request{Name: "restored", Size: gib}, s.ID.String())
	if err != nil || again.ID != r.ID {
		t.Errorf("once more: %v", err)
	}
	for _, bad := range []struct {
		r    Request
		ref  string
		want error
	}{
		{Request{Name: "r2", Size: 2 * gib}, "s", ErrSnapshotSize}, {Request{Name: "r2", Replicas: 3}, "s", ErrTooFewNodes},
		{Request{Name: "r2"}, "none", ErrSnapshotNotFound}, {Request{Name: "data"}, "s", ErrVolumeExists},
		{Request{Name: "r2", Domains: []string{"c"}}, "s", ErrTooFewNodes},
	} {
		if _, err := c.Restore(ctx, bad.r, bad.ref); !errors.Is(err, bad.want) {
			t.Errorf("%+v of %s: %v, want %v", bad.r, bad.ref, err, bad.want)
		}
	}
	must(t, c.DeleteSnapshot(ctx, s.ID))
	if _, err := c.Restore(ctx, Request{Name: "r3"}, s.ID.String()); !errors.Is(err, ErrSnapshotNotFound) {
		t.Errorf("of one that is deleted: %v", err)
	}
}

func TestClone(t *testing.T) {
	w := newWorld(t, "a", "b")
	e := w.create(Request{Name: "data", Size: gib})
	c, taker := w.catalogue(w.store), &fakeTaker{w: w}
	var first, again *Entry
	var err error
	w.makes(func(ctx context.Context) {
		if first, err = c.Clone(ctx, taker, Request{Name: "copy"}, e.ID); err == nil {
			again, err = c.Clone(ctx, taker, Request{Name: "copy", Size: gib}, e.ID)
		}
	})
	must(t, err)
	if first.ID != again.ID || first.Blank != nil || len(taker.asked) != 1 || first.From == nil || !first.From.Clone {
		t.Errorf("%+v, then %+v, %d snapshots", first, again, len(taker.asked))
	}
	if _, err := c.Clone(t.Context(), taker, Request{Name: "data"}, e.ID); !errors.Is(err, ErrVolumeExists) {
		t.Errorf("of a name that is used: %v", err)
	}
	w.reconcileSnapshots()
	if left := w.leftovers(); w.held() != 0 || len(left) != 0 {
		t.Errorf("%d are held still, records %v", w.held(), left)
	}
}

// A kvdb that loses requests and answers leaves no snapshot that nobody knows: each that a replica holds has a record.
func TestSnapshotThroughLosses(t *testing.T) {
	w := newWorld(t, "a", "b")
	e := w.create(Request{Name: "data", Size: gib})
	rng := seeded(t)
	f := &filter{Store: w.store, lose: func() (bool, bool) { return rng.IntN(6) == 0, rng.IntN(6) == 0 }}
	c, taker := w.catalogue(f), &fakeTaker{w: w}
	good := 0
	for i := range 60 {
		name := fmt.Sprintf("s%d", i)
		s, err := c.CreateSnapshot(t.Context(), taker, name, e.ID, true)
		if err == nil {
			good++
			err = c.DeleteSnapshot(t.Context(), s.ID)
		}
		if err != nil && !errors.Is(err, kvdb.ErrUnavailable) && !errors.Is(err, ErrTooManySnapshots) {
			t.Fatal(err)
		}
	}
	clean := w.catalogue(w.store)
	all, err := clean.Snapshots(t.Context())
	must(t, err)
	for _, s := range all {
		if s.State == Creating {
			_, err = clean.dropSnapshot(t.Context(), s.ID, Creating, notTaken)
		} else {
			err = clean.DeleteSnapshot(t.Context(), s.ID)
		}
		must(t, err)
	}
	w.reconcileSnapshots()
	if left := w.leftovers(); w.held() != 0 || len(left) != 0 || good == 0 {
		t.Errorf("%d taken, %d are held still, records %v", good, w.held(), left)
	}
}

// A volume that grows while its snapshot is taken has none: nobody knows which size that has.
func TestSnapshotOfAVolumeThatGrows(t *testing.T) {
	w := newWorld(t, "a", "b")
	e := w.create(Request{Name: "data", Size: gib})
	c, ctx := w.catalogue(w.store), t.Context()
	serves := runtime{w.configs(w.store), new(Verify)}
	if _, err := serves.Attach(ctx, e.ID, AttachOptions{}); err != nil {
		t.Fatal(err)
	}
	taker := &fakeTaker{w: w, during: func() {
		if err := serves.Grow(ctx, e.ID, 2*gib); err != nil {
			t.Fatal(err)
		}
	}}
	_, err := c.CreateSnapshot(ctx, taker, "s", e.ID, true)
	wantErr(t, err, replication.ErrNotCut)
	w.reconcileSnapshots()
	if n := w.held(); n != 0 {
		t.Errorf("%d replicas hold it", n)
	}
	taker.during = nil
	s, err := c.CreateSnapshot(ctx, taker, "s", e.ID, true)
	if err != nil || s.Size != 2*gib {
		t.Errorf("again: %+v, %v", s, err)
	}
}

// freezes are the file systems of all volumes.
type freezes struct {
	mu      sync.Mutex
	frozen  map[replication.VolumeID]replication.UUID
	mounted map[replication.VolumeID]bool
	failing error // of Freeze
	ended   error // of Thaw
	log     []string
}

func (f *freezes) Freeze(_ context.Context, _ replication.NodeID, v replication.VolumeID, op replication.UUID, _ time.Duration) (bool, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.mounted[v] || f.failing != nil {
		return f.mounted[v], f.failing
	}
	if f.frozen == nil {
		f.frozen = map[replication.VolumeID]replication.UUID{}
	}
	f.frozen[v] = op
	f.log = append(f.log, "freeze")
	return true, nil
}

func (f *freezes) Thaw(_ context.Context, _ replication.NodeID, v replication.VolumeID, op replication.UUID) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.frozen[v] != op {
		return ErrNotFrozen
	}
	delete(f.frozen, v)
	f.log = append(f.log, "thaw")
	return f.ended
}
