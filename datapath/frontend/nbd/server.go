package nbd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/tandem-storage/tandem/datapath/block"
	"github.com/tandem-storage/tandem/datapath/frontend"
)

// Errors of the package. Test with errors.Is.
var (
	ErrClosed = errors.New("nbd: server is closed")
	ErrKilled = errors.New("nbd: attachment was killed")
)

// Limits of a server.
const (
	maxConns         = 256
	handshakeTimeout = 10 * time.Second       // for all of it
	detachGrace      = 100 * time.Millisecond // for a disconnect that is under way to be noticed
	closeTimeout     = 5 * time.Second        // for requests in flight when the server closes
)

// What the clients of one export may have in flight together.
const (
	defaultRequests = 256
	maxBytes        = 64 << 20
)

// Options are the choices of Listen.
type Options struct {
	// Endpoints are where the server listens; the first is the one that Attachment.Path names.
	Endpoints []Endpoint
	// MaxRequests bounds the requests in flight of one export; more wait. 0 means 256.
	MaxRequests int
	// Expected are ids that are about to be attached: those of attachments that go on after a restart. A client that asks for
	// one is answered when it is attached, or Forgo says that it will not be.
	Expected []string
	// Logger may be nil.
	Logger *zap.Logger
}

// Server is the NBD front end.
type Server struct {
	lg               *zap.Logger
	maxRequests      int64
	listeners        []*listener
	handshakeTimeout time.Duration
	detachGrace      time.Duration
	running          sync.WaitGroup // accept loops and connections
	closing          chan struct{}  // closed by Close

	mu       sync.Mutex
	exports  map[string]*export
	expected map[string]chan struct{} // closed when it is decided
	conns    map[net.Conn]struct{}    // from accept to the end of the transmission
	closed   bool
}

var _ frontend.Frontend = (*Server)(nil)

// Listen starts a server.
func Listen(o Options) (*Server, error) {
	if o.Logger == nil {
		o.Logger = zap.NewNop()
	}
	if o.MaxRequests == 0 {
		o.MaxRequests = defaultRequests
	}
	if len(o.Endpoints) == 0 {
		return nil, errors.New("nbd: no endpoint; give a unix socket or a TCP address")
	}
	s := &Server{
		lg:               o.Logger,
		maxRequests:      int64(o.MaxRequests),
		handshakeTimeout: handshakeTimeout,
		detachGrace:      detachGrace,
		closing:          make(chan struct{}),
		exports:          make(map[string]*export),
		expected:         make(map[string]chan struct{}),
		conns:            make(map[net.Conn]struct{}),
	}
	for _, id := range o.Expected {
		s.expected[id] = make(chan struct{})
	}
	for _, e := range o.Endpoints {
		l, err := listen(e)
		if err != nil {
			for _, l := range s.listeners {
				_ = l.Close()
			}
			return nil, err
		}
		s.listeners = append(s.listeners, l)
	}
	for _, l := range s.listeners {
		s.running.Go(func() { s.accept(l) })
	}
	return s, nil
}

// Kind implements frontend.Frontend.
func (s *Server) Kind() frontend.Kind { return frontend.KindNBD }

// Attach implements frontend.Frontend. The id becomes the name of the export.
// The device's block size is what clients have to align to.
func (s *Server) Attach(_ context.Context, id string, d block.Device) (frontend.Attachment, error) {
	if id == "" || id == "." || id == ".." || len(id) > 255 || strings.ContainsAny(id, "/\x00") {
		return nil, fmt.Errorf("nbd: attach %q: not a file name; use 1 to 255 bytes without a slash", id)
	}
	if i := d.Info(); i.BlockSize > maxMinBlock || i.Size <= 0 || i.Size%int64(i.BlockSize) != 0 {
		return nil, fmt.Errorf("nbd: attach %s: device of %d bytes in blocks of %d cannot be shown: blocks may be at most %d, the size a positive multiple of them",
			id, i.Size, i.BlockSize, maxMinBlock)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, fmt.Errorf("nbd: attach %s: %w", id, ErrClosed)
	}
	if e := s.exports[id]; e != nil && !e.gone() {
		if e.dev != d {
			return nil, fmt.Errorf("nbd: attach %s: another device is attached under this id: %w", id, frontend.ErrBusy)
		}
		return e, nil
	}
	e := &export{
		srv: s, id: id, dev: d, win: newWindow(s.maxRequests, maxBytes),
		lg:      s.lg.With(zap.String("attachment", id)),
		path:    s.listeners[0].path(id),
		holders: make(map[*holder]struct{}),
		done:    make(chan struct{}),
	}
	s.exports[id] = e
	s.decidedLocked(id)
	e.lg.Info("device attached", zap.String("path", e.path), zap.Int64("size", d.Info().Size))
	return e, nil
}

// Addr is where the i-th endpoint listens, for one that asked for any TCP port.
func (s *Server) Addr(i int) net.Addr { return s.listeners[i].Addr() }

