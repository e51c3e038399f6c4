package core

import (
	"math/rand/v2"

	"github.com/tandem-storage/tandem/replication"
)

// Slow disks in the simulated world, and coordinators that evict for it.

// simGray has numbers of its own: a world without it draws the same as ever.
type simGray struct {
	rng *rand.Rand
	one int // step in so many some disk becomes slow, or as fast as ever; 0 never
}

func (w *simWorld) drawGray(rng *rand.Rand) {
	pick := func(v ...int64) int64 { return v[rng.IntN(len(v))] }
	w.gray = simGray{rng: rng}
	if rng.IntN(2) == 0 {
		w.gray.one = 1500
		w.nodes[rng.IntN(len(w.nodes))].disk.slow = 120e6
	}
	w.opts.EvictSlow = pick(0, 60e6, 80e6, 100e6)
	w.opts.SlowWindow, w.opts.SlowWindows, w.opts.SlowWrites = pick(30e6, 100e6), int(pick(1, 2)), int(pick(1, 3))
	w.opts.SlowRest = pick(1, 50e6, 200e6)
}

// slowDown changes how fast some disk is.
func (w *simWorld) slowDown() {
	g := &w.gray
	if g.one == 0 || g.rng.IntN(g.one) != 0 {
		return
	}
	d := &w.nodes[g.rng.IntN(len(w.nodes))].disk
	if d.slow = []int64{0, 120e6, 150e6}[g.rng.IntN(3)]; d.slow > 0 {
		w.seen["fault: slow disk"]++
	}
}

// leftSlowly takes note that n's coordinator has evicted a replica because it is slow. The others are what the protection asks for.
func (w *simWorld) leftSlowly(n *simNode, r replication.ReplicaID) {
	c := n.coord
	if !n.lapsed && !c.meets(c.cfg.Policy(), c.isr) {
		w.fail("F18: %s left because it is slow, with %v in sync, protection %+v", w.cfg.Members[r].Node, w.inSync(), c.cfg.Policy())
	}
}
