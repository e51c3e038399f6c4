package core

import (
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tandem-storage/tandem/replication"
)

// The simulator runs the state machines of several nodes in a simulated world
// (simworld_test.go) and asserts the protocol's invariants after every step
// (simcheck_test.go). Each seed draws the faults that it uses, how often they
// come, and the limits of the coordinator; everything follows from the seed.

var (
	simFirst  = flag.Uint64("sim.first", 1, "first seed")
	simSeeds  = flag.Uint64("sim.seeds", 1500, "number of seeds")
	simSteps  = flag.Int("sim.steps", 3000, "steps with faults of each seed")
	simAll    = flag.Bool("sim.all", false, "go on after a failure and print them all")
	simShrink = flag.Bool("sim.shrink", true, "find out which of a failing seed's faults are needed")
	simKeep   = flag.String("sim.keep", "", "of the seed's faults only these, by number, with commas, or none")
	simLog    = flag.Bool("sim.log", false, "print what happens")
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
	{"power cut in a write", func(_ *simWorld, n *simNode) bool { n.disk.tearNext = true; return true }, func(_ *simWorld, n *simNode) { n.disk.tearNext = false }},
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
	{"connection reset", func(_ *simWorld, n *simNode) bool { return n.resetConns() }, nil},
	{"connection given up", func(_ *simWorld, n *simNode) bool { return n.giveUp() }, nil},
	{"paused", func(_ *simWorld, n *simNode) bool { n.paused = true; return true }, func(_ *simWorld, n *simNode) { n.paused = false }},
	{"cut off and replaced", func(w *simWorld, n *simNode) bool { return w.replace(n) }, func(w *simWorld, _ *simNode) { w.healLinks(); w.reachKVDB() }},
	{"kvdb down", func(w *simWorld, _ *simNode) bool { w.kvDown = true; return true }, func(w *simWorld, _ *simNode) { w.kvDown = false }},
	{"kvdb out of reach of a node", func(_ *simWorld, n *simNode) bool { n.kvCut = true; return true }, func(w *simWorld, _ *simNode) { w.reachKVDB() }},
	{"kvdb restored from a backup", func(w *simWorld, _ *simNode) bool { return w.rollBack() }, func(w *simWorld, _ *simNode) { w.importKVDB() }},
	{"kvdb lost in a change", func(w *simWorld, _ *simNode) bool {
		causes := []string{"takeover", "activate", "evict", "start resync", "stop resync", "join", "detach", "handover", "handover"}
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
		if w.truth.InISR(n.rid) && len(w.truth.ISR) == 1 {
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
	{"flush error and data lost", func(w *simWorld, n *simNode) bool { n.disk.dropNext = w.spare(n); return n.disk.dropNext }, (*simWorld).reset2},
	{"one read error", func(_ *simWorld, n *simNode) bool { n.disk.failNext = true; return true }, nil},
	{"read error", func(_ *simWorld, n *simNode) bool { n.disk.failRead = true; return true }, func(_ *simWorld, n *simNode) { n.disk.failRead = false }},
	{"block rots", (*simWorld).rot, nil},
	{"disk writes astray", func(_ *simWorld, n *simNode) bool { n.disk.astray = true; return true }, func(_ *simWorld, n *simNode) { n.disk.astray = false }},
	{"request hangs", func(_ *simWorld, n *simNode) bool { n.disk.hangNext = true; return true }, func(_ *simWorld, n *simNode) { n.unhang() }},
	{"disk hangs", func(_ *simWorld, n *simNode) bool { n.disk.hung = true; return true }, func(_ *simWorld, n *simNode) { n.unhang() }},
}

// spare reports whether the volume survives the end of n's disk: another in-sync
// replica has everything.
func (w *simWorld) spare(n *simNode) bool {
	return slices.ContainsFunc(w.nodes, func(m *simNode) bool {
		return m != n && w.truth.InISR(m.rid) && !m.lossy() && !m.disk.fails()
	})
}

func (w *simWorld) reset2(n *simNode) {
	n.disk.failWrite, n.disk.failFlush, n.disk.dropNext = false, false, false
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
	if k := slices.IndexFunc(w.nodes, (*simNode).resumable); k >= 0 && w.rng.IntN(2) == 0 {
		n = w.nodes[k]
	}
	if !n.up || n.paused || n.stop || n.fenced || n.coord != nil || n.drains || w.kvDown || n.kvCut {
		return
	}
	w.client.at = n
	if n.resumable() && w.rng.IntN(4) > 0 {
		n.resume()
		return
	}
	n.attach()
}

// buggify draws limits, some of them absurdly small.
func (w *simWorld) buggify() {
	pick := func(v ...int64) int64 { return v[w.rng.IntN(len(v))] }
	o := &w.opts
	o.JoinerLag = pick(0, 4<<10, 64<<10, 16<<20)
	o.ResyncWindow = int(pick(1, 2, 8))
	o.ResyncRate = pick(0, 0, 4<<20, 64<<20)
	o.ResyncFloor = pick(0, 4<<20, 64<<20)
	o.FlushBytes = pick(4<<10, 1<<20)
	o.FlushInterval = pick(20e6, 100e6, 1e9)
	o.FlushRegions = int(pick(1, 2, 1000))
	w.slots = int(pick(1, 2, 4, 4, 4, 8))
	o.LeaseTime, w.grant = pick(50e6, 200e6), pick(100e6, 203e6, 300e6)
	o.ConfirmReads = w.rng.IntN(3) == 0
	o.StallTimeout = pick(0, 0, 100e6, 1500e6)
	o.OpTimeout = pick(300e6, 1e9)
	o.SuspectTimeout = pick(100e6, 300e6)
	if w.rng.IntN(4) == 0 {
		w.cfg.Protection = replication.MaxProtection
	}
	if w.rng.IntN(4) == 0 {
		w.cfg.SetPolicy(w.drawPolicy())
	}
	o.LeaseRest = pick(0, 20e6, 100e6, 500e6)
}

// simFailure carries a failed assertion out of a run.
type simFailure string

// runSim runs one seed and returns what went wrong, "" if nothing did.
func runSim(seed uint64, steps int) (w *simWorld, failed string) {
	return runPlan(seed, steps, planOf(seed, steps))
}

// planOf is the plan of a seed, which says also how many nodes there are.
func planOf(seed uint64, steps int) []planEvent {
	return drawPlan(rand.New(rand.NewPCG(seed, 18)), simNodes(seed), steps)
}

func simNodes(seed uint64) int { return 2 + int(seed%2) }

// runPlan runs one seed with another plan than its own.
func runPlan(seed uint64, steps int, plan []planEvent) (w *simWorld, failed string) {
	w = newSimWorld(simNodes(seed), rand.New(rand.NewPCG(seed, 17)))
	w.drawMoves(rand.New(rand.NewPCG(seed, 19)))
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
			failed = fmt.Sprintf("panic: %v\n%s", r, debug.Stack())
		}
	}()
	w.buggify()
	w.drawGray(rand.New(rand.NewPCG(seed, 20)))
	w.drawSnapshots(rand.New(rand.NewPCG(seed, 21)))
	w.setClocks()
	if w.rng.IntN(3) == 0 {
		w.unknown = 20
	}
	for step := range steps {
		w.client.act()
		w.stray()
		w.verifySome()
		w.step()
		for ; len(plan) > 0 && plan[0].step == step; plan = plan[1:] {
			w.happen(&plan[0])
		}
		w.manage()
		w.move()
		w.slowDown()
		w.takeSnapshot()
		w.lookForRollback()
		if w.hopeless() {
			w.seen["hopeless"]++
			return w, ""
		}
	}
	if n := w.client.at; n != nil && n.coord != nil {
		n.coord.SetResync(n.clock(), 0, membersOf(7)...)
		n.drainCoord()
	}
	w.settle()
	return w, ""
}

// membersOf lists the members below the third that may has.
func membersOf(may mask) (members []int) {
	for i := range 3 {
		if may.has(i) {
			members = append(members, i)
		}
	}
	return members
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
		c.at.coord.Detach(c.at.clock())
		c.at.drainCoord()
	case c.at.paused && w.rng.IntN(100) == 0:
		c.lost()
		w.takeover()
	case w.rng.IntN(400) == 0:
		w.changePolicy()
	case w.rng.IntN(300) == 0 && c.at.coord != nil && !c.at.paused: // others resync too
		c.at.coord.SetResync(c.at.clock(), []int64{0, 4 << 20}[w.rng.IntN(2)], membersOf(mask(w.rng.IntN(8)))...)
		c.at.drainCoord()
	case w.rng.IntN(800) == 0:
		w.growSome()
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
		n.disk.failWrite, n.disk.failFlush, n.disk.dropNext = false, false, false
		n.disk.failNext, n.disk.astray, n.disk.tearNext = false, false, false
		n.unhang()
		n.disk.slow = 0
		n.crowd(false)
	}
	if w.client.quiet && w.client.at != nil && w.client.at.coord != nil {
		w.client.quiet = w.client.at.coord.detachReq
	}
	for range 40_000 {
		w.step()
		w.restore()
		w.lookForRollback()
		w.importKVDB()
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
		if c == nil {
			continue // it is being handed over
		}
		if w.atRest(c) && w.verified(c) && w.snapshotAtRest(c) {
			w.compare()
			w.checkSnapshots()
			w.checkHealed()
			w.checkRest(c)
			return
		}
		w.attachAgain(c)
	}
	if w.client.at == nil {
		w.fail("no coordinator after the faults ended")
	}
	k := w.client.at.coord
	if k == nil {
		w.fail("not settled: handed over and nobody serves")
	}
	w.fail("not settled: stage %d stall %q isr %v flight %d waiting %d change %+v round %+v join %+v reconcile %d jobs %d reqs %d evict %b %q hold %q/%v open %b",
		k.stage, k.Stall(), w.inSync(), len(k.flight.ios), len(k.waiting), k.change, k.round, k.join, k.reconcile.Count(), len(k.jobs), len(k.reqs), k.evictReq, k.evictWhy, k.hold.why, k.holdAcks, k.openSet())
}

