package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"
)

// process is a server that runs beside the demo: a daemon, an etcd member, PostgreSQL.
type process struct {
	name    string
	logPath string
	cmd     *exec.Cmd
	done    chan struct{} // closed when it ended and was waited for

	mu      sync.Mutex
	stopped bool // the demo wanted it to end
}

// startProcess starts argv with its output in logPath (appended), as the given user if cred is not nil. It dies with the demo.
func startProcess(name, logPath string, cred *syscall.Credential, argv ...string) (*process, error) {
	out, err := os.OpenFile(logPath, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.Dir = "/"
	// Its own process group: ^C reaches the demo only, which then ends things in order.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL, Credential: cred}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	p := &process{name: name, logPath: logPath, cmd: cmd, done: make(chan struct{})}
	go func() {
		_ = cmd.Wait() // how it ended stands in its log
		close(p.done)
	}()
	return p, nil
}

// running reports whether the process has not ended.
func (p *process) running() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// kill ends the process with SIGKILL and waits until it is gone.
func (p *process) kill() error { return p.end(syscall.SIGKILL, 30*time.Second) }

// stop asks the process to end in order and waits; it is killed when it does not within the time.
func (p *process) stop(sig syscall.Signal, within time.Duration) error {
	if err := p.end(sig, within); err != nil {
		return errors.Join(err, p.kill())
	}
	return nil
}

func (p *process) end(sig syscall.Signal, within time.Duration) error {
	p.mu.Lock()
	p.stopped = true
	p.mu.Unlock()
	if !p.running() {
		return nil
	}
	if err := p.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("%s: %w", p.name, err)
	}
	select {
	case <-p.done:
		return nil
	case <-time.After(within):
		return fmt.Errorf("%s (pid %d) still runs %v after %v", p.name, p.cmd.Process.Pid, within, sig)
	}
}

// died returns an error if the process ended by itself.
func (p *process) died() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.running() || p.stopped {
		return nil
	}
	return fmt.Errorf("%s ended by itself: %v\n%s", p.name, p.cmd.ProcessState, tail(p.logPath, 15))
}

// adoptOrphans makes grandchildren whose parent was killed children of this process, which waits for them: there may be
// no init process that does.
func adoptOrphans() {
	const prSetChildSubreaper = 36
	_, _, _ = syscall.Syscall(syscall.SYS_PRCTL, prSetChildSubreaper, 1, 0) // without it they are init's
}

// tail returns the last lines of a file.
func tail(path string, lines int) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	all := strings.Split(strings.TrimRight(string(data), "\n"), "\n")
	return path + ":\n  " + strings.Join(all[max(0, len(all)-lines):], "\n  ")
}

// run runs a command to its end and returns its standard output. The error has what it wrote to standard error.
func run(ctx context.Context, argv ...string) (string, error) { return runAs(ctx, nil, argv...) }

// runAs is run as another user.
func runAs(ctx context.Context, cred *syscall.Credential, argv ...string) (string, error) {
	var out, errOut strings.Builder
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Stdout, cmd.Stderr = &out, &errOut
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL, Credential: cred}
	cmd.WaitDelay = 5 * time.Second // a child of it may hold the pipes
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return out.String(), fmt.Errorf("%s: %w: %s", strings.Join(argv, " "), err, strings.TrimSpace(errOut.String()))
	}
	return out.String(), nil
}

// until polls cond, which has no event to wait for, until it is true. The error of a timeout has the last one of cond.
func until(ctx context.Context, what string, within, every time.Duration, cond func() (bool, error)) error {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	for {
		ok, err := cond()
		if ok {
			return nil
		}
		select {
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.DeadlineExceeded) {
				return fmt.Errorf("%s: not within %v: %w", what, within, errors.Join(err, ctx.Err()))
			}
			return ctx.Err()
		case <-time.After(every):
		}
	}
}
