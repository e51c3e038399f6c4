package volume

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/tandem-storage/tandem/kvdb"
	"github.com/tandem-storage/tandem/replication"
)

// pair makes two volumes with a replica in each of the domains a and b.
func pair(w *world) (v, u *Entry) {
	return w.create(Request{Name: "v", Size: gib}), w.create(Request{Name: "u", Size: gib})
}

// lose takes a volume's replicas in domain b out of its in-sync set, by a coordinator in domain a, which makes the volume ACTIVE if it is not.
func (w *world) lose(v replication.VolumeID) {
	w.t.Helper()
	w.change(v, func(n *replication.Config) {
		n.Phase = replication.PhaseActive
		n.Coord = &replication.Coord{Node: "n-a", Domain: "a", AttachID: replication.AttachID{1}, Term: 2}
		n.ISR = slices.DeleteFunc(n.ISR, func(r replication.ReplicaID) bool { return n.Members[r].Domain == "b" })
	}, "evict")
}

func (w *world) change(v replication.VolumeID, f func(n *replication.Config), cause string) {
	w.t.Helper()
	c := w.configs(w.store)
	cfg, _, err := c.Load(w.t.Context(), v)
	if err != nil {
		w.t.Fatal(err)
	}
	n := nextConfig(cfg, cfg.Phase, cause)
	f(n)
	for id, m := range n.Members {
		if m.State = replication.MemberStale; n.InISR(id) {
			m.State = replication.MemberInSync
		}
		n.Members[id] = m
	}
	n.History[len(n.History)-1].ISR = n.ISR
	record, err := put(c.keys.config(v), n)
	if err != nil {
		w.t.Fatal(err)
	}
	if _, err := w.store.Txn(w.t.Context(), kvdb.Txn{Then: []kvdb.Op{record}}); err != nil {
		w.t.Fatal(err)
	}
}

// A volume is in one group at most, is not deleted in it, and a group is what it was asked to be.
func TestGroups(t *testing.T) {
	w := newWorld(t, "a", "b")
	c, ctx := w.catalogue(w.store), t.Context()
	v, u := pair(w)
	ids := []replication.VolumeID{v.ID, u.ID}
	e, err := c.CreateGroup(ctx, "g", replication.FailoverAutomatic, ids)
	if err != nil || len(e.Volumes) != 2 || e.State() != replication.Linked {
		t.Fatalf("%+v, %v", e, err)
	}
	if _, err := c.CreateGroup(ctx, "g", replication.FailoverAutomatic, []replication.VolumeID{u.ID, v.ID}); err != nil {
		t.Errorf("the same group again: %v", err)
	}
	_, err = c.CreateGroup(ctx, "g", replication.FailoverManual, ids)
	wantErr(t, err, ErrGroupExists)
	_, err = c.CreateGroup(ctx, "h", replication.FailoverAutomatic, ids[:1])
	wantErr(t, err, ErrInGroup)
	_, err = c.CreateGroup(ctx, "h", replication.FailoverAutomatic, []replication.VolumeID{{1}})
	wantErr(t, err, replication.ErrVolumeNotFound)
	_, err = c.CreateGroup(ctx, "../x", replication.FailoverAutomatic, nil)
	wantErr(t, err, ErrInvalid)
	wantErr(t, c.Delete(ctx, v.ID), ErrInGroup)
	if got, err := c.Get(ctx, v.ID); err != nil || got.Group != "g" || got.State != Ready {
		t.Errorf("%+v, %v", got, err)
	}
	if e, err = c.ChangeGroup(ctx, "g", nil, ids[:1]); err != nil || e.Has(v.ID) || !e.Has(u.ID) {
		t.Errorf("%+v, %v", e, err)
	}
	w.lose(v.ID)
	if e, err = c.ChangeGroup(ctx, "g", ids[:1], nil); err != nil || e.Splits["b"].Broken == "" || e.State() != replication.Split {
		t.Errorf("a volume that is not in sync in b was put into it: %+v, %v", e, err)
	}
	if im := e.ImageIn("b", e.Configs); im.Consistent {
		t.Errorf("%+v", im)
	}
	if err := c.DeleteGroup(ctx, "g"); err != nil {
		t.Error(err)
	}
	if got, err := c.Get(ctx, v.ID); err != nil || got.Group != "" {
		t.Errorf("%+v, %v", got, err)
	}
	_, err = c.Group(ctx, "g")
	wantErr(t, err, ErrGroupNotFound)
}