// atRest reports whether everything is in sync and nothing is under way.
func (w *simWorld) atRest(c *Coordinator) bool {
	return !w.rolled && !w.marked && c.stage == stageServing && len(w.truth.ISR) == len(w.nodes) && c.change == nil && c.reconcile.Count() == 0 &&
		len(w.client.flight) == 0 && len(c.flight.ios) == 0 && c.Stall() == StallNone && !c.wroteSeq
}

// checkRest asserts that nothing is left over when a volume is at rest.
func (w *simWorld) checkRest(c *Coordinator) {
	if len(c.waiting) > 0 || len(c.reqs) > 0 || len(c.jobs) > 0 || c.holdAcks || c.holding() || c.join != nil || c.snap != nil {
		w.fail("left over: waiting %d reqs %d jobs %d hold %q/%v join %+v", len(c.waiting), len(c.reqs), len(c.jobs), c.hold.why, c.holdAcks, c.join)
	}
	if len(c.freeIOs) > 3 {
		w.fail("%d internal flushes were made", len(c.freeIOs))
	}
}

func TestSim(t *testing.T) {
	first, n := *simFirst, *simSeeds
	if testing.Short() {
		n = min(n, 100)
	}
	var all simTally
	begin := time.Now()
	if *simKeep != "" {
		all.add(runKept(t, first))
	} else {
		simAllSeeds(t, first, n, &all)
	}
	t.Logf("%d seeds from %d, %.2f simulated hours in %v", n, first, float64(all.virtual)/3600e9, time.Since(begin).Round(time.Second))
	if testing.Verbose() {
		for _, k := range slices.Sorted(maps.Keys(all.seen)) {
			fmt.Fprintf(os.Stdout, "    %7d %s\n", all.seen[k], strings.TrimSpace(k))
		}
	}
}

