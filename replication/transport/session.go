package transport

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/tandem-storage/tandem/replication"
	"github.com/tandem-storage/tandem/replication/wire"
)

// sessionProtocol is what a client asks for in the TLS handshake (ALPN, RFC 7301)
// to get a session instead of gRPC. Where there is no TLS the client sends it
// instead: gRPC's clients begin otherwise.
const sessionProtocol = "tandem/1"

const (
	// readyLen is the length of what the serving end sends when it has accepted a
	// session or refuses it: readyMagic, a replication.Status in two bytes, two of zero.
	readyLen   = 8
	readyMagic = 0x4d444e54 // "TNDM"

	// maxReady is the most messages that one Recv returns.
	maxReady = 256
)

// frameConn is a Conn over a connection of its own.
type frameConn struct {
	raw    *net.TCPConn // what the others write to in the end
	sys    syscall.RawConn
	below  *gather
	out    io.Writer     // to below
	w      *bufio.Writer // to out, within Send
	dec    *wire.Decoder
	closed atomic.Bool
	end    func(error) // called, maybe more than once, when the Conn is of no more use, and why

	head []byte
	msgs []replication.Message
}

var _ Conn = (*frameConn)(nil)

// newFrameConn returns the Conn over secured, whose bytes end in below. The caller
// sets end.
func newFrameConn(secured net.Conn, below *gather) (*frameConn, error) {
	raw, ok := below.Conn.(*net.TCPConn)
	if !ok {
		return nil, fmt.Errorf("%w: a session needs a TCP connection, not a %T", ErrConfig, below.Conn)
	}
	sys, err := raw.SyscallConn()
	if err != nil {
		return nil, err
	}
	c := &frameConn{raw: raw, sys: sys, below: below}
	if err := c.tune(); err != nil {
		return nil, err
	}
	below.begin()
	c.out = secured
	c.dec = wire.NewDecoder(secured)
	return c, nil
}

// writers are lent to connections while they send: thousands may have nothing to send. Frames share records, and long payloads go round them.
var writers = sync.Pool{New: func() any { return bufio.NewWriterSize(nil, maxRecord) }}

// tune makes the kernel give the connection up when the other end is gone, should
// beats not do it.
func (c *frameConn) tune() error {
	err := c.raw.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: keepaliveAfter, Interval: keepaliveTimeout, Count: 1})
	if err != nil {
		return err
	}
	if cerr := c.sys.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int((keepaliveAfter + keepaliveTimeout).Milliseconds()))
	}); cerr != nil {
		return cerr
	}
	return err
}

// Send implements Conn.
func (c *frameConn) Send(batch []replication.Message) error {
	c.w = writers.Get().(*bufio.Writer)
	c.w.Reset(c.out)
	defer func() {
		c.w.Reset(nil)
		writers.Put(c.w)
		c.w = nil
	}()
	for i := range batch {
		m := &batch[i]
		err := c.write(m)
		if m.Buf != nil {
			m.Buf.Release()
		}
		if err != nil {
			// A part may have been sent: the order is lost.
			releaseAll(batch[i+1:])
			return c.fail(err)
		}
	}
	if err := c.flush(); err != nil {
		return c.fail(err)
	}
	return nil
}

func (c *frameConn) write(m *replication.Message) error {
	var err error
	if c.head, err = wire.AppendHead(c.head[:0], m); err != nil {
		return err
	}
	if _, err = c.w.Write(c.head); err == nil {
		_, err = c.w.Write(m.Data)
	}
	return disconnected(err)
}

func (c *frameConn) flush() error {
	if err := c.w.Flush(); err != nil {
		return disconnected(err)
	}
	return disconnected(c.below.flush())
}

// Idle implements Conn: the kernel has nothing that the other end's kernel has not
// acknowledged (SIOCOUTQ, tcp(7)), and takes more than IdleLen then.
func (c *frameConn) Idle() bool {
	queued := 0
	var err error
	if cerr := c.sys.Control(func(fd uintptr) { queued, err = unix.IoctlGetInt(int(fd), unix.SIOCOUTQ) }); cerr != nil {
		return false
	}
	return err == nil && queued == 0
}

