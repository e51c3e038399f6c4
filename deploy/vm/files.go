package vm

import (
	"fmt"
	"sync"

	"github.com/tandem-storage/tandem/deploy/vm/order"
)

// FileLedger follows a writer of files, which are replaced as a whole and stable
// when that is confirmed. Safe for concurrent use.
type FileLedger struct {
	mu      sync.Mutex
	cutting bool
	top     int64
	files   map[int64]int64 // version at least
	writes  map[int64]order.Write
	failed  string
}

// NewFileLedger makes the ledger of an empty directory.
func NewFileLedger() *FileLedger {
	return &FileLedger{files: map[int64]int64{}, writes: map[int64]order.Write{}}
}

// Note takes a line of the writer.
func (l *FileLedger) Note(line order.Line) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case line.Submit != nil:
		q := *line.Submit
		l.writes[q.Version], l.top = q, q.Version
	case l.cutting:
	case line.Confirm != 0:
		l.files[l.writes[line.Confirm].First] = line.Confirm
	case line.Failed != "":
		l.failed = line.Failed
	}
}

// Cutting is that of a Ledger.
func (l *FileLedger) Cutting() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cutting = true
}

// Ended says that the writer has ended.
func (l *FileLedger) Ended() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cutting, l.failed = false, ""
}

// Top is the highest version so far, and how the writer ended by itself.
func (l *FileLedger) Top() (version int64, failed string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.top, l.failed
}

// Check holds the versions of all files against what must be there.
func (l *FileLedger) Check(found []int64) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for file, v := range found {
		q, written := l.writes[v]
		switch least := l.files[int64(file)]; {
		case v < least:
			return fmt.Errorf("file %d holds version %d, %d was made stable", file, v, least)
		case v != 0 && (!written || q.First != int64(file)):
			return fmt.Errorf("file %d holds version %d, which was never written to it", file, v)
		}
	}
	return nil
}
