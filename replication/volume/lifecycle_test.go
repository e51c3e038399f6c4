package volume

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/tandem-storage/tandem/datapath/block"
	"github.com/tandem-storage/tandem/datapath/block/blocktest"
	"github.com/tandem-storage/tandem/replication"
	"github.com/tandem-storage/tandem/replication/core"
	"github.com/tandem-storage/tandem/replication/transport"
	"github.com/tandem-storage/tandem/replication/wire"
)

// TestAttachTwiceWithoutTime: a second attach whose caller has no time left does
// no harm to the volume that is in use.
func TestAttachTwiceWithoutTime(t *testing.T) {
	c := newTestCluster(t, 16<<20)
	v := c.nodes[0].attach()
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	for range 64 {
		if w, err := c.nodes[0].m.Attach(ctx, c.vol, AttachOptions{}); w != v || err != nil {
			t.Fatalf("attach again: %p (was %p), %v", w, v, err)
		}
	}
	if err := block.WriteAt(v, make([]byte, block.SectorSize), 0, 0); err != nil {
		t.Fatal(err)
	}
}

// TestAttachGivesUp: an attach that cannot succeed in time says why, and leaves nothing attached.
func TestAttachGivesUp(t *testing.T) {
	c := newTestCluster(t, 16<<20)
	a := c.nodes[0]
	for _, n := range c.nodes {
		n.st.stored.Meta.State = replication.MemberFaulted
		if err := n.restart(); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	if v, err := a.m.Attach(ctx, c.vol, AttachOptions{}); v != nil || !errors.Is(err, replication.ErrStalled) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("attach without a replica: %v, %v", v, err)
	}
	if vs := a.m.Volumes(); len(vs) != 0 {
		t.Errorf("%d volumes left", len(vs))
	}
}

// restart is a clean stop and a new life.
func (n *testNode) restart() error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	err := n.m.Close(ctx)
	n.start()
	return err
}

// TestAttachMeetsDetach: an attach that runs into a detach gets the volume or an error.
func TestAttachMeetsDetach(t *testing.T) {
	c := newTestCluster(t, 16<<20)
	a := c.nodes[0]
	for range 30 {
		a.attach()
		var wg sync.WaitGroup
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
			defer cancel()
			if v, err := a.m.Attach(ctx, c.vol, AttachOptions{}); v == nil && err == nil {
				t.Error("neither a volume nor an error")
			}
		})
		detach(t, a)
		wg.Wait()
		detach(t, a)
	}
}

// TestAttachDetached: the volume ended in order under an attach that waited for it.
func TestAttachDetached(t *testing.T) {
	c := newTestCluster(t, 16<<20)
	a := c.nodes[0]
	v := a.attach()
	detach(t, a)
	v.waiters = 1 // as Attach finds it when the detach is faster
	if w, err := a.m.awaitServing(t.Context(), v); w != nil || !errors.Is(err, replication.ErrNotCoordinator) {
		t.Errorf("got %p, %v", w, err)
	}
}

// TestCloseMeetsAttach: a manager that closes leaves no attach behind.
func TestCloseMeetsAttach(t *testing.T) {
	c := newTestCluster(t, 16<<20)
	a := c.nodes[0]
	c.net.Down(c.nodes[1].id) // the takeover waits for it
	done := make(chan error, 1)
	go func() {
		_, err := a.m.Attach(context.Background(), c.vol, AttachOptions{})
		done <- err
	}()
	c.eventually("a takeover under way", func() bool { return len(a.m.Volumes()) == 1 })
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	err := a.m.Close(ctx)
	if err := <-done; err == nil {
		t.Error("the attach succeeded on a manager that was closed")
	}
	if vs := a.m.Volumes(); len(vs) != 0 {
		t.Errorf("%d volumes left; close ended with %v", len(vs), err)
	}
	if _, err := a.m.Attach(context.Background(), c.vol, AttachOptions{}); !errors.Is(err, replication.ErrClosed) {
		t.Errorf("attach on a closed manager: %v", err)
	}
}

