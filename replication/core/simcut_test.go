package core

import (
	"errors"
	"testing"

	"github.com/tandem-storage/tandem/replication"
)

// cutRun is one attempt to cut the group, by an orchestrator whose messages take their time and are lost, and which may end at any moment.
type cutRun struct {
	w      *groupWorld
	op     replication.UUID
	way    int64
	gone   bool // the orchestrator has ended
	failed bool
	waits  int // answers to the step under way
	at     map[*groupVol]replication.CutPosition
	began  int // what was acknowledged before
	done   func(c *cutRun)
}

// ask sends a step to every volume, and then goes on when all have answered.
func (c *cutRun) ask(step func(v *groupVol, now int64, answer func(good bool)), then func()) {
	c.waits = len(c.w.vols)
	for _, v := range c.w.vols {
		if v.c == nil || c.w.rng.IntN(60) == 0 {
			c.failed = true // never answered, or not in time
			c.w.after(c.way, func() { c.answered(false, then) })
			continue
		}
		v.later(c.way, func(now int64) {
			step(v, now, func(good bool) { c.w.after(c.way, func() { c.answered(good, then) }) })
		})
	}
}

func (c *cutRun) answered(good bool, then func()) {
	c.failed = c.failed || !good
	if c.waits--; c.waits == 0 && !c.gone {
		then()
	}
}

// cut is volume.Catalogue.CutGroup.
func (w *groupWorld) cut(way, hold int64, done func(*cutRun)) {
	c := &cutRun{w: w, op: w.uuid(), way: way, at: map[*groupVol]replication.CutPosition{}, began: w.acked, done: done}
	c.ask(func(v *groupVol, now int64, answer func(bool)) {
		if err := v.c.HoldForCut(now, c.op, now+hold); err != nil {
			answer(false)
			return
		}
		v.held = func() { v.held = nil; answer(true) }
	}, c.note)
	w.after(2*hold, func() { // who does not answer is not waited for
		if c.waits > 0 && len(c.at) == 0 {
			c.gone = true
		}
	})
}

func (c *cutRun) note() {
	if c.failed {
		c.release()
		return
	}
	c.ask(func(v *groupVol, now int64, answer func(bool)) {
		at, held := v.c.Cut(now, c.op)
		c.at[v] = at
		answer(held)
	}, c.release)
}

func (c *cutRun) release() {
	if c.w.rng.IntN(10) == 0 {
		c.gone = true // it ends here: the deadline releases
		return
	}
	c.ask(func(v *groupVol, now int64, answer func(bool)) { answer(v.c.ReleaseCut(now, c.op)) }, func() {
		if !c.failed {
			c.done(c)
		}
	})
}

// check holds a cut that counts to what it is for.
func (c *cutRun) check() {
	w, has, last := c.w, map[int]bool{}, -1
	for v, at := range c.at {
		for _, tag := range append(append([]int(nil), v.before...), v.order[:at.Writes]...) {
			has[tag] = true
			last = max(last, tag)
		}
	}
	for tag := range max(last, c.began) {
		if !has[tag] {
			w.fail("the cut has tag %d without %d; %d was acknowledged before it", last, tag, c.began)
		}
	}
}

// TestSimCut cuts groups under a consumer whose writes depend on each other, with slow and lost messages, late deadlines, evictions and orchestrators that end.
func TestSimCut(t *testing.T) {
	seeds := max(*groupSeeds, 25)
	cuts, tries := 0, 0
	for seed := range uint64(seeds) {
		w := newGroupWorld(seed, 2+int(seed%2))
		w.pace = 5e6
		for _, v := range w.vols {
			v.attach()
		}
		w.after(1, w.issue)
		w.run(1e9)
		for range 25 {
			way := []int64{2e6, 30e6, 150e6}[w.rng.IntN(3)]
			tries++
			w.cut(way, 1e8+w.rng.Int64N(9e8), func(c *cutRun) {
				cuts++
				c.check()
			})
			if w.rng.IntN(8) == 0 {
				w.vols[w.rng.IntN(len(w.vols))].setFar(w.rng.IntN(2) == 0)
			}
			was := w.acked
			w.run(w.now + 1e9 + w.rng.Int64N(2e9))
			if w.acked == was && w.vols[w.at].c.Stall() == StallNone {
				w.fail("nothing goes on after a cut, which holds for a second at most")
			}
		}
	}
	if cuts < tries/4 || cuts == tries {
		t.Errorf("%d of %d cuts were made: that proves little", cuts, tries)
	}
	t.Logf("%d of %d cuts were made", cuts, tries)
}

// A volume is held by one operation, until that releases it or its time is up, whoever notices first.
func TestCutHold(t *testing.T) {
	w := newGroupWorld(1, 1)
	v := w.vols[0]
	v.attach()
	w.run(1e9)
	a, b := replication.UUID{1}, replication.UUID{2}
	v.c.Propose(w.now, &IO{Kind: replication.MsgWrite, Len: sector, Data: make([]byte, sector)})
	v.drain()
	if err := v.c.HoldForCut(w.now, a, w.now+1e9); err != nil {
		t.Fatal(err)
	}
	if err := v.c.HoldForCut(w.now, b, w.now+1e9); !errors.Is(err, replication.ErrBusy) {
		t.Errorf("held twice: %v", err)
	}
	if v.c.ReleaseCut(w.now, b) {
		t.Error("released by an operation that does not hold it")
	}
	if _, held := v.c.Cut(w.now, a); held {
		t.Error("held with a write in flight")
	}
	w.run(w.now + 5e7)
	if at, held := v.c.Cut(w.now, a); !held || at.Writes != 1 {
		t.Errorf("nothing is in flight, and it is not held: %+v", at)
	}
	if v.c.ReleaseCut(w.now+1e9, a) {
		t.Error("held when its time was up")
	}
	if err := v.c.HoldForCut(w.now, b, w.now+1e9); err != nil {
		t.Errorf("it was released: %v", err)
	}
	if _, held := v.c.Cut(w.now+1e9-1, b); !held {
		t.Error("its time is not up")
	}
	if !v.c.ReleaseCut(w.now+1e9-1, b) || v.c.ReleaseCut(w.now+1e9-1, b) {
		t.Error("it is released once")
	}
	v.drain()
	v.setFar(false)
	w.run(w.now + 3.5e9)
	if err := v.c.HoldForCut(w.now, a, w.now+1e9); v.c.Stall() != StallNone && !errors.Is(err, replication.ErrStalled) {
		t.Errorf("its writes do not proceed (%s): %v", v.c.Stall(), err)
	}
}