// Two who put one volume into two groups at once: one is refused.
func TestOneGroup(t *testing.T) {
	w := newWorld(t, "a", "b")
	v, _ := pair(w)
	f := &filter{Store: w.store}
	c := w.catalogue(f)
	once := sync.OnceFunc(func() {
		if _, err := w.catalogue(w.store).CreateGroup(t.Context(), "first", replication.FailoverManual, []replication.VolumeID{v.ID}); err != nil {
			t.Error(err)
		}
	})
	f.beforeTxn = func(kvdb.Txn) { once() }
	_, err := c.CreateGroup(t.Context(), "second", replication.FailoverManual, []replication.VolumeID{v.ID})
	wantErr(t, err, ErrInGroup)
}

// A volume is put into a group between the read of an attach, which finds none, and its election: the election is lost, so that nothing is sent by
// one who does not know what the group is split from. A coordinator that is elected already is not disturbed: the others wait for it.
func TestGroupedDuringAttach(t *testing.T) {
	w := newWorld(t, "a", "b")
	c, ctx := w.catalogue(w.store), t.Context()
	v, u := pair(w)
	keeper, configs := NewGroupKeeper(c, "a", nil, zap.NewNop()), w.configs(w.store)
	cfg, rev, err := configs.Load(ctx, v.ID)
	if err != nil {
		t.Fatal(err)
	}
	if in, err := keeper.Grouped(ctx, v.ID); err != nil || in {
		t.Fatal(in, err)
	}
	if _, err := c.CreateGroup(ctx, "g", replication.FailoverAutomatic, []replication.VolumeID{u.ID, v.ID}); err != nil {
		t.Fatal(err)
	}
	_, err = configs.CompareAndSwap(ctx, rev, elect(cfg, "a"), "a")
	wantErr(t, err, ErrConflict)
	again, rev, err := configs.Load(ctx, v.ID)
	if err != nil || again.Epoch != cfg.Epoch || again.ProposalID != cfg.ProposalID {
		t.Fatalf("%+v, %v: the configuration itself is another one", again, err)
	}
	if in, err := keeper.Grouped(ctx, v.ID); err != nil || !in {
		t.Fatal(in, err)
	}
	elected := elect(again, "a")
	if rev, err = configs.CompareAndSwap(ctx, rev, elected, "a"); err != nil {
		t.Fatal(err)
	}
	if err := c.DeleteGroup(ctx, "g"); err != nil {
		t.Fatal(err)
	}
	if _, err := c.CreateGroup(ctx, "h", replication.FailoverAutomatic, []replication.VolumeID{u.ID, v.ID}); err != nil {
		t.Fatal(err)
	}
	if _, err := configs.CompareAndSwap(ctx, rev, activate(elected), "a"); err != nil {
		t.Errorf("an elected coordinator is disturbed: %v", err)
	}
}

// grouped is a volume of which the test says how it stands.
type grouped struct {
	id    replication.VolumeID
	st    replication.GroupStatus
	told  replication.GroupOrder
	asked int
}

func (g *grouped) ID() replication.VolumeID                                     { return g.id }
func (g *grouped) GroupStatus(context.Context) (replication.GroupStatus, error) { return g.st, nil }
func (g *grouped) SetGroup(_ context.Context, v replication.GroupOrder) (replication.GroupStatus, error) {
	g.told = v
	g.asked++
	if slices.Contains(v.Left, "b") {
		g.st.Kept, g.st.Lost = append(g.st.Kept, g.st.Lost...), nil
	}
	return g.st, nil
}

