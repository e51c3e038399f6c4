package lab

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// Namespace is a network apart from that of the host. It has no name: the kernel
// takes it away, with all devices in it, when it was closed and nothing runs in it any
// more, and when this process is gone, however that came about.
type Namespace struct{ file *os.File }

// NewNamespace makes a network with nothing in it but a loopback device that is down. Needs root.
func NewNamespace() (*Namespace, error) { return newNamespace(func() error { return nil }) }

// newNamespace calls f in the new network, on a thread that it takes there and back: it must not end, see childAttr.
func newNamespace(f func() error) (*Namespace, error) {
	var file *os.File
	var err error
	made := make(chan struct{})
	go func() {
		defer close(made)
		runtime.LockOSThread()
		home, e := os.Open("/proc/thread-self/ns/net")
		if err = e; err != nil {
			return
		}
		defer home.Close()
		if err = unix.Unshare(unix.CLONE_NEWNET); err != nil {
			err = os.NewSyscallError("unshare", err)
			return
		}
		if err = f(); err == nil {
			file, err = os.Open("/proc/thread-self/ns/net")
		}
		if e := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); e != nil {
			err = errors.Join(err, os.NewSyscallError("setns", e))
			return // locked: nothing else may run where the thread is now
		}
		runtime.UnlockOSThread()
	}()
	<-made
	if err != nil {
		return nil, err
	}
	return &Namespace{file}, nil
}

// Inside returns the command line that runs argv in the network. Mounts stay common to all. Needs nsenter(1).
func (n *Namespace) Inside(argv ...string) []string {
	return append([]string{"nsenter", fmt.Sprintf("--net=/proc/%d/fd/%d", os.Getpid(), n.file.Fd()), "--"}, argv...)
}

// Close lets go of the network.
func (n *Namespace) Close() error { return n.file.Close() }
