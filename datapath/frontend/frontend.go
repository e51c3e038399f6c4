// Package frontend defines how a block device is shown to the host.
//
// nbd serves it over the NBD protocol on a socket; fuseloop makes it a
// /dev/loopN on any kernel; device has another process do that, which outlives this one. Kernel NBD and ublk fit behind the same interface.
package frontend

import (
	"context"
	"errors"

	"github.com/tandem-storage/tandem/datapath/block"
)

// Kind names a front end in configuration and on the command line.
type Kind string

// Kinds.
const (
	KindNBD      Kind = "nbd"
	KindFuseLoop Kind = "fuseloop"
	KindDevice   Kind = "device"
)

// Frontend shows devices to the host. Methods may be called concurrently for different ids.
type Frontend interface {
	Kind() Kind

	// Attach shows d under id, a file-name-safe string. Idempotent: an id that is attached to the
	// same device returns the same Attachment; to another device it fails with ErrBusy. The device stays the caller's.
	//
	// A consumer may come back to an id that it has used, by itself and long after. So an id
	// belongs to one attachment of one volume: once that has ended the caller shows nothing else under it.
	Attach(ctx context.Context, id string, d block.Device) (Attachment, error)

	// Close detaches everything.
	Close() error
}

// Attachment is one showing of a device.
type Attachment interface {
	// Path is what a consumer opens: /dev/loop0, or nbd+unix:///<id>?socket=/run/tandem/nbd.sock.
	Path() string

	// Detach flushes nothing itself: it waits until the consumer's requests have ended and takes the showing away. It fails with
	// ErrBusy while the consumer holds the device open (mounted), and nothing is changed then. Twice is nil.
	Detach(ctx context.Context) error

	// Kill takes the showing away at once: every request of the consumer, now and later, fails. For a
	// coordinator that was deposed. It never blocks on the consumer.
	Kill()

	// Resize tells the consumer, if that can be, that the device is larger than when it was attached. A consumer over NBD learns of it
	// when it connects again: the protocol has no message for it. Repeating it is no harm.
	Resize(ctx context.Context) error

	// Done is closed when the showing is gone, however it went; then Err says why (nil after Detach).
	Done() <-chan struct{}
	Err() error
}

// What a front end answers. Test with errors.Is.
var (
	// ErrBusy means that a consumer has the device open.
	ErrBusy = errors.New("frontend: device is in use")
	// ErrUnavailable means that the front end cannot be had on this node.
	ErrUnavailable = errors.New("frontend: not available on this node")
)
