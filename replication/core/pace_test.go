package core

import (
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/tandem-storage/tandem/replication"
)

// paceWorld is a consumer that has one request in flight and copies beside it, a millisecond at a time.
type paceWorld struct {
	c      Coordinator
	rng    *rand.Rand
	took   int64   // a request, ns, or up to half as long again
	bears  int64   // bytes a second of copies that it does not feel; above, one in ten takes ten times as long
	copied int64   // bytes
	recent []int64 // copied in each of the last 1000 ms
}

func newPaceWorld(floor int64) *paceWorld {
	return &paceWorld{
		c:   Coordinator{o: Options{ResyncFloor: floor, ResyncWindow: 8}, now: 1e15},
		rng: rand.New(rand.NewPCG(1, 1)), took: 2e6, recent: make([]int64, 1000),
	}
}

// run lets ms milliseconds pass and returns how many bytes a second were copied in the last second.
func (w *paceWorld) run(ms int, copies bool) (speed int64) {
	for range ms {
		w.c.now += 1e6
		now := int64(0)
		w.c.jobs = nil
		for copies && w.c.budget() {
			w.c.jobs = append(w.c.jobs, &copyJob{})
			w.c.pace.copied = w.c.now
			now += w.c.unit()
		}
		w.recent = append(w.recent[1:], now)
		var felt int64 // of the last 50 ms
		for _, n := range w.recent[950:] {
			felt += n
		}
		took := w.took + w.rng.Int64N(w.took/2)
		if felt*20 > w.bears && w.rng.IntN(10) == 0 {
			took *= 10
		}
		w.c.proposed = w.c.now
		w.c.pace.answered(w.c.now, &IO{Kind: replication.MsgWrite, Len: sector, born: w.c.now - took}, len(w.c.jobs) > 0)
		w.copied += now
	}
	for _, n := range w.recent {
		speed += n
	}
	return speed
}

// between fails the test unless the speed is from lo to hi MiB a second.
func (w *paceWorld) between(t *testing.T, what string, speed, lo, hi int64) {
	t.Helper()
	if speed < lo<<20 || speed > hi<<20 {
		t.Errorf("%s: %d MiB a second are copied, want %d to %d", what, speed>>20, lo, hi)
	}
}

// Copies are as fast as the consumer does not feel, find that speed again when it changes, and are never slower than the floor.
func TestPace(t *testing.T) {
	w := newPaceWorld(16 << 20)
	w.bears = 1 << 62
	w.between(t, "a consumer that feels nothing", w.run(3000, true), 200, 1<<20)
	w.bears = 100 << 20
	w.run(5000, true)
	was := w.copied
	w.run(20000, true)
	w.between(t, "one that feels more than 100 MiB a second", (w.copied-was)/20, 40, 110)
	w.bears = 0
	w.run(5000, true)
	w.between(t, "one that feels every copy", w.run(2000, true), 12, 20)
	w.bears = 1 << 62
	w.run(10000, true)
	w.between(t, "one that feels nothing again", w.run(1000, true), 200, 1<<20)
}

// A consumer whose requests take longer for another reason is not waited for: what they take without copies is learned anew.
func TestPaceLearns(t *testing.T) {
	w := newPaceWorld(16 << 20)
	w.bears = 1 << 62
	w.run(20000, true)
	w.took *= 20
	w.run(10000, true) // believes that the copies are to blame
	w.run(30000, true)
	w.between(t, "a consumer with slower requests", w.run(1000, true), 100, 1<<20)
}

// A consumer that has paused leaves everything to the copies, in spans, and the next request takes it back.
func TestPaceIdle(t *testing.T) {
	w := newPaceWorld(16 << 20)
	w.run(1000, false)
	c := &w.c
	started := func() (n int) {
		for c.jobs = nil; c.budget(); n++ {
			c.jobs = append(c.jobs, &copyJob{})
		}
		return n
	}
	if n := started(); n > 1 || c.unit() != paceUnit {
		t.Errorf("beside a consumer %d at once of %d bytes", n, c.unit())
	}
	c.now += busyFor
	if n := started(); n != c.o.ResyncWindow || c.unit() != copySpan {
		t.Errorf("without a consumer %d at once of %d bytes, want %d of %d", n, c.unit(), c.o.ResyncWindow, copySpan)
	}
}

// The percentile is right to a quarter, whatever the distribution, and after part of it was forgotten.
func TestLatencies(t *testing.T) {
	rng := rand.New(rand.NewPCG(2, 2))
	for _, scale := range []float64{1e5, 1e7, 1e9} {
		var l latencies
		all := make([]int64, 4000)
		for i := range all {
			all[i] = int64(scale * rng.ExpFloat64())
			l.add(all[i])
		}
		slices.Sort(all)
		want := all[len(all)*99/100]
		if got := l.p99(); got < want*9/10 || got > want*5/4+4000 {
			t.Errorf("99th percentile %d ns, want %d", got, want)
		}
		l.age(500)
		if got := l.p99(); l.total > 500 || got < want/2 || got > want*5/4+4000 {
			t.Errorf("99th percentile of %d that are left %d ns, want about %d", l.total, got, want)
		}
	}
	var l latencies
	l.add(-1)
	l.add(1 << 62)
	if l.p99() <= 0 {
		t.Errorf("of everything: %d", l.p99())
	}
}
