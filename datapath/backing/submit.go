package backing

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/tandem-storage/tandem/datapath/block"
)

// task is a request on its way: it is done when everything that was counted in
// pending has ended.
type task struct {
	r       *Replica
	req     *block.Request
	bounce  *block.Buffer // aligned stand-in for req.Data
	pending atomic.Int32
	failed  atomic.Pointer[error] // the first error
	parts   [2]op                 // a read or write touches two chunks at most

	sums    sumsMode
	regions [2]*sumRegion // of a read
}

var tasks = sync.Pool{New: func() any { return new(task) }}

// opList is a batch being put together.
type opList struct{ ops []*op }

var opLists = sync.Pool{New: func() any { return &opList{ops: make([]*op, 0, 64)} }}

// Submit implements block.Device.
func (r *Replica) Submit(batch []*block.Request) {
	l := opLists.Get().(*opList)
	for _, req := range batch {
		if !r.gate.enter() {
			req.By.Complete(req, fmt.Errorf("%w: replica %x", block.ErrClosed, r.k.replica))
			continue
		}
		err := req.Check(r.Info())
		if err == nil {
			err = r.Err()
		}
		if err != nil {
			req.By.Complete(req, err)
			r.gate.exit()
			continue
		}
		r.start(l, req)
	}
	r.submit(l)
}

func (r *Replica) submit(l *opList) {
	if len(l.ops) > 0 {
		r.pool.engine.submit(l.ops)
	}
	clear(l.ops)
	l.ops = l.ops[:0]
	opLists.Put(l)
}

// startAll starts requests that the gate has let in.
func (r *Replica) startAll(reqs []*block.Request) {
	l := opLists.Get().(*opList)
	for _, req := range reqs {
		r.start(l, req)
	}
	r.submit(l)
}

// start adds the ops of a well-formed request to l.
func (r *Replica) start(l *opList, req *block.Request) {
	if v := r.snaps.view.Load(); v != nil && req.Op != block.OpRead && req.Op != block.OpFlush {
		if n, ok := v.blocked(r, req); ok {
			r.snaps.hold(n, req)
			return
		}
	}
	t := tasks.Get().(*task)
	t.r, t.req = r, req
	t.pending.Store(1) // for start itself
	if !r.sums.off.Load() && !r.sums.start(t) {
		t.recycle()
		return
	}
	data := req.Data
	switch req.Op {
	case block.OpFlush:
		r.unsynced.each(func(n int64) {
			if c := r.chunk(n); c.stabilise(t) {
				l.ops = append(l.ops, c.batch[0])
			}
		})
		t.drop()
		return
	case block.OpRead, block.OpWrite:
		if uintptr(unsafe.Pointer(unsafe.SliceData(data)))%block.SectorSize != 0 {
			t.bounce = block.NewBuffer(len(data))
			data = t.bounce.Bytes()
			if req.Op == block.OpWrite {
				copy(data, req.Data)
			}
		}
	case block.OpWriteZeroes, block.OpDiscard: // no data
	}
	kind := r.opKind(req)
	for i, off, left := 0, req.Off, req.Len; left > 0; i++ {
		n, in := off/r.chunkSize, off%r.chunkSize
		length := min(left, r.chunkSize-in)
		var part []byte
		if data != nil {
			part, data = data[:length], data[length:]
		}
		off, left = off+length, left-length
		c := r.chunk(n)
		if c == nil && kind == opRead {
			clear(part)
			continue
		}
		if c == nil && kind == opPunch {
			continue
		}
		var o *op
		if i < len(t.parts) {
			o = &t.parts[i]
		} else {
			o = new(op)
		}
		*o = op{kind: kind, off: in, length: length, buf: part, chunk: c, owner: t}
		t.pending.Add(1)
		if c == nil && !r.awaitChunk(n, o) {
			continue
		}
		o.fd = o.chunk.fd
		l.ops = append(l.ops, o)
	}
	t.drop()
}

// opKind is what req does to each chunk that it touches.
func (r *Replica) opKind(req *block.Request) opKind {
	switch {
	case req.Op == block.OpRead:
		return opRead
	case req.Op == block.OpWrite:
		return opWrite
	case r.thick || req.Op == block.OpWriteZeroes && req.Flags&block.NoHole != 0:
		return opZero
	default:
		return opPunch
	}
}

// opDone implements opOwner for the parts.
func (t *task) opDone(o *op, err error) {
	if err != nil {
		t.fail(t.r.classify(o.kind, err))
	}
	if c := o.chunk; c != nil && o.kind != opRead {
		c.written() // also of a part that failed: it may have written something
		if err == nil && t.req.Flags&block.FUA != 0 && c.stabilise(t) {
			t.r.pool.engine.submit(c.batch[:])
		}
	}
	t.drop()
}

// done ends a wait for a sync.
func (t *task) done(err error) {
	if err != nil {
		t.fail(err)
	}
	t.drop()
}

func (t *task) fail(err error) { t.failed.CompareAndSwap(nil, &err) }

// drop uncounts one thing that was pending and ends the request after the last.
func (t *task) drop() {
	if t.pending.Add(-1) > 0 {
		return
	}
	if t.sums == sumsVerify && t.failed.Load() == nil && !t.r.sums.match(t) {
		go t.r.sums.recheck(t) // it waits for the disk
		return
	}
	t.finish()
}

// data is where what was read is.
func (t *task) data() []byte {
	if t.bounce != nil {
		return t.bounce.Bytes()
	}
	return t.req.Data
}

// finish completes the request.
func (t *task) finish() {
	r, req := t.r, t.req
	failed := t.failed.Swap(nil)
	if failed == nil && req.Op != block.OpRead {
		// A sync that failed since this request began may have been the one that it
		// relied on (I25).
		failed = r.failure.Load()
	}
	var err error
	if failed != nil {
		err = &block.RequestError{Op: req.Op, Off: req.Off, Len: req.Len, Err: *failed}
	}
	if t.sums == sumsCovered || t.sums == sumsLoose {
		r.sums.end(t, err)
	}
	if t.bounce != nil {
		if req.Op == block.OpRead && err == nil {
			copy(req.Data, t.bounce.Bytes())
		}
		t.bounce.Release()
	}
	t.recycle()
	req.By.Complete(req, err)
	r.gate.exit()
}

func (t *task) recycle() {
	t.r, t.req, t.bounce, t.sums = nil, nil, nil, sumsNone
	t.parts, t.regions = [2]op{}, [2]*sumRegion{}
	tasks.Put(t)
}

// classify makes the error of a request of what the system said, and faults the
// replica if its data cannot be known any more.
func (r *Replica) classify(k opKind, err error) error {
	switch {
	case k == opRead:
		return fmt.Errorf("%w: %w", block.ErrIO, err)
	case isNoSpace(err):
		return fmt.Errorf("%w: pool %s: %w", block.ErrNoSpace, r.pool.o.Path, err)
	case errors.Is(err, unix.EMFILE), errors.Is(err, unix.ENFILE):
		// A chunk could not be opened: nothing was written.
		return fmt.Errorf("%w: %w; raise the limit of open files", block.ErrIO, err)
	}
	r.fault(err)
	return r.Err()
}

func isNoSpace(err error) bool { return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) }

func noSpace(err error) error {
	if isNoSpace(err) {
		return fmt.Errorf("%w: %w", block.ErrNoSpace, err)
	}
	return err
}
