package volume

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/tandem-storage/tandem/datapath/backing"
	"github.com/tandem-storage/tandem/datapath/block"
	"github.com/tandem-storage/tandem/datapath/meta"
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
func (nullStorage) Close() error        { return nil }
func (nullStorage) ChecksumsOff() error { return nil }

func (nullStorage) CutSnapshot(replication.SnapshotID, int64) error { return nil }
func (nullStorage) Pool() string                                    { return "nowhere" }
func (nullStorage) Persist(core.Persist) error                      { return nil }
func (nullStorage) Crowded() (bool, error)                          { return false, nil }

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

// newBenchVolume attaches a volume with two replicas on two nodes of this process,
// which are kept in what storage returns.
func newBenchVolume(b *testing.B, size int64, storage func(replication.VolumeID, replication.ReplicaID) Storage) *Volume {
	ca, err := pki.NewCA("bench", time.Hour)
	if err != nil {
		b.Fatal(err)
	}
	vol := replication.VolumeID(replication.NewUUID())
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
		if err := m.AddReplica(vol, rep, storage(vol, rep)); err != nil {
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
			const size = 1 << 30
			v := newBenchVolume(b, size, func(replication.VolumeID, replication.ReplicaID) Storage { return nullStorage{size} })
			var off int64
			b.SetBytes(c.size)
			b.ReportAllocs()
			benchVolume(b, v, c.op, c.size, c.depth, func() int64 {
				at := off
				if off += c.size; off >= size {
					off = 0
				}
				return at
			})
		})
	}
}

// benchVolume keeps depth requests in flight, at offsets that next gives.
func benchVolume(b *testing.B, v *Volume, op block.Op, size int64, depth int, next func() int64) {
	done := make(chan *benchIO, depth)
	for range depth {
		o := &benchIO{done: done}
		buf := block.NewBuffer(int(size))
		o.Op, o.Len, o.Buf, o.Data, o.By = op, size, buf, buf.Bytes(), o
		done <- o
	}
	b.ResetTimer()
	batch := make([]*block.Request, 0, depth)
	for n := 0; n < b.N; {
		batch = batch[:0]
		o := <-done
		for {
			o.Off = next()
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
	for range depth {
		<-done
	}
	b.StopTimer()
}

// logless is a replica that keeps no activity log.
type logless struct{ Storage }

func (l logless) ChangeLog(_ core.LogChange, done func(error)) {
	if done != nil {
		go done(nil)
	}
}

func (l logless) Stored() (Stored, error) {
	s, err := l.Storage.Stored()
	s.Slots = 0
	return s, err
}

// BenchmarkActivityLog measures writes by how many regions they go to, with the activity log and without: up to
// meta.DefaultLogSlots regions are all in it, of ten times as many nearly none. The pools are in TANDEM_BENCH_DIR.
func BenchmarkActivityLog(b *testing.B) {
	const most = 10 * meta.DefaultLogSlots
	const blocks = 4 // of each region, written before
	for _, logged := range []bool{true, false} {
		b.Run(fmt.Sprintf("log=%v", logged), func(b *testing.B) {
			v := newBenchVolume(b, most*replication.RegionSize, func(vol replication.VolumeID, rep replication.ReplicaID) Storage {
				st := newBenchStorage(b, vol, rep, most*replication.RegionSize)
				if logged {
					return st
				}
				return logless{st}
			})
			buf := block.NewBuffer(block.SectorSize)
			b.Cleanup(buf.Release)
			for i := range int64(most) {
				for k := range int64(blocks) {
					if err := block.WriteAt(v, buf.Bytes(), i*replication.RegionSize+k*block.SectorSize, 0); err != nil {
						b.Fatal(err)
					}
				}
			}
			for _, regions := range []int64{16, meta.DefaultLogSlots / 2, most} {
				for _, depth := range []int{1, 32} {
					b.Run(fmt.Sprintf("regions=%d/depth=%d", regions, depth), func(b *testing.B) {
						rng := rand.New(rand.NewPCG(1, uint64(regions)))
						benchVolume(b, v, block.OpWrite, block.SectorSize, depth, func() int64 {
							return rng.Int64N(regions)*replication.RegionSize + rng.Int64N(blocks)*block.SectorSize
						})
					})
				}
			}
		})
	}
}

func newBenchStorage(b *testing.B, vol replication.VolumeID, rep replication.ReplicaID, size int64) Storage {
	dir := os.Getenv("TANDEM_BENCH_DIR")
	if dir == "" {
		dir = b.TempDir()
	}
	dir, err := os.MkdirTemp(dir, "pool")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { os.RemoveAll(dir) })
	cluster := meta.UUID(replication.NewUUID())
	pool, err := backing.OpenPool(backing.Options{Path: dir, Cluster: cluster, Node: "bench", AllowAnyFS: true})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { pool.Close() })
	if err := pool.Create(backing.ReplicaSpec{Cluster: cluster, Volume: meta.UUID(vol), Replica: meta.UUID(rep), Size: size}); err != nil {
		b.Fatal(err)
	}
	r, err := pool.Open(meta.UUID(vol), meta.UUID(rep))
	if err != nil {
		b.Fatal(err)
	}
	err = r.UpdateSuperblock(func(sb *meta.Superblock) { sb.Epoch, sb.Gen, sb.State = 1, 1, meta.StateInSync })
	if err != nil {
		b.Fatal(err)
	}
	return Backed(r, dir)
}
