package core

import (
	"context"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tandem-storage/tandem/clusterdomain"
)

var (
	metroFirst = flag.Uint64("metro.first", 1, "TestSimMetro: first seed")
	metroSeeds = flag.Uint64("metro.seeds", 24, "TestSimMetro: number of seeds")
	metroSteps = flag.Int("metro.steps", 12000, "TestSimMetro: steps with faults of each seed")
	metroKeep  = flag.String("metro.keep", "", "TestSimMetro: of the seed's events only these, by number, with commas, or none")
)

// metroEvent is what goes wrong in a simMetro, or an operator does, and how it is mended.
type metroEvent struct {
	name   string
	strike func(c *simMetro, m *simMachine) bool // whether it took place
	mend   func(c *simMetro, m *simMachine)
}

var metroEvents = []metroEvent{
	{"process killed", func(_ *simMetro, m *simMachine) bool { m.crash(false); return true }, nil},
	{"power cut", func(_ *simMetro, m *simMachine) bool { m.crash(true); return true }, nil},
	{"site lost", func(c *simMetro, m *simMachine) bool { c.site(m, func(o *simMachine) { o.crash(false) }); return true }, (*simMetro).siteBack},
	{"site without power", func(c *simMetro, m *simMachine) bool { c.site(m, func(o *simMachine) { o.crash(true) }); return true }, (*simMetro).siteBack},
	{"site paused", func(c *simMetro, m *simMachine) bool { c.site(m, func(o *simMachine) { o.paused = true }); return true }, (*simMetro).goOn},
	{"paused", func(_ *simMetro, m *simMachine) bool { m.paused = true; return true }, (*simMetro).goOn},
	{"link cut", func(c *simMetro, m *simMachine) bool { return c.cut(m, c.pick(), true) }, (*simMetro).heal},
	{"link cut one way", func(c *simMetro, m *simMachine) bool { return c.cut(m, c.pick(), false) }, (*simMetro).heal},
	{"sites parted", func(c *simMetro, m *simMachine) bool { return c.part(m, true) }, (*simMetro).heal},
	{"sites parted one way", func(c *simMetro, m *simMachine) bool { return c.part(m, false) }, (*simMetro).heal},
	{"site cut off", func(c *simMetro, m *simMachine) bool {
		c.site(m, func(o *simMachine) { o.kvCut = true })
		return c.part(m, true)
	}, (*simMetro).heal},
	{"kvdb out of reach of a machine", func(_ *simMetro, m *simMachine) bool { m.kvCut = true; return true }, (*simMetro).heal},
	{"kvdb out of reach of a site", func(c *simMetro, m *simMachine) bool { c.site(m, func(o *simMachine) { o.kvCut = true }); return true }, (*simMetro).heal},
	{"kvdb down", func(c *simMetro, _ *simMachine) bool { c.kvDown = true; return true }, func(c *simMetro, _ *simMachine) { c.kvDown = false }},
	{"kvdb slow", func(c *simMetro, _ *simMachine) bool { c.kvSlow = true; return true }, func(c *simMetro, _ *simMachine) { c.kvSlow = false }},
	{"kvdb answers not all", func(c *simMetro, _ *simMachine) bool { c.unknown = 20; return true }, func(c *simMetro, _ *simMachine) { c.unknown = 0 }},
	{"kvdb changes its leader", (*simMetro).elect, nil},
	{"beats missed", func(_ *simMetro, m *simMachine) bool { m.silence(true); return true }, func(_ *simMetro, m *simMachine) { m.silence(false) }},
	{"disk hangs", func(_ *simMetro, m *simMachine) bool {
		for _, n := range m.nodes {
			n.disk.hung = true
		}
		return true
	}, func(_ *simMetro, m *simMachine) {
		for _, n := range m.nodes {
			n.unhang()
		}
	}},
	{"operator attaches", func(c *simMetro, m *simMachine) bool {
		v := c.whim.IntN(len(c.vols))
		return c.vols[v].attachAt(m.nodes[v])
	}, nil},
	{"operator detaches", func(c *simMetro, _ *simMachine) bool {
		w := c.vols[c.whim.IntN(len(c.vols))]
		w.client.quiet = w.client.at != nil
		return w.client.quiet
	}, nil},
	{"operator switches over", (*simMetro).switchOver, nil},
	{"operator fences", func(c *simMetro, m *simMachine) bool { return c.order(m, c.either(), fenceIt, c.whim.IntN(2) == 0) }, nil},
	{"operator fences the other site", func(c *simMetro, m *simMachine) bool { return c.order(m, c.other(m), fenceIt, true) }, nil},
	{"operator fences and gives up", func(c *simMetro, m *simMachine) bool { return c.order(m, c.either(), giveUpIt, true) }, nil},
	{"operator drains", func(c *simMetro, m *simMachine) bool { return c.order(m, c.either(), drainIt, c.whim.IntN(2) == 0) }, nil},
	{"operator activates", func(c *simMetro, m *simMachine) bool { return c.order(m, c.either(), activateIt, c.whim.IntN(2) == 0) }, nil},
	{"operators at two sites", (*simMetro).bothOrder, nil},
	{"operators at two sites fence each other", func(c *simMetro, m *simMachine) bool {
		o := c.machines[0]
		if o.domain == m.domain {
			o = c.machines[1]
		}
		return c.order(m, o.domain, fenceIt, true) && c.order(o, m.domain, fenceIt, true)
	}, nil},
}

