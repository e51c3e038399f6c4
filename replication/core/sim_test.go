package core

import (
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tandem-storage/tandem/replication"
)

// The simulator runs the state machines of several nodes in a simulated world
// (simworld_test.go) and asserts the protocol's invariants after every step
// (simcheck_test.go). Each seed draws the faults that it uses, how often they
// come, and the limits of the coordinator; everything follows from the seed.

var (
	simSeed  = flag.Uint64("sim.seed", 0, "run only this seed")
	simFirst = flag.Uint64("sim.first", 1, "first seed")
	simSeeds = flag.Uint64("sim.seeds", 1500, "number of seeds")
	simSteps = flag.Int("sim.steps", 3000, "steps with faults of each seed")
	simAll   = flag.Bool("sim.all", false, "go on after a failure and print them all")
	simLog   = flag.Bool("sim.log", false, "print what happens")
)

// fault is something that goes wrong, and how it is mended.
type fault struct {
	name   string
	strike func(w *simWorld, n *simNode) bool // whether it took place
	mend   func(w *simWorld, n *simNode)
}

var faults = []fault{
	{"process killed", func(_ *simWorld, n *simNode) bool { n.crash(false); return true }, nil},
	{"power cut", func(_ *simWorld, n *simNode) bool { n.crash(true); return true }, nil},
	{"activity log damaged", func(_ *simWorld, n *simNode) bool {
		n.crash(false)
		n.disk.log = newSimActivity(true)
		return true
	}, nil},
	{"power cut everywhere", func(w *simWorld, _ *simNode) bool {
		for _, n := range w.nodes {
			n.crash(true)
		}
		return true
	}, nil},
	{"clean stop", func(_ *simWorld, n *simNode) bool {
		n.end()
		n.rep.CloseSessions()
		n.drainRep()
		n.stop = true
		return true
	}, nil},
	{"link cut", func(w *simWorld, n *simNode) bool { return w.cut(n, true) }, func(w *simWorld, _ *simNode) { w.healLinks() }},
	{"link cut one way", func(w *simWorld, n *simNode) bool { return w.cut(n, false) }, func(w *simWorld, _ *simNode) { w.healLinks() }},
	{"connection reset", func(_ *simWorld, n *simNode) bool {
		for _, id := range slices.Sorted(maps.Keys(n.conns)) {
			n.conns[id].breakOff()
		}
		return len(n.conns) > 0
	}, nil},
	{"paused", func(_ *simWorld, n *simNode) bool { n.paused = true; return true }, func(_ *simWorld, n *simNode) { n.paused = false }},
	{"kvdb down", func(w *simWorld, _ *simNode) bool { w.kvDown = true; return true }, func(w *simWorld, _ *simNode) { w.kvDown = false }},
	{"kvdb out of reach of a node", func(_ *simWorld, n *simNode) bool { n.kvCut = true; return true }, func(w *simWorld, _ *simNode) { w.reachKVDB() }},
	{"kvdb lost in a change", func(w *simWorld, _ *simNode) bool {
		causes := []string{"takeover", "activate", "evict", "start resync", "stop resync", "join", "detach"}
		w.kvLose = causes[w.rng.IntN(len(causes))]
		return true
	}, func(w *simWorld, _ *simNode) { w.reachKVDB() }},
	{"beats missed", func(_ *simWorld, n *simNode) bool { n.silence(true); return true }, func(_ *simWorld, n *simNode) { n.silence(false) }},
	{"configuration changed by others", func(w *simWorld, _ *simNode) bool { w.put(w.cfg); return true }, nil},
	{"domain fenced", func(w *simWorld, n *simNode) bool {
		// The gate: never the last usable in-sync copy, never two domains at once.
		for _, m := range w.nodes {
			if m.fenced {
				return false
			}
		}
		if w.cfg.InISR(n.rid) && len(w.cfg.ISR) == 1 {
			return false
		}
		n.fence(true)
		return true
	}, func(_ *simWorld, n *simNode) { n.fence(false) }},
	{"domain drains", func(_ *simWorld, n *simNode) bool { n.drain(n.coord == nil); return n.drains }, func(_ *simWorld, n *simNode) { n.drain(false) }},
	{"no space", func(_ *simWorld, n *simNode) bool { n.disk.full = true; return true }, func(_ *simWorld, n *simNode) { n.disk.full = false }},
	{"no space anywhere", func(w *simWorld, _ *simNode) bool {
		for _, n := range w.nodes {
			n.disk.full = true
		}
		return true
	}, func(w *simWorld, _ *simNode) {
		for _, n := range w.nodes {
			n.disk.full = false
		}
	}},
	{"pool nearly full", func(_ *simWorld, n *simNode) bool { n.crowd(true); return true }, func(_ *simWorld, n *simNode) { n.crowd(false) }},
	{"write error", func(w *simWorld, n *simNode) bool { n.disk.failWrite = w.spare(n); return n.disk.failWrite }, (*simWorld).reset2},
	{"flush error", func(w *simWorld, n *simNode) bool { n.disk.failFlush = w.spare(n); return n.disk.failFlush }, (*simWorld).reset2},
	{"read error", func(_ *simWorld, n *simNode) bool { n.disk.failRead = true; return true }, func(_ *simWorld, n *simNode) { n.disk.failRead = false }},
	{"disk hangs", func(_ *simWorld, n *simNode) bool { n.disk.hung = true; return true }, func(_ *simWorld, n *simNode) { n.unhang() }},
}

