package volume

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"go.uber.org/zap"

	"github.com/tandem-storage/tandem/internal/testseed"
	"github.com/tandem-storage/tandem/kvdb"
	"github.com/tandem-storage/tandem/replication"
)

// contents is what a volume, a replica or a snapshot has.
type contents [8]int

var errDied = errors.New("the process has died")

// revertWorld is a world with a volume whose replicas, on n-a and n-b, have contents. Replicas refuse what comes from an earlier term than they have promised, as real ones do.
type revertWorld struct {
	*world
	id      replication.VolumeID
	have    map[replication.ReplicaID]*contents
	term    map[replication.ReplicaID]replication.Term
	snaps   map[replication.SnapshotID]contents
	marks   map[replication.ReplicaID][]byte
	monday  *SnapshotRecord
	old     contents
	created *Entry
}

func newRevertWorld(t *testing.T) *revertWorld {
	t.Helper()
	w := &revertWorld{
		world: newWorld(t, "a", "b"), have: map[replication.ReplicaID]*contents{}, term: map[replication.ReplicaID]replication.Term{},
		snaps: map[replication.SnapshotID]contents{}, marks: map[replication.ReplicaID][]byte{}, old: contents{1, 2, 3, 4, 0, 0, 7, 8},
	}
	w.created = w.create(Request{Name: "data", Size: gib, Replicas: 2})
	w.id = w.created.ID
	for _, p := range w.created.Placed {
		w.have[p.Replica] = new(contents)
	}
	return w
}

// node is a process on a node; what it asks of the kvdb goes through s. step is called before each of its steps, and what it returns ends the process.
type revertNode struct {
	w    *revertWorld
	name replication.NodeID
	c    *Catalogue
	step func(what string) error
}

func (w *revertWorld) node(name string, s kvdb.Store, step func(string) error) *revertNode {
	if step == nil {
		step = func(string) error { return nil }
	}
	return &revertNode{w, replication.NodeID(name), w.catalogue(s), step}
}

func (n *revertNode) reverter() *Reverter {
	return &Reverter{Catalogue: n.c, Node: n.name, Borrower: n, Marker: n, Logger: zap.NewNop()}
}

// RunRevert implements RevertRunner: every node is this one.
func (n *revertNode) RunRevert(ctx context.Context, at replication.NodeID, v replication.VolumeID, id replication.UUID) (int64, error) {
	if at != n.name {
		return 0, fmt.Errorf("%w: another node", errDied)
	}
	return n.reverter().RevertHere(ctx, v, id)
}

// MarkReplica implements ReplicaMarker.
func (n *revertNode) MarkReplica(_ context.Context, _ replication.NodeID, r LocalReplica, mark []byte) error {
	if err := n.step("mark"); err != nil {
		return err
	}
	n.w.marks[r.Replica] = mark
	return nil
}

// attach takes the volume over and returns the configuration in force.
func (n *revertNode) attach(ctx context.Context) (*replication.Config, kvdb.Revision, error) {
	cfg, rev, err := n.c.configs.Load(ctx, n.w.id)
	if err != nil {
		return nil, 0, err
	}
	d := replication.DomainID(n.name[2:])
	for _, next := range []func(*replication.Config) *replication.Config{func(c *replication.Config) *replication.Config { return elect(c, d) }, activate} {
		cfg = next(cfg)
		if cfg.Coord.Node == "" || cfg.Coord.Node != n.name {
			return nil, 0, fmt.Errorf("elected %+v", cfg.Coord)
		}
		if rev, err = n.c.configs.CompareAndSwap(ctx, rev, cfg, d); err != nil {
			return nil, 0, err
		}
		for _, r := range cfg.ISR {
			n.w.term[r] = max(n.w.term[r], cfg.Coord.Term)
		}
	}
	return cfg, rev, nil
}

// Borrow implements Borrower.
func (n *revertNode) Borrow(ctx context.Context, _ replication.VolumeID, _ *replication.Coord, use func(Borrowed) error) error {
	defer n.c.configs.Unshown(n.w.id)()
	if err := n.step("attach"); err != nil {
		return err
	}
	cfg, rev, err := n.attach(ctx)
	if err != nil {
		return err
	}
	err = use(&attachedHere{n, cfg})
	if errors.Is(err, errDied) {
		return err
	}
	if dead := n.step("detach"); dead != nil {
		return dead
	}
	_, detachErr := n.c.configs.CompareAndSwap(ctx, rev, detach(cfg), replication.DomainID(n.name[2:]))
	return errors.Join(err, detachErr)
}

// attachedHere implements Borrowed.
type attachedHere struct {
	n   *revertNode
	cfg *replication.Config
}

