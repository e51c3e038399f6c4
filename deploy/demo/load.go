package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
)

// load is a number of clients that write transactions as fast as they are
// confirmed, and put each confirmed one into the ledger; and what the database
// has beside them.
type load struct {
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu    sync.Mutex
	procs []*os.Process
	errs  []error
}

// nextID numbers the transactions of all loads of the demo.
var nextID atomic.Int64

// startLoad starts the clients against the database.
func startLoad(ctx context.Context, db database, l *ledger, clients int) *load {
	ctx, cancel := context.WithCancel(ctx)
	w := &load{cancel: cancel}
	run := func(name string, f func() error) {
		w.wg.Go(func() {
			if err := f(); err != nil {
				w.mu.Lock()
				w.errs = append(w.errs, fmt.Errorf("%s: %w", name, err))
				w.mu.Unlock()
			}
		})
	}
	for c := range clients {
		run(fmt.Sprint("client ", c), func() error { return w.client(ctx, db, l, c) })
	}
	if cmd := db.beside(); cmd != nil {
		run(filepath.Base(cmd.Path), func() error { return w.beside(ctx, cmd) })
	}
	return w
}

// stop ends the clients, each after the transaction that it waits for.
func (w *load) stop() {
	w.cancel()
	w.wg.Wait()
}

// wait returns when every client ended, with what they saw: a dead site, if nobody stopped them.
func (w *load) wait() error {
	w.wg.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	return errors.Join(w.errs...)
}

// signal sends one to every client. A load that was not started has none.
func (w *load) signal(sig os.Signal) error {
	if w == nil {
		return nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	var errs []error
	for _, p := range w.procs {
		if err := p.Signal(sig); !errors.Is(err, os.ErrProcessDone) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func (w *load) start(cmd *exec.Cmd) error {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := cmd.Start(); err != nil {
		return err
	}
	w.procs = append(w.procs, cmd.Process)
	return nil
}

// client drives one client program until the load is stopped. It prints the marker after COMMIT only when COMMIT succeeded.
func (w *load) client(ctx context.Context, db database, l *ledger, n int) error {
	cmd := db.client()
	var errOut strings.Builder
	cmd.Stderr = &errOut
	in, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := w.start(cmd); err != nil {
		return err
	}
	err = transactions(ctx, db, in, bufio.NewReader(out), l, n)
	in.Close()
	if werr := cmd.Wait(); err != nil {
		return errors.Join(err, werr, errors.New(strings.TrimSpace(errOut.String())))
	}
	return nil
}

// beside runs what the database has beside the clients until the load is stopped.
func (w *load) beside(ctx context.Context, cmd *exec.Cmd) error {
	var errOut strings.Builder
	cmd.Stderr = &errOut
	if err := w.start(cmd); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = cmd.Process.Kill() }) // it may have ended
	err := cmd.Wait()
	if stopped := !stop(); stopped && !strings.Contains(errOut.String(), "aborted") {
		return nil
	}
	return fmt.Errorf("ended by itself: %w: %s", err, strings.TrimSpace(errOut.String()))
}

func transactions(ctx context.Context, db database, in io.Writer, out *bufio.Reader, l *ledger, client int) error {
	for ctx.Err() == nil {
		id := nextID.Add(1)
		if _, err := io.WriteString(in, transaction(db, id, client)); err != nil {
			return err
		}
		line, err := out.ReadString('\n')
		if err != nil {
			return err
		}
		if want := confirmation(id) + "\n"; line != want {
			return fmt.Errorf("the client printed %q instead of %q", line, want)
		}
		if err := l.confirm(id, fingerprint(payload(id))); err != nil {
			return err
		}
	}
	return nil
}
