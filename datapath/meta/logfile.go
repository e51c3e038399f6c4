package meta

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"github.com/tandem-storage/tandem/datapath/block"
)

// LogOptions say whose activity log it is.
type LogOptions struct {
	Replica  UUID
	Instance UUID // the process that opens the replica
	// Previous is the one that had it open before, as in the superblock. If that did
	// not keep the log, the log does not tell.
	Previous UUID
	Slots    int // 1 to MaxLogSlots; an existing log keeps as many as it has in use
}

func (o *LogOptions) owner() (logOwner, error) {
	if o.Slots < 1 || o.Slots > MaxLogSlots {
		return logOwner{}, fmt.Errorf("%w: activity log of %d slots, at most %d", ErrInvalid, o.Slots, MaxLogSlots)
	}
	return logOwner{o.Replica, o.Instance, o.Previous}, nil
}

// CreateLog makes a log in f, which has LogPages pages of zeroes: no region is
// active, or all are because lost. On nil it is stable; after a crash it is that,
// or OpenLog finds it damaged.
func CreateLog(f PageFile, o LogOptions, lost bool) (*LogTable, error) {
	owner, err := o.owner()
	if err != nil {
		return nil, err
	}
	t := newLogTable(&logState{lost: lost}, owner, o.Slots)
	return t, t.Store(f)
}

// OpenLog reads a log and changes nothing. The table has changes to be stored
// before the superblock is written with o.Instance. ErrCorrupt: what is there
// does not tell which regions are active. The log is made anew then, as lost.
func OpenLog(f PageFile, o LogOptions) (*LogTable, error) {
	owner, err := o.owner()
	if err != nil {
		return nil, err
	}
	s, err := recoverLog(f, o.Replica)
	if err != nil {
		return nil, err
	}
	if s.owner.instance != o.Previous && s.owner.previous != o.Previous {
		return nil, fmt.Errorf("%w: the activity log is of process %x, the replica was last open in process %x, which kept none",
			ErrCorrupt, s.owner.instance, o.Previous)
	}
	return newLogTable(s, owner, o.Slots), nil
}

// Store writes every change to f. On nil they are stable.
func (t *LogTable) Store(f PageFile) error {
	var page [PageSize]byte
	for t.Flush(); ; t.Stored() {
		places, ok := t.Next(page[:])
		if !ok {
			return nil
		}
		for _, off := range places {
			if _, err := f.WriteAt(page[:], off); err != nil {
				return fmt.Errorf("meta: write record %d of the activity log: %w", t.tx, err)
			}
		}
	}
}

// logState is what the records of a log say together.
type logState struct {
	owner        logOwner
	tx           uint64 // of the newest record
	term, stable uint64
	lost         bool
	slots        []uint32 // region by slot, or LogFree
}

// logPlace is what was found of one position, in both copies.
type logPlace struct {
	rec        *logRecord // the newer one of those that are whole
	zero       int        // copies that were never written
	unreadable int        // copies that cannot be read
}

// recoverLog reads the log of replica: ErrCorrupt if it does not tell everything
// that it was once told. An error of reading a page is damage to that page.
func recoverLog(f io.ReaderAt, replica UUID) (*logState, error) {
	places, err := readLog(f, replica)
	if err != nil {
		return nil, err
	}
	var last *logRecord
	for i := range places {
		if rec := places[i].rec; rec != nil && (last == nil || rec.tx > last.tx) {
			last = rec
		}
	}
	if last == nil {
		return nil, fmt.Errorf("%w: activity log without a record", ErrCorrupt)
	}
	// The record after the last one may have been cut short by a crash: nobody was
	// told that it is stored. Of any more there is only damage.
	if at := &places[(last.tx+1)%LogPositions]; at.unreadable == 2 {
		return nil, fmt.Errorf("%w: both copies of what may be record %d of the activity log cannot be read", ErrCorrupt, last.tx+1)
	}
	if !places[(last.tx+2)%LogPositions].precedes(last.tx + 2) {
		return nil, fmt.Errorf("%w: record %d of the activity log is damaged in both copies, or records after %d are", ErrCorrupt,
			last.tx+2-LogPositions, last.tx)
	}
	return replayLog(places, last)
}

// precedes reports whether nothing was written here since the round before tx.
func (p *logPlace) precedes(tx uint64) bool {
	if tx <= LogPositions {
		return p.zero == 2
	}
	return p.rec != nil && p.rec.tx == tx-LogPositions
}

// readLog reads both copies. ErrCorrupt if there is a record of a later version.
func readLog(f io.ReaderAt, replica UUID) (*[LogPositions]logPlace, error) {
	places := new([LogPositions]logPlace)
	buf := block.NewBuffer(LogPositions * PageSize)
	defer buf.Release()
	all := buf.Bytes()
	for c := range int64(2) {
		_, err := f.ReadAt(all, c*LogPositions*PageSize)
		for i := range places {
			page, p := all[i*PageSize:(i+1)*PageSize], &places[i]
			if err != nil {
				if _, err := f.ReadAt(page, (c*LogPositions+int64(i))*PageSize); err != nil {
					p.unreadable++
					continue
				}
			}
			if bytes.Equal(page, zeroes[:]) {
				p.zero++
				continue
			}
			rec, err := decodeLogRecord(page, replica)
			if errors.Is(err, ErrIncompatible) {
				return nil, fmt.Errorf("%w: %w", ErrCorrupt, err)
			}
			if err != nil || rec.tx%LogPositions != uint64(i) {
				continue
			}
			if p.rec == nil || rec.tx > p.rec.tx {
				p.rec = rec
			}
		}
	}
	return places, nil
}

// replayLog goes back from the last record until every slot has been told.
func replayLog(places *[LogPositions]logPlace, last *logRecord) (*logState, error) {
	s := &logState{
		owner: last.owner, tx: last.tx, term: last.term, stable: last.stable, lost: last.lost,
		slots: make([]uint32, last.slots),
	}
	known, missing := make([]bool, last.slots), last.slots
	tell := func(i int, g uint32) {
		if i < last.slots && !known[i] {
			s.slots[i], known[i] = g, true
			missing--
		}
	}
	for tx := last.tx; missing > 0; tx-- {
		rec := places[tx%LogPositions].rec
		if rec == nil || rec.tx != tx {
			return nil, fmt.Errorf("%w: record %d of the activity log is damaged or lost, and %d slots are not in a later one", ErrCorrupt, tx, missing)
		}
		for i, g := range rec.context {
			tell(rec.first+i, g)
		}
		for i := len(rec.updates) - 1; i >= 0; i-- {
			tell(int(rec.updates[i].slot), rec.updates[i].region)
		}
		for i := rec.slots; i < last.slots; i++ {
			tell(i, LogFree)
		}
	}
	seen := make(map[uint32]bool)
	for i, g := range s.slots {
		if g != LogFree && seen[g] {
			return nil, fmt.Errorf("%w: slot %d of the activity log has region %d, as another one does", ErrCorrupt, i, g)
		}
		seen[g] = true
	}
	return s, nil
}