func (b *attachedHere) InForce() *replication.Config { return b.cfg }

func (b *attachedHere) write(i, v int) error {
	for _, r := range b.cfg.ISR {
		if err := b.n.step("write"); err != nil {
			return err
		}
		if b.n.w.term[r] > b.cfg.Coord.Term {
			return replication.ErrFenced
		}
		b.n.w.have[r][i] = v
	}
	return nil
}

// settle makes in-sync replicas equal, as a takeover does.
func (b *attachedHere) settle() {
	for _, r := range b.cfg.ISR[1:] {
		*b.n.w.have[r] = *b.n.w.have[b.cfg.ISR[0]]
	}
}

func (b *attachedHere) Snapshot(_ context.Context, id replication.SnapshotID) ([]replication.ReplicaID, error) {
	if err := b.n.step("cut"); err != nil {
		return nil, err
	}
	b.settle()
	b.n.w.snaps[id] = *b.n.w.have[b.cfg.ISR[0]]
	if err := b.n.step("cut was made"); err != nil {
		return nil, err
	}
	return b.cfg.ISR, nil
}

func (b *attachedHere) PutBack(_ context.Context, id, base replication.SnapshotID, before func() error) (written int64, err error) {
	b.settle()
	from, has := b.n.w.snaps[id]
	was, had := b.n.w.snaps[base]
	if !has || !had {
		return 0, ErrSnapshotNotHeld
	}
	for i := range from {
		if err := before(); err != nil {
			return written, err
		}
		if from[i] == was[i] {
			continue
		}
		if err := b.write(i, from[i]); err != nil {
			return written, err
		}
		written++
	}
	return written, nil
}

// take is a SnapshotTaker for a consumer's snapshot of a volume that is detached.
type takesAttached struct {
	takerOf
	n *revertNode
}

func (t takesAttached) Take(ctx context.Context, _ replication.NodeID, _ replication.VolumeID, id replication.SnapshotID, _ bool) (holders []replication.ReplicaID, _ error) {
	cfg, rev, err := t.n.attach(ctx)
	if err != nil {
		return nil, errors.Join(replication.ErrNotCut, err)
	}
	b := &attachedHere{t.n, cfg}
	if holders, err = b.Snapshot(ctx, id); err != nil {
		return nil, err
	}
	_, err = t.n.c.configs.CompareAndSwap(ctx, rev, detach(cfg), replication.DomainID(t.n.name[2:]))
	return holders, err
}

// consume attaches the volume on a node that is in order, as a consumer does, has it hold p, and detaches it. It returns what it has found.
func (w *revertWorld) consume(name string, p contents) (found contents, err error) {
	n := w.node(name, w.store, nil)
	cfg, rev, err := n.attach(w.t.Context())
	if err != nil {
		return found, err
	}
	b := &attachedHere{n, cfg}
	b.settle()
	found = *w.have[cfg.ISR[0]]
	for i, v := range p {
		must(w.t, b.write(i, v))
	}
	_, err = n.c.configs.CompareAndSwap(w.t.Context(), rev, detach(cfg), replication.DomainID(n.name[2:]))
	return found, err
}

// begin has the volume hold what monday has, and then p.
func (w *revertWorld) begin(p contents) {
	w.t.Helper()
	if _, err := w.consume("n-a", w.old); err != nil {
		w.t.Fatal(err)
	}
	n := w.node("n-a", w.store, nil)
	var err error
	if w.monday, err = n.c.CreateSnapshot(w.t.Context(), takesAttached{n: n}, "monday", w.id, false); err != nil {
		w.t.Fatal(err)
	}
	if _, err := w.consume("n-b", p); err != nil {
		w.t.Fatal(err)
	}
}

func (w *revertWorld) entry() *Entry {
	w.t.Helper()
	e, err := w.catalogue(w.store).Get(w.t.Context(), w.id)
	if err != nil {
		w.t.Fatal(err)
	}
	return e
}

// imported is what an import of all that replicas know would say of a revert.
func (w *revertWorld) imported() *Reverting {
	w.t.Helper()
	e := w.entry()
	ev := &evidence{id: w.id}
	for _, p := range e.Placed {
		ev.found = append(ev.found, FoundReplica{LocalReplica: LocalReplica{w.id, p.Replica, p.Pool}, Node: p.Node, Revert: w.marks[p.Replica]})
	}
	r, err := ev.revertOf(e.Config, ev.found)
	if err != nil {
		w.t.Fatal(err)
	}
	return r
}

