package nbd

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/tandem-storage/tandem/datapath/block"
)

// Why a Device has ended. Test with errors.Is.
var (
	// ErrNoExport means that the server refuses the export, or shows another one under its name.
	ErrNoExport = errors.New("nbd: the server refuses the export")
	// ErrNotBack means that the server did not come back in time.
	ErrNotBack = errors.New("nbd: the server did not come back in time")
	// ErrNonsense means that the server said what the protocol does not allow.
	ErrNonsense = errors.New("nbd: the server breaks the protocol")
)

// Pauses of a Device between attempts to connect again, and how long one attempt may take: a server may hold a client in the
// handshake while it does not know yet whether there is going to be an export.
const (
	firstPause     = 5 * time.Millisecond
	longestPause   = time.Second
	connectTimeout = 2 * handshakeTimeout
)

// DialOptions are the choices of Dial.
type DialOptions struct {
	Socket string // of the server: path of a unix socket
	Export string
	// Patience is how long requests wait for a server that is gone before the device ends with ErrNotBack. 0 means for ever.
	Patience time.Duration
	// Logger may be nil.
	Logger *zap.Logger
}

// Device is an export of an NBD server as a block.Device. It uses one connection at a time and survives its loss: it connects
// again, at once and then after pauses that grow to a second, and sends everything again that was not answered, in the order in
// which it was submitted. The submitter sees a pause.
//
// A request that was not answered may have been carried out, and is carried out again then: a write leaves the same, and nobody
// was told anything of a read. That is right as long as nothing of the old connection happens after something of the new one. A
// server that died does nothing any more; one that hangs up has to be through with what it has read, as Server is (see
// session.run). The Device itself never gives a connection up to go on with another one.
//
// It is over for good when the server refuses the export (its attachment has ended), shows another one than before (smaller,
// or able to do less), breaks the protocol, or stays away for longer than Patience: Done is closed, and every request fails,
// now and later.
//
// Discards mean what the server makes of them: zeroes, if it is a Server over a device of this project. AsIs is not supported.
type Device struct {
	o    DialOptions
	lg   *zap.Logger
	info block.Info   // of the first connection
	size atomic.Int64 // as of the last Refresh

	ctx    context.Context
	cancel context.CancelFunc // by Close
	done   chan struct{}      // closed when nothing is served any more
	wake   chan struct{}      // has room for one: there may be something to send

	mu          sync.Mutex
	export      remote // of the first connection, with the size of the last Refresh; later ones can do no less
	err         error  // why nothing is served any more; nil while it is
	first, last *piece
	unsent      *piece // the first one that was not sent on this connection
	table       []*piece
	free        []uint32 // indices of table
	uses        uint32   // counts pieces, so that cookies of one index differ
}

var _ block.Device = (*Device)(nil)

// Dial connects to a server. ctx bounds that alone. An export that is read-only, whose blocks are larger than 64 KiB or whose size
// is no multiple of them is refused with block.ErrNotSupported.
func Dial(ctx context.Context, o DialOptions) (*Device, error) {
	if o.Logger == nil {
		o.Logger = zap.NewNop()
	}
	d := &Device{
		o: o, lg: o.Logger.With(zap.String("attachment", o.Export)),
		done: make(chan struct{}), wake: make(chan struct{}, 1),
	}
	c, err := d.connect(ctx)
	if err == nil {
		if err = c.export.check(); err != nil {
			c.link.abort()
		}
	}
	if err != nil {
		return nil, fmt.Errorf("nbd: export %.64s of %s: %w", o.Export, o.Socket, err)
	}
	d.export, d.info = c.export, c.export.info()
	d.size.Store(d.info.Size)
	d.ctx, d.cancel = context.WithCancel(context.Background())
	go d.run(c)
	return d, nil
}

// Info implements block.Device. It is that of the first connection, but for the size, which Refresh changes.
func (d *Device) Info() block.Info {
	i := d.info
	i.Size = d.size.Load()
	return i
}

