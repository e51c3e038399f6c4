package core

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// What goes wrong in a run is a plan that is drawn before it begins, with numbers of its own:
// a part of the plan can be left out, and the rest of the world draws the same numbers.

// planEvent is one fault at one node, or the repair of some.
type planEvent struct {
	step, node int
	fault      int    // index in the table of faults, or repairs
	name       string // of the fault
	mend       uint64 // faults that are mended, and the node is started
}

const repairs = -1

func (e *planEvent) String() string {
	if e.fault == repairs {
		return fmt.Sprintf("step %d: repairs, and n%d is started", e.step, e.node)
	}
	return fmt.Sprintf("step %d: %s at n%d", e.step, e.name, e.node)
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
	return drawEvents(rng, used, func(i int) string { return faults[i].name }, nodes, steps, often, mend, 3)
}

// drawEvents draws when and where those faults that are used come, one in often steps, and repairs, one in mend steps; each of them mends one fault in heals.
func drawEvents(rng *rand.Rand, used []int, name func(fault int) string, nodes, steps, often, mend, heals int) []planEvent {
	var plan []planEvent
	for step := range steps {
		if len(used) > 0 && rng.IntN(often) == 0 {
			e := planEvent{step: step, node: rng.IntN(nodes), fault: used[rng.IntN(len(used))]}
			e.name = name(e.fault)
			plan = append(plan, e)
		}
		if rng.IntN(mend) == 0 {
			e := planEvent{step: step, node: rng.IntN(nodes), fault: repairs}
			for _, f := range used {
				if rng.IntN(heals) == 0 {
					e.mend |= 1 << f
				}
			}
			plan = append(plan, e)
		}
	}
	return plan
}

// keep is the part of a plan that list names by number, with commas; "none" is none of it.
func keep(t *testing.T, plan []planEvent, list string) []planEvent {
	var kept []planEvent
	for _, f := range strings.Split(strings.TrimPrefix(list, "none"), ",") {
		if f == "" {
			continue
		}
		i, err := strconv.Atoi(f)
		if err != nil || i < 0 || i >= len(plan) {
			t.Fatalf("%q is no event of the %d of the seed", f, len(plan))
		}
		kept = append(kept, plan[i])
	}
	return kept
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

// report tells of a plan that fails with as few events as are needed for it to break the same rule. replay is the command for the seed;
// run says how a plan fails, "" if it does not.
func report(plan []planEvent, replay, failure string, run func([]planEvent) string) string {
	small := shrink(plan, func(p []planEvent) bool {
		f := run(p)
		return f != "" && rule(f) == rule(failure)
	})
	var b strings.Builder
	fmt.Fprintf(&b, "%s\nreplay: %s\n%d of %d events are enough for: %s\n", failure, replay, len(small), len(plan), run(small))
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
	fmt.Fprintf(&b, "replay these: %s KEEP=%s\n", replay, strings.Join(keep, ","))
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
