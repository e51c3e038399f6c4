package e2e

import (
	"testing"
	"time"

	"github.com/tandem-storage/tandem/deploy/lab"
)

// TestStartWithoutKVDB starts a daemon while the majority of the kvdb is away: it waits with a named cause and goes on when that is back.
func TestStartWithoutKVDB(t *testing.T) {
	c := own(t, nil)
	c.killMembers(t, beta, gamma)
	n := c.Node("a2")
	if err := n.Stop(); err != nil {
		t.Fatal(err)
	}
	m := c.mark(t, "a2")
	if err := c.StartNode(n); err != nil {
		t.Fatal(err)
	}
	m.await(t, "waiting for the kvdb", 20*time.Second)
	c.refused(t, "a2", 5, []string{n.Socket}, "--timeout", "3s", "status")
	c.startSites(t, beta, gamma)
	m.await(t, "tandemd ready", 30*time.Second)
	c.online(t, "a2")
}

// TestEtcd runs on a real etcd of three members: takeover, loss of etcd under load, and return.
func TestEtcd(t *testing.T) {
	c := own(t, func(s *lab.Spec) { s.KVDB = "etcd" })
	v := c.create(t, "onetcd", "64Mi")
	w := newWriter(t)
	uri := c.attach(t, v.home, v.name)
	w.start(t, uri)
	chapters(t, chapter{"etcd is killed", func(t *testing.T) {
		c.killMembers(t, alpha, beta, gamma)
		at := time.Now()
		until(t, "12 s of writes", 30*time.Second, func() (bool, error) {
			acks := w.acks(t)
			return len(acks) > 0 && acks[len(acks)-1].Sub(at) > 12*time.Second, nil
		})
		if p := w.pause(t, at); p > 3*time.Second {
			t.Errorf("writes paused for %v", p)
		}
		c.startSites(t, alpha, beta, gamma)
		for _, n := range []string{v.home, v.away} {
			c.online(t, n)
		}
	}}, chapter{"a site is killed", func(t *testing.T) {
		at := time.Now()
		if err := c.Kill(alpha); err != nil {
			t.Fatal(err)
		}
		w.failed(t, 10*time.Second)
		until(t, "deactivate alpha", 30*time.Second, func() (bool, error) {
			_, err := c.Ctl(t.Context(), c.Node(v.away), "cluster", "domains", "deactivate", "--name", alpha, "--peer-lost")
			return err == nil, err
		})
		uri = c.attach(t, v.away, v.name)
		t.Logf("attached %v after the kill", time.Since(at))
		w.check(t, uri)
		w.start(t, uri)
		if err := c.Start(alpha); err != nil {
			t.Fatal(err)
		}
		c.online(t, v.home)
		c.ctl(t, v.away, "--timeout", "1m", "cluster", "domains", "activate", "--name", alpha, "--wait")
	}})
	w.stop(t)
	w.check(t, uri)
	c.detach(t, v.away, v.name)
	c.identical(t, v.name)
}

// TestStallEnds takes the kvdb and the remote replica away together: no write may be confirmed, so they wait, and
// after the stall timeout fail. The device lives and goes on when both are back.
func TestStallEnds(t *testing.T) {
	c := own(t, func(s *lab.Spec) {
		s.Adjust = func(_ string, config map[string]any) {
			config["replication"] = map[string]any{"opTimeout": "3s", "sealTimeout": "2s", "leaseTime": "1s", "leaseGrant": "1500ms", "stallTimeout": "6s"}
		}
	})
	v := c.create(t, "stalled", "64Mi")
	w := newWriter(t)
	uri := c.attach(t, v.home, v.name)
	w.start(t, uri)
	c.killMembers(t, beta, gamma)
	if err := c.Node(v.away).Kill(); err != nil {
		t.Fatal(err)
	}
	at := time.Now()
	m := c.mark(t, v.home)
	t.Logf("the consumer: %s", w.failed(t, 20*time.Second))
	if took := time.Since(at); took < 5*time.Second {
		t.Errorf("the write failed after %v, before the stall timeout of 6 s", took)
	}
	for _, msg := range []string{"replica evicted", "volume lost"} {
		if es := m.since(t, msg); len(es) > 0 {
			t.Errorf("without a kvdb: %s", es[0].raw)
		}
	}
	c.startSites(t, beta, gamma)
	at = time.Now()
	w.start(t, uri) // the same showing
	t.Logf("writes go on %v after the kvdb and the replica are back", time.Since(at))
	c.inSync(t, v.home, v.name, time.Minute, v.home, v.away)
	w.stop(t)
	w.check(t, uri)
	c.detach(t, v.home, v.name)
	c.identical(t, v.name)
}
