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
	err := visit(func() error { return os.NewSyscallError("unshare", unix.Unshare(unix.CLONE_NEWNET)) }, func() (err error) {
		if err = f(); err == nil {
			file, err = os.Open("/proc/thread-self/ns/net")
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return &Namespace{file}, nil
}

// visit has enter take this thread to another network, calls f there, and brings the thread back: if it ended instead, processes
// that it has started would end with it.
func visit(enter, f func() error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return err
	}
	defer home.Close()
	if err := enter(); err != nil {
		return err
	}
	err = f()
	if back := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); back != nil {
		runtime.LockOSThread() // for good: what else it did would be done in the wrong network
		return errors.Join(err, os.NewSyscallError("setns", back))
	}
	return err
}

// Inside returns the command line that runs argv in the network. Mounts stay common to all. Needs nsenter(1).
func (n *Namespace) Inside(argv ...string) []string {
	return append([]string{"nsenter", fmt.Sprintf("--net=/proc/%d/fd/%d", os.Getpid(), n.file.Fd()), "--"}, argv...)
}

// Dial connects from within the network to an address with an IP and a port.
func (n *Namespace) Dial(ctx context.Context, network, address string) (conn net.Conn, err error) {
	err = visit(func() error { return os.NewSyscallError("setns", unix.Setns(int(n.file.Fd()), unix.CLONE_NEWNET)) }, func() error {
		var d net.Dialer
		conn, err = d.DialContext(ctx, network, address) // a socket is of the network of the thread that makes it
		return err
	})
	return conn, err
}

// Close lets go of the network.
func (n *Namespace) Close() error { return n.file.Close() }
