package nbd

import (
	"errors"

	"github.com/tandem-storage/tandem/datapath/block"
)

// errnoOf translates what a device said of op. NBD_ENOTSUP is not used: the
// specification keeps it for fast zeroes, and an operation that the device does
// not support was not advertised.
func errnoOf(op block.Op, err error) errno {
	switch {
	case err == nil:
		return 0
	case errors.Is(err, block.ErrOutOfRange):
		return beyondEnd(op)
	case errors.Is(err, block.ErrNoSpace):
		return errnoNoSpace
	case errors.Is(err, block.ErrClosed):
		return errnoShutdown
	case errors.Is(err, block.ErrMisaligned), errors.Is(err, block.ErrInvalid),
		errors.Is(err, block.ErrTooLarge), errors.Is(err, block.ErrNotSupported):
		return errnoInval
	default:
		return errnoIO
	}
}

// beyondEnd is the error of a request that reaches beyond the end of the device.
func beyondEnd(op block.Op) errno {
	if op == block.OpWrite || op == block.OpWriteZeroes {
		return errnoNoSpace
	}
	return errnoInval
}
