package volume

import (
	"context"
	"errors"
	"slices"
	"sync"

	"github.com/tandem-storage/tandem/replication"
	"github.com/tandem-storage/tandem/replication/core"
	"github.com/tandem-storage/tandem/replication/transport"
	"github.com/tandem-storage/tandem/replication/wire"
)

// maxBatchBytes bounds the payload that is handed to the transport at once.
const maxBatchBytes = 1 << 20

// sender sends messages on a connection without blocking whoever has them: at
// once if the connection is idle, because starting a goroutine takes longer than
// sending, and from a goroutine of its own otherwise, in batches, which ends when nothing is
// left that may go out. Payload goes out as far as the credit that the receiver gave allows.
type sender struct {
	conn transport.Conn

	mu      sync.Mutex
	queue   []replication.Message
	credit  int64
	limit   int64 // the most that credit can be
	sending bool  // somebody is in conn.Send, or will be
	closed  bool
	err     error // why it was closed
}

// unlimited credit: answers are bounded by the requests that they answer.
const unlimited = int64(1) << 62

func newSender(c transport.Conn, credit int64) *sender {
	return &sender{conn: c, credit: credit, limit: credit}
}

// put sends a batch or queues it, and takes over a reference of each message's
// Buf. It does not block.
func (s *sender) put(batch []replication.Message) {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		for i := range batch {
			releaseBuf(&batch[i])
		}
		return
	}
	if s.nowLocked(batch) {
		s.mu.Unlock()
		s.sent(s.conn.Send(batch))
		return
	}
	for i := range batch {
		m := batch[i]
		if m.Sums == nil && len(m.Data) > 0 {
			m.Sums = sumsOf(nil, m.Data)
		} else {
			m.Sums = slices.Clone(m.Sums) // the request may be over before it is sent
		}
		s.queue = append(s.queue, m)
	}
	s.startLocked() // or whoever is in conn.Send looks at the queue next
	s.mu.Unlock()
}

// nowLocked reports whether the caller is to send batch at once.
func (s *sender) nowLocked(batch []replication.Message) bool {
	if s.sending || len(s.queue) > 0 {
		return false
	}
	size, data := 0, 0
	for i := range batch {
		size += wire.HeadLen(&batch[i]) + len(batch[i].Data)
		data += len(batch[i].Data)
	}
	if size > transport.IdleLen || data > 0 && s.credit < int64(data) || !s.conn.Idle() {
		return false
	}
	s.credit -= int64(data)
	s.sending = true
	return true
}

// sent ends a Send.
func (s *sender) sent(err error) {
	s.mu.Lock()
	s.sending = false
	if err == nil {
		s.startLocked()
	}
	s.mu.Unlock()
	if err != nil {
		s.close(err)
	}
}

// startLocked has a goroutine send what may go out, unless somebody sends.
func (s *sender) startLocked() {
	if !s.sending && s.mayLocked() {
		s.sending = true
		go s.run()
	}
}

// mayLocked reports whether any of the queue may go out.
func (s *sender) mayLocked() bool {
	return !s.closed && len(s.queue) > 0 && (s.credit > 0 || len(s.queue[0].Data) == 0)
}

// addCredit lets n more payload bytes go out, as many as the receiver has room for
// at most.
func (s *sender) addCredit(n int64) {
	if n == 0 {
		return
	}
	s.mu.Lock()
	s.credit = min(s.credit+n, s.limit)
	s.startLocked()
	s.mu.Unlock()
}

// run sends until nothing may go out, the connection fails or close is called.
func (s *sender) run() {
	var batch []replication.Message
	for {
		if batch = s.take(batch[:0]); len(batch) == 0 {
			return
		}
		if err := s.conn.Send(batch); err != nil {
			s.sent(err)
			return
		}
	}
}

// take takes messages that may go out off the queue; if there are none nobody sends any more.
func (s *sender) take(batch []replication.Message) []replication.Message {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.sending = s.mayLocked(); !s.sending {
		return batch
	}
	n, size := 0, 0
	for n < len(s.queue) && size < maxBatchBytes {
		d := len(s.queue[n].Data)
		if d > 0 && s.credit <= 0 {
			break
		}
		s.credit -= int64(d)
		size += d
		n++
	}
	batch = append(batch, s.queue[:n]...)
	s.queue = slices.Delete(s.queue, 0, n)
	return batch
}

