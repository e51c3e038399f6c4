package backing

import (
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tandem-storage/tandem/datapath/block"
	"github.com/tandem-storage/tandem/datapath/meta"
)

// benchSize is the size of the replica that is measured, fully written before.
const benchSize = 512 << 20

// pipe keeps depth requests in flight, one batch at a time, as a front end does:
// what has completed is submitted again together.
type pipe struct{ done chan *block.Request }

func (p *pipe) Complete(r *block.Request, err error) {
	if err != nil {
		panic(err)
	}
	p.done <- r
}

func benchmark(b *testing.B, e Engine, fill func(r *block.Request), depth, size int) {
	dir := os.Getenv("TANDEM_BENCH_DIR") // a directory on the file system to measure; default as for tests
	if dir == "" {
		dir = b.TempDir()
	}
	p, err := OpenPool(Options{Path: dir, Cluster: testCluster, Node: "n1", Engine: e})
	if err != nil {
		b.Fatal(err)
	}
	defer p.Close()
	if err := p.Create(ReplicaSpec{Cluster: testCluster, Volume: testVolume, Replica: testReplica, Size: benchSize}); err != nil {
		b.Fatal(err)
	}
	defer p.Remove(testVolume, testReplica)
	r, err := p.Open(testVolume, testReplica)
	if err != nil {
		b.Fatal(err)
	}
	defer r.Close()
	buf := block.NewBuffer(block.MaxIO)
	defer buf.Release()
	copy(buf.Bytes(), randomBytes(4, block.MaxIO))
	for off := int64(0); off < benchSize; off += block.MaxIO {
		if err := block.WriteAt(r, buf.Bytes(), off, 0); err != nil {
			b.Fatal(err)
		}
	}
	if err := block.Flush(r); err != nil {
		b.Fatal(err)
	}

	pp := &pipe{done: make(chan *block.Request, depth)}
	rng := rand.New(rand.NewPCG(1, 2))
	batch := make([]*block.Request, 0, depth)
	began := make(map[*block.Request]time.Time, depth)
	for range depth {
		data := block.NewBuffer(size)
		defer data.Release()
		copy(data.Bytes(), randomBytes(3, size))
		batch = append(batch, &block.Request{Data: data.Bytes(), Len: int64(size), By: pp})
	}
	lat := make([]time.Duration, 0, b.N)
	b.SetBytes(int64(size))
	b.ReportAllocs()
	before := usage(b)
	b.ResetTimer()
	for sent, got := 0, 0; got < b.N; {
		batch = batch[:min(len(batch), b.N-sent)]
		now := time.Now()
		for _, req := range batch {
			req.Off = rng.Int64N(benchSize/int64(size)) * int64(size)
			fill(req)
			began[req] = now
		}
		r.Submit(batch)
		sent += len(batch)
		batch = batch[:0]
		for got < sent {
			if len(batch) > 0 && len(pp.done) == 0 {
				break
			}
			req := <-pp.done
			got++
			lat = append(lat, time.Since(began[req]))
			batch = append(batch, req)
		}
	}
	b.StopTimer()
	after := usage(b)
	per := func(after, before int64) float64 { return float64(after-before) / float64(b.N) }
	b.ReportMetric(per(after.Utime.Nano()+after.Stime.Nano(), before.Utime.Nano()+before.Stime.Nano())/1000, "cpu-us/op")
	b.ReportMetric(per(after.Nvcsw, before.Nvcsw), "waits/op")
	slices.Sort(lat)
	b.ReportMetric(float64(lat[len(lat)/2].Microseconds()), "p50-us")
	b.ReportMetric(float64(lat[len(lat)*99/100].Microseconds()), "p99-us")
}

// usage is what the process has consumed: CPU time, and how often its threads went to sleep.
func usage(b *testing.B) (u unix.Rusage) {
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return u
}