// Close detaches everything: clients are dropped when their requests in flight
// have been replied to, or after closeTimeout. It does not wait for the
// completion of requests that the device keeps longer.
func (s *Server) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	close(s.closing)
	for _, l := range s.listeners {
		_ = l.Close()
	}
	// The readers stop; what they had submitted is still replied to.
	for c := range s.conns {
		_ = c.SetReadDeadline(time.Unix(1, 0))
	}
	exports := s.exports
	s.exports = make(map[string]*export)
	s.mu.Unlock()

	ended := make(chan struct{})
	go func() {
		s.running.Wait()
		close(ended)
	}()
	timer := time.NewTimer(closeTimeout)
	defer timer.Stop()
	select {
	case <-ended:
	case <-timer.C:
		s.lg.Warn("requests still in flight, dropping clients")
	}
	for _, e := range exports {
		e.end(nil)
	}
	return nil
}

// accept serves the clients of one listener until that is closed.
func (s *Server) accept(l *listener) {
	const longestPause = time.Second
	pause := time.Duration(0)
	for {
		c, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			// Out of descriptors or the like: it may pass.
			pause = min(max(2*pause, 5*time.Millisecond), longestPause)
			s.lg.Warn("cannot accept a client", zap.Error(err), zap.Duration("pause", pause))
			select {
			case <-time.After(pause):
			case <-s.closing:
			}
			continue
		}
		pause = 0
		if !s.admit(c) {
			_ = c.Close()
			continue
		}
		s.running.Go(func() {
			s.serve(c, l)
			s.mu.Lock()
			delete(s.conns, c)
			s.mu.Unlock()
		})
	}
}

// admit registers a connection, unless there are too many.
func (s *Server) admit(c net.Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	if len(s.conns) >= maxConns {
		s.lg.Warn("too many clients, dropping a new one", zap.Int("limit", maxConns))
		return false
	}
	s.conns[c] = struct{}{}
	_ = c.SetDeadline(time.Now().Add(s.handshakeTimeout))
	return true
}

// serve takes one connection through the handshake and the transmission.
func (s *Server) serve(c net.Conn, l *listener) {
	defer c.Close()
	h := &handshake{srv: s, conn: c, endpoint: &l.endpoint}
	hold, err := h.run()
	if err != nil {
		if !errors.Is(err, errDisconnect) && !errors.Is(err, io.EOF) {
			s.lg.Debug("handshake failed", zap.Stringer("remote", c.RemoteAddr()), zap.Error(err))
		}
		return
	}
	defer hold.release()
	if !s.begin(c) {
		return
	}
	link, err := newLink(h.conn)
	if err != nil {
		s.lg.Warn("cannot serve a client", zap.Stringer("remote", c.RemoteAddr()), zap.Error(err))
		return
	}
	e := hold.export
	ses := newSession(link, e.dev, e.win, h.structured, h.allocation())
	if !hold.start(ses) {
		return
	}
	e.lg.Info("client connected", zap.Stringer("remote", c.RemoteAddr()), zap.Bool("tls", h.secure), zap.Bool("structured", h.structured))
	err = ses.run()
	switch {
	case errors.Is(err, errDisconnect), errors.Is(err, io.EOF):
		err = nil
	case errors.Is(err, os.ErrDeadlineExceeded): // the reader has none but that of Close
		err = ErrClosed
	case e.gone():
		err = e.Err()
	}
	e.lg.Info("client disconnected", zap.Stringer("remote", c.RemoteAddr()), zap.Error(err))
}

// begin lifts the handshake's deadline, unless the server is closing and has set its own.
func (s *Server) begin(c net.Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	_ = c.SetDeadline(time.Time{})
	return true
}

// Expect is Options.Expected for one more id. It returns the path that it is going to have.
func (s *Server) Expect(id string) (path string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.expected[id] == nil && s.exports[id] == nil {
		s.expected[id] = make(chan struct{})
	}
	return s.listeners[0].path(id)
}

// Forgo says that an id that was expected is not attached after all: clients that wait for it are told that there is no such
// export. Not expected is fine.
func (s *Server) Forgo(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.decidedLocked(id)
}

func (s *Server) decidedLocked(id string) {
	if decided := s.expected[id]; decided != nil {
		close(decided)
		delete(s.expected, id)
	}
}

// await waits until it is decided whether there is an export of a name that is expected.
func (s *Server) await(name string) error {
	s.mu.Lock()
	decided := s.expected[name]
	s.mu.Unlock()
	if decided == nil {
		return nil
	}
	timer := time.NewTimer(s.handshakeTimeout)
	defer timer.Stop()
	select {
	case <-decided:
		return nil
	case <-s.closing:
		return ErrClosed
	case <-timer.C:
		return fmt.Errorf("nbd: export %.64q is not ready yet", name)
	}
}

// find returns the export of a name, or nil.
func (s *Server) find(name string) *export {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.exports[name]
}

// names lists the exports, and says whether the server still serves.
func (s *Server) names() (names []string, open bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id := range s.exports {
		names = append(names, id)
	}
	return names, !s.closed
}

// forget removes e.
func (s *Server) forget(e *export) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.exports[e.id] == e {
		delete(s.exports, e.id)
	}
}
