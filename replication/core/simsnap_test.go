package core

import (
	"bytes"
	"maps"
	"math/rand/v2"
	"slices"

	"github.com/tandem-storage/tandem/datapath/block"
	"github.com/tandem-storage/tandem/replication"
)

// Snapshots in the simulated world: somebody asks for one now and then, and what counts as one has to be the same on all replicas that hold it, have
// what was acknowledged before it was asked for, and stay as it is.

// simSnapshots is what was asked for, with numbers of its own: a world in which nobody asks draws the same as ever.
type simSnapshots struct {
	rng  *rand.Rand
	one  int // step in so many; 0 never
	open *simSnapshot
	good []*simSnapshot
	last *Coordinator // that took one after the faults
	told func(*Event) // of a directed test
}

type simSnapshot struct {
	id      replication.SnapshotID
	by      *Coordinator
	acked   [simBlocks]uint64      // what was known when it was asked for
	holders map[*simNode]*simSnaps // as their disks were then
	rest    bool                   // it was asked for after the faults
}

func (w *simWorld) drawSnapshots(rng *rand.Rand) {
	w.snaps = simSnapshots{rng: rng, one: []int{0, 60, 200}[rng.IntN(3)]}
}

// takeSnapshot is somebody's whim.
func (w *simWorld) takeSnapshot() {
	s, n := &w.snaps, w.client.at
	if s.one == 0 || s.rng.IntN(s.one) != 0 || n == nil || n.coord == nil || n.paused {
		return
	}
	if s.open != nil && s.open.by == n.coord {
		return
	}
	n.snapshot([]int64{20e6, 100e6, 2e9}[s.rng.IntN(3)], []int64{5e6, 50e6, 500e6}[s.rng.IntN(3)], false)
}

// snapshot asks n's coordinator for one.
func (n *simNode) snapshot(wait, hold int64, rest bool) {
	w := n.w
	x := &simSnapshot{by: n.coord, acked: w.history.known, rest: rest}
	for i := range x.id {
		x.id[i] = byte(w.snaps.rng.Uint32())
	}
	w.snaps.open = x
	w.trace("%s takes a snapshot", n.id)
	n.coord.Snapshot(n.clock(), x.id, n.clock()+wait, hold)
	n.drainCoord()
}

// simSnaps are the snapshots of a disk, by the sectors as they were at the cut.
type simSnaps map[replication.SnapshotID]map[int64]uint64

// simSnapSize is where a snapshot has its size, which is no sector.
const simSnapSize = -1

// snapshot is the one that io takes, nil if it is not there.
func (d *simDisk) snapshot(io *LocalIO) map[int64]uint64 {
	if d.snaps == nil {
		return nil
	}
	return (*d.snaps)[replication.SnapshotID(io.Data)]
}

// cut carries a snapshot out.
func (d *simDisk) cut(n *simNode, io *LocalIO) error {
	w, id := n.w, replication.SnapshotID(io.Data)
	for _, o := range n.flight {
		if alters(o.Kind) {
			w.fail("15.1: %s takes a snapshot with %v in its kernel", n.id, o.Kind)
		}
	}
	if d.failFlush || d.dropNext {
		d.drop(w)
		return block.ErrIO
	}
	maps.Copy(d.stable, d.data)
	switch {
	case d.noCut != nil:
		return d.noCut
	case d.full:
		return block.ErrNoSpace
	case d.snaps == nil:
		d.snaps = &simSnaps{}
	case d.snapshot(io) != nil:
		w.fail("15.1: %s is asked twice for a snapshot", n.id)
	}
	has := maps.Clone(d.data)
	has[simSnapSize] = uint64(io.Off)
	(*d.snaps)[id] = has
	return nil
}

// snapshotTold checks a snapshot that counts.
func (w *simWorld) snapshotTold(n *simNode, e *Event) {
	x := w.snaps.open
	if w.snaps.told != nil {
		w.snaps.told(e)
	}
	if x == nil || x.id != e.Snapshot {
		return
	}
	w.snaps.open = nil
	if e.Err != nil {
		w.trace("%s: %v", n.id, e.Err)
		w.seen["snapshot: none"]++
		return
	}
	w.seen["snapshot"]++
	w.trace("%s: snapshot taken", n.id)
	x.holders = map[*simNode]*simSnaps{}
	for _, m := range w.nodes {
		if slices.Contains(e.Holders, m.rid) {
			x.holders[m] = m.disk.snaps
		}
	}
	w.snaps.good = append(w.snaps.good, x)
	if x.rest {
		w.snaps.last = x.by
	}
	if !slices.Equal(byID(e.Holders), byID(n.coord.InSync())) {
		w.fail("15.1: %v hold a snapshot, in sync are %v", e.Holders, n.coord.InSync())
	}
	w.checkSnapshot(x)
	w.checkCut(n, x)
}

func byID(ids []replication.ReplicaID) []replication.ReplicaID {
	return slices.SortedFunc(slices.Values(ids), func(a, b replication.ReplicaID) int { return bytes.Compare(a[:], b[:]) })
}

// checkCut asserts that a snapshot just taken has what was acknowledged, and besides only what the consumer may find yet.
func (w *simWorld) checkCut(n *simNode, x *simSnapshot) {
	h := &w.history
	if w.owed || w.client.at != n || !n.coord.mine(w.truth) {
		return
	}
	for _, m := range w.nodes {
		snaps := x.holders[m]
		if snaps == nil || m.lossy() {
			continue
		}
		for k, s := range simSectors {
			if v := (*snaps)[x.id][s]; !h.unsure[k] && !h.mayBe(k, v) {
				w.fail("15.1: the snapshot of %s has %d in sector %d, acknowledged is %d, when it was asked for %d", m.id, v, k, h.known[k], x.acked[k])
			}
		}
	}
}

// checkSnapshot asserts that the holders have it, and the same. One whose disk was replaced has none any more.
func (w *simWorld) checkSnapshot(x *simSnapshot) {
	var first map[int64]uint64
	for _, m := range w.nodes {
		snaps, holds := x.holders[m]
		if !holds || m.disk.snaps != snaps {
			continue
		}
		if snaps == nil || (*snaps)[x.id] == nil {
			w.fail("15.1: %s holds no snapshot, and is said to", m.id)
		}
		has := (*snaps)[x.id]
		if first != nil && first[simSnapSize] != has[simSnapSize] {
			w.fail("15.1: a snapshot has %d bytes on one replica and %d on %s", first[simSnapSize], has[simSnapSize], m.id)
		}
		for k, s := range simSectors {
			if first != nil && first[s] != has[s] {
				w.fail("15.1: a snapshot has %d in sector %d on one replica and %d on %s", first[s], k, has[s], m.id)
			}
		}
		first = has
	}
}

func (w *simWorld) checkSnapshots() {
	for _, x := range w.snaps.good {
		w.checkSnapshot(x)
	}
}

// snapshotAtRest reports whether one was taken since the faults have ended: then there is nothing in its way.
func (w *simWorld) snapshotAtRest(c *Coordinator) bool {
	s := &w.snaps
	switch {
	case s.one == 0 || s.last == c:
		return true
	case s.open == nil || s.open.by != c:
		w.client.at.snapshot(2e9, 500e6, true)
	}
	return false
}