// What a keeper writes and tells through a split and back; and a link that is compared with the configurations.
func TestGroupKeeper(t *testing.T) {
	w := newWorld(t, "a", "b")
	c, ctx := w.catalogue(w.store), t.Context()
	v, u := pair(w)
	if _, err := c.CreateGroup(ctx, "g", replication.FailoverAutomatic, []replication.VolumeID{v.ID, u.ID}); err != nil {
		t.Fatal(err)
	}
	w.change(u.ID, func(n *replication.Config) {
		n.Phase, n.Coord = replication.PhaseActive, &replication.Coord{Node: "n-a", Domain: "a", AttachID: replication.AttachID{2}, Term: 2}
	}, "activate")
	k := NewGroupKeeper(c, "a", nil, zap.NewNop())
	tend := func(g *grouped) *GroupEntry {
		t.Helper()
		if _, err := k.tend(ctx, g); err != nil {
			t.Fatal(err)
		}
		e, err := c.Group(ctx, "g")
		if err != nil {
			t.Fatal(err)
		}
		return e
	}
	gv, gu := &grouped{id: v.ID, st: replication.GroupStatus{Term: 2}}, &grouped{id: u.ID, st: replication.GroupStatus{Term: 2}}
	if e := tend(gv); e.State() != replication.Linked || !gv.told.In || e.MayFailOver("b", e.Configs) != nil {
		t.Errorf("linked: %+v, told %+v", e.Group, gv.told)
	}
	w.lose(v.ID)
	gv.st.Lost = []replication.DomainID{"b"}
	if e := tend(gv); e.State() != replication.Split || len(gv.told.Left) > 0 || !errors.Is(e.MayFailOver("b", e.Configs), replication.ErrGroupMixed) {
		t.Errorf("one has left: %+v, told %+v", e.Group, gv.told)
	}
	if tend(gu); !slices.Equal(gu.told.Leave, []replication.DomainID{"b"}) {
		t.Errorf("the other one is told %+v", gu.told)
	}
	w.lose(u.ID)
	gu.st.Lost = []replication.DomainID{"b"}
	tend(gv)
	if e := tend(gu); !e.ImageIn("b", e.Configs).Consistent || e.ImageIn("b", e.Configs).InSync {
		t.Errorf("both have left: %+v %+v", e.ImageIn("b", e.Configs), e.Splits["b"])
	}
	join := func(n *replication.Config) {
		n.ISR = nil
		for id := range n.Members {
			n.ISR = append(n.ISR, id)
		}
	}
	w.change(v.ID, join, replication.CauseJoin)
	gv.st = replication.GroupStatus{Term: 2}
	if e := tend(gv); e.State() != replication.Split || e.ImageIn("b", e.Configs).Consistent {
		t.Errorf("one is back: %+v", e.ImageIn("b", e.Configs))
	}
	w.change(u.ID, join, replication.CauseJoin)
	gu.st = replication.GroupStatus{Term: 2}
	// One is lost again while the other one's keeper links the group.
	f := &filter{Store: w.store}
	once := sync.OnceFunc(func() { w.lose(v.ID) })
	f.beforeTxn = func(kvdb.Txn) { once() }
	k.c = w.catalogue(f)
	if e := tend(gu); e.State() != replication.Split {
		t.Errorf("linked by configurations that are not in force any more: %+v", e.Group)
	}
	w.change(v.ID, join, replication.CauseJoin)
	if e := tend(gu); e.State() != replication.Linked {
		t.Errorf("all are back: %+v", e.Group)
	}
}

// Volumes in no group are told so once, and again when something has happened to them, when they are attached anew, and now and then. One that comes into a group, or
// leaves it, is told with the next look.
func TestGroupKeeperOfMany(t *testing.T) {
	w := newWorld(t, "a", "b")
	c, ctx := w.catalogue(w.store), t.Context()
	v, u := pair(w)
	gv, gu := &grouped{id: v.ID, st: replication.GroupStatus{Term: 2}}, &grouped{id: u.ID, st: replication.GroupStatus{Term: 2}}
	vs := []GroupVolume{gv, gu}
	k := NewGroupKeeper(c, "a", func() []GroupVolume { return slices.Clone(vs) }, zap.NewNop())
	look := func(what string, first, second int) {
		t.Helper()
		gv.asked, gu.asked = 0, 0
		if !k.look(ctx) {
			t.Fatalf("%s: not looked after", what)
		}
		if gv.asked != first || gu.asked != second {
			t.Errorf("%s: told %d and %d times, want %d and %d", what, gv.asked, gu.asked, first, second)
		}
	}
	look("first", 1, 1)
	look("nothing happened", 0, 0)
	k.Changed(u.ID)
	look("to one something has", 0, 1)
	look("and no more", 0, 0)
	gu = &grouped{id: u.ID, st: gu.st}
	vs[1] = gu
	look("attached anew", 0, 1)
	if _, err := c.CreateGroup(ctx, "g", replication.FailoverAutomatic, []replication.VolumeID{v.ID, u.ID}); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if look("in a group", 1, 1); !gv.told.In || !gu.told.In {
			t.Errorf("told %+v and %+v", gv.told, gu.told)
		}
	}
	if err := c.DeleteGroup(ctx, "g"); err != nil {
		t.Fatal(err)
	}
	if look("out of it", 1, 1); gv.told.In || gu.told.In {
		t.Errorf("told %+v and %+v", gv.told, gu.told)
	}
	look("and no more", 0, 0)
	k.allAt = k.allAt.Add(-groupLookAll)
	look("now and then", 1, 1)
}

