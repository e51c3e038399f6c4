package transport

import (
	"context"
	"fmt"

	"google.golang.org/grpc"

	"github.com/tandem-storage/tandem/replication"
	pb "github.com/tandem-storage/tandem/replication/replicationpb"
	"github.com/tandem-storage/tandem/replication/wire"
)

// Session implements Peer. ctx bounds the opening only: the Conn lives until
// Close or the end of the connection. It returns when the peer has accepted.
func (n *node) Session(ctx context.Context, v replication.VolumeID) (Conn, error) {
	cc, err := n.conn(&v)
	if err != nil {
		return nil, err
	}
	sctx, end := context.WithCancelCause(context.Background())
	unbind := context.AfterFunc(ctx, func() { end(context.Cause(ctx)) })
	s, err := pb.NewReplicationClient(cc).Session(sctx, grpc.ForceCodecV2(codec{}), grpc.MaxCallRecvMsgSize(wire.MaxBatchLen))
	if err != nil {
		end(err)
		return nil, n.unreachable("session", err)
	}
	// Waiting for the headers tells that the peer accepts and keeps gRPC from
	// holding frames for another attempt.
	h, err := s.Header()
	c := &streamConn{s: s, end: end}
	if len(h.Get(nodeHeader)) == 0 {
		if err == nil {
			_, err = c.Recv() // the refusal
		}
		end(err)
		return nil, n.unreachable("session", err)
	}
	if !unbind() {
		return nil, n.unreachable("session", context.Cause(ctx))
	}
	return c, nil
}

// Seal implements Peer.
func (n *node) Seal(ctx context.Context, r replication.SealRequest) (replication.SealResult, error) {
	a, err := call(ctx, n, "seal", sealToPB(r), pb.ReplicationClient.Seal)
	if err != nil {
		return replication.SealResult{}, err
	}
	return sealResultFromPB(a)
}

// Prepare implements Peer.
func (n *node) Prepare(ctx context.Context, r replication.PrepareRequest) (replication.PrepareResult, error) {
	a, err := call(ctx, n, "prepare", prepareToPB(r), pb.ReplicationClient.Prepare)
	if err != nil {
		return replication.PrepareResult{}, err
	}
	var c ids
	return replication.PrepareResult{Status: c.status(a.GetStatus()), Term: replication.Term(a.GetTerm())}, c.err
}

// Commit implements Peer.
func (n *node) Commit(ctx context.Context, r replication.CommitRequest) (replication.CommitResult, error) {
	q, err := commitToPB(r)
	if err != nil {
		return replication.CommitResult{}, err
	}
	a, err := call(ctx, n, "commit", q, pb.ReplicationClient.Commit)
	if err != nil {
		return replication.CommitResult{}, err
	}
	var c ids
	return replication.CommitResult{Status: c.status(a.GetStatus()), Epoch: replication.Epoch(a.GetEpoch())}, c.err
}

// Dirty implements Peer.
func (n *node) Dirty(ctx context.Context, r replication.DirtyRequest) (replication.DirtyResult, error) {
	a, err := call(ctx, n, "dirty", dirtyToPB(r), pb.ReplicationClient.Dirty)
	if err != nil {
		return replication.DirtyResult{}, err
	}
	var c ids
	return replication.DirtyResult{Status: c.status(a.GetStatus()), Bits: a.GetBits()}, c.err
}

// call makes one call of the control exchange with n.
func call[Q, A any](ctx context.Context, n *node, name string, q *Q, f func(pb.ReplicationClient, context.Context, *Q, ...grpc.CallOption) (*A, error)) (*A, error) {
	cc, err := n.conn(nil)
	if err != nil {
		return nil, err
	}
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, controlTimeout)
		defer cancel()
	}
	a, err := f(pb.NewReplicationClient(cc), ctx, q)
	if err != nil {
		return nil, n.unreachable(name, err)
	}
	return a, nil
}

// unreachable says that what was asked of n failed; whether n did it is not known.
func (n *node) unreachable(what string, err error) error {
	return fmt.Errorf("%w: %s with node %q: %w", ErrDisconnected, what, n.id, err)
}
