package core

import (
	"errors"
	"slices"

	"github.com/tandem-storage/tandem/datapath/block"
	"github.com/tandem-storage/tandem/replication"
)

// The activity log of a replica (protocol.md 7): in which regions it may differ from
// the others. A region is durably in the log before a write to it is submitted (I11),
// and leaves it lazily, when all its writes are settled on every replica (I13) and
// the dirty maps that tell of them are durable (I14).

// regionState is where a region is on its way into the log.
type regionState uint8

const (
	regionOut    regionState = iota // not in the log
	regionComing                    // asked for; not durable yet
	regionIn                        // durable
)

// region is what is known of one region.
type region struct {
	last  replication.Seq // 1 + number of the last write of this term, 0 if there was none
	old   bool            // unsettled since an earlier term or process
	state regionState
	age   uint8 // calls of Sweep until it may leave
}

// sweeps is how many calls of Sweep a region stays in the log after its last write:
// what is written all the time is not to go in and out of it.
const sweeps = 2

// patience is how many calls of Sweep a write waits for room in the log. Then the
// replica goes on without: any region may be unsettled until everything is settled.
const patience = 4

// LogChange is what to do about the activity log, in this order. Retire and Lost are
// stored with what is stored next, at the latest with a change that is waited for.
type LogChange struct {
	Retire   []uint32        // regions that leave
	Stable   replication.Seq // numbers up to here are settled
	Activate []uint32        // regions that come
	Lost     bool            // any region counts as active, those named and all others
	Wait     bool            // LogDone is due when all this, and what came before it, is durable
}

// MapPart is one region of the dirty map kept for Peer: bit n is its nth
// ResyncBlock. What it has is added to what is stored.
type MapPart struct {
	Peer   replication.ReplicaID
	Region uint32
	Bits   uint64
}

// dirtyMap is a dirty map and how much of it is stored.
type dirtyMap struct {
	*Bitmap
	saved []uint64 // by region
}

const regionBlocks = replication.RegionSize / replication.ResyncBlock // as many as a word of a Bitmap has

// unsaved is what of a region is not stored.
func (m *dirtyMap) unsaved(g uint32) uint64 { return m.w[g] &^ m.saved[g] }

// regionsOf is the first and the last region of an operation.
func regionsOf(off, n int64) (first, last uint32) {
	return uint32(off / replication.RegionSize), uint32((off + n - 1) / replication.RegionSize)
}

// settled reports whether no write of a region needs to be remembered.
func (r *Replica) settled(g uint32) bool {
	x := &r.regions[g]
	return !x.old && x.last <= r.stable+1
}

// active lists the regions that are not settled.
func (r *Replica) active() []uint32 {
	var a []uint32
	for _, g := range r.listed {
		if !r.settled(g) {
			a = append(a, g)
		}
	}
	slices.Sort(a)
	return a
}

// newTerm carries the log over to a new term, with numbers of its own.
func (r *Replica) newTerm() {
	for _, g := range r.listed {
		r.regions[g].old = !r.settled(g)
	}
	for g := range r.regions {
		r.regions[g].last = 0
	}
	r.stable, r.lostTo, r.olds = 0, 0, true
}

// settle takes note that numbers up to stable are settled everywhere. What is older
// than this session or term is that only for a replica that is in sync: one that is
// being resynced has not been compared yet.
func (r *Replica) settle(stable replication.Seq) {
	r.stable = stable
	if r.meta.State == replication.MemberInSync {
		r.settleOld()
	}
	if len(r.parked) > 0 {
		r.pump()
	}
}

// settleOld forgets what is older than this session or term if all is settled that
// may have been given out by then.
func (r *Replica) settleOld() {
	if r.stable == 0 || r.stable < r.lostTo {
		return
	}
	if r.olds {
		r.olds = false
		for _, g := range r.listed {
			r.regions[g].old = false
		}
	}
	if r.logLost {
		r.save() // then the log tells again
	}
}

// modify starts a modification when its regions are durably in the log, and marks its
// blocks for every missing member (I14).
func (r *Replica) modify(io *LocalIO) {
	if io.Kind == replication.MsgResyncWrite && r.meta.State == replication.MemberSyncing {
		// A copy brings this replica nearer to the others. Whatever becomes of it, the block stays
		// in their dirty maps for this replica, or in its log from before, until it has joined.
		r.mark(io)
		r.start(io)
		return
	}
	if len(r.parked) > 0 || !r.enter(io) {
		// Whatever comes now waits behind it, also for regions that are in the log: what is in the
		// log gets settled then, and there is room.
		r.parked = append(r.parked, io)
	}
}

