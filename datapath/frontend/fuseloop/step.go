package fuseloop

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/tandem-storage/tandem/datapath/frontend"
)

// What the process that answers FUSE must not do itself: what waits in the kernel for its own answer. If it is killed then, that thread waits for ever, and with
// it the process keeps /dev/fuse open, by whose end the kernel would know that nobody answers any more. It never ends, its directory stays locked,
// and the next process of the node cannot start. So a child does that, which has no /dev/fuse; it gets errors when its parent dies.
const (
	stepBind    = "bind"    // FILE TAG: bind a loop device to the file, print its path
	stepRelease = "release" // PATH TAG
	stepResize  = "resize"  // PATH TAG FILE SIZE
)

// exits are the codes with which a step ends for errors that are asked about. The first that matches counts.
var exits = []struct {
	code int
	err  error
}{{16, errOpened}, {17, frontend.ErrBusy}, {18, ErrUnavailable}}

// Step is the main function of a process that Options.Helper starts: one step, as args say, and the exit code. Its standard input ends when its parent does.
func Step(args []string) int {
	err := errors.New("fuseloop: not a step")
	switch {
	case len(args) == 3 && args[0] == stepBind:
		var l loopDevice
		if l, err = bindFile(args[1], args[2]); err == nil && orphaned() {
			err = errors.Join(errors.New("fuseloop: the process that asked for it has ended"), l.abandon())
		}
		if err == nil {
			_, err = fmt.Fprintln(os.Stdout, l.path)
		}
	case len(args) == 3 && args[0] == stepRelease:
		err = loopDevice{path: args[1], tag: args[2]}.release()
	case len(args) == 5 && args[0] == stepResize:
		size, perr := strconv.ParseInt(args[4], 10, 64)
		if err = perr; err == nil {
			err = loopDevice{path: args[1], tag: args[2]}.resize(args[3], size)
		}
	}
	if err == nil {
		return 0
	}
	fmt.Fprintln(os.Stderr, err)
	for _, x := range exits {
		if errors.Is(err, x.err) {
			return x.code
		}
	}
	return 1
}

// orphaned reports whether the other end of standard input has gone. The device was bound before: while the parent lives it knows of it, or the next one finds it.
func orphaned() bool {
	fds := []unix.PollFd{{Fd: 0, Events: unix.POLLIN}}
	for {
		_, err := unix.Poll(fds, 0)
		if !errors.Is(err, unix.EINTR) {
			return err != nil || fds[0].Revents&(unix.POLLHUP|unix.POLLERR|unix.POLLNVAL) != 0
		}
	}
}

// steps does what is above, in a child if there is a helper.
type steps struct{ helper []string }

func (s steps) bind(file, tag string) (loopDevice, error) {
	if len(s.helper) == 0 {
		return bindFile(file, tag)
	}
	path, err := s.run(stepBind, file, tag)
	if err != nil {
		return loopDevice{}, err
	}
	return loopDevice{path: path, tag: tag}, nil
}

func (s steps) release(l loopDevice) error {
	if len(s.helper) == 0 {
		return l.release()
	}
	_, err := s.run(stepRelease, l.path, l.tag)
	return err
}

func (s steps) resize(l loopDevice, file string, size int64) error {
	if len(s.helper) == 0 {
		return l.resize(file, size)
	}
	_, err := s.run(stepResize, l.path, l.tag, file, strconv.FormatInt(size, 10))
	return err
}

// stepError is what a child said of one of exits.
type stepError struct {
	said string
	is   error
}

func (e *stepError) Error() string { return e.said }
func (e *stepError) Unwrap() error { return e.is }

// run has a child do a step, and returns what it printed. It cannot be broken off: nobody would know what was done.
func (s steps) run(args ...string) (string, error) {
	cmd := exec.CommandContext(context.Background(), s.helper[0], append(s.helper[1:len(s.helper):len(s.helper)], args...)...)
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // what ends the parent in order lets it end
	in, err := cmd.StdinPipe()
	if err != nil {
		return "", fmt.Errorf("fuseloop: %s: %w", args[0], err)
	}
	defer func() { _ = in.Close() }() // Wait has closed it, if it was started
	var printed, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &printed, &said
	err = cmd.Run()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		for _, x := range exits {
			if x.code == exit.ExitCode() {
				return "", &stepError{strings.TrimSpace(said.String()), x.err}
			}
		}
		return "", fmt.Errorf("%.512s: %w", bytes.TrimSpace(said.Bytes()), err)
	}
	if err != nil {
		return "", fmt.Errorf("fuseloop: %s: %w", args[0], err)
	}
	return strings.TrimSpace(printed.String()), nil
}
