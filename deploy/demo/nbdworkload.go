package main

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/tandem-storage/tandem/deploy/lab"
)

//go:embed writer.py
var writerPy []byte

// python is Debian's: python3-libnbd is a module of that one.
const python = "/usr/bin/python3"

// nbdWorkload is the verifying writer of writer.py, straight on the NBD socket.
type nbdWorkload struct {
	script, path, log string
	undo              *lab.Undo

	uri  string       // while open
	proc *lab.Process // while writing
}

// canWrite says what the NBD story misses here, or "".
func canWrite(ctx context.Context) string {
	if _, err := lab.Run(ctx, python, "-c", "import nbd"); err != nil {
		return "no NBD client (Debian package python3-libnbd)"
	}
	return ""
}

func newNBDWorkload(work string, u *lab.Undo) (*nbdWorkload, error) {
	w := &nbdWorkload{
		script: filepath.Join(work, "writer.py"), path: filepath.Join(work, "ledger"),
		log: filepath.Join(work, "log", "writer.log"), undo: u,
	}
	return w, os.WriteFile(w.script, writerPy, 0o644)
}

func (w *nbdWorkload) probe(ctx context.Context, path string) error {
	_, err := lab.Run(ctx, python, w.script, "probe", path)
	return err
}

func (w *nbdWorkload) open(_ context.Context, _, path string, _ bool) error {
	w.uri = path
	return nil
}

func (w *nbdWorkload) write(context.Context) error {
	p, err := lab.StartProcess("writer", w.log, nil, python, w.script, "write", w.uri, w.path)
	if err != nil {
		return err
	}
	w.undo.Add("writer", p.Kill)
	w.proc = p
	return nil
}

func (w *nbdWorkload) confirmed() int {
	data, err := os.ReadFile(w.path)
	if err != nil {
		return 0
	}
	return strings.Count(string(data), "\n")
}

// kill does nothing: the writer is a client outside the site.
func (w *nbdWorkload) kill() error { return nil }

func (w *nbdWorkload) mourn(ctx context.Context, _ string) error {
	select {
	case <-w.proc.Done():
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(30 * time.Second):
		return errors.New("the writer did not notice that the site died")
	}
	if code := w.proc.ExitCode(); code != 3 {
		return fmt.Errorf("the writer ended with code %d: %s", code, lab.Tail(w.log, 10))
	}
	w.proc = nil
	return nil
}

func (w *nbdWorkload) stop() error {
	if w.proc == nil {
		return nil
	}
	p := w.proc
	w.proc = nil
	if err := p.Stop(syscall.SIGTERM, 30*time.Second); err != nil {
		return err
	}
	if code := p.ExitCode(); code != 0 {
		return fmt.Errorf("the writer ended with code %d: %s", code, lab.Tail(w.log, 10))
	}
	return nil
}

func (w *nbdWorkload) check(ctx context.Context) (comparison, error) {
	out, err := lab.Run(ctx, python, w.script, "check", w.uri, w.path)
	if err != nil {
		return comparison{}, err
	}
	var lost, damaged int
	var c comparison
	if _, err := fmt.Sscan(out, &c.confirmed, &lost, &damaged, &c.extra); err != nil {
		return comparison{}, fmt.Errorf("writer.py check printed %q: %w", out, err)
	}
	c.lost, c.damaged = make([]int64, lost), make([]int64, damaged)
	return c, nil
}

func (w *nbdWorkload) close(context.Context) error { return nil }