// Refresh asks the server for the size of the export, on a connection of its own, and has Info tell it if it is larger. Requests go on meanwhile on the one
// that they are on: whoever serves there is the same, or it is dead. An export that is another one, or refused, is an error and changes
// nothing; its requests find that out by themselves.
func (d *Device) Refresh(ctx context.Context) error {
	c, err := d.connect(ctx)
	if err != nil {
		return fmt.Errorf("nbd: ask for the size of export %.64s of %s: %w", d.o.Export, d.o.Socket, err)
	}
	c.link.abort()
	d.mu.Lock()
	defer d.mu.Unlock()
	switch err := c.export.follows(&d.export); {
	case d.err != nil:
		return d.err
	case err != nil:
		return fmt.Errorf("nbd: the size of export %.64s of %s: %w", d.o.Export, d.o.Socket, err)
	}
	d.export.size = c.export.size
	d.size.Store(int64(c.export.size))
	return nil
}

// Done is closed when no request is served any more: after Close, or because of what Err tells.
func (d *Device) Done() <-chan struct{} { return d.done }

// Err is why the device has ended: ErrNoExport, ErrNotBack or ErrNonsense, wrapped, block.ErrClosed after Close, and nil before.
func (d *Device) Err() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.err
}

// Close implements block.Device. Requests in flight complete with block.ErrClosed; whether they were carried out nobody knows. It
// must not be called from a completer.
func (d *Device) Close() error {
	d.cancel()
	<-d.done
	return nil
}

// job is one request, which takes several commands if it is larger than the server takes or a command can say.
type job struct {
	req   *block.Request
	left  int // pieces without an answer
	err   error
	piece piece // the first one, mostly the only one
}

// piece is one command on its way to the server and back.
type piece struct {
	job        *job
	head       header
	data       []byte // of req
	prev, next *piece
	index      uint32
	sending    bool // the sender is reading data
	sent       bool // on this connection
	answered   bool // while it was being sent
	err        error
}

// reads reports whether the answer has a payload.
func (p *piece) reads() bool { return p.head.cmd == cmdRead }

// largest is the longest range of a command without payload, bytes: a multiple of all block sizes.
const largest = 1 << 30

// Submit implements block.Device.
func (d *Device) Submit(batch []*block.Request) {
	var now []job // those that have no need of the server
	d.mu.Lock()
	for _, r := range batch {
		switch err := d.refuses(r); {
		case err != nil:
			now = append(now, job{req: r, err: err})
		case r.Op == block.OpFlush && d.info.Caps&block.CapFlush == 0: // every completed write is stable
			now = append(now, job{req: r})
		default:
			d.enqueueLocked(r)
		}
	}
	d.mu.Unlock()
	d.rouse()
	for _, j := range now {
		j.req.By.Complete(j.req, j.err)
	}
}

func (d *Device) refuses(r *block.Request) error {
	if d.err != nil {
		return d.err
	}
	if r.Flags&block.AsIs != 0 {
		return &block.RequestError{Op: r.Op, Off: r.Off, Len: r.Len, Err: block.ErrNotSupported}
	}
	return r.Check(d.Info())
}

// rouse tells the sender that there may be something to send.
func (d *Device) rouse() {
	select {
	case d.wake <- struct{}{}:
	default:
	}
}

// enqueueLocked splits a request into commands and puts them behind the others.
func (d *Device) enqueueLocked(r *block.Request) {
	h, most := header{off: uint64(r.Off)}, int64(largest)
	switch r.Op {
	case block.OpRead:
		h.cmd, most = cmdRead, d.export.maxPayload
	case block.OpWrite:
		h.cmd, most = cmdWrite, d.export.maxPayload
	case block.OpWriteZeroes:
		h.cmd = cmdWriteZeroes
		if r.Flags&block.NoHole != 0 {
			h.flags |= cmdFlagNoHole
		}
	case block.OpDiscard:
		h.cmd = cmdTrim
	case block.OpFlush:
		h.cmd = cmdFlush
	}
	if r.Flags&block.FUA != 0 && r.Op != block.OpRead {
		h.flags |= cmdFlagFUA
	}
	j := &job{req: r}
	for left, data := r.Len, r.Data; j.left == 0 || left > 0; j.left++ {
		n := min(left, most)
		h.n = uint32(n)
		p := &j.piece
		if j.left > 0 {
			p = new(piece)
		}
		p.job, p.head = j, h
		if h.cmd == cmdRead || h.cmd == cmdWrite {
			p.data, data = data[:n], data[n:]
		}
		d.appendLocked(p)
		left -= n
		h.off += uint64(n)
	}
}