// spare reports whether the volume survives the end of n's disk: another in-sync
// replica has everything.
func (w *simWorld) spare(n *simNode) bool {
	return slices.ContainsFunc(w.nodes, func(m *simNode) bool {
		return m != n && w.cfg.InISR(m.rid) && !m.lossy() && !m.disk.failWrite && !m.disk.failFlush
	})
}

func (w *simWorld) reset2(n *simNode) {
	n.disk.failWrite, n.disk.failFlush = false, false
	w.reset(n)
}

func (w *simWorld) cut(n *simNode, both bool) bool {
	o := w.nodes[w.rng.IntN(len(w.nodes))]
	n.cutTo[o] = n != o
	o.cutTo[n] = n != o && both
	return n != o
}

func (w *simWorld) healLinks() {
	for _, n := range w.nodes {
		clear(n.cutTo)
		clear(n.damage)
	}
}

// takeover makes some node the coordinator.
func (w *simWorld) takeover() {
	n := w.nodes[w.rng.IntN(len(w.nodes))]
	if !n.up || n.paused || n.stop || n.fenced || n.coord != nil || n.drains || w.kvDown || n.kvCut {
		return
	}
	w.client.at = n
	n.attach()
}

// buggify draws limits, some of them absurdly small.
func (w *simWorld) buggify() {
	pick := func(v ...int64) int64 { return v[w.rng.IntN(len(v))] }
	o := &w.opts
	o.JoinerLag = pick(0, 4<<10, 64<<10, 16<<20)
	o.ResyncWindow = int(pick(1, 2, 8))
	o.ResyncRate = pick(0, 0, 4<<20, 64<<20)
	o.FlushBytes = pick(4<<10, 1<<20)
	o.FlushInterval = pick(20e6, 100e6, 1e9)
	o.FlushRegions = int(pick(1, 2, 1000))
	w.slots = int(pick(1, 2, 4, 4, 4, 8))
	o.StallTimeout = pick(0, 0, 100e6, 1500e6)
	o.OpTimeout = pick(300e6, 1e9)
	o.SuspectTimeout = pick(100e6, 300e6)
	if w.rng.IntN(4) == 0 {
		w.cfg.Protection = replication.MaxProtection
	}
}

// simFailure carries a failed assertion out of a run.
type simFailure string

// runSim runs one seed and returns what went wrong, "" if nothing did.
func runSim(seed uint64, steps int) (w *simWorld, failed string) {
	rng := rand.New(rand.NewPCG(seed, 17))
	w = newSimWorld(2+rng.IntN(2), rng)
	w.fail = func(f string, a ...any) { panic(simFailure(fmt.Sprintf(f, a...))) }
	if *simLog {
		w.trace = func(f string, a ...any) {
			fmt.Fprintf(os.Stdout, "%8.3f "+f+"\n", append([]any{float64(w.now) / 1e9}, a...)...)
		}
	}
	defer func() {
		switch r := recover().(type) {
		case nil:
		case simFailure:
			failed = string(r)
		default:
			panic(r)
		}
	}()
	w.buggify()
	var used []fault
	for _, f := range faults {
		if rng.IntN(3) == 0 {
			used = append(used, f)
		}
	}
	if rng.IntN(3) == 0 {
		w.unknown = 20
	}
	often := 20 + rng.IntN(400)
	mend := 20 + rng.IntN(400)
	for range steps {
		w.client.act()
		w.step()
		n := w.nodes[rng.IntN(len(w.nodes))]
		if len(used) > 0 && rng.IntN(often) == 0 && n.up {
			if f := used[rng.IntN(len(used))]; f.strike(w, n) {
				w.trace("fault: %s at %s", f.name, n.id)
				w.seen["fault: "+f.name]++
			}
		}
		if rng.IntN(mend) == 0 {
			for _, f := range used {
				if f.mend != nil && rng.IntN(3) == 0 {
					f.mend(w, n)
				}
			}
			if !n.up {
				n.start()
			}
		}
		w.manage()
		if w.hopeless() {
			w.seen["hopeless"]++
			return w, ""
		}
	}
	w.settle()
	return w, ""
}

// manage does what operators do: attach, detach, move.
func (w *simWorld) manage() {
	c := w.client
	switch {
	case c.at == nil:
		if w.rng.IntN(30) == 0 {
			w.takeover()
		}
	case c.quiet && len(c.flight) == 0 && c.at.coord != nil:
		c.at.coord.Detach(w.now)
		c.at.drainCoord()
	case w.rng.IntN(600) == 0:
		c.quiet = true
	case w.rng.IntN(2000) == 0:
		c.lost()
		w.takeover() // somebody takes over from a living coordinator
	}
}

