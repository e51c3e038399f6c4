package transport_test

import (
	"errors"
	"net"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/tandem-storage/tandem/datapath/block"
	"github.com/tandem-storage/tandem/replication"
	"github.com/tandem-storage/tandem/replication/transport"
	"github.com/tandem-storage/tandem/replication/wire"
)

// cutter is a listener whose connections can be reset.
type cutter struct {
	net.Listener
	mu    sync.Mutex
	conns []net.Conn
}

func (c *cutter) Accept() (net.Conn, error) {
	conn, err := c.Listener.Accept()
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.conns = append(c.conns, conn)
	return conn, nil
}

// cut resets every connection.
func (c *cutter) cut(t *testing.T) {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, conn := range c.conns {
		if err := errors.Join(conn.(*net.TCPConn).SetLinger(0), conn.Close()); err != nil && !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
	}
	c.conns = nil
}

// TestFlap resets the connection again and again amid writes: each session
// delivers a gapless beginning of what was sent, undamaged, and then fails for good.
func TestFlap(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &cutter{Listener: l}
	sec := security(t, "server")
	s := transport.NewServer(transport.ServerConfig{Handler: sessions{serve: ack}, Security: sec})
	g := grpc.NewServer(s.ServerOptions()...)
	s.Register(g)
	served := make(chan error, 1)
	go func() { served <- g.Serve(c) }()
	t.Cleanup(func() {
		g.Stop()
		if err := errors.Join(s.Close(), <-served); err != nil {
			t.Error(err)
		}
	})
	p := dial(t, security(t, "client"), "server", l.Addr().String())

	open := func() transport.Conn {
		for {
			conn, err := p.Session(t.Context())
			if err == nil {
				return conn
			}
			if !errors.Is(err, transport.ErrDisconnected) {
				t.Fatal(err)
			}
		}
	}
	for round := range 30 {
		conn := open()
		var wg sync.WaitGroup
		wg.Go(func() {
			for seq := 0; ; seq++ {
				buf := block.NewBuffer(16 << 10)
				m := write(seq, buf, wire.Sums(nil, buf.Bytes()))
				buf.Release()
				if err := conn.Send([]replication.Message{m}); err != nil {
					if !errors.Is(err, transport.ErrDisconnected) {
						t.Errorf("round %d: Send: %v", round, err)
					}
					return
				}
			}
		})
		want := replication.Seq(0)
		for {
			ms, err := conn.Recv()
			if err != nil {
				if !errors.Is(err, transport.ErrDisconnected) {
					t.Errorf("round %d: Recv: %v", round, err)
				}
				break
			}
			for i := range ms {
				if ms[i].Seq != want {
					t.Errorf("round %d: ack of %d, want %d", round, ms[i].Seq, want)
				}
				if want++; want == replication.Seq(10*round) {
					c.cut(t)
				}
			}
			if round == 0 {
				c.cut(t)
			}
		}
		wg.Wait()
		if ms, err := conn.Recv(); err == nil {
			t.Errorf("round %d: a failed session goes on: %v", round, ms)
		}
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestLiveness: beats over the real transport.
func TestLiveness(t *testing.T) {
	changes := make(chan transport.Liveness, 10)
	var peers *transport.Peers
	ready := make(chan struct{})
	peers = newPeers(t, transport.PeersConfig{
		Security: security(t, "client"), BeatInterval: 10 * time.Millisecond, SuspectAfter: time.Minute,
		OnLiveness: func(l transport.Liveness) {
			<-ready
			peers.RTT(l.Node) // may be asked from here
			changes <- l
		},
	})
	close(ready)
	h := newHost(t, security(t, "server"), sessions{serve: ack})
	if err := peers.SetNodes(map[replication.NodeID]string{"server": h.addr, "client": "127.0.0.1:1"}); err != nil {
		t.Fatal(err)
	}
	if l := <-changes; !l.Up || l.Boot != boot || l.Node != "server" {
		t.Errorf("got %+v", l)
	}
	if r := peers.RTT("server"); r.Samples == 0 || r.P50 <= 0 || r.P99 < r.P50 || r.LastSeen.IsZero() {
		t.Errorf("got %+v", r)
	}
	if l := peers.Liveness("nobody"); l.Up || !errors.Is(l.Err, transport.ErrUnknownPeer) {
		t.Errorf("got %+v", l)
	}
	// It dies: its connections are reset and no new ones possible, long before SuspectAfter.
	h.stop(t)
	if l := <-changes; l.Up || !errors.Is(l.Err, transport.ErrDisconnected) || l.LastSeen.IsZero() {
		t.Errorf("got %+v", l)
	}
	if l := peers.Liveness("server"); l.Up {
		t.Errorf("got %+v", l)
	}
}
