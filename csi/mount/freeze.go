package mount

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Of linux/fs.h.
const (
	fiFreeze = 0xc0045877
	fiThaw   = 0xc0045878
)

// ErrFrozen means that somebody else has frozen a file system.
var ErrFrozen = errors.New("mount: frozen by somebody else")

// Frozen is a file system to which nobody can write. It cannot be unmounted either.
type Frozen struct{ f *os.File }

// Freeze writes everything out that the file system at target has in memory, and lets nobody write to it until Thaw. It may take as long as the device takes. ErrFrozen: it is that already.
func (System) Freeze(target string) (*Frozen, error) {
	f, err := os.Open(target)
	if err != nil {
		return nil, fmt.Errorf("mount: freeze: %w", err)
	}
	err = unix.Syncfs(int(f.Fd())) // most of it, while it can be written to
	if err == nil {
		err = unix.IoctlSetInt(int(f.Fd()), fiFreeze, 0)
	}
	if err == nil {
		return &Frozen{f}, nil
	}
	if errors.Is(err, unix.EBUSY) {
		err = ErrFrozen
	}
	return nil, errors.Join(fmt.Errorf("mount: freeze %s: %w", target, err), f.Close())
}

// Thaw lets everybody write again, and reports whether the file system was frozen until now. To be called once.
func (f *Frozen) Thaw() (was bool, _ error) {
	was, err := thaw(f.f)
	return was, errors.Join(err, f.f.Close())
}

// Thaw thaws the file system at target, whoever froze it, and reports whether it was frozen.
func (System) Thaw(target string) (was bool, _ error) {
	f, err := os.Open(target)
	if err != nil {
		return false, fmt.Errorf("mount: thaw: %w", err)
	}
	was, err = thaw(f)
	return was, errors.Join(err, f.Close())
}

func thaw(f *os.File) (was bool, _ error) {
	err := unix.IoctlSetInt(int(f.Fd()), fiThaw, 0)
	if errors.Is(err, unix.EINVAL) { // it is not frozen
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("mount: thaw %s: %w", f.Name(), err)
	}
	return true, nil
}