// check holds the volume to what is promised at every moment: whoever can have it finds all of it or nothing of it put back, and where it is partly put back an import would know.
func (w *revertWorld) check(was contents) {
	w.t.Helper()
	e := w.entry()
	for _, r := range e.Config.ISR {
		mixed := *w.have[r] != was && *w.have[r] != w.old
		if mixed && w.imported() == nil {
			w.t.Errorf("replica %s has %v, and no replica knows of a revert", r, *w.have[r])
		}
	}
	if e.Reverting == nil {
		return
	}
	for _, d := range w.domains {
		if _, err := w.consume("n-"+d, contents{}); !errors.Is(err, ErrReverting) {
			w.t.Errorf("a consumer on n-%s: %v", d, err)
		}
	}
	c := w.catalogue(w.store)
	n := w.node("n-a", w.store, nil)
	if _, err := c.CreateSnapshot(w.t.Context(), takesAttached{n: n}, "half", w.id, false); !errors.Is(err, ErrReverting) {
		w.t.Errorf("a snapshot of what is partly put back: %v", err)
	}
	if err := c.DeleteSnapshot(w.t.Context(), w.monday.ID); !errors.Is(err, ErrReverting) {
		w.t.Errorf("the snapshot is deleted: %v", err)
	}
	if s, err := c.Snapshot(w.t.Context(), e.Reverting.BeforeName); err == nil && s.State == Ready {
		if err := c.DeleteSnapshot(w.t.Context(), s.ID); !errors.Is(err, ErrReverting) {
			w.t.Errorf("the snapshot of before is deleted: %v", err)
		}
	}
}

// isDone checks that the volume has been put back, on all replicas, and what it had before is kept.
func (w *revertWorld) isDone(was contents, before string) {
	w.t.Helper()
	e := w.entry()
	if e.Reverting != nil || e.Config.Phase != replication.PhaseDetached || len(e.Config.ISR) != 2 {
		w.t.Fatalf("%+v, %+v", e.Reverting, e.Config)
	}
	for _, r := range e.Config.ISR {
		if *w.have[r] != w.old {
			w.t.Errorf("replica %s has %v, want %v", r, *w.have[r], w.old)
		}
	}
	s, err := w.catalogue(w.store).Snapshot(w.t.Context(), before)
	if err != nil || w.snaps[s.ID] != was {
		w.t.Errorf("before: %v, %v, want %v", s, w.snaps[s.ID], was)
	}
	if r := w.imported(); r != nil {
		w.t.Errorf("an import would say that it is being put back: %+v", r)
	}
}

func TestRevert(t *testing.T) {
	w := newRevertWorld(t)
	was := contents{9, 2, 0, 0, 5, 0, 7, 6}
	w.begin(was)
	ctx, n := t.Context(), w.node("n-b", w.store, nil)
	other := w.create(Request{Name: "other", Size: gib})
	refused := func(want error, v replication.VolumeID, ref string) {
		t.Helper()
		if _, err := n.c.Revert(ctx, n, v, ref); !errors.Is(err, want) {
			t.Errorf("%v, want %v", err, want)
		}
		if e := w.entry(); e.Reverting != nil {
			t.Fatal("begun")
		}
	}
	refused(ErrSnapshotNotFound, w.id, "tuesday")
	refused(replication.ErrVolumeNotFound, replication.VolumeID{9}, "monday")
	refused(ErrInvalid, other.ID, "monday")
	cfg, rev, err := n.attach(ctx)
	must(t, err)
	refused(ErrAttached, w.id, "monday")
	_, err = n.c.configs.CompareAndSwap(ctx, rev, detach(cfg), "b")
	must(t, err)
	err = n.c.Publish(ctx, w.id, "n-a", false)
	must(t, err)
	refused(ErrPublished, w.id, "monday")
	must(t, n.c.Unpublish(ctx, w.id, "n-a"))
	for i := range w.view.Nodes {
		w.view.Nodes[i].Online = false
	}
	refused(ErrSnapshotNotHeld, w.id, "monday")
	for i := range w.view.Nodes {
		w.view.Nodes[i].Online = true
	}

	done, err := n.c.Revert(ctx, n, w.id, "monday")
	must(t, err)
	if done.Written != 5 {
		t.Errorf("%d blocks written", done.Written)
	}
	w.isDone(was, done.Before)
	// And back.
	back, err := n.c.Revert(ctx, n, w.id, done.Before)
	must(t, err)
	if *w.have[w.created.Placed[0].Replica] != was || back.Before == done.Before {
		t.Errorf("%v, %+v", *w.have[w.created.Placed[0].Replica], back)
	}
	if _, err := n.c.AbandonRevert(ctx, n, w.id); !errors.Is(err, ErrNotReverting) {
		t.Errorf("abandoned: %v", err)
	}
}