func BenchmarkReplica(b *testing.B) {
	write := func(r *block.Request) { r.Op = block.OpWrite }
	read := func(r *block.Request) { r.Op = block.OpRead }
	fua := func(r *block.Request) { r.Op, r.Flags = block.OpWrite, block.FUA }
	for _, e := range []Engine{EngineThreads, EngineURing} {
		for _, c := range []struct {
			name        string
			fill        func(*block.Request)
			depth, size int
		}{
			{"write-4k-1", write, 1, 4 << 10},
			{"write-4k-32", write, 32, 4 << 10},
			{"write-128k-1", write, 1, 128 << 10},
			{"write-128k-32", write, 32, 128 << 10},
			{"read-4k-1", read, 1, 4 << 10},
			{"read-4k-32", read, 32, 4 << 10},
			{"fua-4k-1", fua, 1, 4 << 10},
			{"fua-4k-32", fua, 32, 4 << 10},
		} {
			b.Run(fmt.Sprintf("%v/%s", e, c.name), func(b *testing.B) { benchmark(b, e, c.fill, c.depth, c.size) })
		}
	}
}

// BenchmarkActivityLog measures records of the activity log with a number of
// waiters, each of which activates another region when the one before is durable.
// An op is an activation.
func BenchmarkActivityLog(b *testing.B) {
	for _, e := range []Engine{EngineThreads, EngineURing} {
		for _, waiters := range []int{1, 8, 32} {
			b.Run(fmt.Sprintf("%v/%d", e, waiters), func(b *testing.B) { benchmarkLog(b, e, waiters) })
		}
	}
	b.Run("hit", func(b *testing.B) {
		_, r := newLogReplica(b, meta.DefaultLogSlots, EngineAuto)
		region := []uint32{7}
		done := func(error) {}
		if err := activate(r.Log(), region...); err != nil {
			b.Fatal(err)
		}
		b.ReportAllocs()
		for b.Loop() {
			r.Log().Activate(region, done)
		}
	})
}

func benchmarkLog(b *testing.B, e Engine, waiters int) {
	dir := os.Getenv("TANDEM_BENCH_DIR")
	if dir == "" {
		dir = b.TempDir()
	}
	p, err := OpenPool(Options{Path: dir, Cluster: testCluster, Node: "n1", Engine: e})
	if err != nil {
		b.Fatal(err)
	}
	defer p.Close()
	if err := p.Create(ReplicaSpec{Cluster: testCluster, Volume: testVolume, Replica: testReplica, Size: logSize}); err != nil {
		b.Fatal(err)
	}
	defer p.Remove(testVolume, testReplica)
	r, err := p.Open(testVolume, testReplica)
	if err != nil {
		b.Fatal(err)
	}
	defer r.Close()
	l := r.Log()
	count := &countingEngine{engine: p.engine}
	p.engine = count
	defer func() { p.engine = count.engine }()

	lat := make([]time.Duration, b.N)
	var next atomic.Int64
	var wg sync.WaitGroup
	b.ReportAllocs()
	b.ResetTimer()
	for range waiters {
		wg.Go(func() {
			done := make(chan error, 1)
			tell := func(err error) { done <- err }
			region := make([]uint32, 1)
			for {
				n := next.Add(1) - 1
				if n >= int64(b.N) {
					return
				}
				began := time.Now()
				l.Retire(region, uint64(n))
				region[0] = uint32(n % (logSize / regionSize))
				l.Activate(region, tell)
				if err := <-done; err != nil {
					b.Error(err)
					return
				}
				lat[n] = time.Since(began)
			}
		})
	}
	wg.Wait()
	b.StopTimer()
	b.ReportMetric(float64(count.writes.Load())/2/b.Elapsed().Seconds(), "records/s")
	b.ReportMetric(2*float64(b.N)/float64(count.writes.Load()), "ops/record")
	slices.Sort(lat)
	b.ReportMetric(float64(lat[len(lat)/2].Microseconds()), "p50-us")
	b.ReportMetric(float64(lat[len(lat)*99/100].Microseconds()), "p99-us")
}

// countingEngine counts the writes of a log.
type countingEngine struct {
	engine
	writes atomic.Int64
}

func (c *countingEngine) submit(ops []*op) {
	c.writes.Add(int64(len(ops)))
	c.engine.submit(ops)
}

// nullEngine does nothing, at once.
type nullEngine struct{ engine }

