package nbd

import (
	"encoding/binary"
	"io"
	"math/rand/v2"
	"net"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/tandem-storage/tandem/datapath/block"
	"github.com/tandem-storage/tandem/datapath/block/blocktest"
)

// scriptLink is a link whose client says in and then hangs up. Bytes come and go in pieces of random length.
type scriptLink struct {
	in  []byte
	rng *rand.Rand

	mu  sync.Mutex
	out []byte
}

func (l *scriptLink) read(first, next []byte) (int, error) {
	if len(l.in) == 0 {
		return 0, io.EOF
	}
	most := min(len(l.in), len(first)+len(next))
	n := 1 + l.rng.IntN(most)
	if l.rng.IntN(2) == 0 {
		n = most
	}
	k := copy(first, l.in[:n])
	copy(next, l.in[k:n])
	l.in = l.in[n:]
	return n, nil
}

func (l *scriptLink) write(bufs [][]byte, wait bool) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := 0
	for i, b := range bufs {
		if !wait && (len(l.out)+i)%3 == 0 {
			b = b[:len(b)/2] // the socket is full
		}
		l.out = append(l.out, b...)
		n += len(b)
		if len(b) < len(bufs[i]) {
			break
		}
	}
	return n, nil
}

func (l *scriptLink) direct() bool               { return true }
func (l *scriptLink) setWriteDeadline(time.Time) {}
func (l *scriptLink) close()                     {}
func (l *scriptLink) abort()                     {}

// wantReplies is a second reading of the specification: the requests in b that are owed a reply.
func wantReplies(b []byte) []header {
	var hs []header
	for len(b) >= requestHead && binary.BigEndian.Uint32(b) == magicRequest {
		h := header{
			flags: binary.BigEndian.Uint16(b[4:]), cmd: binary.BigEndian.Uint16(b[6:]), cookie: binary.BigEndian.Uint64(b[8:]),
			off: binary.BigEndian.Uint64(b[16:]), n: binary.BigEndian.Uint32(b[24:]),
		}
		b = b[requestHead:]
		if h.cmd == cmdDisc {
			break
		}
		if h.cmd == cmdWrite {
			if uint64(h.n) > uint64(len(b)) || h.n > maxSkip {
				break
			}
			b = b[h.n:]
		}
		hs = append(hs, h)
	}
	return hs
}

// reply is what a client sees of one.
type reply struct {
	cookie uint64
	err    errno
	data   int // bytes of a read
}

// parseReplies decodes everything the server sent. Simple replies of reads are recognised by the requests.
func parseReplies(t *testing.T, b []byte, structured bool, asked []header) []reply {
	t.Helper()
	var rs []reply
	for len(b) > 0 {
		var r reply
		switch m := binary.BigEndian.Uint32(b); m {
		case magicSimple:
			r = reply{cookie: binary.BigEndian.Uint64(b[8:]), err: errno(binary.BigEndian.Uint32(b[4:]))}
			b = b[simpleHead:]
			i := slices.IndexFunc(asked, func(h header) bool { return h.cookie == r.cookie })
			if i >= 0 && asked[i].cmd == cmdRead {
				if structured {
					t.Fatal("simple reply to a read though structured replies are on")
				}
				if r.err == 0 {
					r.data = int(asked[i].n)
					b = b[r.data:]
				}
			}
		case magicStructured:
			if !structured {
				t.Fatal("structured reply, not negotiated")
			}
			r.cookie = binary.BigEndian.Uint64(b[8:])
			n := binary.BigEndian.Uint32(b[16:])
			p := b[structuredHead : structuredHead+n]
			switch binary.BigEndian.Uint16(b[6:]) {
			case replyError:
				r.err = errno(binary.BigEndian.Uint32(p))
			case replyOffsetData:
				r.data = len(p) - 8
			}
			b = b[structuredHead+n:]
		default:
			t.Fatalf("reply starts with %#x", m)
		}
		rs = append(rs, r)
	}
	return rs
}