// simOrder is what an operator asks of a domain.
type simOrder int

const (
	activateIt simOrder = iota
	drainIt
	fenceIt
	giveUpIt
)

func (c *simMetro) pick() *simMachine { return c.machines[c.whim.IntN(len(c.machines))] }
func (c *simMetro) either() string    { return c.domains[c.whim.IntN(len(c.domains))] }
func (c *simMetro) other(m *simMachine) string {
	return map[string]string{"a": "b", "b": "a"}[m.domain]
}

func (c *simMetro) site(m *simMachine, f func(*simMachine)) {
	for _, o := range c.machines {
		if o.domain == m.domain && o.up {
			f(o)
		}
	}
}

func (c *simMetro) siteBack(m *simMachine) {
	for _, o := range c.machines {
		if o.domain == m.domain {
			o.begin()
		}
	}
}

func (c *simMetro) goOn(*simMachine) {
	for _, m := range c.machines {
		m.paused = false
	}
}

func (c *simMetro) heal(*simMachine) {
	for _, m := range c.machines {
		m.kvCut = false
	}
	for _, w := range c.vols {
		w.healLinks()
	}
}

// cut cuts the way from m to o, of all volumes.
func (c *simMetro) cut(m, o *simMachine, both bool) bool {
	for v := range m.nodes {
		m.nodes[v].cutTo[o.nodes[v]] = m != o
		o.nodes[v].cutTo[m.nodes[v]] = m != o && both
	}
	return m != o
}

func (c *simMetro) part(m *simMachine, both bool) bool {
	for _, o := range c.machines {
		for _, p := range c.machines {
			if o.domain == m.domain && p.domain != m.domain {
				c.cut(o, p, both)
			}
		}
	}
	return true
}

func (c *simMetro) elect(*simMachine) bool {
	c.mu.Lock()
	c.term++
	c.mu.Unlock()
	for _, m := range c.machines {
		c.check.sick(m)
	}
	return true
}

func (m *simMachine) silence(on bool) {
	for _, n := range m.nodes {
		n.silence(on)
	}
}

// switchOver moves what is attached to m by plan.
func (c *simMetro) switchOver(m *simMachine) bool {
	moves := false
	for v, w := range c.vols {
		n := w.client.at
		if n == nil || n.coord == nil || n.paused || n == m.nodes[v] || n.coord.stage != stageServing || n.coord.handTo != nil {
			continue
		}
		n.handOver(m.nodes[v])
		moves = true
	}
	return moves
}

// order has an operator at m ask something of a domain, as he sees it there or, blindly, as it may be.
func (c *simMetro) order(m *simMachine, domain string, what simOrder, expect bool) bool {
	c.check.orders++
	o := clusterdomain.Change{Domain: domain, Actor: fmt.Sprint("op", c.check.orders), Reason: "simulated"}
	if d, known := m.view.Domain(domain); known && expect {
		o.ExpectedEpoch = &d.Epoch
	}
	manager, do := m.manager, m.manager.Deactivate
	switch what {
	case activateIt:
		do = manager.Activate
	case fenceIt:
		o.PeerLost = true
	case giveUpIt:
		o.PeerLost = true
		c.check.givenUp[o.Actor] = true
		for _, w := range c.vols {
			o.AcceptDataLoss = append(o.AcceptDataLoss, w.vol.String())
		}
	case drainIt:
	}
	c.trace("operator %s at %s: %d of domain %s", o.Actor, m.name, what, domain)
	ctx, cancel := context.WithTimeout(m.ctx, 10*time.Second)
	m.ended.Go(func() {
		defer cancel()
		d, err := do(ctx, o)
		c.post("order "+o.Actor, func() {
			c.trace("operator %s is told: %s epoch %d, %v", o.Actor, d.State, d.Epoch, err)
			c.check.ordered(o, d, err)
		})
	})
	return true
}

// bothOrder has operators at two machines ask for different things of one domain at the same epoch.
func (c *simMetro) bothOrder(m *simMachine) bool {
	o, d := c.pick(), c.either()
	if o == m || !o.up {
		return false
	}
	first := simOrder(c.whim.IntN(3))
	return c.order(m, d, first, true) && c.order(o, d, (first+1+simOrder(c.whim.IntN(2)))%3, true)
}

