// Package block defines what a block device is for Tandem: the Device interface
// with its durability contract, the Request that carries one I/O, and the
// reference-counted page-aligned Buffer that carries its payload.
//
// A local replica, a replicated volume, a fault-injecting filter and the
// in-memory device of the tests are all Devices, so front ends, filters and the
// conformance suite (package blocktest) work on any of them.
//
// The package uses only the standard library.
package block

// Geometry that every device of the project shares.
const (
	// SectorSize is the unit of checksums, of overlap and of atomicity, in bytes.
	// A power cut leaves each such block old or new (see backing for the assumption
	// about disks that this rests on).
	SectorSize = 4096

	// MaxIO is the largest Request.Len of a read or write that a device has to
	// accept, in bytes. Front ends split larger ones.
	MaxIO = 1 << 20
)

// Device is a fixed-size array of logical blocks.
//
// It has one way in, Submit, which is asynchronous and takes batches, because
// that is the shape of the hot path from the front end's socket to the disk and
// to the peer. ReadAt, WriteAt, Flush and the like are functions of this package
// over Submit.
//
// # Durability
//
// A request is complete when its completer is called with a nil error. A
// completed write is seen by every read submitted afterwards. It is stable, that
// is it survives a power cut, when it carried FUA, or when an OpFlush that was
// submitted after its completion has completed. After a power cut a write that
// was not stable may be present, absent, or present block by block
// (SectorSize). A failed write leaves its range in the same three states.
//
// # Ordering
//
// Requests in flight at the same time have no order among each other, not even
// within one batch: a caller that needs an order waits for the completion of the
// first. Reads that overlap a write in flight return old or new data block by
// block. Overlapping writes in flight at once leave either one, block by block,
// unless the implementation promises more (a replicated volume does).
type Device interface {
	// Submit starts every request of the batch and returns without waiting for
	// any. It may be called from any goroutine at any time, also from within a
	// completer. Each request is completed exactly once, on any goroutine, perhaps
	// before Submit returns; a request that is invalid or cannot be served is
	// completed with the error and changes nothing. The device owns each request,
	// its Data and its Sums from the call until the completion; the slice itself
	// is the caller's again on return.
	Submit(batch []*Request)

	// Info tells size and abilities. It does not block and may be called at any
	// time, also after Close.
	Info() Info

	// Close waits for the requests in flight, or completes them with ErrClosed, and
	// releases the device. Requests submitted afterwards complete with ErrClosed.
	// Close does not flush. Closing twice is nil.
	Close() error
}

// Info describes a device.
type Info struct {
	Size      int64 // bytes, a multiple of BlockSize; changes only by an explicit resize
	BlockSize int   // alignment of offsets and lengths, bytes; a power of two, >= 512
	Caps      Caps
}

// Caps is the set of abilities that a device has natively.
type Caps uint32

// Abilities. A request for one that is missing completes with ErrNotSupported.
const (
	CapFlush       Caps = 1 << iota // has a volatile cache that OpFlush empties; without it every completed write is stable
	CapFUA                          // honours FUA
	CapDiscard                      // OpDiscard gives space back
	CapWriteZeroes                  // OpWriteZeroes without a payload
)
