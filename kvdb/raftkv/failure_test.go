package raftkv

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/tandem-storage/tandem/kvdb"
	"github.com/tandem-storage/tandem/kvdb/kvdbpb"
	"github.com/tandem-storage/tandem/kvdb/kvdbtest"
)

// cutOff ends all traffic of the node with other members, in both directions, until it is restarted.
func (n *testNode) cutOff(t *testing.T) {
	t.Helper()
	if err := n.node().transport.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestRestartOfAll(t *testing.T) {
	c := newTestCluster(t, 3, nil)
	c.put(c.nodes[0], "k", "v")
	before := c.nodes[0].Status()
	for _, node := range c.nodes {
		c.stop(node)
	}
	for _, node := range c.nodes {
		c.start(node)
	}
	for _, node := range c.nodes {
		c.ready(node)
		c.wantValue(node, "v")
	}
	if after := c.nodes[0].Status(); after.MemberID != before.MemberID || after.ClusterID != before.ClusterID {
		t.Errorf("after the restart %+v, before it %+v", after, before)
	}
}

// A leader without a majority stops serving, both reads and writes, and the others go on within seconds.
func TestLeaderCutOff(t *testing.T) {
	c := newTestCluster(t, 3, nil)
	c.put(c.nodes[0], "k", "before")
	old := c.leader()
	w := old.Watch(t.Context(), "k", old.Status().Revision)

	old.cutOff(t)
	cut := time.Now()
	successor := c.leader(old)
	c.put(successor, "k", "after")
	took := time.Since(cut)
	t.Logf("another leader served after %v", took)
	if took > 10*time.Second { // about 3 s on a machine that is not busy
		t.Errorf("another leader served after %v", took)
	}

	// Its gRPC way to the others is still there, and it uses that once it knows who leads; it never answers by itself.
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	kv, err := old.Get(ctx, "k")
	if err == nil && string(kv.Value) != "after" {
		t.Errorf("the old leader answers %q", kv.Value)
	}
	if err != nil && !errors.Is(err, kvdb.ErrNoLeader) {
		t.Errorf("the old leader answers %v", err)
	}
	// The clients find the others.
	client := c.client()
	defer func() { _ = client.Close() }()
	c.wantValue(client, "after")
	c.put(client, "k", "later")

	select {
	case e := <-w:
		t.Errorf("a cut-off member has an event: %+v", e)
	default:
	}
	c.stop(old)
	if e := <-w; !errors.Is(e.Err, kvdb.ErrClosed) {
		t.Errorf("watch of a stopped member: %+v", e)
	}
	c.start(old)
	c.ready(old)
	c.wantValue(old, "later")
}

// A member that does not hear the leader, while the majority does, is served by way of the others, whichever of them is there.
func TestMemberCutOff(t *testing.T) {
	c := newTestCluster(t, 3, nil)
	c.put(c.nodes[0], "k", "before")
	leader := c.leader()
	cut := c.follower()
	cut.cutOff(t)
	for cut.Status().LeaderID != "" {
		c.tick()
	}
	c.wantValue(cut, "before")
	c.put(cut, "k", "after")
	c.wantValue(leader, "after")
	lease, err := cut.Grant(t.Context(), kvdb.MinTTL)
	if err != nil {
		t.Fatal(err)
	}
	if err := lease.Revoke(t.Context()); err != nil {
		t.Error(err)
	}

	for _, node := range c.nodes {
		if node != leader && node != cut {
			node.server.Stop() // what is passed on by the leader alone
		}
	}
	c.put(cut, "k", "later")
	c.wantValue(cut, "later")
}

// What was relayed to a member without a leader goes no further: two of them would pass it back and forth.
func TestRelayOnce(t *testing.T) {
	c := newTestCluster(t, 3, nil)
	leader := c.leader()
	c.stop(leader)
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	for _, node := range c.nodes {
		if node == leader {
			continue
		}
		node.cutOff(t)
		for node.Status().LeaderID != "" {
			c.tick()
		}
		r, err := kvServer{m: node.LocalMember}.Txn(ctx, &kvdbpb.TxnRequest{Origin: &kvdbpb.Origin{ClusterId: node.clusterID()}})
		if err != nil || !errors.Is(fromFailure(r.GetFailure()), kvdb.ErrNoLeader) {
			t.Errorf("%s answers %v, %v", node.name, r, err)
		}
	}
}

// Without a majority nothing is changed, and it is said so.
func TestNoMajority(t *testing.T) {
	c := newTestCluster(t, 3, nil)
	c.put(c.nodes[0], "k", "v")
	leader := c.leader()
	for _, node := range c.nodes {
		if node != leader {
			c.stop(node)
		}
	}
	for leader.leads() {
		c.tick()
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	for name, call := range map[string]func() error{
		"get":   func() error { _, err := leader.Get(ctx, "k"); return err },
		"put":   func() error { _, err := kvdb.Put(ctx, leader, "k", []byte("no")); return err },
		"grant": func() error { _, err := leader.Grant(ctx, kvdb.MinTTL); return err },
	} {
		if err := call(); !errors.Is(err, kvdb.ErrNoLeader) && !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s: %v, want ErrNoLeader", name, err)
		}
	}
	for _, node := range c.nodes {
		if node != leader {
			c.start(node)
		}
	}
	c.wantValue(leader, "v")
}

// A follower that was away so long that the log it needs is gone takes a
// snapshot, and a member that restarts takes its own.
func TestSnapshotAndCatchUp(t *testing.T) {
	const threshold = 64
	c := newTestCluster(t, 3, func(o *Options) { o.SnapshotThreshold, o.SnapshotInterval = threshold, 50*time.Millisecond })
	leader := c.leader()
	lease, err := leader.Grant(t.Context(), kvdb.MaxTTL)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := kvdb.PutLeased(t.Context(), leader, "leased", []byte("v"), lease.ID()); err != nil {
		t.Fatal(err)
	}
	away := c.follower()
	client := c.client()
	defer func() { _ = client.Close() }()
	_, start, err := client.List(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	c.stop(away)
	for i := range 4 * threshold {
		c.put(leader, fmt.Sprintf("k%d", i%10), strconv.Itoa(i))
	}
	needed := away.fsm.applied.Load() + 1
	for n := 0; leader.node().disk.file.GetLog(needed, new(raft.Log)) == nil; n++ {
		c.put(leader, "more", strconv.Itoa(n))
	}
	want, rev, err := leader.List(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	c.start(away)
	for away.fsm.state.Revision() < rev {
		c.tick()
	}
	got, _ := away.fsm.state.List("")
	if !reflect.DeepEqual(got, want) {
		t.Errorf("after a snapshot %d keys, want %d, or their values differ", len(got), len(want))
	}
	if e := <-away.Watch(t.Context(), "k", start); !errors.Is(e.Err, kvdb.ErrCompacted) {
		t.Errorf("watch from before the snapshot: %+v, want ErrCompacted", e)
	}
	if _, err := away.Get(t.Context(), "leased"); err != nil {
		t.Error(err)
	}
	if err := lease.Revoke(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := away.Get(t.Context(), "leased"); !errors.Is(err, kvdb.ErrNotFound) {
		t.Errorf("the key of a revoked lease: %v", err)
	}

	for _, node := range c.nodes { // each from its own snapshot
		c.stop(node)
	}
	for _, node := range c.nodes {
		c.start(node)
	}
	for _, node := range c.nodes {
		c.ready(node)
		if _, err := node.Get(t.Context(), "k0"); err != nil {
			t.Error(err)
		}
	}
}

// Leases outlive their leader if they are renewed, and end under the next one
// if they are not, though not before they promised.
func TestLeasesAcrossLeaders(t *testing.T) {
	c := newTestCluster(t, 3, nil)
	keeper, leaver := c.client(), c.client()
	defer func() { _ = keeper.Close() }()
	kept, err := keeper.Grant(t.Context(), 8*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	left, err := leaver.Grant(t.Context(), 4*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := keeper.Txn(t.Context(), kvdb.Txn{Then: []kvdb.Op{
		{Kind: kvdb.OpPut, Key: "lease/kept", Lease: kept.ID()},
		{Kind: kvdb.OpPut, Key: "lease/left", Lease: left.ID()},
	}}); err != nil {
		t.Fatal(err)
	}
	_, rev, err := keeper.List(t.Context(), "lease/")
	if err != nil {
		t.Fatal(err)
	}
	w := keeper.Watch(t.Context(), "lease/", rev)
	if err := leaver.Close(); err != nil {
		t.Fatal(err)
	}
	promised := left.Expires()
	c.stop(c.leader())
	if e := <-w; e.Type != kvdb.EventDelete || e.KV.Key != "lease/left" {
		t.Fatalf("first change: %+v", e)
	}
	if early := time.Until(promised); early > 0 {
		t.Errorf("the lease ended %v before it promised", early)
	}
	if _, err := keeper.Get(t.Context(), "lease/kept"); err != nil {
		t.Error(err)
	}
	select {
	case <-kept.Done():
		t.Error("a lease that was kept alive ended")
	case e := <-w:
		t.Errorf("more changes: %+v", e)
	default:
	}
}

func TestTransferLeadership(t *testing.T) {
	c := newTestCluster(t, 3, nil)
	old := c.leader()
	if err := old.TransferLeadership(); err != nil {
		t.Fatal(err)
	}
	c.leader(old)
	c.put(old, "k", "v")
}

// A member that is found at other addresses says so itself.
func TestAddressChange(t *testing.T) {
	c := newTestCluster(t, 3, nil)
	moved := c.follower()
	c.stop(moved)
	moved.o.PeerListen, moved.o.ClientAdvertise = kvdbtest.FreeAddress(t), kvdbtest.FreeAddress(t)
	c.start(moved)
	c.put(c.leader(), "k", "v")
	for {
		m, found := findMember(c.leader().node(), moved.Status().MemberID)
		if found && m.PeerAddress == moved.o.PeerListen && m.ClientAddress == moved.o.ClientAdvertise {
			break
		}
		c.tick()
	}
	for moved.fsm.applied.Load() == 0 {
		c.tick()
	}
	c.wantValue(moved, "v")
}

func TestWitness(t *testing.T) {
	c := newTestCluster(t, 3, func(o *Options) { o.Witness = o.Node == "n3" })
	for _, m := range c.nodes[0].Status().Members {
		if m.Witness != (m.Node == "n3") {
			t.Errorf("%+v", m)
		}
	}
	c.put(c.nodes[2], "k", "v") // it serves like any other
	data := c.leader()
	c.stop(data)
	c.put(c.nodes[2], "k", "v2")
}

// Whoever waits is served by a run that began after it came, and those who come together by one.
func TestBatcher(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		runs := make(chan chan error)
		b := batcher{do: func() error {
			end := make(chan error)
			runs <- end
			return <-end
		}}
		var wg sync.WaitGroup
		errs := make([]error, 4)
		wait := func(i int) { wg.Go(func() { errs[i] = b.wait(t.Context()) }) }
		wait(0)
		first := <-runs
		for i := 1; i < 4; i++ {
			wait(i)
		}
		synctest.Wait()
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := b.wait(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("ended context: %v", err)
		}
		first <- nil
		second := <-runs
		second <- errors.New("failed")
		wg.Wait()
		if errs[0] != nil {
			t.Errorf("first: %v", errs[0])
		}
		for i := 1; i < 4; i++ {
			if !errors.Is(errs[i], kvdb.ErrNoLeader) {
				t.Errorf("%d: %v, want the outcome of the second run", i, errs[i])
			}
		}
		synctest.Wait()
		if b.running {
			t.Error("it runs with nobody waiting")
		}
	})
}

func TestHCLogToZap(t *testing.T) {
	core, logs := observer.New(zap.InfoLevel)
	h := newHCLog(zap.New(core)).Named("a").Named("b").With("k", 1)
	h.Debug("not this")
	h.Warn("message", "key", "value", "odd")
	if h.IsDebug() || !h.IsInfo() || h.Name() != "a.b" {
		t.Errorf("debug %v, info %v, name %s", h.IsDebug(), h.IsInfo(), h.Name())
	}
	got := logs.All()
	if len(got) != 1 || got[0].Message != "message" || got[0].LoggerName != "a.b" || got[0].Level != zap.WarnLevel {
		t.Fatalf("%+v", got)
	}
	if fields := got[0].ContextMap(); fields["key"] != "value" || fields["extra"] != "odd" || fmt.Sprint(fields["k"]) != "1" {
		t.Errorf("fields %v", fields)
	}
}
