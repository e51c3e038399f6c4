package nbd

import (
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"
)

// client is a bare NBD client that can say anything.
type client struct {
	t          testing.TB
	conn       net.Conn
	cookie     uint64
	structured bool
}

// connect opens a connection to the first endpoint and says nothing.
func connect(t testing.TB, s *Server) *client {
	t.Helper()
	a := s.Addr(0)
	conn, err := net.Dial(a.Network(), a.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(30 * time.Second)) // a test that hangs says where
	return &client{t: t, conn: conn}
}

// dial connects and starts the fixed newstyle.
func dial(t testing.TB, s *Server) *client {
	t.Helper()
	c := connect(t, s)
	c.read(18)
	c.write(binary.BigEndian.AppendUint32(nil, flagFixedNewstyle|flagNoZeroes))
	return c
}

func (c *client) write(p []byte) {
	c.t.Helper()
	if _, err := c.conn.Write(p); err != nil {
		c.t.Fatal(err)
	}
}

func (c *client) read(n int) []byte {
	c.t.Helper()
	p := make([]byte, n)
	if _, err := io.ReadFull(c.conn, p); err != nil {
		c.t.Fatal(err)
	}
	return p
}

// wantEOF expects that the server hangs up without another byte.
func (c *client) wantEOF() {
	c.t.Helper()
	n, err := c.conn.Read(make([]byte, 1))
	if n != 0 || err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		c.t.Fatalf("read %d bytes, error %v; want the end of the connection", n, err)
	}
}

// sendOption sends an option.
func (c *client) sendOption(opt uint32, data []byte) {
	c.t.Helper()
	b := binary.BigEndian.AppendUint64(nil, magicOption)
	b = binary.BigEndian.AppendUint32(b, opt)
	b = binary.BigEndian.AppendUint32(b, uint32(len(data)))
	c.write(append(b, data...))
}

// optionReply reads one reply to opt.
func (c *client) optionReply(opt uint32) (kind uint32, data []byte) {
	c.t.Helper()
	b := c.read(20)
	if m := binary.BigEndian.Uint64(b); m != magicOptReply {
		c.t.Fatalf("option reply starts with %#x", m)
	}
	if o := binary.BigEndian.Uint32(b[8:]); o != opt {
		c.t.Fatalf("reply to option %d, want %d", o, opt)
	}
	return binary.BigEndian.Uint32(b[12:]), c.read(int(binary.BigEndian.Uint32(b[16:])))
}

// option sends an option and returns the final reply's type.
func (c *client) option(opt uint32, data []byte) uint32 {
	c.t.Helper()
	c.sendOption(opt, data)
	for {
		if kind, _ := c.optionReply(opt); kind == repAck || kind >= 1<<31 {
			return kind
		}
	}
}

// infoData is the data of NBD_OPT_INFO and NBD_OPT_GO.
func infoData(name string, wants ...uint16) []byte {
	b := binary.BigEndian.AppendUint32(nil, uint32(len(name)))
	b = append(b, name...)
	b = binary.BigEndian.AppendUint16(b, uint16(len(wants)))
	for _, w := range wants {
		b = binary.BigEndian.AppendUint16(b, w)
	}
	return b
}

// contextData is the data of the two META_CONTEXT options.
func contextData(name string, queries ...string) []byte {
	b := binary.BigEndian.AppendUint32(nil, uint32(len(name)))
	b = append(b, name...)
	b = binary.BigEndian.AppendUint32(b, uint32(len(queries)))
	for _, q := range queries {
		b = binary.BigEndian.AppendUint32(b, uint32(len(q)))
		b = append(b, q...)
	}
	return b
}

// goExport enters the transmission phase.
func (c *client) goExport(name string) {
	c.t.Helper()
	if kind := c.option(optGo, infoData(name, infoBlockSize)); kind != repAck {
		c.t.Fatalf("go: reply %#x", kind)
	}
}