// close ends the connection because of err and drops what was not sent. It
// returns the reason of the first close.
func (s *sender) close(err error) error {
	s.mu.Lock()
	q := s.queue
	was := s.closed
	s.queue, s.closed = nil, true
	if !was {
		s.err = err
	}
	err = s.err
	s.mu.Unlock()
	for i := range q {
		releaseBuf(&q[i])
	}
	if !was {
		// The other end learns it from the connection; there is nobody to tell of a failure to close it.
		_ = s.conn.Close()
	}
	return err
}

// remoteLink is a volume's session with a replica on another node.
type remoteLink struct {
	*sender
}

// send implements sessionLink.
func (l *remoteLink) send(batch []replication.Message) { l.put(batch) }

// end implements sessionLink.
func (l *remoteLink) end() { l.close(errEnded) }

// errEnded is the reason of a session that this side gave up.
var errEnded = errors.New("ended by the coordinator")

// connectRemote opens a session with a replica on another node, serves its
// answers, and returns when it has ended, with ctx at the latest.
func (v *Volume) connectRemote(ctx context.Context, node replication.NodeID, s core.Session) {
	var err error
	defer func() {
		if v.ctx.Err() != nil || errors.Is(err, errEnded) {
			err = nil // as it was meant
		}
		v.post(volumeInput{kind: inSessionDown, member: s.To, sess: s.ID, err: err})
	}()
	p, err := v.m.o.Peers.Peer(node)
	if err != nil {
		return
	}
	conn, err := p.Session(ctx)
	if err != nil {
		return
	}
	l := &remoteLink{sender: newSender(conn, unlimited)}
	defer func() { err = l.close(err) }()
	stop := context.AfterFunc(ctx, func() { l.close(context.Cause(ctx)) })
	defer stop()
	hello := replication.Message{Type: replication.MsgHello, Session: s.ID, Term: s.Term}
	fillHello(&hello, s.Hello)
	l.put([]replication.Message{hello})
	var ins []volumeInput
	for {
		var msgs []replication.Message
		if msgs, err = conn.Recv(); err != nil {
			return
		}
		var credit int64
		ins = ins[:0]
		for i := range msgs {
			m := &msgs[i]
			if m.Type == replication.MsgHelloAck {
				if ack, err := helloAck(m); err == nil {
					l.setCredit(int64(ack.Credit))
				}
			} else {
				credit += int64(m.Credit)
			}
			if m.Type == replication.MsgNack && m.Seq == 0 {
				l.close(refusedWith(m.Status))
			}
			ins = append(ins, v.sessionInput(s.To, s.ID, l, m))
		}
		l.addCredit(credit)
		v.post(ins...)
		clear(ins)
	}
}

func (s *sender) setCredit(n int64) {
	s.mu.Lock()
	s.credit, s.limit = n, n
	s.startLocked()
	s.mu.Unlock()
}

// connReply is a replica's end of a session with a coordinator on another node.
type connReply struct {
	*sender
	version wire.Agreed
}

// agreed implements replyTo.
func (c connReply) agreed() wire.Agreed { return c.version }

// reply implements replyTo.
func (c connReply) reply(batch []replication.Message) { c.put(batch) }

// end implements replyTo.
func (c connReply) end() { c.close(nil) }

// serve runs one session of the replica over conn until it ends.
func (h *host) serve(ctx context.Context, conn transport.Conn, first []replication.Message) {
	c := connReply{sender: newSender(conn, unlimited)}
	id := h.newConn()
	defer func() {
		c.end()
		h.post(hostInput{kind: hostConnClosed, conn: id})
	}()
	stop := context.AfterFunc(ctx, c.end)
	defer stop()
	var ins []hostInput
	for msgs := first; ; {
		ins = ins[:0]
		for i := range msgs {
			m := &msgs[i]
			if m.Type != replication.MsgHello {
				ins = append(ins, hostInput{kind: hostMessage, conn: id, msg: *m})
				continue
			}
			hello, agreed, err := helloOf(m)
			releaseBuf(m)
			if err != nil {
				for k := range msgs {
					releaseBuf(&msgs[k]) // those before it were not handed over yet
				}
				return
			}
			ins = append(ins, hostInput{kind: hostHello, conn: id, to: connReply{c.sender, agreed}, hello: hello, msg: *m})
		}
		h.post(ins...)
		clear(ins)
		var err error
		if msgs, err = conn.Recv(); err != nil {
			return
		}
	}
}
