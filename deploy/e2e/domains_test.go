package e2e

import (
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tandem-storage/tandem/deploy/lab"
)

// TestLastCopy deactivates the domain that has the last in-sync copy: refused with the volume's name, until the
// operator accepts the loss by that name.
func TestLastCopy(t *testing.T) {
	c := own(t, nil)
	v := c.create(t, "ledger", "64Mi")
	w := newWriter(t)
	uri := c.attach(t, v.home, v.name)
	w.start(t, uri)
	if err := c.Node(v.away).Kill(); err != nil {
		t.Fatal(err)
	}
	c.inSync(t, v.home, v.name, 15*time.Second, v.home)
	w.more(t, 50, 10*time.Second)
	w.stop(t)
	c.detach(t, v.home, v.name)
	if err := c.StartNode(c.Node(v.away)); err != nil {
		t.Fatal(err)
	}
	c.online(t, v.away)
	before := c.ctl(t, v.away, "cluster", "domains", "show", "-o", "json")

	for _, how := range [][]string{{"--peer-lost"}, {"--peer-lost", "--yes", "--accept-data-loss", v.name + "x"}} {
		exit, says := 4, []string{v.name, "--accept-data-loss"}
		if len(how) > 1 {
			exit, says = 3, []string{v.name + "x"}
		}
		c.refused(t, v.away, exit, says, append([]string{"cluster", "domains", "deactivate", "--name", alpha}, how...)...)
	}
	if after := c.ctl(t, v.away, "cluster", "domains", "show", "-o", "json"); after != before {
		t.Errorf("a refused request changed the domains:\nbefore: %s\nafter:  %s", before, after)
	}
	c.ctl(t, v.away, "cluster", "domains", "deactivate", "--name", alpha, "--peer-lost", "--yes", "--accept-data-loss", v.name)
	if out := c.ctl(t, v.away, "cluster", "domains", "show"); !strings.Contains(out, "FENCED") {
		t.Errorf("alpha was deactivated with the loss accepted: %s", out)
	}
	// What it has is not served behind the operator's back either, and is there again when the domain is.
	c.refused(t, v.away, 4, []string{v.name, v.home, "FENCED"}, "host", "attach", v.name)
	c.ctl(t, v.away, "cluster", "domains", "activate", "--name", alpha)
	uri = c.attach(t, v.away, v.name)
	w.check(t, uri)
	c.inSync(t, v.away, v.name, time.Minute, v.home, v.away)
	c.detach(t, v.away, v.name)
	c.identical(t, v.name)
}

// TestPlannedDeactivation takes the other site out of service by plan while a volume is written, and brings it back: its
// replica leaves, the deactivation ends, no write fails or waits long, and the replica is in sync after the activation.
func TestPlannedDeactivation(t *testing.T) {
	c := shared(t)
	v := c.create(t, "serviced", "64Mi")
	w := newWriter(t)
	uri := c.attach(t, v.home, v.name)
	w.start(t, uri)
	w.more(t, 50, 10*time.Second)
	at := time.Now()
	c.ctl(t, v.home, "--timeout", "30s", "cluster", "domains", "deactivate", "--name", beta, "--wait")
	t.Logf("beta was deactivated within %v", time.Since(at))
	if out := c.ctl(t, v.home, "cluster", "domains", "show"); !strings.Contains(out, "INACTIVE") {
		t.Errorf("the deactivation ended, and it is not INACTIVE: %s", out)
	}
	c.inSync(t, v.home, v.name, time.Second, v.home)
	w.more(t, 100, 10*time.Second)
	if p := w.pause(t, at); p > pauseBound {
		t.Errorf("writes paused for %v", p)
	} else {
		t.Logf("writes paused for %v", p)
	}
	c.ctl(t, v.home, "--timeout", "1m", "cluster", "domains", "activate", "--name", beta, "--wait")
	c.inSync(t, v.home, v.name, time.Second, v.home, v.away)
	w.more(t, 100, 10*time.Second)
	w.stop(t)
	w.check(t, uri)
	c.detach(t, v.home, v.name)
	c.identical(t, v.name)
}

