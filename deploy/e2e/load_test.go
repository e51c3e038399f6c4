package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tandem-storage/tandem/deploy/lab"
)

// load is a process that writes, and the ledger in which it notes what was confirmed to it.
type load struct {
	ledger, log string
	proc        *lab.Process
	// confirmed returns when a line of the ledger, which has fields, says that something was confirmed; ok is false if it does not.
	confirmed func(fields []string) (ns string, ok bool)
}

// begin gives the load its files. The process ends with the test.
func (l *load) begin(t *testing.T, confirmed func(fields []string) (ns string, ok bool)) {
	dir := t.TempDir()
	l.ledger, l.log, l.confirmed = filepath.Join(dir, "ledger"), filepath.Join(dir, "log"), confirmed
	t.Cleanup(func() {
		if l.proc != nil {
			_ = l.proc.Kill()
		}
		if t.Failed() {
			t.Log(lab.Tail(l.log, 5))
		}
	})
}

// acks are the times at which something was confirmed.
func (l *load) acks(t *testing.T) []time.Time {
	t.Helper()
	data, err := os.ReadFile(l.ledger)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	var ts []time.Time
	for line := range strings.Lines(string(data)) {
		f := strings.Fields(line)
		if len(f) == 0 || !strings.HasSuffix(line, "\n") {
			continue
		}
		s, ok := l.confirmed(f)
		if !ok {
			continue
		}
		ns, err := strconv.ParseInt(s, 10, 64)
		if err != nil {
			t.Fatalf("ledger line %q: %v", line, err)
		}
		ts = append(ts, time.Unix(0, ns))
	}
	return ts
}

// more waits until n more are confirmed than at the call.
func (l *load) more(t *testing.T, n int, within time.Duration) {
	t.Helper()
	before := len(l.acks(t))
	until(t, fmt.Sprintf("%d more are confirmed", n), within, func() (bool, error) {
		if !l.proc.Running() {
			return false, lab.Final(fmt.Errorf("the writer ended with code %d\n%s", l.proc.ExitCode(), lab.Tail(l.log, 5)))
		}
		now := len(l.acks(t)) - before
		return now >= n, fmt.Errorf("%d were", now)
	})
}

// pause returns the longest time without a confirmation since a moment.
func (l *load) pause(t *testing.T, since time.Time) (longest time.Duration) {
	t.Helper()
	last := since
	for _, a := range l.acks(t) {
		if a.After(since) {
			longest = max(longest, a.Sub(last))
			last = a
		}
	}
	return longest
}

// stop ends the process in order.
func (l *load) stop(t *testing.T) {
	t.Helper()
	if err := l.proc.Stop(syscall.SIGTERM, time.Minute); err != nil {
		t.Fatal(err)
	}
	if code := l.proc.ExitCode(); code != 0 {
		t.Fatalf("the writer ended with code %d\n%s", code, lab.Tail(l.log, 5))
	}
}
