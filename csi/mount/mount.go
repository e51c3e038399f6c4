// Package mount makes file systems on block devices and mounts them, on Linux.
package mount

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/tandem-storage/tandem/internal/loopdev"
)

// File systems that can be made.
const (
	XFS  = "xfs"
	Ext4 = "ext4"
)

// What can be wrong. Test with errors.Is.
var (
	// ErrCommand means that mount(8) or mkfs(8) failed; the text has what it said.
	ErrCommand = errors.New("mount: command failed")
	// ErrNotZero means that a device does not read as it should where nothing was ever written.
	ErrNotZero = errors.New("mount: device is not empty, or cannot be read")
	// ErrBusy means that something that is mounted is in use.
	ErrBusy = errors.New("mount: in use")
)

// Point is what is mounted at a path.
type Point struct {
	Target   string
	FS       string
	Device   string // path of the block device that is mounted, or that a bound file is; "" = none
	Backing  string // file behind the loop device, and behind the one that it is over; "" = it is none
	ReadOnly bool   // of a block device's file: the device is
	Block    bool   // a block device's file, bound
}

// Usage of a file system.
type Usage struct {
	TotalBytes, FreeBytes, AvailableBytes int64
	TotalInodes, FreeInodes               int64
}

// System mounts on this machine, as root. The zero value is ready for a process that serves no devices.
type System struct {
	// Helper is a program, and its first arguments, that hands all that follow to Step. Required where devices are served by this process: it must
	// not wait for a file system on one of them, see step.go.
	Helper []string
}

// Format makes a file system on all of device, whatever is there. options are further arguments of mkfs. Nothing is discarded.
func (System) Format(ctx context.Context, device, fs string, options []string) error {
	var argv []string
	switch fs {
	case XFS:
		argv = []string{"-f", "-q", "-K"}
	case Ext4:
		argv = []string{"-F", "-q", "-E", "nodiscard"}
	default:
		return fmt.Errorf("%w: no mkfs for %q", ErrCommand, fs)
	}
	return run(ctx, "mkfs."+fs, append(append(argv, options...), device)...)
}

// Grow makes the file system on device, which is mounted for writing at target, as large as the device. One that is that already stays as it is.
func (System) Grow(ctx context.Context, device, target, fs string) error {
	switch fs {
	case XFS:
		return run(ctx, "xfs_growfs", "-d", target)
	case Ext4:
		return run(ctx, "resize2fs", device)
	default:
		return fmt.Errorf("%w: no way to grow %q", ErrCommand, fs)
	}
}

// zeroSpan is what is read at either end of a device, bytes: superblocks and partition tables are there.
const zeroSpan = 1 << 20

// CheckZero reads the two ends of device: ErrNotZero unless they are zeros.
func (System) CheckZero(device string) (err error) {
	f, err := os.Open(device)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrNotZero, err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrNotZero, err)
	}
	buf, zeros := make([]byte, min(size, zeroSpan)), make([]byte, min(size, zeroSpan))
	for _, off := range []int64{0, size - int64(len(buf))} {
		if _, err := f.ReadAt(buf, off); err != nil {
			return fmt.Errorf("%w: %w", ErrNotZero, err)
		}
		if !bytes.Equal(buf, zeros) {
			return fmt.Errorf("%w: %s has data between %d and %d", ErrNotZero, device, off, off+int64(len(buf)))
		}
	}
	return nil
}

// Mount mounts device at target, an existing directory.
func (System) Mount(ctx context.Context, device, target, fs string, options []string) error {
	argv := []string{"-t", fs}
	if len(options) > 0 {
		argv = append(argv, "-o", strings.Join(options, ","))
	}
	return run(ctx, "mount", append(argv, "--", device, target)...)
}

// Bind shows source at target too. With readOnly nobody can write through target, also if source is a block device; nothing is mounted on an error.
func (s System) Bind(source, target string, readOnly bool) error {
	switch {
	case readOnly && isDevice(source) && len(s.Helper) > 0:
		return s.step("show "+source+" read-only at "+target, stepReadOnly, source, target)
	case readOnly && isDevice(source):
		return bindReadOnly(source, target)
	}
	if err := bind(source, target); err != nil || !readOnly {
		return err
	}
	if err := unix.Mount("", target, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		return errors.Join(fmt.Errorf("mount: make %s read-only: %w", target, err), unix.Unmount(target, unix.UMOUNT_NOFOLLOW))
	}
	return nil
}

