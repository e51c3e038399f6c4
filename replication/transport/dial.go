package transport

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"time"
)

// Session implements Peer. ctx bounds the opening only: the Conn lives until
// Close or the end of the connection. It returns when the peer has accepted.
func (n *node) Session(ctx context.Context) (Conn, error) {
	n.mu.Lock()
	addr, err := n.mu.addr, n.usableLocked()
	n.mu.Unlock()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	c, err := n.open(ctx, addr)
	if err != nil {
		return nil, n.unreachable("session", err)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	err = n.usableLocked()
	if err == nil && n.mu.addr != addr {
		err = n.unreachable("session", fmt.Errorf("the node has left %s meanwhile", addr))
	}
	if err != nil {
		_ = c.raw.Close() // nobody has it yet
		return nil, err
	}
	c.end = func(error) { n.ended(c) }
	n.mu.sessions[c] = struct{}{}
	return c, nil
}

// ended forgets a session.
func (n *node) ended(c *frameConn) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.mu.sessions, c)
}

// open connects to addr and waits until the peer has accepted a session.
func (n *node) open(ctx context.Context, addr string) (*frameConn, error) {
	raw, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	// The end of ctx ends whatever waits.
	unbind := context.AfterFunc(ctx, func() { _ = raw.SetDeadline(time.Unix(1, 0)) })
	c, err := n.handshake(ctx, raw)
	if err == nil && !unbind() {
		err = context.Cause(ctx)
	}
	if err != nil {
		_ = raw.Close() // the error is that of the handshake
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return nil, err
	}
	return c, nil
}

func (n *node) handshake(ctx context.Context, raw net.Conn) (*frameConn, error) {
	below := &gather{Conn: raw}
	var secured net.Conn = below
	if s := n.c.Security; s.tls == nil {
		if _, _, err := (loopbackCredentials{self: s.self}).handshake(raw); err != nil {
			return nil, err
		}
		if _, err := raw.Write([]byte(sessionProtocol)); err != nil {
			return nil, err
		}
	} else {
		t := tls.Client(below, forSessions(s.clientTLS(n.id)))
		if err := t.HandshakeContext(ctx); err != nil {
			return nil, err
		}
		secured = t
	}
	if err := awaitReady(secured); err != nil {
		return nil, err
	}
	return newFrameConn(secured, below)
}

// forSessions makes c ask for a session instead of gRPC.
func forSessions(c *tls.Config) *tls.Config {
	c.NextProtos = []string{sessionProtocol}
	c.DynamicRecordSizingDisabled = true // small records first are for browsers
	return c
}
