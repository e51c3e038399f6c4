package vm

import (
	"fmt"
	"slices"
	"sync"

	"github.com/tandem-storage/tandem/deploy/vm/order"
)

// Ledger follows what writers say of one volume, and knows what each of its
// places must hold: of a device after every kind of power cut; of a directory,
// whose writes are all stable when they are confirmed. Safe for concurrent use.
//
// Versions of a place rise, and no writer has two requests for one place in
// flight. 0 is the content of a place that was never written; versions that are
// zeroes count as 0 when they are read.
type Ledger struct {
	mu       sync.Mutex
	more     chan struct{} // closed and renewed at each line
	cutting  bool          // the power goes: nothing that is said now is a promise
	line     int           // counts lines
	top      int64         // highest version
	places   []place
	writes   map[int64]order.Write // in flight
	flushes  map[int]int           // in flight: the line that told of each
	confirms int
	failed   string
}

// place is what is known of one.
type place struct {
	now     []int64 // what a read must return one of, while nothing is in flight
	after   []int64 // what it may hold after all replicas have lost power
	busy    int64   // version in flight, or 0
	written int     // line of the last confirmation
	settled bool    // not written since all replicas lost power: what is read is stable
}

// NewLedger makes the ledger of a volume with so many places.
func NewLedger(places int) *Ledger {
	l := &Ledger{more: make(chan struct{}), places: make([]place, places), writes: map[int64]order.Write{}, flushes: map[int]int{}}
	for i := range l.places {
		l.places[i] = place{now: []int64{0}, after: []int64{0}}
	}
	return l
}

// Note takes a line of a writer.
func (l *Ledger) Note(line order.Line) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.line++
	switch {
	case line.Submit != nil:
		q := *line.Submit
		l.writes[q.Version] = q
		l.top = max(l.top, q.Version)
		for i := range q.Count {
			p := &l.places[q.First+i]
			p.busy, p.settled = q.Version, false
			p.after = append(p.after, q.Version)
		}
	case l.cutting:
	case line.Confirm != 0:
		l.confirm(line.Confirm)
	case line.Flush != 0:
		l.flushes[line.Flush] = l.line
	case line.Flushed != 0:
		l.flushed(l.flushes[line.Flushed])
		delete(l.flushes, line.Flushed)
	case line.Failed != "":
		l.failed = line.Failed
	}
	close(l.more)
	l.more = make(chan struct{})
}

func (l *Ledger) confirm(version int64) {
	l.confirms++
	q := l.writes[version]
	delete(l.writes, version)
	for i := range q.Count {
		p := &l.places[q.First+i]
		p.now, p.busy, p.written = []int64{version}, 0, l.line
		if q.Sync {
			p.after = []int64{version}
		}
	}
}

// flushed notes that a flush is confirmed that was told of in that line: what was confirmed before is stable.
func (l *Ledger) flushed(told int) {
	for i := range l.places {
		p := &l.places[i]
		if p.written >= told {
			continue
		}
		p.after = slices.Clone(p.now)
		if p.busy != 0 {
			p.after = append(p.after, p.busy)
		}
	}
}

// Cutting says that the power is about to be cut: what is confirmed from now on counts as not confirmed.
func (l *Ledger) Cutting() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cutting = true
}

// Ended says that the writer has ended, after everything it said was noted: what is in flight may be there or not. If everything
// that was in sync has lost power, all that was not flushed may be there or not.
func (l *Ledger) Ended(everywhere bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cutting, l.failed = false, ""
	clear(l.writes)
	clear(l.flushes)
	for i := range l.places {
		p := &l.places[i]
		if p.busy != 0 {
			p.now, p.busy = append(p.now, p.busy), 0
		}
		if everywhere {
			p.now, p.settled = slices.Clone(p.after), true
		}
		p.written = 0
	}
}

// Top is the highest version so far.
func (l *Ledger) Top() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.top
}

// Confirms counts the confirmed writes; more is closed at the next line, and failed says how the writer ended by itself.
func (l *Ledger) Confirms() (n int, failed string, more <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.confirms, l.failed, l.more
}

// Check holds what was read of every place against what must be there, while no writer writes. From then on what was found is
// what must be there. It returns how many places could have held something else.
func (l *Ledger) Check(found []int64) (open int, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	bad, first := 0, ""
	for i := range l.places {
		p := &l.places[i]
		var are []int64
		for _, v := range p.now {
			if shown(v) == found[i] {
				are = append(are, v)
			}
		}
		if len(are) == 0 {
			if bad++; bad <= 5 {
				first += fmt.Sprintf("; place %d holds %d, not one of %v (after a loss of all power: of %v)", i, found[i], p.now, p.after)
			}
			continue
		}
		if len(p.now) > 1 {
			open++
		}
		p.now = are
		if p.settled {
			p.after = are
		}
	}
	if bad > 0 {
		return open, fmt.Errorf("%d of %d places are wrong%s", bad, len(l.places), first)
	}
	return open, nil
}

// shown is what a reader takes a version for.
func shown(version int64) int64 {
	if order.Zeroes(version) {
		return 0
	}
	return version
}