// settle stops the faults and asserts that everything comes to rest: the volume
// serves, every replica joins, and all are identical (liveness, G5).
func (w *simWorld) settle() {
	w.trace("faults end")
	w.kvDown, w.unknown, w.kvLose = false, 0, ""
	w.healLinks()
	w.reachKVDB()
	for _, n := range w.nodes {
		n.fence(false)
		n.silence(false)
		n.drain(false)
		n.paused, n.disk.full, n.disk.failRead = false, false, false
		n.disk.failWrite, n.disk.failFlush = false, false
		n.unhang()
		n.crowd(false)
	}
	if w.client.quiet && w.client.at != nil {
		w.client.quiet = w.client.at.coord.detachReq
	}
	for range 40_000 {
		w.step()
		for _, n := range w.nodes {
			if !n.up {
				n.start()
			}
			w.reset(n)
		}
		if w.hopeless() {
			w.seen["hopeless"]++
			return
		}
		if w.client.at == nil {
			w.takeover()
			continue
		}
		c := w.client.at.coord
		if c.stage == stageServing && len(w.cfg.ISR) == len(w.nodes) && c.change == nil && c.reconcile.Count() == 0 &&
			len(w.client.flight) == 0 && len(c.flight.ios) == 0 && c.Stall() == StallNone && !c.wroteSeq {
			w.compare()
			w.checkRest(c)
			return
		}
	}
	if w.client.at == nil {
		w.fail("no coordinator after the faults ended")
	}
	k := w.client.at.coord
	w.fail("not settled: stage %d stall %q isr %v flight %d waiting %d change %+v round %+v join %+v reconcile %d jobs %d reqs %d evict %b %q hold %v/%v open %b",
		k.stage, k.Stall(), w.inSync(), len(k.flight.ios), len(k.waiting), k.change, k.round, k.join, k.reconcile.Count(), len(k.jobs), len(k.reqs), k.evictReq, k.evictWhy, k.hold, k.holdAcks, k.openSet())
}

// checkRest asserts that nothing is left over when a volume is at rest.
func (w *simWorld) checkRest(c *Coordinator) {
	if len(c.waiting) > 0 || len(c.reqs) > 0 || len(c.jobs) > 0 || c.holdAcks || c.hold || c.join != nil {
		w.fail("left over: waiting %d reqs %d jobs %d hold %v/%v join %+v", len(c.waiting), len(c.reqs), len(c.jobs), c.hold, c.holdAcks, c.join)
	}
	if len(c.freeIOs) > 3 {
		w.fail("%d internal flushes were made", len(c.freeIOs))
	}
}

func TestSim(t *testing.T) {
	first, n := *simFirst, *simSeeds
	if *simSeed != 0 {
		first, n = *simSeed, 1
	}
	if testing.Short() {
		n = min(n, 100)
	}
	seen := map[string]int{}
	var virtual int64
	begin := time.Now()
	for seed := first; seed < first+n; seed++ {
		w, failed := runSim(seed, *simSteps)
		if failed != "" && *simAll {
			t.Errorf("seed %d: %.200s", seed, failed)
			continue
		}
		if failed != "" {
			t.Fatalf("seed %d (the %dth): %s\nreplay: go test ./replication/core -run TestSim -sim.steps=%d -sim.seed=%d -sim.log", seed, seed-first+1, failed, *simSteps, seed)
		}
		virtual += w.now
		for k, v := range w.seen {
			seen[k] += v
		}
	}
	t.Logf("%d seeds, %.2f simulated hours in %v", n, float64(virtual)/3600e9, time.Since(begin).Round(time.Second))
	if testing.Verbose() {
		for _, k := range slices.Sorted(maps.Keys(seen)) {
			fmt.Fprintf(os.Stdout, "    %7d %s\n", seen[k], strings.TrimSpace(k))
		}
	}
}

// reset is what an operator does about a faulted replica: it begins anew, empty.
func (w *simWorld) reset(n *simNode) {
	d := &n.disk
	if w.cfg.InISR(n.rid) || w.kvDown || d.meta.State != replication.MemberFaulted && w.cfg.Members[n.rid].State != replication.MemberFaulted {
		return
	}
	w.seen["fault: replica replaced"]++
	for _, m := range w.nodes {
		if m.coord != nil { // the volume has to be detached for that
			m.coord.Kill(w.now, replication.ErrClosed)
			m.drainCoord()
		}
	}
	n.crash(false)
	*d = newSimDisk(ReplicaMeta{State: replication.MemberStale})
	c := w.cfg.Clone()
	m := c.Members[n.rid]
	m.State, m.LeftEpoch, m.LeftGen = replication.MemberStale, 0, 0
	c.Members[n.rid] = m
	w.put(c)
	n.start()
}
