package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
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

// newNamespace calls f in the new network.
func newNamespace(f func() error) (*Namespace, error) {
	var file *os.File
	var err error
	made := make(chan struct{})
	go func() {
		defer close(made)
		runtime.LockOSThread() // for good: the thread, which is in another network now, ends with the goroutine, and with it processes that it started
		if err = unix.Unshare(unix.CLONE_NEWNET); err != nil {
			err = os.NewSyscallError("unshare", err)
			return
		}
		if err = f(); err == nil {
			file, err = os.Open("/proc/thread-self/ns/net")
		}
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

// Dial connects from within the network to an address with an IP and a port.
func (n *Namespace) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	// A socket is of the network of the thread that makes it. The thread has to come back: processes that it started die with it.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return nil, err
	}
	defer home.Close()
	if err := unix.Setns(int(n.file.Fd()), unix.CLONE_NEWNET); err != nil {
		return nil, os.NewSyscallError("setns", err)
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, network, address)
	if back := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); back != nil {
		runtime.LockOSThread() // for good: it would do other work in the wrong network
		return nil, errors.Join(err, os.NewSyscallError("setns", back))
	}
	return conn, err
}

// Close lets go of the network.
func (n *Namespace) Close() error { return n.file.Close() }
