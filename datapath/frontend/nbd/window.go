package nbd

import (
	"slices"
	"sync"
	"sync/atomic"
)

// window bounds what all clients of one export have, together, between the
// reading of a request and the writing of its reply: a number of requests, and
// bytes of payload. A session that it has no room for waits in a queue, and does
// not read meanwhile.
//
// A session that has nothing in the window is let in whatever there is, with one
// request. So a client that takes no replies slows the others down and does not
// stop them, and the export has at most one request for each connection more
// than the bound.
type window struct {
	maxRequests, maxBytes int64

	used    atomic.Int64 // requests and bytes, see requestUnit
	waiters atomic.Int32 // len(queue)

	mu    sync.Mutex
	queue []*share // who waits, in the order of coming
}

// requestUnit is what a request adds to window.used; below it are the bytes.
const requestUnit = 1 << 40

// share is one session's part of a window.
type share struct {
	w       *window
	held    atomic.Int64  // requests in the window
	want    int64         // of a session in the queue: what it waits for, as it is added to used
	granted chan struct{} // takes one token when the session was let in from the queue
}

func newWindow(maxRequests, maxBytes int64) *window {
	return &window{maxRequests: maxRequests, maxBytes: maxBytes}
}

func (w *window) share() *share { return &share{w: w, granted: make(chan struct{}, 1)} }

// fits adds n to what is used, if there is room for it.
func (w *window) fits(n int64) bool {
	for {
		old := w.used.Load()
		sum := old + n
		if sum/requestUnit > w.maxRequests || sum%requestUnit > w.maxBytes {
			return false
		}
		if w.used.CompareAndSwap(old, sum) {
			return true
		}
	}
}

// enter lets in one request with n bytes of payload, or reports false if there is no
// room, or others wait for it already.
func (s *share) enter(n int64) bool {
	if s.w.waiters.Load() > 0 || !s.w.fits(requestUnit+n) {
		return false
	}
	s.held.Add(1)
	return true
}

// await is enter for a session that may wait: it returns true when the request was let in, and false
// when quit was closed first.
func (s *share) await(n int64, quit <-chan struct{}) bool {
	w := s.w
	w.mu.Lock()
	s.want = requestUnit + n
	w.queue = append(w.queue, s)
	w.waiters.Store(int32(len(w.queue))) // before looking: whoever leaves from here on looks too
	w.grant()
	w.mu.Unlock()
	select {
	case <-s.granted:
		return true
	case <-quit:
	}
	w.mu.Lock()
	if i := slices.Index(w.queue, s); i >= 0 {
		w.drop(i)
		w.grant() // it may have been in the way of another
	}
	w.mu.Unlock()
	select {
	case <-s.granted:
		s.leave(1, n)
	default:
	}
	return false
}

// leave takes requests with so many bytes of payload out.
func (s *share) leave(requests, bytes int64) {
	s.held.Add(-requests)
	s.w.used.Add(-requests*requestUnit - bytes)
	if s.w.waiters.Load() > 0 {
		s.w.mu.Lock()
		s.w.grant()
		s.w.mu.Unlock()
	}
}

// grant lets in who waits: those who have nothing in the window, and from the head of the queue
// as many as there is room for. The caller has mu.
func (w *window) grant() {
	for i := 0; i < len(w.queue); {
		s := w.queue[i]
		switch {
		case s.held.Load() == 0:
			w.used.Add(s.want)
		case i > 0 || !w.fits(s.want):
			i++
			continue
		}
		s.held.Add(1)
		w.drop(i)
		s.granted <- struct{}{} // has room: a session waits for one request at a time
	}
}

// drop takes the i-th out of the queue.
func (w *window) drop(i int) {
	w.queue = slices.Delete(w.queue, i, i+1)
	w.waiters.Store(int32(len(w.queue)))
}
