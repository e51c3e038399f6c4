package blocktest

import (
	"errors"
	"fmt"
	"math"
	"sync"

	"github.com/tandem-storage/tandem/datapath/block"
)

const (
	mib  = 1 << 20
	page = block.SectorSize
)

// checks is the suite. Sizes with several hundred MiB cross the chunk files of
// real stores; what they touch is sparse.
var checks = []check{
	{"info", 4 * mib, checkInfo},
	{"fresh device reads zeroes", 8 * mib, checkFresh},
	{"write and read at the edges", 8 * mib, checkEdges},
	{"overwrite", 4 * mib, checkOverwrite},
	{"invalid requests change nothing", 2 * mib, checkInvalid},
	{"invalid request beside valid ones", 4 * mib, checkInvalidInBatch},
	{"empty batch", 4 * mib, checkEmptyBatch},
	{"batch of many", 8 * mib, checkBatch},
	{"submit from a completer", 4 * mib, checkSubmitFromCompleter},
	{"request used again", 4 * mib, checkReuse},
	{"buffers", 4 * mib, checkBuffers},
	{"slices and unaligned memory", 4 * mib, checkMemory},
	{"checksums given", 4 * mib, checkSums},
	{"write zeroes", 4 * mib, func(r *rig) error { return checkZeroing(r, block.OpWriteZeroes, 0) }},
	{"write zeroes without holes", 4 * mib, func(r *rig) error { return checkZeroing(r, block.OpWriteZeroes, block.NoHole) }},
	{"discard", 4 * mib, func(r *rig) error { return checkZeroing(r, block.OpDiscard, 0) }},
	{"write zeroes, large", 640 * mib, func(r *rig) error { return checkLargeZeroing(r, block.OpWriteZeroes) }},
	{"discard, large", 640 * mib, func(r *rig) error { return checkLargeZeroing(r, block.OpDiscard) }},
	{"flush", 4 * mib, checkFlush},
	{"random concurrent I/O", 4 * mib, checkRandom},
	{"random I/O on few blocks", 1 * mib, checkRandomFew},
	{"close twice", 1 * mib, checkCloseTwice},
	{"submit after close", 4 * mib, checkAfterClose},
	{"close with requests in flight", 8 * mib, checkCloseInFlight},
}

func checkInfo(r *rig) error {
	i := r.info
	switch bs := i.BlockSize; {
	case bs < 512 || bs&(bs-1) != 0:
		return fmt.Errorf("block size %d is not a power of two of at least 512", bs)
	case bs > page:
		return fmt.Errorf("block size %d is above %d", bs, page)
	case i.Size != r.size:
		return fmt.Errorf("size %d, asked for %d", i.Size, r.size)
	case i.Size%int64(bs) != 0:
		return fmt.Errorf("size %d is not a multiple of block size %d", i.Size, bs)
	}
	return nil
}

func checkFresh(r *rig) error {
	if err := r.expect(0, make([]byte, r.size)); err != nil {
		return err
	}
	return r.expect(r.size-int64(r.info.BlockSize), make([]byte, r.info.BlockSize))
}

func checkEdges(r *rig) error {
	bs := int64(r.info.BlockSize)
	image := make([]byte, r.size)
	for k, w := range []struct{ off, n int64 }{
		{0, bs},
		{r.size - bs, bs},
		{bs, bs},
		{mib - bs, 2 * bs},          // across a MiB
		{2 * mib, block.MaxIO},      // the largest, aligned
		{r.size - mib - bs, mib},    // the largest, odd, near the end
		{4*mib + bs, page + bs},     // across sectors when blocks are smaller
		{5 * mib, 3*page + 2*bs},    // odd length
		{r.size - 2*page, 2 * page}, // the end again
	} {
		p := pattern(r.rng.Uint64(), w.off, int(w.n))
		copy(image[w.off:], p)
		if err := r.write(w.off, p, 0); err != nil {
			return err
		}
		if err := r.expect(w.off, p); err != nil {
			return fmt.Errorf("write %d, %d bytes at %d: %w", k, w.n, w.off, err)
		}
	}
	return r.expect(0, image)
}

