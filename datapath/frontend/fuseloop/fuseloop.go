// Package fuseloop shows block devices to the host as /dev/loopN, on any kernel
// with FUSE and the loop driver.
//
// Each attachment is a FUSE mount of its own with one regular file in it,
// <Dir>/<id>/device, and a loop device over that file with direct I/O and blocks
// of 4096 bytes:
//
//	consumer -> /dev/loopN -> loop driver -> FUSE file -> this package -> block.Device
//
// One mount for each attachment, not one for all, because a mount is the unit
// that can be aborted: Kill cuts off one attachment at once, also when its
// requests hang, and a device that stalls fills its own queue of background
// requests and not its neighbours'.
//
// # What arrives
//
//	read                        OpRead into the memory that is written to the kernel
//	write                       OpWrite from a Buffer: one copy, private and page-aligned
//	flush, the end of a FUA     fsync: OpFlush. The loop driver has no FUA of its own
//	discard                     punch hole: OpDiscard
//	write zeroes                punch hole, which is OpDiscard, and with "no unmap"
//	                            zero range, which is OpWriteZeroes with NoHole
//
// Reads and writes run in parallel, each in a goroutine, up to the depth of the
// loop device (128). The kernel holds the inode's lock over fsync and punch
// hole, so that no write is submitted while one of these is under way.
//
// # Deadlocks, and how they are kept away
//
// A process that is killed while a thread of it waits in the kernel for its own answer never ends (step.go): what may wait for one is done by a child. Without
// Options.Helper, as in tests, it is a system call of this process that the Go scheduler knows to block (never a poll, which it does not). The file is
// closed again as soon as the loop driver has it. It is opened with NOFLUSH: otherwise its close would be a request, too.
// Nothing else may open files below Dir from within the daemon.
//
// Memory reclaim must not wait for the devices of the process that it feeds: New
// makes the process an I/O flusher (frontend.IOFlusher) where it can.
//
// If the daemon dies, the kernel fails everything in flight and to come with an
// I/O error. The mount and the loop device stay behind until the next New with
// the same Dir takes them away.
package fuseloop

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"sync"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/tandem-storage/tandem/datapath/block"
	"github.com/tandem-storage/tandem/datapath/frontend"
	"github.com/tandem-storage/tandem/internal/loopdev"
)

// What can be wrong. Test with errors.Is.
var (
	// ErrUnavailable means that this machine or this user cannot have loop devices over FUSE; it
	// matches frontend.ErrUnavailable.
	ErrUnavailable = fmt.Errorf("fuseloop: %w", frontend.ErrUnavailable)
	// ErrInUse means that another live process has the directory.
	ErrInUse = errors.New("fuseloop: directory belongs to another process")
	// ErrKilled is the end of an attachment that was killed.
	ErrKilled = errors.New("fuseloop: attachment was killed")
	// ErrLost is the end of an attachment whose mount or loop device somebody else took away.
	ErrLost = errors.New("fuseloop: mount or loop device was taken away from outside")
	// ErrInvalidID means that an id cannot be the name of a directory.
	ErrInvalidID = errors.New("fuseloop: id is not a file name of 1 to 128 letters, digits, '.', '_' and '-'")
	// ErrClosed means that the front end is closed.
	ErrClosed = errors.New("fuseloop: front end is closed")
)

