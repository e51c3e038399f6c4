package core

import (
	"maps"
	"math/bits"
	"slices"

	"github.com/tandem-storage/tandem/datapath/block"
	"github.com/tandem-storage/tandem/replication"
)

// The simulated metadata of a replica: activity log, dirty maps, superblock. What is on its way when the
// process ends may be stored or not, the dirty maps of a persist in part.

// simActivityState is what an activity log says.
type simActivityState struct {
	regions map[uint32]bool
	lost    bool
}

func (s *simActivityState) active() []uint32  { return slices.Sorted(maps.Keys(s.regions)) }
func (s *simActivityState) has(g uint32) bool { return s.lost || s.regions[g] }
func (s *simActivityState) clone() *simActivityState {
	return &simActivityState{maps.Clone(s.regions), s.lost}
}

// simActivity is an activity log: as the process has it, as it is stored, and the record on its way.
type simActivity struct {
	table, stored, record *simActivityState

	slots int
}

func newSimActivity(lost bool) simActivity {
	s := &simActivityState{map[uint32]bool{}, lost}
	return simActivity{table: s, stored: s.clone()}
}

// open is what a new process finds.
func (l *simActivity) open(slots int) {
	l.table, l.record, l.slots = l.stored.clone(), nil, max(slots, len(l.stored.regions))
}

// land makes the record on its way durable.
func (l *simActivity) land() { l.stored, l.record = l.record, nil }

// change makes a change, and the record of it if somebody waits for that.
func (l *simActivity) change(w *simWorld, n *simNode, c *LogChange) {
	for _, g := range c.Retire {
		if !l.table.regions[g] {
			w.fail("%s retires region %d, which is not in its log", n.id, g)
		}
		delete(l.table.regions, g)
	}
	for _, g := range c.Activate {
		l.table.regions[g] = true
	}
	l.table.lost = c.Lost
	if len(l.table.regions) > l.slots {
		w.fail("%s: %d regions in a log of %d slots", n.id, len(l.table.regions), l.slots)
	}
	if !c.Wait {
		return
	}
	if l.record != nil {
		w.fail("%s: two records at once", n.id)
	}
	l.record = l.table.clone()
	for _, g := range l.stored.active() {
		if len(c.Activate) > 0 && !w.fifo && w.rng.IntN(4) == 0 {
			l.record.regions[g] = true // there was no room to tell that it has left
		}
	}
}

// changeLog carries a change of the log out.
func (n *simNode) changeLog(c *LogChange, alive func() bool) {
	w, d := n.w, &n.disk
	for _, g := range c.Retire {
		w.checkRetire(n, g)
	}
	d.log.change(w, n, c)
	if c.Lost {
		w.seen["log overflows"]++
	}
	if !c.Wait {
		return
	}
	w.trace("%s log: activate %v retire %v lost %v", n.id, c.Activate, c.Retire, c.Lost)
	var do func()
	do = func() {
		var err error
		switch {
		case !alive():
			return
		case d.hung:
			d.stuck = append(d.stuck, do)
			return
		case d.closed:
			d.log.record, err = nil, block.ErrClosed
			d.log.table = d.log.stored.clone()
		case d.failWrite && w.rng.IntN(2) == 0:
			d.log.record, err = nil, block.ErrIO
		default:
			d.log.land()
		}
		n.rep.LogDone(err)
		n.drainRep()
	}
	w.once(n, do)
}

// sweep tells the time to the replica.
func (n *simNode) sweep() {
	if w := n.w; n.up && !n.paused && (w.fifo && w.now%1e9 == 0 || !w.fifo && w.rng.IntN(100) == 0) {
		n.rep.Sweep()
		n.drainRep()
	}
}

func newSimDisk(m ReplicaMeta) simDisk {
	return simDisk{
		size: simSize,
		data: map[int64]uint64{}, stable: map[int64]uint64{}, sums: map[int64]bool{}, bad: map[int64]uint64{}, clean: true, meta: m,
		dirty: map[replication.ReplicaID]*Bitmap{}, log: newSimActivity(false),
	}
}

// store makes a persist durable, as far as the superblock or not.
func (d *simDisk) store(w *simWorld, n *simNode, p *Persist, meta bool) error {
	d.persist = nil
	if p.Size != 0 {
		return d.grow(w, n, p.Size)
	}
	d.keep(p.Maps)
	if p.Meta == nil || !meta {
		return nil
	}
	w.checkPersist(n, p.Meta)
	d.meta = *p.Meta
	for q := range d.dirty {
		if !slices.Contains(d.meta.Missing, q) {
			delete(d.dirty, q)
		}
	}
	for _, q := range d.meta.Missing {
		d.mapOf(q)
	}
	return nil
}

func (d *simDisk) mapOf(q replication.ReplicaID) *Bitmap {
	if d.dirty[q] == nil {
		d.dirty[q] = NewBitmap(blocksOf(d.size))
	}
	return d.dirty[q]
}

// keep adds to the stored dirty maps.
func (d *simDisk) keep(parts []MapPart) {
	for _, p := range parts {
		for b := p.Bits; b != 0; b &= b - 1 {
			d.mapOf(p.Peer).Set(int(p.Region)*regionBlocks + bits.TrailingZeros64(b))
		}
	}
}

// cutShort is the end of the process for what is on its way to the disk.
func (d *simDisk) cutShort(w *simWorld, n *simNode) {
	if d.log.record != nil && !w.fifo && w.rng.IntN(2) == 0 {
		d.log.land()
	}
	if p := d.persist; p != nil && !w.fifo {
		switch w.rng.IntN(3) {
		case 0:
			_ = d.store(w, n, p, true)
		case 1:
			d.keep(p.Maps[:w.rng.IntN(len(p.Maps)+1)])
		}
	}
	d.persist = nil
}
