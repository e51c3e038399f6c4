package e2e

import (
	"encoding/json"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/tandem-storage/tandem/deploy/lab"
)

// python is Debian's: python3-libnbd is a module of that one.
const python = "/usr/bin/python3"

// writer writes over NBD, in a process of its own, and keeps a ledger of what was confirmed.
type writer struct {
	load
	script string
	rng    *rand.Rand
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
	w := &writer{script: script, rng: seeded(t)}
	w.begin(t, func(f []string) (ns string, ok bool) { return f[len(f)-1], len(f) == 6 && f[0] == "a" })
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