var validID = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$`)

// Options are the choices of New.
type Options struct {
	// Dir is where the mounts go, for example /run/tandem/fuseloop. It is made if
	// absent and belongs to one process at a time.
	Dir string
	// MaxRequests bounds the reads and writes in flight of one attachment; more wait in the kernel. 0, and
	// more than the depth of a loop device, mean that: 128.
	MaxRequests int
	// Helper is a program, and its first arguments, that hands all that follow to Step. Required in a process that has to end when it is killed, see step.go:
	// without it the process does what waits for its own answers itself.
	Helper []string
	// Logger may be nil.
	Logger *zap.Logger
}

// Frontend implements frontend.Frontend.
type Frontend struct {
	dir   string // absolute, without symbolic links
	most  int    // requests in flight of one attachment
	steps steps
	lg    *zap.Logger
	lock  *os.File // held while the process lives or until Close

	mu          sync.Mutex
	closed      bool
	attachments map[string]*Attachment
}

var (
	_ frontend.Frontend   = (*Frontend)(nil)
	_ frontend.Attachment = (*Attachment)(nil)
)

// Available says why loop devices over FUSE cannot be had here, with
// ErrUnavailable, or nil.
func Available() error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("%w: mounting needs root, the user is %d", ErrUnavailable, os.Geteuid())
	}
	for _, dev := range []string{"/dev/fuse", loopdev.Control} {
		fd, err := unix.Open(dev, unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("%w: open %s: %w", ErrUnavailable, dev, err)
		}
		_ = unix.Close(fd) // nothing was done with it
	}
	return nil
}

// New takes Dir for this process and removes what an earlier process that was
// killed left there: its mounts, and its loop devices. A leftover loop device
// that still has a consumer (a mounted file system) gives that consumer I/O
// errors and goes away when the consumer lets go of it; it does not hinder a
// new attachment of the same id.
func New(o Options) (*Frontend, error) {
	if o.Logger == nil {
		o.Logger = zap.NewNop()
	}
	if o.MaxRequests <= 0 || o.MaxRequests > loopDepth {
		o.MaxRequests = loopDepth
	}
	if err := Available(); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("fuseloop: make directory: %w", err)
	}
	dir, err := filepath.Abs(o.Dir)
	if err != nil {
		return nil, fmt.Errorf("fuseloop: directory %s: %w", o.Dir, err)
	}
	if dir, err = filepath.EvalSymlinks(dir); err != nil {
		return nil, fmt.Errorf("fuseloop: directory %s: %w", o.Dir, err)
	}
	lock, err := lockDir(dir)
	if err != nil {
		return nil, err
	}
	f := &Frontend{dir: dir, most: o.MaxRequests, steps: steps{o.Helper}, lg: o.Logger, lock: lock, attachments: make(map[string]*Attachment)}
	if err := f.recover(); err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	if err := frontend.IOFlusher(); err != nil {
		f.lg.Warn("memory reclaim may wait for the devices of this process", zap.Error(err))
	}
	return f, nil
}

func lockDir(dir string) (*os.File, error) {
	lock, err := os.OpenFile(filepath.Join(dir, ".lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("fuseloop: lock: %w", err)
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = ErrInUse
		}
		return nil, errors.Join(fmt.Errorf("lock %s: %w", lock.Name(), err), lock.Close())
	}
	return lock, nil
}

// Kind implements frontend.Frontend.
func (f *Frontend) Kind() frontend.Kind { return frontend.KindFuseLoop }

// Attach implements frontend.Frontend. The size of d is a multiple of 4096, and
// d is comparable (a pointer). The loop device is ready for use on return.
func (f *Frontend) Attach(ctx context.Context, id string, d block.Device) (frontend.Attachment, error) {
	if !validID.MatchString(id) {
		return nil, fmt.Errorf("attach %q: %w", id, ErrInvalidID)
	}
	for {
		a, mine, err := f.claim(id, d)
		if err != nil {
			return nil, fmt.Errorf("attach %s: %w", id, err)
		}
		if mine {
			if err := a.setUp(ctx); err != nil {
				return nil, fmt.Errorf("attach %s: %w", id, err)
			}
			return a, nil
		}
		select {
		case <-a.ready:
		case <-ctx.Done():
			return nil, fmt.Errorf("attach %s: %w", id, ctx.Err())
		}
		if !a.ending.Load() {
			return a, nil
		}
		// It is going away, or came to nothing: try with one of our own.
		select {
		case <-a.done:
		case <-ctx.Done():
			return nil, fmt.Errorf("attach %s: %w", id, ctx.Err())
		}
	}
}

// claim returns the attachment of id, and whether the caller is to set it up.
func (f *Frontend) claim(id string, d block.Device) (a *Attachment, mine bool, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return nil, false, ErrClosed
	}
	if a := f.attachments[id]; a != nil {
		if a.gate.dev != d && !a.ending.Load() {
			return nil, false, fmt.Errorf("another device is attached under this id: %w", frontend.ErrBusy)
		}
		return a, false, nil
	}
	a, err = newAttachment(f, id, d)
	if err != nil {
		return nil, false, err
	}
	f.attachments[id] = a
	return a, true, nil
}

func (f *Frontend) remove(a *Attachment) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.attachments, a.id)
}

// Close detaches everything and gives Dir up. Attachments that are in use stay
// and are named in the error, with frontend.ErrBusy; Close may be called again
// when they are free or killed. No new ones can be made in any case.
func (f *Frontend) Close() error {
	f.mu.Lock()
	f.closed = true
	var all []*Attachment
	for _, a := range f.attachments {
		all = append(all, a)
	}
	f.mu.Unlock()
	var errs []error
	for _, a := range all {
		errs = append(errs, a.Detach(context.Background()))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if err := f.lock.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
		return fmt.Errorf("fuseloop: unlock: %w", err)
	}
	return nil
}
