package transport_test

import (
	"context"
	"net"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap/zaptest"
	"google.golang.org/grpc"

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
	ca, err := authority()
	if err != nil {
		t.Fatal(err)
	}
	cert, err := ca.Issue(transport.Identity{Cluster: cluster, Domain: "dom", Node: node}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	s, err := transport.NewTLS(cert, ca.Pool(), cluster)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// serve runs h on a loopback port until the test ends and returns the address.
func serve(t testing.TB, sec *transport.Security, h transport.Handler) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer(sec.ServerOptions()...)
	s := transport.NewServer(g, transport.ServerConfig{Handler: h, Security: sec, Boot: replication.BootID{1}})
	served := make(chan error, 1)
	go func() { served <- g.Serve(l) }()
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		g.Stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return l.Addr().String()
}

// dial returns node as the Peer that listens on addr.
func dial(t testing.TB, sec *transport.Security, node replication.NodeID, addr string) transport.Peer {
	t.Helper()
	p, err := transport.NewPeers(transport.PeersConfig{Security: sec, Logger: zaptest.NewLogger(t)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
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
