package core

import (
	"errors"
	"fmt"

	"github.com/tandem-storage/tandem/datapath/block"
	"github.com/tandem-storage/tandem/replication"
)

// An operator who lets the volume grow now and then, the disks that do, and what may be behind the end of it.

// simSizes are those that the volume may have: each makes room for a sector more. One ends in the middle of a region.
var simSizes = [...]int64{simSize, 4 * replication.RegionSize, 9 * replication.RegionSize / 2}

// simResizes are the sizes that were asked for, without an answer.
type simResizes struct {
	ids   uint64
	asked map[uint64]int64
}

// sectors is how many of simSectors a consumer of n's coordinator may use.
func (n *simNode) sectors() (k int) {
	for _, s := range simSectors {
		if (s+1)*sector <= n.coord.Size() {
			k++
		}
	}
	return k
}

// growSome asks the coordinator for a larger size, or for one that cannot be.
func (w *simWorld) growSome() {
	n := w.client.at
	if n == nil || n.coord == nil || n.paused {
		return
	}
	w.grow(n, simSizes[w.rng.IntN(len(simSizes))])
}

// grow asks n for a size.
func (w *simWorld) grow(n *simNode, size int64) {
	r := &w.resizes
	if r.asked == nil {
		r.asked = map[uint64]int64{}
	}
	r.ids++
	r.asked[r.ids] = size
	w.trace("operator asks %s for %d sectors", n.id, size/sector)
	n.coord.SetSize(n.clock(), r.ids, size)
	n.drainCoord()
}

// resizeTold takes what became of a request.
func (w *simWorld) resizeTold(n *simNode, e *Event) {
	size := w.resizes.asked[e.ID]
	delete(w.resizes.asked, e.ID)
	switch {
	case e.Err == nil:
		w.trace("%s: the volume has %d sectors", n.id, size/sector)
		w.seen["resized"]++
		if n.coord.Size() != size {
			w.fail("the operator was told of %d bytes, the coordinator goes by %d", size, n.coord.Size())
		}
	case errors.Is(e.Err, replication.ErrNoRoom):
		w.trace("%s: %s has no room for %d sectors", n.id, w.cfg.Members[e.Replica].Node, size/sector)
		w.seen["resize refused: no room"]++
	default:
		w.trace("%s: the volume does not grow to %d sectors: %v", n.id, size/sector, e.Err)
		w.seen["resize refused"]++
	}
	if e.Err == nil && n.coord.mine(w.truth) && w.truth.Size < size {
		w.fail("the operator was told of %d bytes, in force are %d", size, w.truth.Size)
	}
}

// grow is what the store does about a larger size.
func (d *simDisk) grow(w *simWorld, n *simNode, size int64) error {
	if size <= d.size {
		w.fail("%s is to grow from %d to %d bytes", n.id, d.size, size)
	}
	if d.full {
		w.seen["no room to grow"]++
		return fmt.Errorf("%w: growing", block.ErrNoSpace)
	}
	d.size = size
	for _, m := range d.dirty {
		m.Grow(blocksOf(size))
	}
	w.trace("%s grows to %d sectors", n.id, size/sector)
	w.seen["replica grown"]++
	if w.truth.Members[n.rid].State != replication.MemberInSync {
		w.seen["replica grown to come in sync"]++
	}
	return nil
}

// checkBounds asserts that nothing is written or read that the replica does not have, nor written behind the end of the volume.
func (w *simWorld) checkBounds(n *simNode, io *LocalIO) {
	end := io.Off + io.Len
	if io.Kind == replication.MsgSnapCut {
		end = io.Off // the size of the snapshot
	}
	switch {
	case end > n.disk.size:
		w.fail("0028: %v up to %d on %s, which has %d bytes", io.Kind, end, n.id, n.disk.size)
	case modifies(io.Kind) && end > w.truth.Size:
		w.fail("0028: %v up to %d on %s, the volume has %d bytes", io.Kind, end, n.id, w.truth.Size)
	}
}

// checkSizes asserts that every in-sync replica is as large as the volume.
func (w *simWorld) checkSizes() {
	for _, n := range w.nodes {
		if w.truth.InISR(n.rid) && n.disk.size < w.truth.Size {
			w.fail("0028: %s is in sync and has %d bytes, the volume %d", n.id, n.disk.size, w.truth.Size)
		}
	}
}
