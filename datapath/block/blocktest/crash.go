package blocktest

import (
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/tandem-storage/tandem/datapath/block"
	"github.com/tandem-storage/tandem/internal/testseed"
)

// CrashFactory makes a device of zeroes and a function that returns what a
// power cut at that moment would leave, as a device of its own. The function is
// called several times, also with requests in flight, and leaves the first
// device as it is. The suite closes all of them.
type CrashFactory func(t *testing.T, size int64) (d block.Device, crash func(t *testing.T) block.Device)

// crashCheck is one property of what a power cut leaves.
type crashCheck struct {
	name string
	run  func(r *rig, m *Model, crash func() block.Device) error
}

var crashChecks = []crashCheck{
	{"fresh device", crashFresh},
	{"flushed writes are there", crashFlushed},
	{"FUA writes are there", crashFUA},
	{"zeroes and discards", crashZeroed},
	{"overwrites since the last flush", crashOverwritten},
	{"random I/O", crashRandom},
	{"survivor works", crashSurvivor},
}

// RunCrash checks that what is stable survives a power cut, and that everything
// else is old or new, block by block.
func RunCrash(t *testing.T, name string, factory CrashFactory) {
	t.Run(name, func(t *testing.T) {
		for _, c := range crashChecks {
			t.Run(c.name, func(t *testing.T) {
				seed := testseed.Of(t)
				d, crash := factory(t, crashSize)
				if err := c.on(d, func() block.Device { return crash(t) }, seed); err != nil {
					t.Fatal(err)
				}
			})
		}
	})
}

const crashSize = 2 * mib

func (c crashCheck) on(d block.Device, crash func() block.Device, seed uint64) error {
	m := NewModel(d)
	r := newRig(m, crashSize, seed)
	if err := c.run(r, m, crash); err != nil {
		_ = r.close() // as in check.on
		return errors.Join(r.violation(), err)
	}
	return errors.Join(r.finish(), m.Err())
}

// crashAndCheck cuts the power and checks and closes what is left.
func crashAndCheck(m *Model, crash func() block.Device) error {
	d, err := m.AfterCrash(crash)
	return errors.Join(err, d.Close())
}

func crashFresh(_ *rig, m *Model, crash func() block.Device) error {
	return crashAndCheck(m, crash)
}

func crashFlushed(r *rig, m *Model, crash func() block.Device) error {
	if err := r.write(0, pattern(r.rng.Uint64(), 0, mib), 0); err != nil {
		return err
	}
	if err := crashAndCheck(m, crash); err != nil {
		return fmt.Errorf("before the flush: %w", err)
	}
	if err := r.all(block.Request{Op: block.OpFlush}); err != nil {
		return err
	}
	return crashAndCheck(m, crash)
}

func crashFUA(r *rig, m *Model, crash func() block.Device) error {
	if !r.has(block.CapFUA) {
		return nil
	}
	if err := r.write(0, pattern(r.rng.Uint64(), 0, mib), 0); err != nil {
		return err
	}
	if err := r.write(mib/2, pattern(r.rng.Uint64(), 0, mib), block.FUA); err != nil {
		return err
	}
	return crashAndCheck(m, crash)
}

func crashZeroed(r *rig, m *Model, crash func() block.Device) error {
	flush := block.Request{Op: block.OpFlush}
	for _, op := range []block.Op{block.OpDiscard, block.OpWriteZeroes} {
		if !r.can(op) {
			continue
		}
		if err := r.write(0, pattern(r.rng.Uint64(), 0, int(r.size)), 0); err != nil {
			return err
		}
		if err := r.all(flush); err != nil {
			return err
		}
		if err := r.all(block.Request{Op: op, Off: page, Len: mib}); err != nil {
			return err
		}
		if err := crashAndCheck(m, crash); err != nil {
			return fmt.Errorf("%v before the flush: %w", op, err)
		}
		if err := r.all(flush); err != nil {
			return err
		}
		if err := crashAndCheck(m, crash); err != nil {
			return fmt.Errorf("%v after the flush: %w", op, err)
		}
		if !r.has(block.CapFUA) {
			continue
		}
		if err := r.all(block.Request{Op: op, Flags: block.FUA, Off: mib, Len: mib / 2}); err != nil {
			return err
		}
		if err := crashAndCheck(m, crash); err != nil {
			return fmt.Errorf("%v with FUA: %w", op, err)
		}
	}
	return nil
}

func crashOverwritten(r *rig, m *Model, crash func() block.Device) error {
	for round := range 8 {
		if err := r.write(0, pattern(r.rng.Uint64(), 0, 64*page), 0); err != nil {
			return err
		}
		if round == 3 {
			if err := r.all(block.Request{Op: block.OpFlush}); err != nil {
				return err
			}
		}
		if err := crashAndCheck(m, crash); err != nil {
			return fmt.Errorf("round %d: %w", round, err)
		}
	}
	return nil
}

// crashRandom cuts the power after every few batches of a concurrent workload.
func crashRandom(r *rig, m *Model, crash func() block.Device) error {
	var mu sync.Mutex
	batches := 0
	w := workload{workers: 3, batches: 40, batch: 6, maxLen: 16 * page}
	return w.run(r, func() {
		mu.Lock()
		defer mu.Unlock()
		if batches++; batches%8 != 0 {
			return
		}
		if err := crashAndCheck(m, crash); err != nil {
			r.violated("%w", err)
		}
	})
}

// crashSurvivor goes on with what the power cut left: it is a device like any
// other, and what was read from it once stays.
func crashSurvivor(r *rig, m *Model, crash func() block.Device) error {
	if err := r.write(0, pattern(r.rng.Uint64(), 0, int(r.size)), 0); err != nil {
		return err
	}
	d, err := m.AfterCrash(crash)
	if err != nil {
		return errors.Join(err, d.Close())
	}
	s := newRig(d, r.size, r.rng.Uint64())
	image := make([]byte, r.size)
	run := func() error {
		if err := block.ReadAt(d, image, 0); err != nil {
			return err
		}
		p := pattern(s.rng.Uint64(), 0, 32*page)
		copy(image[page:], p)
		if err := s.write(page, p, 0); err != nil {
			return err
		}
		return s.expect(0, image)
	}
	if err := run(); err != nil {
		return fmt.Errorf("survivor: %w", errors.Join(err, d.Close()))
	}
	return s.finish()
}
