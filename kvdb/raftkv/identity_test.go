package raftkv

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tandem-storage/tandem/kvdb"
	"github.com/tandem-storage/tandem/kvdb/kvdbpb"
	"github.com/tandem-storage/tandem/kvdb/kvdbtest"
)

func (c *testCluster) put(s kvdb.Store, key, value string) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	for {
		_, err := kvdb.Put(ctx, s, key, []byte(value))
		if err == nil {
			return
		}
		if ctx.Err() != nil || !errors.Is(err, kvdb.ErrUnavailable) { // unknown, when its leader is stopped; a put may be repeated
			c.t.Fatal(err)
		}
	}
}

// wantValue reads the key k.
func (c *testCluster) wantValue(s kvdb.Store, value string) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	kv, err := s.Get(ctx, "k")
	if err != nil || string(kv.Value) != value {
		c.t.Fatalf("k: %q, %v, want %q", kv.Value, err, value)
	}
}

func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.RemoveAll(path); err != nil {
		t.Fatal(err)
	}
}

func TestOptionsInvalid(t *testing.T) {
	certs := kvdbtest.NewAuthority(t)
	noClientCerts := certs.Server("n")
	noClientCerts.ClientAuth = 0
	for name, o := range map[string]Options{
		"no node name":      {Dir: "d", Bootstrap: true},
		"node with a comma": {Node: "a,b", Dir: "d", Bootstrap: true},
		"no directory":      {Node: "n", Bootstrap: true},
		"no cluster":        {Node: "n", Dir: "d"},
		"cannot be joined":  {Node: "n", Dir: "d", Peers: []string{"p"}},
		"cannot be asked":   {Node: "n", Dir: "d", Bootstrap: true, PeerListen: "127.0.0.1:0"},
		"half of TLS":       {Node: "n", Dir: "d", Bootstrap: true, ClientTLS: certs.Client("n")},
		"one-sided TLS":     {Node: "n", Dir: "d", Bootstrap: true, ClientTLS: certs.Client("n"), ServerTLS: noClientCerts},
	} {
		if _, err := OpenMember(o); !errors.Is(err, kvdb.ErrInvalid) {
			t.Errorf("%s: %v, want ErrInvalid", name, err)
		}
	}
	if _, err := OpenClient(ClientOptions{}); !errors.Is(err, kvdb.ErrInvalid) {
		t.Errorf("client without endpoints: %v, want ErrInvalid", err)
	}
}

// All ways to lose a lone member's data are noticed, and none makes a second, empty cluster.
func TestLoneMemberLosesData(t *testing.T) {
	for name, lose := range map[string]func(Options) string{
		"the directory": func(o Options) string { return o.Dir },
		"the identity":  identityPath,
		"the log":       func(o Options) string { return filepath.Join(o.Dir, "raft.db") },
	} {
		t.Run(name, func(t *testing.T) {
			c := newTestCluster(t, 1, nil)
			node := c.nodes[0]
			c.stop(node)
			remove(t, lose(node.o))
			if m, err := OpenMember(node.o); !errors.Is(err, ErrMemberLost) {
				if err == nil {
					_ = m.Close()
				}
				t.Errorf("opened again: %v, want ErrMemberLost", err)
			}
		})
	}
}

func TestDirectoryOfAnotherNode(t *testing.T) {
	c := newTestCluster(t, 1, nil)
	c.stop(c.nodes[0])
	o := c.nodes[0].o
	o.Node = "other"
	if _, err := OpenMember(o); err == nil {
		t.Error("opened another node's directory")
	}
}

func TestDirectoryInUse(t *testing.T) {
	c := newTestCluster(t, 1, nil)
	o := c.nodes[0].o
	o.PeerListen = kvdbtest.FreeAddress(t)
	if _, err := OpenMember(o); err == nil {
		t.Error("opened a directory twice")
	}
	c.put(c.nodes[0], "k", "v")
}