// Recv implements Conn.
func (c *frameConn) Recv() ([]replication.Message, error) {
	clear(c.msgs)
	c.msgs = c.msgs[:0]
	for len(c.msgs) == 0 || c.dec.Ready() && len(c.msgs) < maxReady {
		m, err := c.dec.Next()
		if err != nil && len(c.msgs) > 0 {
			break // the Decoder says it again
		}
		if err != nil {
			if !wire.Malformed(err) {
				err = disconnected(err)
			}
			return nil, c.fail(err)
		}
		c.msgs = append(c.msgs, m)
	}
	return c.msgs, nil
}

// Close implements Conn.
func (c *frameConn) Close() error {
	c.closed.Store(true)
	c.shut(ErrClosed)
	return nil
}

// fail ends the Conn because of err and returns what its user is told.
func (c *frameConn) fail(err error) error {
	if c.closed.Load() {
		err = ErrClosed
	}
	c.shut(err)
	return err
}

func (c *frameConn) shut(err error) {
	_ = c.raw.Close() // wakes whoever reads or writes; errors only if closed already
	c.end(err)
}

func disconnected(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%w: %w", ErrDisconnected, err)
}

// releaseAll gives up one reference of each message's Buf.
func releaseAll(batch []replication.Message) {
	for i := range batch {
		if b := batch[i].Buf; b != nil {
			b.Release()
		}
	}
}

// sendReady tells the client what became of its session.
func sendReady(w io.Writer, st replication.Status) error {
	var b [readyLen]byte
	binary.LittleEndian.PutUint32(b[:], readyMagic)
	binary.LittleEndian.PutUint16(b[4:], uint16(st))
	_, err := w.Write(b[:])
	return err
}

// awaitReady returns when the serving end has accepted the session.
func awaitReady(r io.Reader) error {
	var b [readyLen]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return fmt.Errorf("waiting until it is accepted: %w", err)
	}
	if binary.LittleEndian.Uint32(b[:]) != readyMagic {
		return fmt.Errorf("%w: a session is answered with %x", ErrProtocol, b)
	}
	switch st := replication.Status(binary.LittleEndian.Uint16(b[4:])); st {
	case replication.StatusOK:
		return nil
	case replication.StatusShuttingDown:
		return ErrClosed
	default:
		return fmt.Errorf("%w: %v", ErrProtocol, st)
	}
}

// maxRecord is the most that TLS puts into one record, in bytes.
const maxRecord = 16 << 10

// gatherLen is how much a gather holds before it writes by itself, in bytes: the
// other end can begin with it while the rest is being encrypted.
const gatherLen = 128 << 10

// gather is the connection below TLS, which writes each record with a system call
// of its own. Once begin was called the records are held until flush.
type gather struct {
	net.Conn
	mu      sync.Mutex // TLS may write while it reads: alerts, new keys
	holding bool
	buf     *[]byte // nil while nothing is held
}

// gathers are lent to those that hold something.
var gathers = sync.Pool{New: func() any {
	b := make([]byte, 0, gatherLen+maxRecord)
	return &b
}}

func (g *gather) begin() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.holding = true
}

// Write implements net.Conn.
func (g *gather) Write(p []byte) (int, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.holding {
		return g.Conn.Write(p)
	}
	if g.buf == nil {
		g.buf = gathers.Get().(*[]byte)
	}
	*g.buf = append(*g.buf, p...)
	if len(*g.buf) < gatherLen {
		return len(p), nil
	}
	return len(p), g.flushLocked()
}

func (g *gather) flush() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.flushLocked()
}

// flushLocked writes what was held. After an error TLS is out of step, and so the
// connection is of no more use.
func (g *gather) flushLocked() error {
	if g.buf == nil {
		return nil
	}
	_, err := g.Conn.Write(*g.buf)
	*g.buf = (*g.buf)[:0]
	gathers.Put(g.buf)
	g.buf = nil
	return err
}
