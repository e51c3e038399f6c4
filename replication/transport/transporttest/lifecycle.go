package transporttest

import (
	"context"
	"errors"
	"reflect"
	"testing"
	"time"

	"github.com/tandem-storage/tandem/replication"
	"github.com/tandem-storage/tandem/replication/transport"
)

// testIndependent fills one session that nobody reads: others go on.
func testIndependent(t *testing.T, open Open) {
	first := make(chan struct{}, 1)
	first <- struct{}{}
	stalled, end := make(chan struct{}), make(chan struct{})
	p := open(t, handler{session: func(_ context.Context, c transport.Conn) error {
		select {
		case <-first:
			close(stalled)
			<-end
			return nil
		default:
		}
		for {
			ms, err := c.Recv()
			if err != nil {
				return err
			}
			release(ms)
			if err := c.Send([]replication.Message{{Type: replication.MsgAck, Seq: ms[len(ms)-1].Seq}}); err != nil {
				return err
			}
		}
	}})
	full, err := p.Session(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	<-stalled
	ended := make(chan error, 1)
	go func() {
		for seq := 0; ; seq++ {
			if err := full.Send([]replication.Message{writeOf(seq, 64<<10)}); err != nil {
				ended <- err
				return
			}
		}
	}()
	c, err := p.Session(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for seq := range 500 {
		if err := c.Send([]replication.Message{writeOf(seq, 64<<10)}); err != nil {
			t.Fatal(err)
		}
		if a := collect(t, c, 1)[0]; a.Seq != replication.Seq(seq) {
			t.Fatalf("ack of %d for %d", a.Seq, seq)
		}
	}
	// A Send that blocks ends with Close.
	if err := full.Close(); err != nil {
		t.Error(err)
	}
	if err := <-ended; !errors.Is(err, transport.ErrClosed) {
		t.Errorf("Send ended with %v", err)
	}
	close(end)
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}

// testIdle sends to an end that does not receive as long as it is said not to block.
func testIdle(t *testing.T, open Open) {
	client, server := connect(t, open)
	const n = transport.IdleLen - 1<<10
	sent := 0
	for range 1000 { // more than a window
		if client.Idle() {
			if err := client.Send([]replication.Message{writeOf(sent, n)}); err != nil {
				t.Fatal(err)
			}
			sent++
		}
	}
	if sent == 0 {
		t.Error("a new Conn is not idle")
	}
	for seq, m := range collect(t, server, sent) {
		if !isWrite(&m, seq, n) {
			t.Errorf("message %d arrived as %v %d", seq, m.Type, m.Seq)
		}
		m.Buf.Release()
	}
}

func testClose(t *testing.T, open Open) {
	client, server := connect(t, open)
	received := make(chan error, 2)
	for _, c := range []transport.Conn{client, server} {
		go func() {
			_, err := c.Recv()
			received <- err
		}()
	}
	for range 2 {
		if err := client.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	}
	closed, disconnected := 0, 0
	for range 2 {
		switch err := <-received; {
		case errors.Is(err, transport.ErrClosed):
			closed++
		case errors.Is(err, transport.ErrDisconnected):
			disconnected++
		default:
			t.Errorf("Recv ended with %v", err)
		}
	}
	if closed != 1 || disconnected != 1 {
		t.Errorf("%d ends say closed, %d disconnected; want one each", closed, disconnected)
	}
	// A failed Send takes the buffer, too: a second release would panic.
	if err := client.Send([]replication.Message{writeOf(1, 4096)}); !errors.Is(err, transport.ErrClosed) {
		t.Errorf("Send after Close: %v", err)
	}
	if _, err := client.Recv(); !errors.Is(err, transport.ErrClosed) {
		t.Errorf("Recv after Close: %v", err)
	}
	sendUntilError(t, server)
}

// sendUntilError sends until the other end's end is noticed.
func sendUntilError(t *testing.T, c transport.Conn) {
	t.Helper()
	for {
		switch err := c.Send([]replication.Message{writeOf(1, 4096)}); {
		case err == nil:
		case errors.Is(err, transport.ErrDisconnected), errors.Is(err, transport.ErrClosed):
			return
		default:
			t.Errorf("Send ended with %v", err)
			return
		}
	}
}

func testServerCloses(t *testing.T, open Open) {
	client, server := connect(t, open)
	received := make(chan error, 1)
	go func() {
		_, err := server.Recv()
		received <- err
	}()
	for range 2 {
		if err := server.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	}
	if err := <-received; !errors.Is(err, transport.ErrClosed) {
		t.Errorf("Recv of the closed end: %v", err)
	}
	if _, err := client.Recv(); !errors.Is(err, transport.ErrDisconnected) {
		t.Errorf("Recv of the other end: %v", err)
	}
	sendUntilError(t, client)
}

// testHandlerReturns: what was sent before arrives, then the session is over.
func testHandlerReturns(t *testing.T, open Open) {
	p := open(t, handler{session: func(_ context.Context, c transport.Conn) error {
		return c.Send([]replication.Message{{Type: replication.MsgNack, Status: replication.StatusVersion}})
	}})
	c, err := p.Session(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if m := collect(t, c, 1)[0]; m.Status != replication.StatusVersion {
		t.Errorf("got %+v", m)
	}
	if _, err := c.Recv(); !errors.Is(err, transport.ErrDisconnected) {
		t.Errorf("then: %v", err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}

// testContext: the context of Session is for the opening.
func testContext(t *testing.T, open Open) {
	p := open(t, handler{session: func(ctx context.Context, c transport.Conn) error {
		for ctx.Err() == nil { // ends with the Conn
			if ms, err := c.Recv(); err == nil {
				release(ms)
			}
		}
		return nil
	}})
	ctx, cancel := context.WithCancel(t.Context())
	c, err := p.Session(ctx)
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := c.Send([]replication.Message{{Type: replication.MsgFlush}}); err != nil {
		t.Errorf("the session ended with the context of its opening: %v", err)
	}
	if c, err := p.Session(ctx); !errors.Is(err, transport.ErrDisconnected) {
		t.Errorf("opened with an ended context: %v, %v", c, err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}

// control answers the control exchange.
type control struct {
	transport.Handler
	seal    func(context.Context, replication.SealRequest) (replication.SealResult, error)
	prepare func(replication.PrepareRequest) replication.PrepareResult
	commit  func(replication.CommitRequest) replication.CommitResult
	dirty   func(replication.DirtyRequest) replication.DirtyResult
	turn    func(replication.TurnRequest) replication.TurnResult
	from    chan transport.Identity
}

func (c control) Seal(ctx context.Context, from transport.Identity, r replication.SealRequest) (replication.SealResult, error) {
	c.from <- from
	return c.seal(ctx, r)
}

func (c control) Prepare(_ context.Context, from transport.Identity, r replication.PrepareRequest) (replication.PrepareResult, error) {
	c.from <- from
	return c.prepare(r), nil
}

func (c control) Commit(_ context.Context, from transport.Identity, r replication.CommitRequest) (replication.CommitResult, error) {
	c.from <- from
	return c.commit(r), nil
}

func (c control) Dirty(_ context.Context, from transport.Identity, r replication.DirtyRequest) (replication.DirtyResult, error) {
	c.from <- from
	return c.dirty(r), nil
}

func (c control) Turn(_ context.Context, from transport.Identity, r replication.TurnRequest) (replication.TurnResult, error) {
	c.from <- from
	return c.turn(r), nil
}

// testControl sends every field of every request and response there and back.
func testControl(t *testing.T, open Open) {
	id := replication.NewUUID
	volume, replica, other := replication.VolumeID(id()), replication.ReplicaID(id()), replication.ReplicaID(id())

	seal := replication.SealRequest{Volume: volume, Replica: replica, Term: 1, Epoch: 2, Gen: 3, Incarnation: id(), AttachID: replication.AttachID(id())}
	sealed := replication.SealResult{
		Status: replication.StatusFenced, Term: 1<<64 - 1, Epoch: 5, Gen: 6, State: replication.MemberStale,
		Boot: replication.BootID(id()), Instance: id(), Lossy: true, LogLost: true, Crowded: true, Active: []uint32{0, 7, 1<<32 - 1},
		Applied: replication.Position{Term: 1<<64 - 2, Seq: 1<<63 + 1},
	}
	prepare := replication.PrepareRequest{Volume: volume, Replica: replica, Term: 8, Missing: []replication.ReplicaID{other, replica}, MarkAll: []replication.ReplicaID{other}, Size: 1 << 50}
	prepared := replication.PrepareResult{Status: replication.StatusState, Term: 9, Size: 1 << 49}
	commit := replication.CommitRequest{Volume: volume, Replica: replica, Term: 10, Incarnation: id(), Settled: true, Config: &replication.Config{
		Version: 1, Volume: volume, Epoch: 11, Gen: 1<<64 - 1, Phase: replication.PhaseActive,
		Coord: &replication.Coord{Node: "n", Domain: "d", AttachID: replication.AttachID(id()), Term: 10},
		ISR:   []replication.ReplicaID{replica},
		Members: map[replication.ReplicaID]replication.Member{
			replica: {Node: "n", Domain: "d", Pool: "p", State: replication.MemberInSync},
			other:   {Node: "m", Domain: "e", Pool: "q", State: replication.MemberStale, LeftEpoch: 3, LeftGen: 4, Reason: "why"},
		},
		Protection: replication.MaxProtection, Size: 1 << 40, ForkGen: 1, ProposalID: id(),
		History: []replication.EpochRecord{{Epoch: 1, Gen: 2, Node: "n", ISR: []replication.ReplicaID{replica}, Cause: "create"}},
	}}
	committed := replication.CommitResult{Status: replication.StatusEpoch, Epoch: 12}
	dirty := replication.DirtyRequest{Volume: volume, Replica: replica, Term: 13, Peer: other}
	dirtied := replication.DirtyResult{Bits: make([]byte, 8<<20)} // of a volume of 4 TiB
	pattern(dirtied.Bits, 1)
	turn := replication.TurnRequest{Volume: volume, Replica: replica, Runs: true, Ended: true}
	turned := replication.TurnResult{Status: replication.StatusNotFound, Granted: true, Rate: 1<<62 - 1, Again: 1500 * time.Millisecond}

	var got any
	from := make(chan transport.Identity, 1)
	p := open(t, control{
		from: from,
		seal: func(_ context.Context, r replication.SealRequest) (replication.SealResult, error) {
			got = r
			return sealed, nil
		},
		prepare: func(r replication.PrepareRequest) replication.PrepareResult { got = r; return prepared },
		commit:  func(r replication.CommitRequest) replication.CommitResult { got = r; return committed },
		dirty:   func(r replication.DirtyRequest) replication.DirtyResult { got = r; return dirtied },
		turn:    func(r replication.TurnRequest) replication.TurnResult { got = r; return turned },
	})
	check := func(name string, request, response, want any, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if who := <-from; who != Client {
			t.Errorf("%s came from %v", name, who)
		}
		if !reflect.DeepEqual(got, request) {
			t.Errorf("%s arrived as %+v, want %+v", name, got, request)
		}
		if !reflect.DeepEqual(response, want) {
			t.Errorf("%s was answered with %+v, want %+v", name, response, want)
		}
	}
	a, err := p.Seal(t.Context(), seal)
	check("seal", seal, a, sealed, err)
	b, err := p.Prepare(t.Context(), prepare)
	check("prepare", prepare, b, prepared, err)
	c, err := p.Commit(t.Context(), commit)
	check("commit", commit, c, committed, err)
	if r, ok := got.(replication.CommitRequest); ok && r.Config == commit.Config {
		t.Error("both ends have the same configuration in memory")
	}
	d, err := p.Dirty(t.Context(), dirty)
	check("dirty", dirty, d, dirtied, err)
	e, err := p.Turn(t.Context(), turn)
	check("turn", turn, e, turned, err)
}

func testControlError(t *testing.T, open Open) {
	p := open(t, control{from: make(chan transport.Identity, 1), seal: func(context.Context, replication.SealRequest) (replication.SealResult, error) {
		return replication.SealResult{Term: 9}, errors.New("disk on fire")
	}})
	if r, err := p.Seal(t.Context(), replication.SealRequest{}); !errors.Is(err, transport.ErrDisconnected) || r.Term != 0 {
		t.Errorf("got %+v, %v", r, err)
	}
}

// testControlCancelled: the caller need not wait for a peer that does not answer.
func testControlCancelled(t *testing.T, open Open) {
	began, end := make(chan struct{}), make(chan struct{})
	t.Cleanup(func() { close(end) })
	p := open(t, control{from: make(chan transport.Identity, 1), seal: func(ctx context.Context, _ replication.SealRequest) (replication.SealResult, error) {
		close(began)
		select {
		case <-end:
		case <-ctx.Done():
		}
		return replication.SealResult{}, ctx.Err()
	}})
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-began
		cancel()
	}()
	if r, err := p.Seal(ctx, replication.SealRequest{}); !errors.Is(err, transport.ErrDisconnected) {
		t.Errorf("got %+v, %v", r, err)
	}
}
