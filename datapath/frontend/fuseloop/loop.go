package fuseloop

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/tandem-storage/tandem/datapath/frontend"
)

const (
	loopControl = "/dev/loop-control"
	// loopBlock is the logical block size of the loop devices, bytes.
	loopBlock = 4096
	// loopRequestKiB is the largest request of a loop device. A FUSE request
	// carries 256 pages; of memory that is not aligned to pages a request of this
	// size takes a few more than 128.
	loopRequestKiB = 512
	// bindTries bounds how often somebody else may bind the free device first.
	bindTries = 64
)

// errOpened means that somebody has the device open without claiming it.
var errOpened = fmt.Errorf("the device node is open: %w", frontend.ErrBusy)

// loopDevice is a loop device that was bound by us. The zero one is none.
type loopDevice struct {
	path string // /dev/loop7
	tag  string // its lo_file_name, by which we know that it is still ours
}

// tag names an attachment in the 64 bytes of lo_file_name.
func tag(dir, id string) string {
	h := sha256.Sum256([]byte(dir + "/" + id))
	return fmt.Sprintf("tandem:%x:%.39s", h[:6], id)
}

func openRetry(name string, flags int) (int, error) {
	for {
		fd, err := unix.Open(name, flags|unix.O_CLOEXEC, 0)
		if !errors.Is(err, unix.EINTR) {
			return fd, err
		}
	}
}

// bindFile binds a free loop device to the file of that name, with direct I/O. The loop driver has a reference to the file of its own then.
func bindFile(name, tag string) (loopDevice, error) {
	file, err := openRetry(name, unix.O_RDWR|unix.O_NOFOLLOW)
	if err != nil {
		return loopDevice{}, fmt.Errorf("fuseloop: open %s: %w", name, err)
	}
	l, err := bindLoop(file, tag)
	if cerr := unix.Close(file); err == nil && cerr != nil {
		err = errors.Join(fmt.Errorf("fuseloop: close %s: %w", name, cerr), l.abandon())
	}
	if err != nil {
		return loopDevice{}, err
	}
	return l, nil
}

func bindLoop(file int, tag string) (loopDevice, error) {
	control, err := openRetry(loopControl, unix.O_RDWR)
	if err != nil {
		return loopDevice{}, fmt.Errorf("%w: open %s: %w", ErrUnavailable, loopControl, err)
	}
	defer unix.Close(control)
	for range bindTries {
		n, err := freeLoop(control)
		if err != nil {
			return loopDevice{}, fmt.Errorf("fuseloop: find a free loop device: %w", err)
		}
		l := loopDevice{path: fmt.Sprintf("/dev/loop%d", n), tag: tag}
		switch err := l.bind(file); {
		case err == nil:
			return l, nil
		case !errors.Is(err, unix.EBUSY):
			return loopDevice{}, err
		}
	}
	return loopDevice{}, fmt.Errorf("fuseloop: somebody else bound the free loop device %d times in a row: %w", bindTries, frontend.ErrBusy)
}

