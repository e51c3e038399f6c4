package block

import (
	"errors"
	"fmt"
)

// What can be wrong with a request or a device. Test with errors.Is.
var (
	ErrMisaligned   = errors.New("block: offset or length is not a multiple of the block size")
	ErrOutOfRange   = errors.New("block: beyond the end of the device")
	ErrTooLarge     = errors.New("block: request is larger than the device's limit")
	ErrInvalid      = errors.New("block: malformed request")
	ErrNotSupported = errors.New("block: operation not supported by this device")
	ErrNoSpace      = errors.New("block: no space left")
	ErrClosed       = errors.New("block: device is closed")
	ErrIO           = errors.New("block: input/output error")

	// ErrChecksum means that what the disk returned is not what was written. Other
	// blocks are not affected; one that is written anew is well again. It is also an ErrIO.
	ErrChecksum = fmt.Errorf("block: stored data do not match their checksum: %w", ErrIO)
)

// RequestError says which request met an error.
type RequestError struct {
	Op       Op
	Off, Len int64 // bytes
	Err      error
}

func (e *RequestError) Error() string {
	return fmt.Sprintf("block: %v of %d bytes at %d: %v", e.Op, e.Len, e.Off, e.Err)
}

// Unwrap returns the cause.
func (e *RequestError) Unwrap() error { return e.Err }
