package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Process is a program that runs beside the lab: a daemon, an etcd member, an
// application. Safe for concurrent use.
type Process struct {
	Name, Log string

	cmd    *exec.Cmd
	done   chan struct{} // closed when it ended and was waited for
	wanted atomic.Bool   // somebody asked for its end
}

// StartProcess starts argv with its output appended to log, as another user if cred is not nil. It dies with the caller.
func StartProcess(name, log string, cred *syscall.Credential, argv ...string) (*Process, error) {
	out, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.Dir = "/"
	cmd.SysProcAttr = childAttr(cred)
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	p := &Process{Name: name, Log: log, cmd: cmd, done: make(chan struct{})}
	go func() {
		_ = cmd.Wait() // how it ended is asked for with ExitCode
		close(p.done)
	}()
	return p, nil
}

// childAttr puts a child into a process group of its own, so that ^C reaches the caller only, which then ends things in
// order, and has the kernel kill it when the caller dies: when the thread that started it ends (prctl(2)), so that no thread
// may end before the process does.
func childAttr(cred *syscall.Credential) *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL, Credential: cred}
}

// PID returns its process id.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Signal sends a signal that does not end it: SIGSTOP, SIGCONT.
func (p *Process) Signal(sig syscall.Signal) error {
	return os.NewSyscallError("kill", syscall.Kill(p.PID(), sig))
}

// Done is closed when it has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// ExitCode is that of a process that has ended; -1 after a signal.
func (p *Process) ExitCode() int {
	<-p.done
	return p.cmd.ProcessState.ExitCode()
}

// Running reports whether it has not ended.
func (p *Process) Running() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// Died returns an error if it ended without being asked to.
func (p *Process) Died() error {
	if p.Running() || p.wanted.Load() {
		return nil
	}
	return fmt.Errorf("%s ended by itself: %v\n%s", p.Name, p.cmd.ProcessState, Tail(p.Log, 15))
}

// Kill ends it with SIGKILL and waits until it is gone.
func (p *Process) Kill() error { return p.end(syscall.SIGKILL, 30*time.Second) }

// Stop asks it to end and waits; when it does not within the time it is killed, and that is an error.
func (p *Process) Stop(sig syscall.Signal, within time.Duration) error {
	if err := p.end(sig, within); err != nil {
		return errors.Join(err, p.Kill())
	}
	return nil
}

func (p *Process) signal(sig syscall.Signal) error {
	p.wanted.Store(true)
	if err := p.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("%s: %w", p.Name, err)
	}
	return nil
}

func (p *Process) end(sig syscall.Signal, within time.Duration) error {
	if err := p.signal(sig); err != nil {
		return err
	}
	select {
	case <-p.done:
		return nil
	case <-time.After(within):
		return fmt.Errorf("%s (pid %d) still runs %v after %v", p.Name, p.PID(), within, sig)
	}
}

// AdoptOrphans makes grandchildren whose parent was killed children of this process, which can then wait for them: there may
// be no init process that does.
func AdoptOrphans() {
	_ = unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) // without it they are init's
}

// Tail returns the last lines of a file, under its name.
func Tail(path string, lines int) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	all := strings.Split(strings.TrimRight(string(data), "\n"), "\n")
	return path + ":\n  " + strings.Join(all[max(0, len(all)-lines):], "\n  ")
}

// Run runs a command to its end and returns its standard output. The error has what it wrote to standard error.
func Run(ctx context.Context, argv ...string) (string, error) { return RunAs(ctx, nil, argv...) }

// RunAs is Run as another user.
func RunAs(ctx context.Context, cred *syscall.Credential, argv ...string) (string, error) {
	var out, errOut strings.Builder
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Stdout, cmd.Stderr = &out, &errOut
	cmd.Dir = "/"
	cmd.SysProcAttr = childAttr(cred)
	cmd.WaitDelay = 5 * time.Second // a child of it may hold the pipes
	if err := cmd.Start(); err != nil {
		return "", fmt.Errorf("%s: %w", argv[0], err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	var err error
	select {
	case err = <-ended:
	case <-ctx.Done():
		// It was killed, but may hang in the kernel on a device whose server waits: give it up, so that the caller can
		// end the server.
		select {
		case <-ended:
		case <-time.After(2 * cmd.WaitDelay):
			return "", fmt.Errorf("%s: %w; it hangs in the kernel (pid %d)", strings.Join(argv, " "), ctx.Err(), cmd.Process.Pid)
		}
		err = ctx.Err()
	}
	if err != nil {
		return out.String(), fmt.Errorf("%s: %w: %s", strings.Join(argv, " "), err, strings.TrimSpace(errOut.String()))
	}
	return out.String(), nil
}

// finalError ends an Until at once.
type finalError struct{ error }

func (e finalError) Unwrap() error { return e.error }

// Final marks an error of a condition of Until after which waiting is in vain.
func Final(err error) error { return finalError{err} }

// Until polls cond, for what has no event to wait for, until it is true. When it does not become so the error has the last
// one of cond. One try counts for half of the time at most: after a pause of the whole machine there is another one.
func Until(ctx context.Context, what string, within, every time.Duration, cond func() (bool, error)) error {
	for waited := time.Duration(0); ; {
		began := time.Now()
		ok, err := cond()
		var final finalError
		switch {
		case ok:
			return nil
		case errors.As(err, &final):
			return fmt.Errorf("%s: %w", what, final.error)
		case waited >= within:
			return fmt.Errorf("%s: not within %v: %w", what, within, errors.Join(err, context.DeadlineExceeded))
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(every):
		}
		waited += min(time.Since(began), (within+1)/2)
	}
}

// Libraries returns the files that a program of this machine is linked with, the loader among them. Needs ldd(1). None if it is linked statically.
func Libraries(ctx context.Context, program string) ([]string, error) {
	out, err := Run(ctx, "ldd", program)
	if err != nil {
		if strings.Contains(out, "not a dynamic executable") || strings.Contains(err.Error(), "not a dynamic executable") {
			return nil, nil
		}
		return nil, err
	}
	var files []string
	for line := range strings.Lines(out) { // "libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x...)" or "/lib64/ld-linux-x86-64.so.2 (0x...)"
		for f := range strings.FieldsSeq(line) {
			if strings.HasPrefix(f, "/") {
				files = append(files, f)
			}
		}
	}
	return files, nil
}
