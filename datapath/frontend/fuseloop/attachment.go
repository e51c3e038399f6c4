package fuseloop

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/tandem-storage/tandem/datapath/block"
	"github.com/tandem-storage/tandem/datapath/invariant"
	"github.com/tandem-storage/tandem/internal/loopdev"
)

// settle is how long Detach waits for somebody who has the device open but does
// not claim it. Whenever a writer closes a device, udev opens it for some
// milliseconds to look for a file system.
const (
	settle     = time.Second
	settleStep = 10 * time.Millisecond
)

// Attachment is one FUSE mount and the loop device over its file. It implements
// frontend.Attachment.
type Attachment struct {
	front *Frontend
	id    string
	mount string // mount point
	lg    *zap.Logger
	gate  *gate
	loop  loopDevice // set when ready is closed without error
	fuse  *fuse.Server

	ready  chan struct{} // closed when setUp is over
	busy   chan struct{} // holds a token while a Detach is at work
	ending atomic.Bool   // the first to set it ends the attachment
	done   chan struct{}
	err    error // valid once done is closed
}

func newAttachment(f *Frontend, id string, d block.Device) (*Attachment, error) {
	switch i := d.Info(); {
	case i.BlockSize > loopBlock:
		return nil, fmt.Errorf("fuseloop: block size %d is above the loop device's %d: %w", i.BlockSize, loopBlock, block.ErrNotSupported)
	case i.Size <= 0 || i.Size%loopBlock != 0:
		return nil, fmt.Errorf("fuseloop: size %d is not a multiple of %d: %w", i.Size, loopBlock, block.ErrMisaligned)
	}
	return &Attachment{
		front: f,
		id:    id,
		mount: filepath.Join(f.dir, id),
		lg:    f.lg.With(zap.String("volume-id", id)),
		gate:  &gate{dev: d},
		ready: make(chan struct{}),
		busy:  make(chan struct{}, 1),
		done:  make(chan struct{}),
	}, nil
}

