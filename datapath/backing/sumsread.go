package backing

import (
	"fmt"
	"hash/crc32"

	"github.com/tandem-storage/tandem/datapath/block"
	"github.com/tandem-storage/tandem/datapath/meta"
)

// await makes a read wait for the checksums of its regions, if they are not in memory.
func (s *sums) await(t *task) {
	t.sums = sumsVerify
	first, last := regionsOf(t.req)
	for g := first; g <= last; g++ {
		p := s.region(g)
		if p == nil || !p.loaded.Load() {
			t.pending.Add(1)
			var wait bool
			if p, wait = s.whenLoaded(g, t.drop); !wait {
				t.pending.Add(-1)
			}
		}
		if !p.used.Load() {
			p.used.Store(true)
		}
		t.regions[g-first] = p
	}
}

// whenLoaded returns the checksums of region g. If they have to be read, wait is true
// and f is called when they have been. The caller is counted by the gate.
func (s *sums) whenLoaded(g uint32, f func()) (p *sumRegion, wait bool) {
	s.mu.Lock()
	p, ops := s.regionLocked(g, nil)
	if wait = !p.loaded.Load(); wait {
		p.waiting = append(p.waiting, f)
	}
	s.mu.Unlock()
	s.submit(ops)
	return p, wait
}

// match reports whether what t has read is what was written, as far as that is known.
func (s *sums) match(t *task) bool {
	checked, ok := int64(0), true
	data := t.data()
	for _, p := range t.regions {
		if p == nil {
			break
		}
		p.each(t.req, func(i int, n int64) {
			if e := p.entries[i].Load(); isKnown(e) {
				checked++
				ok = ok && sumOf(data, n) == entrySum(e)
			}
			data = data[meta.SumBlock:]
		})
	}
	s.checked.Add(checked)
	return ok
}

// isKnown reports whether a block has a checksum, and is not being written.
func isKnown(e uint64) bool { return e&entryBusy == 0 && entrySum(e) != meta.NoSum }

func sumOf(data []byte, n int64) meta.Sum {
	return meta.MakeSum(crc32.Checksum(data[:meta.SumBlock], castagnoli), n)
}

// recheck looks closer at the data that t has read, of which some do not match. A block that was
// written meanwhile is read again: a read may return either.
func (s *sums) recheck(t *task) {
	data := t.data()
	for n := t.req.Off / meta.SumBlock; len(data) > 0; n++ {
		if err := s.recheckBlock(data[:meta.SumBlock], n); err != nil {
			t.fail(err)
		}
		data = data[meta.SumBlock:]
	}
	t.finish()
}

// rereads is how often a block that is written all the time is read again.
const rereads = 64

func (s *sums) recheckBlock(data []byte, n int64) error {
	p := s.load(n)
	e := p.entry(n)
	if !isKnown(e) || sumOf(data, n) == entrySum(e) {
		return nil
	}
	buf := block.NewBuffer(meta.SumBlock)
	defer buf.Release()
	for range rereads {
		if err := s.readBlock(buf.Bytes(), n); err != nil {
			return err
		}
		before, at := e, p
		p = s.load(n)
		e = p.entry(n)
		if !isKnown(e) || sumOf(buf.Bytes(), n) == entrySum(e) {
			break
		}
		if e == before && p == at { // nobody has written it meanwhile
			s.damaged.Add(1)
			return fmt.Errorf("%w: block at %d of the volume in %s", block.ErrChecksum, n*meta.SumBlock, s.r.dir)
		}
	}
	copy(data, buf.Bytes())
	return nil
}

// load returns the checksums of block n's region, and waits until they are in memory.
func (s *sums) load(n int64) *sumRegion {
	g := uint32(n / meta.SumBlocks)
	if p := s.region(g); p != nil && p.loaded.Load() {
		return p
	}
	done := make(chan struct{})
	p, wait := s.whenLoaded(g, func() { close(done) })
	if wait {
		<-done
	}
	return p
}

func (p *sumRegion) entry(n int64) uint64 { return p.entries[n%meta.SumBlocks].Load() }

// readBlock reads block n of the volume and waits for that.
func (s *sums) readBlock(p []byte, n int64) error {
	off := n * meta.SumBlock
	c := s.r.chunk(off / s.r.chunkSize)
	if c == nil {
		clear(p)
		return nil
	}
	o := &op{kind: opRead, fd: c.fd, off: off % s.r.chunkSize, buf: p}
	if err := runOp(o); err != nil {
		return s.r.classify(opRead, err)
	}
	return nil
}
