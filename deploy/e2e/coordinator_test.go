package e2e

import (
	"testing"
	"time"
)

// TestCoordinatorKilled kills the daemon under a writer, and attaches again: on the same node, on another node of
// the domain, and in the other domain after its own was deactivated. Every confirmed write must be there, though
// most were never flushed.
func TestCoordinatorKilled(t *testing.T) {
	c := shared(t)
	v := c.create(t, "coordinator", "256Mi")
	w := newWriter(t)
	w.start(t, c.attach(t, v.home, v.name))

	chapters(t, chapter{"the same node again", func(t *testing.T) {
		if err := c.Node(v.home).Kill(); err != nil {
			t.Fatal(err)
		}
		w.failed(t, 10*time.Second)
		if err := c.StartNode(c.Node(v.home)); err != nil {
			t.Fatal(err)
		}
		at := time.Now()
		uri := c.attach(t, v.home, v.name)
		t.Logf("attached %v after the start", time.Since(at))
		w.check(t, uri)
		w.start(t, uri)
		c.inSync(t, v.home, v.name, time.Minute, v.home, v.away)
	}}, chapter{"another node of the domain", func(t *testing.T) {
		if err := c.Node(v.home).Kill(); err != nil {
			t.Fatal(err)
		}
		at := time.Now()
		w.failed(t, 10*time.Second)
		uri := c.attach(t, v.spare, v.name)
		t.Logf("attached on %s %v after the kill", v.spare, time.Since(at))
		w.check(t, uri)
		w.start(t, uri)
		if err := c.StartNode(c.Node(v.home)); err != nil {
			t.Fatal(err)
		}
		c.inSync(t, v.spare, v.name, time.Minute, v.home, v.away)
		w.more(t, 100, 10*time.Second)
	}}, chapter{"the other domain", func(t *testing.T) {
		at := time.Now()
		if err := c.Kill(alpha); err != nil {
			t.Fatal(err)
		}
		w.failed(t, 10*time.Second)
		until(t, "deactivate alpha", 30*time.Second, func() (bool, error) { // the kvdb may be choosing a leader
			_, err := c.Ctl(t.Context(), c.Node(v.away), "cluster", "domains", "deactivate", "--name", alpha, "--peer-lost", "--reason", "test")
			return err == nil, err
		})
		uri := c.attach(t, v.away, v.name)
		t.Logf("attached on %s %v after the kill", v.away, time.Since(at))
		w.check(t, uri)
		w.start(t, uri)
		if err := c.Start(alpha); err != nil {
			t.Fatal(err)
		}
		c.online(t, v.home, true)
		c.refused(t, v.home, 4, []string{alpha}, "host", "attach", v.name)
		c.ctl(t, v.away, "--timeout", "1m", "cluster", "domains", "activate", "--name", alpha, "--reason", "test", "--wait")
		c.inSync(t, v.away, v.name, time.Minute, v.home, v.away)
	}})

	w.stop(t)
	w.check(t, c.attach(t, v.away, v.name)) // the same showing again
	c.detach(t, v.away, v.name)
	c.identical(t, v.name)
}

// TestKillsAtRandom kills the coordinator or the remote replica at random moments.
func TestKillsAtRandom(t *testing.T) {
	c := shared(t)
	v := c.create(t, "random", "64Mi")
	w := newWriter(t)
	uri := c.attach(t, v.home, v.name)
	w.start(t, uri)
	for round := range 10 {
		w.more(t, 1+w.rng.IntN(400), 20*time.Second)
		victim := v.home
		if w.rng.IntN(2) == 0 {
			victim = v.away
		}
		if err := c.Node(victim).Kill(); err != nil {
			t.Fatal(err)
		}
		if victim == v.home {
			w.failed(t, 10*time.Second)
		} else if w.rng.IntN(2) == 0 { // half of the time it returns before it is missed
			w.more(t, 1+w.rng.IntN(200), 20*time.Second)
		}
		if err := c.StartNode(c.Node(victim)); err != nil {
			t.Fatal(err)
		}
		uri = c.attach(t, v.home, v.name)
		if victim == v.home {
			w.check(t, uri)
			w.start(t, uri)
		}
		c.inSync(t, v.home, v.name, time.Minute, v.home, v.away)
		t.Logf("round %d: %s killed and back", round, victim)
	}
	w.stop(t)
	w.check(t, uri)
	c.detach(t, v.home, v.name)
	c.identical(t, v.name)
}
