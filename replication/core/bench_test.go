package core

import (
	"math/rand/v2"
	"testing"

	"github.com/tandem-storage/tandem/replication"
)

// benchPair is a serving coordinator and its members, without a simulator between.
type benchPair struct {
	c    *Coordinator
	reps []*Replica
	now  int64

	records int // of activity logs
}

func newBenchPair(b testing.TB, n int) *benchPair {
	b.Helper()
	w := newSimWorld(n, rand.New(rand.NewPCG(1, 1)))
	w.fifo = true
	w.fail = func(f string, a ...any) { b.Fatalf(f, a...) }
	w.opts.FlushInterval, w.opts.FlushBytes = 1e18, 1<<60
	w.client.at = w.nodes[0]
	w.nodes[0].attach()
	for range 200 {
		w.step()
	}
	p := &benchPair{c: w.nodes[0].coord, now: w.now}
	if p.c.stage != stageServing || p.c.openSet() != p.c.isr {
		b.Fatal("not serving")
	}
	for _, n := range w.nodes {
		p.reps = append(p.reps, n.rep)
	}
	return p
}

// turn carries messages and operations to and fro until nothing is left to do.
func (p *benchPair) turn(data []byte) (done int) {
	for {
		r := p.c.Ready()
		if len(r.Messages) == 0 && len(r.Completions) == 0 && len(r.Released) == 0 {
			return done
		}
		for i := range r.Messages {
			m := &r.Messages[i]
			rep := p.reps[m.To]
			rep.Step(rep.conn, &m.Msg)
		}
		done += len(r.Completions)
		p.c.Advance()
		for i, rep := range p.reps {
			for wait := true; wait; {
				d := rep.Ready()
				for _, io := range d.IO {
					var res []byte
					if io.Kind == replication.MsgRead {
						res = data[:io.Len]
					}
					rep.IODone(io, res, nil, nil)
				}
				for k := range d.Send {
					p.c.Step(p.now, i, &d.Send[k].Msg)
				}
				wait = d.Log != nil && d.Log.Wait
				if rep.Advance(); wait { // it is stored at once
					p.records++
					rep.LogDone(nil)
				}
			}
		}
	}
}

// batch proposes requests side by side and carries them out.
func (p *benchPair) batch(tb testing.TB, ios []IO, data []byte, kind replication.MessageType) {
	p.now += 1000
	for i := range ios {
		ios[i] = IO{Kind: kind, Off: int64(i) * sector, Len: sector, Data: data}
		p.c.Propose(p.now, &ios[i])
	}
	if done := p.turn(data); done != len(ios) {
		tb.Fatalf("%d of %d completed", done, len(ios))
	}
}

func benchmarkIO(b *testing.B, replicas, depth int, kind replication.MessageType) {
	p := newBenchPair(b, replicas)
	data, ios := make([]byte, sector), make([]IO, depth)
	b.ReportAllocs()
	b.ResetTimer()
	for n := 0; n < b.N; n += depth {
		p.batch(b, ios, data, kind)
	}
}

func BenchmarkWrite(b *testing.B)      { benchmarkIO(b, 2, 1, replication.MsgWrite) }
func BenchmarkWriteQD32(b *testing.B)  { benchmarkIO(b, 2, 32, replication.MsgWrite) }
func BenchmarkWrite3QD32(b *testing.B) { benchmarkIO(b, 3, 32, replication.MsgWrite) }
func BenchmarkRead(b *testing.B)       { benchmarkIO(b, 2, 1, replication.MsgRead) }
func BenchmarkReadQD32(b *testing.B)   { benchmarkIO(b, 2, 32, replication.MsgRead) }

// TestNoAllocations holds the write and the read path to none.
func TestNoAllocations(t *testing.T) {
	for _, kind := range []replication.MessageType{replication.MsgWrite, replication.MsgRead} {
		p := newBenchPair(t, 2)
		data, ios := make([]byte, sector), make([]IO, 8)
		if a := testing.AllocsPerRun(1000, func() { p.batch(t, ios, data, kind) }); a > 0 {
			t.Errorf("%v: %v allocations in %d requests", kind, a, len(ios))
		}
	}
}