func (nullEngine) submit(ops []*op) {
	for _, o := range ops {
		o.owner.opDone(o, nil)
	}
}

// BenchmarkChecksums is what a request costs without the disk: with no checksums, with those that
// came with it, and with those that are computed here.
func BenchmarkChecksums(b *testing.B) {
	for _, size := range []int{4 << 10, 128 << 10} {
		for _, c := range []struct {
			name     string
			op       block.Op
			off, sum bool
		}{
			{"write/off", block.OpWrite, true, false},
			{"write/given", block.OpWrite, false, true},
			{"write/computed", block.OpWrite, false, false},
			{"read/off", block.OpRead, true, false},
			{"read/checked", block.OpRead, false, false},
		} {
			b.Run(fmt.Sprintf("%s/%dk", c.name, size>>10), func(b *testing.B) {
				p, err := OpenPool(Options{Path: b.TempDir(), Cluster: testCluster, Node: "n1", NoChecksums: c.off})
				if err != nil {
					b.Fatal(err)
				}
				defer p.Close()
				createTestReplica(b, p, 8<<20)
				r := openTestReplica(b, p)
				defer r.Close()
				if err := activate(r.Log(), 0, 1); err != nil {
					b.Fatal(err)
				}
				data := block.NewBuffer(size)
				defer data.Release()
				copy(data.Bytes(), randomBytes(1, size))
				pp := &pipe{done: make(chan *block.Request, 1)}
				req := &block.Request{Op: block.OpWrite, Data: data.Bytes(), Len: int64(size), By: pp}
				batch := []*block.Request{req}
				do := func() {
					r.Submit(batch)
					<-pp.done
				}
				const places = 16
				for i := range int64(places) {
					req.Off = i * int64(size)
					do()
				}
				engine := p.engine
				p.engine = nullEngine{engine}
				defer func() { p.engine = engine }()
				if req.Op = c.op; c.sum {
					for off := 0; off < size; off += block.SectorSize {
						req.Sums = append(req.Sums, crc32.Checksum(data.Bytes()[off:off+block.SectorSize], castagnoli))
					}
				}
				b.ReportAllocs()
				before := usage(b)
				b.ResetTimer()
				for i := range b.N {
					req.Off = int64(i%places) * int64(size)
					do()
				}
				b.StopTimer()
				after := usage(b)
				b.ReportMetric(float64(after.Utime.Nano()+after.Stime.Nano()-before.Utime.Nano()-before.Stime.Nano())/float64(b.N), "cpu-ns/op")
			})
		}
	}
}

// BenchmarkSnapshot is what a write of 4 KiB costs without the disk, with and without a snapshot whose chunk was cloned.
func BenchmarkSnapshot(b *testing.B) {
	for _, cuts := range []int{0, 1, 20} {
		b.Run(fmt.Sprintf("%d", cuts), func(b *testing.B) {
			p, err := OpenPool(Options{Path: mountImage(b, "xfs", 320<<20), Cluster: testCluster, Node: "n1", NoChecksums: true})
			if err != nil {
				b.Fatal(err)
			}
			defer p.Close()
			createTestReplica(b, p, 8<<20)
			r := openTestReplica(b, p)
			defer r.Close()
			data := block.NewBuffer(4096)
			defer data.Release()
			pp := &pipe{done: make(chan *block.Request, 1)}
			batch := []*block.Request{{Op: block.OpWrite, Data: data.Bytes(), Len: 4096, By: pp}}
			do := func() {
				r.Submit(batch)
				<-pp.done
			}
			do()
			for n := range cuts {
				must(b, r.cut(snapID(n)))
			}
			do()
			engine := p.engine
			p.engine = nullEngine{engine}
			defer func() { p.engine = engine }()
			b.ReportAllocs()
			before := usage(b)
			b.ResetTimer()
			for range b.N {
				do()
			}
			b.StopTimer()
			after := usage(b)
			b.ReportMetric(float64(after.Utime.Nano()+after.Stime.Nano()-before.Utime.Nano()-before.Stime.Nano())/float64(b.N), "cpu-ns/op")
		})
	}
}
