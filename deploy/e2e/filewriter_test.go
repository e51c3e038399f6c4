package e2e

import (
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
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
	load
	dev, mnt, script string
}

func newFileWriter(t *testing.T, dev string) *fileWriter {
	t.Helper()
	script, err := filepath.Abs("testdata/fswriter.py")
	if err != nil {
		t.Fatal(err)
	}
	w := &fileWriter{dev: dev, mnt: filepath.Join(t.TempDir(), "mnt"), script: script}
	if err := os.Mkdir(w.mnt, 0o700); err != nil {
		t.Fatal(err)
	}
	w.begin(t, func(f []string) (ns string, ok bool) { return f[len(f)-1], len(f) == 2 })
	t.Cleanup(func() { _ = unix.Unmount(w.mnt, unix.MNT_DETACH) })
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
