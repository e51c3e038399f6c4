package nbd

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"

	"github.com/tandem-storage/tandem/datapath/block"
)

const (
	maxReplyData = 64 << 10 // longest option reply that is read, bytes
	maxReplies   = 64       // to one option

	defaultMinBlock   = 512      // of a server that does not say
	defaultMaxPayload = 32 << 20 // likewise, bytes
)

// serverConn is a connection that is past its handshake.
type serverConn struct {
	conn   *net.UnixConn
	link   link
	export remote
}

// remote is what a server says of an export.
type remote struct {
	size       uint64
	flags      uint16
	minBlock   uint32
	maxPayload int64
}

// errShutdown means that the server is about to end.
var errShutdown = errors.New("nbd: the server is shutting down")

// connect makes a connection and chooses the export. ErrNoExport and ErrNonsense are for good, other errors may pass.
func (d *Device) connect(ctx context.Context) (*serverConn, error) {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	var dialer net.Dialer
	nc, err := dialer.DialContext(ctx, "unix", d.o.Socket)
	if err != nil {
		return nil, err
	}
	conn := nc.(*net.UnixConn)
	c := &serverConn{export: remote{minBlock: defaultMinBlock, maxPayload: defaultMaxPayload}}
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	err = c.export.choose(conn, d.o.Export)
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err == nil {
		c.conn = conn
		c.link, err = newLink(conn)
	}
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	return c, nil
}

// choose is the client's part of the handshake.
func (r *remote) choose(conn io.ReadWriter, export string) error {
	var b [20]byte
	if _, err := io.ReadFull(conn, b[:18]); err != nil {
		return err
	}
	flags := binary.BigEndian.Uint16(b[16:])
	if binary.BigEndian.Uint64(b[:]) != magicServer || binary.BigEndian.Uint64(b[8:]) != magicOption || flags&flagFixedNewstyle == 0 {
		return fmt.Errorf("%w: no greeting of the fixed newstyle", ErrNonsense)
	}
	data := binary.BigEndian.AppendUint32(nil, uint32(len(export)))
	data = append(data, export...)
	data = binary.BigEndian.AppendUint16(data, 1)
	data = binary.BigEndian.AppendUint16(data, infoBlockSize)
	out := binary.BigEndian.AppendUint32(nil, uint32(flags&(flagFixedNewstyle|flagNoZeroes)))
	out = binary.BigEndian.AppendUint64(out, magicOption)
	out = binary.BigEndian.AppendUint32(out, optGo)
	out = binary.BigEndian.AppendUint32(out, uint32(len(data)))
	if _, err := conn.Write(append(out, data...)); err != nil {
		return err
	}
	for range maxReplies {
		if _, err := io.ReadFull(conn, b[:]); err != nil {
			return err
		}
		kind, n := binary.BigEndian.Uint32(b[12:]), binary.BigEndian.Uint32(b[16:])
		if binary.BigEndian.Uint64(b[:]) != magicOptReply || binary.BigEndian.Uint32(b[8:]) != optGo || n > maxReplyData {
			return fmt.Errorf("%w: no reply to the option", ErrNonsense)
		}
		data := make([]byte, n)
		if _, err := io.ReadFull(conn, data); err != nil {
			return err
		}
		if done, err := r.reply(kind, data); done || err != nil {
			return err
		}
	}
	return fmt.Errorf("%w: more than %d replies to an option", ErrNonsense, maxReplies)
}

// reply takes one reply to NBD_OPT_GO; done says that it is the last.
func (r *remote) reply(kind uint32, data []byte) (done bool, err error) {
	switch {
	case kind == repAck:
		if r.flags&flagHasFlags == 0 {
			return true, fmt.Errorf("%w: an export without its size", ErrNonsense)
		}
		return true, nil
	case kind == repInfo:
		d := decoder{b: data}
		switch d.uint16() {
		case infoExport:
			r.size = d.uint64()
			r.flags = d.uint16()
		case infoBlockSize:
			r.minBlock = d.uint32()
			d.uint32() // preferred
			r.maxPayload = int64(d.uint32())
		default:
			return false, nil
		}
		if d.end() != nil {
			return false, fmt.Errorf("%w: malformed information on the export", ErrNonsense)
		}
		return false, nil
	case kind == repErrShutdown:
		return true, errShutdown
	case kind >= 1<<31:
		return true, fmt.Errorf("%w: error %#x %.*q", ErrNoExport, kind, maxErrorText, data)
	}
	return true, fmt.Errorf("%w: reply %#x to an option", ErrNonsense, kind)
}

// check reports whether the export can be a Device.
func (r *remote) check() error {
	switch bs := uint64(r.minBlock); {
	case r.flags&flagReadOnly != 0:
		return fmt.Errorf("%w: it is read-only", block.ErrNotSupported)
	case bs == 0 || bs&(bs-1) != 0 || bs > maxMinBlock || r.maxPayload < int64(bs):
		return fmt.Errorf("%w: its blocks are of %d bytes, with at most %d in a request", block.ErrNotSupported, bs, r.maxPayload)
	case r.size == 0 || r.size > 1<<62 || r.size%uint64(r.blockSize()) != 0:
		return fmt.Errorf("%w: its size of %d bytes is not a multiple of %d", block.ErrNotSupported, r.size, r.blockSize())
	}
	r.maxPayload = min(r.maxPayload, block.MaxIO) &^ int64(r.blockSize()-1)
	if r.maxPayload == 0 {
		return fmt.Errorf("%w: it takes less than %d bytes in a request", block.ErrNotSupported, r.blockSize())
	}
	return nil
}

func (r *remote) blockSize() int { return max(int(r.minBlock), defaultMinBlock) }

// follows reports whether what was submitted to old can be submitted to r.
func (r *remote) follows(old *remote) error {
	if err := r.check(); err != nil {
		return fmt.Errorf("%w: it came back as another one: %w", ErrNoExport, err)
	}
	missing := old.info().Caps &^ r.info().Caps
	if r.size < old.size || r.blockSize() > old.blockSize() || r.maxPayload < old.maxPayload || missing != 0 {
		return fmt.Errorf("%w: it came back as another one: %d bytes, it had %d", ErrNoExport, r.size, old.size)
	}
	return nil
}

// info is what a device of the export can do.
func (r *remote) info() block.Info {
	i := block.Info{Size: int64(r.size), BlockSize: r.blockSize()}
	for _, x := range abilities {
		if r.flags&x.flag != 0 {
			i.Caps |= x.caps
		}
	}
	return i
}