// enter gives the regions of a modification a place in the log and starts it, at once or when they
// are there durably. It reports false if there is no room.
func (r *Replica) enter(io *LocalIO) bool {
	first, last := regionsOf(io.Off, io.Len)
	need, wait := 0, false
	for g := first; g <= last; g++ {
		switch r.regions[g].state {
		case regionOut:
			need++
		case regionComing:
			wait = true
		case regionIn:
		}
	}
	fits := need == 0 || r.makeRoom(need, first, last)
	if !fits && !r.logLost {
		if need <= r.slots && r.waited < patience {
			return false
		}
		r.logLost = true
		r.changeLog().Lost = true
	}
	for g := first; g <= last; g++ {
		x := &r.regions[g]
		if x.state == regionOut && fits {
			x.state = regionComing
			r.listed = append(r.listed, g)
			r.coming = append(r.coming, g)
			wait = true
		}
		x.last, x.age = max(x.last, io.seq+1), sweeps
	}
	r.mark(io)
	if !fits {
		r.lostTo = max(r.lostTo, io.seq)
		io.unlogged = true
		wait = wait || !r.lostStored
	}
	if wait {
		r.held = append(r.held, io)
		r.askLog()
	} else {
		r.start(io)
	}
	return true
}

// mark marks the blocks of a modification dirty for every missing member.
func (r *Replica) mark(io *LocalIO) {
	for _, m := range r.maps {
		m.SetRange(int(io.Off/replication.ResyncBlock), int((io.Off+io.Len-1)/replication.ResyncBlock)+1)
	}
}

// start hands an operation to the kernel.
func (r *Replica) start(io *LocalIO) {
	r.inUse++
	if alters(io.Kind) {
		r.altering++
	}
	r.ready.IO = append(r.ready.IO, io)
}

// logged reports whether the log tells durably of a modification's regions (I11).
func (r *Replica) logged(io *LocalIO) bool {
	if io.unlogged && r.lostStored {
		return true
	}
	first, last := regionsOf(io.Off, io.Len)
	for g := first; g <= last; g++ {
		if r.regions[g].state != regionIn {
			return false
		}
	}
	return true
}

// makeRoom reports whether n more regions fit into the log, after those left that may; the
// coldest first, none of [first, last].
func (r *Replica) makeRoom(n int, first, last uint32) bool {
	for age := uint8(0); len(r.listed)+n > r.slots; age++ {
		if age > sweeps {
			if r.anySettled(func(g uint32) bool { return !r.saved(g) }) {
				r.save()
			}
			return false
		}
		r.retire(age, first, last)
	}
	return true
}

// retire lets regions leave the log: not written for long enough, settled (I13), and every dirty
// map of them durable (I14).
func (r *Replica) retire(age uint8, first, last uint32) {
	kept := r.listed[:0]
	for _, g := range r.listed {
		x := &r.regions[g]
		if x.state != regionIn || x.age > age || first <= g && g <= last || !r.settled(g) || !r.saved(g) {
			kept = append(kept, g)
			continue
		}
		x.state, r.unstored = regionOut, true
		c := r.changeLog()
		c.Retire = append(c.Retire, g)
	}
	r.listed = kept
}

// saved reports whether all dirty maps are stored as far as a region goes.
func (r *Replica) saved(g uint32) bool {
	for _, m := range r.maps {
		if m.unsaved(g) != 0 {
			return false
		}
	}
	return true
}

// anySettled reports whether the log has regions for which cond holds and that need not be in it.
func (r *Replica) anySettled(cond func(g uint32) bool) bool {
	return slices.ContainsFunc(r.listed, func(g uint32) bool { return r.regions[g].state == regionIn && r.settled(g) && cond(g) })
}

// changeLog is the change of the log that the caller is going to make.
func (r *Replica) changeLog() *LogChange {
	if r.ready.Log == nil {
		r.ready.Log = &LogChange{Stable: r.stable, Lost: r.logLost}
	}
	return r.ready.Log
}

// askLog asks for a change that is waited for, one at a time: what is wanted meanwhile shares the next.
func (r *Replica) askLog() {
	if r.logBusy {
		return
	}
	c := r.changeLog()
	c.Wait, c.Lost = true, r.logLost
	c.Activate = append(c.Activate, r.coming...)
	r.flying = append(r.flying, r.coming...)
	r.coming = r.coming[:0]
}

// LogDone tells that the change that was waited for is durable, or that it failed: that ends the
// replica, unless its storage is being closed.
func (r *Replica) LogDone(err error) {
	if !r.logBusy {
		return
	}
	r.logBusy = false
	if err != nil {
		r.logFailed(err)
		return
	}
	for _, g := range r.flying {
		r.regions[g].state = regionIn
	}
	r.flying = r.flying[:0]
	r.lostStored = r.lostAsked
	kept := r.held[:0]
	for _, io := range r.held {
		if r.logged(io) {
			r.start(io)
		} else {
			kept = append(kept, io)
		}
	}
	clear(r.held[len(kept):])
	r.held = kept
	if len(r.coming) > 0 || r.lostStored != r.logLost {
		r.askLog()
	}
	r.pump()
}

