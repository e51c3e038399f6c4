package mount

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/tandem-storage/tandem/internal/loopdev"
)

// A device's file that is bound read-only is written to as before: mount flags say nothing of devices. So a device that nobody is to write is shown as a loop
// device over it that is read-only. It has the size that the device had then.

// readOnlyTag begins the tag of such a loop device.
const readOnlyTag = "tandem-ro:"

func isDevice(path string) bool {
	fi, err := os.Stat(path)
	return err == nil && fi.Mode()&(os.ModeDevice|os.ModeCharDevice) == os.ModeDevice
}

// bindReadOnly shows device read-only at target, an empty file. Whenever it is cut short nothing is left but, perhaps, a device at target that answers nothing.
func bindReadOnly(device, target string) (err error) {
	file, err := loopdev.Open(device, unix.O_RDONLY)
	if err != nil {
		return fmt.Errorf("mount: open %s: %w", device, err)
	}
	defer func() { err = errors.Join(err, unix.Close(file)) }()
	blockSize, err := unix.IoctlGetInt(file, unix.BLKSSZGET)
	if err != nil {
		return fmt.Errorf("mount: block size of %s: %w", device, err)
	}
	path, fd, err := loopdev.Bind(file, loopdev.Options{
		BlockSize: uint32(blockSize), Flags: unix.LO_FLAGS_READ_ONLY | unix.LO_FLAGS_DIRECT_IO | unix.LO_FLAGS_AUTOCLEAR, Tag: readOnlyTag + device,
	})
	if err != nil {
		return fmt.Errorf("mount: show %s read-only: %w", device, err)
	}
	defer func() { err = errors.Join(err, unix.Close(fd)) }() // with which it goes, unless it stays
	if err := bind(path, target); err != nil {
		return err
	}
	if err := loopdev.SetAutoclear(fd, false); err != nil {
		return errors.Join(fmt.Errorf("mount: keep %s: %w", path, err), unix.Unmount(target, unix.UMOUNT_NOFOLLOW))
	}
	return nil
}

// letGo opens the read-only device that is bound at target, nil if none is, and has it go with its last close: to be closed when it is not bound any more.
func letGo(target string) (*os.File, error) {
	dev, ok := boundDevice(target)
	if !ok {
		return nil, nil
	}
	path, err := os.Readlink("/sys/dev/block/" + dev)
	if err != nil {
		return nil, nil // gone
	}
	fd, err := loopdev.Open("/dev/"+filepath.Base(path), unix.O_RDONLY) // not by target: that would keep it mounted
	if err != nil {
		return nil, nil // gone, or somebody else's
	}
	info, err := unix.IoctlLoopGetStatus64(fd)
	if err != nil || !strings.HasPrefix(loopdev.Tag(info), readOnlyTag) {
		return nil, unix.Close(fd)
	}
	f := os.NewFile(uintptr(fd), path)
	if err := loopdev.SetAutoclear(fd, true); err != nil {
		return nil, errors.Join(fmt.Errorf("mount: unbind the device at %s: %w", target, err), f.Close())
	}
	return f, nil
}

// boundDevice returns the numbers of the block device whose file is at path, "major:minor".
func boundDevice(path string) (string, bool) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return "", false
	}
	return fmt.Sprintf("%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev)), true
}
