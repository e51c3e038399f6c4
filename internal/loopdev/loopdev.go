// Package loopdev binds loop devices of the kernel, see losetup(8) and Linux' Documentation of drivers/block/loop.
package loopdev

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path"

	"golang.org/x/sys/unix"
)

// Control is the device by which free loop devices are found.
const Control = "/dev/loop-control"

// tries bounds how often somebody else may bind the free device first.
const tries = 64

// What can be wrong. Test with errors.Is.
var (
	// ErrNoControl means that there is no Control here, or none that this process may open.
	ErrNoControl = errors.New("loopdev: no loop devices here")
	// ErrRace means that others bound every device that was free first.
	ErrRace = errors.New("loopdev: somebody else bound every free loop device first")
)

// Options of a device.
type Options struct {
	BlockSize uint32 // logical block size, bytes: 512 to 4096; 0 = that of the file's file system or device
	Flags     uint32 // LO_FLAGS_* of linux/loop.h
	Tag       string // kept in lo_file_name, 63 bytes at most; says whose it is
}

// Open opens name, again if a signal came. The descriptor is closed on exec.
func Open(name string, flags int) (int, error) {
	for {
		fd, err := unix.Open(name, flags|unix.O_CLOEXEC, 0)
		if !errors.Is(err, unix.EINTR) {
			return fd, err
		}
	}
}

// Bind binds a free loop device to the open file, of which the driver has a reference of its own then. It returns the path of the device, and the device open, for
// the caller to close. Flags that the driver does not take are an error, with which no device is bound.
func Bind(file int, o Options) (device string, fd int, err error) {
	control, err := Open(Control, unix.O_RDWR)
	if err != nil {
		return "", -1, fmt.Errorf("%w: open %s: %w", ErrNoControl, Control, err)
	}
	defer unix.Close(control)
	for range tries {
		n, err := free(control)
		if err != nil {
			return "", -1, fmt.Errorf("loopdev: find a free loop device: %w", err)
		}
		device := fmt.Sprintf("/dev/loop%d", n)
		switch fd, err := bind(device, file, o); {
		case err == nil:
			return device, fd, nil
		case !errors.Is(err, unix.EBUSY):
			return "", -1, err
		}
	}
	return "", -1, fmt.Errorf("%w, %d times in a row", ErrRace, tries)
}

// free returns the number of a device that is bound to nothing, and shown nowhere. Where the device node of one is bind-mounted, as an orchestrator shows raw devices,
// whoever opens it there believes that it is what it was: a consumer of an attachment that ended with its process would write to another volume.
func free(control int) (int, error) {
	n, err := unix.IoctlRetInt(control, unix.LOOP_CTL_GET_FREE)
	for err == nil {
		// After it was found to be free: nobody shows a device that is none.
		var mounts []byte
		if mounts, err = os.ReadFile("/proc/self/mountinfo"); err != nil || !shown(mounts, n) {
			break
		}
		n, err = add(control)
	}
	return n, err
}

// shown reports whether the node of loop device n is mounted somewhere, as mountinfo tells.
func shown(mountinfo []byte, n int) bool {
	if !bytes.Contains(mountinfo, fmt.Appendf(nil, "/loop%d ", n)) { // mostly
		return false
	}
	for line := range bytes.Lines(mountinfo) {
		// 36 35 0:5 /loop7 /mount/point options ...
		if f := bytes.Fields(line); len(f) > 3 && path.Base(string(f[3])) == fmt.Sprintf("loop%d", n) {
			return true
		}
	}
	return false
}

// add makes a loop device of the first number that has none.
func add(control int) (int, error) {
	n, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(control), unix.LOOP_CTL_ADD, ^uintptr(0))
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

func bind(device string, file int, o Options) (fd int, err error) {
	mode := unix.O_RDWR
	if o.Flags&unix.LO_FLAGS_READ_ONLY != 0 {
		mode = unix.O_RDONLY
	}
	fd, err = Open(device, mode)
	if err != nil {
		return -1, fmt.Errorf("loopdev: open %s (does the node exist?): %w", device, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, unix.Close(fd))
			fd = -1
		}
	}()
	c := unix.LoopConfig{Fd: uint32(file), Size: o.BlockSize}
	c.Info.Flags = o.Flags
	copy(c.Info.File_name[:len(c.Info.File_name)-1], o.Tag)
	if err := unix.IoctlLoopConfigure(fd, &c); err != nil {
		return fd, fmt.Errorf("loopdev: bind %s: %w", device, err)
	}
	info, err := unix.IoctlLoopGetStatus64(fd)
	if err == nil && info.Flags&o.Flags != o.Flags {
		err = fmt.Errorf("the loop driver does not take all of the flags %#x", o.Flags)
	}
	if err != nil { // nobody has it yet: it goes away when fd is closed
		return fd, errors.Join(fmt.Errorf("loopdev: bind %s: %w", device, err), unix.IoctlSetInt(fd, unix.LOOP_CLR_FD, 0))
	}
	return fd, nil
}

// Tag is what the device was bound with.
func Tag(i *unix.LoopInfo64) string {
	name, _, _ := bytes.Cut(i.File_name[:], []byte{0})
	return string(name)
}

// SetAutoclear has an open device that is bound go with its last close, or stay then.
func SetAutoclear(fd int, on bool) error {
	info, err := unix.IoctlLoopGetStatus64(fd)
	if err != nil {
		return fmt.Errorf("loopdev: status: %w", err)
	}
	info.Flags &^= unix.LO_FLAGS_AUTOCLEAR
	if on {
		info.Flags |= unix.LO_FLAGS_AUTOCLEAR
	}
	if err := unix.IoctlLoopSetStatus64(fd, info); err != nil {
		return fmt.Errorf("loopdev: set status: %w", err)
	}
	return nil
}
