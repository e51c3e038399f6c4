package transport_test

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tandem-storage/tandem/datapath/block"
	"github.com/tandem-storage/tandem/replication"
	"github.com/tandem-storage/tandem/replication/transport"
	"github.com/tandem-storage/tandem/replication/wire"
)

// ack answers every write in the batches as they come.
func ack(_ context.Context, _ transport.Identity, c transport.Conn) error {
	var acks []replication.Message
	for {
		ms, err := c.Recv()
		if err != nil {
			return err
		}
		acks = acks[:0]
		for i := range ms {
			if ms[i].Buf != nil {
				ms[i].Buf.Release()
			}
			acks = append(acks, replication.Message{Type: replication.MsgAck, Session: ms[i].Session, Term: ms[i].Term, Seq: ms[i].Seq})
		}
		if err := c.Send(acks); err != nil {
			return err
		}
	}
}

func openBench(b *testing.B, insecure bool) transport.Conn {
	b.Helper()
	srv, cli := security(b, "server"), security(b, "client")
	if insecure {
		s, err := transport.InsecureLoopback(transport.Identity{Cluster: cluster, Domain: "dom", Node: "self"})
		if err != nil {
			b.Fatal(err)
		}
		srv, cli = s, s
	}
	p := dial(b, cli, "server", serve(b, srv, sessions{serve: ack}))
	c, err := p.Session(context.Background())
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { c.Close() })
	return c
}

func write(seq int, buf *block.Buffer, sums []uint32) replication.Message {
	buf.Retain()
	return replication.Message{
		Type: replication.MsgWrite, Session: 1, Term: 1, Seq: replication.Seq(seq),
		Offset: int64(seq) << 20, Length: int64(len(buf.Bytes())), Data: buf.Bytes(), Buf: buf, Sums: sums,
	}
}

// BenchmarkRoundTrip is one write of 4 KiB and its ack at a time.
func BenchmarkRoundTrip(b *testing.B) {
	for _, insecure := range []bool{false, true} {
		b.Run(mode(insecure), func(b *testing.B) {
			c := openBench(b, insecure)
			buf := block.NewBuffer(4096)
			defer buf.Release()
			sums := wire.Sums(nil, buf.Bytes())
			b.ReportAllocs()
			used := cpu(b)
			var took []time.Duration
			for i := 0; b.Loop(); i++ {
				start := time.Now()
				if err := c.Send([]replication.Message{write(i, buf, sums)}); err != nil {
					b.Fatal(err)
				}
				if _, err := c.Recv(); err != nil {
					b.Fatal(err)
				}
				took = append(took, time.Since(start))
			}
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)/2])/1e3, "p50-µs")
			b.ReportMetric(float64(took[len(took)*99/100])/1e3, "p99-µs")
			b.ReportMetric(float64(cpu(b)-used)/1e3/float64(len(took)), "cpu-µs/frame")
		})
	}
}

// BenchmarkPipeline is a stream of writes with the acks behind them, at most
// window of them unanswered.
func BenchmarkPipeline(b *testing.B) {
	for _, insecure := range []bool{false, true} {
		for _, s := range []struct{ size, batch, window int }{
			{4 << 10, 1, 32}, {4 << 10, 8, 64}, {4 << 10, 32, 256}, {128 << 10, 1, 32}, {128 << 10, 4, 64},
		} {
			b.Run(fmt.Sprintf("%s/%dk/batch%d", mode(insecure), s.size>>10, s.batch), func(b *testing.B) {
				c := openBench(b, insecure)
				buf := block.NewBuffer(s.size)
				defer buf.Release()
				sums := wire.Sums(nil, buf.Bytes())
				room := make(chan struct{}, s.window) // a token for each unanswered write
				b.SetBytes(int64(s.size))
				b.ReportAllocs()
				used := cpu(b)
				b.ResetTimer()
				done := make(chan error, 1)
				go func() {
					for n := 0; n < b.N; {
						ms, err := c.Recv()
						if err != nil {
							done <- err
							return
						}
						for range ms {
							<-room
						}
						n += len(ms)
					}
					done <- nil
				}()
				var batch []replication.Message
				for i := 0; i < b.N; {
					batch = batch[:0]
					for range min(s.batch, b.N-i) {
						room <- struct{}{}
						batch = append(batch, write(i, buf, sums))
						i++
					}
					if err := c.Send(batch); err != nil {
						b.Fatal(err)
					}
				}
				if err := <-done; err != nil {
					b.Fatal(err)
				}
				b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "frames/s")
				b.ReportMetric(float64(cpu(b)-used)/1e3/float64(b.N), "cpu-µs/frame")
			})
		}
	}
}

// cpu is the processor time of both ends so far: unlike the time on the clock it
// does not depend on what else the machine does.
func cpu(b *testing.B) time.Duration {
	b.Helper()
	var ru unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &ru); err != nil {
		b.Fatal(err)
	}
	return time.Duration(ru.Utime.Nano() + ru.Stime.Nano())
}

func mode(insecure bool) string {
	if insecure {
		return "plain"
	}
	return "tls"
}
