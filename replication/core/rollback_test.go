package core

import (
	"errors"
	"testing"

	"github.com/tandem-storage/tandem/replication"
)

// A replica promises nothing to who comes from an older configuration than its own, from another lineage of the
// kvdb's content, or from another kvdb that no import made its successor (I22).
func TestReplicaSealLineage(t *testing.T) {
	mine, next, other := replication.UUID{1}, replication.UUID{2}, replication.UUID{3}
	lineage := func(gens ...uint64) (as []replication.Ancestor) { // of epochs 8, 9, ...
		for i, g := range gens {
			as = append(as, replication.Ancestor{Epoch: replication.Epoch(8 + i), Gen: g})
		}
		return as
	}
	for _, tc := range []struct {
		name    string
		epoch   replication.Epoch
		lineage []replication.Ancestor
		inc     replication.UUID
		former  []replication.UUID
		want    replication.Status
	}{
		{"its successor", 11, lineage(80, 90, 100, 110), mine, nil, replication.StatusOK},
		{"the same again", 10, lineage(80, 90, 100), mine, nil, replication.StatusOK},
		{"an older one", 9, lineage(80, 90), mine, nil, replication.StatusEpoch},
		{"the same epoch after a rollback", 10, lineage(80, 90, 101), mine, nil, replication.StatusEpoch},
		{"later after a rollback", 12, lineage(80, 91, 101, 111, 121), mine, nil, replication.StatusEpoch},
		{"so much later that it does not tell", 99, nil, mine, nil, replication.StatusOK},
		{"another kvdb", 11, lineage(80, 90, 100, 110), other, nil, replication.StatusEpoch},
		{"another kvdb after another import", 11, lineage(80, 90, 100, 110), other, []replication.UUID{next}, replication.StatusEpoch},
		{"imported", 11, lineage(80, 90, 100, 110), next, []replication.UUID{other, mine}, replication.StatusOK},
		{"imported, but older", 9, lineage(80, 90), next, []replication.UUID{mine}, replication.StatusEpoch},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := NewReplica(ReplicaOptions{
				Replica: replication.ReplicaID{1}, Size: simSize,
				Meta: ReplicaMeta{Epoch: 10, Gen: 100, Term: 5, State: replication.MemberInSync, Incarnation: mine},
			})
			r.Seal(1, replication.SealRequest{Term: 6, Epoch: tc.epoch, Incarnation: tc.inc, Former: tc.former, Lineage: tc.lineage})
			if r.Ready().Persist != nil {
				r.Advance()
				r.PersistDone(nil)
			}
			got := r.Ready().Replies[0].Result.Seal
			if got.Status != tc.want {
				t.Fatalf("answered %v, want %v", got.Status, tc.want)
			}
			kept := ReplicaMeta{Term: 5, Incarnation: mine}
			if tc.want == replication.StatusOK {
				kept = ReplicaMeta{Term: 6, Incarnation: tc.inc}
			}
			if m := r.Meta(); m.Term != kept.Term || m.Incarnation != kept.Incarnation {
				t.Errorf("it is at term %d of %v", m.Term, m.Incarnation)
			}
		})
	}
}

// degradedWorld is a serving world of which n1 was evicted, and the configuration from before that.
func degradedWorld(t *testing.T) (w *simWorld, before *replication.Config) {
	t.Helper()
	w = servingWorld(t)
	before = w.cfg.Clone()
	w.nodes[1].crash(false)
	for len(w.cfg.ISR) == 2 {
		w.step()
	}
	for range 200 { // it is committed
		w.step()
	}
	return w, before
}

// The kvdb comes back from a backup: a takeover ends as soon as one in-sync replica knows better, though another one, which was evicted
// since, would let it go on with lost writes (I22).
func TestTakeoverAfterRollback(t *testing.T) {
	w, before := degradedWorld(t)
	w.nodes[0].crash(false)
	w.nodes[0].start()
	w.nodes[1].start()
	w.cfg, w.rev, w.rolled = before, w.rev+1, true
	n := w.nodes[1]
	n.attach()
	c := n.coord
	for range 5000 {
		if c.Dead() != nil {
			break
		}
		w.step()
	}
	if err := c.Dead(); !errors.Is(err, replication.ErrRolledBack) {
		t.Fatalf("the takeover ended with %v, stage %d", err, c.stage)
	}
	if m := w.nodes[0].rep.Meta(); m.Epoch <= before.Epoch || len(m.ISR) != 1 {
		t.Errorf("the replica that knew better has %+v", m)
	}
}

// The same when the one that knows better was not waited for, and answers before the takeover is in force.
func TestTakeoverRefusedLate(t *testing.T) {
	w, before := degradedWorld(t)
	w.nodes[0].crash(false)
	w.nodes[0].start()
	w.nodes[1].start()
	w.cfg, w.rev, w.rolled = before, w.rev+1, true
	knows, n := w.nodes[0], w.nodes[1]
	knows.paused = true
	knows.silence(true)
	n.attach()
	c := n.coord
	for range 5000 {
		if c.stage == stagePreparing {
			break
		}
		w.step()
	}
	if c.stage != stagePreparing {
		t.Fatalf("the takeover has not come so far: stage %d", c.stage)
	}
	w.kvHold, knows.paused = true, false
	for range 5000 {
		if c.Dead() != nil {
			break
		}
		w.step()
	}
	if err := c.Dead(); !errors.Is(err, replication.ErrRolledBack) {
		t.Errorf("the takeover ended with %v, stage %d", err, c.stage)
	}
}

