// Package wire turns replication.Message values into the frames of a session
// and back. PROTOCOL.md beside this file is the specification: byte tables,
// limits, versions, and what each message requires of its sender.
//
// A frame is a 64-byte header with its own CRC32C, one CRC32C for each
// block.SectorSize piece of the payload, and the payload. Frames stand one after
// the other in a stream; how that travels is the transport's affair.
//
// The payload is never copied when a frame is encoded. When it is decoded it ends
// in page-aligned memory, and its checksums are verified there.
package wire

import (
	"errors"

	"github.com/tandem-storage/tandem/datapath/block"
)

// Magic is the first two bytes of every frame, little-endian.
const Magic = 0x5444

// Limits. A peer that exceeds one is refused with ErrFrame.
const (
	// HeaderLen is the length of a frame's header, in bytes.
	HeaderLen = 64

	// MaxPayload is the largest payload of a frame, in bytes: the largest write.
	MaxPayload = block.MaxIO

	// MaxSums is the largest number of checksums of a frame.
	MaxSums = MaxPayload / block.SectorSize

	// MaxHeadLen is the largest length of a frame without its payload, in bytes.
	MaxHeadLen = HeaderLen + 4*MaxSums

	// MaxSpan is the largest Message.Length of a message that means more of the
	// volume than it carries (zero, trim, hash request, hash, resync write of
	// zeroes), in bytes. Senders split longer ones: the receiver must be able to
	// finish one message in a bounded time.
	MaxSpan = 1 << 30
)

// What can be wrong with frames. A stream on which any of these occurred is of
// no further use: where the next frame starts is not known.
var (
	// ErrFrame: what arrived is not a frame of this protocol, or breaks a limit.
	ErrFrame = errors.New("wire: malformed frame")
	// ErrHeaderCRC: the header was damaged on the way.
	ErrHeaderCRC = errors.New("wire: frame header damaged on the way")
	// ErrVersion: the two ends have no version in common, or one needs a feature that the other lacks.
	ErrVersion = errors.New("wire: incompatible protocol version")
	// ErrUnknownType: a message that the sender should not have sent to this version.
	ErrUnknownType = errors.New("wire: unknown message type that may not be ignored")
	// ErrMessage: the message to encode contradicts itself or breaks a limit.
	ErrMessage = errors.New("wire: message cannot be sent")
)

// Malformed says that a Decoder's err is about what arrived, and not about how.
func Malformed(err error) bool {
	return errors.Is(err, ErrFrame) || errors.Is(err, ErrHeaderCRC) || errors.Is(err, ErrVersion) || errors.Is(err, ErrUnknownType)
}
