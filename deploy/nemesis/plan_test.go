package nemesis

import (
	"slices"
	"testing"
)

func mustPlan(t *testing.T, seed uint64, cycles int, only Fault) []Cycle {
	t.Helper()
	plan, err := Plan(seed, cycles, only, half)
	if err != nil || len(plan) != cycles {
		t.Fatalf("a plan of %d cycles instead of %d: %v", len(plan), cycles, err)
	}
	return plan
}

// TestPlan wants a plan that follows from the seed, and no fault left out.
func TestPlan(t *testing.T) {
	long := mustPlan(t, 7, 3*len(faults), "")
	for _, n := range []int{0, 1, len(faults), len(faults) + 1} {
		if short := mustPlan(t, 7, n, ""); !slices.Equal(short, long[:n]) {
			t.Errorf("a plan of %d cycles is not the beginning of a longer one", n)
		}
	}
	times, failovers := map[Fault]int{}, 0
	for _, c := range long {
		if c.Arbiter {
			failovers++
		}
		if c.Arbiter && !(c.Takeover && slices.Contains(lost, c.Fault)) {
			t.Errorf("%v: nobody would take over by itself", c)
		}
		times[c.Fault]++
		if c.Hold < shortest || c.Hold > 2*longest || c.Hold > longest && !c.Takeover {
			t.Errorf("%v lasts %v", c, c.Hold)
		}
	}
	for _, f := range faults {
		if times[f.fault] != 3 {
			t.Errorf("%s is there %d times", f.fault, times[f.fault])
		}
	}
	if failovers == 0 {
		t.Error("arbiters do nothing")
	}
	if slices.Equal(mustPlan(t, 8, len(faults), ""), long[:len(faults)]) {
		t.Error("another seed makes the same plan")
	}
}

func TestPlanOfOne(t *testing.T) {
	for _, c := range mustPlan(t, 1, 10, Usurp) {
		if c.Fault != Usurp || !c.Takeover {
			t.Errorf("%v is in a plan of %s", c, Usurp)
		}
	}
	if _, err := Plan(1, 10, "earthquake", 0); err == nil {
		t.Error("there is a plan of a fault that does not exist")
	}
}
