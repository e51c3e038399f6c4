package fuseloop

import (
	"errors"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/tandem-storage/tandem/datapath/block"
)

// status is what the kernel is told of an error of op. The loop driver passes
// it on for reads and writes and makes EIO of it for flushes and discards.
func status(op block.Op, err error) fuse.Status {
	switch {
	case err == nil:
		return fuse.OK
	case errors.Is(err, block.ErrNoSpace):
		return fuse.Status(unix.ENOSPC)
	case errors.Is(err, block.ErrOutOfRange) && op == block.OpWrite:
		return fuse.Status(unix.ENOSPC)
	case errors.Is(err, block.ErrOutOfRange),
		errors.Is(err, block.ErrMisaligned),
		errors.Is(err, block.ErrTooLarge),
		errors.Is(err, block.ErrInvalid):
		return fuse.EINVAL
	case errors.Is(err, block.ErrNotSupported):
		return fuse.Status(unix.EOPNOTSUPP)
	case errors.Is(err, block.ErrClosed):
		return fuse.Status(unix.ESHUTDOWN)
	default:
		return fuse.EIO
	}
}
