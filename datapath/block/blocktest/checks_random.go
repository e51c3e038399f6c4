package blocktest

import (
	"fmt"
	"math/rand/v2"
	"sync"

	"github.com/tandem-storage/tandem/datapath/block"
)

// workload is random I/O by several goroutines, each with a batch in flight.
type workload struct {
	workers, batches, batch int
	maxLen                  int64 // bytes
}

func checkRandom(r *rig) error {
	return checkWorkload(r, workload{workers: 4, batches: 60, batch: 8, maxLen: 64 * page})
}

// checkRandomFew makes nearly every request meet others on the same blocks.
func checkRandomFew(r *rig) error {
	r.size = 16 * page
	return checkWorkload(r, workload{workers: 4, batches: 150, batch: 6, maxLen: 6 * page})
}

// checkWorkload runs w under a Model and at the end reads everything.
func checkWorkload(r *rig, w workload) error {
	m := NewModel(r.dev)
	r.dev = m
	if err := w.run(r, func() {}); err != nil {
		return err
	}
	for off := int64(0); off < r.size; off += mib {
		n := min(mib, r.size-off)
		if err := r.all(readOf(off, make([]byte, n))); err != nil {
			return err
		}
	}
	return m.Err()
}

// run carries the workload out within r.size; between is called after each batch.
func (w workload) run(r *rig, between func()) error {
	errs := make([]error, w.workers)
	var wg sync.WaitGroup
	for g := range w.workers {
		rng := rand.New(rand.NewPCG(r.rng.Uint64(), uint64(g)))
		wg.Go(func() {
			for range w.batches {
				reqs := make([]block.Request, 1+rng.IntN(w.batch))
				for i := range reqs {
					reqs[i] = w.request(r, rng)
				}
				if errs[g] = r.all(reqs...); errs[g] != nil {
					return
				}
				between()
			}
		})
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			return fmt.Errorf("random I/O: %w", err)
		}
	}
	return nil
}

func (w workload) request(r *rig, rng *rand.Rand) block.Request {
	bs := int64(r.info.BlockSize)
	n := (1 + rng.Int64N(w.maxLen/bs)) * bs
	if rng.IntN(2) == 0 {
		n = bs * (1 + rng.Int64N(4))
	}
	off := rng.Int64N((r.size-n)/bs+1) * bs
	var f block.Flags
	if r.has(block.CapFUA) && rng.IntN(8) == 0 {
		f = block.FUA
	}
	switch k := rng.IntN(100); {
	case k < 4:
		return block.Request{Op: block.OpFlush}
	case k < 10 && r.has(block.CapDiscard):
		return block.Request{Op: block.OpDiscard, Off: off, Len: n, Flags: f}
	case k < 16 && r.has(block.CapWriteZeroes):
		if rng.IntN(2) == 0 {
			f |= block.NoHole
		}
		return block.Request{Op: block.OpWriteZeroes, Off: off, Len: n, Flags: f}
	case k < 50:
		return readOf(off, make([]byte, n))
	}
	q := writeOf(off, nil, f)
	q.Len = n
	if rng.IntN(2) == 0 {
		q.Buf = block.NewBuffer(int(n))
		q.Data = q.Buf.Bytes()
	} else {
		q.Data = make([]byte, n)
	}
	copy(q.Data, pattern(rng.Uint64(), off, int(n)))
	return q
}
