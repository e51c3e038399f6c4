package transport

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"

	"github.com/tandem-storage/tandem/replication"
)

// messageStream is a gRPC stream, of either end.
type messageStream interface {
	SendMsg(m any) error
	RecvMsg(m any) error
}

// streamConn is a Conn over a gRPC stream with the codec of this package.
type streamConn struct {
	s      messageStream
	end    context.CancelCauseFunc // ends the stream; the cause becomes its status on the serving end
	closed atomic.Bool
	out    outBatch // of Send
	in     inBatch  // of Recv
}

var _ Conn = (*streamConn)(nil)

// Send implements Conn.
func (c *streamConn) Send(batch []replication.Message) error {
	for i := range batch {
		err := c.out.add(&batch[i])
		if err == nil && (c.out.full() || i == len(batch)-1) {
			err = c.flush()
		}
		if err != nil {
			// A part may have been sent: the order is lost.
			c.out.drop()
			releaseAll(batch[i+1:])
			c.fail(err)
			return err
		}
	}
	return nil
}

func (c *streamConn) flush() error {
	err := c.s.SendMsg(&c.out)
	if err == nil {
		return nil
	}
	if c.closed.Load() {
		return ErrClosed
	}
	if errors.Is(err, io.EOF) { // the stream's status is for Recv
		return fmt.Errorf("%w: the session has ended", ErrDisconnected)
	}
	return fmt.Errorf("%w: %w", ErrDisconnected, err)
}

// Recv implements Conn.
func (c *streamConn) Recv() ([]replication.Message, error) {
	for {
		switch err := c.s.RecvMsg(&c.in); {
		case err == nil:
		case c.closed.Load():
			return nil, ErrClosed
		case errors.Is(err, io.EOF):
			return nil, fmt.Errorf("%w: the peer ended the session", ErrDisconnected)
		default:
			return nil, fmt.Errorf("%w: %w", ErrDisconnected, err)
		}
		if c.in.err != nil {
			c.fail(c.in.err)
			return nil, c.in.err
		}
		if len(c.in.msgs) > 0 { // none if all were of ignorable types
			return c.in.msgs, nil
		}
	}
}

// Close implements Conn.
func (c *streamConn) Close() error {
	c.closed.Store(true)
	c.end(ErrClosed)
	return nil
}

// fail ends the stream because of err.
func (c *streamConn) fail(err error) { c.end(err) }

// releaseAll gives up one reference of each message's Buf.
func releaseAll(batch []replication.Message) {
	for i := range batch {
		if b := batch[i].Buf; b != nil {
			b.Release()
		}
	}
}
