package e2e

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"
)

// TestRestartUnderAClient kills a daemon ten times in a row under a client that connects again. The client sees a pause, and
// no error; what was acknowledged is there, flushed or not.
func TestRestartUnderAClient(t *testing.T) {
	need(t, "qemu-io")
	c := shared(t)
	v := c.create(t, "restart", "64Mi")
	uri := c.attach(t, v.home, v.name)
	do := returning(t, uri)
	for i := 1; i <= 10; i++ {
		if got := do(fmt.Sprintf("write -P %d %dk 64k", i, 64*i)); !strings.Contains(got, "wrote") {
			t.Fatalf("round %d: %s", i, got)
		}
		m := c.mark(t, v.home)
		if err := c.Node(v.home).Kill(); err != nil {
			t.Fatal(err)
		}
		killed := time.Now()
		if err := c.StartNode(c.Node(v.home)); err != nil {
			t.Fatal(err)
		}
		if got := do(fmt.Sprintf("read -P %d %dk 64k", i, 64*i)); !strings.Contains(got, "read") || strings.Contains(got, "failed") {
			t.Fatalf("round %d: %s", i, got)
		}
		m.await(t, "attachment goes on", time.Second)
		t.Logf("round %d: %v from the kill to the first read", i, time.Since(killed).Round(time.Millisecond))
	}
	if again := c.attach(t, v.home, v.name); again != uri {
		t.Errorf("attached as %s, it was %s", again, uri)
	}
	_ = os.Stdout
}
