package raftkv

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/tandem-storage/tandem/kvdb"
	"github.com/tandem-storage/tandem/kvdb/kvdbtest"
)

// testNode is one node of a cluster in this process. Its addresses outlive a restart.
type testNode struct {
	*LocalMember
	name   string
	o      Options
	server *grpc.Server
}

// testCluster is n members on loopback, over mutual TLS, with data on disk.
type testCluster struct {
	t     testing.TB
	end   time.Time // when a test that still waits has failed
	dir   string
	certs *kvdbtest.Authority
	nodes []*testNode
}

func testLogger(t testing.TB) *zap.Logger {
	return zaptest.NewLogger(t, zaptest.Level(zapcore.WarnLevel))
}

func newTestCluster(t testing.TB, n int, change func(*Options)) *testCluster {
	c := &testCluster{t: t, dir: t.TempDir(), certs: kvdbtest.NewAuthority(t)}
	for i := range n {
		c.add(fmt.Sprintf("n%d", i+1), i == 0, change)
	}
	for _, node := range c.nodes {
		c.ready(node)
	}
	for len(c.nodes[0].Status().Members) != n {
		c.tick()
	}
	return c
}

// tick is the pause of a loop that polls what has no event.
func (c *testCluster) tick() {
	c.t.Helper()
	if c.end.IsZero() {
		c.end = time.Now().Add(time.Minute)
	}
	if time.Now().After(c.end) {
		c.t.Fatal("it did not come to pass")
	}
	<-time.After(20 * time.Millisecond)
}

func (c *testCluster) add(name string, bootstrap bool, change func(*Options)) *testNode {
	c.t.Helper()
	node := &testNode{name: name, o: Options{
		Node:            name,
		Dir:             filepath.Join(c.dir, name),
		Marker:          filepath.Join(c.dir, "markers", name),
		Bootstrap:       bootstrap,
		PeerListen:      kvdbtest.FreeAddress(c.t),
		ClientAdvertise: kvdbtest.FreeAddress(c.t),
		ServerTLS:       c.certs.Server(name),
		ClientTLS:       c.certs.Client(name),
		Logger:          testLogger(c.t).Named(name),
	}}
	if !bootstrap {
		node.o.Peers = c.endpoints()
	}
	if change != nil {
		change(&node.o)
	}
	c.nodes = append(c.nodes, node)
	c.start(node)
	return node
}

func (c *testCluster) start(node *testNode) {
	c.t.Helper()
	m, err := OpenMember(node.o)
	if err != nil {
		c.t.Fatal(err)
	}
	node.LocalMember = m
	c.serve(node)
	c.t.Cleanup(func() { c.stop(node) })
}

func (c *testCluster) serve(node *testNode) {
	c.t.Helper()
	l, err := net.Listen("tcp", node.o.ClientAdvertise)
	if err != nil {
		c.t.Fatal(err)
	}
	node.server = grpc.NewServer(grpc.Creds(credentials.NewTLS(c.certs.Server(node.name))))
	node.Register(node.server)
	go func() { _ = node.server.Serve(l) }()
}

func (c *testCluster) stop(node *testNode) {
	c.t.Helper()
	node.server.Stop()
	if err := node.Close(); err != nil {
		c.t.Errorf("close %s: %v", node.name, err)
	}
}

func (c *testCluster) ready(node *testNode) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	for {
		err := node.Ready(ctx)
		if err == nil {
			return
		}
		if ctx.Err() != nil || node.Status().Err != nil {
			c.t.Fatalf("%s does not become ready: %v", node.name, err)
		}
	}
}

func (c *testCluster) endpoints() []string {
	var all []string
	for _, node := range c.nodes {
		all = append(all, node.o.ClientAdvertise)
	}
	return all
}

func (c *testCluster) client() kvdb.Store {
	c.t.Helper()
	s, err := OpenClient(ClientOptions{Endpoints: c.endpoints(), TLS: c.certs.Client("client"), Logger: testLogger(c.t).Named("client")})
	if err != nil {
		c.t.Fatal(err)
	}
	return s
}

// leader waits for one that is not among those left out.
func (c *testCluster) leader(but ...*testNode) *testNode {
	c.t.Helper()
	for {
		for _, node := range c.nodes {
			skip := false
			for _, b := range but {
				skip = skip || b == node
			}
			if !skip && node.leads() {
				return node
			}
		}
		c.tick()
	}
}

func (n *testNode) leads() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.mu.tenure != nil && !n.mu.closed
}

func (c *testCluster) follower() *testNode {
	leader := c.leader()
	for _, node := range c.nodes {
		if node != leader {
			return node
		}
	}
	c.t.Fatal("no follower")
	return nil
}

func harness(c *testCluster, open func(i int) kvdb.Store) kvdbtest.Harness {
	next := 0
	return kvdbtest.Harness{
		Open: func(testing.TB) kvdb.Store {
			next++
			return open(next)
		},
		Compact: func(t testing.TB, rev kvdb.Revision) {
			for _, node := range c.nodes {
				for node.fsm.state.Revision() < rev {
					c.tick()
				}
				node.fsm.state.Compact(rev)
			}
		},
	}
}

func TestSuiteLoneMember(t *testing.T) {
	kvdbtest.Run(t, func(t *testing.T) kvdbtest.Harness {
		c := newTestCluster(t, 1, nil)
		return harness(c, func(int) kvdb.Store { return newStore(c.nodes[0].LocalMember, 10*time.Second) })
	})
}

func TestSuiteMembers(t *testing.T) {
	kvdbtest.Run(t, func(t *testing.T) kvdbtest.Harness {
		c := newTestCluster(t, 3, nil)
		return harness(c, func(i int) kvdb.Store { return newStore(c.nodes[i%3].LocalMember, 10*time.Second) })
	})
}

func TestSuiteClients(t *testing.T) {
	kvdbtest.Run(t, func(t *testing.T) kvdbtest.Harness {
		c := newTestCluster(t, 3, nil)
		return harness(c, func(int) kvdb.Store { return c.client() })
	})
}
