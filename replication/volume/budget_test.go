package volume

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/tandem-storage/tandem/replication"
)

// budgetVolume is one that is to be resynced, as seen from its coordinator, with what its volume does about it (resync.go).
type budgetVolume struct {
	coord, target int
	of            hostKey
	left          int64 // bytes
	granted       bool
	rate          int64 // of the node of the target
	asked         int64
	began         int64
	until         int64
}

// budgetWorld is nodes that resync each other's replicas, a tenth of a second at a time. Each node is a domain and has one pool.
type budgetWorld struct {
	t      *testing.T
	now    int64
	nodes  []budget
	dead   []bool
	vs     []*budgetVolume
	copied []int64 // to each node in this step, bytes
}

const budgetFloor = 16 << 20

func newBudgetWorld(t *testing.T, timing ...Timing) *budgetWorld {
	w := &budgetWorld{t: t, now: 1e9, nodes: make([]budget, len(timing)), dead: make([]bool, len(timing)), copied: make([]int64, len(timing))}
	for i := range timing {
		timing[i].ResyncFloor = budgetFloor
		timing[i].ensureDefaults()
		w.nodes[i].init(&timing[i])
	}
	return w
}

func (w *budgetWorld) add(coord, target int, left int64) *budgetVolume {
	v := &budgetVolume{coord: coord, target: target, of: resyncs(1)[0], left: left}
	w.vs = append(w.vs, v)
	return v
}

// step lets each volume do what takeTurn does, in the order given, and copy.
func (w *budgetWorld) step(order []int) {
	const tick = int64(1e8)
	w.now += tick
	clear(w.copied)
	for _, i := range order {
		v := w.vs[i]
		if v.left <= 0 || w.dead[v.coord] {
			continue
		}
		b, src := &w.nodes[v.coord], v.of
		src.id[0]++
		claims := []claim{{&b.node, v.of}, {b.pool("p"), src}}
		if !v.granted && w.now < v.until {
			continue
		}
		runs := v.granted && v.began != 0
		rate, ok := takeAll(w.now, runs, claims)
		if !ok {
			if v.granted {
				w.t.Fatalf("%v lost the turn that it has", v.of)
			}
			continue
		}
		if !v.granted || w.now-v.asked >= turnRenew {
			v.asked = w.now
			a := w.ask(v, replication.TurnRequest{Runs: runs})
			if !a.Granted {
				v.until = w.now + int64(a.Again)
				passAll(claims, v.until)
				continue
			}
			v.granted, v.rate = true, a.Rate
			if v.began == 0 {
				v.began = w.now
			}
		}
		rate = lesser(rate, v.rate)
		if rate == 0 {
			rate = 200 << 20
		}
		v.left -= rate / 10
		w.copied[v.target] += rate / 10
		if v.left <= 0 {
			leaveAll(claims)
			w.ask(v, replication.TurnRequest{Ended: true})
			v.granted = false
		}
	}
}

func (w *budgetWorld) ask(v *budgetVolume, q replication.TurnRequest) replication.TurnResult {
	q.Volume, q.Replica = v.of.vol, v.of.id
	return w.nodes[v.target].turn(w.now, "p", true, replication.DomainID(fmt.Sprint(v.coord)), q)
}

// writing counts the resyncs that have a turn of a node as its replicas' and as its consumers' node.
func (w *budgetWorld) writing(node int) (to, from int) {
	for _, v := range w.vs {
		switch {
		case !v.granted || w.dead[v.coord]:
		case v.target == node:
			to++
		case v.coord == node:
			from++
		}
	}
	return to, from
}

func (w *budgetWorld) left() (n int) {
	for _, v := range w.vs {
		if v.left > 0 && !w.dead[v.coord] {
			n++
		}
	}
	return n
}