// A member that comes back without its data is refused, with and without
// its marker, whether it is to join or to bootstrap, until it was removed.
func TestMemberReplaced(t *testing.T) {
	c := newTestCluster(t, 3, nil)
	c.put(c.nodes[0], "k", "v")
	lost := c.follower()
	if lost == c.nodes[0] { // which is the one told to bootstrap
		lost.o.Bootstrap, lost.o.Peers = false, c.endpoints()
	}
	old := lost.Status().MemberID
	c.stop(lost)
	remove(t, lost.o.Dir)
	if _, err := OpenMember(lost.o); !errors.Is(err, ErrMemberLost) {
		t.Fatalf("with the marker: %v, want ErrMemberLost", err)
	}
	markerless := lost.o.Marker
	lost.o.Marker = ""
	bootstrap := lost.o
	bootstrap.Bootstrap = true
	m, err := OpenMember(bootstrap)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := m.Ready(ctx); !errors.Is(err, ErrClusterExists) {
		t.Errorf("bootstrap beside an existing cluster: %v, want ErrClusterExists", err)
	}
	if err := m.Close(); err != nil {
		t.Error(err)
	}

	leader := c.leader(lost)
	if err := (membersServer{m: leader.LocalMember}).add(leader.node(), Member{
		ID: lost.name + "-0123456789abcdef", Node: lost.name, PeerAddress: lost.o.PeerListen, ClientAddress: lost.o.ClientAdvertise,
	}, false); !errors.Is(err, ErrMemberExists) {
		t.Errorf("joined beside its former self: %v, want ErrMemberExists", err)
	}

	if err := leader.RemoveMember(ctx, old); err != nil {
		t.Fatal(err)
	}
	if err := leader.RemoveMember(ctx, old); !errors.Is(err, ErrMemberNotFound) {
		t.Errorf("removed twice: %v, want ErrMemberNotFound", err)
	}
	lost.o.Marker = markerless // of a member that is removed: it counts no more, even for one that is to bootstrap
	lost.o.Bootstrap = true
	c.start(lost)
	c.ready(lost)
	c.wantValue(lost, "v")
	if now := lost.Status().MemberID; now == old {
		t.Errorf("the replacement has the id of its predecessor, %s", now)
	}
	if members := leader.Status().Members; len(members) != 3 {
		t.Errorf("members: %v", members)
	}
}

// TestRemovalKeepsAMajority: a member that is needed is not removed.
func TestRemovalKeepsAMajority(t *testing.T) {
	c := newTestCluster(t, 3, nil)
	dead := c.follower()
	c.stop(dead)
	leader := c.leader(dead)
	for _, n := range c.nodes {
		if n == dead {
			continue
		}
		if err := leader.RemoveMember(t.Context(), n.name); !errors.Is(err, ErrMajority) || !strings.Contains(err.Error(), dead.name) {
			t.Errorf("remove %s beside %s, which is dead: %v", n.name, dead.name, err)
		}
	}
	if err := leader.RemoveMember(t.Context(), dead.name); err != nil {
		t.Errorf("remove the dead one: %v", err)
	}
}

// TestWhoChangesMembers: over the network a node adds itself, if it is meant to be a member, and members only do the rest.
func TestWhoChangesMembers(t *testing.T) {
	var caller atomic.Pointer[string]
	c := newTestCluster(t, 2, func(o *Options) {
		o.Candidates = []string{"n1", "n2", "n3"}
		o.Caller = func(context.Context) (string, error) {
			if p := caller.Load(); p != nil {
				return *p, nil
			}
			return o.Node, nil // while the cluster forms: a member
		}
	})
	m := guardedMembers{membersServer{m: c.leader(nil).LocalMember}}
	as := func(name string) { caller.Store(&name) }
	member := func(node string) *kvdbpb.AddMemberRequest {
		return &kvdbpb.AddMemberRequest{UpdateOnly: true, Member: Member{ID: node + "-0123456789abcdef", Node: node, PeerAddress: "127.0.0.1:1", ClientAddress: "127.0.0.1:2"}.proto()}
	}
	for _, tc := range []struct {
		caller, node string
		add, remove  codes.Code
	}{
		{"n3", "n3", codes.OK, codes.PermissionDenied},
		{"n1", "n3", codes.OK, codes.OK},
		{"x", "n3", codes.PermissionDenied, codes.PermissionDenied},
		{"x", "x", codes.PermissionDenied, codes.PermissionDenied},
		{"n1", "x", codes.PermissionDenied, codes.OK},
	} {
		as(tc.caller)
		if _, err := m.AddMember(t.Context(), member(tc.node)); status.Code(err) != tc.add {
			t.Errorf("%s adds %s: %v, want %v", tc.caller, tc.node, err, tc.add)
		}
		if _, err := m.RemoveMember(t.Context(), &kvdbpb.RemoveMemberRequest{Id: "nobody"}); status.Code(err) != tc.remove {
			t.Errorf("%s removes: %v, want %v", tc.caller, err, tc.remove)
		}
	}
	if members := c.nodes[0].Status().Members; len(members) != 2 {
		t.Errorf("members: %v", members)
	}
}