// metroPlan draws what happens in a seed.
func metroPlan(seed uint64, steps int) []planEvent {
	rng, machines := rand.New(rand.NewPCG(seed, 24)), simMachines(seed)
	var used []int
	most := []int{2, 3, 5}[rng.IntN(3)] // one in so many
	for i := range metroEvents {
		if rng.IntN(most) == 0 || metroEvents[i].name == "operator activates" { // without which there is one failover at most
			used = append(used, i)
		}
	}
	for _, more := range []string{"site ", "operator"} { // what arbiters are for, and what operators do
		if rng.IntN(3) == 0 {
			continue
		}
		for i := range metroEvents {
			if strings.HasPrefix(metroEvents[i].name, more) {
				used = append(used, i, i)
			}
		}
	}
	often, mend := 60+rng.IntN(900), 500+rng.IntN(3500)
	if rng.IntN(3) == 0 { // nothing but sites that are lost for long, and come back
		used = used[:0]
		for i := range metroEvents {
			if n := metroEvents[i].name; strings.HasPrefix(n, "site ") || n == "operator activates" || n == "operator attaches" {
				used = append(used, i)
			}
		}
		often, mend = 600+rng.IntN(900), 1000+rng.IntN(3000)
	}
	return drawEvents(rng, used, func(i int) string { return metroEvents[i].name }, machines, steps, often, mend, 2)
}

// happen carries an event out.
func (c *simMetro) happen(e *planEvent) {
	m := c.machines[e.node]
	c.whim = rand.New(rand.NewPCG(uint64(e.step), uint64(e.node))) // of its own, so that others can be left out
	if e.fault != repairs {
		if f := &metroEvents[e.fault]; m.up && f.strike(c, m) {
			c.trace("event: %s at %s", f.name, m.name)
			c.seen["event: "+f.name]++
		}
	} else {
		for i := range metroEvents {
			if f := &metroEvents[i]; e.mend&(1<<i) != 0 && f.mend != nil {
				f.mend(c, m)
			}
		}
		m.begin()
	}
	c.connectAll()
}

// runMetro runs one seed with a plan and returns what went wrong, "" if nothing did. It is called in a bubble.
func runMetro(seed uint64, steps int, plan []planEvent) (c *simMetro, failed string) {
	fail := func(f string, a ...any) { panic(simFailure(fmt.Sprintf(f, a...))) }
	trace := func(string, ...any) {}
	if *simLog {
		trace = func(f string, a ...any) {
			now := int64(0)
			if c != nil {
				now = c.now
			}
			fmt.Fprintf(os.Stdout, "%8.3f "+f+"\n", append([]any{float64(now) / 1e9}, a...)...)
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
		if c != nil {
			c.fail = func(string, ...any) {}
			c.close()
		}
	}()
	c = newSimMetro(seed, fail, trace)
	for _, w := range c.vols {
		w.attachAt(w.nodes[c.rng.IntN(len(w.nodes))])
	}
	for step := range steps {
		c.step()
		for ; len(plan) > 0 && plan[0].step == step; plan = plan[1:] {
			c.happen(&plan[0])
		}
	}
	c.settle()
	return c, ""
}

// TestSimMetro runs seeds of two sites.
func TestSimMetro(t *testing.T) {
	var all simTally
	begin, n := time.Now(), *metroSeeds
	if testing.Short() {
		n = min(n, 6)
	}
	t.Run("seeds", func(t *testing.T) {
		const workers = 2
		var mu sync.Mutex
		for worker := range uint64(workers) {
			t.Run(fmt.Sprint(worker), func(t *testing.T) {
				t.Parallel()
				for i := worker; i < n && !t.Failed(); i += workers {
					seed := *metroFirst + i
					var c *simMetro
					var failed string
					synctest.Test(t, func(*testing.T) { c, failed = runMetro(seed, *metroSteps, keptMetro(t, seed)) })
					mu.Lock()
					switch {
					case failed == "":
						all.addSeen(c.seen, c.now)
					case *simLog || !*simShrink || *metroKeep != "":
						t.Errorf("the %dth seed: seed %d: %s", i+1, seed, failed)
					default:
						t.Errorf("the %dth seed: seed %d: %s", i+1, seed, report(metroPlan(seed, *metroSteps), fmt.Sprintf("make sim METRO=%d", seed), failed,
							func(p []planEvent) (f string) {
								synctest.Test(t, func(*testing.T) { _, f = runMetro(seed, *metroSteps, p) })
								return f
							}))
					}
					mu.Unlock()
				}
			})
		}
	})
	t.Logf("%d seeds from %d, %.2f simulated hours in %v", n, *metroFirst, float64(all.virtual)/3600e9, time.Since(begin).Round(time.Second))
	if testing.Verbose() {
		for _, k := range slices.Sorted(maps.Keys(all.seen)) {
			fmt.Fprintf(os.Stdout, "    %7d %s\n", all.seen[k], strings.TrimSpace(k))
		}
	}
}

// keptMetro is the plan of a seed, or the part of it that -metro.keep names.
func keptMetro(t *testing.T, seed uint64) []planEvent {
	plan := metroPlan(seed, *metroSteps)
	if *metroKeep == "" {
		return plan
	}
	return keep(t, plan, *metroKeep)
}
