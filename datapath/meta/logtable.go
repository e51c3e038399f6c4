package meta

import (
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/tandem-storage/tandem/datapath/invariant"
)

// ErrLogFull means that no more regions can be active at once. Test with errors.Is.
var ErrLogFull = errors.New("meta: activity log is full")

// LogTable is an activity log in memory: which regions are active, and which of
// that is not stored yet. A change is stored by the record that Next makes after
// it and Stored confirms; what changed up to then shares the record. Not safe for
// concurrent use.
type LogTable struct {
	owner  logOwner
	tx     uint64 // of the last record made
	term   uint64
	stable uint64
	lost   bool

	count  int            // of slots
	slots  []logSlot      // the first of them, up to the last one that was ever in use here: those behind are free, and stored as free
	slotOf map[uint32]int // slot by region: of those active, and of those retired whose slot still has them stored
	active int
	free   []int // of slots, those that are free, and some that were: see logSlot.listed
	window int   // first slot of the next context

	// Changes that somebody may wait for have numbers, from 1 on.
	queue  []logEntry
	number uint64 // of the last one queued
	lostAt uint64 // number of the last change of lost
	taken  uint64 // numbers up to here are in a record, or need none
	stored uint64 // numbers up to here are stored
	busy   bool   // a record was made and is not confirmed

	lazy []int // slots to be stored as free when there is room

	rec logRecord // reused
}

// logSlot is what is to be known of one slot.
type logSlot struct {
	want   uint32 // region, or LogFree
	made   uint32 // the same, as of the last record made
	number uint64 // of the last change queued
	listed bool   // in free
	lazy   bool   // in lazy
}

// logContexts are lent to records while they are made: tables that rest have none.
var logContexts = sync.Pool{New: func() any { return new([maxLogContext]uint32) }}

type logEntry struct {
	slot   int // noSlot: the record itself is wanted
	number uint64
}

const noSlot = -1

// newLogTable returns a table of s with n slots, or as many as s has in use. The
// records that are made next tell every slot.
func newLogTable(s *logState, owner logOwner, n int) *LogTable {
	for used := len(s.slots); used > n; used-- {
		if s.slots[used-1] != LogFree {
			n = used // can be reduced when these are free
		}
	}
	t := &LogTable{
		owner: owner, tx: s.tx, term: s.term, stable: s.stable, lost: s.lost,
		count: n, slotOf: make(map[uint32]int),
	}
	used := min(len(s.slots), n)
	for used > 0 && s.slots[used-1] == LogFree {
		used--
	}
	t.slots = make([]logSlot, used)
	for i := used - 1; i >= 0; i-- {
		g := s.slots[i]
		t.slots[i] = logSlot{want: g, made: g}
		if g == LogFree {
			t.release(i)
		} else {
			t.slotOf[g] = i
			t.active++
		}
	}
	for range (n + maxLogContext - 1) / maxLogContext {
		t.enqueue(noSlot)
	}
	return t
}

// Slots is how many regions may be active at once.
func (t *LogTable) Slots() int { return t.count }

// Active lists the active regions in ascending order.
func (t *LogTable) Active() []uint32 {
	a := make([]uint32, 0, t.active)
	for i := range t.slots {
		if g := t.slots[i].want; g != LogFree {
			a = append(a, g)
		}
	}
	slices.Sort(a)
	return a
}

// Lost reports that the log does not know which regions are active: all may be.
func (t *LogTable) Lost() bool { return t.lost }

// SetLost makes every region count as active, or no longer.
func (t *LogTable) SetLost(lost bool) { t.lost = lost }

// SetTerm notes the replica's term in the records to come.
func (t *LogTable) SetTerm(term uint64) {
	if term != t.term {
		t.term, t.stable = term, 0
	}
}

// SetStable notes in the records to come up to which number writes are settled.
func (t *LogTable) SetStable(stable uint64) { t.stable = max(t.stable, stable) }

// Activate makes regions active. It returns the number of the change, for IsStored.
// If there are not enough slots for all of them nothing is changed: ErrLogFull.
func (t *LogTable) Activate(regions []uint32) (number uint64, err error) {
	need := 0
	for _, g := range regions {
		if g == LogFree {
			return 0, fmt.Errorf("%w: region %d", ErrInvalid, g)
		}
		if !t.isActive(g) {
			need++
		}
	}
	if t.active+need > t.count {
		return 0, fmt.Errorf("%w: %d of %d regions are active, %d more do not fit", ErrLogFull, t.active, t.count, need)
	}
	for _, g := range regions {
		number = max(number, t.activate(g))
	}
	return number, nil
}

func (t *LogTable) isActive(g uint32) bool {
	i, ok := t.slotOf[g]
	return ok && t.slots[i].want == g
}

func (t *LogTable) activate(g uint32) uint64 {
	i, ok := t.slotOf[g]
	if !ok {
		i = t.takeFree()
		t.forget(i)
		t.slotOf[g] = i
	}
	s := &t.slots[i]
	if s.want != g {
		t.active++
		s.want = g
		if s.made != g {
			t.enqueue(i)
		}
	}
	return s.number
}