// A removed member that still has its data does not come back by itself.
func TestRemovedMemberStaysOut(t *testing.T) {
	c := newTestCluster(t, 3, nil)
	gone := c.follower()
	id := gone.Status().MemberID
	c.stop(gone)
	if err := c.leader(gone).RemoveMember(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	c.start(gone)
	err := gone.requestMembership(t.Context(), gone.node().self, true)
	if !errors.Is(err, ErrMemberNotFound) && !errors.Is(err, kvdb.ErrNoLeader) {
		t.Errorf("asks for its place: %v", err)
	}
	if members := c.leader(gone).Status().Members; len(members) != 2 {
		t.Errorf("members: %v", members)
	}
	c.put(c.leader(gone), "k", "v")
}

// Bootstrap with peers waits for every one of them.
func TestBootstrapWaitsForPeers(t *testing.T) {
	c := &testCluster{t: t, dir: t.TempDir(), certs: kvdbtest.NewAuthority(t)}
	absent := kvdbtest.FreeAddress(t)
	first := c.add("n1", true, func(o *Options) { o.Peers = []string{absent} })
	ctx, cancel := context.WithTimeout(t.Context(), 3*formInterval)
	defer cancel()
	if err := first.Ready(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("ready without its peer: %v", err)
	}
	if _, err := kvdb.Put(ctx, first, "k", nil); err == nil {
		t.Fatal("served without its peer")
	}
	c.add("n2", false, func(o *Options) { o.ClientAdvertise = absent })
	for _, node := range c.nodes {
		c.ready(node)
	}
	c.put(c.nodes[1], "k", "v")
	c.wantValue(c.nodes[0], "v")
}

// What is meant for one member does not reach another at the same address.
func TestStreamIsForOneMember(t *testing.T) {
	certs := kvdbtest.NewAuthority(t)
	o := Options{ServerTLS: certs.Server("n"), ClientTLS: certs.Client("n"), Logger: testLogger(t)}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	self := Member{ID: "n-1", Node: "n", PeerAddress: listener.Addr().String()}
	server := newStreamLayer(o, "cluster", self, listener)
	defer func() { _ = server.Close() }()
	accepted := make(chan net.Conn, 8)
	go func() {
		for {
			conn, err := server.Accept()
			if err != nil {
				return
			}
			accepted <- conn
		}
	}()
	dial := func(o Options, cluster string, to Member) error {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		layer := newStreamLayer(o, cluster, Member{ID: "m-1", Node: "m"}, l)
		defer func() { _ = layer.Close() }()
		conn, err := layer.Dial(to.serverAddress(), 5*time.Second)
		if err == nil {
			_ = conn.Close()
		}
		return err
	}
	if err := dial(o, "cluster", self); err != nil {
		t.Fatalf("the right member of the right cluster: %v", err)
	}
	_ = (<-accepted).Close()

	successor := self
	successor.ID = "n-2"
	stranger := o
	stranger.ClientTLS = kvdbtest.NewAuthority(t).Client("n")
	plain := o
	plain.ClientTLS = nil
	for name, err := range map[string]error{
		"another member":                     dial(o, "cluster", successor),
		"another cluster":                    dial(o, "other", self),
		"a certificate of another authority": dial(stranger, "cluster", self),
		"no TLS":                             dial(plain, "cluster", self),
	} {
		if err == nil {
			t.Errorf("%s: connected", name)
		}
	}
	select {
	case <-accepted:
		t.Error("a refused connection was handed to raft")
	default:
	}
}

func TestForceNewCluster(t *testing.T) {
	c := newTestCluster(t, 3, nil)
	c.put(c.nodes[0], "k", "v")
	survivor := c.follower()
	c.wantValue(survivor, "v")
	oldCluster := survivor.Status().ClusterID
	for survivor.fsm.applied.Load() < c.leader().fsm.applied.Load() {
		c.tick()
	}
	for _, node := range c.nodes {
		c.stop(node)
	}
	newCluster, err := ForceNewCluster(survivor.o)
	if err != nil {
		t.Fatal(err)
	}
	if newCluster == oldCluster {
		t.Error("the new cluster has the old id")
	}
	c.start(survivor)
	c.ready(survivor)
	c.wantValue(survivor, "v")
	c.put(survivor, "k", "v2")

	// The others come back and form a majority of the old cluster among themselves.
	for _, node := range c.nodes {
		if node != survivor {
			c.start(node)
		}
	}
	c.leader(survivor)
	c.put(survivor, "k", "v3")
	c.wantValue(survivor, "v3")
	if members := survivor.Status().Members; len(members) != 1 {
		t.Errorf("members of the new cluster: %v", members)
	}
	pinned, err := OpenClient(ClientOptions{Endpoints: c.endpoints(), ClusterID: newCluster, TLS: c.certs.Client("client")})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = pinned.Close() }()
	for range 2 * len(c.nodes) {
		c.wantValue(pinned, "v3")
		pinned.leave(pinned.endpoint())
	}
}
