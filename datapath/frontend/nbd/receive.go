package nbd

import (
	"errors"
	"fmt"

	"github.com/tandem-storage/tandem/datapath/block"
)

// errProtocol means that the client broke the protocol in a way that leaves nothing but to drop it.
var errProtocol = errors.New("nbd: protocol violation")

// receive reads and submits requests until the stream or the client's part in it ends.
func (s *session) receive() error {
	for {
		s.info = s.dev.Info()
		for s.w-s.r >= requestHead {
			h, ok := parseHeader(s.recv[s.r:])
			if !ok {
				return fmt.Errorf("%w: request without the magic number", errProtocol)
			}
			s.r += requestHead
			if err := s.accept(&h); err != nil {
				return err
			}
		}
		s.submit()
		if err := s.fill(); err != nil {
			return err
		}
	}
}

// fill waits for more bytes. Less than a header is left unparsed.
func (s *session) fill() error {
	s.w = copy(s.recv, s.recv[s.r:s.w])
	s.r = 0
	n, err := s.link.read(s.recv[s.w:s.ahead], nil)
	s.w += n
	return err
}

// accept takes one request: it is added to the batch or answered.
func (s *session) accept(h *header) error {
	s.ahead = recvSize
	if h.cmd == cmdDisc {
		return errDisconnect
	}
	c, refusal := s.vet(h)
	n := int64(0) // bytes of memory
	switch {
	case refusal != nil && h.cmd == cmdWrite:
		if err := s.skip(h); err != nil {
			return err
		}
	case refusal == nil && (h.cmd == cmdRead || h.cmd == cmdWrite):
		n = int64(h.n)
	}
	q := s.take(n)
	if q == nil {
		return errDisconnect
	}
	q.cookie = h.cookie
	switch {
	case refusal != nil:
		q.fail(refusal.errno, refusal.text)
		s.answered = append(s.answered, q)
		return nil
	case h.cmd == cmdBlockStatus:
		q.succeedStatus(h.n)
		s.answered = append(s.answered, q)
		return nil
	}
	q.Op, q.Flags = c.op, c.flags
	q.Off, q.Len = int64(h.off), int64(h.n)
	if n > 0 {
		q.withBuffer(int(n))
	}
	q.read = h.cmd == cmdRead
	if h.cmd == cmdWrite {
		if err := s.payload(q.Data); err != nil {
			s.putBack(q)
			return err
		}
	}
	s.batch = append(s.batch, &q.Request)
	return nil
}

// payload fills p with the bytes that follow a write's header. Those that have
// not arrived yet are read straight into p; meanwhile nothing waits for them.
func (s *session) payload(p []byte) error {
	if len(p) >= largePayload {
		s.ahead = largeAhead
	}
	n := copy(p, s.recv[s.r:s.w])
	s.r += n
	if n < len(p) {
		s.submit()
	}
	for n < len(p) {
		got, err := s.link.read(p[n:], s.recv[:s.ahead])
		if err != nil {
			return err
		}
		k := min(got, len(p)-n)
		n += k
		s.r, s.w = 0, got-k
	}
	return nil
}

// skip passes over the payload of a write that is refused.
func (s *session) skip(h *header) error {
	if h.n > maxSkip {
		return fmt.Errorf("%w: write of %d bytes, at most %d are accepted", errProtocol, h.n, maxPayload)
	}
	n := int(h.n)
	k := min(n, s.w-s.r)
	s.r += k
	if n -= k; n > 0 {
		s.submit()
	}
	for n > 0 {
		got, err := s.link.read(s.recv, nil)
		if err != nil {
			return err
		}
		k := min(got, n)
		n -= k
		s.r, s.w = k, got
	}
	return nil
}

// putBack frees a request that was taken but not used.
func (s *session) putBack(q *request) {
	s.share.leave(1, q.cost)
	q.reset()
	s.spare = append(s.spare, q)
}

// command is what a request means for the device.
type command struct {
	op      block.Op
	flags   block.Flags
	allowed uint16 // command flags
	caps    block.Caps
}

// commands has what every command asks of the device. FUA is allowed with all of
// them, as the specification demands, and means something where data are written.
var commands = [...]command{
	cmdRead:        {op: block.OpRead, allowed: cmdFlagDF},
	cmdWrite:       {op: block.OpWrite},
	cmdFlush:       {op: block.OpFlush},
	cmdTrim:        {op: block.OpDiscard, caps: block.CapDiscard},
	cmdWriteZeroes: {op: block.OpWriteZeroes, allowed: cmdFlagNoHole, caps: block.CapWriteZeroes},
	cmdBlockStatus: {op: block.OpRead, allowed: cmdFlagReqOne},
}

// refusal is an error that the server itself finds.
type refusal struct {
	errno errno
	text  []byte
}

// The refusals, ready made so that a hostile client costs no memory.
var (
	refuseCommand  = &refusal{errnoInval, []byte("nbd: unknown command, or one that was not negotiated")}
	refuseFlags    = &refusal{errnoInval, []byte("nbd: command flag is unknown, or does not apply to this command")}
	refuseFlush    = &refusal{errnoInval, []byte("nbd: flush with an offset or a length")}
	refuseEmpty    = &refusal{errnoInval, []byte("nbd: length is 0")}
	refuseSize     = &refusal{errnoInval, []byte("nbd: longer than the maximum block size of the export")}
	refuseAlign    = &refusal{errnoInval, []byte("nbd: offset or length is not a multiple of the minimum block size")}
	refuseEnd      = &refusal{errnoInval, []byte("nbd: beyond the end of the export")}
	refuseEndWrite = &refusal{errnoNoSpace, []byte("nbd: beyond the end of the export")}
)

// vet decides what h means, or why it is refused, before anything is allocated for it.
func (s *session) vet(h *header) (command, *refusal) {
	if int(h.cmd) >= len(commands) || commands[h.cmd].op == 0 {
		return command{}, refuseCommand
	}
	c := commands[h.cmd]
	if s.info.Caps&c.caps != c.caps || h.cmd == cmdBlockStatus && !s.allocation {
		return c, refuseCommand
	}
	if s.info.Caps&block.CapFUA != 0 {
		c.allowed |= cmdFlagFUA
	}
	if h.flags&^c.allowed != 0 || h.flags&cmdFlagDF != 0 && h.cmd == cmdRead && !s.structured {
		return c, refuseFlags
	}
	if h.cmd == cmdFlush {
		if h.off != 0 || h.n != 0 {
			return c, refuseFlush
		}
		return c, nil
	}
	if h.flags&cmdFlagFUA != 0 && c.op != block.OpRead {
		c.flags |= block.FUA
	}
	if h.flags&cmdFlagNoHole != 0 && h.cmd == cmdWriteZeroes {
		c.flags |= block.NoHole
	}
	size, mask := uint64(s.info.Size), uint64(s.info.BlockSize)-1
	switch {
	case h.off > size || uint64(h.n) > size-h.off:
		if beyondEnd(c.op) == errnoNoSpace {
			return c, refuseEndWrite
		}
		return c, refuseEnd
	case h.n == 0:
		return c, refuseEmpty
	case (h.off|uint64(h.n))&mask != 0:
		return c, refuseAlign
	case h.n > maxPayload && (h.cmd == cmdRead || h.cmd == cmdWrite):
		return c, refuseSize
	}
	return c, nil
}
