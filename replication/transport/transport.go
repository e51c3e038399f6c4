// Package transport carries the replication protocol between nodes, over one port
// with mutual TLS: unary gRPC calls for the control exchange, a gRPC stream of
// beats for liveness and round-trip times, and for the data sessions of raw frames,
// each on a connection of its own (docs/design/0011).
//
// The other packages see only the types of this file. Package transporttest has
// an in-memory pair with faults.
package transport

import (
	"context"
	"time"

	"github.com/tandem-storage/tandem/replication"
)

// Conn carries messages between a coordinator and one replica. Messages arrive
// whole, in order and at most once; a Conn that cannot keep this fails for good.
//
// Send and Recv may run at the same time, each from one goroutine.
type Conn interface {
	// Send sends a batch in order. It may block when the peer does not read. It
	// takes over one reference of each message's Buf, also on error. The slice is
	// the caller's again on return.
	Send(batch []replication.Message) error

	// Idle says that what was sent has arrived at the other end, though it may not
	// have been received there: a Send of IdleLen bytes, frames and all, does not
	// block. For the goroutine that sends.
	Idle() bool

	// Recv returns the next messages, at least one, in order. The caller gets one
	// reference of each message's Buf; payloads lie page-aligned in it. Payload
	// checksums were verified after the last copy: a message whose payload was
	// damaged has Status StatusCRC, and no Data. The slice is valid until the next
	// Recv.
	Recv() ([]replication.Message, error)

	// Close ends the Conn; Send and Recv on both ends fail soon after.
	Close() error
}

// IdleLen is how many bytes an idle Conn takes without blocking.
const IdleLen = 16 << 10

// Identity is who a certificate says the other end is.
type Identity struct {
	Cluster string
	Domain  replication.DomainID
	Node    replication.NodeID
}

// Peer is another node as seen from here.
type Peer interface {
	// Session opens a Conn. The first message on it must be MsgHello.
	Session(ctx context.Context) (Conn, error)

	Seal(ctx context.Context, r replication.SealRequest) (replication.SealResult, error)
	Prepare(ctx context.Context, r replication.PrepareRequest) (replication.PrepareResult, error)
	Commit(ctx context.Context, r replication.CommitRequest) (replication.CommitResult, error)
	Dirty(ctx context.Context, r replication.DirtyRequest) (replication.DirtyResult, error)
	// Turn is granted, without a limit, by a node whose version knows no turns.
	Turn(ctx context.Context, r replication.TurnRequest) (replication.TurnResult, error)
}

// Handler serves what other nodes ask of this one. Its methods run concurrently.
type Handler interface {
	// ServeSession owns c until it returns. ctx ends with the node's serving, and
	// when Send or Recv has found that c is at its end.
	ServeSession(ctx context.Context, from Identity, c Conn) error

	Seal(ctx context.Context, from Identity, r replication.SealRequest) (replication.SealResult, error)
	Prepare(ctx context.Context, from Identity, r replication.PrepareRequest) (replication.PrepareResult, error)
	Commit(ctx context.Context, from Identity, r replication.CommitRequest) (replication.CommitResult, error)
	Dirty(ctx context.Context, from Identity, r replication.DirtyRequest) (replication.DirtyResult, error)
	Turn(ctx context.Context, from Identity, r replication.TurnRequest) (replication.TurnResult, error)
}

// RTT is a digest of round-trip times of beats to one peer over the last minute.
type RTT struct {
	P50, P99 time.Duration
	Samples  int
	LastSeen time.Time // when the last beat was answered
}
