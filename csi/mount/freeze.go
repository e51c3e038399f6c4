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

// errNotFrozen means that there is nothing to thaw.
var errNotFrozen = errors.New("mount: not frozen")

// Frozen is a file system to which nobody can write. It cannot be unmounted either.
type Frozen struct {
	s System
	f *os.File
}

// Freeze writes everything out that the file system at target has in memory, and lets nobody write to it until Thaw. It may take as long as the device takes. ErrFrozen: it is that already.
func (s System) Freeze(target string) (*Frozen, error) {
	f, err := os.Open(target)
	if err != nil {
		return nil, fmt.Errorf("mount: freeze: %w", err)
	}
	if len(s.Helper) > 0 {
		err = s.stepOn(f, "freeze "+target, stepFreeze, target)
	} else {
		err = freeze(f)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &Frozen{s, f}, nil
}

// Thaw lets everybody write again, and reports whether the file system was frozen until now. To be called once.
func (f *Frozen) Thaw() (was bool, _ error) {
	was, err := f.s.thaw(f.f)
	return was, errors.Join(err, f.f.Close())
}

// Thaw thaws the file system at target, whoever froze it, and reports whether it was frozen.
func (s System) Thaw(target string) (was bool, _ error) {
	f, err := os.Open(target)
	if err != nil {
		return false, fmt.Errorf("mount: thaw: %w", err)
	}
	was, err = s.thaw(f)
	return was, errors.Join(err, f.Close())
}

func (s System) thaw(f *os.File) (was bool, err error) {
	if len(s.Helper) > 0 {
		err = s.stepOn(f, "thaw "+f.Name(), stepThaw, f.Name())
	} else {
		err = thaw(f)
	}
	if errors.Is(err, errNotFrozen) {
		return false, nil
	}
	return err == nil, err
}

func freeze(f *os.File) error {
	err := unix.Syncfs(int(f.Fd())) // most of it, while it can be written to
	if err == nil {
		err = unix.IoctlSetInt(int(f.Fd()), fiFreeze, 0)
	}
	if errors.Is(err, unix.EBUSY) {
		err = ErrFrozen
	}
	if err != nil {
		return fmt.Errorf("mount: freeze %s: %w", f.Name(), err)
	}
	return nil
}

func thaw(f *os.File) error {
	err := unix.IoctlSetInt(int(f.Fd()), fiThaw, 0)
	if errors.Is(err, unix.EINVAL) {
		return errNotFrozen
	}
	if err != nil {
		return fmt.Errorf("mount: thaw %s: %w", f.Name(), err)
	}
	return nil
}
