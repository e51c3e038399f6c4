package transporttest

import (
	"bytes"
	"context"
	"fmt"
	"slices"

	"github.com/tandem-storage/tandem/replication"
	"github.com/tandem-storage/tandem/replication/transport"
	"github.com/tandem-storage/tandem/replication/wire"
)

// window is how many bytes a Conn takes before Send waits for the other end.
const window = 1 << 20

// conn is one end.
type conn struct {
	n     *Net
	way   way // of what this end sends
	other *conn

	// Under n.mu.
	queue  []item // sent by the other end and not received here
	bytes  int    // in queue
	closed bool
	err    error // the connection broke

	// Of Recv.
	msgs []replication.Message

	cancel context.CancelCauseFunc // of the serving end
}

// item is a batch on its way. The payloads are the sender's own buffers until the
// receiver takes them: a sender that uses a buffer again too early is found out.
type item struct {
	*parcel
	batch  []replication.Message
	bytes  int
	damage []bool
}

var _ transport.Conn = (*conn)(nil)

// Pair connects two nodes, which need not have joined, without a Handler.
func (n *Net) Pair(a, b replication.NodeID) (transport.Conn, transport.Conn) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.pairLocked(way{a, b})
}

func (n *Net) pairLocked(w way) (*conn, *conn) {
	a := &conn{n: n, way: w}
	b := &conn{n: n, way: way{w.to, w.from}, other: a}
	a.other = b
	n.conns[a], n.conns[b] = struct{}{}, struct{}{}
	return a, b
}

// Send implements transport.Conn.
func (c *conn) Send(batch []replication.Message) error {
	it := item{batch: make([]replication.Message, len(batch))}
	for i, m := range batch {
		if m.Buf == nil {
			m.Data = bytes.Clone(m.Data) // nobody says how long it stays as it is
		}
		if _, err := wire.AppendHead(nil, &m); err != nil {
			release(it.batch[:i])
			release(batch[i:])
			c.end(err)
			return err
		}
		it.batch[i] = m
		it.bytes += wire.HeadLen(&m) + len(m.Data)
	}
	n := c.n
	n.mu.Lock()
	defer n.mu.Unlock()
	for c.errLocked() == nil && c.other.bytes >= window {
		n.moved.Wait()
	}
	if err := c.errLocked(); err != nil {
		release(it.batch)
		return err
	}
	if len(batch) == 0 {
		return nil
	}
	it.damage = make([]bool, len(batch))
	d := n.wayLocked(c.way)
	for i := range it.batch {
		if d.damage > 0 && len(it.batch[i].Data) > 0 {
			d.damage--
			it.damage[i] = true
		}
	}
	it.parcel = n.sendLocked(c.way)
	c.other.queue = append(c.other.queue, it)
	c.other.bytes += it.bytes
	return nil
}

func (c *conn) errLocked() error {
	if c.closed {
		return transport.ErrClosed
	}
	return c.err
}

// Idle implements transport.Conn.
func (c *conn) Idle() bool {
	c.n.mu.Lock()
	defer c.n.mu.Unlock()
	return c.other.bytes == 0
}

// Recv implements transport.Conn. Messages go through the wire's form, so that
// what cannot be sent in earnest cannot be sent here.
func (c *conn) Recv() ([]replication.Message, error) {
	it, err := c.take()
	if err != nil {
		return nil, err
	}
	defer release(it.batch)
	clear(c.msgs)
	c.msgs = c.msgs[:0]
	for i := range it.batch {
		m := &it.batch[i]
		b, err := wire.AppendHead(nil, m)
		if err == nil {
			b = append(b, m.Data...)
			if it.damage[i] {
				b[len(b)-1] ^= 0x10
			}
			var m replication.Message
			if m, err = wire.NewDecoder(bytes.NewReader(b)).Next(); err == nil {
				c.msgs = append(c.msgs, m)
			}
		}
		if err != nil {
			release(c.msgs)
			c.end(err)
			return nil, err
		}
	}
	return c.msgs, nil
}

func (c *conn) take() (item, error) {
	n := c.n
	n.mu.Lock()
	defer n.mu.Unlock()
	for {
		switch {
		case c.closed:
			return item{}, transport.ErrClosed
		case len(c.queue) > 0 && c.queue[0].arrived:
			it := c.queue[0]
			c.queue = c.queue[1:]
			c.bytes -= it.bytes
			n.moved.Broadcast()
			return it, nil
		case c.err != nil:
			return item{}, c.err
		}
		n.moved.Wait()
	}
}

// Close implements transport.Conn.
func (c *conn) Close() error {
	c.n.mu.Lock()
	defer c.n.mu.Unlock()
	c.closeLocked()
	return nil
}

func (c *conn) closeLocked() {
	if c.closed {
		return
	}
	c.closed = true
	err := fmt.Errorf("%w: the peer ended the session", transport.ErrDisconnected)
	c.breakLocked(err)
	c.other.breakLocked(err)
	for _, it := range c.queue {
		release(it.batch)
	}
	c.queue, c.bytes = nil, 0
}

// breakLocked makes the end fail once what has arrived is received.
func (c *conn) breakLocked(err error) {
	if c.err == nil {
		c.err = err
	}
	delete(c.n.conns, c)
	kept := c.queue[:0]
	for _, it := range c.queue {
		if it.arrived {
			kept = append(kept, it)
			continue
		}
		it.lost = true
		c.bytes -= it.bytes
		release(it.batch)
	}
	clear(c.queue[len(kept):])
	c.queue = kept
	d := c.n.wayLocked(c.other.way)
	d.held = slices.DeleteFunc(d.held, func(p *parcel) bool { return p.lost })
	if c.cancel != nil {
		c.cancel(err)
	}
	c.n.moved.Broadcast()
}

// end breaks both ends because of err.
func (c *conn) end(err error) {
	c.n.mu.Lock()
	defer c.n.mu.Unlock()
	c.breakLocked(err)
	c.other.breakLocked(fmt.Errorf("%w: %w", transport.ErrDisconnected, err))
}

// release gives up one reference of each message's Buf.
func release(batch []replication.Message) {
	for i := range batch {
		if b := batch[i].Buf; b != nil {
			b.Release()
		}
	}
}