func checkOverwrite(r *rig) error {
	for range 3 {
		p := pattern(r.rng.Uint64(), 0, mib)
		if err := r.write(mib/2, p, 0); err != nil {
			return err
		}
		if err := r.expect(mib/2, p); err != nil {
			return err
		}
	}
	return r.expect(mib/2+mib, make([]byte, mib))
}

type badRequest struct {
	req  block.Request
	want error
}

// badRequests are malformed for r's device, each for one reason.
func (r *rig) badRequests() []badRequest {
	bs, size := int64(r.info.BlockSize), r.size
	mem := func(n int64) []byte { return pattern(77, 0, int(n)) }
	bad := []badRequest{
		{block.Request{}, block.ErrNotSupported},
		{block.Request{Op: 200, Len: bs, Data: mem(bs)}, block.ErrNotSupported},
		{block.Request{Op: block.OpFlush, Len: bs}, block.ErrInvalid},
		{block.Request{Op: block.OpFlush, Off: bs}, block.ErrInvalid},
	}
	for _, op := range []block.Op{block.OpRead, block.OpWrite} {
		q := func(off, length, data int64) block.Request {
			return block.Request{Op: op, Off: off, Len: length, Data: mem(data)}
		}
		bad = append(bad,
			badRequest{q(bs/2, bs, bs), block.ErrMisaligned},
			badRequest{q(0, bs+1, bs+1), block.ErrMisaligned},
			badRequest{q(0, bs/2, bs/2), block.ErrMisaligned},
			badRequest{q(size, bs, bs), block.ErrOutOfRange},
			badRequest{q(size-bs, 2*bs, 2*bs), block.ErrOutOfRange},
			badRequest{q(math.MaxInt64&^(bs-1), bs, bs), block.ErrOutOfRange},
			badRequest{q(0, block.MaxIO+bs, block.MaxIO+bs), block.ErrTooLarge},
			badRequest{q(0, 2*bs, bs), block.ErrInvalid},
			badRequest{q(0, bs, 2*bs), block.ErrInvalid},
			badRequest{q(0, bs, 0), block.ErrInvalid},
			badRequest{q(0, 0, 0), block.ErrInvalid},
			badRequest{q(-bs, bs, bs), block.ErrInvalid},
		)
	}
	if q := writeOf(0, mem(2*page), 0); true {
		q.Sums = make([]uint32, 1)
		bad = append(bad, badRequest{q, block.ErrInvalid})
	}
	for op, need := range map[block.Op]block.Caps{block.OpWriteZeroes: block.CapWriteZeroes, block.OpDiscard: block.CapDiscard} {
		q := func(off, length int64) block.Request { return block.Request{Op: op, Off: off, Len: length} }
		if !r.has(need) {
			bad = append(bad, badRequest{q(0, bs), block.ErrNotSupported})
			continue
		}
		bad = append(bad,
			badRequest{q(bs/2, bs), block.ErrMisaligned},
			badRequest{q(0, bs+bs/2), block.ErrMisaligned},
			badRequest{q(size, bs), block.ErrOutOfRange},
			badRequest{q(0, size+bs), block.ErrOutOfRange},
			badRequest{q(bs, math.MaxInt64&^(bs-1)), block.ErrOutOfRange},
			badRequest{q(0, 0), block.ErrInvalid},
			badRequest{q(bs, -bs), block.ErrInvalid},
			badRequest{q(-bs, 2*bs), block.ErrInvalid},
		)
	}
	if !r.has(block.CapFUA) {
		bad = append(bad, badRequest{writeOf(0, mem(bs), block.FUA), block.ErrNotSupported})
	}
	return bad
}