// cutters are coordinators that note what they are asked, and do wrong what the test says.
type cutters struct {
	mu       sync.Mutex
	held     map[replication.VolumeID]replication.UUID
	onHeld   func()
	silent   replication.VolumeID // does not answer HOLD
	forgets  replication.VolumeID // its deadline has released it before RELEASE
	released int
}

func (c *cutters) HoldForCut(ctx context.Context, _ replication.NodeID, v replication.VolumeID, op replication.UUID, _ time.Duration) error {
	if v == c.silent {
		<-ctx.Done()
		return ctx.Err()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.held[v] = op
	if c.onHeld != nil {
		c.onHeld()
	}
	return nil
}

func (c *cutters) Cut(_ context.Context, _ replication.NodeID, v replication.VolumeID, op replication.UUID) (replication.CutPosition, bool, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return replication.CutPosition{Term: 2, Writes: 7}, c.held[v] == op, nil
}

func (c *cutters) ReleaseCut(_ context.Context, _ replication.NodeID, v replication.VolumeID, op replication.UUID) (bool, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	was := c.held[v] == op && v != c.forgets
	delete(c.held, v)
	c.released++
	return was, nil
}

// A cut counts only if everybody was held to the end (I28), and leaves nobody held.
func TestCutGroup(t *testing.T) {
	w := newWorld(t, "a", "b")
	c := w.catalogue(w.store)
	v, u := pair(w)
	idle := w.create(Request{Name: "idle", Size: gib})
	if _, err := c.CreateGroup(t.Context(), "g", replication.FailoverManual, []replication.VolumeID{v.ID, u.ID, idle.ID}); err != nil {
		t.Fatal(err)
	}
	w.lose(v.ID)
	w.lose(u.ID)
	cut := func(cs *cutters) (*Cut, error) {
		cs.held = map[replication.VolumeID]replication.UUID{}
		got, err := c.cutGroup(t.Context(), cs, "g", 50*time.Millisecond)
		if len(cs.held) > 0 || cs.released != 2 {
			t.Errorf("%d volumes are held still, %d were released", len(cs.held), cs.released)
		}
		return got, err
	}
	got, err := cut(&cutters{})
	if err != nil || len(got.Positions) != 3 || got.Positions[v.ID].Writes != 7 || got.Positions[idle.ID].Term != 0 {
		t.Errorf("%+v, %v", got, err)
	}
	_, err = cut(&cutters{silent: v.ID})
	wantErr(t, err, ErrNotCut)
	_, err = cut(&cutters{forgets: u.ID})
	wantErr(t, err, ErrNotCut)
	_, err = cut(&cutters{onHeld: sync.OnceFunc(func() { w.lose(idle.ID) })})
	wantErr(t, err, ErrNotCut)
	_, err = c.CutGroup(t.Context(), &cutters{}, "g", time.Minute)
	wantErr(t, err, ErrInvalid)
}

// Who moves volumes is told of their groups, whose policy goes for them; and nobody moves those of a group that cannot be read.
func TestGroupFacts(t *testing.T) {
	w := newWorld(t, "a", "b")
	c, ctx := w.catalogue(w.store), t.Context()
	var ids []replication.VolumeID
	for _, name := range []string{"u", "v", "w"} {
		ids = append(ids, w.create(Request{Name: name, Size: gib, Replicas: 2, Failover: FailoverManual}).ID)
	}
	for name, v := range map[string]replication.VolumeID{"auto": ids[0], "hand": ids[1], "ill": ids[2]} {
		f := FailoverAutomatic
		if name == "hand" {
			f = FailoverManual
		}
		if _, err := c.CreateGroup(ctx, name, f, []replication.VolumeID{v}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := kvdb.Put(ctx, w.store, "/tandem/c/group/ill", []byte("{")); err != nil {
		t.Fatal(err)
	}
	vols, err := NewDomainView(w.configs(w.store)).Facts(ctx)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, v := range vols {
		got[v.Name] = fmt.Sprintf("%s manual=%v readable=%v", v.Group, v.Manual, v.Unreadable == "")
	}
	want := map[string]string{"u": "auto manual=false readable=true", "v": "hand manual=true readable=true", "w": "ill manual=false readable=false"}
	if !maps.Equal(got, want) {
		t.Errorf("%v", got)
	}
}
