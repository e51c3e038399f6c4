package e2e

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/tandem-storage/tandem/deploy/lab"
)

// aggressive is a cluster with automatic failover whose sites have networks of their own.
func aggressive(kvdb string, networks bool) func(*lab.Spec) {
	return func(s *lab.Spec) { s.KVDB, s.Failover, s.Networks = kvdb, "aggressive", networks }
}

// movedBound is how long storage may be away in the aggressive profile. The protocol's about 10 s, and an election: the leader of
// the kvdb may be lost with the site, and registrations are held until there is another one.
const movedBound = 16 * time.Second

// failoverReport is what is read of `failover report -o json`.
type failoverReport struct {
	Failover struct {
		Domain  string `json:"domain"`
		To      string `json:"to"`
		Fenced  int64  `json:"fenced_unix_ms,string"`
		Volumes []struct {
			Name     string `json:"name"`
			To       string `json:"to_node"`
			Before   uint64 `json:"epoch_before,string"`
			After    uint64 `json:"epoch_after,string"`
			Attached int64  `json:"attached_unix_ms,string"`
			Cause    string `json:"cause"`
			Receipt  *struct {
				Kept     bool            `json:"kept"`
				Why      string          `json:"why"`
				Exposed  json.RawMessage `json:"exposed"`
				Returned int64           `json:"returned_unix_ms,string"`
				Verified *struct {
					Equal bool `json:"equal"`
					Sides []struct {
						Digest string `json:"digest"`
					} `json:"sides"`
				} `json:"verified"`
				Bytes  int64             `json:"returned_bytes,string"`
				Before uint64            `json:"epoch_before,string"`
				After  uint64            `json:"epoch_after,string"`
				From   map[string]string `json:"from"`
				To     map[string]string `json:"to"`
				Fence  struct {
					Failover uint64 `json:"failover,string"`
					Actor    string `json:"actor"`
				} `json:"fence"`
				Replicas []struct {
					Node string `json:"node"`
					Term uint64 `json:"last_term,string"`
					Seq  uint64 `json:"last_seq,string"`
				} `json:"replicas"`
			} `json:"receipt"`
		} `json:"volumes"`
	} `json:"failover"`
}

func (c *cluster) report(t *testing.T, ask string) failoverReport {
	t.Helper()
	var r failoverReport
	if out := c.ctl(t, ask, "failover", "report", "-o", "json"); json.Unmarshal([]byte(out), &r) != nil {
		t.Fatalf("failover report printed %q", out)
	}
	return r
}

// moved waits until a volume is served on a node, without anybody asking for it, and returns what a consumer opens.
func (c *cluster) moved(t *testing.T, node, volume string, within time.Duration) string {
	t.Helper()
	var path string
	until(t, fmt.Sprintf("%s goes on on %s by itself", volume, node), within, func() (bool, error) {
		out, err := c.Ctl(t.Context(), c.Node(node), "--timeout", "3s", "volume", "inspect", volume, "-o", "json")
		if err != nil {
			return false, err
		}
		var v struct {
			Volume struct {
				Attachment struct {
					Node string `json:"node"`
					Path string `json:"path"`
				} `json:"attachment"`
				Phase string `json:"phase"`
			} `json:"volume"`
		}
		if err := json.Unmarshal([]byte(out), &v); err != nil {
			return false, lab.Final(err)
		}
		path = v.Volume.Attachment.Path
		return v.Volume.Attachment.Node == node && v.Volume.Phase == "PHASE_ACTIVE" && path != "", fmt.Errorf("it is %+v", v)
	})
	return path
}

// idle watches for so long that no domain is changed.
func (c *cluster) idle(t *testing.T, ask string, during time.Duration) {
	t.Helper()
	begin := time.Now()
	until(t, "nobody moves anything", during+20*time.Second, func() (bool, error) {
		out, err := c.Ctl(t.Context(), c.Node(ask), "--timeout", "3s", "cluster", "domains", "show", "-o", "json")
		if err == nil && strings.Contains(out, "FENCED") {
			return false, lab.Final(fmt.Errorf("a domain was fenced: %s", out))
		}
		return time.Since(begin) > during, err
	})
}

