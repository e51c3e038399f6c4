package nbd

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/tandem-storage/tandem/datapath/block"
)

// sendMost is how many commands the sender takes at once: two pieces of memory each, of at most 1024 in a system call.
const sendMost = 256

// serve exchanges commands and answers on a connection until it is lost, which is no error.
func (d *Device) serve(c *serverConn) error {
	stop := context.AfterFunc(d.ctx, c.link.abort)
	defer stop()
	quit, sender := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(sender)
		if !d.send(c.link, quit) {
			// It may be that the server reads no more, but answers still. It is to hang up when it is through.
			_ = c.conn.CloseWrite()
		}
	}()
	err := d.receive(c.link)
	close(quit)
	c.link.abort()
	<-sender
	d.settle()
	switch {
	case d.ctx.Err() != nil:
		return block.ErrClosed
	case errors.Is(err, ErrNonsense):
		return err
	}
	return nil
}

// settle completes what was answered while the sender had it.
func (d *Device) settle() {
	d.mu.Lock()
	var done []*job
	for p := d.first; p != nil; {
		next := p.next
		p.sending = false
		if p.answered {
			done = append(done, d.endLocked(p, p.err))
		}
		p = next
	}
	d.mu.Unlock()
	for _, j := range done {
		j.complete()
	}
}

// send sends what is due until quit is closed. It reports false if the connection takes no more.
func (d *Device) send(l link, quit <-chan struct{}) bool {
	heads := make([]byte, sendMost*requestHead)
	var pieces []*piece
	var chain [][]byte
	for {
		pieces, chain = d.take(pieces[:0], chain[:0], heads)
		if len(pieces) == 0 {
			select {
			case <-d.wake:
				continue
			case <-quit:
				return true
			}
		}
		if _, err := l.write(chain, true); err != nil {
			return false
		}
		d.taken(pieces)
	}
}

// take makes the next commands ready to be sent.
func (d *Device) take(pieces []*piece, chain [][]byte, heads []byte) ([]*piece, [][]byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for len(pieces) < sendMost && d.unsent != nil {
		p := d.unsent
		d.unsent = p.next
		p.sent = true
		b := heads[:requestHead]
		heads = heads[requestHead:]
		putRequest(b, &p.head)
		chain = append(chain, b)
		if p.head.cmd == cmdWrite {
			p.sending = true
			chain = append(chain, p.data)
		}
		pieces = append(pieces, p)
	}
	return pieces, chain
}

// taken lets go of the memory of commands that were sent.
func (d *Device) taken(pieces []*piece) {
	d.mu.Lock()
	var done []*job
	for _, p := range pieces {
		if p.sending {
			p.sending = false
			if p.answered {
				done = append(done, d.endLocked(p, p.err))
			}
		}
	}
	d.mu.Unlock()
	for _, j := range done {
		j.complete()
	}
}

// receive takes answers until the connection ends, which it tells by an error: ErrNonsense if the server is to blame.
func (d *Device) receive(l link) error {
	buf := block.NewBuffer(recvSize)
	defer buf.Release()
	recv := buf.Bytes()
	r, w := 0, 0 // recv[r:w] is not parsed yet
	for {
		for w-r >= simpleHead {
			p, e, err := d.answer(recv[r : r+simpleHead])
			if err != nil {
				return err
			}
			r += simpleHead
			if p.reads() && e == 0 {
				n := copy(p.data, recv[r:w])
				r += n
				for n < len(p.data) { // straight to where it belongs
					got, err := l.read(p.data[n:], recv)
					if err != nil {
						return err
					}
					k := min(got, len(p.data)-n)
					n += k
					r, w = 0, got-k
				}
			}
			d.answered(p, e)
		}
		w = copy(recv, recv[r:w])
		r = 0
		n, err := l.read(recv[w:], nil)
		if err != nil {
			return err
		}
		w += n
	}
}

// answer finds the command that a simple reply belongs to.
func (d *Device) answer(b []byte) (*piece, errno, error) {
	if m := binary.BigEndian.Uint32(b); m != magicSimple {
		return nil, 0, fmt.Errorf("%w: a reply starts with %#x", ErrNonsense, m)
	}
	e, cookie := errno(binary.BigEndian.Uint32(b[4:])), binary.BigEndian.Uint64(b[8:])
	d.mu.Lock()
	defer d.mu.Unlock()
	index := cookie & (1<<32 - 1)
	if index >= uint64(len(d.table)) || d.table[index] == nil {
		return nil, 0, fmt.Errorf("%w: a reply to no request", ErrNonsense)
	}
	p := d.table[index]
	if p.head.cookie != cookie || !p.sent || p.answered {
		return nil, 0, fmt.Errorf("%w: a reply to no request", ErrNonsense)
	}
	return p, e, nil
}

// answered takes note of an answer.
func (d *Device) answered(p *piece, e errno) {
	err := e.of(p)
	d.mu.Lock()
	if p.sending { // its memory is in use still
		p.answered, p.err = true, err
		d.mu.Unlock()
		return
	}
	j := d.endLocked(p, err)
	d.mu.Unlock()
	j.complete()
}

// of is what a Device says of an error of the server.
func (e errno) of(p *piece) error {
	if e == 0 {
		return nil
	}
	why := block.ErrIO
	switch e {
	case errnoNoSpace:
		why = block.ErrNoSpace
	case errnoInval:
		why = block.ErrInvalid
	case errnoNotSup:
		why = block.ErrNotSupported
	case errnoShutdown:
		why = block.ErrClosed
	default: // EIO and whatever else
	}
	r := p.job.req
	return &block.RequestError{Op: r.Op, Off: int64(p.head.off), Len: int64(p.head.n), Err: fmt.Errorf("%w (the NBD server's error %d)", why, e)}
}

// putRequest encodes h into b.
func putRequest(b []byte, h *header) {
	binary.BigEndian.PutUint32(b, magicRequest)
	binary.BigEndian.PutUint16(b[4:], h.flags)
	binary.BigEndian.PutUint16(b[6:], h.cmd)
	binary.BigEndian.PutUint64(b[8:], h.cookie)
	binary.BigEndian.PutUint64(b[16:], h.off)
	binary.BigEndian.PutUint32(b[24:], h.n)
}
