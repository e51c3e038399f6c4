package e2e

import (
	"fmt"
	"testing"
	"time"

	"github.com/tandem-storage/tandem/deploy/lab"
)

// TestResyncBudget lets one node miss writes to volumes that are attached on two other nodes, and lets it receive one resync at a
// time: they come one after the other, wherever they come from, and all of them come.
func TestResyncBudget(t *testing.T) {
	const rate, written = 32 << 20, 32 << 20
	c := own(t, func(s *lab.Spec) {
		s.Adjust = func(_ string, config map[string]any) {
			config["replication"] = map[string]any{"resyncsPerPool": 1, "resyncRatePerPool": fmt.Sprintf("%dMi", rate>>20)}
		}
	})
	need(t, "fio")
	// Every volume has its replica in beta on one node: only there is one of two nodes with room.
	if err := c.Node("b2").Stop(); err != nil {
		t.Fatal(err)
	}
	c.offline(t, "a1", "b2")
	var vs []vol
	uris := map[string]string{}
	marks := map[string]mark{"a1": c.mark(t, "a1"), "a2": c.mark(t, "a2")}
	for i := range 6 {
		v := c.create(t, fmt.Sprintf("shared%d", i), "128Mi")
		vs = append(vs, v)
		uris[v.name] = c.attach(t, []string{"a1", "a2"}[i%2], v.name)
	}
	if err := c.Node("b1").Stop(); err != nil {
		t.Fatal(err)
	}
	for _, v := range vs {
		sh(t, "fio", "--name=fill", "--ioengine=nbd", "--uri="+uris[v.name], "--rw=write", "--bs=256k", fmt.Sprintf("--size=%d", written), "--iodepth=8", "--refill_buffers", "--output=/dev/null")
	}
	began := time.Now()
	if err := c.StartNode(c.Node("b1")); err != nil {
		t.Fatal(err)
	}
	joined := func() (n int) {
		for _, m := range marks {
			n += len(m.since(t, "replica in sync"))
		}
		return n
	}
	waited := false
	until(t, "every replica is in sync", 2*time.Minute, func() (bool, error) {
		started := 0
		for _, m := range marks {
			started += len(m.since(t, "resync started")) - len(m.since(t, "resync stopped"))
		}
		done := joined()
		if started > done+1 {
			return false, lab.Final(fmt.Errorf("%d resyncs have begun and %d have ended: one at a time may write to the disk", started, done))
		}
		for i, v := range vs {
			node := []string{"a1", "a2"}[i%2]
			for _, r := range c.inspect(t, node, v.name).Volume.Replicas {
				waited = waited || r.ResyncWaits
			}
		}
		return done == len(vs), fmt.Errorf("%d of %d are", done, len(vs))
	})
	took := time.Since(began)
	if least := time.Duration(len(vs)) * time.Second * written / rate * 8 / 10; took < least {
		t.Errorf("%d resyncs of %d MiB at %d MiB a second took %v, want %v at least", len(vs), written>>20, rate>>20, took, least)
	}
	if !waited {
		t.Error("nobody was told to wait for its turn")
	}
	t.Logf("%d resyncs of %d MiB one after the other in %v", len(vs), written>>20, took)
	if err := c.StartNode(c.Node("b2")); err != nil {
		t.Fatal(err)
	}
	for i, v := range vs {
		c.detach(t, []string{"a1", "a2"}[i%2], v.name)
		c.identical(t, v.name)
	}
}
