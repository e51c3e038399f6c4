package transport

import (
	"context"
	"fmt"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tandem-storage/tandem/replication"
	pb "github.com/tandem-storage/tandem/replication/replicationpb"
)

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
	return replication.PrepareResult{Status: c.status(a.GetStatus()), Term: replication.Term(a.GetTerm()), Size: a.GetSize()}, c.err
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

// Turn implements Peer.
func (n *node) Turn(ctx context.Context, r replication.TurnRequest) (replication.TurnResult, error) {
	a, err := call(ctx, n, "turn", turnToPB(r), pb.ReplicationClient.Turn)
	if status.Code(err) == codes.Unimplemented {
		return replication.TurnResult{Granted: true}, nil
	}
	if err != nil {
		return replication.TurnResult{}, err
	}
	return turnResultFromPB(a)
}

// call makes one call of the control exchange with n.
func call[Q, A any](ctx context.Context, n *node, name string, q *Q, f func(pb.ReplicationClient, context.Context, *Q, ...grpc.CallOption) (*A, error)) (*A, error) {
	cc, err := n.control()
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