// dying ends its process with the first call that does not get through.
type dying struct {
	*filter
	end func()
}

func (d dying) Get(ctx context.Context, key string) (kvdb.KV, error) {
	kv, err := d.filter.Get(ctx, key)
	return kv, d.died(err)
}

func (d dying) List(ctx context.Context, prefix string) ([]kvdb.KV, kvdb.Revision, error) {
	kvs, rev, err := d.filter.List(ctx, prefix)
	return kvs, rev, d.died(err)
}

func (d dying) Txn(ctx context.Context, t kvdb.Txn) (kvdb.TxnResult, error) {
	res, err := d.filter.Txn(ctx, t)
	return res, d.died(err)
}

func (d dying) died(err error) error {
	if errors.Is(err, kvdb.ErrUnavailable) {
		d.end()
	}
	return err
}

// Whoever does it dies before each of its steps, and each of its calls of the kvdb, once with the call carried out and once without; the command is repeated, on the same node or the other.
func TestRevertDies(t *testing.T) {
	was := contents{9, 2, 0, 0, 5, 0, 7, 6}
	for _, late := range []bool{false, true} {
		for _, kv := range []bool{false, true} {
			if late && !kv {
				continue
			}
			died := 0
			for at := int64(1); ; at++ {
				w := newRevertWorld(t)
				w.begin(was)
				f := &filter{Store: w.store}
				ctx, cancel := context.WithCancel(t.Context())
				steps := int64(0)
				step := func(string) error {
					if steps++; !kv && steps >= at {
						cancel()
						return errDied
					}
					return nil
				}
				if kv {
					f.cutAt, f.cutLate = at, late
				}
				n := w.node("n-b", dying{f, cancel}, step)
				_, err := n.c.Revert(ctx, n, w.id, "monday")
				cancel()
				if err == nil {
					break
				}
				died++
				w.check(was)
				next := []string{"n-a", "n-b"}[at%2]
				if e := w.entry(); coordinator(e.Config).Node != "" && string(coordinator(e.Config).Node) != next {
					next = string(coordinator(e.Config).Node)
				}
				m := w.node(next, w.store, nil)
				begun := w.entry().Reverting
				if begun == nil { // nothing had begun, or it had ended
					if _, err := w.consume(next, was); err != nil {
						t.Fatal(err)
					}
				}
				done, err := m.c.Revert(t.Context(), m, w.id, "monday")
				if err != nil {
					t.Fatalf("kvdb %v, late %v, died at %d: %v", kv, late, at, err)
				}
				if begun != nil && done.Before != begun.BeforeName {
					t.Errorf("another snapshot of before: %s, %s", done.Before, begun.BeforeName)
				}
				w.isDone(was, done.Before)
				if t.Failed() {
					t.Fatalf("kvdb %v, late %v, died at %d", kv, late, at)
				}
			}
			if died < 10 {
				t.Errorf("it has died only %d times", died)
			}
		}
	}
}

// Between any two steps anything else may happen: others go on with it as if who does it were dead, consumers attach when they may and write, it is abandoned. What was
// confirmed to a consumer after the end stays.
func TestRevertRaces(t *testing.T) {
	rng := rand.New(rand.NewPCG(testseed.Of(t), 0))
	for range 150 {
		w := newRevertWorld(t)
		was := contents{9, 2, 0, 0, 5, 0, 7, 6}
		w.begin(was)
		expect := w.old // or what a consumer has written since it ended
		abandoned := false
		deep := 0
		var n *revertNode
		online := func(name replication.NodeID, is bool) {
			for i := range w.view.Nodes {
				if w.view.Nodes[i].Name == string(name) {
					w.view.Nodes[i].Online = is
				}
			}
		}
		consume := func() {
			name := []string{"n-a", "n-b"}[rng.IntN(2)]
			free := w.entry().Reverting == nil
			p := contents{rng.IntN(9), rng.IntN(9), rng.IntN(9), 99}
			found, err := w.consume(name, p)
			switch {
			case free != (err == nil):
				t.Errorf("a consumer: %v, it is being put back: %v", err, !free)
			case err != nil:
			case !abandoned && found != expect:
				t.Errorf("a consumer found %v, want %v", found, expect)
			default:
				expect, abandoned = p, false
			}
		}
		step := func(string) error {
			if deep > 0 || rng.IntN(3) > 0 {
				return nil
			}
			deep++
			defer func() { deep-- }()
			e := w.entry()
			switch rng.IntN(3) {
			case 0: // who is at it counts as dead, and another one goes on with it
				if e.Reverting == nil {
					break
				}
				online("n-b", false)
				defer online("n-b", true)
				m := w.node("n-a", w.store, nil)
				if _, err := m.reverter().RevertHere(t.Context(), w.id, e.Reverting.ID); err != nil {
					t.Errorf("the other one: %v", err)
				}
				if rng.IntN(2) == 0 {
					consume()
				}
			case 1:
				if e.Reverting == nil {
					consume()
				} else {
					w.check(was)
				}
			case 2:
				if e.Reverting == nil || rng.IntN(3) > 0 {
					break
				}
				online("n-b", false)
				defer online("n-b", true)
				m := w.node("n-a", w.store, nil)
				if _, err := m.c.AbandonRevert(t.Context(), m, w.id); err != nil {
					t.Errorf("abandon: %v", err)
				}
				abandoned = true
				consume()
			}
			return nil
		}
		if left := rng.IntN(20); left > 0 { // it was begun by somebody who has died
			ctx, cancel := context.WithCancel(t.Context())
			first := w.node("n-b", w.store, func(string) error {
				if left--; left == 0 {
					cancel()
					return errDied
				}
				return nil
			})
			_, _ = first.c.Revert(ctx, first, w.id, "monday")
			cancel()
		}
		n = w.node("n-b", w.store, step)
		_, err := n.c.Revert(t.Context(), n, w.id, "monday")
		deep++
		if err != nil && w.entry().Reverting != nil {
			t.Errorf("%v, and it goes on", err)
		}
		if !abandoned {
			consume()
		}
		if t.Failed() {
			t.Fatal(err)
		}
	}
}