func checkInvalid(r *rig) error {
	image := pattern(r.rng.Uint64(), 0, int(r.size))
	if err := r.write(0, image, 0); err != nil {
		return err
	}
	for _, b := range r.badRequests() {
		if err := r.wants(b.req, b.want); err != nil {
			return err
		}
		if err := r.expect(0, image); err != nil {
			return fmt.Errorf("after a refused %v of %d bytes at %d: %w", b.req.Op, b.req.Len, b.req.Off, err)
		}
	}
	return nil
}

func checkInvalidInBatch(r *rig) error {
	bs := int64(r.info.BlockSize)
	a, b := pattern(r.rng.Uint64(), 0, int(bs)), pattern(r.rng.Uint64(), 0, int(bs))
	calls := r.start(
		writeOf(0, append([]byte(nil), a...), 0),
		writeOf(r.size, make([]byte, bs), 0),
		writeOf(2*bs, append([]byte(nil), b...), 0),
	)
	if err := r.wait(calls...); err != nil {
		return err
	}
	if !errors.Is(calls[1].err, block.ErrOutOfRange) || calls[0].err != nil || calls[2].err != nil {
		return fmt.Errorf("a batch with a write out of range in the middle ended with %s",
			fmt.Sprint(calls[0].err, ", ", calls[1].err, ", ", calls[2].err))
	}
	return errors.Join(r.expect(0, a), r.expect(bs, make([]byte, bs)), r.expect(2*bs, b))
}

func checkEmptyBatch(r *rig) error {
	r.dev.Submit(nil)
	r.dev.Submit([]*block.Request{})
	return r.wants(block.Request{Op: block.OpFlush}, nil)
}

func checkBatch(r *rig) error {
	const n = 512
	key := r.rng.Uint64()
	bs := int64(r.info.BlockSize)
	var writes, reads []block.Request
	for i := range int64(n) {
		off := i * 2 * bs
		writes = append(writes, writeOf(off, pattern(key, off, int(bs)), 0))
		reads = append(reads, readOf(off, make([]byte, 2*bs)))
	}
	r.rng.Shuffle(n, func(i, j int) { writes[i], writes[j] = writes[j], writes[i] })
	if err := r.all(writes...); err != nil {
		return err
	}
	calls := r.start(reads...)
	if err := r.wait(calls...); err != nil {
		return err
	}
	for _, c := range calls {
		if c.err != nil {
			return fmt.Errorf("%v failed: %w", c, c.err)
		}
		want := append(pattern(key, c.as.Off, int(bs)), make([]byte, bs)...)
		if err := differ(c.as.Off, c.got, want); err != nil {
			return err
		}
	}
	return nil
}

// checkSubmitFromCompleter chains requests, each submitted by the completion of
// the one before, several chains at a time.
func checkSubmitFromCompleter(r *rig) error {
	const chains, links = 4, 64
	bs := int64(r.info.BlockSize)
	done := make(chan error, chains)
	for k := range int64(chains) {
		var link func(i int64)
		link = func(i int64) {
			if i == links {
				done <- nil
				return
			}
			off := (k*links + i) * bs
			q := writeOf(off, pattern(9, off, int(bs)), 0)
			q.By = block.CompleterFunc(func(_ *block.Request, err error) {
				if err != nil {
					done <- err
					return
				}
				link(i + 1)
			})
			r.dev.Submit([]*block.Request{&q})
		}
		link(0)
	}
	for range chains {
		if err := within("a chain of requests", done); err != nil {
			return err
		}
	}
	return r.expect(0, pattern(9, 0, int(chains*links*bs)))
}

// checkReuse submits one Request again from its own completion.
func checkReuse(r *rig) error {
	const times = 32
	bs := int64(r.info.BlockSize)
	done := make(chan error, 1)
	var again again
	again = func(q *block.Request, err error) {
		next := q.Off + bs
		if err != nil || next == times*bs {
			done <- err
			return
		}
		q.Off = next
		copy(q.Data, pattern(5, next, int(bs)))
		q.By = again
		r.dev.Submit([]*block.Request{q})
	}
	q := writeOf(0, pattern(5, 0, int(bs)), 0)
	q.By = again
	r.dev.Submit([]*block.Request{&q})
	if err := within("a request used again", done); err != nil {
		return err
	}
	return r.expect(0, pattern(5, 0, int(times*bs)))
}

