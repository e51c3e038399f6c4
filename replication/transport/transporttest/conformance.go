package transporttest

import (
	"bytes"
	"context"
	"errors"
	"reflect"
	"sync"
	"testing"

	"github.com/tandem-storage/tandem/datapath/block"
	"github.com/tandem-storage/tandem/replication"
	"github.com/tandem-storage/tandem/replication/transport"
	"github.com/tandem-storage/tandem/replication/wire"
)

// Open connects to a node whose requests h serves, and returns it as a Peer. What
// it starts ends with the test.
type Open func(t *testing.T, h transport.Handler) transport.Peer

// Run is the conformance suite of package transport's interfaces. The peer that
// open returns must call itself Client.
func Run(t *testing.T, open Open) {
	t.Run("Types", func(t *testing.T) { testTypes(t, open) })
	t.Run("Order", func(t *testing.T) { testOrder(t, open) })
	t.Run("Damage", func(t *testing.T) { testDamage(t, open) })
	t.Run("Payload", func(t *testing.T) { testPayload(t, open) })
	t.Run("BadMessage", func(t *testing.T) { testBadMessage(t, open) })
	t.Run("BufferReuse", func(t *testing.T) { testBufferReuse(t, open) })
	t.Run("BothWays", func(t *testing.T) { testBothWays(t, open) })
	t.Run("Idle", func(t *testing.T) { testIdle(t, open) })
	t.Run("Independent", func(t *testing.T) { testIndependent(t, open) })
	t.Run("Close", func(t *testing.T) { testClose(t, open) })
	t.Run("ServerCloses", func(t *testing.T) { testServerCloses(t, open) })
	t.Run("HandlerReturns", func(t *testing.T) { testHandlerReturns(t, open) })
	t.Run("ContextOfOpening", func(t *testing.T) { testContext(t, open) })
	t.Run("Control", func(t *testing.T) { testControl(t, open) })
	t.Run("ControlError", func(t *testing.T) { testControlError(t, open) })
	t.Run("ControlCancelled", func(t *testing.T) { testControlCancelled(t, open) })
}

// Client is who calls in Run.
var Client = transport.Identity{Cluster: "metro", Domain: "east", Node: "client"}

// handler is made of functions; a nil one is not called.
type handler struct {
	transport.Handler
	session func(ctx context.Context, c transport.Conn) error
}

func (h handler) ServeSession(ctx context.Context, from transport.Identity, c transport.Conn) error {
	if from != Client {
		return errors.New("transporttest: session of " + from.String())
	}
	return h.session(ctx, c)
}

