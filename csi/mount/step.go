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
	stepReadOnly = "read-only"
	stepSetGroup = "set-group"
	stepFreeze   = "freeze"
	stepThaw     = "thaw"
)

// exits are the codes with which a step ends for errors that are asked about.
var exits = map[int]error{16: ErrBusy, 17: ErrFrozen, 18: errNotFrozen}

// stepFile is where a step finds the file that it is about.
const stepFile = 3

// Step is the main function of a process that System.Helper starts: one step, as args say, and the exit code.
func Step(args []string) int {
	err := errors.New("mount: not a step")
	switch {
	case len(args) == 3 && args[0] == stepUnmount:
		err = unmount(args[1], args[2] == strconv.FormatBool(true))
	case len(args) == 3 && args[0] == stepReadOnly:
		err = bindReadOnly(args[1], args[2])
	case len(args) == 3 && args[0] == stepSetGroup:
		gid, aerr := strconv.Atoi(args[2])
		if err = aerr; err == nil {
			err = setGroup(args[1], gid)
		}
	case len(args) == 2 && args[0] == stepFreeze:
		err = freeze(os.NewFile(stepFile, args[1]))
	case len(args) == 2 && args[0] == stepThaw:
		err = thaw(os.NewFile(stepFile, args[1]))
	}
	if err == nil {
		return 0
	}
	for code, is := range exits {
		if errors.Is(err, is) {
			return code
		}
	}
	fmt.Fprintln(os.Stderr, err)
	return 1
}

// step has a child do it; what says what it is, for an error.
func (s System) step(what string, args ...string) error { return s.stepOn(nil, what, args...) }

// stepOn is step with a file for the child, which may be nil.
func (s System) stepOn(f *os.File, what string, args ...string) error {
	cmd := exec.CommandContext(context.Background(), s.Helper[0], append(s.Helper[1:len(s.Helper):len(s.Helper)], args...)...)
	cmd.Dir, cmd.Env = "/", append(os.Environ(), "LC_ALL=C")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // what ends the parent in order lets it end
	if f != nil {
		cmd.ExtraFiles = []*os.File{f}
	}
	var said bytes.Buffer
	cmd.Stderr = &said
	err := cmd.Run()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) && exits[exit.ExitCode()] != nil {
		return fmt.Errorf("%w: %s", exits[exit.ExitCode()], what)
	}
	if err != nil {
		return fmt.Errorf("%w: %s: %w: %.512s", ErrCommand, what, err, bytes.TrimSpace(said.Bytes()))
	}
	return nil
}
