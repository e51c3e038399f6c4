package blocktest

import (
	"errors"
	"fmt"
	"hash/crc32"
	"time"

	"github.com/tandem-storage/tandem/datapath/block"
)

// checkBuffers hands over Buffers and lets go of them at completion.
func checkBuffers(r *rig) error {
	key := r.rng.Uint64()
	var reqs []block.Request
	for i, n := range []int{page, 4 * page, mib / 2, mib} {
		b := block.NewBuffer(n)
		off := int64(i) * mib
		copy(b.Bytes(), pattern(key, off, n))
		q := writeOf(off, b.Bytes(), 0)
		if n == mib {
			off -= page // part of a buffer: its second half
			q = writeOf(off, b.Bytes()[n/2:], 0)
			copy(q.Data, pattern(key, off, n/2))
		}
		q.Buf = b
		reqs = append(reqs, q)
	}
	if err := r.all(reqs...); err != nil {
		return err
	}
	for _, q := range reqs {
		want := pattern(key, q.Off, int(q.Len))
		b := block.NewBuffer(int(q.Len))
		read := readOf(q.Off, b.Bytes())
		read.Buf = b
		calls := r.start(read)
		if err := r.wait(calls...); err != nil {
			return err
		}
		if calls[0].err != nil {
			return fmt.Errorf("%v into a Buffer failed: %w", calls[0], calls[0].err)
		}
		if err := errors.Join(differ(q.Off, calls[0].got, want), r.expect(q.Off, want)); err != nil {
			return err
		}
	}
	return nil
}

// checkMemory uses memory of every alignment.
func checkMemory(r *rig) error {
	for _, shift := range []int{0, 1, 7, 512, 513, page - 1} {
		for _, n := range []int{page, 5 * page, mib} {
			key := r.rng.Uint64()
			mem := make([]byte, n+2*page)
			p := mem[shift : shift+n : shift+n]
			copy(p, pattern(key, mib, n))
			if err := r.all(writeOf(mib, p, 0)); err != nil {
				return err
			}
			q := make([]byte, n+2*page)
			fill(q, 0x5a)
			calls := r.start(readOf(mib, q[shift:shift+n:shift+n]))
			if err := r.wait(calls...); err != nil {
				return err
			}
			if calls[0].err != nil {
				return fmt.Errorf("%v into memory %d bytes beside a page failed: %w", calls[0], shift, calls[0].err)
			}
			if err := differ(mib, calls[0].got, pattern(key, mib, n)); err != nil {
				return fmt.Errorf("memory %d bytes beside a page: %w", shift, err)
			}
			for i, b := range q {
				if (i < shift || i >= shift+n) && b != 0x5a {
					return fmt.Errorf("a read of %d bytes wrote outside its Data", n)
				}
			}
		}
	}
	return nil
}

func checkSums(r *rig) error {
	table := crc32.MakeTable(crc32.Castagnoli)
	p := pattern(r.rng.Uint64(), 0, 64*page)
	q := writeOf(page, append([]byte(nil), p...), 0)
	for i := 0; i < len(p); i += page {
		q.Sums = append(q.Sums, crc32.Checksum(p[i:i+page], table))
	}
	if err := r.all(q); err != nil {
		return err
	}
	return r.expect(page, p)
}

// checkZeroing fills the device, zeroes parts and looks at everything.
func checkZeroing(r *rig, op block.Op, f block.Flags) error {
	if !r.can(op) {
		return nil // refusal is part of checkInvalid
	}
	bs := int64(r.info.BlockSize)
	image := pattern(r.rng.Uint64(), 0, int(r.size))
	if err := r.write(0, image, 0); err != nil {
		return err
	}
	flags := []block.Flags{f}
	if r.has(block.CapFUA) {
		flags = append(flags, f|block.FUA)
	}
	for _, w := range []struct{ off, n int64 }{
		{0, bs}, {r.size - bs, bs}, {mib, bs}, {mib + 3*bs, 5 * bs}, {2*mib - bs, 2 * bs}, {2*mib + 3*bs, mib + 2*bs},
	} {
		for _, g := range flags {
			if err := r.all(block.Request{Op: op, Flags: g, Off: w.off, Len: w.n}); err != nil {
				return err
			}
			clear(image[w.off : w.off+w.n])
			if err := r.expect(0, image); err != nil {
				return fmt.Errorf("after %v of %d bytes at %d: %w", op, w.n, w.off, err)
			}
		}
		p := pattern(r.rng.Uint64(), w.off, int(bs))
		copy(image[w.off:], p)
		if err := r.write(w.off, p, 0); err != nil {
			return err
		}
	}
	return r.expect(0, image)
}

// checkLargeZeroing zeroes far more than MaxIO in one request, of a device that
// is large enough to be kept in several files.
func checkLargeZeroing(r *rig, op block.Op) error {
	if !r.can(op) {
		return nil
	}
	marks := []int64{0, 64*mib - page, 64 * mib, 255 * mib, 256*mib - page, 256 * mib, 300 * mib, 512*mib - page, 512 * mib, r.size - page}
	p := func(off int64) []byte { return pattern(11, off, page) }
	for _, off := range marks {
		if err := r.write(off, p(off), 0); err != nil {
			return err
		}
	}
	// All but the first and the last block.
	if err := r.all(block.Request{Op: op, Off: page, Len: r.size - 2*page}); err != nil {
		return err
	}
	for _, off := range marks {
		want := make([]byte, page)
		if off == 0 || off == r.size-page {
			want = p(off)
		}
		if err := r.expect(off, want); err != nil {
			return err
		}
	}
	if err := r.all(block.Request{Op: op, Len: r.size}); err != nil {
		return err
	}
	return errors.Join(r.expect(0, make([]byte, page)), r.expect(r.size-page, make([]byte, page)))
}

func (r *rig) can(op block.Op) bool {
	if op == block.OpDiscard {
		return r.has(block.CapDiscard)
	}
	return r.has(block.CapWriteZeroes)
}

// within waits for one value, no longer than completionLimit.
func within(what string, done <-chan error) error {
	limit := time.NewTimer(completionLimit)
	defer limit.Stop()
	select {
	case err := <-done:
		return err
	case <-limit.C:
		return fmt.Errorf("%s did not end within %v", what, completionLimit)
	}
}