// TestStatusOfReconciliation: the status follows what goes on without any event.
func TestStatusOfReconciliation(t *testing.T) {
	c := newTestCluster(t, 64<<20)
	for _, n := range c.nodes {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		if err := n.m.Close(ctx); err != nil {
			t.Fatal(err)
		}
		cancel()
		n.st.stored.LogLost = true // as if the stop had kept nothing
		n.start()
	}
	v := c.nodes[0].attach()
	c.eventually("everything reconciled", func() bool { return v.Status().Unreconciled == 0 })
	if since := v.Status().StalledSince; !since.IsZero() {
		t.Errorf("stalled since %v, and is not", since)
	}
}

// TestRefusedSessions: a replica that refuses every session leaves no streams behind.
func TestRefusedSessions(t *testing.T) {
	c := newTestCluster(t, 16<<20)
	a, b := c.nodes[0], c.nodes[1]
	in := blocktest.NewInject(b.st.mem)
	b.st.Device = in
	if err := b.restart(); err != nil {
		t.Fatal(err)
	}
	v := a.attach()
	c.kv.mu.Lock()
	c.kv.down = errors.New("test: kvdb is gone") // so that b stays in the in-sync set
	c.kv.mu.Unlock()
	fired := in.Add(blocktest.Rule{Err: block.ErrIO})
	done := make(chan error, 1)
	go func() { done <- block.WriteAt(v, make([]byte, block.SectorSize), 0, 0) }()
	c.eventually("a disk that fails", func() bool { return fired() > 0 })
	c.net.Down(b.id)
	c.net.Up(b.id)
	opened := c.sessions.Load()
	c.eventually("refusals", func() bool { return c.sessions.Load() >= opened+30 })
	c.eventually("the end of the refused sessions", func() bool {
		b.m.mu.Lock()
		defer b.m.mu.Unlock()
		return len(b.m.mu.sessions) <= 2
	})
	c.kv.mu.Lock()
	c.kv.down = nil
	c.kv.mu.Unlock()
	if err := <-done; err != nil {
		t.Errorf("the write ended with %v", err)
	}
}

// TestSessionLog: a peer that is away and cannot be evicted is told of once, and then rarely.
func TestSessionLog(t *testing.T) {
	c := newTestCluster(t, 16<<20)
	a, b := c.nodes[0], c.nodes[1]
	seen, logs := observer.New(zap.InfoLevel)
	a.m.lg = zap.New(seen)
	a.attach()
	c.kv.refuse(ErrNotSent) // so that b stays in the in-sync set
	c.net.Down(b.id)
	opened := c.sessions.Load()
	c.eventually("many attempts", func() bool { return c.sessions.Load() >= opened+30 })
	if n := logs.FilterMessage("session ended").Len() + logs.FilterMessage("session still not open").Len(); n != 1 {
		t.Errorf("%d lines about one session that was lost", n)
	}
	c.net.Up(b.id)
	c.eventually("a line about its return", func() bool { return logs.FilterMessage("session open again").Len() == 1 })

	var s sessionLog
	logs.TakeAll()
	for i := range int64(1200) { // twice a second for ten minutes
		s.down(a.m.lg, i*int64(time.Second)/2, "b", errors.New("away"))
	}
	es := logs.FilterMessage("session still not open").All()
	if len(es) != 9 || es[0].ContextMap()["attempts"] != int64(120) {
		t.Errorf("%d lines in ten minutes: %v", len(es), es)
	}

	s = sessionLog{}
	s.down(a.m.lg, 1, "b", errors.New("away"))
	logs.TakeAll()
	for i := range int64(20) { // it comes back with another version
		s.down(a.m.lg, 2+i, "b", refusedWith(replication.StatusVersion))
		s.down(a.m.lg, 2+i, "b", errors.New("away"))
	}
	es = logs.TakeAll()
	if len(es) != 1 || !strings.Contains(fmt.Sprint(es[0].ContextMap()["error"]), "upgrade the older one") {
		t.Errorf("a session that was refused because of the versions is told of by %v", es)
	}
}

// TestOpeningGivenUp: a session that was given up before the replica answered is closed.
func TestOpeningGivenUp(t *testing.T) {
	c := newTestCluster(t, 16<<20)
	a, b := c.nodes[0], c.nodes[1]
	v := a.attach()
	opened := c.sessions.Load()
	c.net.Down(b.id)
	c.net.Hold(a.id, b.id)
	c.net.Up(b.id)
	c.eventually("an opening", func() bool { return c.sessions.Load() > opened && c.open.Load() == 1 })
	a.m.PeerUp(b.id, false)
	c.awaitInSync(1)
	c.eventually("the end of the opening", func() bool { return c.open.Load() == 0 })
	c.net.Resume(a.id, b.id)
	a.m.PeerUp(b.id, true)
	c.awaitInSync(2)
	if err := block.Flush(v); err != nil {
		t.Fatal(err)
	}
}