// simAllSeeds runs n seeds from first on, as many at once as there are processors.
func simAllSeeds(t *testing.T, first, n uint64, all *simTally) {
	workers := runtime.GOMAXPROCS(0)
	if *simLog {
		workers = 1
	}
	var next atomic.Uint64
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for {
				i := next.Add(1) - 1
				if i >= n || t.Failed() && !*simAll {
					return
				}
				w, failed := runSim(first+i, *simSteps)
				switch {
				case failed == "":
					all.add(w)
				case *simLog || !*simShrink:
					t.Errorf("the %dth seed: seed %d: %s", i+1, first+i, failed)
				default:
					seed := first + i
					t.Errorf("the %dth seed: seed %d: %s", i+1, seed, report(planOf(seed, *simSteps), fmt.Sprintf("make sim SEED=%d", seed), failed,
						func(p []planEvent) string { _, f := runPlan(seed, *simSteps, p); return f }))
				}
			}
		})
	}
	wg.Wait()
}

// runKept runs a seed with the events of its plan that -sim.keep names.
func runKept(t *testing.T, seed uint64) *simWorld {
	w, failed := runPlan(seed, *simSteps, keep(t, planOf(seed, *simSteps), *simKeep))
	if failed != "" {
		t.Error(failed)
	}
	return w
}

// simTally is what happened in many runs.
type simTally struct {
	mu      sync.Mutex
	seen    map[string]int
	virtual int64
}

func (a *simTally) add(w *simWorld) { a.addSeen(w.seen, w.now) }

func (a *simTally) addSeen(seen map[string]int, virtual int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.seen == nil {
		a.seen = map[string]int{}
	}
	a.virtual += virtual
	for k, v := range seen {
		a.seen[k] += v
	}
}

// reset is what an operator does about a faulted replica: it begins anew, empty.
func (w *simWorld) reset(n *simNode) {
	d := &n.disk
	if w.truth.InISR(n.rid) || w.kvDown || w.rolled || d.meta.State != replication.MemberFaulted && w.truth.Members[n.rid].State != replication.MemberFaulted {
		return
	}
	w.seen["fault: replica replaced"]++
	for _, m := range w.nodes {
		if m.coord != nil { // the volume has to be detached for that
			m.coord.Kill(m.clock(), replication.ErrClosed)
			m.drainCoord()
		}
	}
	n.crash(false)
	*d = newSimDisk(ReplicaMeta{State: replication.MemberStale})
	c := w.truth.Clone()
	m := c.Members[n.rid]
	m.State, m.LeftEpoch, m.LeftGen = replication.MemberStale, 0, 0
	c.Members[n.rid] = m
	w.put(c)
	n.start()
}
