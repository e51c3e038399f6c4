package core

import (
	"errors"
	"testing"

	"github.com/tandem-storage/tandem/replication"
)

// A coordinator that was told that its change of the in-sync set is not in force, and sees that it
// is, ends: it has acknowledged by the wrong set.
func TestChangeInForceAfterAll(t *testing.T) {
	t.Run("seen", func(t *testing.T) {
		c, cfg, w := lostJoin(t, true)
		c.ConfigSeen(w.now, cfg)
		if err := c.Dead(); !errors.Is(err, replication.ErrDeposed) {
			t.Errorf("goes on: %v", err)
		}
	})
	t.Run("conflict", func(t *testing.T) {
		c, cfg, w := lostJoin(t, true)
		for !c.changeSent { // until it proposes again
			w.step()
		}
		c.ChangeDone(w.now, ChangeConflict, cfg, w.rev)
		if err := c.Dead(); !errors.Is(err, replication.ErrDeposed) {
			t.Errorf("goes on: %v", err)
		}
	})
}

// lostJoin is a coordinator whose join is in force, which it does not know; cfg is what is in force. If
// denied, it was even told that the join is not.
func lostJoin(t *testing.T, denied bool) (c *Coordinator, cfg *replication.Config, w *simWorld) {
	t.Helper()
	w = servingWorld(t)
	c = w.nodes[0].coord
	w.nodes[1].crash(false)
	for len(w.cfg.ISR) == 2 {
		w.step()
	}
	w.kvLose = "join"
	w.nodes[1].start()
	for w.seen["fault: kvdb lost in join"] == 0 || !c.change.unknown {
		w.step()
	}
	if denied {
		c.change.unknown = false
		c.ChangeDone(w.now, ChangeNotSent, nil, 0)
	}
	if len(c.InSync()) != 1 || len(w.cfg.ISR) != 2 {
		t.Fatalf("in sync are %v, in force is %v", c.InSync(), w.cfg.ISR)
	}
	return c, w.cfg.Clone(), w
}

// An own change that was in the way of an attempt of itself is in force.
func TestChangeConflictsWithItself(t *testing.T) {
	c, cfg, w := lostJoin(t, false)
	c.ChangeDone(w.now, ChangeConflict, cfg, w.rev)
	if err := c.Dead(); err != nil || len(c.InSync()) != 2 {
		t.Errorf("in sync are %v, ended: %v", c.InSync(), err)
	}
}

// While the outcome of a join is open and a write failed on the members, not on the joiner, nothing is read: nobody
// knows which of them counts (I16).
func TestNoReadWhileFailedJoinIsOpen(t *testing.T) {
	c, _, w := lostJoin(t, false)
	w.client.read(0)
	for len(w.client.flight) > 0 {
		w.step()
	}
	w.nodes[0].disk.full = true
	w.client.write(1, 0)
	for len(w.client.flight) > 0 {
		w.step()
	}
	w.client.read(1)
	w.run(20)
	if len(w.client.flight) == 0 || c.Stall() != StallKVDB {
		t.Errorf("%d requests wait, stall %q", len(w.client.flight), c.Stall())
	}
}

// A resync that fails at once is tried less and less often, so that the configuration does not forget what the member
// had; when it can succeed it does so soon.
func TestFailingResync(t *testing.T) {
	w := servingWorld(t)
	far := w.nodes[1]
	far.crash(false)
	for len(w.cfg.ISR) == 2 {
		w.step()
	}
	far.disk.failRead = true
	far.start()
	epoch := w.cfg.Epoch
	w.run(60_000)
	if n := w.cfg.Epoch - epoch; n == 0 || n > 60 {
		t.Errorf("%d changes of the configuration in a minute", n)
	}
	far.disk.failRead = false
	w.run(20_000)
	if len(w.cfg.ISR) != 2 {
		t.Error("not in sync 20 s after the disk could be read")
	}
}