func FuzzTransmission(f *testing.F) {
	const size = 1 << 20
	add := func(hs ...header) {
		var b []byte
		for i, h := range hs {
			h.cookie = uint64(i)
			b = appendRequest(b, h)
			if h.cmd == cmdWrite {
				b = append(b, make([]byte, h.n)...)
			}
		}
		f.Add(b, uint64(len(hs)))
	}
	add(header{cmd: cmdRead, n: 4096}, header{cmd: cmdWrite, n: 4096, off: size - 4096}, header{cmd: cmdFlush}, header{cmd: cmdDisc})
	add(header{cmd: cmdTrim, n: size}, header{cmd: cmdWriteZeroes, flags: cmdFlagNoHole | cmdFlagFUA, n: 4096}, header{cmd: cmdBlockStatus, n: 4096})
	add(header{cmd: cmdWrite, n: 100}, header{cmd: cmdWrite, n: 70000}, header{cmd: cmdRead, off: 1 << 63, n: 4096}, header{cmd: cmdRead, n: 1 << 31})
	add(header{cmd: 99, flags: 0xffff, off: ^uint64(0), n: ^uint32(0)}, header{cmd: cmdWrite, n: 131072})
	f.Fuzz(func(t *testing.T, in []byte, seed uint64) {
		asked := wantReplies(in)
		cookies := map[uint64]bool{}
		for _, h := range asked {
			cookies[h.cookie] = true
		}
		l := &scriptLink{in: in, rng: rand.New(rand.NewPCG(seed, 0))}
		structured := seed&1 != 0
		d := blocktest.NewMem(blocktest.MemOptions{Size: size, Async: seed&4 != 0, Seed: seed})
		if err := newSession(l, d, newWindow(defaultRequests, maxBytes), structured, structured && seed&2 != 0).run(); err == nil {
			t.Fatal("the session ended without a reason")
		}
		if len(cookies) < len(asked) {
			return // a client that uses a cookie twice cannot tell its replies apart
		}
		rs := parseReplies(t, l.out, structured, asked)
		if len(rs) != len(asked) {
			t.Fatalf("%d replies to %d requests", len(rs), len(asked))
		}
		for _, h := range asked {
			i := slices.IndexFunc(rs, func(r reply) bool { return r.cookie == h.cookie })
			if i < 0 {
				t.Fatalf("no reply to %+v", h)
			}
			r := rs[i]
			outside := h.off > size || uint64(h.n) > size-h.off
			if r.err == 0 && (outside && h.cmd != cmdFlush || h.cmd > cmdBlockStatus || h.cmd == cmdRead && r.data != int(h.n)) {
				t.Fatalf("success for %+v with %d bytes", h, r.data)
			}
		}
	})
}

// scriptConn is a connection whose client says in and then hangs up.
type scriptConn struct {
	net.Conn
	in, out []byte
}

func (c *scriptConn) Read(p []byte) (int, error) {
	if len(c.in) == 0 {
		return 0, io.EOF
	}
	n := copy(p, c.in)
	c.in = c.in[n:]
	return n, nil
}

func (c *scriptConn) Write(p []byte) (int, error) {
	c.out = append(c.out, p...)
	return len(p), nil
}

