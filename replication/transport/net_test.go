package transport_test

import (
	"context"
	"net"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tandem-storage/tandem/replication"
	"github.com/tandem-storage/tandem/replication/transport"
	"github.com/tandem-storage/tandem/replication/transport/pki"
)

const cluster = "metro"

// authority signs everything in the tests of this package.
var authority = sync.OnceValues(func() (*pki.CA, error) { return pki.NewCA(cluster, time.Hour) })

// security returns credentials of a node of domain "dom".
func security(t testing.TB, node replication.NodeID) *transport.Security {
	t.Helper()
	return securityOf(t, transport.Identity{Cluster: cluster, Domain: "dom", Node: node})
}

func securityOf(t testing.TB, id transport.Identity) *transport.Security {
	t.Helper()
	ca, err := authority()
	if err != nil {
		t.Fatal(err)
	}
	cert, err := ca.Issue(id, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	s, err := transport.NewTLS(cert, ca.Pool(), cluster)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// host is a gRPC server on a loopback port.
type host struct {
	addr   string
	server *transport.Server
	g      *grpc.Server
	served chan error
}

// newHost serves h until stop or the end of the test.
func newHost(t testing.TB, sec *transport.Security, h transport.Handler) *host {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := transport.NewServer(transport.ServerConfig{Handler: h, Security: sec, Boot: boot})
	g := grpc.NewServer(srv.ServerOptions()...)
	srv.Register(g)
	s := &host{addr: l.Addr().String(), g: g, served: make(chan error, 1), server: srv}
	go func() { s.served <- g.Serve(l) }()
	t.Cleanup(func() { s.stop(t) })
	return s
}

// boot is what every host tells.
var boot = replication.BootID{1, 2, 3}

// stop may be called twice.
func (h *host) stop(t testing.TB) {
	h.g.Stop() // as when the process dies: before the sessions know
	if err := h.server.Close(); err != nil {
		t.Error(err)
	}
	if h.served != nil {
		if err := <-h.served; err != nil {
			t.Error(err)
		}
		h.served = nil
	}
}

// serve runs h on a loopback port until the test ends and returns the address.
func serve(t testing.TB, sec *transport.Security, h transport.Handler) string {
	t.Helper()
	return newHost(t, sec, h).addr
}

func newPeers(t testing.TB, c transport.PeersConfig) *transport.Peers {
	t.Helper()
	p, err := transport.NewPeers(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return p
}

// dial returns node as the Peer that listens on addr.
func dial(t testing.TB, sec *transport.Security, node replication.NodeID, addr string) transport.Peer {
	t.Helper()
	p := newPeers(t, transport.PeersConfig{Security: sec})
	if err := p.SetNodes(map[replication.NodeID]string{node: addr}); err != nil {
		t.Fatal(err)
	}
	peer, err := p.Peer(node)
	if err != nil {
		t.Fatal(err)
	}
	return peer
}

// sessions is a Handler that serves sessions only.
type sessions struct {
	transport.Handler // nil: the control exchange is not called
	serve             func(ctx context.Context, from transport.Identity, c transport.Conn) error
}

func (s sessions) ServeSession(ctx context.Context, from transport.Identity, c transport.Conn) error {
	return s.serve(ctx, from, c)
}

// oldNode is of a version that knows no turns.
type oldNode struct{ transport.Handler }

func (oldNode) Turn(context.Context, transport.Identity, replication.TurnRequest) (replication.TurnResult, error) {
	return replication.TurnResult{}, status.Error(codes.Unimplemented, "unknown method Turn")
}

// A node that knows no turns bounds no resync.
func TestTurnUnknown(t *testing.T) {
	p := dial(t, security(t, "client"), "server", serve(t, security(t, "server"), oldNode{}))
	if r, err := p.Turn(t.Context(), replication.TurnRequest{}); err != nil || r != (replication.TurnResult{Granted: true}) {
		t.Errorf("got %+v, %v", r, err)
	}
}