func bind(source, target string) error {
	if err := unix.Mount(source, target, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mount: bind %s to %s: %w", source, target, err)
	}
	return nil
}

// Unmount takes away what is mounted at target. ErrBusy: it is in use. With lazy it goes when nobody uses it any more: for what can only fail.
func (s System) Unmount(target string, lazy bool) error {
	if len(s.Helper) > 0 {
		return s.step("unmount "+target, stepUnmount, target, strconv.FormatBool(lazy))
	}
	return unmount(target, lazy)
}

func unmount(target string, lazy bool) error {
	flags := unix.UMOUNT_NOFOLLOW
	if lazy {
		flags |= unix.MNT_DETACH
	}
	device, err := letGo(target)
	if err != nil {
		return err
	}
	err = unix.Unmount(target, flags)
	if device != nil {
		if err != nil {
			err = errors.Join(err, loopdev.SetAutoclear(int(device.Fd()), false))
		}
		err = errors.Join(err, device.Close())
	}
	if errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("%w: %s", ErrBusy, target)
	}
	if err != nil {
		return fmt.Errorf("mount: unmount %s: %w", target, err)
	}
	return nil
}

// Usage tells how full the file system at path is.
func (System) Usage(path string) (Usage, error) {
	var s unix.Statfs_t
	if err := unix.Statfs(path, &s); err != nil {
		return Usage{}, fmt.Errorf("mount: statfs %s: %w", path, err)
	}
	unit := s.Frsize
	return Usage{
		TotalBytes: int64(s.Blocks) * unit, FreeBytes: int64(s.Bfree) * unit, AvailableBytes: int64(s.Bavail) * unit,
		TotalInodes: int64(s.Files), FreeInodes: int64(s.Ffree),
	}, nil
}

// SetGroup gives everything below dir, which nobody else changes meanwhile, to group gid with the rights of its owner, and has what is made in its directories
// belong to it too. Nothing is done if dir has that already. It never follows a symbolic link.
func (s System) SetGroup(dir string, gid int) error {
	if len(s.Helper) > 0 {
		return s.step("group of "+dir, stepSetGroup, dir, strconv.Itoa(gid))
	}
	return setGroup(dir, gid)
}

func setGroup(dir string, gid int) error {
	const setgid = os.ModeSetgid | 0o070
	top, err := os.Lstat(dir)
	if err != nil {
		return fmt.Errorf("mount: group of %s: %w", dir, err)
	}
	if g, ok := gidOf(top); ok && g == gid && top.Mode()&setgid == setgid {
		return nil
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return fmt.Errorf("mount: group of %s: %w", dir, err)
	}
	defer func() { _ = root.Close() }() // nothing was written through it
	var change func(name string) error
	change = func(name string) error {
		fi, err := root.Lstat(name)
		if err != nil {
			return err
		}
		if fi.IsDir() {
			d, err := root.Open(name)
			if err != nil {
				return err
			}
			names, err := d.Readdirnames(-1)
			if err = errors.Join(err, d.Close()); err != nil {
				return err
			}
			for _, n := range names {
				if err := change(filepath.Join(name, n)); err != nil {
					return err
				}
			}
		}
		if err := root.Lchown(name, -1, gid); err != nil || fi.Mode()&os.ModeSymlink != 0 {
			return err
		}
		mode := fi.Mode() | fi.Mode().Perm()>>3&0o070
		if fi.IsDir() {
			mode |= setgid
		}
		return root.Chmod(name, mode)
	}
	if err := change("."); err != nil { // the top comes last: it tells that all is done
		return fmt.Errorf("mount: group of %s: %w", dir, err)
	}
	return nil
}

func gidOf(fi os.FileInfo) (int, bool) {
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok {
		return 0, false
	}
	return int(st.Gid), true
}

func run(ctx context.Context, name string, argv ...string) error {
	cmd := exec.CommandContext(ctx, name, argv...)
	cmd.Dir, cmd.Env = "/", append(os.Environ(), "LC_ALL=C")
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %s: %w: %.512s", ErrCommand, name, err, strings.Join(strings.Fields(string(out)), " "))
	}
	return nil
}
