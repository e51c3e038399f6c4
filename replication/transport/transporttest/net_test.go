package transporttest_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"

	"github.com/tandem-storage/tandem/datapath/block"
	"github.com/tandem-storage/tandem/replication"
	"github.com/tandem-storage/tandem/replication/transport"
	"github.com/tandem-storage/tandem/replication/transport/transporttest"
	"github.com/tandem-storage/tandem/replication/wire"
)

const server = replication.NodeID("server")

var client = transporttest.Client.Node

func TestConformance(t *testing.T) {
	transporttest.Run(t, func(t *testing.T, h transport.Handler) transport.Peer {
		n := transporttest.NewNet()
		n.Join(transporttest.Client, nil)
		n.Join(transport.Identity{Cluster: "metro", Domain: "west", Node: server}, h)
		t.Cleanup(n.Close)
		return n.Peer(client, server)
	})
}

func flush(seq replication.Seq) []replication.Message {
	return []replication.Message{{Type: replication.MsgFlush, Seq: seq}}
}

// recv returns the seqs of what arrives until the conn fails, and why.
func recv(c transport.Conn) (seqs []replication.Seq, err error) {
	for {
		ms, err := c.Recv()
		if err != nil {
			return seqs, err
		}
		for i := range ms {
			seqs = append(seqs, ms[i].Seq)
		}
	}
}

func send(t *testing.T, c transport.Conn, from, to replication.Seq) {
	t.Helper()
	for s := from; s <= to; s++ {
		if err := c.Send(flush(s)); err != nil {
			t.Fatal(err)
		}
	}
}

// TestReset: held messages are lost, the rest arrives, then both ends fail.
func TestReset(t *testing.T) {
	n := transporttest.NewNet()
	a, b := n.Pair(client, server)
	send(t, a, 1, 2)
	n.Hold(client, server)
	send(t, a, 3, 6)
	if h := n.Held(client, server); h != 4 {
		t.Errorf("%d held", h)
	}
	n.Release(client, server, 1)
	n.Reset(client, server)
	seqs, err := recv(b)
	if len(seqs) != 3 || seqs[2] != 3 || !errors.Is(err, transport.ErrDisconnected) {
		t.Errorf("received %v, %v", seqs, err)
	}
	if err := a.Send(flush(7)); !errors.Is(err, transport.ErrDisconnected) {
		t.Errorf("Send: %v", err)
	}
	if h := n.Held(client, server); h != 0 {
		t.Errorf("%d still held", h)
	}
}

// TestOneWay: what goes the other way arrives; the held rest arrives after Resume.
func TestOneWay(t *testing.T) {
	n := transporttest.NewNet()
	a, b := n.Pair(client, server)
	n.Hold(client, server)
	send(t, a, 1, 3)
	send(t, b, 4, 4)
	if ms, err := a.Recv(); err != nil || ms[0].Seq != 4 {
		t.Errorf("the other way: %v, %v", ms, err)
	}
	n.Resume(client, server)
	for want := replication.Seq(1); want <= 3; want++ {
		if ms, err := b.Recv(); err != nil || ms[0].Seq != want {
			t.Errorf("after the cut: %v, %v", ms, err)
		}
	}
}

// TestSendBlocks: a full window stops the sender, and a reset frees it.
func TestSendBlocks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := transporttest.NewNet()
		a, _ := n.Pair(client, server)
		done := make(chan error)
		go func() {
			for {
				buf := block.NewBuffer(64 << 10)
				if err := a.Send([]replication.Message{{Type: replication.MsgWrite, Length: 64 << 10, Data: buf.Bytes(), Buf: buf}}); err != nil {
					done <- err
					return
				}
			}
		}()
		synctest.Wait()
		select {
		case err := <-done:
			t.Fatalf("Send did not block: %v", err)
		default:
		}
		n.Reset(client, server)
		if err := <-done; !errors.Is(err, transport.ErrDisconnected) {
			t.Errorf("got %v", err)
		}
	})
}

func TestDamage(t *testing.T) {
	n := transporttest.NewNet()
	a, b := n.Pair(client, server)
	n.Damage(client, server, 1)
	for range 2 {
		if err := a.Send([]replication.Message{{Type: replication.MsgFlush}, {Type: replication.MsgWrite, Length: 4096, Data: make([]byte, 4096)}}); err != nil {
			t.Fatal(err)
		}
	}
	for _, want := range []replication.Status{replication.StatusCRC, replication.StatusOK} {
		ms, err := b.Recv()
		if err != nil || ms[1].Status != want || (ms[1].Buf == nil) != (want == replication.StatusCRC) {
			t.Errorf("got %+v, %v; want %v", ms, err, want)
		}
	}
}

// TestEarlyReuse: a sender that changes a payload on its way is found out.
func TestEarlyReuse(t *testing.T) {
	n := transporttest.NewNet()
	a, b := n.Pair(client, server)
	buf := block.NewBuffer(4096)
	defer buf.Release()
	buf.Retain()
	if err := a.Send([]replication.Message{{Type: replication.MsgWrite, Length: 4096, Data: buf.Bytes(), Buf: buf, Sums: wire.Sums(nil, buf.Bytes())}}); err != nil {
		t.Fatal(err)
	}
	buf.Bytes()[7]++
	if ms, err := b.Recv(); err != nil || ms[0].Status != replication.StatusCRC {
		t.Errorf("got %+v, %v", ms, err)
	}
}

// sealer counts the seals that reached it.
type sealer struct {
	transport.Handler
	seals chan struct{}
}

func (s sealer) Seal(context.Context, transport.Identity, replication.SealRequest) (replication.SealResult, error) {
	s.seals <- struct{}{}
	return replication.SealResult{}, nil
}

// TestCalls: a call that fails may or may not have been served.
func TestCalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := transporttest.NewNet()
		h := sealer{seals: make(chan struct{}, 9)}
		n.Join(transporttest.Client, nil)
		n.Join(transport.Identity{Node: server}, h)
		p := n.Peer(client, server)
		errs := make(chan error, 1)
		call := func(ctx context.Context) {
			go func() {
				_, err := p.Seal(ctx, replication.SealRequest{})
				errs <- err
			}()
			synctest.Wait()
		}
		expect := func(what string, served int, want error) {
			t.Helper()
			if err := <-errs; !errors.Is(err, want) || len(h.seals) != served {
				t.Errorf("%s: %v, served %d times; want %v, %d", what, err, len(h.seals), want, served)
			}
		}

		n.Hold(client, server)
		call(t.Context())
		n.Reset(client, server)
		expect("request lost", 0, transport.ErrDisconnected)

		ctx, cancel := context.WithCancel(t.Context())
		call(ctx)
		cancel()
		expect("given up", 0, transport.ErrDisconnected)
		n.Resume(client, server)

		n.Hold(server, client)
		call(t.Context())
		n.WaitHeld(server, client, 1)
		n.Reset(client, server)
		expect("response lost", 1, transport.ErrDisconnected)
		n.Resume(server, client)

		n.Down(server)
		call(t.Context())
		expect("down", 1, transport.ErrDisconnected)
		n.Up(server)
		call(t.Context())
		expect("up again", 2, nil)
		n.Close()
	})
}

func TestUnknown(t *testing.T) {
	n := transporttest.NewNet()
	n.Join(transporttest.Client, nil)
	if _, err := n.Peer(client, "nobody").Session(t.Context()); !errors.Is(err, transport.ErrUnknownPeer) {
		t.Errorf("got %v", err)
	}
}
