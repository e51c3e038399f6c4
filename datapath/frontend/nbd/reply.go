package nbd

// completed queues q's reply. It does not block.
func (s *session) completed(q *request) {
	s.mu.Lock()
	s.inDevice--
	s.queue = append(s.queue, q)
	mine := !s.corked && !s.writing
	s.writing = s.writing || mine
	last := s.inDevice == 0
	s.mu.Unlock()
	switch {
	case !mine:
	case last:
		s.send(false)
	default:
		// More completions are due: the writer goroutine finds them together.
		s.wake <- struct{}{}
	}
}

// send writes queued replies. The caller has the writing side; send gives it up
// when the queue is empty. Without wait it makes one attempt, which does not
// block, and leaves what remains to the writer goroutine.
func (s *session) send(wait bool) {
	if !wait && !s.link.direct() {
		s.wake <- struct{}{} // never blocks: there is one writing side to hand over
		return
	}
	for round := 0; len(s.chain) > 0 || s.advance(); round++ {
		if round > 0 && !wait {
			s.wake <- struct{}{}
			return
		}
		n, err := s.link.write(s.chain, wait)
		if err != nil {
			s.abort()
			s.chain = s.chain[:0]
		}
		s.chain = drop(s.chain, n)
		if len(s.chain) > 0 {
			s.wake <- struct{}{}
			return
		}
	}
}

// advance frees the requests whose replies were sent and takes the queue for
// sending. If there is none it gives up the writing side and reports false.
func (s *session) advance() bool {
	cost := int64(0)
	for _, q := range s.sending {
		cost += q.cost
		q.reset()
	}
	sent := int64(len(s.sending))
	s.mu.Lock()
	if sent > 0 {
		s.free = append(s.free, s.sending...)
		clear(s.sending)
		s.changed.Signal() // the reader is the only one to wait
	}
	s.sending, s.queue = s.queue, s.sending[:0]
	s.writing = len(s.sending) > 0
	more := s.writing
	s.mu.Unlock()
	if sent > 0 {
		s.share.leave(sent, cost)
	}
	if !more {
		return false
	}

	s.chain = s.chainStore[:0]
	for _, q := range s.sending {
		s.chain = append(s.chain, q.head[:q.headLen])
		if len(q.payload) > 0 {
			s.chain = append(s.chain, q.payload)
		}
	}
	s.chainStore = s.chain[:0]
	return true
}

// drop removes the first n bytes of bufs.
func drop(bufs [][]byte, n int) [][]byte {
	for len(bufs) > 0 && n >= len(bufs[0]) {
		n -= len(bufs[0])
		bufs = bufs[1:]
	}
	if n > 0 {
		bufs[0] = bufs[0][n:]
	}
	return bufs
}
