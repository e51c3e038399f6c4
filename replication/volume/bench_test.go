package volume

import (
	"context"
	"fmt"
	"net"
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/tandem-storage/tandem/datapath/block"
	"github.com/tandem-storage/tandem/replication"
	"github.com/tandem-storage/tandem/replication/core"
	"github.com/tandem-storage/tandem/replication/transport"
	"github.com/tandem-storage/tandem/replication/transport/pki"
)

// nullStorage completes everything at once: what remains is the cost of the
// engine and of the transport.
type nullStorage struct{ size int64 }

func (n nullStorage) Submit(batch []*block.Request) {
	for _, r := range batch {
		r.By.Complete(r, r.Check(n.Info()))
	}
}

func (n nullStorage) Info() block.Info {
	return block.Info{Size: n.size, BlockSize: block.SectorSize, Caps: block.CapFlush | block.CapFUA | block.CapDiscard | block.CapWriteZeroes}
}
func (nullStorage) Close() error               { return nil }
func (nullStorage) ChecksumsOff() error        { return nil }
func (nullStorage) Pool() string               { return "nowhere" }
func (nullStorage) Persist(core.Persist) error { return nil }
func (nullStorage) Crowded() (bool, error)     { return false, nil }

func (nullStorage) CloseClean(core.Rest) error { return nil }

func (nullStorage) ChangeLog(_ core.LogChange, done func(error)) {
	if done != nil {
		go done(nil)
	}
}

func (nullStorage) Stored() (Stored, error) {
	return Stored{Meta: core.ReplicaMeta{Epoch: 1, Gen: 1, State: replication.MemberInSync, Clean: true}}, nil
}

// netPeers are real connections with mutual TLS over loopback.
type netPeers struct{ *transport.Peers }

// newBenchVolume attaches a volume with two replicas on two nodes of this process.
func newBenchVolume(b *testing.B) *Volume {
	ca, err := pki.NewCA("bench", time.Hour)
	if err != nil {
		b.Fatal(err)
	}
	vol := replication.VolumeID(replication.NewUUID())
	const size = 1 << 30
	cfg := &replication.Config{
		Version: 1, Volume: vol, Epoch: 1, Gen: 1, Phase: replication.PhaseDetached, Size: size,
		Members: map[replication.ReplicaID]replication.Member{}, Protection: replication.MaxAvailability,
		History: []replication.EpochRecord{{Epoch: 1, Gen: 1}},
	}
	kv := &testConfigs{cfg: cfg, rev: 1}
	all := func(replication.DomainID) bool { return true }
	var managers []*Manager
	addrs := map[replication.NodeID]string{}
	var peers []*transport.Peers
	for _, name := range []string{"a", "b"} {
		node := replication.NodeID(name)
		cert, err := ca.Issue(transport.Identity{Cluster: "bench", Domain: replication.DomainID(name), Node: node}, time.Hour)
		if err != nil {
			b.Fatal(err)
		}
		sec, err := transport.NewTLS(cert, ca.Pool(), "bench")
		if err != nil {
			b.Fatal(err)
		}
		boot := replication.BootID(replication.NewUUID())
		p, err := transport.NewPeers(transport.PeersConfig{Security: sec, Boot: boot})
		if err != nil {
			b.Fatal(err)
		}
		rep := replication.ReplicaID(replication.NewUUID())
		cfg.ISR = append(cfg.ISR, rep)
		cfg.Members[rep] = replication.Member{Node: node, Domain: replication.DomainID(name), State: replication.MemberInSync}
		m := NewManager(Options{
			Node: node, Domain: replication.DomainID(name), Boot: boot, Instance: replication.NewUUID(),
			Configs: kv, Peers: netPeers{p}, Usable: all, MayKeep: all, MayAttach: all,
		})
		if err := m.AddReplica(vol, rep, nullStorage{size}); err != nil {
			b.Fatal(err)
		}
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			b.Fatal(err)
		}
		srv := transport.NewServer(transport.ServerConfig{Handler: m, Security: sec, Boot: boot})
		g := grpc.NewServer(srv.ServerOptions()...)
		srv.Register(g)
		served := make(chan error, 1)
		go func() { served <- g.Serve(l) }()
		b.Cleanup(func() {
			g.Stop()
			if err := srv.Close(); err != nil {
				b.Error(err)
			}
			<-served
		})
		addrs[node] = l.Addr().String()
		managers, peers = append(managers, m), append(peers, p)
	}
	for _, p := range peers {
		if err := p.SetNodes(addrs); err != nil {
			b.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	v, err := managers[0].Attach(ctx, vol, AttachOptions{})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		for _, m := range managers {
			if err := m.Close(ctx); err != nil {
				b.Log(err)
			}
		}
		for _, p := range peers {
			if err := p.Close(); err != nil {
				b.Error(err)
			}
		}
	})
	return v
}

// benchIO is one request that is submitted again and again.
type benchIO struct {
	block.Request
	done chan *benchIO
}

// Complete implements block.Completer.
func (o *benchIO) Complete(_ *block.Request, err error) {
	if err != nil {
		panic(err)
	}
	o.done <- o
}

// BenchmarkVolume measures the software path of two replicas over real gRPC with
// TLS on loopback and no disk: go test -bench Volume ./replication/volume.
func BenchmarkVolume(b *testing.B) {
	for _, c := range []struct {
		op    block.Op
		size  int64
		depth int
	}{{block.OpWrite, 4 << 10, 1}, {block.OpWrite, 4 << 10, 32}, {block.OpWrite, 128 << 10, 8}, {block.OpRead, 4 << 10, 1}, {block.OpRead, 4 << 10, 32}} {
		b.Run(fmt.Sprintf("%v/%dk/depth=%d", c.op, c.size>>10, c.depth), func(b *testing.B) {
			v := newBenchVolume(b)
			done := make(chan *benchIO, c.depth)
			for range c.depth {
				o := &benchIO{done: done}
				buf := block.NewBuffer(int(c.size))
				o.Op, o.Len, o.Buf, o.Data, o.By = c.op, c.size, buf, buf.Bytes(), o
				done <- o
			}
			b.SetBytes(c.size)
			b.ReportAllocs()
			b.ResetTimer()
			batch := make([]*block.Request, 0, c.depth)
			off := int64(0)
			for n := 0; n < b.N; {
				batch = batch[:0]
				o := <-done
				for {
					o.Off = off
					if off += c.size; off >= v.Info().Size {
						off = 0
					}
					batch = append(batch, &o.Request)
					n++
					select {
					case o = <-done:
						continue
					default:
					}
					break
				}
				v.Submit(batch)
			}
			for range c.depth {
				<-done
			}
		})
	}
}