// takeFree takes a slot that is free off the list.
func (t *LogTable) takeFree() int {
	for {
		if len(t.free) == 0 {
			invariant.Check(len(t.slots) < t.count, "activity log with %d of %d active regions has no free slot", t.active, t.count)
			t.slots = append(t.slots, logSlot{want: LogFree, made: LogFree})
			return len(t.slots) - 1
		}
		i := t.free[len(t.free)-1]
		t.free = t.free[:len(t.free)-1]
		t.slots[i].listed = false
		if t.slots[i].want == LogFree {
			return i
		}
	}
}

func (t *LogTable) release(i int) {
	if !t.slots[i].listed {
		t.slots[i].listed = true
		t.free = append(t.free, i)
	}
}

// enqueue makes slot i part of a record to come, after all that were queued
// before: a region that moves to another slot is never stored in both.
func (t *LogTable) enqueue(i int) {
	t.number++
	if i != noSlot {
		t.slots[i].number = t.number
	}
	t.queue = append(t.queue, logEntry{i, t.number})
}

// Retire makes regions inactive. That is stored with a record that is made for
// something else, or for Flush.
func (t *LogTable) Retire(regions []uint32) {
	for _, g := range regions {
		i, ok := t.slotOf[g]
		if !ok || t.slots[i].want != g {
			continue
		}
		s := &t.slots[i]
		s.want = LogFree
		t.active--
		t.release(i)
		if s.made != g {
			delete(t.slotOf, g)
		}
		if !s.lazy {
			s.lazy = true
			t.lazy = append(t.lazy, i)
		}
	}
}

// Flush has everything stored that was changed before. It returns the number of
// that, for IsStored.
func (t *LogTable) Flush() uint64 {
	for _, i := range t.lazy {
		s := &t.slots[i]
		s.lazy = false
		if s.want == LogFree && s.made != LogFree {
			t.enqueue(i)
		}
	}
	t.lazy = t.lazy[:0]
	if t.lost != t.rec.lost && t.lostAt <= t.taken {
		t.enqueue(noSlot)
		t.lostAt = t.number
	}
	return t.number
}

// IsStored reports whether the change of that number is stored.
func (t *LogTable) IsStored(number uint64) bool { return number <= t.stored }

// Next makes a record of what is to be stored, as much as fits. It is to be
// written to both places of it, and then confirmed by Stored. ok is false if
// nothing is to be stored. Between a record and its Stored there is no Next.
func (t *LogTable) Next(page []byte) (places [2]int64, ok bool) {
	invariant.Check(!t.busy, "activity log record %d is not stored and the next is made", t.tx)
	rec := &t.rec
	rec.updates = rec.updates[:0]
	n := 0
	for n < len(t.queue) && len(rec.updates) < maxLogUpdates && !ok {
		e := t.queue[n]
		n++
		t.taken = e.number
		switch {
		case e.slot == noSlot:
			ok = true // a record for itself
		case t.slots[e.slot].number == e.number:
			t.update(e.slot, t.slots[e.slot].want)
		case t.slots[e.slot].want != t.slots[e.slot].made:
			// Given to another region since, which has its turn later. What is stored may
			// be in another slot before that.
			t.update(e.slot, LogFree)
		}
	}
	t.queue = slices.Delete(t.queue, 0, n)
	if !ok && len(rec.updates) == 0 {
		t.stored = t.taken // they took each other back
		return places, false
	}
	for len(t.lazy) > 0 && len(rec.updates) < maxLogUpdates {
		i := t.lazy[len(t.lazy)-1]
		t.lazy = t.lazy[:len(t.lazy)-1]
		t.slots[i].lazy = false
		if t.slots[i].want == LogFree {
			t.update(i, LogFree)
		}
	}
	t.tx++
	t.busy = true
	rec.owner, rec.tx, rec.lost, rec.term, rec.stable = t.owner, t.tx, t.lost, t.term, t.stable
	context := logContexts.Get().(*[maxLogContext]uint32)
	rec.slots, rec.first, rec.context = t.count, t.window, context[:min(maxLogContext, t.count-t.window)]
	for i := range rec.context {
		rec.context[i] = LogFree
		if at := t.window + i; at < len(t.slots) {
			rec.context[i] = t.slots[at].made
		}
	}
	t.window += len(rec.context)
	if t.window == t.count {
		t.window = 0
	}
	rec.encode(page)
	rec.context = nil
	logContexts.Put(context)
	at := int64(t.tx%LogPositions) * PageSize
	return [2]int64{at, at + LogPositions*PageSize}, true
}

// update puts slot i into the record with region g, unless it has been stored with that.
func (t *LogTable) update(i int, g uint32) {
	s := &t.slots[i]
	if s.made == g {
		return
	}
	if s.want == LogFree {
		t.forget(i)
	}
	s.made = g
	t.rec.updates = append(t.rec.updates, logUpdate{uint16(i), g})
}

// forget makes the region that slot i is stored with be given any slot when it is activated again.
func (t *LogTable) forget(i int) {
	if old := t.slots[i].made; t.slotOf[old] == i {
		delete(t.slotOf, old)
	}
}

// Stored says that the last record is stable in both places.
func (t *LogTable) Stored() {
	t.stored, t.busy = t.taken, false
}
