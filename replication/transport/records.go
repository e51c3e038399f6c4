package transport

import (
	"context"
	"net"
	"sync"
	"syscall"

	"google.golang.org/grpc/credentials"
)

// crypto/tls writes each record of 16 KiB with a system call of its own. Here the
// records of one Write are gathered below it, so that a batch of frames leaves in
// one. (Reads need nothing of the kind: TLS reads what there is.)

// gatherTLS is TLS with gathered records.
type gatherTLS struct {
	credentials.TransportCredentials
}

// ClientHandshake implements credentials.TransportCredentials.
func (g gatherTLS) ClientHandshake(ctx context.Context, authority string, c net.Conn) (net.Conn, credentials.AuthInfo, error) {
	below := &gather{Conn: c}
	secured, info, err := g.TransportCredentials.ClientHandshake(ctx, authority, below)
	if err != nil {
		return nil, nil, err
	}
	return &gathered{Conn: secured, below: below}, info, nil
}

// ServerHandshake implements credentials.TransportCredentials.
func (g gatherTLS) ServerHandshake(c net.Conn) (net.Conn, credentials.AuthInfo, error) {
	below := &gather{Conn: c}
	secured, info, err := g.TransportCredentials.ServerHandshake(below)
	if err != nil {
		return nil, nil, err
	}
	return &gathered{Conn: secured, below: below}, info, nil
}

// Clone implements credentials.TransportCredentials.
func (g gatherTLS) Clone() credentials.TransportCredentials {
	return gatherTLS{g.TransportCredentials.Clone()}
}

// gathered is the connection above TLS.
type gathered struct {
	net.Conn
	below *gather
}

// Write implements net.Conn. gRPC writes from one goroutine at a time.
func (c *gathered) Write(p []byte) (int, error) {
	if len(p) <= maxRecord {
		return c.Conn.Write(p) // one record
	}
	c.below.hold()
	n, err := c.Conn.Write(p)
	if ferr := c.below.flush(); err == nil && ferr != nil {
		n, err = 0, ferr
	}
	return n, err
}

// SyscallConn lets gRPC set socket options.
func (c *gathered) SyscallConn() (syscall.RawConn, error) { return c.below.SyscallConn() }

// maxRecord is the most that TLS puts into one record, in bytes.
const maxRecord = 16 << 10

// gather is the connection below TLS.
type gather struct {
	net.Conn
	mu      sync.Mutex // TLS may write an alert while it reads
	holding bool
	buf     []byte
}

func (g *gather) hold() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.holding = true
}

// flush writes what was held. After an error TLS is out of step, and so the
// connection is of no more use.
func (g *gather) flush() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.holding = false
	if len(g.buf) == 0 {
		return nil
	}
	_, err := g.Conn.Write(g.buf)
	if g.buf = g.buf[:0]; cap(g.buf) > 2*writeBuffer {
		g.buf = nil
	}
	return err
}

// Write implements net.Conn.
func (g *gather) Write(p []byte) (int, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.holding {
		g.buf = append(g.buf, p...)
		return len(p), nil
	}
	return g.Conn.Write(p)
}

// SyscallConn lets gRPC set socket options.
func (g *gather) SyscallConn() (syscall.RawConn, error) {
	if c, ok := g.Conn.(syscall.Conn); ok {
		return c.SyscallConn()
	}
	return nil, syscall.ENOTSUP
}