// freeLoop returns the number of a loop device that is bound to nothing, and shown nowhere. Where the device node of one is bind-mounted, as an orchestrator shows
// raw devices, whoever opens it there believes that it is what it was: a consumer of an attachment that ended with its process would write to another volume.
func freeLoop(control int) (int, error) {
	n, err := unix.IoctlRetInt(control, unix.LOOP_CTL_GET_FREE)
	for err == nil {
		// After it was found to be free: nobody shows a device that is none.
		var mounts []byte
		if mounts, err = os.ReadFile("/proc/self/mountinfo"); err != nil || !shown(mounts, n) {
			break
		}
		n, err = addLoop(control)
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

// addLoop makes a loop device of the first number that has none.
func addLoop(control int) (int, error) {
	n, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(control), unix.LOOP_CTL_ADD, ^uintptr(0))
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

func (l loopDevice) bind(file int) error {
	fd, err := openRetry(l.path, unix.O_RDWR)
	if err != nil {
		return fmt.Errorf("fuseloop: open %s (does the node exist?): %w", l.path, err)
	}
	defer unix.Close(fd)
	c := unix.LoopConfig{Fd: uint32(file), Size: loopBlock}
	c.Info.Flags = unix.LO_FLAGS_DIRECT_IO
	copy(c.Info.File_name[:len(c.Info.File_name)-1], l.tag)
	if err := unix.IoctlLoopConfigure(fd, &c); err != nil {
		return fmt.Errorf("fuseloop: bind %s: %w", l.path, err)
	}
	info, err := unix.IoctlLoopGetStatus64(fd)
	if err == nil && info.Flags&unix.LO_FLAGS_DIRECT_IO == 0 {
		err = errors.New("the loop driver does not take direct I/O")
	}
	if err != nil {
		// Nobody has it yet: it goes away when fd is closed.
		return errors.Join(fmt.Errorf("fuseloop: bind %s: %w", l.path, err), unix.IoctlSetInt(fd, unix.LOOP_CLR_FD, 0))
	}
	return nil
}

// tune sets limits that the kernel would choose otherwise.
func (l loopDevice) tune() error {
	name := "/sys/block/" + strings.TrimPrefix(l.path, "/dev/") + "/queue/max_sectors_kb"
	if err := os.WriteFile(name, fmt.Appendln(nil, loopRequestKiB), 0); err != nil {
		return fmt.Errorf("fuseloop: limit requests of %s: %w", l.path, err)
	}
	return nil
}

// release unbinds the device if nobody uses it. Otherwise it fails with
// frontend.ErrBusy and changes nothing. A device that is not ours any more is
// left alone.
//
// LOOP_CLR_FD does not refuse a device in use: it marks it to go with the last
// close, and the consumer's later writes would end nowhere. So first an
// exclusive open, which a mount, a device mapper table, an md array or swap
// refuses and which keeps new ones of these out. That leaves plain openers. If
// there are none but us, LOOP_CLR_FD shuts the door under the driver's lock: it
// unbinds with our close, and whoever opens now is refused. If there are, the
// device is still bound after it, and taking the mark back changes nothing for
// them, because the last close cannot have happened while we have it open.
// Kernels before 6.11 leave a moment between the last two steps of the driver in
// which a plain opener gets a device that is just being unbound and reads
// nothing from it; it cannot lose a write, since none was taken.
func (l loopDevice) release() error {
	fd, err := openRetry(l.path, unix.O_RDWR|unix.O_EXCL)
	if errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("%s is claimed%s: %w", l.path, l.holders(), frontend.ErrBusy)
	}
	if err != nil {
		return fmt.Errorf("fuseloop: open %s: %w", l.path, err)
	}
	defer unix.Close(fd)
	info, err := unix.IoctlLoopGetStatus64(fd)
	if errors.Is(err, unix.ENXIO) || err == nil && fileName64(info) != l.tag {
		return nil
	}
	if err != nil {
		return fmt.Errorf("fuseloop: status of %s: %w", l.path, err)
	}
	// Blocks that somebody wrote through the page cache and did not sync: once
	// unbound, the driver would refuse them. No flush: nobody asked for one, and
	// a device that fails has to be detachable.
	const write = unix.SYNC_FILE_RANGE_WAIT_BEFORE | unix.SYNC_FILE_RANGE_WRITE | unix.SYNC_FILE_RANGE_WAIT_AFTER
	if err := unix.SyncFileRange(fd, 0, 0, write); err != nil {
		return fmt.Errorf("fuseloop: write back the cached blocks of %s: %w", l.path, err)
	}
	if err := unix.IoctlSetInt(fd, unix.LOOP_CLR_FD, 0); err != nil {
		return fmt.Errorf("fuseloop: unbind %s: %w", l.path, err)
	}
	info, err = unix.IoctlLoopGetStatus64(fd)
	if errors.Is(err, unix.ENXIO) {
		return nil
	}
	if err == nil {
		info.Flags &^= unix.LO_FLAGS_AUTOCLEAR
		err = unix.IoctlLoopSetStatus64(fd, info)
	}
	if err != nil {
		return fmt.Errorf("fuseloop: keep %s, which is in use: %w", l.path, err)
	}
	return errOpened
}

// abandon marks the device to go with its last close, which is at once if
// nobody has it open. Nothing is written back.
func (l loopDevice) abandon() error {
	if l.path == "" {
		return nil
	}
	fd, err := openRetry(l.path, unix.O_RDONLY)
	if errors.Is(err, unix.ENXIO) || errors.Is(err, unix.ENOENT) {
		return nil // being unbound
	}
	if err != nil {
		return fmt.Errorf("fuseloop: open %s: %w", l.path, err)
	}
	defer unix.Close(fd)
	// A file system that is gone may not answer; then only we have seen the device.
	info, err := unix.IoctlLoopGetStatus64(fd)
	if errors.Is(err, unix.ENXIO) || err == nil && fileName64(info) != l.tag {
		return nil
	}
	if err := unix.IoctlSetInt(fd, unix.LOOP_CLR_FD, 0); err != nil && !errors.Is(err, unix.ENXIO) {
		return fmt.Errorf("fuseloop: unbind %s: %w", l.path, err)
	}
	return nil
}

// resize has the kernel ask for the size of the device's file anew, and makes the device as large as that, which is size bytes at least.
func (l loopDevice) resize(file string, size int64) error {
	var st unix.Stat_t
	if err := unix.Stat(file, &st); err != nil {
		return fmt.Errorf("fuseloop: look at %s: %w", file, err)
	}
	fd, err := openRetry(l.path, unix.O_RDONLY)
	if err != nil {
		return fmt.Errorf("fuseloop: open %s: %w", l.path, err)
	}
	err = unix.IoctlSetInt(fd, unix.LOOP_SET_CAPACITY, 0)
	if err == nil {
		var now int64
		if now, err = unix.Seek(fd, 0, unix.SEEK_END); err == nil && now < size {
			err = fmt.Errorf("it has %d bytes, not %d", now, size)
		}
	}
	if err = errors.Join(err, unix.Close(fd)); err != nil {
		return fmt.Errorf("fuseloop: %s does not take the new size, detach the volume and attach it again: %w", l.path, err)
	}
	return nil
}

// holders names the devices that are built on this one, for the message.
func (l loopDevice) holders() string {
	entries, err := os.ReadDir("/sys/block/" + strings.TrimPrefix(l.path, "/dev/") + "/holders")
	if err != nil || len(entries) == 0 {
		return " (mounted, or opened exclusively)"
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return " by " + strings.Join(names, ", ")
}

func fileName64(i *unix.LoopInfo64) string {
	n := bytes.IndexByte(i.File_name[:], 0)
	if n < 0 {
		n = len(i.File_name)
	}
	return string(i.File_name[:n])
}
