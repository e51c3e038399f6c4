package core

import (
	"math/rand/v2"
	"testing"

	"github.com/tandem-storage/tandem/replication"
)

// healWorld is a world of two nodes of which the first serves.
func healWorld(t *testing.T) (*simWorld, *Coordinator) {
	t.Helper()
	w := newSimWorld(2, rand.New(rand.NewPCG(1, 1)))
	w.fifo, w.buggy = true, true
	w.fail = t.Fatalf
	w.client.at = w.nodes[0]
	w.nodes[0].attach()
	for end := w.now + 50e6; w.now < end; {
		w.step()
	}
	return w, w.nodes[0].coord
}

// TestHealLeavesReconcile: in blocks that may differ a heal judges nobody, even if it comes before the comparison that
// decides.
func TestHealLeavesReconcile(t *testing.T) {
	w, c := healWorld(t)
	w.nodes[1].disk.data[0] = 5
	c.reconcile.Set(0)
	c.copyAt = w.now + 100e6
	c.suspect(0, sector)
	for end := w.now + 400e6; w.now < end; {
		w.step()
	}
	if n := c.reconcile.Count(); n != 0 || len(c.harms) != 0 || c.healing != nil || w.nodes[1].disk.data[0] != 0 {
		t.Errorf("%d blocks to reconcile, harm %v, healing %v, the other replica has %d", n, c.harms, c.healing, w.nodes[1].disk.data[0])
	}
}

// TestCopyIsNotSettled: a flush covers no heal that is in flight, and no copy of a comparison, though nothing is left to be compared
// once the other replica has been evicted: so no activity log forgets what they write (I13).
func TestCopyIsNotSettled(t *testing.T) {
	for name, begin := range map[string]func(c *Coordinator){
		"heal":       func(c *Coordinator) { c.suspect(0, sector) },
		"comparison": func(c *Coordinator) { c.reconcile.Set(0) },
	} {
		_, c := healWorld(t)
		begin(c)
		c.progress()
		if len(c.jobs) != 1 || c.jobs[0].io.slot < 0 {
			t.Fatalf("no %s is in flight", name)
		}
		c.reconcile.Reset()
		c.flushNow()
		for _, io := range c.flight.ios {
			if io.Kind == replication.MsgFlush && io.cover >= c.jobs[0].io.seq {
				t.Errorf("the flush covers numbers up to %d, the %s began with %d", io.cover, name, c.jobs[0].io.seq)
			}
		}
	}
}

// TestExamineInSyncOnly: a replica that is not in sync tells nobody what it has (I20), and a coordinator that asks it before it
// knows that it has joined does not give it up for that.
func TestExamineInSyncOnly(t *testing.T) {
	w, c := healWorld(t)
	w.nodes[1].rep.meta.State = replication.MemberSyncing
	c.suspect(0, sector)
	w.nodes[0].disk.bad[0] = 7
	for end := w.now + 200e6; w.now < end; {
		w.step()
	}
	if w.cfg.Epoch != 3 || len(c.harms) != 0 || w.nodes[0].disk.bad[0] != 7 {
		t.Errorf("epoch %d, evicted for %q, harm %v, damaged %v", w.cfg.Epoch, c.evictWhy, c.harms, w.nodes[0].disk.bad)
	}
}
