package e2e

import (
	"fmt"
	"testing"
	"time"
)

// TestLimits: a consumer gets no more requests than its volume's limit says, from the first on, after a change on another node, and after the daemon was killed.
func TestLimits(t *testing.T) {
	c := shared(t)
	v := c.create(t, "limited", "64Mi")
	c.ctl(t, v.away, "volume", "update", v.name, "--iops", "20")
	w := newWriter(t)
	w.start(t, c.attach(t, v.home, v.name))
	held := func(what string, rate int) {
		t.Helper()
		until(t, what, 30*time.Second, func() (bool, error) {
			w.more(t, 5, 30*time.Second)
			at := time.Now()
			w.more(t, 2*rate, time.Minute)
			d := time.Since(at)
			// Two seconds' worth, less a burst and the one that was counted before.
			return d > 1700*time.Millisecond, fmt.Errorf("%d writes took %v", 2*rate, d)
		})
	}
	held("20 a second", 20)
	c.ctl(t, v.away, "volume", "update", v.name, "--iops", "40")
	held("40 a second", 40)
	w.stop(t)
	if err := c.Node(v.home).Kill(); err != nil {
		t.Fatal(err)
	}
	if err := c.StartNode(c.Node(v.home)); err != nil {
		t.Fatal(err)
	}
	w = newWriter(t)
	w.start(t, c.attach(t, v.home, v.name))
	held("40 a second after a restart", 40)
	c.ctl(t, v.home, "volume", "update", v.name, "--iops", "0")
	w.more(t, 200, time.Minute)
	w.stop(t)
	c.detach(t, v.home, v.name)
}