// slowClose is a storage whose clean close takes as long as the test wants.
type slowClose struct {
	*testStorage
	closing, proceed chan struct{}
	submitted        atomic.Int64
}

func (s *slowClose) Submit(batch []*block.Request) {
	s.submitted.Add(int64(len(batch)))
	s.testStorage.Submit(batch)
}

func (s *slowClose) CloseClean(rest core.Rest) error {
	close(s.closing)
	<-s.proceed
	return s.testStorage.CloseClean(rest)
}

// sink takes a replica's answers.
type sink struct {
	got   chan replication.MessageType
	ended atomic.Bool
}

func (*sink) agreed() wire.Agreed { return wire.Agreed{Version: wire.MaxVersion} }

func (s *sink) reply(batch []replication.Message) {
	for i := range batch {
		releaseBuf(&batch[i])
		s.got <- batch[i].Type
	}
}

func (s *sink) end() { s.ended.Store(true) }

// TestNothingAfterStop: once the replica has told what a clean stop has to keep,
// it takes no write any more: that one would be missing in what is kept.
func TestNothingAfterStop(t *testing.T) {
	st := &slowClose{testStorage: newTestStorage(16 << 20), closing: make(chan struct{}), proceed: make(chan struct{})}
	vol, id := replication.VolumeID(replication.NewUUID()), replication.ReplicaID(replication.NewUUID())
	h, err := newHost(vol, id, 16<<20, st, &nodeIdentity{boot: replication.BootID(replication.NewUUID())}, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	if r, err := h.control(t.Context(), &replication.SealRequest{Volume: vol, Replica: id, Term: 2, Epoch: 2}); err != nil || r.Seal.Status != replication.StatusOK {
		t.Fatalf("seal: %+v, %v", r.Seal, err)
	}
	write := func(to *sink) {
		conn := h.newConn()
		h.post(hostInput{
			kind: hostHello, conn: conn, to: to, hello: replication.Hello{Volume: vol, Replica: id},
			msg: replication.Message{Type: replication.MsgHello, Session: 7, Term: 2},
		})
		b := block.NewBuffer(block.SectorSize)
		h.post(hostInput{kind: hostMessage, conn: conn, msg: replication.Message{
			Type: replication.MsgWrite, Session: 7, Term: 2, Seq: 1, Length: block.SectorSize, Data: b.Bytes(), Buf: b,
		}})
	}
	before := &sink{got: make(chan replication.MessageType, 8)}
	write(before)
	if m := [...]replication.MessageType{<-before.got, <-before.got}; m != [...]replication.MessageType{replication.MsgHelloAck, replication.MsgAck} {
		t.Fatalf("before the stop: %v", m)
	}
	closed := make(chan error, 1)
	go func() { closed <- h.close(context.Background()) }()
	<-st.closing
	if !before.ended.Load() {
		t.Error("the session outlived the stop")
	}
	after := &sink{got: make(chan replication.MessageType, 8)}
	write(after)
	if !after.ended.Load() || len(after.got) != 0 || st.submitted.Load() != 1 {
		t.Errorf("after the stop: ended %v, %d answers, %d requests on the disk; want true, 0, 1", after.ended.Load(), len(after.got), st.submitted.Load())
	}
	if _, err := h.control(t.Context(), &replication.SealRequest{Volume: vol, Replica: id, Term: 3, Epoch: 3}); !errors.Is(err, replication.ErrClosed) {
		t.Errorf("seal after the stop: %v", err)
	}
	close(st.proceed)
	if err := <-closed; err != nil {
		t.Error(err)
	}
}

// TestOpeningGivesBuffersBack: the payloads of the opening messages are released, whatever they say.
func TestOpeningGivesBuffersBack(t *testing.T) {
	v := &Volume{}
	for _, body := range [][]byte{wire.HelloAckBody(replication.HelloAck{}, wire.Agreed{Version: wire.MaxVersion}), []byte("garbage")} {
		b := block.NewBuffer(len(body))
		copy(b.Bytes(), body)
		m := replication.Message{Type: replication.MsgHelloAck, Data: b.Bytes(), Buf: b}
		v.sessionInput(0, 1, nil, &m)
		if m.Buf != nil {
			t.Errorf("the buffer of an answer of %d bytes is kept", len(body))
		}
	}
}

// TestPersistFails: a replica that cannot make its promise durable gives none; the
// volume is taken over without it.
func TestPersistFails(t *testing.T) {
	c := newTestCluster(t, 16<<20)
	a, b := c.nodes[0], c.nodes[1]
	b.st.mu.Lock()
	b.st.fail = errors.New("test: superblock cannot be written")
	b.st.mu.Unlock()
	v := a.attach()
	c.awaitInSync(1)
	if err := block.WriteAt(v, make([]byte, block.SectorSize), 0, block.FUA); err != nil {
		t.Fatal(err)
	}
	if m := c.kv.config().Members[b.rep]; m.State == replication.MemberInSync {
		t.Errorf("the replica without a promise is %v", m.State)
	}
	id := transport.Identity{Cluster: "test", Domain: a.dom, Node: a.id}
	r, err := b.m.Seal(t.Context(), id, replication.SealRequest{Volume: c.vol, Replica: b.rep, Term: 1 << 40, Epoch: 1 << 40})
	if err != nil || r.Status != replication.StatusIO {
		t.Errorf("a seal afterwards: %v, %v", r.Status, err)
	}
}

// TestGarbageSessions: whatever a node says first, or in between, the session ends
// and the replica serves the others.
func TestGarbageSessions(t *testing.T) {
	c := newTestCluster(t, 16<<20)
	a, b := c.nodes[0], c.nodes[1]
	hello := func(h replication.Hello) replication.Message {
		m := replication.Message{Type: replication.MsgHello, Session: 9, Term: 1}
		fillHello(&m, h)
		return m
	}
	with := func(m replication.Message, n int) replication.Message {
		m.Buf = block.NewBuffer(n)
		m.Data = m.Buf.Bytes()
		clear(m.Data)
		return m
	}
	good := hello(replication.Hello{Volume: c.vol, Replica: b.rep})
	garbage := with(replication.Message{Type: replication.MsgHello, Session: 9}, 17)
	for name, batch := range map[string][]replication.Message{
		"a write first":         {with(replication.Message{Type: replication.MsgWrite, Length: 512}, 512)},
		"a hello that is none":  {garbage},
		"another replica":       {hello(replication.Hello{Volume: c.vol, Replica: a.rep})},
		"another volume":        {hello(replication.Hello{Volume: replication.VolumeID(replication.NewUUID()), Replica: b.rep})},
		"garbage after a hello": {good, with(replication.Message{Type: replication.MsgWrite, Session: 9, Seq: 1, Length: 512}, 512), with(replication.Message{Type: replication.MsgHello, Session: 9}, 3)},
	} {
		conn, err := c.net.Peer(a.id, b.id).Session(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err := conn.Send(batch); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		for err == nil { // refusals, then the end
			var msgs []replication.Message
			if msgs, err = conn.Recv(); err == nil && msgs[0].Type != replication.MsgNack {
				t.Errorf("%s: answered by %v", name, msgs[0].Type)
			}
		}
		conn.Close()
	}
	v := a.attach()
	if err := block.WriteAt(v, make([]byte, block.SectorSize), 0, 0); err != nil {
		t.Fatal(err)
	}
	detach(t, a)
	c.awaitInSync(2)
	c.eventually("the end of all sessions", func() bool {
		b.m.mu.Lock()
		defer b.m.mu.Unlock()
		return len(b.m.mu.sessions) == 0
	})
}

// TestDomainDrains: a replica in a domain that is deactivated by plan leaves while writes go on, and is resynced when the
// domain is active again. A coordinator that may evict nobody does not try.
func TestDomainDrains(t *testing.T) {
	c := newTestCluster(t, 16<<20)
	a, b := c.nodes[0], c.nodes[1]
	v := a.attach()
	w := startWriter(v, 2)
	c.drain(b.dom, true)
	c.awaitInSync(1)
	n := w.count()
	c.eventually("writes", func() bool { return w.count() > n+100 })
	c.drain(b.dom, false)
	c.awaitInSync(2)
	for _, err := range w.finish() {
		t.Error(err)
	}
	detach(t, a)
	c.compare()
}