// useStructured negotiates structured replies.
func (c *client) useStructured() {
	c.t.Helper()
	if kind := c.option(optStructuredReply, nil); kind != repAck {
		c.t.Fatalf("structured replies: reply %#x", kind)
	}
	c.structured = true
}

// upgrade starts TLS.
func (c *client) upgrade(conf *tls.Config) error {
	c.t.Helper()
	if kind := c.option(optStartTLS, nil); kind != repAck {
		c.t.Fatalf("starttls: reply %#x", kind)
	}
	conn := tls.Client(c.conn, conf)
	c.conn = conn
	return conn.Handshake()
}

// appendRequest encodes a request.
func appendRequest(b []byte, h header) []byte {
	b = binary.BigEndian.AppendUint32(b, magicRequest)
	b = binary.BigEndian.AppendUint16(b, h.flags)
	b = binary.BigEndian.AppendUint16(b, h.cmd)
	b = binary.BigEndian.AppendUint64(b, h.cookie)
	b = binary.BigEndian.AppendUint64(b, h.off)
	return binary.BigEndian.AppendUint32(b, h.n)
}

// request sends a request with a new cookie.
func (c *client) request(cmd, flags uint16, off uint64, n uint32, payload []byte) {
	c.t.Helper()
	c.cookie++
	b := appendRequest(nil, header{flags: flags, cmd: cmd, cookie: c.cookie, off: off, n: n})
	c.write(append(b, payload...))
}

// wantSimple expects a simple reply to the last request.
func (c *client) wantSimple(want errno) {
	c.t.Helper()
	b := c.read(simpleHead)
	if m := binary.BigEndian.Uint32(b); m != magicSimple {
		c.t.Fatalf("reply starts with %#x, want a simple one", m)
	}
	if e := errno(binary.BigEndian.Uint32(b[4:])); e != want {
		c.t.Fatalf("reply has error %d, want %d", e, want)
	}
	if k := binary.BigEndian.Uint64(b[8:]); k != c.cookie {
		c.t.Fatalf("reply to %d, want %d", k, c.cookie)
	}
}

// chunk expects a structured reply's only chunk to the last request and returns its payload.
func (c *client) chunk(kind uint16) []byte {
	c.t.Helper()
	b := c.read(structuredHead)
	if m := binary.BigEndian.Uint32(b); m != magicStructured {
		c.t.Fatalf("reply starts with %#x, want a structured one", m)
	}
	if f, k := binary.BigEndian.Uint16(b[4:]), binary.BigEndian.Uint16(b[6:]); f != replyFlagDone || k != kind {
		c.t.Fatalf("chunk of flags %#x, type %#x; want type %#x, done", f, k, kind)
	}
	if k := binary.BigEndian.Uint64(b[8:]); k != c.cookie {
		c.t.Fatalf("reply to %d, want %d", k, c.cookie)
	}
	return c.read(int(binary.BigEndian.Uint32(b[16:])))
}

// wantError expects an error as reply to the last request, in the negotiated form.
func (c *client) wantError(want errno) {
	c.t.Helper()
	if !c.structured {
		c.wantSimple(want)
		return
	}
	p := c.chunk(replyError)
	if e := errno(binary.BigEndian.Uint32(p)); e != want {
		c.t.Fatalf("reply has error %d (%s), want %d", e, p[6:], want)
	}
	if n := int(binary.BigEndian.Uint16(p[4:])); n == 0 || n != len(p)-6 {
		c.t.Fatalf("error text of %d bytes in a payload of %d", n, len(p))
	}
}

// wantRead expects n bytes of data as reply to the last request.
func (c *client) wantRead(n int) []byte {
	c.t.Helper()
	if !c.structured {
		c.wantSimple(0)
		return c.read(n)
	}
	p := c.chunk(replyOffsetData)
	if len(p) != 8+n {
		c.t.Fatalf("data chunk of %d bytes, want %d", len(p), 8+n)
	}
	return p[8:]
}
