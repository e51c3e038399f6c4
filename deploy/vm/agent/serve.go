package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/tandem-storage/tandem/deploy/vm/order"
)

// agent does what the host orders, each order on a goroutine of its own.
type agent struct {
	outMu sync.Mutex
	out   io.Writer // to the host
	log   io.Writer // the daemon's output

	mu      sync.Mutex
	daemon  *exec.Cmd
	ended   chan struct{} // of the daemon
	stopped bool          // the daemon was asked to end
	writers []*writer
}

// serve returns when the host has gone.
func (a *agent) serve(orders *bufio.Reader) error {
	a.tell(order.Line{Ready: true})
	for {
		data, err := orders.ReadBytes('\n')
		if err != nil {
			return fmt.Errorf("orders: %w", err)
		}
		var q order.Request
		if err := json.Unmarshal(data, &q); err != nil {
			return fmt.Errorf("order %q: %w", data, err)
		}
		go func() {
			line, err := a.do(q)
			line.ID = q.ID
			if err != nil {
				line.Error = err.Error()
			}
			a.tell(line)
		}()
	}
}

// tell returns when the host has the line: what it tells of is done afterwards.
func (a *agent) tell(line order.Line) {
	a.outMu.Lock()
	defer a.outMu.Unlock()
	if err := json.NewEncoder(a.out).Encode(line); err != nil { // in one write
		fmt.Println("agent:", err)
	}
}

func (a *agent) do(q order.Request) (order.Line, error) {
	switch q.Op {
	case order.Exec:
		return execute(q)
	case order.Put:
		if err := os.MkdirAll(filepath.Dir(q.Path), 0o755); err != nil {
			return order.Line{}, err
		}
		return order.Line{}, os.WriteFile(q.Path, []byte(q.Input), 0o600)
	case order.Mount:
		if err := os.MkdirAll(q.Path, 0o755); err != nil {
			return order.Line{}, err
		}
		return order.Line{}, os.NewSyscallError("mount", unix.Mount(q.Device, q.Path, q.FS, 0, ""))
	case order.Umount:
		return order.Line{}, os.NewSyscallError("umount", unix.Unmount(q.Path, 0))
	case order.Daemon:
		return order.Line{}, a.start(q.Argv)
	case order.Stop:
		return order.Line{}, a.stop()
	case order.Blocks, order.Files:
		return order.Line{}, a.write(q)
	case order.Quiet:
		a.quiet()
		return order.Line{}, nil
	case order.Read:
		return readBlocks(q)
	case order.List:
		return listFiles(q)
	case order.Digest:
		return digest(q.Path)
	default:
		return order.Line{}, fmt.Errorf("no such order: %q", q.Op)
	}
}

// execute runs one program to its end.
func execute(q order.Request) (order.Line, error) {
	cmd := exec.Command(q.Argv[0], q.Argv[1:]...)
	cmd.Stdin = strings.NewReader(q.Input)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err := cmd.Run()
	if err != nil {
		err = fmt.Errorf("%s: %w: %s", strings.Join(q.Argv, " "), err, bytes.TrimSpace(errOut.Bytes()))
	}
	return order.Line{Out: out.String()}, err
}

// start starts the daemon.
func (a *agent) start(argv []string) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.daemon != nil {
		return errors.New("the daemon was started before")
	}
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdout, cmd.Stderr = a.log, a.log
	if err := cmd.Start(); err != nil {
		return err
	}
	a.daemon, a.ended, a.stopped = cmd, make(chan struct{}), false
	go func() {
		err := cmd.Wait()
		a.mu.Lock()
		a.daemon = nil
		wanted := a.stopped
		close(a.ended)
		a.mu.Unlock()
		if !wanted || err != nil {
			a.tell(order.Line{Died: fmt.Sprintf("%s: %v", argv[0], err)})
		}
	}()
	return nil
}

func (a *agent) stop() error {
	a.mu.Lock()
	cmd, ended := a.daemon, a.ended
	a.stopped = true
	a.mu.Unlock()
	if cmd == nil {
		return errors.New("no daemon runs")
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	<-ended
	return nil
}

// write starts a writer.
func (a *agent) write(q order.Request) error {
	w := newWriter(q, a.tell)
	if err := w.start(q); err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.writers = append(a.writers, w)
	return nil
}

// quiet ends the writers.
func (a *agent) quiet() {
	a.mu.Lock()
	ws := a.writers
	a.writers = nil
	a.mu.Unlock()
	for _, w := range ws {
		w.end()
	}
}
