package core

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

// What goes wrong in a run is a plan that is drawn before it begins, with numbers of its own:
// a part of the plan can be left out, and the rest of the world draws the same numbers.

// planEvent is one fault at one node, or the repair of some.
type planEvent struct {
	step, node int
	fault      int    // index of faults, or repairs
	mend       uint64 // faults that are mended, and the node is started
}

const repairs = -1

func (e *planEvent) String() string {
	if e.fault == repairs {
		return fmt.Sprintf("step %d: repairs, and n%d is started", e.step, e.node)
	}
	return fmt.Sprintf("step %d: %s at n%d", e.step, faults[e.fault].name, e.node)
}

// drawPlan draws which faults a seed uses, many or few that come the more often, how often they come and are mended.
func drawPlan(rng *rand.Rand, nodes, steps int) []planEvent {
	var used []int
	most := []int{3, 3, 12}[rng.IntN(3)] // one in so many
	for i := range faults {
		if rng.IntN(most) == 0 {
			used = append(used, i)
		}
	}
	often, mend := 20+rng.IntN(400), 20+rng.IntN(400)
	var plan []planEvent
	for step := range steps {
		if len(used) > 0 && rng.IntN(often) == 0 {
			plan = append(plan, planEvent{step: step, node: rng.IntN(nodes), fault: used[rng.IntN(len(used))]})
		}
		if rng.IntN(mend) == 0 {
			e := planEvent{step: step, node: rng.IntN(nodes), fault: repairs}
			for _, f := range used {
				if rng.IntN(3) == 0 {
					e.mend |= 1 << f
				}
			}
			plan = append(plan, e)
		}
	}
	return plan
}

// happen carries an event out.
func (w *simWorld) happen(e *planEvent) {
	n := w.nodes[e.node]
	if e.fault != repairs {
		if f := &faults[e.fault]; n.up && f.strike(w, n) {
			w.trace("fault: %s at %s", f.name, n.id)
			w.seen["fault: "+f.name]++
		}
		return
	}
	for i := range faults {
		if f := &faults[i]; e.mend&(1<<i) != 0 && f.mend != nil {
			f.mend(w, n)
		}
	}
	if !n.up {
		n.start()
	}
}

// shrink leaves events out of a plan as long as fails still holds of the rest: first many at
// once, then one by one (Zeller and Hildebrandt, Simplifying and Isolating Failure-Inducing Input, 2002).
func shrink[E any](plan []E, fails func([]E) bool) []E {
	for n := (len(plan) + 1) / 2; n > 0; {
		shorter := false
		for at := 0; at < len(plan); {
			rest := slices.Delete(slices.Clone(plan), at, min(at+n, len(plan)))
			if fails(rest) {
				plan, shorter = rest, true
			} else {
				at += n
			}
		}
		if n > 1 || !shorter {
			n /= 2
		}
	}
	return plan
}

// rule is what a failure is about: the invariant that it names, or its first words.
func rule(failure string) string {
	r, _, _ := strings.Cut(failure, " ")
	return r
}

// simReport tells of a seed that fails with as few events as are needed for it to break the same rule.
func simReport(seed uint64, steps int, failure string) string {
	plan := planOf(seed, steps)
	small := shrink(plan, func(p []planEvent) bool {
		_, f := runPlan(seed, steps, p)
		return f != "" && rule(f) == rule(failure)
	})
	_, last := runPlan(seed, steps, small)
	var b strings.Builder
	fmt.Fprintf(&b, "seed %d: %s\nreplay: make sim SEED=%d\n%d of %d events are enough for: %s\n", seed, failure, seed, len(small), len(plan), last)
	var keep []string
	for i := range plan {
		if slices.Contains(small, plan[i]) {
			keep = append(keep, fmt.Sprint(i))
			fmt.Fprintf(&b, "    %s\n", &plan[i])
		}
	}
	if len(keep) == 0 {
		keep = []string{"none"}
	}
	fmt.Fprintf(&b, "replay these: make sim SEED=%d KEEP=%s\n", seed, strings.Join(keep, ","))
	return b.String()
}

func TestShrink(t *testing.T) {
	plan := drawPlan(rand.New(rand.NewPCG(1, 1)), 3, 30_000)
	if len(plan) < 100 {
		t.Fatalf("a plan of %d events", len(plan))
	}
	need := []planEvent{plan[0], plan[41], plan[42], plan[len(plan)-1]}
	runs := 0
	got := shrink(plan, func(p []planEvent) bool {
		runs++
		for _, e := range need {
			if !slices.Contains(p, e) {
				return false
			}
		}
		return true
	})
	if !slices.Equal(got, need) {
		t.Errorf("shrunk to %v, want %v", got, need)
	}
	if runs > len(plan) {
		t.Errorf("%d runs for %d events", runs, len(plan))
	}
}
