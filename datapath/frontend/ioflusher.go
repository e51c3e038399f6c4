package frontend

import (
	"fmt"
	"syscall"

	"golang.org/x/sys/unix"
)

// IOFlusher makes the process an I/O flusher (prctl PR_SET_IO_FLUSHER): whoever serves a block device of its own machine must not wait, when it
// asks for memory, until something is written to that device. It needs CAP_SYS_RESOURCE and a build without cgo; the error says
// which is missing, and the caller goes on without.
func IOFlusher() error {
	if _, _, errno := syscall.AllThreadsSyscall(unix.SYS_PRCTL, unix.PR_SET_IO_FLUSHER, 1, 0); errno != 0 {
		return fmt.Errorf("frontend: become an I/O flusher, which needs CAP_SYS_RESOURCE and a build without cgo: %w", errno)
	}
	return nil
}
