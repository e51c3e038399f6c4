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
	unshare := func() error { return os.NewSyscallError("unshare", unix.Unshare(unix.CLONE_NEWNET)) }
	err := visit(unshare, func() error {
		err := f()
		if err == nil {
			file, err = os.Open("/proc/thread-self/ns/net")
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return &Namespace{file}, nil
}

// visit calls f on a thread that enter takes to another network. The thread comes home: if it ended, so would the processes
// that it started, see childAttr.
func visit(enter, f func() error) (err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		home, e := os.Open("/proc/thread-self/ns/net")
		if err = e; err != nil {
			runtime.UnlockOSThread()
			return
		}
		defer home.Close()
		if err = enter(); err == nil {
			err = f()
		}
		if e := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); e != nil {
			err = errors.Join(err, os.NewSyscallError("setns", e))
			return // locked: nothing else may run where the thread is now
		}
		runtime.UnlockOSThread()
	}()
	<-done
	return err
}

// Inside returns the command line that runs argv in the network. Mounts stay common to all. Needs nsenter(1).
func (n *Namespace) Inside(argv ...string) []string {
	return append([]string{"nsenter", "--net=" + n.Path(), "--"}, argv...)
}

// Path names the network, for programs such as ip(8), as long as it is not closed.
func (n *Namespace) Path() string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), n.file.Fd()) }

// Dial connects from within the network to an address with an IP and a port: a socket is of the network of the thread that makes it.
func (n *Namespace) Dial(ctx context.Context, network, address string) (conn net.Conn, err error) {
	enter := func() error { return os.NewSyscallError("setns", unix.Setns(int(n.file.Fd()), unix.CLONE_NEWNET)) }
	err = visit(enter, func() (err error) {
		var d net.Dialer
		conn, err = d.DialContext(ctx, network, address)
		return err
	})
	return conn, err
}

// Close lets go of the network.
func (n *Namespace) Close() error { return n.file.Close() }