// TestZombie pauses a whole site with its coordinator, takes over in the other domain, and wakes the site up: the old
// coordinator's writes are refused, its device fails, and the replicas do not diverge.
func TestZombie(t *testing.T) {
	c := shared(t)
	v := c.create(t, "zombie", "64Mi")
	w := newWriter(t)
	w.start(t, c.attach(t, v.home, v.name))
	site := c.Processes(alpha)
	for _, n := range site {
		if err := n.Signal(syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
	}
	at := time.Now()
	until(t, "deactivate alpha", 30*time.Second, func() (bool, error) {
		_, err := c.Ctl(t.Context(), c.Node(v.away), "cluster", "domains", "deactivate", "--name", alpha, "--peer-lost")
		return err == nil, err
	})
	uri := c.attach(t, v.away, v.name)
	t.Logf("attached on %s %v after the pause", v.away, time.Since(at))
	confirmed := len(w.acks(t))

	m := c.mark(t, v.home)
	for _, n := range site {
		if err := n.Signal(syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("the old coordinator's consumer: %s", w.failed(t, 20*time.Second))
	m.await(t, "volume lost", 20*time.Second)
	if n := len(w.acks(t)); n > confirmed+8 { // those that both replicas had before the pause
		t.Errorf("%d writes were confirmed to the old consumer after the takeover", n-confirmed)
	}
	w.check(t, uri)
	w.start(t, uri)
	c.refused(t, v.home, 4, []string{alpha}, "host", "attach", v.name)
	c.ctl(t, v.away, "--timeout", "1m", "cluster", "domains", "activate", "--name", alpha, "--wait")
	w.more(t, 100, 10*time.Second)
	w.stop(t)
	w.check(t, uri)
	c.detach(t, v.away, v.name)
	c.identical(t, v.name)
}

// TestPartition cuts the network of the site with the coordinator: packets are lost, nobody is told. While it lasts the
// old coordinator, alive and with its own replica at hand, must not get one write confirmed.
func TestPartition(t *testing.T) {
	needRoot(t, "/dev/net/tun")
	need(t, "ip", "nsenter")
	c := own(t, func(s *lab.Spec) { s.Networks = true })
	v := c.create(t, "island", "64Mi")
	w := newWriter(t)
	w.start(t, c.attach(t, v.home, v.name))
	c.Cut(alpha)
	cut := time.Now()
	until(t, "deactivate alpha", 30*time.Second, func() (bool, error) {
		_, err := c.Ctl(t.Context(), c.Node(v.away), "cluster", "domains", "deactivate", "--name", alpha, "--peer-lost")
		return err == nil, err
	})
	m := c.mark(t, v.home)
	uri := c.attach(t, v.away, v.name)
	took := time.Now()
	t.Logf("attached on %s %v after the cut", v.away, took.Sub(cut))
	w.checkRead(t, uri) // while the island is alive
	for _, a := range w.acks(t) {
		if a.After(took) {
			t.Fatalf("a write was confirmed on the island at %v, after the takeover at %v", a, took)
		}
	}
	c.Heal(alpha)
	t.Logf("the island's consumer: %s", w.failed(t, 60*time.Second))
	t.Logf("its device failed %v after the cut", time.Since(cut))
	m.await(t, "volume lost", 30*time.Second)
	w.check(t, uri)
	w.start(t, uri)
	c.ctl(t, v.away, "--timeout", "1m", "cluster", "domains", "activate", "--name", alpha, "--wait")
	w.more(t, 100, 10*time.Second)

	// The site without coordinator is cut: eviction and return.
	at := time.Now()
	c.Cut(alpha)
	c.inSync(t, v.away, v.name, 20*time.Second, v.away)
	w.more(t, 100, 10*time.Second)
	if p := w.pause(t, at); p > pauseBound {
		t.Errorf("writes paused for %v", p)
	} else {
		t.Logf("writes paused for %v", p)
	}
	c.Heal(alpha)
	c.inSync(t, v.away, v.name, time.Minute, v.home, v.away)
	w.stop(t)
	w.check(t, uri)
	c.detach(t, v.away, v.name)
	c.identical(t, v.name)
}
