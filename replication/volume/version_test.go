package volume

import (
	"fmt"
	"strings"
	"testing"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/tandem-storage/tandem/replication"
	"github.com/tandem-storage/tandem/replication/wire"
)

// TestVersionSkew: a coordinator of a version that this node does not speak is
// refused with that reason, which is told rarely however often it tries; with a newer one that speaks this node's version too,
// that version is agreed on.
func TestVersionSkew(t *testing.T) {
	c := newTestCluster(t, 16<<20)
	a, b := c.nodes[0], c.nodes[1]
	ask := func(p wire.Proposal) replication.Message {
		t.Helper()
		conn, err := c.net.Peer(a.id, b.id).Session(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		hello := replication.Message{Type: replication.MsgHello, Session: 9}
		hello.Data = wire.HelloBody(replication.Hello{Volume: c.vol, Replica: b.rep}, p)
		if err := conn.Send([]replication.Message{hello}); err != nil {
			t.Fatal(err)
		}
		msgs, err := conn.Recv()
		if err != nil {
			t.Fatal(err)
		}
		return msgs[0]
	}
	seen, logs := observer.New(zap.InfoLevel)
	b.m.lg = zap.New(seen)
	for range 3 {
		ask(wire.Proposal{Min: wire.MaxVersion + 1, Max: wire.MaxVersion + 2})
	}
	if es := logs.FilterMessage("session refused").All(); len(es) != 1 || !strings.Contains(fmt.Sprint(es[0].ContextMap()["error"]), "upgrade the older one") {
		t.Errorf("three sessions that were refused are told of by %v", es)
	}
	if m := ask(wire.Proposal{Min: wire.MaxVersion + 1, Max: wire.MaxVersion + 2}); m.Type != replication.MsgNack || m.Status != replication.StatusVersion {
		t.Errorf("a version from the future was answered by %v %v, want a nack for the version", m.Type, m.Status)
	}
	if m := ask(wire.Proposal{Min: wire.MinVersion, Max: wire.MaxVersion}); m.Type != replication.MsgNack || m.Status != replication.StatusVersion {
		t.Errorf("a coordinator that reads without leases was answered by %v %v, want a nack for the version", m.Type, m.Status)
	}
	newer := wire.Proposal{Min: wire.MaxVersion, Max: wire.MaxVersion + 1, Able: wire.Local.Able, Needed: wire.Local.Needed}
	m := ask(newer)
	if m.Type != replication.MsgHelloAck {
		t.Fatalf("a newer coordinator was answered by %v %v", m.Type, m.Status)
	}
	_, agreed, err := wire.ParseHelloAck(m.Data, newer)
	releaseBuf(&m)
	if err != nil || agreed.Version != wire.MaxVersion {
		t.Errorf("agreed on %+v, %v; want version %d", agreed, err, wire.MaxVersion)
	}
}
