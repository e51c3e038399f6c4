package block

import "sync"

// waiter is a Request that somebody waits for.
type waiter struct {
	Request
	batch [1]*Request
	done  chan error
}

// Complete implements Completer.
func (w *waiter) Complete(_ *Request, err error) { w.done <- err }

var waiters = sync.Pool{New: func() any { return &waiter{done: make(chan error, 1)} }}

// Do submits r's fields as one request and waits for its completion; r.By is not used.
func Do(d Device, r Request) error {
	w := waiters.Get().(*waiter)
	w.Request = r
	w.Request.By = w
	w.batch[0] = &w.Request
	d.Submit(w.batch[:])
	err := <-w.done
	w.Request = Request{}
	waiters.Put(w)
	return err
}

// ReadAt fills p from off, in pieces of at most MaxIO.
func ReadAt(d Device, p []byte, off int64) error { return rw(d, OpRead, p, off, 0) }

// WriteAt stores p at off, in pieces of at most MaxIO. On error any part may be written.
func WriteAt(d Device, p []byte, off int64, f Flags) error { return rw(d, OpWrite, p, off, f) }

func rw(d Device, op Op, p []byte, off int64, f Flags) error {
	for {
		n := min(len(p), MaxIO)
		if err := Do(d, Request{Op: op, Flags: f, Off: off, Len: int64(n), Data: p[:n]}); err != nil {
			return err
		}
		p, off = p[n:], off+int64(n)
		if len(p) == 0 {
			return nil
		}
	}
}

// WriteZeroes makes [off, off+length) read as zeroes.
func WriteZeroes(d Device, off, length int64, f Flags) error {
	return Do(d, Request{Op: OpWriteZeroes, Flags: f, Off: off, Len: length})
}

// Discard makes [off, off+length) read as zeroes and gives its space back.
func Discard(d Device, off, length int64) error {
	return Do(d, Request{Op: OpDiscard, Off: off, Len: length})
}

// Flush returns when every write completed before the call is stable.
func Flush(d Device) error { return Do(d, Request{Op: OpFlush}) }
