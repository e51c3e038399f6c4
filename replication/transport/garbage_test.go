package transport_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"testing"

	"google.golang.org/grpc"

	"github.com/tandem-storage/tandem/internal/testseed"
	"github.com/tandem-storage/tandem/replication"
	pb "github.com/tandem-storage/tandem/replication/replicationpb"
	"github.com/tandem-storage/tandem/replication/transport"
	"github.com/tandem-storage/tandem/replication/wire"
)

// TestGarbage throws at a listening server what does not belong there. After
// each, a session that was open all the time still works, and so does a new one.
func TestGarbage(t *testing.T) {
	seed := testseed.Of(t)
	rng := rand.New(rand.NewPCG(seed, 0))
	random := func(n int) []byte {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(rng.Uint32())
		}
		return b
	}
	got := make(chan error, 1) // what the handler of a garbage session gets
	addr := serve(t, security(t, "server"), sessions{serve: func(ctx context.Context, from transport.Identity, c transport.Conn) error {
		if from.Node != "hostile" {
			return ack(ctx, from, c)
		}
		for {
			ms, err := c.Recv()
			if err != nil {
				got <- err
				return err
			}
			for i := range ms {
				if ms[i].Buf != nil {
					ms[i].Buf.Release()
				}
			}
		}
	}})
	good := dial(t, security(t, "client"), "server", addr)
	open, err := good.Session(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	alive := func(t *testing.T) {
		t.Helper()
		roundTrip(t, open)
		c, err := good.Session(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		roundTrip(t, c)
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}

	for name, b := range map[string][]byte{
		"nothing":     nil,
		"random":      random(100 << 10),
		"http":        []byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
		"http2":       []byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"),
		"tls record":  append([]byte{22, 3, 1, 0x40, 0}, random(0x4000)...),
		"huge record": append([]byte{22, 3, 3, 0xff, 0xff}, random(1000)...),
		"a frame":     bytes.Repeat([]byte{0x44, 0x54}, 100),
	} {
		t.Run("tcp/"+name, func(t *testing.T) {
			c, err := net.Dial("tcp", addr)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if _, err := c.Write(b); err != nil {
				t.Logf("the server closed early: %v", err)
			}
			if err := c.(*net.TCPConn).CloseWrite(); err != nil {
				t.Logf("the server closed early: %v", err)
			}
			if _, err := io.Copy(io.Discard, c); err != nil { // until the server hangs up
				t.Logf("hung up with %v", err)
			}
			alive(t)
		})
	}

	// Within TLS, with a good certificate.
	ca, err := authority()
	if err != nil {
		t.Fatal(err)
	}
	cert, err := ca.Issue(transport.Identity{Cluster: cluster, Domain: "dom", Node: "hostile"}, 1<<40)
	if err != nil {
		t.Fatal(err)
	}
	conf := &tls.Config{Certificates: []tls.Certificate{cert}, InsecureSkipVerify: true}
	t.Run("tls/http1", func(t *testing.T) {
		h := http.Client{Transport: &http.Transport{TLSClientConfig: conf}}
		defer h.CloseIdleConnections()
		r, err := h.Get("https://" + addr)
		if err == nil {
			r.Body.Close()
			t.Errorf("HTTP/1 was answered with %v", r.Status)
		}
		alive(t)
	})
	t.Run("tls/random", func(t *testing.T) {
		c2 := conf.Clone()
		c2.NextProtos = []string{"h2"}
		c, err := tls.Dial("tcp", addr, c2)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := c.Write(random(64 << 10)); err != nil {
			t.Logf("the server closed early: %v", err)
		}
		if _, err := io.Copy(io.Discard, c); err != nil {
			t.Logf("hung up with %v", err)
		}
		alive(t)
	})

	// As a session of a node of the cluster.
	session := func(t *testing.T) *tls.Conn {
		t.Helper()
		c2 := conf.Clone()
		c2.NextProtos = []string{"tandem/1"}
		c, err := tls.Dial("tcp", addr, c2)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	damaged := func() []byte {
		m := replication.Message{Type: replication.MsgFlush}
		b, err := wire.AppendHead(nil, &m)
		if err != nil {
			t.Fatal(err)
		}
		b[20] ^= 1
		return b
	}()
	for name, tt := range map[string]struct {
		frames []byte
		want   error
	}{
		"random":  {random(10 << 10), wire.ErrFrame},
		"zeroes":  {make([]byte, 64<<10), wire.ErrFrame},
		"damaged": {damaged, wire.ErrHeaderCRC},
		"gRPC":    {[]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + string(make([]byte, 64))), wire.ErrFrame},
		"short":   {[]byte{0x44}, transport.ErrDisconnected},
	} {
		t.Run("frames/"+name, func(t *testing.T) {
			c := session(t)
			if _, err := c.Write(tt.frames); err != nil {
				t.Logf("the server closed early: %v", err)
			}
			if err := c.CloseWrite(); err != nil {
				t.Logf("the server closed early: %v", err)
			}
			if err := <-got; !errors.Is(err, tt.want) {
				t.Errorf("the handler got %v, want %v", err, tt.want)
			}
			answer, err := io.ReadAll(c) // until the server hangs up
			if len(answer) > 8 {
				t.Errorf("garbage was answered with %x", answer)
			}
			t.Logf("hung up with %v", err)
			alive(t)
		})
	}
	hostile, err := grpc.NewClient("passthrough:///"+addr, security(t, "hostile").DialOptions("server")...)
	if err != nil {
		t.Fatal(err)
	}
	defer hostile.Close()
	t.Run("control/short ids", func(t *testing.T) {
		c := pb.NewReplicationClient(hostile)
		for _, call := range []func() error{
			func() error { _, err := c.Seal(t.Context(), &pb.SealRequest{Volume: []byte("short")}); return err },
			func() error { _, err := c.Prepare(t.Context(), &pb.PrepareRequest{}); return err },
			func() error { _, err := c.Commit(t.Context(), &pb.CommitRequest{}); return err },
			func() error { _, err := c.Dirty(t.Context(), &pb.DirtyRequest{}); return err },
			func() error { _, err := c.Turn(t.Context(), &pb.TurnRequest{}); return err },
			func() error {
				id := make([]byte, 16)
				_, err := c.Commit(t.Context(), &pb.CommitRequest{Volume: id, Replica: id, Incarnation: id, Config: []byte("null")})
				return err
			},
		} {
			if err := call(); err == nil || !strings.Contains(err.Error(), transport.ErrProtocol.Error()) {
				t.Errorf("got %v", err)
			}
		}
		alive(t)
	})
}
