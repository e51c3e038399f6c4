package limit

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/tandem-storage/tandem/datapath/block"
	"github.com/tandem-storage/tandem/datapath/block/blocktest"
)

const size = 64 << 20

// run submits n requests of length bytes at once and returns when each completed, since the start.
func run(t *testing.T, d block.Device, op block.Op, n, length int) []time.Duration {
	t.Helper()
	start := time.Now()
	done := make(chan time.Duration, n)
	batch := make([]*block.Request, n)
	for i := range batch {
		batch[i] = &block.Request{Op: op, Off: int64(i * length), Len: int64(length), By: block.CompleterFunc(func(_ *block.Request, err error) {
			if err != nil {
				t.Error(err)
			}
			done <- time.Since(start)
		})}
		if op == block.OpRead || op == block.OpWrite {
			batch[i].Data = make([]byte, length)
		}
	}
	d.Submit(batch)
	var at []time.Duration
	for range n {
		at = append(at, <-done)
	}
	return at
}

// Requests complete when the rate says, but for what a burst has left over.
func TestRates(t *testing.T) {
	for _, tc := range []struct {
		name      string
		rates     Rates
		op        block.Op
		n, length int
		want      time.Duration // of the last one
	}{
		{"none", Rates{}, block.OpWrite, 500, 4096, 0},
		{"iops", Rates{IOPS: 100}, block.OpWrite, 501, 4096, 5*time.Second - burst},
		{"iops, reads", Rates{IOPS: 100}, block.OpRead, 501, 4096, 5*time.Second - burst},
		{"less than one in a burst", Rates{IOPS: 2}, block.OpWrite, 5, 4096, 2*time.Second - burst},
		{"bandwidth", Rates{Bandwidth: 1 << 20}, block.OpWrite, 41, 128 << 10, 5*time.Second - burst},
		{"larger than a second's bandwidth", Rates{Bandwidth: 64 << 10}, block.OpWrite, 2, 1 << 20, 16*time.Second - burst},
		{"both, the bandwidth is less", Rates{IOPS: 1000, Bandwidth: 1 << 20}, block.OpWrite, 41, 128 << 10, 5*time.Second - burst},
		{"both, the requests are less", Rates{IOPS: 10, Bandwidth: 1 << 30}, block.OpWrite, 51, 4096, 5*time.Second - burst},
		{"discards move no bytes", Rates{Bandwidth: 4096}, block.OpDiscard, 100, 4096, 0},
		{"flushes are free", Rates{IOPS: 1, Bandwidth: 4096}, block.OpFlush, 100, 0, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := New(blocktest.NewMem(blocktest.MemOptions{Size: size}), tc.rates)
				defer l.Close()
				at := run(t, l, tc.op, tc.n, tc.length)
				if last := at[len(at)-1]; last.Round(time.Microsecond) != tc.want {
					t.Errorf("the last of %d after %v, want %v", tc.n, last, tc.want)
				}
			})
		})
	}
}

// A second in which nothing was asked for does not make up for more than a burst.
func TestNothingIsSavedUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := New(blocktest.NewMem(blocktest.MemOptions{Size: size}), Rates{IOPS: 100})
		defer l.Close()
		for range 3 {
			if at := run(t, l, block.OpWrite, 101, 4096); at[100].Round(time.Microsecond) != time.Second-burst {
				t.Errorf("the last after %v", at[100])
			}
			<-time.After(time.Minute)
		}
	})
}

// A flush does not wait for what waits, and what waits goes on when the rates are taken away.
func TestSetRates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := New(blocktest.NewMem(blocktest.MemOptions{Size: size}), Rates{IOPS: 1})
		defer l.Close()
		done := make(chan []time.Duration)
		go func() { done <- run(t, l, block.OpWrite, 100, 4096) }()
		synctest.Wait()
		if at := run(t, l, block.OpFlush, 1, 0); at[0] != 0 {
			t.Errorf("a flush took %v", at[0])
		}
		<-time.After(10 * time.Second)
		l.SetRates(Rates{IOPS: 10})
		<-time.After(time.Second)
		l.SetRates(Rates{})
		at := <-done
		if at[99] != 11*time.Second || at[9].Round(time.Microsecond) != 9*time.Second-burst {
			t.Errorf("the tenth after %v, the last after %v", at[9], at[99])
		}
		if l.held.Load() {
			t.Error("requests are held without a rate")
		}
	})
}

// What the device refuses is refused late, and costs what a request costs.
func TestRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := New(blocktest.NewMem(blocktest.MemOptions{Size: size}), Rates{IOPS: 1, Bandwidth: 1})
		defer l.Close()
		for _, r := range []block.Request{{Op: block.OpRead, Off: -1, Len: -4096}, {Op: 99}, {Op: block.OpWrite, Off: size, Len: 1 << 40, Data: nil}} {
			errs := make(chan error, 1)
			r.By = block.CompleterFunc(func(_ *block.Request, err error) { errs <- err })
			l.Submit([]*block.Request{&r})
			if err := <-errs; err == nil {
				t.Errorf("%+v: %v", r, err)
			}
		}
	})
}

// TestConformance: a device with rates is a device.
func TestConformance(t *testing.T) {
	for name, r := range map[string]Rates{"none": {}, "never reached": {IOPS: 1 << 40, Bandwidth: 1 << 50}, "reached": {IOPS: 20_000, Bandwidth: 400 << 20}} {
		blocktest.Run(t, name, func(_ *testing.T, size int64) block.Device {
			return New(blocktest.NewMem(blocktest.MemOptions{Size: size}), r)
		})
	}
}

// What waits when the device is closed is passed on, and ends as it does there.
func TestClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := New(blocktest.NewMem(blocktest.MemOptions{Size: size}), Rates{IOPS: 1})
		done := make(chan []time.Duration)
		go func() { done <- run(t, l, block.OpWrite, 10, 4096) }()
		synctest.Wait()
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		if at := <-done; at[9] != 0 {
			t.Errorf("the last after %v", at[9])
		}
	})
}

func BenchmarkSubmit(b *testing.B) {
	for _, bm := range []struct {
		name  string
		rates Rates
	}{{"none", Rates{}}, {"far away", Rates{IOPS: 1 << 40}}} {
		b.Run(bm.name, func(b *testing.B) {
			l := New(null{}, bm.rates)
			batch := []*block.Request{{Op: block.OpRead}}
			b.ReportAllocs()
			for b.Loop() {
				l.Submit(batch)
			}
		})
	}
}

// null completes nothing.
type null struct{ block.Device }

func (null) Submit([]*block.Request) {}
