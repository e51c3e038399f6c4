package backing

import (
	"os"
	"sync"
)

// maxThreads bounds how many operating system threads a pool's I/O occupies: a
// disk that hangs would otherwise eat threads until the process dies of it.
const maxThreads = 64

// threads is an engine of blocking system calls on a bounded number of
// goroutines. A process does not end before its threads do, so that its file
// locks outlive its I/O without further help.
type threads struct {
	mu struct {
		sync.Mutex
		first, last *op
		workers     int
		idle        int
		closed      bool
	}
	work sync.Cond // on mu
	wg   sync.WaitGroup
}

func newThreads() *threads {
	t := &threads{}
	t.work.L = &t.mu
	return t
}

func (t *threads) submit(ops []*op) {
	t.mu.Lock()
	for _, o := range ops {
		o.next = nil
		if t.mu.last == nil {
			t.mu.first = o
		} else {
			t.mu.last.next = o
		}
		t.mu.last = o
	}
	wake := min(len(ops), t.mu.idle)
	for range min(len(ops)-wake, maxThreads-t.mu.workers) {
		t.mu.workers++
		t.wg.Go(t.loop)
	}
	t.mu.Unlock()
	for range wake {
		t.work.Signal()
	}
}

// idle reports whether nothing is in flight.
func (t *threads) idle() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.mu.first == nil && t.mu.workers == t.mu.idle
}

func (t *threads) loop() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for {
		for t.mu.first == nil {
			if t.mu.closed {
				return
			}
			t.mu.idle++
			t.work.Wait()
			t.mu.idle--
		}
		o := t.mu.first
		if t.mu.first = o.next; t.mu.first == nil {
			t.mu.last = nil
		}
		t.mu.Unlock()
		o.owner.opDone(o, runOp(o))
		t.mu.Lock()
	}
}

func (t *threads) hold(*os.File) (func(), error) { return func() {}, nil }

func (t *threads) close() {
	t.mu.Lock()
	t.mu.closed = true
	t.mu.Unlock()
	t.work.Broadcast()
	t.wg.Wait()
}
