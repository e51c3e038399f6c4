package e2e

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/tandem-storage/tandem/deploy/lab"
)

// TestSlowReplica (F18) delays what is sent to the other site, with evictSlow below that: the replica there is evicted after half a minute, before
// which every write is as slow, and no sooner, and rests. The protection asks for it then: it is resynced at once.
func TestSlowReplica(t *testing.T) {
	needRoot(t, "/dev/net/tun")
	need(t, "ip", "nsenter")
	const limit, delay = 100 * time.Millisecond, 250 * time.Millisecond
	c := own(t, func(s *lab.Spec) {
		s.Networks = true
		s.Adjust = func(_ string, config map[string]any) {
			config["replication"] = map[string]any{"evictSlow": limit.String()}
		}
	})
	v := c.create(t, "gray", "64Mi")
	w := newWriter(t)
	uri := c.attach(t, v.home, v.name)
	w.start(t, uri)
	c.inSync(t, v.home, v.name, time.Minute, v.home, v.away)

	m, at := c.mark(t, v.home), time.Now()
	c.SetLink(alpha, beta, lab.Link{Delay: delay})
	e := m.await(t, "replica evicted", time.Minute)
	took := time.Since(at)
	if !strings.HasPrefix(e.Reason, "answers slowly: ") || !strings.HasSuffix(e.Reason, " took longer than 100 ms") {
		t.Errorf("evicted because %q", e.Reason)
	}
	if took < 25*time.Second {
		t.Errorf("evicted after %v", took)
	}
	if p := w.pause(t, at); p > 3*time.Second {
		t.Errorf("writes paused for %v", p)
	}
	at = time.Now()
	w.more(t, 200, 20*time.Second)
	t.Logf("evicted after %v: %q; 200 writes in %v then", took.Round(100*time.Millisecond), e.Reason, time.Since(at).Round(time.Millisecond))
	until(t, "volume inspect tells of the rest", 5*time.Second, func() (bool, error) {
		said := c.ctl(t, v.home, "volume", "inspect", v.name)
		return strings.Contains(said, e.Reason+"; rests for "), errors.New(said)
	})

	c.SetLink(alpha, beta, lab.Link{})
	at = time.Now()
	c.ctl(t, v.home, "volume", "update", v.name, "--min-in-sync", "2")
	c.inSync(t, v.home, v.name, 40*time.Second, v.home, v.away)
	t.Logf("in sync %v after it was asked for", time.Since(at).Round(time.Millisecond))
	w.stop(t)
	w.check(t, uri)
	c.detach(t, v.home, v.name)
	c.identical(t, v.name)
}
