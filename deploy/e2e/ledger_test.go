package e2e

import (
	"encoding/json"
	"strings"
	"testing"
	"time"
)

// TestLedger loses a site and gets it back while a volume is written from the other one: doctor says before what the loss will do and
// during it what is wrong, the exposure ledger has the one interval from the eviction to the join, and the audit trail all that the operator and
// the nodes did, intact.
func TestLedger(t *testing.T) {
	c := own(t, nil)
	v := c.create(t, "books", "64Mi")
	w := newWriter(t)
	uri := c.attach(t, v.home, v.name)
	w.start(t, uri)
	w.more(t, 50, 10*time.Second)
	if out := c.doctor(t, v.home); !strings.Contains(out, "volume books: would fail over to node "+v.away) ||
		!strings.Contains(out, "volume books: would go on: on node "+v.home) || !strings.Contains(out, v.home+" -> "+v.away) || !strings.Contains(out, "disk-sync") {
		t.Errorf("before the loss: %s", out)
	}

	if err := c.Kill(beta); err != nil {
		t.Fatal(err)
	}
	c.inSync(t, v.home, v.name, 15*time.Second, v.home)
	w.more(t, 50, 10*time.Second)
	c.ctl(t, v.home, "cluster", "domains", "deactivate", "--name", beta, "--peer-lost", "--reason", "site is dark")
	c.refused(t, v.home, 7, []string{beta}, "cluster", "domains", "activate", "--name", beta, "--expect-epoch", "1", "--reason", "by an old epoch")
	if out := c.doctor(t, v.home); !strings.Contains(out, "BAD") || !strings.Contains(out, "volume books: would stop: its only in-sync copy is in "+alpha) {
		t.Errorf("during the loss: %s", out)
	}
	if x := c.exposure(t, v.home, v.name); x.Open == nil || len(x.Open.Missing) != 1 || x.Open.Missing[0].Node != v.away || len(x.Past) != 0 {
		t.Errorf("exposure during the loss: %+v", x)
	}
	// The coordinator dies between the eviction and the join.
	w.stop(t)
	if err := c.Node(v.home).Kill(); err != nil {
		t.Fatal(err)
	}
	c.startSites(t, beta)
	if err := c.StartNode(c.Node(v.home)); err != nil {
		t.Fatal(err)
	}
	c.online(t, v.away)
	c.online(t, v.home)
	uri = c.attach(t, v.home, v.name)
	c.ctl(t, v.home, "--timeout", "1m", "cluster", "domains", "activate", "--name", beta, "--wait", "--reason", "power is back")
	c.inSync(t, v.home, v.name, time.Minute, v.home, v.away)
	x := c.exposure(t, v.home, v.name)
	if x.Open != nil || len(x.Past) != 1 || x.Past[0].To == "0" || x.Past[0].Resynced == "0" || x.Past[0].End == "" {
		t.Errorf("exposure after the return: %+v", x)
	}
	w.check(t, uri)
	c.detach(t, v.home, v.name)
	c.identical(t, v.name)

	trail := c.ctl(t, v.away, "audit", "list")
	at := 0
	for _, what := range []string{"volume create", "host attach", "domain deactivate --peer-lost", "site is dark", "domain activate", "power is back", "domain settle", "host detach"} {
		i := strings.Index(trail[at:], what)
		if i < 0 {
			t.Fatalf("%q is not in the audit trail, or not in its place:\n%s", what, trail)
		}
		at += i
	}
	if strings.Contains(trail, "by an old epoch") {
		t.Errorf("what was refused is in the audit trail:\n%s", trail)
	}
	if out := c.ctl(t, v.away, "audit", "verify"); !strings.Contains(out, "intact") {
		t.Error(out)
	}
}

// doctor is what doctor prints, whatever its verdict.
func (c *cluster) doctor(t *testing.T, node string) string {
	t.Helper()
	out, err := c.Ctl(t.Context(), c.Node(node), "doctor")
	if err != nil && !strings.Contains(err.Error(), "BAD") {
		t.Fatal(err)
	}
	return out
}

// exposure is the exposure ledger of a volume.
type exposure struct {
	Open *interval  `json:"open"`
	Past []interval `json:"past"`
}

type interval struct {
	To       string `json:"to_unix_ms"`
	End      string `json:"end"`
	Resynced string `json:"resynced_bytes"`
	Missing  []struct {
		Node string `json:"node"`
	} `json:"missing"`
}

func (c *cluster) exposure(t *testing.T, node, volume string) exposure {
	t.Helper()
	var r struct {
		Exposure exposure `json:"exposure"`
	}
	if err := json.Unmarshal([]byte(c.ctl(t, node, "volume", "exposure", volume, "-o", "json")), &r); err != nil {
		t.Fatal(err)
	}
	return r.Exposure
}