func (d *Device) appendLocked(p *piece) {
	if k := len(d.free); k > 0 {
		p.index, d.free = d.free[k-1], d.free[:k-1]
		d.table[p.index] = p
	} else {
		p.index = uint32(len(d.table))
		d.table = append(d.table, p)
	}
	d.uses++
	p.head.cookie = uint64(d.uses)<<32 | uint64(p.index)
	p.prev = d.last
	if d.last == nil {
		d.first = p
	} else {
		d.last.next = p
	}
	d.last = p
	if d.unsent == nil {
		d.unsent = p
	}
}

// endLocked takes a piece out, whose answer is err. It returns its job if that is complete now.
func (d *Device) endLocked(p *piece, err error) *job {
	if p.prev == nil {
		d.first = p.next
	} else {
		p.prev.next = p.next
	}
	if p.next == nil {
		d.last = p.prev
	} else {
		p.next.prev = p.prev
	}
	if d.unsent == p {
		d.unsent = p.next
	}
	d.table[p.index] = nil
	d.free = append(d.free, p.index)
	j := p.job
	j.left--
	if j.err == nil {
		j.err = err
	}
	if j.left > 0 {
		return nil
	}
	return j
}

// complete tells the submitter of a job that is complete; nil is none.
func (j *job) complete() {
	if j != nil {
		j.req.By.Complete(j.req, j.err)
	}
}

// run serves one connection after another, until the end.
func (d *Device) run(c *serverConn) {
	var err error
	for err == nil {
		err = d.serve(c)
		if err == nil {
			c, err = d.reconnect()
		}
	}
	d.mu.Lock()
	d.err = err
	var all []*job
	for d.first != nil {
		if j := d.endLocked(d.first, err); j != nil {
			j.err = err
			all = append(all, j)
		}
	}
	d.mu.Unlock()
	if errors.Is(err, block.ErrClosed) {
		d.lg.Debug("nbd device closed")
	} else {
		d.lg.Error("nbd device has ended", zap.Int("failed", len(all)), zap.Error(err))
	}
	for _, j := range all {
		j.complete()
	}
	close(d.done)
}

// reconnect connects again and makes everything that was not answered due to be sent. An error is the end.
func (d *Device) reconnect() (*serverConn, error) {
	ctx := d.ctx
	if d.o.Patience > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, d.o.Patience)
		defer cancel()
	}
	began := time.Now()
	d.lg.Info("nbd server is gone, connecting again")
	for pause := firstPause; ; pause = min(2*pause, longestPause) {
		c, err := d.connect(ctx)
		if err == nil {
			d.mu.Lock()
			err = c.export.follows(&d.export)
			d.mu.Unlock()
			if err != nil {
				c.link.abort()
			}
		}
		switch {
		case err == nil:
			d.lg.Info("nbd server is back", zap.Duration("after", time.Since(began)), zap.Int("again", d.rewind()))
			return c, nil
		case d.ctx.Err() != nil:
			return nil, block.ErrClosed
		case ctx.Err() != nil:
			return nil, fmt.Errorf("%w: not within %v: %w", ErrNotBack, d.o.Patience, err)
		case errors.Is(err, ErrNoExport), errors.Is(err, ErrNonsense):
			return nil, err
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
		}
	}
}

// rewind makes everything due that was not answered, and returns how many commands that are.
func (d *Device) rewind() (n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for p := d.first; p != nil; p = p.next {
		p.sent = false
		n++
	}
	d.unsent = d.first
	return n
}
