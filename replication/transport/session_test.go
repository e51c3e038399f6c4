package transport_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/tandem-storage/tandem/datapath/block"
	"github.com/tandem-storage/tandem/replication"
	"github.com/tandem-storage/tandem/replication/transport"
	"github.com/tandem-storage/tandem/replication/transport/transporttest"
	"github.com/tandem-storage/tandem/replication/wire"
)

// TestConformance runs the suite over TCP with mutual TLS.
func TestConformance(t *testing.T) {
	transporttest.Run(t, func(t *testing.T, h transport.Handler) transport.Peer {
		addr := serve(t, security(t, "server"), h)
		return dial(t, securityOf(t, transporttest.Client), "server", addr)
	})
}

// TestBothWays sends a GiB each way at full speed to consumers of which one is
// slow: no deadlock, nothing damaged, and memory does not grow.
func TestBothWays(t *testing.T) {
	total := 1 << 30
	if testing.Short() {
		total = 64 << 20
	}
	const n = 128 << 10
	count := total / n
	before := rss(t)
	pump := func(c transport.Conn, slow bool) error {
		var wg sync.WaitGroup
		errs := make([]error, 2)
		wg.Go(func() {
			for seq := range count {
				buf := block.NewBuffer(n)
				// The content is whatever the buffer had: the checksums go with it.
				m := replication.Message{Type: replication.MsgWrite, Seq: replication.Seq(seq), Length: n, Data: buf.Bytes(), Buf: buf}
				if err := c.Send([]replication.Message{m}); err != nil {
					errs[0] = fmt.Errorf("message %d: %w", seq, err)
					return
				}
			}
		})
		wg.Go(func() {
			for seq := 0; seq < count; {
				ms, err := c.Recv()
				if err != nil {
					errs[1] = fmt.Errorf("before message %d: %w", seq, err)
					return
				}
				for i := range ms {
					if ms[i].Seq != replication.Seq(seq) || ms[i].Status != replication.StatusOK {
						errs[1] = fmt.Errorf("message %d arrived as %d, %v", seq, ms[i].Seq, ms[i].Status)
					}
					if slow {
						sha256.Sum256(ms[i].Data)
					}
					ms[i].Buf.Release()
					seq++
				}
			}
		})
		wg.Wait()
		return errors.Join(errs...)
	}
	served := make(chan error, 1)
	addr := serve(t, security(t, "server"), sessions{serve: func(_ context.Context, _ transport.Identity, c transport.Conn) error {
		served <- pump(c, true)
		_, err := c.Recv() // until the other end is done, too
		return err
	}})
	c, err := dial(t, security(t, "client"), "server", addr).Session(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := pump(c, false); err != nil {
		t.Error(err)
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	// Windows, buffers that are free, and garbage not yet collected.
	if after := rss(t); after-before > 512<<20 {
		t.Errorf("memory grew from %d to %d MiB", before>>20, after>>20)
	}
}

// rss is the memory of this process in bytes.
func rss(t *testing.T) int64 {
	t.Helper()
	b, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		t.Skip(err)
	}
	var size, resident int64
	if _, err := fmt.Sscan(string(b), &size, &resident); err != nil {
		t.Fatal(err)
	}
	return resident * int64(os.Getpagesize())
}

// TestPeerGone: a server that dies is noticed by sessions, and found again by the
// same Peer when it is back under another address.
func TestPeerGone(t *testing.T) {
	sec := security(t, "server")
	one, two := newHost(t, sec, sessions{serve: ack}), newHost(t, sec, sessions{serve: ack})
	peers := newPeers(t, transport.PeersConfig{Security: security(t, "client")})
	if err := peers.SetNodes(map[replication.NodeID]string{"server": one.addr}); err != nil {
		t.Fatal(err)
	}
	p, err := peers.Peer("server")
	if err != nil {
		t.Fatal(err)
	}
	c, err := p.Session(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	one.stop(t)
	if _, err := c.Recv(); !errors.Is(err, transport.ErrDisconnected) {
		t.Errorf("Recv from a dead server: %v", err)
	}
	if _, err := p.Session(t.Context()); !errors.Is(err, transport.ErrDisconnected) {
		t.Errorf("session with a dead server: %v", err)
	}
	if err := peers.SetNodes(map[replication.NodeID]string{"server": two.addr}); err != nil {
		t.Fatal(err)
	}
	if c, err = p.Session(t.Context()); err != nil {
		t.Fatal(err)
	}
	roundTrip(t, c)
	if err := peers.SetNodes(nil); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Recv(); !errors.Is(err, transport.ErrDisconnected) {
		t.Errorf("Recv from a removed server: %v", err)
	}
	if _, err := p.Session(t.Context()); !errors.Is(err, transport.ErrClosed) {
		t.Errorf("session with a removed server: %v", err)
	}
	if _, err := peers.Peer("server"); !errors.Is(err, transport.ErrUnknownPeer) {
		t.Errorf("Peer of a removed server: %v", err)
	}
}

// roundTrip sends a write to a session that ack serves.
func roundTrip(t *testing.T, c transport.Conn) {
	t.Helper()
	buf := block.NewBuffer(4096)
	defer buf.Release()
	if err := c.Send([]replication.Message{write(5, buf, wire.Sums(nil, buf.Bytes()))}); err != nil {
		t.Fatal(err)
	}
	if ms, err := c.Recv(); err != nil || ms[0].Type != replication.MsgAck || ms[0].Seq != 5 {
		t.Fatalf("got %v, %v", ms, err)
	}
}

// TestServerClose: Close ends sessions, waits for the Handler, and refuses new ones.
func TestServerClose(t *testing.T) {
	sec := security(t, "server")
	began, returned := make(chan struct{}), make(chan struct{})
	h := newHost(t, sec, sessions{serve: func(_ context.Context, _ transport.Identity, c transport.Conn) error {
		close(began)
		_, err := c.Recv()
		close(returned)
		return err
	}})
	p := dial(t, security(t, "client"), "server", h.addr)
	if _, err := p.Session(t.Context()); err != nil {
		t.Fatal(err)
	}
	<-began
	if err := h.server.Close(); err != nil {
		t.Error(err)
	}
	select {
	case <-returned:
	default:
		t.Error("Close did not wait for the handler")
	}
	if _, err := p.Session(t.Context()); !errors.Is(err, transport.ErrDisconnected) || !strings.Contains(err.Error(), transport.ErrClosed.Error()) {
		t.Errorf("a session with a closed server: %v", err)
	}
}

func TestPeersConfig(t *testing.T) {
	sec := security(t, "client")
	for _, c := range []transport.PeersConfig{
		{},
		{Security: sec, SuspectAfter: 1},
		{Security: sec, BeatInterval: -1},
	} {
		if p, err := transport.NewPeers(c); !errors.Is(err, transport.ErrConfig) {
			t.Errorf("%+v: %v, %v", c, p, err)
		}
	}
}
