package backing

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	"github.com/tandem-storage/tandem/datapath/block"
	"github.com/tandem-storage/tandem/datapath/meta"
)

const activityLogFile = "al"

// ActivityLog remembers durably in which regions of a replica there may be writes
// that are not settled on every replica: those are what has to be compared after
// a crash. A region is active from the moment that Activate is called until it is
// retired; after a crash at least those are active whose Activate is done and that
// were not retired since it was called, and none for which it was never called. The done
// of an Activate whose region was retired meanwhile says nothing of a later Activate.
//
// All methods may be called concurrently, from a done too, and none waits for the
// disk unless the replica is being closed. One record is on its way at a time; what is
// called meanwhile shares the next one. A done is called exactly once, on any
// goroutine, perhaps before the method returns; it must not block. If a record
// cannot be written the replica is faulted.
type ActivityLog struct {
	r      *Replica
	pages  *meta.Pages
	damage error

	mu      sync.Mutex
	table   *meta.LogTable
	waiting []logWaiter
	busy    bool // a record is on its way

	// Of the record that is on its way.
	buf     *block.Buffer
	ops     [2]op
	batch   [2]*op
	pending atomic.Int32
}

// logWaiter waits for the change of a number. It keeps the replica open.
type logWaiter struct {
	number uint64
	done   func(error)
}

// Log is the replica's activity log.
func (r *Replica) Log() *ActivityLog { return r.log }

// createLog makes the log file in dir; a file that is cut short by a crash is one
// that does not tell. Everything but the directory entry is stable on nil.
func createLog(dir string, o meta.LogOptions, lost bool) (*meta.Pages, *meta.LogTable, error) {
	pages, err := meta.CreatePages(filepath.Join(dir, activityLogFile), meta.LogPages)
	if err != nil {
		return nil, nil, err
	}
	t, err := meta.CreateLog(pages, o, lost)
	if err != nil {
		pages.Close()
		return nil, nil, err
	}
	return pages, t, nil
}

// openLog reads the log. One that does not tell which regions are active, or is
// not there because a version without it made the replica, is made anew: lost.
//
// It is bound to this process before the superblock is, so that a process
// that does not keep the log is found out by the next that does.
func (r *Replica) openLog(previous meta.UUID) error {
	o := meta.LogOptions{Replica: r.k.replica, Instance: r.pool.self, Previous: previous, Slots: r.pool.o.LogSlots}
	pages, t, damage, err := readLog(r.dir, o)
	if err != nil {
		return err
	}
	l := &ActivityLog{r: r, pages: pages, damage: damage, table: t}
	if damage != nil {
		l.pages, l.table, err = r.remakeLog(o)
	} else if err = t.Store(pages); err != nil {
		pages.Close()
	}
	if err != nil {
		return fmt.Errorf("backing: activity log of %s: %w", r.dir, noSpace(err))
	}
	l.buf = block.NewBuffer(meta.PageSize)
	l.batch = [2]*op{&l.ops[0], &l.ops[1]}
	r.log = l
	return nil
}

// readLog opens the log file in dir. damage says why it does not tell.
func readLog(dir string, o meta.LogOptions) (pages *meta.Pages, t *meta.LogTable, damage, err error) {
	path := filepath.Join(dir, activityLogFile)
	st, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, fmt.Errorf("%w: activity log", ErrNotFound), nil
	}
	if err != nil {
		return nil, nil, nil, err
	}
	if st.Size() != meta.LogPages*meta.PageSize {
		return nil, nil, fmt.Errorf("%w: activity log of %d bytes", meta.ErrCorrupt, st.Size()), nil
	}
	if pages, err = meta.OpenPages(path); err != nil {
		return nil, nil, nil, err
	}
	t, err = meta.OpenLog(pages, o)
	if err == nil {
		return pages, t, nil, nil
	}
	pages.Close()
	if errors.Is(err, meta.ErrCorrupt) {
		return nil, nil, err, nil
	}
	return nil, nil, nil, err
}

// remakeLog replaces the log file by a new one. Removing the old one is one step
// that cannot be cut short: overwriting it could leave a part that seems to tell.
func (r *Replica) remakeLog(o meta.LogOptions) (*meta.Pages, *meta.LogTable, error) {
	if err := os.Remove(filepath.Join(r.dir, activityLogFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, nil, err
	}
	if err := r.d.Sync(); err != nil {
		return nil, nil, err
	}
	pages, t, err := createLog(r.dir, o, true)
	if err != nil {
		return nil, nil, err
	}
	if err := r.d.Sync(); err != nil {
		pages.Close()
		return nil, nil, err
	}
	return pages, t, nil
}

// Damage says why the log was found not to tell which regions are active when the
// replica was opened: it is Lost since. nil if it was whole.
func (l *ActivityLog) Damage() error { return l.damage }

// Slots is how many regions may be active at once.
func (l *ActivityLog) Slots() int { return l.table.Slots() }

// Active lists the active regions in ascending order. After Open they are those
// of the last process. If the log is lost there may be others.
func (l *ActivityLog) Active() []uint32 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.table.Active()
}

// Lost reports that every region counts as active: the log was damaged, or
// somebody wrote without it.
func (l *ActivityLog) Lost() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.table.Lost()
}