// logFailed gives up what waited for a change of the log.
func (r *Replica) logFailed(err error) {
	for _, g := range r.flying {
		r.regions[g].state = regionOut // and if it is in the log all the same, that does no harm
	}
	r.listed = slices.DeleteFunc(r.listed, func(g uint32) bool { return r.regions[g].state == regionOut })
	r.flying = r.flying[:0]
	if errors.Is(err, block.ErrClosed) {
		r.refuseHeld(replication.StatusShuttingDown)
		return
	}
	r.fail()
}

// pump goes on with what waits for room in the log.
func (r *Replica) pump() {
	for len(r.parked) > 0 && r.enter(r.parked[0]) {
		r.parked, r.waited = slices.Delete(r.parked, 0, 1), 0
	}
}

// Sweep lets regions leave the log that were not written for some time. It is due about once a
// second as long as Restless reports true.
func (r *Replica) Sweep() {
	if r.faulted {
		return
	}
	for _, g := range r.listed {
		if x := &r.regions[g]; x.age > 0 {
			x.age--
		}
	}
	r.retire(0, 1, 0)
	if r.unstored {
		r.askLog() // nothing else may be stored for long
	}
	if r.anySettled(func(g uint32) bool { return r.regions[g].age == 0 && !r.saved(g) }) {
		r.save()
	}
	if len(r.parked) > 0 {
		r.waited++
		r.pump()
	}
}

// Restless reports whether there is something that Sweep gets on with.
func (r *Replica) Restless() bool {
	return !r.faulted && (len(r.parked) > 0 || r.unstored || r.anySettled(func(uint32) bool { return true }))
}

// save has the dirty maps stored as far as the log may forget of them.
func (r *Replica) save() {
	if !r.saving {
		r.saving = true
		r.enqueue(&replicaTask{save: true})
	}
}

// unsavedParts is what is to be stored of the dirty maps: of the settled regions, or of all.
func (r *Replica) unsavedParts(all bool) (parts []MapPart) {
	for _, id := range r.meta.Missing {
		m := r.dirty[id]
		part := func(g uint32) {
			if b := m.unsaved(g); b != 0 {
				parts = append(parts, MapPart{Peer: id, Region: g, Bits: m.w[g]})
			}
		}
		if all {
			for g := range r.regions {
				part(uint32(g))
			}
			continue
		}
		for _, g := range r.listed {
			if r.settled(g) {
				part(g)
			}
		}
	}
	return parts
}

// partsSaved takes note of what is stored.
func (r *Replica) partsSaved(parts []MapPart) {
	for _, p := range parts {
		r.dirty[p.Peer].saved[p.Region] |= p.Bits
	}
}

// afterSave lets regions leave, and the log tell again if everything is settled that it did not
// tell of and the dirty maps tell of that now.
func (r *Replica) afterSave() {
	r.saving = false
	if r.logLost && r.stable > 0 && r.stable >= r.lostTo && r.meta.State == replication.MemberInSync && r.allSaved() {
		r.tellAgain()
		r.askLog()
	}
	r.retire(0, 1, 0)
	r.pump()
}

// tellAgain ends the time in which the log does not tell which regions are active. From here on
// nothing is written without it, whatever is stored as yet.
func (r *Replica) tellAgain() { r.logLost, r.lostStored, r.lostAsked = false, false, false }

func (r *Replica) allSaved() bool {
	for g := range r.regions {
		if !r.saved(uint32(g)) {
			return false
		}
	}
	return true
}

// forgetAll empties the log: all numbers up to used are settled, and the dirty maps are stored.
func (r *Replica) forgetAll(used replication.Seq) {
	r.stable, r.olds = max(r.stable, used), false
	r.tellAgain()
	for _, g := range r.listed {
		r.regions[g].old = false
	}
	r.retire(sweeps, 1, 0)
	r.askLog()
}

// dropHeld gives up what was not submitted: its session has ended.
func (r *Replica) dropHeld() {
	r.ready.Dropped = append(append(r.ready.Dropped, r.held...), r.parked...)
	clear(r.held)
	clear(r.parked)
	r.held, r.parked, r.waited = r.held[:0], r.parked[:0], 0
}

// refuseHeld answers what was not submitted with a refusal.
func (r *Replica) refuseHeld(st replication.Status) {
	for _, ios := range [2][]*LocalIO{r.held, r.parked} {
		for _, io := range ios {
			r.nack(io.conn, &replication.Message{Session: io.session, Seq: io.seq, Data: io.Data}, st)
		}
	}
	r.dropHeld()
}
