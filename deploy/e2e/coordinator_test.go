package e2e

import (
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tandem-storage/tandem/deploy/lab"
)

// TestCoordinatorKilled kills the daemon under a writer, and attaches again: on the same node, on another node of
// the domain, and in the other domain after its own was deactivated. Every confirmed write must be there, though
// most were never flushed.
func TestCoordinatorKilled(t *testing.T) {
	c := own(t, nil)
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
		c.online(t, v.home)
		c.refused(t, v.home, 4, []string{alpha}, "host", "attach", v.name)
		c.ctl(t, v.away, "--timeout", "1m", "cluster", "domains", "activate", "--name", alpha, "--reason", "test", "--wait")
		c.inSync(t, v.away, v.name, time.Minute, v.home, v.away)
	}})

	w.stop(t)
	w.check(t, c.attach(t, v.away, v.name)) // the same showing again
	c.detach(t, v.away, v.name)
	c.identical(t, v.name)
}

// TestKillsAtRandom kills processes at random moments: the coordinator, the remote replica, both at once, a member of
// the kvdb together with either.
func TestKillsAtRandom(t *testing.T) {
	c := own(t, nil)
	v := c.create(t, "random", "64Mi")
	w := newWriter(t)
	uri := c.attach(t, v.home, v.name)
	w.start(t, uri)
	sites := []string{alpha, beta, gamma}
	for round := range 10 {
		w.more(t, 1+w.rng.IntN(400), 20*time.Second)
		victims := [][]string{{v.home}, {v.away}, {v.home, v.away}, {v.away, v.home}}[w.rng.IntN(4)]
		member := ""
		if w.rng.IntN(2) == 0 {
			member = sites[w.rng.IntN(3)]
			c.killMembers(t, member)
		}
		for _, n := range victims {
			if err := c.Node(n).Kill(); err != nil {
				t.Fatal(err)
			}
		}
		coordinator := slices.Contains(victims, v.home)
		if coordinator {
			w.failed(t, 10*time.Second)
		} else if w.rng.IntN(2) == 0 { // half of the time it returns before it is missed
			w.more(t, 1+w.rng.IntN(200), 20*time.Second)
		}
		for _, n := range victims {
			if err := c.StartNode(c.Node(n)); err != nil {
				t.Fatal(err)
			}
		}
		if member != "" {
			c.startSites(t, member)
		}
		uri = c.attach(t, v.home, v.name)
		if coordinator {
			w.check(t, uri)
			w.start(t, uri)
		}
		c.inSync(t, v.home, v.name, time.Minute, v.home, v.away)
		t.Logf("round %d: %v and the kvdb's member in %q killed and back", round, victims, member)
	}
	w.stop(t)
	w.check(t, uri)
	c.detach(t, v.home, v.name)
	c.identical(t, v.name)
}

// TestAttachRace attaches a volume on all nodes at the same time: one has it, the others are told who.
func TestAttachRace(t *testing.T) {
	c := shared(t)
	v := c.create(t, "race", "64Mi")
	for range 3 {
		nodes := []string{"a1", "a2", "b1", "b2"}
		errs := make([]error, len(nodes))
		var wg sync.WaitGroup
		for i, n := range nodes {
			wg.Go(func() {
				_, errs[i] = c.Ctl(t.Context(), c.Node(n), "host", "attach", v.name, "--timeout", "20s")
			})
		}
		wg.Wait()
		has := ""
		for i, err := range errs {
			if err == nil {
				if has != "" {
					t.Fatalf("attached on %s and on %s", has, nodes[i])
				}
				has = nodes[i]
			}
		}
		if has == "" {
			t.Fatalf("attached nowhere: %v", errs)
		}
		for _, err := range errs {
			if err != nil && !strings.Contains(err.Error(), "node "+has) {
				t.Errorf("attached on %s, but another is told: %v", has, err)
			}
		}
		c.detach(t, has, v.name)
	}
}

// TestDeviceAfterKill kills the daemon under a loop device: the next start is not hindered by what is left of it.
func TestDeviceAfterKill(t *testing.T) {
	needRoot(t, "/dev/fuse", "/dev/loop-control")
	need(t, "dd")
	c := shared(t)
	v := c.create(t, "orphan", "64Mi")
	home := c.Node(v.home)
	for range 2 {
		dev := c.attach(t, v.home, v.name, "fuseloop")
		sh(t, "dd", "if=/dev/urandom", "of="+dev, "bs=1M", "count=8", "oflag=direct")
		if err := home.Kill(); err != nil {
			t.Fatal(err)
		}
		if out, err := lab.Run(t.Context(), "dd", "if=/dev/zero", "of="+dev, "bs=4096", "count=1", "oflag=direct"); err == nil {
			t.Errorf("%s takes writes though its daemon is dead: %s", dev, out)
		}
		if err := c.StartNode(home); err != nil {
			t.Fatal(err)
		}
	}
	c.attach(t, v.home, v.name, "fuseloop")
	c.inSync(t, v.home, v.name, time.Minute, v.home, v.away)
	c.detach(t, v.home, v.name)
	leftovers(t, home)
	c.identical(t, v.name)
}