func FuzzHandshake(f *testing.F) {
	option := func(opt uint32, data []byte) []byte {
		b := binary.BigEndian.AppendUint64(nil, magicOption)
		b = binary.BigEndian.AppendUint32(b, opt)
		return append(binary.BigEndian.AppendUint32(b, uint32(len(data))), data...)
	}
	flags := []byte{0, 0, 0, 3}
	all := slices.Concat(flags, option(optList, nil), option(optStructuredReply, nil), option(99, []byte("x")), option(optStartTLS, nil),
		option(optListMetaContext, contextData("vol")), option(optSetMetaContext, contextData("vol", "base:", contextAllocation)))
	f.Add(slices.Concat(all, option(optGo, infoData("vol", infoName, infoBlockSize))))
	f.Add(slices.Concat(all, option(optInfo, infoData("vol")), option(optExportName, []byte("vol"))))
	f.Add(slices.Concat(flags, option(optAbort, nil)))
	f.Add(slices.Concat(flags, option(optGo, infoData("gone"))))
	f.Fuzz(func(t *testing.T, in []byte) {
		s := &Server{lg: zap.NewNop(), exports: map[string]*export{}}
		e := &export{srv: s, id: "vol", dev: newMem(false), holders: map[*holder]struct{}{}, done: make(chan struct{})}
		s.exports["vol"] = e
		c := &scriptConn{in: in}
		h := &handshake{srv: s, conn: c, endpoint: &Endpoint{}}
		hold, err := h.run()
		if (err == nil) != (len(e.holders) == 1) || (err == nil) != (hold != nil) {
			t.Fatalf("error %v with %d clients on the export", err, len(e.holders))
		}
		if err == nil && h.allocation() && !h.structured {
			t.Fatal("metadata contexts without structured replies")
		}
	})
}

// loopLink is a client that sends the same bunch of requests again and again.
type loopLink struct {
	scriptLink
	bunch []byte
	pos   int
	left  int // bunches
}

func (l *loopLink) read(first, next []byte) (int, error) {
	if l.pos == 0 {
		if l.left == 0 {
			return 0, io.EOF
		}
		l.left--
	}
	n := copy(first, l.bunch[l.pos:])
	n += copy(next, l.bunch[l.pos+n:])
	l.pos = (l.pos + n) % len(l.bunch)
	return n, nil
}

func (l *loopLink) write(bufs [][]byte, _ bool) (int, error) {
	n := 0
	for _, b := range bufs {
		n += len(b)
	}
	return n, nil
}

// nullDevice completes everything at once.
type nullDevice struct{}

func (nullDevice) Info() block.Info {
	return block.Info{Size: 1 << 30, BlockSize: 4096, Caps: block.CapFlush | block.CapFUA | block.CapDiscard | block.CapWriteZeroes}
}

func (nullDevice) Submit(batch []*block.Request) {
	for _, r := range batch {
		r.By.Complete(r, nil)
	}
}

func (nullDevice) Close() error { return nil }

// bunchOf encodes 32 requests.
func bunchOf(cmd uint16, n uint32) []byte {
	var b []byte
	for i := range 32 {
		b = appendRequest(b, header{cmd: cmd, cookie: uint64(i), off: uint64(i) * uint64(n), n: n})
		if cmd == cmdWrite {
			b = append(b, make([]byte, n)...)
		}
	}
	return b
}

// TestNoGarbage checks that a request costs no memory once the connection is warm.
func TestNoGarbage(t *testing.T) {
	for name, bunch := range map[string][]byte{
		"read": bunchOf(cmdRead, 4096), "small write": bunchOf(cmdWrite, 4096), "large write": bunchOf(cmdWrite, 128<<10), "flush": bunchOf(cmdFlush, 0),
	} {
		const bunches = 1000
		l := &loopLink{bunch: bunch, left: bunches}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_ = newSession(l, nullDevice{}, newWindow(defaultRequests, maxBytes), true, false).run()
		runtime.ReadMemStats(&after)
		if n := after.Mallocs - before.Mallocs; n > 32*bunches/20 {
			t.Errorf("%s: %d allocations for %d requests", name, n, 32*bunches)
		}
	}
}

func BenchmarkSession(b *testing.B) {
	for _, bc := range []struct {
		name string
		cmd  uint16
		n    uint32
	}{{"write-4k", cmdWrite, 4096}, {"read-4k", cmdRead, 4096}, {"write-128k", cmdWrite, 128 << 10}} {
		b.Run(bc.name, func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(int64(bc.n))
			l := &loopLink{bunch: bunchOf(bc.cmd, bc.n), left: b.N/32 + 1}
			_ = newSession(l, nullDevice{}, newWindow(defaultRequests, maxBytes), true, false).run()
		})
	}
}