// An import goes by what replicas were told, not by what the kvdb says, which may be old.
func TestRevertImported(t *testing.T) {
	mark := func(id byte, epoch replication.Epoch, done bool) []byte {
		b, err := json.Marshal(revertMark{Reverting{ID: replication.UUID{id}, Name: "monday"}, epoch, done})
		must(t, err)
		return b
	}
	for name, tc := range map[string]struct {
		a, b []byte
		isr  string
		want byte
	}{
		"none":                         {nil, nil, "AB", 0},
		"in the middle":                {mark(1, 5, false), mark(1, 5, false), "AB", 1},
		"one was told":                 {mark(1, 5, false), nil, "AB", 1},
		"done":                         {mark(1, 5, true), mark(1, 5, true), "AB", 0},
		"one knows that it is done":    {mark(1, 5, true), mark(1, 5, false), "AB", 0},
		"away at the end, back since":  {mark(1, 6, true), mark(1, 5, false), "AB", 0},
		"away at the end, away":        {mark(1, 6, true), mark(1, 5, false), "A", 0},
		"who knows is not in sync":     {mark(1, 6, true), mark(1, 5, false), "B", 1},
		"done, and begun again":        {mark(2, 9, false), mark(1, 6, true), "AB", 2},
		"begun again, the other is it": {mark(1, 6, true), mark(2, 9, false), "A", 2},
	} {
		t.Run(name, func(t *testing.T) {
			a, b := foundAs("A", 10, 10, replication.MemberInSync, "AB", ""), foundAs("B", 10, 10, replication.MemberInSync, "AB", "")
			a.Revert, b.Revert = tc.a, tc.b
			if tc.isr != "AB" {
				for _, f := range []*FoundReplica{&a, &b} {
					if f.ISR = reps(tc.isr); !slices.Contains(f.ISR, f.Replica) {
						f.State = replication.MemberStale
					}
					for _, m := range []replication.ReplicaID{a.Replica, b.Replica} {
						if f.State == replication.MemberInSync && m != f.Replica {
							f.Missing = append(f.Missing, m)
						}
					}
				}
			}
			old := specOf(Ready)
			old.Reverting = &Reverting{ID: replication.UUID{77}} // what the kvdb says is as old as the rest
			p := planImport(&evidence{id: replication.VolumeID{9}, spec: old, life: &life{id: lifeNow}, found: []FoundReplica{a, b}})
			if p.action != importWrite {
				t.Fatalf("%+v", p)
			}
			if got := p.spec.Reverting; (got == nil) != (tc.want == 0) || got != nil && got.ID != (replication.UUID{tc.want}) {
				t.Errorf("%+v, want %d", got, tc.want)
			}
		})
	}
	a := foundAs("A", 10, 10, replication.MemberInSync, "A", "")
	a.Revert = []byte("{")
	if p := planImport(&evidence{id: replication.VolumeID{9}, spec: specOf(Ready), life: &life{id: lifeNow}, found: []FoundReplica{a}}); p.action != importRefused {
		t.Errorf("a mark that cannot be read: %+v", p)
	}
}
