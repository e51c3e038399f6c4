package nbd

import (
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/tandem-storage/tandem/datapath/block"
	"github.com/tandem-storage/tandem/datapath/block/blocktest"
	"github.com/tandem-storage/tandem/internal/testseed"
)

// TestDeviceSurvivesItsServer kills the server and starts it again, under random I/O that is checked against a model: no request fails, and
// every read is of what was written last.
func TestDeviceSurvivesItsServer(t *testing.T) {
	for name, start := range map[string]func(t *testing.T, socket, image string) (kill func()){
		"ours": func(t *testing.T, socket, image string) func() {
			return spawn(t, []string{serverEnv + "=" + socket + "\t" + image + "\tvol", "SOCKET=" + socket}, os.Args[0])
		},
		"nbdkit": func(t *testing.T, socket, image string) func() {
			return spawn(t, nil, "nbdkit", "--foreground", "--unix", socket, "--filter=noparallel", "file", image)
		},
	} {
		t.Run(name, func(t *testing.T) {
			const size, kills = 8 << 20, 20
			socket := socketPath(t)
			image := socket + ".image"
			if err := os.WriteFile(image, make([]byte, size), 0o600); err != nil {
				t.Fatal(err)
			}
			kill := start(t, socket, image)
			d := open(t, socket)
			m := blocktest.NewModel(d)
			rng := rand.New(rand.NewPCG(testseed.Of(t), 0))
			var stop atomic.Bool
			var workers sync.WaitGroup
			steps := make(chan struct{}, 1)
			failed := make(chan struct{})
			fail := sync.OnceFunc(func() { close(failed) })
			for range 4 {
				w := rand.New(rand.NewPCG(rng.Uint64(), 1))
				workers.Go(func() {
					for !stop.Load() {
						if err := randomBatch(m, w, size); err != nil {
							t.Error(err)
							fail()
							return
						}
						select {
						case steps <- struct{}{}:
						default:
						}
					}
				})
			}
			for range kills {
				for range 1 + rng.IntN(20) {
					select {
					case <-steps:
					case <-failed:
						t.FailNow()
					}
				}
				kill()
				if name == "nbdkit" { // which does not take the place of a dead one
					_ = os.Remove(socket)
				}
				kill = start(t, socket, image)
			}
			stop.Store(true)
			workers.Wait()
			if err := block.ReadAt(m, make([]byte, size), 0); err != nil {
				t.Error(err)
			}
			if err := m.Err(); err != nil {
				t.Error(err)
			}
		})
	}
}

// randomBatch submits some requests at once and waits for them.
func randomBatch(d block.Device, rng *rand.Rand, size int64) error {
	const few = 64 // blocks: most requests meet others
	batch := make([]*block.Request, 1+rng.IntN(16))
	errs := make(chan error, len(batch))
	for i := range batch {
		n := (1 + rng.Int64N(8)) * 4096
		off := rng.Int64N(few) * 4096
		if rng.IntN(8) == 0 {
			n = 1 << 20
			off = rng.Int64N((size-n)/4096) * 4096
		}
		r := &block.Request{Off: off, Len: n, By: block.CompleterFunc(func(_ *block.Request, err error) { errs <- err })}
		switch k := rng.IntN(16); {
		case k == 0:
			r.Op, r.Off, r.Len = block.OpFlush, 0, 0
		case k == 1:
			r.Op = block.OpWriteZeroes
		case k < 7:
			r.Op, r.Data = block.OpRead, make([]byte, n)
		default:
			r.Op, r.Buf = block.OpWrite, block.NewBuffer(int(n))
			r.Data = r.Buf.Bytes()
			for p := 0; p < len(r.Data); p += 4096 {
				x := rng.Uint64()
				for j := p; j < p+4096; j += 8 {
					r.Data[j], r.Data[j+1], r.Data[j+2], r.Data[j+3] = byte(x), byte(x>>8), byte(x>>16), byte(x>>24)|1
				}
			}
		}
		batch[i] = r
	}
	d.Submit(batch)
	var first error
	for range batch {
		if err := <-errs; err != nil && first == nil {
			first = err
		}
	}
	for _, r := range batch {
		if r.Buf != nil {
			r.Buf.Release()
		}
	}
	return first
}