// Volumes whose coordinators are on many nodes, with replicas on any, all come to their end; no node ever resyncs more at once than
// it may, in any of its parts, and what comes to it in a second is what it allows, but for the second that a new share takes to be
// told.
func TestBudgetConverges(t *testing.T) {
	for seed := range uint64(20) {
		rng := rand.New(rand.NewPCG(seed, 9))
		timings := make([]Timing, 4)
		for i := range timings {
			timings[i] = Timing{
				Resyncs: 1 + rng.IntN(3), PoolResyncs: 1 + rng.IntN(4),
				PoolResyncRate: []int64{0, 20 << 20, 100 << 20}[rng.IntN(3)], LinkResyncRate: []int64{0, 50 << 20}[rng.IntN(2)],
			}
		}
		w := newBudgetWorld(t, timings...)
		priorities := map[replication.VolumeID]replication.ResyncPriority{}
		for i := range w.nodes {
			w.nodes[i].priorities.Store(&priorities)
		}
		var all int64
		for range 40 {
			c := rng.IntN(4)
			v := w.add(c, (c+1+rng.IntN(3))%4, rng.Int64N(256<<20))
			all += v.left
			priorities[v.of.vol] = []replication.ResyncPriority{replication.ResyncLow, replication.ResyncNormal, replication.ResyncHigh}[rng.IntN(3)]
		}
		window := make([][20]int64, 4)
		steps := 0
		for ; w.left() > 0; steps++ {
			// The least that a resync may have is a floor, or the rate that is lower: one at a time at the worst.
			if int64(steps) > 40*20+10*all/(16<<20)+40*100 {
				t.Fatalf("seed %d: %d of 40 are not at their end after %d s", seed, w.left(), steps/10)
			}
			w.step(rng.Perm(len(w.vs)))
			for i := range w.nodes {
				to, from := w.writing(i)
				if to+from > timings[i].PoolResyncs || from > timings[i].Resyncs {
					t.Fatalf("seed %d: node %d resyncs %d of its replicas and %d of its volumes, %d and %d at once may be", seed, i, to, from, timings[i].PoolResyncs, timings[i].Resyncs)
				}
				window[i][steps%20] = w.copied[i]
				var sum int64
				for _, n := range window[i] {
					sum += n
				}
				// Two seconds, and one in which those that had their turn have not heard of the others.
				if r := timings[i].PoolResyncRate; r > 0 && sum > 2*r+int64(timings[i].PoolResyncs)*r {
					t.Fatalf("seed %d: node %d got %d MiB in two seconds, %d MiB a second may be", seed, i, sum>>20, r>>20)
				}
			}
		}
	}
}

// A coordinator's node that dies with all the turns of another node frees them within turnKept.
func TestBudgetOfTheDead(t *testing.T) {
	w := newBudgetWorld(t, Timing{}, Timing{}, Timing{PoolResyncs: 2})
	w.add(0, 2, 1<<40)
	w.add(0, 2, 1<<40)
	v := w.add(1, 2, 1<<40)
	for range 20 {
		w.step([]int{0, 1})
	}
	for range 50 {
		w.step([]int{0, 1, 2})
	}
	if to, _ := w.writing(2); to != 2 || v.granted {
		t.Fatalf("%d resyncs, want 2 of the first node", to)
	}
	w.dead[0] = true
	died := w.now
	for !v.granted {
		w.step([]int{0, 1, 2})
		if w.now-died > turnKept+int64(turnMost) {
			t.Fatal("who waits gets no turn")
		}
	}
	t.Logf("after %v", time.Duration(w.now-died))
}

// A volume that waits for a busy node does not keep its own node from resyncing others.
func TestBudgetHoldsNothing(t *testing.T) {
	w := newBudgetWorld(t, Timing{Resyncs: 1, PoolResyncs: 1}, Timing{}, Timing{PoolResyncs: 1}, Timing{})
	busy := w.add(1, 2, 1<<40)
	w.step([]int{0})
	waits, goes := w.add(0, 2, 1<<40), w.add(0, 3, 64<<20)
	for range 30 {
		w.step([]int{0, 1, 2})
	}
	if !busy.granted || waits.granted || goes.left > 0 {
		t.Errorf("a volume that waits for another node's turn (%v) has its own node's: the other one has %d bytes left", waits.granted, goes.left)
	}
}

