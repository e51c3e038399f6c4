package fuseloop

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/tandem-storage/tandem/datapath/frontend"
	"github.com/tandem-storage/tandem/internal/loopdev"
)

const (
	// loopBlock is the logical block size of the loop devices, bytes.
	loopBlock = 4096
	// loopRequestKiB is the largest request of a loop device. A FUSE request
	// carries 256 pages; of memory that is not aligned to pages a request of this
	// size takes a few more than 128.
	loopRequestKiB = 512
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

// bindFile binds a free loop device to the file of that name, with direct I/O. The loop driver has a reference to the file of its own then.
func bindFile(name, tag string) (loopDevice, error) {
	file, err := loopdev.Open(name, unix.O_RDWR|unix.O_NOFOLLOW)
	if err != nil {
		return loopDevice{}, fmt.Errorf("fuseloop: open %s: %w", name, err)
	}
	path, fd, err := loopdev.Bind(file, loopdev.Options{BlockSize: loopBlock, Flags: unix.LO_FLAGS_DIRECT_IO, Tag: tag})
	l := loopDevice{path: path, tag: tag}
	switch {
	case errors.Is(err, loopdev.ErrNoControl):
		err = fmt.Errorf("%w: %w", ErrUnavailable, err)
	case errors.Is(err, loopdev.ErrRace):
		err = fmt.Errorf("%w: %w", frontend.ErrBusy, err)
	case err == nil:
		err = unix.Close(fd)
	}
	if cerr := unix.Close(file); err == nil && cerr != nil {
		err = fmt.Errorf("fuseloop: close %s: %w", name, cerr)
	}
	if err != nil {
		return loopDevice{}, errors.Join(err, l.abandon())
	}
	return l, nil
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
	fd, err := loopdev.Open(l.path, unix.O_RDWR|unix.O_EXCL)
	if errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("%s is claimed%s: %w", l.path, l.holders(), frontend.ErrBusy)
	}
	if err != nil {
		return fmt.Errorf("fuseloop: open %s: %w", l.path, err)
	}
	defer unix.Close(fd)
	info, err := unix.IoctlLoopGetStatus64(fd)
	if errors.Is(err, unix.ENXIO) || err == nil && loopdev.Tag(info) != l.tag {
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
	err = loopdev.SetAutoclear(fd, false)
	if errors.Is(err, unix.ENXIO) {
		return nil
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
	fd, err := loopdev.Open(l.path, unix.O_RDONLY)
	if errors.Is(err, unix.ENXIO) || errors.Is(err, unix.ENOENT) {
		return nil // being unbound
	}
	if err != nil {
		return fmt.Errorf("fuseloop: open %s: %w", l.path, err)
	}
	defer unix.Close(fd)
	// A file system that is gone may not answer; then only we have seen the device.
	info, err := unix.IoctlLoopGetStatus64(fd)
	if errors.Is(err, unix.ENXIO) || err == nil && loopdev.Tag(info) != l.tag {
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
	fd, err := loopdev.Open(l.path, unix.O_RDONLY)
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
