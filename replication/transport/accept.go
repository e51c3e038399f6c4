package transport

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"time"

	"go.uber.org/zap"
	"google.golang.org/grpc/credentials"

	"github.com/tandem-storage/tandem/replication"
)

// lingerTimeout bounds how long a session that the Handler ended waits for the
// other end to take what was sent last.
const lingerTimeout = 2 * time.Second

// sessionCredentials are for a gRPC server on whose port sessions arrive, too.
type sessionCredentials struct {
	credentials.TransportCredentials
	s *Server
}

func (s *Server) credentials() credentials.TransportCredentials {
	sec := *s.c.Security
	var inner credentials.TransportCredentials = loopbackCredentials{self: sec.self}
	if sec.tls != nil {
		c := sec.ServerTLS()
		c.NextProtos = []string{"h2", sessionProtocol}
		c.DynamicRecordSizingDisabled = true
		inner = credentials.NewTLS(c)
	}
	return refusals{sessionCredentials{inner, s}, sec.lg}
}

// ServerHandshake implements credentials.TransportCredentials. A connection for a
// session does not come back.
func (c sessionCredentials) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	below := &gather{Conn: raw}
	secured, info, err := c.TransportCredentials.ServerHandshake(below)
	if err != nil {
		return nil, nil, err
	}
	session := false
	if t, ok := info.(credentials.TLSInfo); ok {
		session = t.State.NegotiatedProtocol == sessionProtocol
	} else if secured, session, err = sniff(secured); err != nil {
		return nil, nil, err
	}
	if !session {
		return secured, info, nil
	}
	from, err := infoIdentity(info, raw.RemoteAddr())
	if err != nil {
		return nil, nil, err
	}
	c.s.accept(secured, below, from)
	return nil, nil, credentials.ErrConnDispatched
}

// Clone implements credentials.TransportCredentials.
func (c sessionCredentials) Clone() credentials.TransportCredentials {
	return sessionCredentials{c.TransportCredentials.Clone(), c.s}
}

// sniff reads which protocol a client without TLS begins. What it has read comes
// again from the connection that it returns, unless that is a session.
func sniff(c net.Conn) (net.Conn, bool, error) {
	b := make([]byte, len(sessionProtocol))
	if _, err := io.ReadFull(c, b); err != nil {
		return nil, false, err
	}
	if string(b) == sessionProtocol {
		return c, true, nil
	}
	return &replay{Conn: c, r: io.MultiReader(bytes.NewReader(b), c)}, false, nil
}

// replay is a connection that delivers again what was read from it.
type replay struct {
	net.Conn
	r io.Reader
}

// Read implements net.Conn.
func (r *replay) Read(p []byte) (int, error) { return r.r.Read(p) }

// accept starts to serve a session with from.
func (s *Server) accept(secured net.Conn, below *gather, from Identity) {
	if err := s.begin(); err != nil {
		// The client finds out anyway.
		_ = sendReady(secured, replication.StatusShuttingDown)
		_ = below.Close()
		return
	}
	go func() {
		defer s.sessions.Done()
		err := s.serve(secured, below, from)
		switch {
		case err == nil, errors.Is(err, ErrClosed), errors.Is(err, ErrDisconnected):
		default:
			s.c.Logger.Warn("session ended", zap.String("peer", string(from.Node)), zap.Error(err))
		}
	}()
}

// serve returns when the session has ended.
func (s *Server) serve(secured net.Conn, below *gather, from Identity) error {
	if err := sendReady(secured, replication.StatusOK); err != nil {
		_ = below.Close() // the error says why
		return disconnected(err)
	}
	c, err := newFrameConn(secured, below)
	if err != nil {
		_ = below.Close() // likewise
		return err
	}
	ctx, end := context.WithCancelCause(s.ctx)
	c.end = end
	defer c.Close()
	defer context.AfterFunc(s.ctx, func() { _ = c.Close() })()
	err = s.h.ServeSession(ctx, from, c)
	c.linger()
	return err
}

// linger lets what was sent arrive: the kernel discards it when a connection with
// unread data is closed.
func (c *frameConn) linger() {
	if c.closed.Load() || c.raw.CloseWrite() != nil || c.raw.SetReadDeadline(time.Now().Add(lingerTimeout)) != nil {
		return
	}
	_, _ = io.Copy(io.Discard, c.raw) // until the other end has closed, or the deadline
}
