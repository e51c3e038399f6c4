package core

import (
	"slices"

	"github.com/tandem-storage/tandem/datapath/block"
	"github.com/tandem-storage/tandem/replication"
)

// Disks that give back something else than was written: blocks that rot, writes that land in other blocks. A replica
// tells by its checksums, where it has them (docs/design/0016): simDisk.data is what they vouch for, simDisk.bad what
// the disk has instead.

// spoiled reports whether an operation touches a damaged block.
func (d *simDisk) spoiled(io *LocalIO) (yes bool) {
	eachSector(io, func(s, _ int64) {
		_, bad := d.bad[s]
		yes = yes || bad
	})
	return yes
}

// onDisk is what a block holds, right or not.
func (d *simDisk) onDisk(s int64) uint64 {
	if v, ok := d.bad[s]; ok {
		return v
	}
	return d.data[s]
}

// wrote notes that a block was written: it has a checksum, and is what it says.
func (d *simDisk) wrote(s int64) {
	d.sums[s] = true
	delete(d.bad, s)
}

// ruin makes a block hold something that nobody ever wrote there: what a replica that is being resynced has is told from what
// it should have by its hash, so the two may not be the same by chance.
func (w *simWorld) ruin(n *simNode, s int64) { n.disk.bad[s] = 1<<62 | w.rng.Uint64() }

// forgetSums is what an unclean end costs: the checksums of the regions in the log, and all if it came while the replica
// was no member of the in-sync set. What is there is believed then. That is as far as the product's promise goes, so the block was
// never damaged.
func (d *simDisk) forgetSums() {
	for _, s := range simSectors {
		if d.meta.State != replication.MemberInSync || d.log.stored.has(uint32(s*sector/replication.RegionSize)) {
			delete(d.sums, s)
			delete(d.bad, s)
		}
	}
}

// elsewhere reports whether an in-sync replica other than n's has a block undamaged.
func (w *simWorld) elsewhere(n *simNode, s int64) bool {
	return slices.ContainsFunc(w.nodes, func(m *simNode) bool {
		_, bad := m.disk.bad[s]
		return m != n && w.truth.InISR(m.rid) && m.whole() && !bad
	})
}

// exposed reports whether a block of n's disk may be damaged: that would be seen, and another replica has it.
func (w *simWorld) exposed(n *simNode, s int64) bool {
	return n.disk.sums[s] && w.elsewhere(n, s)
}

// rot damages one or more blocks of n's disk.
func (w *simWorld) rot(n *simNode) bool {
	some := false
	for first, k := w.rng.IntN(simBlocks), 0; k < simBlocks; k++ {
		i := (first + k) % simBlocks
		if s := simSectors[i]; w.exposed(n, s) && (!some || w.rng.IntN(4) == 0) {
			w.trace("sector %d of %s rots", i, n.id)
			w.ruin(n, s)
			some = true
		}
	}
	return some
}

// stray lets what was just written to a block land in another one, if both may be damaged.
func (d *simDisk) stray(w *simWorld, n *simNode, s int64) {
	t := simSectors[w.rng.IntN(simBlocks)]
	if s == t || !w.exposed(n, s) || !w.exposed(n, t) {
		return
	}
	w.seen["fault: write misdirected"]++
	w.trace("what %s writes to sector %d lands in sector %d", n.id, slices.Index(simSectors[:], s), slices.Index(simSectors[:], t))
	d.astray = false
	w.ruin(n, s)
	w.ruin(n, t)
}

// verify is a read of what has checksums.
func (d *simDisk) verify(w *simWorld, io *LocalIO) error {
	if d.spoiled(io) {
		w.seen["damage found"]++
		return block.ErrChecksum
	}
	return nil
}

// ruined reports whether a block is damaged on every one of the nodes. Whatever they should have, reads of it fail.
func ruined(s int64, nodes ...*simNode) bool {
	return !slices.ContainsFunc(nodes, func(n *simNode) bool { _, bad := n.disk.bad[s]; return !bad })
}

// restore repairs the damaged blocks that no other in-sync replica has: the product has nothing to heal them with. A comparison after a
// crash leaves such a block as it is on each of them; the same is put everywhere.
func (w *simWorld) restore() {
	for _, s := range simSectors {
		var like *simNode
		lost := slices.DeleteFunc(slices.Clone(w.nodes), func(n *simNode) bool { return !ruined(s, n) || w.elsewhere(n, s) })
		for _, n := range lost {
			delete(n.disk.bad, s)
			switch {
			case !w.truth.InISR(n.rid):
			case like == nil:
				like = n
			default:
				n.disk.data[s], n.disk.stable[s] = like.disk.data[s], like.disk.stable[s]
			}
		}
	}
}

// checkHealed asserts that nothing is damaged when a volume is at rest and was verified.
func (w *simWorld) checkHealed() {
	for _, n := range w.nodes {
		if len(n.disk.bad) > 0 {
			w.fail("9.4: %s has damaged blocks: %v", n.id, n.disk.bad)
		}
	}
}
