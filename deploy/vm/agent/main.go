// Command agent is the first process of a virtual machine of package vm: it makes
// a system of an initramfs, and does what the host orders (package order).
package main

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Names of the virtio ports.
const (
	ordersPort = "tandem.orders"
	logPort    = "tandem.log"
)

func main() {
	fmt.Println("agent:", run())
	// The kernel panics when its first process ends, and qemu with it: whatever happened, the machine is gone.
}

// run returns why it cannot go on.
func run() error {
	for _, m := range []struct{ dev, path, fs string }{
		{"proc", "/proc", "proc"}, {"sysfs", "/sys", "sysfs"}, {"devtmpfs", "/dev", "devtmpfs"}, {"tmpfs", "/run", "tmpfs"}, {"tmpfs", "/tmp", "tmpfs"},
	} {
		if err := os.MkdirAll(m.path, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.dev, m.path, m.fs, 0, ""); err != nil {
			return fmt.Errorf("mount %s: %w", m.path, err)
		}
	}
	if err := os.Setenv("PATH", "/bin:/sbin:/usr/bin:/usr/sbin"); err != nil {
		return err
	}
	if err := loadModules("/modules"); err != nil {
		return err
	}
	orders, err := openPort(ordersPort)
	if err != nil {
		return err
	}
	log, err := openPort(logPort)
	if err != nil {
		return err
	}
	a := &agent{out: orders, log: log}
	return a.serve(bufio.NewReader(orders))
}

// loadModules loads the kernel modules that the file names, one a line, in that order.
func loadModules(list string) error {
	data, err := os.ReadFile(list)
	if err != nil {
		return err
	}
	for name := range strings.FieldsSeq(string(data)) {
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		err = unix.FinitModule(int(f.Fd()), "", 0)
		f.Close()
		if err != nil && err != unix.EEXIST {
			return fmt.Errorf("load %s: %w", name, err)
		}
	}
	return nil
}

// openPort opens the virtio port of that name.
func openPort(name string) (io.ReadWriteCloser, error) {
	files, err := filepath.Glob("/sys/class/virtio-ports/*/name")
	if err != nil {
		return nil, err
	}
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil {
			return nil, err
		}
		if string(bytes.TrimSpace(data)) != name {
			continue
		}
		// Not os.OpenFile: its file would poll, and a write that does not wait for the host may be lost with the power.
		fd, err := unix.Open("/dev/"+filepath.Base(filepath.Dir(f)), unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, fmt.Errorf("open port %s: %w", name, err)
		}
		return os.NewFile(uintptr(fd), name), nil
	}
	return nil, fmt.Errorf("no virtio port %s among %v", name, files)
}
