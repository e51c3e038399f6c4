package e2e

import (
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tandem-storage/tandem/deploy/lab"
)

// loopOver makes a loop device over an NBD export, with qemu-storage-daemon in between: it tries for a minute to connect again
// before a request fails. gone takes it away, in order.
func loopOver(t *testing.T, uri string) (dev string, gone func()) {
	t.Helper()
	u, err := url.Parse(uri)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	file := filepath.Join(dir, "volume")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	p, err := lab.StartProcess("qemu-storage-daemon", filepath.Join(dir, "log"), nil, "qemu-storage-daemon",
		"--blockdev", "driver=nbd,node-name=volume,reconnect-delay=60,server.type=unix,server.path="+u.Query().Get("socket")+",export="+strings.TrimPrefix(u.Path, "/"),
		"--export", "type=fuse,id=file,node-name=volume,writable=on,mountpoint="+file)
	if err != nil {
		t.Fatal(err)
	}
	there := false
	t.Cleanup(func() { // what is left of a test that failed: errors for the loop device first
		_ = p.Kill()
		_ = unix.Unmount(file, unix.MNT_DETACH)
		if there {
			_, _ = lab.Run(t.Context(), "losetup", "-d", dev)
		}
	})
	until(t, "qemu-storage-daemon shows the volume", 20*time.Second, func() (bool, error) {
		st, err := os.Stat(file)
		if err != nil || !p.Running() {
			return false, lab.Final(fmt.Errorf("it ended: %w\n%s", err, lab.Tail(p.Log, 5)))
		}
		return st.Size() > 0, nil
	})
	dev = strings.TrimSpace(sh(t, "losetup", "--find", "--show", file))
	there = true
	return dev, func() {
		t.Helper()
		sh(t, "losetup", "-d", dev)
		there = false
		if err := p.Stop(syscall.SIGTERM, 20*time.Second); err != nil {
			t.Fatal(err)
		}
	}
}

// fileWriter writes files on a file system, in a process of its own, and keeps a ledger of what was confirmed.
type fileWriter struct {
	dev, mnt, script, ledger, log string
	proc                          *lab.Process
}

func newFileWriter(t *testing.T, dev string) *fileWriter {
	t.Helper()
	script, err := filepath.Abs("testdata/fswriter.py")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	w := &fileWriter{dev: dev, mnt: filepath.Join(dir, "mnt"), script: script, ledger: filepath.Join(dir, "ledger"), log: filepath.Join(dir, "log")}
	if err := os.Mkdir(w.mnt, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = unix.Unmount(w.mnt, unix.MNT_DETACH)
		if w.proc != nil {
			_ = w.proc.Kill()
		}
		if t.Failed() {
			t.Log(lab.Tail(w.log, 5))
		}
	})
	return w
}

func (w *fileWriter) mount(t *testing.T)   { t.Helper(); sh(t, "mount", w.dev, w.mnt) }
func (w *fileWriter) unmount(t *testing.T) { t.Helper(); sh(t, "umount", w.mnt) }

func (w *fileWriter) start(t *testing.T) {
	t.Helper()
	p, err := lab.StartProcess("file writer", w.log, nil, python, w.script, "write", w.mnt, w.ledger)
	if err != nil {
		t.Fatal(err)
	}
	w.proc = p
	w.more(t, 10, 20*time.Second)
}

// acks are the times at which rounds were confirmed.
func (w *fileWriter) acks(t *testing.T) []time.Time {
	t.Helper()
	data, err := os.ReadFile(w.ledger)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	var ts []time.Time
	for line := range strings.Lines(string(data)) {
		if f := strings.Fields(line); len(f) == 2 && strings.HasSuffix(line, "\n") {
			ns, err := strconv.ParseInt(f[1], 10, 64)
			if err != nil {
				t.Fatalf("ledger line %q: %v", line, err)
			}
			ts = append(ts, time.Unix(0, ns))
		}
	}
	return ts
}

// more waits until n more rounds are confirmed than at the call.
func (w *fileWriter) more(t *testing.T, n int, within time.Duration) {
	t.Helper()
	before := len(w.acks(t))
	until(t, fmt.Sprintf("%d more rounds are confirmed", n), within, func() (bool, error) {
		if !w.proc.Running() {
			return false, lab.Final(fmt.Errorf("the writer ended with code %d\n%s", w.proc.ExitCode(), lab.Tail(w.log, 5)))
		}
		now := len(w.acks(t)) - before
		return now >= n, fmt.Errorf("%d were", now)
	})
}

// pause returns the longest time without a confirmation since a moment.
func (w *fileWriter) pause(t *testing.T, since time.Time) (longest time.Duration) {
	t.Helper()
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
func (w *fileWriter) stop(t *testing.T) {
	t.Helper()
	if err := w.proc.Stop(syscall.SIGTERM, time.Minute); err != nil {
		t.Fatal(err)
	}
	if code := w.proc.ExitCode(); code != 0 {
		t.Fatalf("the writer ended with code %d\n%s", code, lab.Tail(w.log, 5))
	}
}

// check compares what is there with the ledger. The file system is mounted.
func (w *fileWriter) check(t *testing.T) {
	t.Helper()
	var r struct {
		Confirmed int   `json:"confirmed"`
		Lost      []int `json:"lost"`
	}
	out := sh(t, python, w.script, "check", w.mnt, w.ledger)
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		t.Fatalf("the checker printed %q: %v", out, err)
	}
	if r.Confirmed == 0 || len(r.Lost) > 0 {
		t.Errorf("of %d rounds that were confirmed these are lost: %v", r.Confirmed, r.Lost)
	}
	t.Logf("%d rounds of write and fsync were confirmed and are there", r.Confirmed)
}
