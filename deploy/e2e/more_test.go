package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// TestProtection goes through the protections of a volume under a consumer while its remote replica is killed: writes stall with a
// named cause and go on when it is back; they stall for a time and go on with an alarm; and they go on when the operator asks for less, on whatever node.
func TestProtection(t *testing.T) {
	c := shared(t)
	c.ctl(t, "b1", "volume", "create", "strict", "--size", "64Mi", "--replicas", "2", "--protection", "max-protection")
	v := c.create(t, "strict2", "64Mi") // for its nodes only
	v.name = "strict"
	for _, r := range c.inspect(t, "b1", "strict").Volume.Replicas {
		if r.Domain == alpha {
			v.home = r.Node
		} else {
			v.away = r.Node
		}
	}
	w := newWriter(t)
	uri := c.attach(t, v.home, v.name)
	w.start(t, uri)
	m := c.mark(t, v.home)
	if err := c.Node(v.away).Kill(); err != nil {
		t.Fatal(err)
	}
	until(t, "the stall has a name", 20*time.Second, func() (bool, error) {
		s := c.inspect(t, v.home, v.name).stall()
		return s == "PROTECTION", fmt.Errorf("stall %q", s)
	})
	stall := c.inspect(t, v.home, v.name).stall()
	n := len(w.acks(t))
	if es := m.since(t, "replica evicted"); len(es) > 0 {
		t.Errorf("evicted from a volume with max-protection: %s", es[0].raw)
	}
	if err := c.StartNode(c.Node(v.away)); err != nil {
		t.Fatal(err)
	}
	at := time.Now()
	w.more(t, 50, 30*time.Second)
	t.Logf("stalled with cause %q after %d writes, went on %v after the replica's start", stall, n, time.Since(at))
	c.inSync(t, v.home, v.name, 30*time.Second, v.home, v.away)

	update := func(node string, args ...string) { // attached is it at home
		t.Helper()
		c.ctl(t, node, append([]string{"volume", "update", v.name}, args...)...)
	}
	for _, node := range []string{v.home, v.away} {
		c.refused(t, node, 7, []string{"epoch", "epoch 1 is expected"}, "volume", "update", v.name, "--stall-for", "5s", "--expect-epoch", "1")
	}
	update(v.away, "--stall-for", "5s", "--reason", "test")
	m = c.mark(t, v.home)
	if err := c.Node(v.away).Kill(); err != nil {
		t.Fatal(err)
	}
	at = time.Now()
	m.await(t, "writes go on without what the protection asks for", 30*time.Second)
	if d := time.Since(at); d < 5*time.Second {
		t.Errorf("writes went on after %v", d)
	}
	w.more(t, 50, 30*time.Second)
	if raw := c.inspect(t, v.home, v.name).raw; !strings.Contains(raw, `"unprotected": true`) && !strings.Contains(raw, `"unprotected":true`) {
		t.Errorf("volume inspect does not tell that the volume is unprotected: %s", raw)
	}
	m = c.mark(t, v.home)
	if err := c.StartNode(c.Node(v.away)); err != nil {
		t.Fatal(err)
	}
	m.await(t, "protection met again", 30*time.Second)

	update(v.away, "--protection", "max-availability", "--stall-for", "0", "--min-in-sync", "2")
	if err := c.Node(v.away).Kill(); err != nil {
		t.Fatal(err)
	}
	until(t, "the stall has a name", 20*time.Second, func() (bool, error) {
		s := c.inspect(t, v.home, v.name).stall()
		return s == "PROTECTION", fmt.Errorf("stall %q", s)
	})
	update(v.home, "--min-in-sync", "0")
	w.more(t, 50, 20*time.Second)
	if err := c.StartNode(c.Node(v.away)); err != nil {
		t.Fatal(err)
	}
	c.inSync(t, v.home, v.name, 30*time.Second, v.home, v.away)
	w.stop(t)
	w.check(t, uri)
	c.detach(t, v.home, v.name)
	c.identical(t, v.name)
	c.ctl(t, "b1", "volume", "delete", "strict", "--yes", "--wait", "--timeout", "30s")
}

// TestThreeReplicas has a coordinator without a replica of its own, three replicas, and kills them one by one: the resync
// of one is interrupted by the end of its source's coordinator.
func TestThreeReplicas(t *testing.T) {
	c := shared(t)
	c.ctl(t, "b1", "volume", "create", "triple", "--size", "128Mi", "--replicas", "3", "--timeout", "30s")
	has := map[string]bool{}
	var nodes []string
	for _, r := range c.inspect(t, "b1", "triple").Volume.Replicas {
		has[r.Node] = true
		nodes = append(nodes, r.Node)
	}
	var at string // the node without
	for _, n := range []string{"a1", "a2", "b1", "b2"} {
		if !has[n] {
			at = n
		}
	}
	w := newWriter(t)
	uri := c.attach(t, at, "triple")
	w.start(t, uri)
	for i, n := range nodes {
		if err := c.Node(n).Kill(); err != nil {
			t.Fatal(err)
		}
		w.more(t, 100, 20*time.Second)
		if err := c.StartNode(c.Node(n)); err != nil {
			t.Fatal(err)
		}
		if i == 0 { // while it is being resynced, the coordinator dies
			until(t, n+" is being resynced", 20*time.Second, func() (bool, error) {
				v := c.inspect(t, nodes[1], "triple")
				return v.replica(n).State == "REPLICA_STATE_SYNCING" || v.replica(n).InSync, fmt.Errorf("%+v", v.replica(n))
			})
			if err := c.Node(at).Kill(); err != nil {
				t.Fatal(err)
			}
			w.failed(t, 10*time.Second)
			if err := c.StartNode(c.Node(at)); err != nil {
				t.Fatal(err)
			}
			uri = c.attach(t, at, "triple")
			w.check(t, uri)
			w.start(t, uri)
		}
		c.inSync(t, at, "triple", time.Minute, nodes...)
	}
	w.stop(t)
	w.check(t, uri)
	c.detach(t, at, "triple")
	c.identical(t, "triple")
	c.ctl(t, "b1", "volume", "delete", "triple", "--yes", "--wait", "--timeout", "30s")
}

// TestTermUnderLoad ends the coordinator with SIGTERM while its consumer writes: it ends in time and in order.
func TestTermUnderLoad(t *testing.T) {
	c := shared(t)
	v := c.create(t, "busy", "64Mi")
	w := newWriter(t)
	w.start(t, c.attach(t, v.home, v.name))
	at := time.Now()
	if err := c.Node(v.home).Stop(); err != nil {
		t.Fatal(err)
	}
	t.Logf("ended in %v; the consumer: %s", time.Since(at), w.failed(t, 10*time.Second))
	m := c.mark(t, v.home)
	if err := c.StartNode(c.Node(v.home)); err != nil {
		t.Fatal(err)
	}
	uri := c.attach(t, v.home, v.name)
	w.check(t, uri)
	for _, e := range m.since(t, "volume serving") {
		if e.Dirty > 0 {
			t.Errorf("after SIGTERM %d blocks are to be reconciled: %s", e.Dirty, e.raw)
		}
	}
	w.start(t, uri)
	w.stop(t)
	c.detach(t, v.home, v.name)
	c.identical(t, v.name)
}