// setUp mounts and binds a loop device. If it fails, nothing is left.
func (a *Attachment) setUp(ctx context.Context) (err error) {
	defer func() {
		if err == nil && a.ending.Load() {
			err = ErrLost
		}
		if err != nil {
			a.end(err)
		}
		close(a.ready)
		if err != nil {
			<-a.done
		}
	}()
	if err := os.Mkdir(a.mount, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("fuseloop: make mount point: %w", err)
	}
	logger, err := stdLogger(a.lg)
	if err != nil {
		return fmt.Errorf("fuseloop: %w", err)
	}
	// Not by go-fuse, whose /dev/fuse every child would have, and which opens a file of the mount itself when that is done.
	dev, err := mountFUSE(a.mount)
	if err != nil {
		return err
	}
	server, err := fuse.NewServer(newFileSystem(a), fmt.Sprintf("/dev/fd/%d", dev), &fuse.MountOptions{
		MaxWrite:      maxWrite,
		MaxBackground: a.front.most,
		DisableXAttrs: true,
		DisableSplice: true, // replies come from memory
		// Without it the loop driver would take a short write for a whole one.
		ExtraCapabilities: fuse.CAP_ASYNC_DIO,
		Logger:            logger,
		// A panic is a bug, and a storage daemon with a bug stops.
		PanicHandler: func(v any) fuse.Status {
			invariant.Fail("panic in the file system: %v", v)
			return fuse.EIO
		},
	})
	if err != nil { // it has closed dev
		return fmt.Errorf("fuseloop: serve %s: %w", a.mount, err)
	}
	a.fuse = server
	go func() {
		server.Serve()
		a.end(ErrLost)
	}()
	if server.KernelSettings().Flags64()&fuse.CAP_ASYNC_DIO == 0 {
		return fmt.Errorf("%w: the kernel's FUSE has no asynchronous direct I/O", ErrUnavailable)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if a.loop, err = a.front.steps.bind(filepath.Join(a.mount, fileName), tag(a.front.dir, a.id)); err != nil {
		return err
	}
	if err := a.loop.tune(); err != nil {
		a.lg.Debug("loop device keeps its default limits", zap.Error(err))
	}
	a.lg.Info("device attached", zap.String("path", a.loop.path))
	return nil
}

// mountFUSE mounts a file system of ours and returns what it is served by, which no child gets.
func mountFUSE(path string) (dev int, err error) {
	if dev, err = loopdev.Open("/dev/fuse", unix.O_RDWR); err != nil {
		return -1, fmt.Errorf("fuseloop: open /dev/fuse: %w", err)
	}
	options := fmt.Sprintf("fd=%d,rootmode=%o,user_id=%d,group_id=%d,max_read=%d", dev, unix.S_IFDIR, os.Geteuid(), os.Getegid(), maxWrite)
	if err := unix.Mount("tandem", path, "fuse."+fsType, unix.MS_NOSUID|unix.MS_NODEV, options); err != nil {
		return -1, errors.Join(fmt.Errorf("fuseloop: mount %s: %w", path, err), unix.Close(dev))
	}
	return dev, nil
}

// Path implements frontend.Attachment.
func (a *Attachment) Path() string { return a.loop.path }

// Resize implements frontend.Attachment. A file system that is mounted on the device can be grown then.
func (a *Attachment) Resize(ctx context.Context) error {
	select {
	case <-a.done:
		return fmt.Errorf("resize %s: %w", a.id, ErrClosed)
	case <-a.ready:
	case <-ctx.Done():
		return fmt.Errorf("resize %s: %w", a.id, ctx.Err())
	}
	result := make(chan error, 1)
	go func() { result <- a.resize() }() // it can hang as long as the device does
	select {
	case err := <-result:
		if err != nil {
			return fmt.Errorf("resize %s: %w", a.id, err)
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("resize %s: %w", a.id, ctx.Err())
	}
}

// resize has the kernel ask for the size of the file anew, and then the loop driver.
func (a *Attachment) resize() error {
	if s := a.fuse.InodeNotify(fileNode, -1, 0); !s.Ok() && s != fuse.ENOENT {
		return fmt.Errorf("fuseloop: tell the kernel of the new size: %v", s)
	}
	return a.front.steps.resize(a.loop, filepath.Join(a.mount, fileName), a.gate.Info().Size)
}

// Done implements frontend.Attachment.
func (a *Attachment) Done() <-chan struct{} { return a.done }

// Err implements frontend.Attachment.
func (a *Attachment) Err() error {
	select {
	case <-a.done:
		return a.err
	default:
		return nil
	}
}

// Detach implements frontend.Attachment. Cached blocks that a consumer wrote to
// the device node and did not sync are written first, as any close of a block
// device does; if that fails Detach fails, once.
//
// A consumer that opens the device while Detach looks whether it is free either
// makes Detach fail with ErrBusy or cannot open it: the loop driver decides
// between them under its lock (see loopDevice.release).
//
// If ctx ends first, the detaching may take place all the same.
func (a *Attachment) Detach(ctx context.Context) error {
	select {
	case <-a.done:
		return nil
	case <-a.ready:
	case <-ctx.Done():
		return fmt.Errorf("detach %s: %w", a.id, ctx.Err())
	}
	// The calls below can hang as long as the device does.
	result := make(chan error, 1)
	go func() {
		a.busy <- struct{}{}
		defer func() { <-a.busy }()
		result <- a.detach(ctx)
	}()
	select {
	case err := <-result:
		if err != nil {
			return fmt.Errorf("detach %s: %w", a.id, err)
		}
		return nil
	case <-a.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("detach %s: %w", a.id, ctx.Err())
	}
}

func (a *Attachment) detach(ctx context.Context) error {
	deadline := time.Now().Add(settle)
	for !a.ending.Load() {
		err := a.front.steps.release(a.loop)
		if err == nil || a.ending.Load() {
			break // in the latter case it was killed meanwhile
		}
		if !errors.Is(err, errOpened) || time.Now().After(deadline) {
			return err
		}
		select {
		case <-time.After(settleStep):
		case <-ctx.Done():
			return err
		}
	}
	a.end(nil)
	<-a.done
	return nil
}

// Kill implements frontend.Attachment. When it returns, every request of the
// consumer has failed or fails, and no request reaches the device any more. The
// loop device stays until the consumer lets go of it.
func (a *Attachment) Kill() { a.end(ErrKilled) }

// end ends the attachment with err. It does not wait for anybody.
func (a *Attachment) end(err error) {
	if !a.ending.CompareAndSwap(false, true) {
		return
	}
	// A forced unmount aborts the FUSE connection before it looks whether the
	// mount is in use, which it mostly is: the mount stays, and with it the name
	// by which recover would find the loop device if we died here.
	_ = unix.Unmount(a.mount, unix.MNT_FORCE)
	a.gate.close()
	go func() {
		<-a.ready
		if cerr := a.loop.abandon(); cerr != nil {
			a.lg.Warn("loop device is left bound", zap.String("path", a.loop.path), zap.Error(cerr))
		}
		if cerr := removeMount(a.mount); cerr != nil {
			a.lg.Warn("mount point is left", zap.String("path", a.mount), zap.Error(cerr))
		}
		a.lg.Info("device detached", zap.String("path", a.loop.path), zap.NamedError("reason", err))
		a.err = err
		a.front.remove(a)
		close(a.done)
	}()
}

// removeMount takes the mount away, if it is still there, and its mount point.
func removeMount(path string) error {
	err := unix.Unmount(path, unix.MNT_FORCE|unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("fuseloop: unmount %s: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("fuseloop: remove mount point: %w", err)
	}
	return nil
}

// released is told that the kernel has closed the file: the loop device is gone.
func (a *Attachment) released() {
	select {
	case <-a.ready:
		// Detach ends the attachment itself. If none is at work, it was somebody else.
		select {
		case a.busy <- struct{}{}:
			a.end(ErrLost)
			<-a.busy
		default:
		}
	default: // setUp failed and cleans up
	}
}
