package block

import "sync"

// waiter is a Request that somebody waits for. It waits on a condition, not on
// a channel, because a pooled channel may not wander between the bubbles of
// testing/synctest.
type waiter struct {
	Request
	batch [1]*Request

	mu   sync.Mutex
	cond sync.Cond
	done bool
	err  error
}

// Complete implements Completer.
func (w *waiter) Complete(_ *Request, err error) {
	w.mu.Lock()
	w.done, w.err = true, err
	w.cond.Signal()
	w.mu.Unlock()
}

func (w *waiter) wait() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	for !w.done {
		w.cond.Wait()
	}
	return w.err
}

var waiters = sync.Pool{New: func() any {
	w := new(waiter)
	w.cond.L = &w.mu
	w.batch[0] = &w.Request
	return w
}}

// Do submits r's fields as one request and waits for its completion; r.By is not used.
func Do(d Device, r Request) error {
	w := waiters.Get().(*waiter)
	w.Request = r
	w.Request.By = w
	d.Submit(w.batch[:])
	err := w.wait()
	w.Request, w.done, w.err = Request{}, false, nil
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
