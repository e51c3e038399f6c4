package raftkv

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/tandem-storage/tandem/kvdb"
	"github.com/tandem-storage/tandem/kvdb/kvdbpb"
)

// pool keeps one connection to each address.
type pool struct {
	creds credentials.TransportCredentials

	mu     sync.Mutex
	conns  map[string]*grpc.ClientConn
	closed bool
}

func newPool(c *tls.Config) *pool {
	p := &pool{creds: insecure.NewCredentials(), conns: make(map[string]*grpc.ClientConn)}
	if c != nil {
		p.creds = credentials.NewTLS(c)
	}
	return p
}

// deadAfter is when the kernel gives up a connection whose peer acknowledges nothing.
const deadAfter = 5 * time.Second

// dial finds dead connections by TCP's means, because HTTP/2 pings more often
// than every five minutes need the consent of the server, which is not ours.
func dial(ctx context.Context, address string) (net.Conn, error) {
	d := net.Dialer{
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 2 * time.Second, Interval: time.Second, Count: 3},
		Control: func(_, _ string, c syscall.RawConn) error {
			var err error
			return errors.Join(c.Control(func(fd uintptr) {
				err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(deadAfter.Milliseconds()))
			}), err)
		},
	}
	return d.DialContext(ctx, "tcp", address)
}

func (p *pool) get(address string) (*grpc.ClientConn, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, kvdb.ErrClosed
	}
	if conn := p.conns[address]; conn != nil {
		return conn, nil
	}
	conn, err := grpc.NewClient("passthrough:///"+address,
		grpc.WithTransportCredentials(p.creds),
		grpc.WithContextDialer(dial),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 2 * time.Second},
			MinConnectTimeout: 2 * time.Second,
		}),
		grpc.WithDisableRetry(), // what is sent again is decided in store.go alone
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(math.MaxInt32)), // kvdb.MaxTxnOps gets of kvdb.MaxValue
	)
	if err != nil {
		return nil, err
	}
	p.conns[address] = conn
	return conn, nil
}

// ready returns the connection to address once it stands. An error means that
// nothing was sent.
func (p *pool) ready(ctx context.Context, address string) (*grpc.ClientConn, error) {
	conn, err := p.get(address)
	if err != nil {
		return nil, err
	}
	conn.Connect()
	for {
		state := conn.GetState()
		switch state {
		case connectivity.Ready:
			return conn, nil
		case connectivity.TransientFailure, connectivity.Shutdown:
			return nil, fmt.Errorf("raftkv: no connection to %s", address)
		case connectivity.Idle, connectivity.Connecting:
		}
		if !conn.WaitForStateChange(ctx, state) {
			return nil, fmt.Errorf("raftkv: no connection to %s yet: %w", address, ctx.Err())
		}
	}
}

func (p *pool) close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	var err error
	for address, conn := range p.conns {
		delete(p.conns, address)
		err = errors.Join(err, conn.Close())
	}
	return err
}

// remote is the backend behind a connection.
type remote struct {
	kv      kvdbpb.KVClient
	address string
	origin  *kvdbpb.Origin
}

var _ backend = (*remote)(nil)

func newRemote(conn grpc.ClientConnInterface, address string, forwarded bool, clusterID string) *remote {
	return &remote{
		kv:      kvdbpb.NewKVClient(conn),
		address: address,
		origin:  &kvdbpb.Origin{Forwarded: forwarded, ClusterId: clusterID},
	}
}

// from is the origin of a request under ctx.
func (r *remote) from(ctx context.Context) *kvdbpb.Origin {
	d := kvdb.Patience(ctx)
	if d <= 0 {
		return r.origin
	}
	return &kvdbpb.Origin{Forwarded: r.origin.GetForwarded(), ClusterId: r.origin.GetClusterId(), PatienceMs: d.Milliseconds()}
}

// failing is what all replies have in common.
type failing interface{ GetFailure() *kvdbpb.Failure }

// check makes an error of a reply. A failed call is an unknown outcome.
func (r *remote) check(ctx context.Context, reply failing, err error) error {
	if err == nil {
		return fromFailure(reply.GetFailure())
	}
	if ctx.Err() != nil {
		return fmt.Errorf("%w: no answer from %s: %w", kvdb.ErrUnavailable, r.address, ctx.Err())
	}
	return fmt.Errorf("%w: no answer from %s: %w", kvdb.ErrUnavailable, r.address, err)
}

func (r *remote) txn(ctx context.Context, t kvdb.Txn) (kvdb.TxnResult, error) {
	reply, err := r.kv.Txn(ctx, &kvdbpb.TxnRequest{Origin: r.from(ctx), Txn: txnToProto(t)})
	if err := r.check(ctx, reply, err); err != nil {
		return kvdb.TxnResult{}, err
	}
	return resultFromProto(reply), nil
}

func (r *remote) list(ctx context.Context, prefix string) ([]kvdb.KV, kvdb.Revision, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := r.kv.List(ctx, &kvdbpb.ListRequest{Origin: r.from(ctx), Prefix: prefix})
	if err != nil {
		return nil, 0, r.check(ctx, nil, err)
	}
	var kvs []kvdb.KV
	for {
		piece, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF // the last piece is marked
		}
		if err := r.check(ctx, piece, err); err != nil {
			return nil, 0, err
		}
		for _, kv := range piece.GetKvs() {
			kvs = append(kvs, kvFromProto(kv))
		}
		if !piece.GetMore() {
			return kvs, kvdb.Revision(piece.GetRevision()), nil
		}
	}
}

func (r *remote) grant(ctx context.Context, id kvdb.LeaseID, ttl time.Duration) error {
	reply, err := r.kv.Grant(ctx, &kvdbpb.GrantRequest{Origin: r.origin, Id: int64(id), TtlMs: ttl.Milliseconds()})
	return r.check(ctx, reply, err)
}

func (r *remote) keepAlive(ctx context.Context, id kvdb.LeaseID) error {
	reply, err := r.kv.KeepAlive(ctx, &kvdbpb.KeepAliveRequest{Origin: r.from(ctx), Id: int64(id)})
	return r.check(ctx, reply, err)
}

func (r *remote) revoke(ctx context.Context, id kvdb.LeaseID) error {
	reply, err := r.kv.Revoke(ctx, &kvdbpb.RevokeRequest{Origin: r.origin, Id: int64(id)})
	return r.check(ctx, reply, err)
}