type again func(*block.Request, error)

// Complete implements block.Completer.
func (a again) Complete(r *block.Request, err error) { a(r, err) }

// checkFlush sends flushes to the device when idle, behind and between writes.
func checkFlush(r *rig) error {
	flush := block.Request{Op: block.OpFlush}
	if err := r.all(flush); err != nil {
		return fmt.Errorf("idle device: %w", err)
	}
	p := pattern(r.rng.Uint64(), 0, mib)
	if err := r.write(0, p, 0); err != nil {
		return err
	}
	if err := r.all(flush, flush, flush); err != nil {
		return err
	}
	if r.has(block.CapFUA) {
		if err := r.write(mib, p, block.FUA); err != nil {
			return err
		}
		if err := r.expect(mib, p); err != nil {
			return err
		}
	}
	var mixed []block.Request
	for i := range int64(32) {
		mixed = append(mixed, writeOf(2*mib+i*page, pattern(3, i*page, page), 0), flush)
	}
	if err := r.all(mixed...); err != nil {
		return err
	}
	return errors.Join(r.expect(0, p), r.expect(2*mib, pattern(3, 0, 32*page)))
}

func checkCloseTwice(r *rig) error {
	if err := r.close(); err != nil {
		return fmt.Errorf("first Close: %w", err)
	}
	if err := r.close(); err != nil {
		return fmt.Errorf("second Close: %w", err)
	}
	return nil
}

func checkAfterClose(r *rig) error {
	if err := r.write(0, pattern(1, 0, page), 0); err != nil {
		return err
	}
	if err := r.close(); err != nil {
		return fmt.Errorf("Close: %w", err)
	}
	if i := r.dev.Info(); i != r.info {
		return fmt.Errorf("Info after Close is %+v, was %+v", i, r.info)
	}
	reqs := []block.Request{
		readOf(0, make([]byte, page)), writeOf(0, make([]byte, page), 0), {Op: block.OpFlush},
	}
	if r.has(block.CapDiscard) {
		reqs = append(reqs, block.Request{Op: block.OpDiscard, Len: page})
	}
	if r.has(block.CapWriteZeroes) {
		reqs = append(reqs, block.Request{Op: block.OpWriteZeroes, Len: page})
	}
	for _, q := range reqs {
		if err := r.wants(q, block.ErrClosed); err != nil {
			return err
		}
	}
	return nil
}

// checkCloseInFlight closes while several goroutines submit. Whatever was
// submitted ends, well or with ErrClosed, and what was submitted before Close
// has ended when Close returns.
func checkCloseInFlight(r *rig) error {
	var before []block.Request
	for i := range int64(256) {
		before = append(before, writeOf(i*page, pattern(1, i*page, page), 0), readOf(mib+i*page, make([]byte, page)))
	}
	calls := r.start(before...)
	var racing [4][]*call
	var wg sync.WaitGroup
	for g := range racing {
		wg.Go(func() {
			for i := range int64(64) {
				off := 4*mib + (int64(g)*64+i)*page
				racing[g] = append(racing[g], r.start(writeOf(off, pattern(1, off, page), 0))...)
			}
		})
	}
	if err := r.close(); err != nil {
		return fmt.Errorf("Close: %w", err)
	}
	for _, c := range calls {
		select {
		case <-c.done:
		default:
			return fmt.Errorf("Close returned before %v was completed", c)
		}
	}
	wg.Wait()
	for _, g := range racing {
		calls = append(calls, g...)
	}
	if err := r.wait(calls...); err != nil {
		return err
	}
	for _, c := range calls {
		if c.err != nil && !errors.Is(c.err, block.ErrClosed) {
			return fmt.Errorf("%v beside Close ended with %w", c, c.err)
		}
	}
	return nil
}