// TestSiteLostByItself kills every process of the site with the coordinator (F13). The other one takes over by itself within
// the bound and has everything; the lost one stays out of service until an operator lets it return.
func TestSiteLostByItself(t *testing.T) {
	for _, kvdb := range []string{"raft", "etcd"} {
		t.Run(kvdb, func(t *testing.T) {
			c := own(t, aggressive(kvdb, false))
			v, manual := c.create(t, "ledger", "64Mi"), c.create(t, "byhand", "64Mi")
			c.ctl(t, "b1", "volume", "create", "onecopy", "--size", "16Mi", "--replicas", "1", "--domains", alpha, "--timeout", "30s")
			c.ctl(t, "b1", "volume", "create", "manual", "--size", "16Mi", "--replicas", "2", "--failover", "manual", "--timeout", "30s")
			w, w2 := newWriter(t), newWriter(t)
			w.start(t, c.attach(t, v.home, v.name))
			w2.start(t, c.attach(t, manual.spare, manual.name))
			c.attach(t, "a1", "onecopy")
			c.attach(t, "a2", "manual")
			w.more(t, 200, 10*time.Second)
			w2.more(t, 50, 10*time.Second)

			at := time.Now()
			if err := c.Kill(alpha); err != nil {
				t.Fatal(err)
			}
			uri := c.moved(t, v.away, v.name, time.Minute)
			took := time.Since(at)
			t.Logf("served on %s %v after the loss of its site", v.away, took)
			if took > movedBound {
				t.Errorf("it took %v, the bound is %v", took, movedBound)
			}
			w.check(t, uri)
			w2.check(t, c.moved(t, manual.away, manual.name, 10*time.Second))

			var r failoverReport
			until(t, "the report has both volumes attached", 10*time.Second, func() (bool, error) {
				r = c.report(t, "b1")
				n := 0
				for _, f := range r.Failover.Volumes {
					if f.Attached >= r.Failover.Fenced && f.After > f.Before {
						n++
					}
				}
				return n == 2, fmt.Errorf("%+v", r)
			})
			causes := map[string]string{}
			for _, f := range r.Failover.Volumes {
				causes[f.Name] = f.Cause
			}
			if r.Failover.Domain != alpha || r.Failover.To != beta || causes["onecopy"] != "last-copy" || causes["manual"] != "manual" || causes[v.name] != "" {
				t.Errorf("%+v", r)
			}
			if s := c.ctl(t, "b1", "status"); !strings.Contains(s, "failover-pending") || !strings.Contains(s, "onecopy") {
				t.Errorf("the status does not tell what does not go on: %s", s)
			}
			if trail := c.ctl(t, "b1", "audit", "list"); strings.Contains(trail, "unknown") || strings.Count(trail, "automatic failover 1") != 3 { // the fence and two attaches
				t.Errorf("the audit trail:\n%s", trail)
			}
			c.attach(t, "b1", "manual") // as its owner wants it

			if err := c.Start(alpha); err != nil {
				t.Fatal(err)
			}
			c.online(t, v.home)
			if out := c.ctl(t, v.home, "cluster", "domains", "show"); !strings.Contains(out, "FENCED") {
				t.Errorf("a domain returned to service by itself: %s", out)
			}
			w.start(t, uri)
			c.ctl(t, "b1", "--timeout", "1m", "cluster", "domains", "activate", "--name", alpha, "--wait")
			c.inSync(t, v.away, v.name, time.Minute, v.home, v.away)
			c.receipt(t, v)
			c.verifiedSince(t, v)
			w.more(t, 50, 10*time.Second)
			w.stop(t)
			w.check(t, uri)
			c.detach(t, v.away, v.name)
			c.identical(t, v.name)
		})
	}
}

// receipt checks the receipt of a volume whose site was lost in the first failover, was written to until then, and has returned.
func (c *cluster) receipt(t *testing.T, v vol) {
	t.Helper()
	for _, f := range c.report(t, v.away).Failover.Volumes {
		r := f.Receipt
		switch {
		case f.Name != v.name:
			continue
		case r == nil:
			t.Fatalf("no receipt of %s", v.name)
		case !r.Kept || !strings.Contains(r.Why, v.away), string(r.Exposed) != "null", r.Returned == 0, r.Bytes == 0, r.Fence.Failover != 1, !strings.Contains(r.Fence.Actor, "arbiter"),
			r.From["node"] != v.home, r.To["node"] != v.away, r.From["id"] == r.To["id"], r.Before != f.Before, r.After != f.After:
			t.Errorf("%+v", r)
		}
		for _, p := range r.Replicas {
			if p.Node == v.away && (fmt.Sprint(p.Term) != r.From["term"] || p.Seq < 200) {
				t.Errorf("%s says at the takeover that it has %d of term %d, it was written to in %s", p.Node, p.Seq, p.Term, r.From["term"])
			}
		}
		return
	}
	t.Fatalf("%s is not in the report", v.name)
}

