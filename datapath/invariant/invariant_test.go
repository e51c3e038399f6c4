package invariant

import (
	"strings"
	"testing"
)

func TestCheck(t *testing.T) {
	Check(true, "never seen")
	var got any
	func() {
		defer func() { got = recover() }()
		Check(false, "seq %d after %d", 3, 7)
	}()
	if !Enabled {
		if got != nil {
			t.Fatalf("a check panicked in a build without checks: %v", got)
		}
		return
	}
	if s, ok := got.(string); !ok || !strings.Contains(s, "seq 3 after 7") {
		t.Fatalf("panic value %v does not carry the message", got)
	}
}

func TestFail(t *testing.T) {
	defer func() {
		if s, ok := recover().(string); !ok || !strings.Contains(s, "slot 3") {
			t.Fatalf("panic value %v does not carry the message", s)
		}
	}()
	Fail("slot %d", 3)
	t.Fatal("went on")
}

func TestCheckCostsNoAllocation(t *testing.T) {
	if Enabled {
		t.Skip("checks are on in this build, their arguments are built")
	}
	a, b := 1000, 2000
	if n := testing.AllocsPerRun(100, func() { Check(a < b, "a %d b %d", a, b) }); n != 0 {
		t.Fatalf("%v allocations per check", n)
	}
}
