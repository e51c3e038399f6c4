package nbd

import (
	"errors"
	"runtime"
	"sync"
	"time"

	"github.com/tandem-storage/tandem/datapath/block"
)

const (
	maxPayload   = block.MaxIO // longest read or write, bytes; advertised
	maxSkip      = 32 << 20    // longest write that is refused without dropping the connection, bytes
	recvSize     = 256 << 10   // receive buffer, bytes
	largePayload = 64 << 10    // from here on a payload is expected to be followed by another like it
	largeAhead   = 4 << 10     // what is read beyond such a payload, bytes

	drainTimeout = 10 * time.Second // for a client to take its last replies
)

// session is the transmission phase of one connection.
//
// The reader goroutine is the one that calls run. Requests go round: spare (the
// reader's), the device, queue, being written, free.
type session struct {
	link       link
	dev        block.Device
	structured bool // structured replies were negotiated
	allocation bool // base:allocation was selected

	// The reader's.
	info     block.Info
	recv     []byte
	r, w     int // recv[r:w] is not parsed yet
	ahead    int // how many bytes to read at once
	spare    []*request
	batch    []*block.Request
	answered []*request // by the reader itself

	share   *share        // of the export's window
	aborted chan struct{} // closed when broken is set

	mu       sync.Mutex
	changed  sync.Cond // a request became free
	made     int       // requests in existence
	free     []*request
	inDevice int
	queue    []*request // replies to be written
	corked   bool       // the reader is submitting and will write the queue itself
	writing  bool       // somebody has the writing side
	broken   bool       // the stream is of no use any more: replies are dropped

	// Of whoever has the writing side.
	sending    []*request
	chain      [][]byte // of sending, what is not sent yet
	chainStore [][]byte // chain's memory

	wake chan struct{} // hands the writing side to the writer goroutine
}

func newSession(l link, dev block.Device, w *window, structured, allocation bool) *session {
	s := &session{
		link: l, dev: dev, structured: structured, allocation: allocation,
		ahead: recvSize, share: w.share(), aborted: make(chan struct{}),
		wake: make(chan struct{}, 1),
	}
	s.changed.L = &s.mu
	return s
}

// errDisconnect says that the client has taken its leave.
var errDisconnect = errors.New("nbd: client has disconnected")

// run serves the client until the stream ends, the client takes its leave or
// breaks the protocol, and returns why. Then every request has completed, every
// reply that the client took is sent, and the link is closed.
func (s *session) run() error {
	buf := block.NewBuffer(recvSize)
	s.recv = buf.Bytes()
	writer := make(chan struct{})
	go func() {
		defer close(writer)
		for range s.wake {
			// What is about to complete on this processor goes into the same write.
			runtime.Gosched()
			s.send(true)
		}
	}()

	err := s.receive()
	s.submit()
	s.link.setWriteDeadline(time.Now().Add(drainTimeout))
	s.drain()
	close(s.wake)
	<-writer
	s.link.close()
	s.recv = nil
	buf.Release()
	return err
}

// abort drops the client at once. The device's completions are awaited by run, replies are not sent.
func (s *session) abort() {
	s.mu.Lock()
	if !s.broken {
		s.broken = true
		close(s.aborted)
	}
	s.mu.Unlock()
	s.link.abort()
}

// drain waits until every request is free.
func (s *session) drain() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.free)+len(s.spare) < s.made {
		s.changed.Wait()
	}
}

// take returns a request for a command with n bytes of payload, or nil if the
// stream is broken. While the window is full it waits, with everything submitted.
func (s *session) take(n int64) *request {
	if !s.share.enter(n) {
		s.submit()
		if !s.share.await(n, s.aborted) {
			return nil
		}
	}
	if len(s.spare) == 0 {
		s.refill()
	}
	q := s.spare[len(s.spare)-1]
	s.spare = s.spare[:len(s.spare)-1]
	q.cost = n
	return q
}

// refill gets spare requests: those that became free, or a new one; the window bounds how many there are.
func (s *session) refill() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.free) > 0 {
		s.spare = append(s.spare, s.free...)
		clear(s.free)
		s.free = s.free[:0]
		return
	}
	s.made++
	q := &request{s: s}
	q.reset()
	s.spare = append(s.spare, q)
}

// dropBatch frees the requests of a client that is gone and was told nothing of them.
func (s *session) dropBatch() {
	for _, r := range s.batch {
		s.putBack(r.By.(*request))
	}
	clear(s.batch)
	s.batch = s.batch[:0]
}

// submit gives the batch to the device and writes the replies that this and the
// reader itself have brought about.
func (s *session) submit() {
	if len(s.batch) == 0 && len(s.answered) == 0 {
		return
	}
	s.mu.Lock()
	if s.broken {
		s.dropBatch()
	}
	s.inDevice += len(s.batch)
	s.queue = append(s.queue, s.answered...)
	s.corked = true
	s.mu.Unlock()
	clear(s.answered)
	s.answered = s.answered[:0]

	if len(s.batch) > 0 {
		s.dev.Submit(s.batch)
		clear(s.batch)
		s.batch = s.batch[:0]
	}

	s.mu.Lock()
	s.corked = false
	mine := len(s.queue) > 0 && !s.writing
	if mine {
		s.writing = true
	}
	s.mu.Unlock()
	if mine {
		s.send(false)
	}
}