// verifiedSince compares both sides of a volume that is written to, after a failover: the receipt has the digests.
func (c *cluster) verifiedSince(t *testing.T, v vol) {
	t.Helper()
	if out := c.ctl(t, v.away, "failover", "report"); !strings.Contains(out, "tandemctl volume verify start "+v.name) {
		t.Errorf("before a verify: %s", out)
	}
	c.ctl(t, v.away, "volume", "verify", "start", v.name, "--rate", "0")
	until(t, "the verify is on record", time.Minute, func() (bool, error) {
		for _, f := range c.report(t, v.away).Failover.Volumes {
			if f.Name != v.name || f.Receipt.Verified == nil {
				continue
			}
			if x := f.Receipt.Verified; !x.Equal || len(x.Sides) != 2 || len(x.Sides[0].Digest) != 64 || x.Sides[0].Digest != x.Sides[1].Digest {
				t.Errorf("verified: %+v", x)
			}
			return true, nil
		}
		return false, nil
	})
}

// TestArbiterJudges: the link between the sites is cut (F5), then the kvdb is lost and comes back without a single registration
// (F8), and nobody moves anything. Then the site with the coordinator is cut from all others (F6): the other one takes over by
// itself, nothing is confirmed on the island after that, and its consumer gets errors.
func TestArbiterJudges(t *testing.T) {
	needRoot(t, "/dev/net/tun")
	need(t, "ip", "nsenter")
	const longEnough = 12 * time.Second // a nodeTTL of 5 s and a confirm of 3 s
	c := own(t, aggressive("raft", true))
	v := c.create(t, "judged", "64Mi")
	w := newWriter(t)
	uri := c.attach(t, v.home, v.name)
	w.start(t, uri)
	chapters(t, chapter{"the link between the sites is cut", func(t *testing.T) {
		c.SetLink(alpha, beta, lab.Link{Lost: true})
		c.SetLink(beta, alpha, lab.Link{Lost: true})
		c.idle(t, v.home, longEnough)
		w.more(t, 50, 10*time.Second)
		c.SetLink(alpha, beta, lab.Link{})
		c.SetLink(beta, alpha, lab.Link{})
		c.inSync(t, v.home, v.name, time.Minute, v.home, v.away)
	}}, chapter{"the kvdb is lost, and comes back", func(t *testing.T) {
		c.killMembers(t, alpha, beta, gamma)
		c.idle(t, v.away, longEnough)
		w.more(t, 50, 10*time.Second)
		c.startSites(t, alpha, beta, gamma)
		c.online(t, v.away)
		c.idle(t, v.away, longEnough)
		c.inSync(t, v.home, v.name, time.Minute, v.home, v.away)
	}}, chapter{"the site is cut from all others", func(t *testing.T) {
		w.more(t, 50, 10*time.Second)
		c.Cut(alpha)
		at := time.Now()
		uri = c.moved(t, v.away, v.name, time.Minute)
		took := time.Now()
		t.Logf("served on %s %v after the cut", v.away, took.Sub(at))
		if took.Sub(at) > movedBound {
			t.Errorf("it took %v, the bound is %v", took.Sub(at), movedBound)
		}
		w.checkRead(t, uri) // while the island is alive
		for _, a := range w.acks(t) {
			if a.After(took) {
				t.Fatalf("a write was confirmed on the island at %v, after the takeover at %v", a, took)
			}
		}
		m := c.mark(t, v.home)
		c.Heal(alpha)
		t.Logf("the island's consumer: %s", w.failed(t, time.Minute))
		m.await(t, "volume lost", 30*time.Second)
		w.check(t, uri)
		w.start(t, uri)
		c.ctl(t, v.away, "--timeout", "1m", "cluster", "domains", "activate", "--name", alpha, "--wait")
		w.more(t, 50, 10*time.Second)
		w.stop(t)
		w.check(t, uri)
		c.detach(t, v.away, v.name)
		c.identical(t, v.name)
	}})
}
