package mount

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"syscall"
)

// What a process that serves devices must not do itself: what waits in the kernel for a file system on such a device. If the process is killed then,
// that thread waits for a request that nobody answers, and with it the process keeps open what would tell the kernel so: both stay for ever, and with
// them the mount, the device and who calls sync(2). So a child does it, which has none of that open. It outlives its parent by no more than its errors.
const (
	stepUnmount  = "unmount"
	stepSetGroup = "set-group"
)

// exitBusy is how a step ends with ErrBusy.
const exitBusy = 16

// Step is the main function of a process that System.Helper starts: one step, as args say, and the exit code.
func Step(args []string) int {
	err := errors.New("mount: not a step")
	switch {
	case len(args) == 3 && args[0] == stepUnmount:
		err = unmount(args[1], args[2] == strconv.FormatBool(true))
	case len(args) == 3 && args[0] == stepSetGroup:
		gid, aerr := strconv.Atoi(args[2])
		if err = aerr; err == nil {
			err = setGroup(args[1], gid)
		}
	}
	switch {
	case err == nil:
		return 0
	case errors.Is(err, ErrBusy):
		return exitBusy
	default:
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
}

// step has a child do it; what says what it is, for an error.
func (s System) step(what string, args ...string) error {
	cmd := exec.CommandContext(context.Background(), s.Helper[0], append(s.Helper[1:len(s.Helper):len(s.Helper)], args...)...)
	cmd.Dir, cmd.Env = "/", append(os.Environ(), "LC_ALL=C")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // what ends the parent in order lets it end
	var said bytes.Buffer
	cmd.Stderr = &said
	err := cmd.Run()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) && exit.ExitCode() == exitBusy {
		return fmt.Errorf("%w: %s", ErrBusy, what)
	}
	if err != nil {
		return fmt.Errorf("%w: %s: %w: %.512s", ErrCommand, what, err, bytes.TrimSpace(said.Bytes()))
	}
	return nil
}
