package transport

import (
	"math"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/experimental"
	"google.golang.org/grpc/keepalive"

	"github.com/tandem-storage/tandem/replication"
	"github.com/tandem-storage/tandem/replication/wire"
)

// What gRPC is told. Changing one of these changes throughput or latency:
// compare the benchmarks of this package before and after.
const (
	// Both windows are set: setting one alone turns off the measurement of the
	// bandwidth for both and leaves the other at 64 KiB. With four connections they
	// cover 10 ms at 25 Gbit/s.
	streamWindow = 16 << 20 // bytes
	connWindow   = 64 << 20 // bytes

	// Frames of several sessions leave in one system call up to this many bytes.
	// Reads are collected likewise.
	writeBuffer = 128 << 10
	readBuffer  = 128 << 10

	// maxControl is the largest response of the control exchange, in bytes: the
	// dirty map of 128 TiB.
	maxControl = 256 << 20

	// maxStreams is how many sessions one peer may have on one connection.
	maxStreams = 4096

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

// ServerOptions are what the gRPC server that a Server registers with must be
// made with: credentials, windows, limits.
func (s *Security) ServerOptions() []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.Creds(s.ServerCredentials()),
		experimental.BufferPool(&frames),
		grpc.InitialWindowSize(streamWindow),
		grpc.InitialConnWindowSize(connWindow),
		grpc.WriteBufferSize(writeBuffer),
		grpc.ReadBufferSize(readBuffer),
		grpc.MaxRecvMsgSize(wire.MaxBatchLen),
		grpc.MaxSendMsgSize(math.MaxInt32),
		grpc.MaxConcurrentStreams(maxStreams),
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
		experimental.WithBufferPool(&frames),
		grpc.WithInitialWindowSize(streamWindow),
		grpc.WithInitialConnWindowSize(connWindow),
		grpc.WithWriteBufferSize(writeBuffer),
		grpc.WithReadBufferSize(readBuffer),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxControl), grpc.MaxCallSendMsgSize(math.MaxInt32)),
		grpc.WithDisableRetry(), // a session's frames are sent at most once
		grpc.WithDisableServiceConfig(),
		grpc.WithNoProxy(),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: b, MinConnectTimeout: dialTimeout}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: keepaliveAfter, Timeout: keepaliveTimeout, PermitWithoutStream: true}),
	}
}
