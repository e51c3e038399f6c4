package raftkv

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/grpc"

	"github.com/tandem-storage/tandem/kvdb"
	"github.com/tandem-storage/tandem/kvdb/kvdbpb"
)

// Register puts the member's services on s, which is to be reachable by the
// other members and the clients at Options.ClientAdvertise. Who may call is up
// to s, give it mutual TLS; who may change the members is up to Options.Caller
// and Options.Candidates.
func (m *LocalMember) Register(s grpc.ServiceRegistrar) {
	kvdbpb.RegisterKVServer(s, kvServer{m: m})
	kvdbpb.RegisterMembersServer(s, guardedMembers{membersServer{m: m}})
}

// kvServer is the KV service: one attempt at each request, on this member or,
// once, on the leader.
type kvServer struct {
	kvdbpb.UnimplementedKVServer
	m *LocalMember
}

func (s kvServer) route(ctx context.Context, o *kvdbpb.Origin) (backend, error) {
	if err := s.m.checkOrigin(o); err != nil {
		return nil, err
	}
	b, err := s.m.direct(ctx) // what was relayed must not be relayed on
	if err != nil {
		return nil, err
	}
	if _, here := b.(*tenure); !here && o.GetForwarded() {
		return nil, fmt.Errorf("%w: this member does not lead", kvdb.ErrNoLeader)
	}
	return b, nil
}

// patient is ctx for a request from o.
func patient(ctx context.Context, o *kvdbpb.Origin) context.Context {
	d := time.Duration(min(max(o.GetPatienceMs(), 0), mostPatient.Milliseconds())) * time.Millisecond
	if d == 0 {
		return ctx
	}
	return kvdb.Patient(ctx, d)
}

func (m *LocalMember) checkOrigin(o *kvdbpb.Origin) error {
	if want, is := o.GetClusterId(), m.clusterID(); want != "" && want != is {
		return fmt.Errorf("%w: the request is for cluster %s, this member is of %q", kvdb.ErrNoLeader, want, is)
	}
	return nil
}

func (s kvServer) Txn(ctx context.Context, r *kvdbpb.TxnRequest) (*kvdbpb.TxnReply, error) {
	b, err := s.route(ctx, r.GetOrigin())
	if err != nil {
		return &kvdbpb.TxnReply{Failure: toFailure(err)}, nil
	}
	res, err := b.txn(patient(ctx, r.GetOrigin()), txnFromProto(r.GetTxn()))
	if err != nil {
		return &kvdbpb.TxnReply{Failure: toFailure(err)}, nil
	}
	return resultToProto(res), nil
}

// maxListPiece bounds the keys and values of one piece of a list, but for the last key in it.
const maxListPiece = 1 << 20

func (s kvServer) List(r *kvdbpb.ListRequest, stream grpc.ServerStreamingServer[kvdbpb.ListReply]) error {
	ctx := stream.Context()
	var kvs []kvdb.KV
	var rev kvdb.Revision
	b, err := s.route(ctx, r.GetOrigin())
	if err == nil {
		kvs, rev, err = b.list(patient(ctx, r.GetOrigin()), r.GetPrefix())
	}
	if err != nil {
		return stream.Send(&kvdbpb.ListReply{Failure: toFailure(err)})
	}
	piece := &kvdbpb.ListReply{Revision: int64(rev)}
	size := 0
	for _, kv := range kvs {
		if size > maxListPiece {
			piece.More = true
			if err := stream.Send(piece); err != nil {
				return err
			}
			piece, size = &kvdbpb.ListReply{Revision: int64(rev)}, 0
		}
		piece.Kvs = append(piece.Kvs, kvToProto(kv))
		size += len(kv.Key) + len(kv.Value)
	}
	return stream.Send(piece)
}

// A watch shows life at watchBeat; one that has shown none for watchDead is given up by its client.
const (
	watchBeat = 2 * time.Second
	watchDead = 3 * watchBeat
)

// Watch serves from what this member has applied. It gives up when the member
// knows no leader, for then another member may know more.
func (s kvServer) Watch(r *kvdbpb.WatchRequest, stream grpc.ServerStreamingServer[kvdbpb.WatchReply]) error {
	end := func(err error) error { return stream.Send(&kvdbpb.WatchReply{Failure: toFailure(err)}) }
	if err := s.m.checkOrigin(r.GetOrigin()); err != nil {
		return end(err)
	}
	node := s.m.node()
	if node == nil {
		return end(notServed(errStarting))
	}
	after := kvdb.Revision(r.GetAfter())
	beat := time.NewTicker(watchBeat)
	defer beat.Stop()
	for {
		b, err := s.m.fsm.state.Since(after, r.GetPrefix())
		if err != nil {
			return end(err)
		}
		after = b.Through
		if len(b.Events) > 0 {
			reply := &kvdbpb.WatchReply{Through: int64(after)}
			for _, e := range b.Events {
				reply.Events = append(reply.Events, eventToProto(e))
			}
			if err := stream.Send(reply); err != nil {
				return err
			}
		}
		if b.More == nil {
			continue
		}
		select {
		case <-b.More:
		case <-beat.C:
			if _, leader := node.LeaderWithID(); leader == "" {
				return end(fmt.Errorf("%w: this member knows none", kvdb.ErrNoLeader))
			}
			if err := stream.Send(&kvdbpb.WatchReply{Through: int64(after)}); err != nil {
				return err
			}
		case <-stream.Context().Done():
			return stream.Context().Err()
		case <-s.m.ctx.Done():
			return end(fmt.Errorf("%w: this member is stopping", kvdb.ErrNoLeader))
		}
	}
}

func (s kvServer) Grant(ctx context.Context, r *kvdbpb.GrantRequest) (*kvdbpb.GrantReply, error) {
	b, err := s.route(ctx, r.GetOrigin())
	if err == nil {
		err = b.grant(ctx, kvdb.LeaseID(r.GetId()), time.Duration(r.GetTtlMs())*time.Millisecond)
	}
	return &kvdbpb.GrantReply{Failure: toFailure(err)}, nil
}

func (s kvServer) KeepAlive(ctx context.Context, r *kvdbpb.KeepAliveRequest) (*kvdbpb.KeepAliveReply, error) {
	b, err := s.route(ctx, r.GetOrigin())
	if err == nil {
		err = b.keepAlive(patient(ctx, r.GetOrigin()), kvdb.LeaseID(r.GetId()))
	}
	return &kvdbpb.KeepAliveReply{Failure: toFailure(err)}, nil
}

func (s kvServer) Revoke(ctx context.Context, r *kvdbpb.RevokeRequest) (*kvdbpb.RevokeReply, error) {
	b, err := s.route(ctx, r.GetOrigin())
	if err == nil {
		err = b.revoke(ctx, kvdb.LeaseID(r.GetId()))
	}
	return &kvdbpb.RevokeReply{Failure: toFailure(err)}, nil
}
