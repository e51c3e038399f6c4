package block

import "fmt"

// Op is the kind of a Request.
type Op uint8

// The operations, named as in the Linux block layer and NBD.
const (
	OpRead        Op = iota + 1 // fill Data from [Off, Off+Len)
	OpWrite                     // store Data at [Off, Off+Len)
	OpWriteZeroes               // [Off, Off+Len) reads as zeroes afterwards; space is given back unless NoHole
	OpDiscard                   // [Off, Off+Len) reads as zeroes afterwards and its space may be given back; a hint for other stores, but in this project both replicas must agree, so it is exact
	OpFlush                     // every write completed before the submission is stable on completion; Off and Len are 0
)

func (o Op) String() string {
	switch o {
	case OpRead:
		return "read"
	case OpWrite:
		return "write"
	case OpWriteZeroes:
		return "write-zeroes"
	case OpDiscard:
		return "discard"
	case OpFlush:
		return "flush"
	default:
		return fmt.Sprintf("op(%d)", uint8(o))
	}
}

// Flags modify a Request.
type Flags uint8

// Request flags.
const (
	// FUA: the request is stable on completion. For OpWrite, OpWriteZeroes and OpDiscard.
	FUA Flags = 1 << iota
	// NoHole: OpWriteZeroes keeps the space allocated.
	NoHole
	// AsIs: OpRead gives what is stored, even if its checksum is wrong.
	AsIs
)

// Request is one I/O. The submitter fills the exported fields; the device does
// not change them. A Request may be used again once it is completed.
type Request struct {
	Op    Op
	Flags Flags
	Off   int64 // bytes
	Len   int64 // bytes; for OpRead and OpWrite equal to len(Data) and at most MaxIO

	// Data is the source of an OpWrite and the destination of an OpRead. From
	// Submit to completion nobody but the device touches it. Aligned to the page
	// (as in a Buffer) it is used without a copy.
	Data []byte

	// Buf, if not nil, owns Data: a device that needs Data beyond completion
	// retains it. If nil, such a device copies.
	Buf *Buffer

	// Sums, if not nil, has the CRC32C (Castagnoli) of each SectorSize piece of
	// an OpWrite's Data.
	Sums []uint32

	// By is told of the completion.
	By Completer
}

// Completer is told that a request is complete. Complete is called exactly once
// for each submitted request, on any goroutine. It must not block; it may Submit.
type Completer interface {
	Complete(r *Request, err error)
}

// CompleterFunc makes a Completer of a function.
type CompleterFunc func(r *Request, err error)

// Complete calls f.
func (f CompleterFunc) Complete(r *Request, err error) { f(r, err) }

// Check says whether r is well formed for a device of i: ErrMisaligned,
// ErrOutOfRange, ErrTooLarge, ErrNotSupported, or ErrInvalid for a request that contradicts
// itself. Every device calls it before it does anything.
func (r *Request) Check(i Info) error {
	switch r.Op {
	case OpRead, OpWrite:
		if int64(len(r.Data)) != r.Len {
			return &RequestError{Op: r.Op, Off: r.Off, Len: r.Len, Err: ErrInvalid}
		}
		if r.Len > MaxIO {
			return &RequestError{Op: r.Op, Off: r.Off, Len: r.Len, Err: ErrTooLarge}
		}
		if r.Sums != nil && int64(len(r.Sums)) != (r.Len+SectorSize-1)/SectorSize {
			return &RequestError{Op: r.Op, Off: r.Off, Len: r.Len, Err: ErrInvalid}
		}
	case OpWriteZeroes:
		if i.Caps&CapWriteZeroes == 0 {
			return &RequestError{Op: r.Op, Off: r.Off, Len: r.Len, Err: ErrNotSupported}
		}
	case OpDiscard:
		if i.Caps&CapDiscard == 0 {
			return &RequestError{Op: r.Op, Off: r.Off, Len: r.Len, Err: ErrNotSupported}
		}
	case OpFlush:
		if r.Off != 0 || r.Len != 0 {
			return &RequestError{Op: r.Op, Off: r.Off, Len: r.Len, Err: ErrInvalid}
		}
		return nil
	default:
		return &RequestError{Op: r.Op, Off: r.Off, Len: r.Len, Err: ErrNotSupported}
	}
	if r.Flags&FUA != 0 && i.Caps&CapFUA == 0 {
		return &RequestError{Op: r.Op, Off: r.Off, Len: r.Len, Err: ErrNotSupported}
	}
	if r.Len <= 0 || r.Off < 0 {
		return &RequestError{Op: r.Op, Off: r.Off, Len: r.Len, Err: ErrInvalid}
	}
	mask := int64(i.BlockSize) - 1
	if r.Off&mask != 0 || r.Len&mask != 0 {
		return &RequestError{Op: r.Op, Off: r.Off, Len: r.Len, Err: ErrMisaligned}
	}
	if r.Off > i.Size || r.Len > i.Size-r.Off {
		return &RequestError{Op: r.Op, Off: r.Off, Len: r.Len, Err: ErrOutOfRange}
	}
	return nil
}
