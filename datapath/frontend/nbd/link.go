package nbd

import (
	"bufio"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// link is the byte stream of a session. One goroutine may read while one other writes.
type link interface {
	// read waits for bytes and puts them into first and, when that is full, into
	// next. It returns how many came in all, or an error; io.EOF at the end.
	read(first, next []byte) (int, error)

	// write sends the bytes of bufs in order. With wait it returns when all are
	// sent; without, it makes one attempt that does not block. It returns how
	// many bytes were sent; fewer than all with a nil error only without wait.
	write(bufs [][]byte, wait bool) (int, error)

	// direct says whether write can do without waiting.
	direct() bool

	setWriteDeadline(t time.Time)

	// close ends the stream, in the way its protocol wants. It may take a moment.
	close()

	// abort ends the stream at once; pending calls return.
	abort()
}

// newLink makes the link of a connection that is past its handshake.
func newLink(c net.Conn) (link, error) {
	switch c := c.(type) {
	case *tls.Conn:
		return newTLSLink(c), nil
	case syscall.Conn:
		raw, err := c.SyscallConn()
		if err != nil {
			return nil, fmt.Errorf("nbd: %w", err)
		}
		if _, ok := c.(*net.UnixConn); ok {
			if err := raw.Control(growSendBuffer); err != nil {
				return nil, fmt.Errorf("nbd: %w", err)
			}
		}
		return newSocketLink(c.(net.Conn), raw), nil
	default:
		return nil, fmt.Errorf("nbd: %T is neither a socket nor TLS", c)
	}
}

// unixSendBuffer has room for a few of the largest replies, bytes. The kernel
// grows a TCP socket's by itself, but not a unix socket's, and a reply that does
// not fit costs a sleep in the middle.
const unixSendBuffer = 4 << 20

// growSendBuffer goes beyond the system's limit if the process may, and up to it otherwise.
func growSendBuffer(fd uintptr) {
	if unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, unixSendBuffer) != nil {
		// Without it replies are only slower.
		_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUF, unixSendBuffer)
	}
}

// socketLink is a plain socket, used by vectored system calls without copies.
type socketLink struct {
	conn net.Conn
	raw  syscall.RawConn

	in      [2]unix.Iovec
	inLen   int
	got     int
	inErr   error
	readFn  func(fd uintptr) bool
	out     []unix.Iovec
	rest    []unix.Iovec // the part of out not sent yet
	sent    int
	wait    bool
	outErr  error
	writeFn func(fd uintptr) bool
}

func newSocketLink(conn net.Conn, raw syscall.RawConn) *socketLink {
	l := &socketLink{conn: conn, raw: raw}
	l.readFn, l.writeFn = l.readOnce, l.writeSome
	return l
}

func (l *socketLink) read(first, next []byte) (int, error) {
	l.inLen = 0
	for _, p := range [2][]byte{first, next} {
		if len(p) > 0 {
			l.in[l.inLen] = iovec(p)
			l.inLen++
		}
	}
	err := l.raw.Read(l.readFn)
	l.in = [2]unix.Iovec{}
	switch {
	case err != nil:
		return 0, err
	case l.inErr != nil:
		return 0, l.inErr
	case l.got == 0:
		return 0, io.EOF
	}
	return l.got, nil
}

// readOnce reports false when the socket has nothing, so that the caller waits.
func (l *socketLink) readOnce(fd uintptr) bool {
	for {
		n, _, e := unix.Syscall(unix.SYS_READV, fd, uintptr(unsafe.Pointer(&l.in)), uintptr(l.inLen))
		switch e {
		case 0:
			l.got, l.inErr = int(n), nil
			return true
		case unix.EAGAIN:
			return false
		case unix.EINTR:
		default:
			l.inErr = e
			return true
		}
	}
}

func (l *socketLink) write(bufs [][]byte, wait bool) (int, error) {
	l.out = l.out[:0]
	for _, b := range bufs {
		l.out = append(l.out, iovec(b))
	}
	l.rest, l.sent, l.wait, l.outErr = l.out, 0, wait, nil
	err := l.raw.Write(l.writeFn)
	clear(l.out)
	l.rest = nil
	if err == nil {
		err = l.outErr
	}
	return l.sent, err
}

// writeSome reports false when the socket is full and the caller wants to wait.
func (l *socketLink) writeSome(fd uintptr) bool {
	for len(l.rest) > 0 {
		n, _, e := unix.Syscall(unix.SYS_WRITEV, fd, uintptr(unsafe.Pointer(&l.rest[0])), uintptr(len(l.rest)))
		switch e {
		case 0:
			l.sent += int(n)
			l.rest = advance(l.rest, int(n))
			if !l.wait {
				return true
			}
		case unix.EAGAIN:
			return !l.wait
		case unix.EINTR:
		default:
			l.outErr = e
			return true
		}
	}
	return true
}

func (l *socketLink) direct() bool                 { return true }
func (l *socketLink) setWriteDeadline(t time.Time) { _ = l.conn.SetWriteDeadline(t) }
func (l *socketLink) close()                       { _ = l.conn.Close() }
func (l *socketLink) abort()                       { _ = l.conn.Close() }

func iovec(p []byte) unix.Iovec {
	v := unix.Iovec{Base: unsafe.SliceData(p)}
	v.SetLen(len(p))
	return v
}

// advance drops the first n bytes of v.
func advance(v []unix.Iovec, n int) []unix.Iovec {
	for len(v) > 0 && n >= int(v[0].Len) {
		n -= int(v[0].Len)
		v = v[1:]
	}
	if n > 0 {
		v[0].Base = (*byte)(unsafe.Add(unsafe.Pointer(v[0].Base), n))
		v[0].SetLen(int(v[0].Len) - n)
	}
	return v
}

// tlsLink is a TLS connection. Replies are gathered so that a bunch of them makes few records.
type tlsLink struct {
	conn *tls.Conn
	out  *bufio.Writer
}

const tlsGather = 64 << 10

func newTLSLink(conn *tls.Conn) *tlsLink {
	return &tlsLink{conn: conn, out: bufio.NewWriterSize(conn, tlsGather)}
}

func (l *tlsLink) read(first, next []byte) (int, error) {
	if len(first) == 0 {
		first = next
	}
	return l.conn.Read(first)
}

func (l *tlsLink) write(bufs [][]byte, wait bool) (int, error) {
	if !wait {
		return 0, errors.New("nbd: tls cannot write without waiting")
	}
	sent := 0
	for _, b := range bufs {
		n, err := l.out.Write(b)
		sent += n
		if err != nil {
			return sent, err
		}
	}
	return sent, l.out.Flush()
}

func (l *tlsLink) direct() bool                 { return false }
func (l *tlsLink) setWriteDeadline(t time.Time) { _ = l.conn.SetWriteDeadline(t) }
func (l *tlsLink) close()                       { _ = l.conn.Close() }
func (l *tlsLink) abort()                       { _ = l.conn.NetConn().Close() }
