package transport

import (
	"context"
	"sync"

	"go.uber.org/zap"
	"google.golang.org/grpc"

	"github.com/tandem-storage/tandem/replication"
	pb "github.com/tandem-storage/tandem/replication/replicationpb"
)

// Server serves the replication and beat services of this node on a gRPC server
// that may serve other things, too, and sessions on the same port.
type Server struct {
	pb.UnimplementedReplicationServer
	pb.UnimplementedBeatServer
	c    ServerConfig
	h    Handler
	self Identity

	ctx  context.Context // ends on Close
	stop context.CancelFunc
	mu   struct {
		sync.Mutex
		closed bool
	}
	sessions sync.WaitGroup
}

// ServerConfig says what a Server serves.
type ServerConfig struct {
	Handler  Handler
	Security *Security
	Boot     replication.BootID // of this node's kernel; told to peers in beats
	Logger   *zap.Logger        // of sessions that end with an error; nil: no logs
}

// NewServer returns a Server for a gRPC server that is made with its
// ServerOptions and given to Register. Close ends the sessions.
func NewServer(c ServerConfig) *Server {
	if c.Logger == nil {
		c.Logger = zap.NewNop()
	}
	s := &Server{c: c, h: c.Handler, self: c.Security.Self()}
	s.ctx, s.stop = context.WithCancel(context.Background())
	return s
}

// Register registers the services with g, which must not serve yet.
func (s *Server) Register(g grpc.ServiceRegistrar) {
	pb.RegisterReplicationServer(g, s)
	pb.RegisterBeatServer(g, s)
}

// Close ends every session and beat and returns when the Handler has returned
// from each. New ones are refused. It does not stop the gRPC server.
func (s *Server) Close() error {
	s.mu.Lock()
	s.mu.closed = true
	s.mu.Unlock()
	s.stop()
	s.sessions.Wait()
	return nil
}

func (s *Server) begin() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.closed {
		return ErrClosed
	}
	s.sessions.Add(1)
	return nil
}

// Seal implements pb.ReplicationServer.
func (s *Server) Seal(ctx context.Context, r *pb.SealRequest) (*pb.SealResponse, error) {
	from, err := PeerIdentity(ctx)
	if err != nil {
		return nil, err
	}
	q, err := sealFromPB(r)
	if err != nil {
		return nil, err
	}
	a, err := s.h.Seal(ctx, from, q)
	if err != nil {
		return nil, err
	}
	return sealResultToPB(a), nil
}

// Prepare implements pb.ReplicationServer.
func (s *Server) Prepare(ctx context.Context, r *pb.PrepareRequest) (*pb.PrepareResponse, error) {
	from, err := PeerIdentity(ctx)
	if err != nil {
		return nil, err
	}
	q, err := prepareFromPB(r)
	if err != nil {
		return nil, err
	}
	a, err := s.h.Prepare(ctx, from, q)
	if err != nil {
		return nil, err
	}
	return &pb.PrepareResponse{Status: uint32(a.Status), Term: uint64(a.Term), Size: a.Size}, nil
}

// Commit implements pb.ReplicationServer.
func (s *Server) Commit(ctx context.Context, r *pb.CommitRequest) (*pb.CommitResponse, error) {
	from, err := PeerIdentity(ctx)
	if err != nil {
		return nil, err
	}
	q, err := commitFromPB(r)
	if err != nil {
		return nil, err
	}
	a, err := s.h.Commit(ctx, from, q)
	if err != nil {
		return nil, err
	}
	return &pb.CommitResponse{Status: uint32(a.Status), Epoch: uint64(a.Epoch)}, nil
}

// Dirty implements pb.ReplicationServer.
func (s *Server) Dirty(ctx context.Context, r *pb.DirtyRequest) (*pb.DirtyResponse, error) {
	from, err := PeerIdentity(ctx)
	if err != nil {
		return nil, err
	}
	q, err := dirtyFromPB(r)
	if err != nil {
		return nil, err
	}
	a, err := s.h.Dirty(ctx, from, q)
	if err != nil {
		return nil, err
	}
	return &pb.DirtyResponse{Status: uint32(a.Status), Bits: a.Bits}, nil
}

// Turn implements pb.ReplicationServer.
func (s *Server) Turn(ctx context.Context, r *pb.TurnRequest) (*pb.TurnResponse, error) {
	from, err := PeerIdentity(ctx)
	if err != nil {
		return nil, err
	}
	q, err := turnFromPB(r)
	if err != nil {
		return nil, err
	}
	a, err := s.h.Turn(ctx, from, q)
	if err != nil {
		return nil, err
	}
	return turnResultToPB(a), nil
}

// Beat implements pb.BeatServer: it answers each beat at once.
func (s *Server) Beat(stream grpc.BidiStreamingServer[pb.BeatRequest, pb.BeatResponse]) error {
	if _, err := PeerIdentity(stream.Context()); err != nil {
		return err
	}
	// Recv ends with the stream, and the stream with this method.
	failed := make(chan error, 1)
	go func() {
		for {
			r, err := stream.Recv()
			if err == nil {
				err = stream.Send(&pb.BeatResponse{Seq: r.GetSeq(), Node: string(s.self.Node), Boot: s.c.Boot[:], Boottime: boottime()})
			}
			if err != nil {
				failed <- err
				return
			}
		}
	}()
	select {
	case <-failed:
		return nil // the peer's side ended; there is nobody to tell
	case <-s.ctx.Done():
		return ErrClosed
	}
}