// A running coordinator goes on when the kvdb goes back under it, names the cause when it has to change something, and goes on with that when
// the kvdb has its configuration again (G6, I22).
func TestServingThroughRollback(t *testing.T) {
	for name, seen := range map[string]func(old *replication.Config) *replication.Config{
		"older": func(old *replication.Config) *replication.Config { return old },
		"another lineage": func(old *replication.Config) *replication.Config { // as after attempts to attach elsewhere
			for range 20 {
				old.Epoch++
				old.History = append(old.History, replication.EpochRecord{Epoch: old.Epoch, Gen: 1000 + uint64(old.Epoch)})
			}
			old.Gen, old.Coord.Node, old.Coord.Term = 1000+uint64(old.Epoch), "n1", replication.Term(old.Epoch)
			return old
		},
	} {
		t.Run(name, func(t *testing.T) {
			w, before := degradedWorld(t)
			c := w.nodes[0].coord
			truth := w.cfg.Clone()
			w.put(seen(before))
			for range 500 {
				w.step()
			}
			if err := c.Dead(); err != nil {
				t.Fatalf("it ended: %v", err)
			}
			if s := c.Stall(); s != StallNone {
				t.Fatalf("nothing is to be changed, and it stalls: %s", s)
			}
			w.nodes[1].start() // a join is due
			for range 3000 {
				w.step()
			}
			if err := c.Dead(); err != nil {
				t.Fatalf("it ended: %v", err)
			}
			if c.changeStall != StallRollback || c.Stall() != StallNone {
				t.Errorf("the change waits for %q, and writes for %q", c.changeStall, c.Stall())
			}
			c.Detach(w.now)
			for range 500 {
				w.step()
			}
			if s := c.Stall(); s != StallRollback {
				t.Errorf("the detach waits for %q", s)
			}
			w.put(truth) // imported
			for range 5000 {
				w.step()
			}
			if !c.Detached() {
				t.Errorf("not detached after the import: %s, %v", c.Stall(), c.Dead())
			}
		})
	}
}

// A replica that is not in sync may have promised its term to a takeover from a kvdb that had gone back, and that came to
// nothing: what runs goes on (G6).
func TestServingAfterTakeoverFromRollback(t *testing.T) {
	w, _ := degradedWorld(t)
	c, n := w.nodes[0].coord, w.nodes[1]
	n.disk.meta.Term = c.term + 5
	n.start()
	for range 3000 {
		w.step()
	}
	if err := c.Dead(); err != nil || c.Stall() != StallNone || len(w.cfg.ISR) != 1 {
		t.Fatalf("ended with %v, stalls for %q, in sync %v", err, c.Stall(), w.cfg.ISR)
	}
}

// An answer "gone" of the kvdb is believed only when no replica is there.
func TestGoneWithReplica(t *testing.T) {
	for name, there := range map[string]bool{"there": true, "gone too": false} {
		t.Run(name, func(t *testing.T) {
			w, _ := degradedWorld(t)
			c := w.nodes[0].coord
			w.kvHold = true
			c.Detach(w.now)
			for i := 0; i < 2000 && !c.changeSent; i++ {
				w.step()
			}
			for _, m := range c.m {
				m.open = m.open && there
			}
			c.ChangeDone(w.now, ChangeGone, nil, 0)
			switch err := c.Dead(); {
			case there && (err != nil || c.Stall() != StallRollback):
				t.Errorf("ended with %v, stalls for %q", err, c.Stall())
			case !there && !errors.Is(err, replication.ErrVolumeNotFound):
				t.Errorf("goes on: %v", err)
			}
		})
	}
}

// What an operator forced ends a coordinator that nobody could ask.
func TestServingThroughForcedImport(t *testing.T) {
	w, before := degradedWorld(t)
	c := w.nodes[0].coord
	forced := before.Clone()
	forced.Epoch, forced.ForkGen, forced.Coord = w.cfg.Epoch+5, before.ForkGen+1, nil
	forced.History = []replication.EpochRecord{{Epoch: c.cfg.Epoch, Gen: c.cfg.Gen + 1}, {Epoch: forced.Epoch, Gen: forced.Gen}}
	w.put(forced)
	for range 500 {
		w.step()
	}
	if err := c.Dead(); !errors.Is(err, replication.ErrDeposed) {
		t.Errorf("it goes on: %v", err)
	}
}

// A kvdb that refuses what was not imported ends a takeover, and lets what runs wait.
func TestRefusedUntilImported(t *testing.T) {
	w := servingWorld(t)
	c := w.nodes[0].coord
	c.Detach(w.now)
	for c.Ready().Change == nil && !c.changeSent {
		w.step()
	}
	c.ChangeDone(w.now, ChangeRolledBack, nil, 0)
	if c.Dead() != nil || c.Stall() != StallRollback {
		t.Errorf("a detach that is refused: %v, %s", c.Dead(), c.Stall())
	}
	d := New(c.o, w.cfg, w.rev)
	d.Start(w.now)
	d.ChangeDone(w.now, ChangeRolledBack, nil, 0)
	if !errors.Is(d.Dead(), replication.ErrRolledBack) {
		t.Errorf("a takeover that is refused: %v", d.Dead())
	}
}
