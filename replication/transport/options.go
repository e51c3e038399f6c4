package transport

import (
	"math"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/keepalive"

	"github.com/tandem-storage/tandem/replication"
)

const (
	// maxControl is the largest response of the control exchange, in bytes: the
	// dirty map of 128 TiB.
	maxControl = 256 << 20

	// keepalive is only a backstop; beats decide about liveness.
	keepaliveAfter   = 10 * time.Second
	keepaliveTimeout = 5 * time.Second

	// dialTimeout bounds one attempt to connect, handshake included.
	dialTimeout = 5 * time.Second
	// maxBackoff bounds the pause between attempts: a returned peer is found soon.
	maxBackoff = time.Second

	// controlTimeout bounds a call of the control exchange whose context has no deadline.
	controlTimeout = 5 * time.Second
)

// ServerOptions are what the gRPC server that s registers with must be made with:
// credentials, which take the connections of sessions out, and limits.
func (s *Server) ServerOptions() []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.Creds(s.credentials()),
		grpc.MaxSendMsgSize(math.MaxInt32),
		grpc.ConnectionTimeout(dialTimeout),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: keepaliveAfter, Timeout: keepaliveTimeout}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: keepaliveAfter / 2, PermitWithoutStream: true}),
	}
}

// DialOptions are for connections to node's gRPC server.
func (s *Security) DialOptions(node replication.NodeID) []grpc.DialOption {
	b := backoff.DefaultConfig
	b.BaseDelay, b.MaxDelay = maxBackoff/4, maxBackoff
	return []grpc.DialOption{
		grpc.WithTransportCredentials(s.ClientCredentials(node)),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxControl), grpc.MaxCallSendMsgSize(math.MaxInt32)),
		grpc.WithDisableRetry(),
		grpc.WithDisableServiceConfig(),
		grpc.WithNoProxy(),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: b, MinConnectTimeout: dialTimeout}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: keepaliveAfter, Timeout: keepaliveTimeout, PermitWithoutStream: true}),
	}
}