// SetLost makes every region count as active, or only those that are. It is stored
// with the next record: after SetLost(true), to write without the log, Flush first.
func (l *ActivityLog) SetLost(lost bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.table.SetLost(lost)
}

// Activate makes regions active and calls done when they are durably. Those that
// are already cost nothing. meta.ErrLogFull: there are not Slots enough for all
// of them, and none is changed.
func (l *ActivityLog) Activate(regions []uint32, done func(error)) {
	if fresh := l.r.sums.uncovered(regions); len(fresh) > 0 {
		told := done
		done = func(err error) {
			if err == nil {
				l.r.sums.cover(fresh)
			}
			told(err)
		}
	}
	l.change(done, func() (uint64, error) {
		for _, g := range regions {
			if int64(g) >= l.r.shape.Load().regions {
				return 0, fmt.Errorf("%w: region %d of %d", ErrInvalid, g, l.r.shape.Load().regions)
			}
		}
		l.table.SetTerm(l.r.term.Load())
		return l.table.Activate(regions)
	})
}

// Retire makes regions inactive: every write to them up to number stable is
// settled on every replica, and every dirty map that has to tell of them is saved
// (SaveDirtyMap); none is in flight. It is stored with the record of a later Activate, or by Flush or
// CloseClean; nobody waits for it. Regions that are not active are ignored.
func (l *ActivityLog) Retire(regions []uint32, stable uint64) {
	if !l.r.gate.enter() {
		return // what is active stays that
	}
	l.mu.Lock()
	ops := l.r.sums.retire(regions)
	l.table.SetTerm(l.r.term.Load())
	l.table.SetStable(stable)
	l.table.Retire(regions)
	l.mu.Unlock()
	l.r.sums.submit(ops)
	l.r.gate.exit()
}

// Flush calls done when everything is durable that was changed before.
func (l *ActivityLog) Flush(done func(error)) {
	l.change(done, func() (uint64, error) { return l.table.Flush(), nil })
}

// change makes a change, which has a number, and has done called when it is stored.
func (l *ActivityLog) change(done func(error), f func() (number uint64, err error)) {
	if !l.r.gate.enter() {
		done(fmt.Errorf("%w: replica %x", block.ErrClosed, l.r.k.replica))
		return
	}
	var number uint64
	wait, begun := false, false
	l.mu.Lock()
	err := l.r.Err()
	if err == nil {
		number, err = f()
	}
	if err == nil {
		begun = !l.busy && l.beginLocked()
		wait = !l.table.IsStored(number)
	}
	if wait {
		l.waiting = append(l.waiting, logWaiter{number, done})
	}
	l.mu.Unlock()
	if begun {
		l.r.pool.engine.submit(l.batch[:])
	}
	if !wait {
		done(err)
		l.r.gate.exit()
	}
}

// beginLocked makes the next record. It reports whether l.batch is to be submitted. As long as
// the checksums of a retired region are on their way there is none, see resume.
func (l *ActivityLog) beginLocked() bool {
	if l.r.sums.unsaved.Load() > 0 {
		return false
	}
	places, ok := l.table.Next(l.buf.Bytes())
	if !ok {
		return false
	}
	for i, off := range places {
		l.ops[i] = op{kind: opWrite, fd: l.pages.Fd(), off: off, buf: l.buf.Bytes(), owner: l}
	}
	l.pending.Store(2)
	l.busy = true
	return true
}

// opDone implements opOwner for the two copies of a record.
func (l *ActivityLog) opDone(_ *op, err error) {
	if err != nil {
		l.r.fault(fmt.Errorf("write to the activity log: %w", err))
	}
	if l.pending.Add(-1) > 0 {
		return
	}
	err = l.r.Err() // also of a record that was written after another failure
	l.mu.Lock()
	l.busy = false
	begun := false
	if err == nil {
		l.table.Stored()
		begun = l.beginLocked()
	}
	l.wakeLocked(begun, err)
}

// resume makes the record that waited for the checksums of retired regions.
func (l *ActivityLog) resume() {
	err := l.r.Err()
	l.mu.Lock()
	if l.busy {
		l.mu.Unlock()
		return // the next record begins when this one is stored
	}
	l.wakeLocked(err == nil && l.beginLocked(), err)
}

// wakeLocked submits what has begun and calls those whose change is stored, or everybody
// because of err. It unlocks l.mu.
func (l *ActivityLog) wakeLocked(begun bool, err error) {
	var done []logWaiter
	rest := l.waiting[:0]
	for _, w := range l.waiting {
		if err != nil || l.table.IsStored(w.number) {
			done = append(done, w)
		} else {
			rest = append(rest, w)
		}
	}
	clear(l.waiting[len(rest):])
	l.waiting = rest
	l.mu.Unlock()
	if begun {
		l.r.pool.engine.submit(l.batch[:])
	}
	for _, w := range done {
		w.done(err)
		l.r.gate.exit()
	}
}

// settle stores what has not been. Nothing is in flight.
func (l *ActivityLog) settle() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.table.Store(l.pages); err != nil {
		return l.r.metaFailed(err)
	}
	return nil
}

func (l *ActivityLog) close() {
	l.pages.Close()
	l.buf.Release()
}
