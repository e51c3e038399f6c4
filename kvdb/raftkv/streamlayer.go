package raftkv

import (
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/hashicorp/raft"
	"go.uber.org/zap"
)

// streamLayer carries raft's traffic between members, over mutual TLS. The
// first bytes of a connection say for which member of which cluster it is
// meant, and only that one takes it: see "Identity" in the package comment.
//
//	dialler:  "TDMR" 0x01, then cluster id, member id of the callee, member id of
//	          the caller, each a length byte and so many bytes
//	callee:   one byte, helloAccepted or helloRefused
type streamLayer struct {
	lg       *zap.Logger
	cluster  string
	self     Member
	listener net.Listener // nil: cannot be reached
	server   *tls.Config
	client   *tls.Config
	ready    chan net.Conn
	closed   chan struct{}
	once     sync.Once
	wg       sync.WaitGroup

	mu   sync.Mutex
	open map[net.Conn]struct{} // in both directions; nil once closed
}

const (
	helloMagic    = "TDMR\x01"
	helloAccepted = 0x06
	helloRefused  = 0x15
	helloTimeout  = 5 * time.Second
)

var errNotReachable = errors.New("raftkv: this member listens for no other members")

func newStreamLayer(o Options, cluster string, self Member, listener net.Listener) *streamLayer {
	s := &streamLayer{
		lg:       o.Logger,
		cluster:  cluster,
		self:     self,
		listener: listener,
		server:   o.ServerTLS,
		client:   o.ClientTLS,
		ready:    make(chan net.Conn),
		closed:   make(chan struct{}),
		open:     make(map[net.Conn]struct{}),
	}
	if listener != nil {
		s.wg.Go(s.acceptLoop)
	}
	return s
}

func (s *streamLayer) acceptLoop() {
	for {
		conn, err := s.listener.Accept()
		if err != nil {
			select {
			case <-s.closed:
				return
			case <-time.After(50 * time.Millisecond): // out of descriptors, for one
				continue
			}
		}
		s.wg.Go(func() { s.welcome(conn) })
	}
}

// welcome hands the connection over to raft if it is meant for this member.
func (s *streamLayer) welcome(raw net.Conn) {
	conn, err := s.track(raw)
	if err != nil {
		return
	}
	if s.server != nil {
		conn = tls.Server(conn, s.server)
	}
	caller, err := s.takeHello(conn)
	if err != nil {
		s.lg.Warn("peer connection refused", zap.Stringer("peer-address", raw.RemoteAddr()), zap.String("peer", caller), zap.Error(err))
		_ = conn.Close()
		return
	}
	select {
	case s.ready <- conn:
	case <-s.closed:
		_ = conn.Close()
	}
}

// trackedConn is a connection that Close of the layer closes too, because raft
// leaves open those that it has accepted or is using.
type trackedConn struct {
	net.Conn
	layer *streamLayer
}

func (c trackedConn) Close() error {
	c.layer.mu.Lock()
	delete(c.layer.open, c.Conn)
	c.layer.mu.Unlock()
	return c.Conn.Close()
}

// track closes the connection and fails if the layer is closed.
func (s *streamLayer) track(conn net.Conn) (net.Conn, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open == nil {
		return nil, errors.Join(net.ErrClosed, conn.Close())
	}
	s.open[conn] = struct{}{}
	return trackedConn{Conn: conn, layer: s}, nil
}

func (s *streamLayer) closeTracked() {
	s.mu.Lock()
	open := s.open
	s.open = nil
	s.mu.Unlock()
	for conn := range open {
		_ = conn.Close()
	}
}

func (s *streamLayer) takeHello(conn net.Conn) (caller string, err error) {
	if err := conn.SetDeadline(time.Now().Add(helloTimeout)); err != nil {
		return "", err
	}
	magic := make([]byte, len(helloMagic))
	if _, err := io.ReadFull(conn, magic); err != nil {
		return "", err
	}
	if string(magic) != helloMagic {
		return "", fmt.Errorf("raftkv: connection begins with %q", magic)
	}
	var fields [3]string
	for i := range fields {
		if fields[i], err = readShort(conn); err != nil {
			return "", err
		}
	}
	cluster, callee, caller := fields[0], fields[1], fields[2]
	if cluster != s.cluster || callee != s.self.ID {
		_, _ = conn.Write([]byte{helloRefused}) // the refusal stands without it
		return caller, fmt.Errorf("raftkv: connection is for member %s of cluster %s, this is %s of %s",
			callee, cluster, s.self.ID, s.cluster)
	}
	if _, err := conn.Write([]byte{helloAccepted}); err != nil {
		return caller, err
	}
	return caller, conn.SetDeadline(time.Time{})
}

// Dial implements raft.StreamLayer.
func (s *streamLayer) Dial(address raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	m, err := parseServerAddress(address)
	if err != nil {
		return nil, err
	}
	if s.listener == nil {
		return nil, errNotReachable
	}
	raw, err := net.DialTimeout("tcp", m.PeerAddress, timeout)
	if err != nil {
		return nil, err
	}
	conn, err := s.track(raw)
	if err != nil {
		return nil, err
	}
	if s.client != nil {
		conn = tls.Client(conn, clientConfigFor(s.client, m.PeerAddress))
	}
	if err := s.sayHello(conn, m, timeout); err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("raftkv: connect to member %s at %s: %w", m.ID, m.PeerAddress, err)
	}
	return conn, nil
}

func clientConfigFor(c *tls.Config, address string) *tls.Config {
	if c.ServerName != "" {
		return c
	}
	c = c.Clone()
	c.ServerName, _, _ = net.SplitHostPort(address)
	return c
}

func (s *streamLayer) sayHello(conn net.Conn, m Member, timeout time.Duration) error {
	if err := conn.SetDeadline(time.Now().Add(timeout)); err != nil {
		return err
	}
	hello := []byte(helloMagic)
	for _, field := range []string{s.cluster, m.ID, s.self.ID} {
		hello = append(hello, byte(len(field)))
		hello = append(hello, field...)
	}
	if _, err := conn.Write(hello); err != nil {
		return err
	}
	var answer [1]byte
	if _, err := io.ReadFull(conn, answer[:]); err != nil {
		return err
	}
	if answer[0] != helloAccepted {
		return errors.New("refused: it is another member by now, or of another cluster; a member whose data are lost has to be removed")
	}
	return conn.SetDeadline(time.Time{})
}

func readShort(r io.Reader) (string, error) {
	var n uint8
	if err := binary.Read(r, binary.LittleEndian, &n); err != nil {
		return "", err
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(r, b); err != nil {
		return "", err
	}
	return string(b), nil
}

// Accept implements net.Listener.
func (s *streamLayer) Accept() (net.Conn, error) {
	select {
	case conn := <-s.ready:
		return conn, nil
	case <-s.closed:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (s *streamLayer) Close() error {
	var err error
	s.once.Do(func() {
		close(s.closed)
		if s.listener != nil {
			err = s.listener.Close()
		}
		s.closeTracked()
		s.wg.Wait()
	})
	return err
}

// Addr implements net.Listener: what raft tells the others about this member.
func (s *streamLayer) Addr() net.Addr { return memberAddr(s.self.serverAddress()) }

type memberAddr string

func (memberAddr) Network() string  { return "tandem-raft" }
func (a memberAddr) String() string { return string(a) }
