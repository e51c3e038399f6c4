package e2e

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tandem-storage/tandem/deploy/lab"
)

// python is Debian's: python3-libnbd is a module of that one.
const python = "/usr/bin/python3"

// writer writes over NBD, in a process of its own, and keeps a ledger of what was confirmed.
type writer struct {
	script, ledger, log string
	rng                 *rand.Rand
	proc                *lab.Process
}

// seeded returns the test's source of randomness.
func seeded(t *testing.T) *rand.Rand {
	seed := *seedFlag
	if seed == 0 {
		seed = time.Now().UnixNano()
	}
	t.Logf("seed: -seed=%d", seed)
	return rand.New(rand.NewPCG(uint64(seed), 0))
}

func newWriter(t *testing.T) *writer {
	t.Helper()
	if _, err := lab.Run(t.Context(), python, "-c", "import nbd"); err != nil {
		t.Skip("no libnbd for Python (make deps installs python3-libnbd)")
	}
	script, err := filepath.Abs("testdata/writer.py")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	w := &writer{script: script, ledger: filepath.Join(dir, "ledger"), log: filepath.Join(dir, "log"), rng: seeded(t)}
	t.Cleanup(func() {
		if w.proc != nil {
			_ = w.proc.Kill()
		}
		if t.Failed() {
			t.Log(lab.Tail(w.log, 5))
		}
	})
	return w
}

// start begins to write and returns when the first requests were confirmed.
func (w *writer) start(t *testing.T, uri string) {
	t.Helper()
	p, err := lab.StartProcess("writer", w.log, nil, python, w.script, "write", uri, w.ledger, strconv.Itoa(w.rng.IntN(1<<30)))
	if err != nil {
		t.Fatal(err)
	}
	w.proc = p
	w.more(t, 50, 20*time.Second)
}

// acks are the times at which requests were confirmed.
func (w *writer) acks(t *testing.T) []time.Time {
	t.Helper()
	data, err := os.ReadFile(w.ledger)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	var ts []time.Time
	for line := range strings.Lines(string(data)) {
		f := strings.Fields(line)
		if len(f) == 6 && f[0] == "a" && strings.HasSuffix(line, "\n") {
			ns, err := strconv.ParseInt(f[5], 10, 64)
			if err != nil {
				t.Fatalf("ledger line %q: %v", line, err)
			}
			ts = append(ts, time.Unix(0, ns))
		}
	}
	return ts
}

// more waits until n more requests are confirmed than at the call.
func (w *writer) more(t *testing.T, n int, within time.Duration) {
	t.Helper()
	before := len(w.acks(t))
	until(t, fmt.Sprintf("%d more writes are confirmed", n), within, func() (bool, error) {
		if !w.proc.Running() {
			return false, lab.Final(fmt.Errorf("the writer ended with code %d\n%s", w.proc.ExitCode(), lab.Tail(w.log, 5)))
		}
		now := len(w.acks(t)) - before
		return now >= n, fmt.Errorf("%d were", now)
	})
}

// pause returns the longest time without a confirmation since a moment.
func (w *writer) pause(t *testing.T, since time.Time) time.Duration {
	t.Helper()
	var longest time.Duration
	last := since
	for _, a := range w.acks(t) {
		if a.After(since) {
			longest = max(longest, a.Sub(last))
			last = a
		}
	}
	return longest
}

// stop ends the writer in order.
func (w *writer) stop(t *testing.T) {
	t.Helper()
	if err := w.proc.Stop(syscall.SIGTERM, 60*time.Second); err != nil {
		t.Fatal(err)
	}
	if code := w.proc.ExitCode(); code != 0 {
		t.Fatalf("the writer ended with code %d\n%s", code, lab.Tail(w.log, 5))
	}
}

// failed waits until the writer's device failed, and returns what it said.
func (w *writer) failed(t *testing.T, within time.Duration) string {
	t.Helper()
	select {
	case <-w.proc.Done():
	case <-time.After(within):
		t.Fatalf("the writer still writes after %v (%d confirmed)", within, len(w.acks(t)))
	}
	if code := w.proc.ExitCode(); code != 3 {
		t.Fatalf("the writer ended with code %d, want 3: its device failed\n%s", code, lab.Tail(w.log, 5))
	}
	return lab.Tail(w.log, 1)
}

// check reads everything back and compares it with the ledger. Nothing may be in flight.
func (w *writer) check(t *testing.T, uri string) {
	t.Helper()
	w.compare(t, uri, w.ledger)
}

// checkRead is check while requests of a consumer that was cut off are open: those count as such that may be there.
func (w *writer) checkRead(t *testing.T, uri string) {
	t.Helper()
	data, err := os.ReadFile(w.ledger)
	if err != nil {
		t.Fatal(err)
	}
	copied := w.ledger + ".copy"
	if err := os.WriteFile(copied, data, 0o600); err != nil {
		t.Fatal(err)
	}
	w.compare(t, uri, copied, "newer")
}

func (w *writer) compare(t *testing.T, uri, ledger string, mode ...string) {
	t.Helper()
	out := sh(t, append([]string{python, w.script, "check", uri, ledger}, mode...)...)
	var r struct {
		Confirmed, Maybe, Bad int
		Lost, Damaged         []string
	}
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		t.Fatalf("the check printed %q: %v", out, err)
	}
	if r.Bad > 0 || r.Confirmed == 0 {
		t.Fatalf("%d confirmed writes, %d blocks are wrong\nlost: %s\ndamaged: %s", r.Confirmed, r.Bad,
			strings.Join(r.Lost, "\n      "), strings.Join(r.Damaged, "\n      "))
	}
	t.Logf("%d confirmed writes are there, %d were open when the device failed", r.Confirmed, r.Maybe)
}
