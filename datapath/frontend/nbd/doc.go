// Package nbd shows block devices to NBD clients: the Linux kernel, qemu, libnbd
// and everything built on them; and it is such a client.
//
// A Server is a frontend.Frontend. It listens on unix and TCP sockets and serves
// every attached device as an export named by its id, to any number of
// connections at once. It speaks the fixed newstyle handshake, TLS, structured
// replies and the base:allocation context of the protocol described in
// doc/proto.md of github.com/NetworkBlockDevice/nbd; oldstyle negotiation and
// extended headers are not supported.
//
// An export that has ended is unknown from then on, so that a client that
// reconnects by itself is refused; that the id is never used for another
// attachment is the caller's part (see frontend.Frontend).
//
// A Device is the other end: an export of any such server as a block.Device, which survives the loss of its connection.
//
// # What a reply means
//
// A reply is sent when the device has completed the request, and means what the
// completion means (see block.Device): a write with FUA is stable, a flush covers
// the writes that were replied to before it was sent, on whichever connection.
// That is why NBD_FLAG_CAN_MULTI_CONN is always set. TRIM is block.OpDiscard, so
// the range reads as zeroes afterwards if the device says so.
//
// # How a connection works
//
// One reader goroutine takes as many bytes as there are, turns every complete
// request into a block.Request and submits them as one batch. A small payload is
// copied once, into a page-aligned block.Buffer; the rest of a payload that has
// not arrived yet is read straight into its Buffer. Completers queue replies and
// never block: a reply is written by whoever finds the connection's writing side
// free, in one attempt that does not wait, and what the socket does not take is
// left to the connection's writer goroutine. While the reader submits, replies
// are held back so that a device that completes at once gets one write for the
// whole batch.
//
// All connections of an export together have at most Options.MaxRequests requests
// and maxBytes bytes of payload between the reading of a request and the writing
// of its reply; beyond that their readers do not read (see window). Nothing is
// allocated by the word of a client beyond these limits and maxOptionData.
package nbd