// connect opens one session and returns both ends. The serving one ends with the test.
func connect(t *testing.T, open Open) (client, server transport.Conn) {
	t.Helper()
	servers, end := make(chan transport.Conn), make(chan struct{})
	p := open(t, handler{session: func(_ context.Context, c transport.Conn) error {
		servers <- c
		<-end
		return nil
	}})
	t.Cleanup(func() { close(end) })
	client, err := p.Session(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return client, <-servers
}

// collect receives count messages, in as many batches as they come.
func collect(t *testing.T, c transport.Conn, count int) []replication.Message {
	t.Helper()
	var all []replication.Message
	for len(all) < count {
		ms, err := c.Recv()
		if err != nil {
			t.Fatalf("after %d of %d messages: %v", len(all), count, err)
		}
		if len(ms) == 0 {
			t.Fatal("Recv returned nothing")
		}
		all = append(all, ms...)
	}
	return all
}

// pattern fills p so that no two seqs look the same.
func pattern(p []byte, seq int) {
	for i := range p {
		p[i] = byte(i>>9) ^ byte(i) ^ byte(seq*131) ^ byte(seq>>8)
	}
}

func writeOf(seq, n int) replication.Message {
	buf := block.NewBuffer(n)
	pattern(buf.Bytes(), seq)
	return replication.Message{Type: replication.MsgWrite, Session: 1, Seq: replication.Seq(seq), Length: int64(n), Data: buf.Bytes(), Buf: buf, Sums: wire.Sums(nil, buf.Bytes())}
}

func isWrite(m *replication.Message, seq, n int) bool {
	want := make([]byte, n)
	pattern(want, seq)
	return m.Type == replication.MsgWrite && m.Status == replication.StatusOK && m.Seq == replication.Seq(seq) && bytes.Equal(m.Data, want)
}

func testTypes(t *testing.T, open Open) {
	client, server := connect(t, open)
	data := make([]byte, replication.ResyncBlock)
	pattern(data, 1)
	sent := []replication.Message{
		{Type: replication.MsgHello, Data: wire.HelloBody(replication.Hello{Epoch: 3}, wire.Local)},
		{Type: replication.MsgHelloAck, Data: wire.HelloAckBody(replication.HelloAck{Credit: 9}, wire.Agreed{Version: 1})},
		{Type: replication.MsgWrite, Flags: replication.FlagFUA, Offset: 1 << 40, Length: 4096, Data: data[:4096]},
		{Type: replication.MsgZero, Flags: replication.FlagNoHole, Length: wire.MaxSpan},
		{Type: replication.MsgTrim, Length: 4096},
		{Type: replication.MsgFlush, StableSeq: 1<<64 - 1},
		{Type: replication.MsgAck, Flags: replication.FlagStable, Credit: 1<<32 - 1},
		{Type: replication.MsgNack, Status: replication.StatusFenced, Term: 8},
		{Type: replication.MsgRead, Length: 4096},
		{Type: replication.MsgData, Length: 4096, Data: data[:4096]},
		{Type: replication.MsgStable, StableSeq: 4},
		{Type: replication.MsgHashReq, Length: 1 << 20},
		{Type: replication.MsgHash, Length: replication.ResyncBlock, Data: data[:replication.HashLen]},
		{Type: replication.MsgResyncWrite, Length: replication.ResyncBlock, Data: data},
		{Type: replication.MsgResyncWrite, Length: replication.ResyncBlock},
		{Type: replication.MsgClose},
	}
	for i := range sent {
		sent[i].Session, sent[i].Seq = 0xfeedface, replication.Seq(i)
	}
	for _, ends := range [][2]transport.Conn{{client, server}, {server, client}} {
		if err := ends[0].Send(sent); err != nil {
			t.Fatal(err)
		}
		for i, got := range collect(t, ends[1], len(sent)) {
			want := sent[i]
			want.Sums = wire.Sums(nil, want.Data)
			if (got.Buf != nil) != (len(got.Data) > 0) {
				t.Errorf("%v has data of %d bytes and the buffer %p", want.Type, len(got.Data), got.Buf)
			}
			if got.Buf != nil {
				got.Data = bytes.Clone(got.Data)
				got.Buf.Release()
				got.Buf = nil
			}
			if !reflect.DeepEqual(got, want) {
				t.Errorf("%v arrived as %+v", want.Type, got)
			}
		}
	}
}

// testOrder sends batches of every size.
func testOrder(t *testing.T, open Open) {
	client, server := connect(t, open)
	sizes := []int{1, 3, 1, 64, 1500, 2}
	const n = 4096
	go func() {
		seq := 0
		for _, size := range sizes {
			var batch []replication.Message
			for range size {
				batch = append(batch, writeOf(seq, n))
				seq++
			}
			if err := client.Send(batch); err != nil {
				t.Error(err)
				return
			}
			for i := range batch { // the slice is ours again
				batch[i] = replication.Message{}
			}
		}
		if err := client.Send(nil); err != nil {
			t.Errorf("nothing: %v", err)
		}
		if err := client.Send([]replication.Message{writeOf(seq, wire.MaxPayload), writeOf(seq+1, wire.MaxPayload)}); err != nil {
			t.Error(err)
		}
	}()
	total := 0
	for _, s := range sizes {
		total += s
	}
	for seq := 0; seq < total+2; {
		ms, err := server.Recv()
		if err != nil {
			t.Fatal(err)
		}
		for i := range ms {
			size := n
			if seq >= total {
				size = wire.MaxPayload
			}
			if !isWrite(&ms[i], seq, size) {
				t.Fatalf("message %d arrived as %v %d, %v", seq, ms[i].Type, ms[i].Seq, ms[i].Status)
			}
			ms[i].Buf.Release()
			seq++
		}
	}
}

func testDamage(t *testing.T, open Open) {
	client, server := connect(t, open)
	bad := writeOf(1, 8192)
	bad.Sums[1] ^= 1
	if err := client.Send([]replication.Message{writeOf(0, 4096), bad, writeOf(2, 4096)}); err != nil {
		t.Fatal(err)
	}
	got := collect(t, server, 3)
	if !isWrite(&got[0], 0, 4096) || !isWrite(&got[2], 2, 4096) {
		t.Error("the others are damaged, too")
	}
	if g := got[1]; g.Status != replication.StatusCRC || g.Data != nil || g.Buf != nil || g.Seq != 1 || g.Length != 8192 {
		t.Errorf("the damaged one arrived as %+v", g)
	}
	release(got)
}

// testPayload says that a payload has one reference and is the receiver's own.
func testPayload(t *testing.T, open Open) {
	client, server := connect(t, open)
	m := writeOf(7, 64<<10)
	m.Buf.Retain()
	if err := client.Send([]replication.Message{m}); err != nil {
		t.Fatal(err)
	}
	got := collect(t, server, 1)[0]
	clear(m.Data)
	m.Buf.Release()
	if !isWrite(&got, 7, 64<<10) {
		t.Error("the payload is not the receiver's own")
	}
	if &got.Data[0] != &got.Buf.Bytes()[0] {
		t.Error("the payload does not begin with its buffer")
	}
	got.Buf.Release()
}

func testBadMessage(t *testing.T, open Open) {
	client, server := connect(t, open)
	bad := writeOf(0, 4096)
	bad.Length = 1
	if err := client.Send([]replication.Message{bad, writeOf(1, 4096)}); !errors.Is(err, wire.ErrMessage) {
		t.Errorf("a message that contradicts itself: %v", err)
	}
	if ms, err := server.Recv(); err == nil {
		t.Errorf("the session goes on after that: %v", ms)
	}
}

// testBufferReuse sends from buffers that are used again as soon as they are
// free, to a receiver that is slow to begin: one that is free too early arrives damaged.
func testBufferReuse(t *testing.T, open Open) {
	client, server := connect(t, open)
	const count, n = 2000, 32 << 10
	sent := make(chan error, 1)
	go func() {
		for seq := range count {
			if err := client.Send([]replication.Message{writeOf(seq, n)}); err != nil {
				sent <- err
				return
			}
		}
		sent <- nil
	}()
	for seq := 0; seq < count; {
		ms, err := server.Recv()
		if err != nil {
			t.Fatal(err)
		}
		for i := range ms {
			if !isWrite(&ms[i], seq, n) {
				t.Fatalf("message %d arrived as %d, %v", seq, ms[i].Seq, ms[i].Status)
			}
			ms[i].Buf.Release()
			seq++
		}
	}
	if err := <-sent; err != nil {
		t.Error(err)
	}
}

// testBothWays lets both ends send more than any window holds while both read:
// neither may wait for the other.
func testBothWays(t *testing.T, open Open) {
	client, server := connect(t, open)
	count := 1024 // of 128 KiB each: 128 MiB each way
	if testing.Short() {
		count = 256
	}
	const n = 128 << 10
	var wg sync.WaitGroup
	for _, c := range []transport.Conn{client, server} {
		wg.Go(func() {
			for seq := range count {
				if err := c.Send([]replication.Message{writeOf(seq, n)}); err != nil {
					t.Error(err)
					return
				}
			}
		})
		wg.Go(func() {
			for seq := 0; seq < count; {
				ms, err := c.Recv()
				if err != nil {
					t.Error(err)
					return
				}
				for i := range ms {
					if ms[i].Seq != replication.Seq(seq) || ms[i].Status != replication.StatusOK {
						t.Errorf("message %d arrived as %d, %v", seq, ms[i].Seq, ms[i].Status)
					}
					ms[i].Buf.Release()
					seq++
				}
			}
		})
	}
	wg.Wait()
}