// What comes from one domain shares the way, whatever pool it goes to; what comes from another one does not.
func TestBudgetLink(t *testing.T) {
	timing := Timing{LinkResyncRate: 100 << 20, PoolResyncs: 10}
	timing.ensureDefaults()
	var b budget
	b.init(&timing)
	ask := func(pool string, far bool, from replication.DomainID) replication.TurnResult {
		of := resyncs(1)[0]
		return b.turn(1, pool, far, from, replication.TurnRequest{Volume: of.vol, Replica: of.id})
	}
	for i, tc := range []struct {
		pool string
		far  bool
		from replication.DomainID
		want int64
	}{{"p", true, "a", 100 << 20}, {"q", true, "a", 50 << 20}, {"p", true, "b", 100 << 20}, {"p", false, "c", 0}} {
		if a := ask(tc.pool, tc.far, tc.from); !a.Granted || a.Rate != tc.want {
			t.Errorf("%d: %+v, want %d bytes a second", i, a, tc.want)
		}
	}
	for range 10 {
		ask("r", true, "a")
	}
	if a := ask("r", true, "a"); a.Granted || a.Again <= turnAgain || b.link("a").granted() != 6 {
		t.Errorf("%+v; %d resyncs share 100 MiB a second of the way, which leaves each less than 16", a, b.link("a").granted())
	}
}

// A resync waits until the node of its replica has a turn for it, says so, and frees it at its end.
func TestResyncWaitsForTurn(t *testing.T) {
	c := newTestCluster(t, 4<<20)
	a, b := c.nodes[0], c.nodes[1]
	v := a.attach()
	c.net.Down(b.id)
	c.awaitInSync(1)
	pool, others := b.m.budget.pool(b.st.Pool()), resyncs(4)
	for _, of := range others {
		pool.take(now(), of, true)
	}
	c.net.Up(b.id)
	c.eventually("the resync waits for its turn", func() bool {
		s := v.Status()
		return len(s.Waits) == 1 && s.Waits[0] == b.rep && s.Resync == nil && pool.waiting() == 1
	})
	pool.leave(others[0])
	c.awaitInSync(2)
	for name, s := range map[string]*turns{"replica's pool": pool, "coordinator's pool": a.m.budget.pool(a.st.Pool()), "coordinator's node": &a.m.budget.node} {
		c.eventually("the turn of the "+name+" is free again", func() bool {
			s.mu.Lock()
			defer s.mu.Unlock()
			return !slices.ContainsFunc(s.asks, func(t *turn) bool { return t.of.vol == c.vol })
		})
	}
	if s := v.Status(); s.Waits != nil {
		t.Errorf("in sync, and %v wait", s.Waits)
	}
	detach(t, a)
	c.compare()
}

// Of the turns that a resync needs it has all or none, and who waits for one lets others have the rest.
func TestBudgetAllOrNothing(t *testing.T) {
	free, busy, rs := &turns{most: 1}, &turns{most: 1}, resyncs(3)
	busy.take(1, rs[0], false)
	if _, ok := takeAll(1, false, []claim{{free, rs[1]}, {busy, rs[1]}}); ok || free.granted() != 0 {
		t.Error("who waits for a turn holds another one")
	}
	if !free.take(1, rs[2], false) {
		t.Error("who waits for a turn elsewhere keeps its place against one who could begin")
	}
}

// What a manager is told of priorities counts in all the turns of its node: its own, those of a pool, and those of the way from another domain; again when it is told anew.
func TestBudgetPriorities(t *testing.T) {
	timing := Timing{ResyncRate: 210 << 20, PoolResyncRate: 210 << 20, LinkResyncRate: 210 << 20}
	m := new(Manager)
	timing.ensureDefaults()
	timing.ResyncFloor = 0
	m.budget.init(&timing)
	rs := resyncs(3)
	m.SetResyncPriorities(map[replication.VolumeID]replication.ResyncPriority{rs[0].vol: replication.ResyncLow, rs[2].vol: replication.ResyncHigh})
	check := func(want ...int64) {
		t.Helper()
		for name, s := range map[string]*turns{"node": &m.budget.node, "pool": m.budget.pool("p"), "link": m.budget.link("a")} {
			for _, of := range rs {
				s.take(1, of, true)
			}
			for i, of := range rs {
				if got := s.share(of); got != want[i]<<20 {
					t.Errorf("%s: %d has %d bytes a second, want %d MiB", name, i, got, want[i])
				}
			}
		}
	}
	check(10, 40, 160)
	for i, want := range []int64{10, 40, 160} {
		a := m.budget.turn(1, "p", true, "a", replication.TurnRequest{Volume: rs[i].vol, Replica: rs[i].id, Runs: true})
		if !a.Granted || a.Rate != want<<20 {
			t.Errorf("%d is answered %+v, want %d MiB a second", i, a, want)
		}
	}
	m.SetResyncPriorities(nil)
	check(70, 70, 70)
}
