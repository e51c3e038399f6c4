package backing

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/tandem-storage/tandem/datapath/block"
	"github.com/tandem-storage/tandem/datapath/meta"
)

var errNoChecksums = errors.New("the pool is configured to keep none")

// createSums makes a checksum file of unknown checksums in dir, with all its space. On
// nil all but the directory entry is stable; cut short, it is one that nobody believes.
func createSums(dir string, size int64, h *meta.SumHeader) (*meta.Pages, error) {
	path := filepath.Join(dir, sumsFile)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	err = unix.Fallocate(int(f.Fd()), 0, 0, meta.SumPages(size)*meta.PageSize)
	err = errors.Join(err, f.Sync(), f.Close())
	var pages *meta.Pages
	if err == nil {
		pages, err = meta.OpenPages(path)
	}
	if err == nil {
		if err = writeSumHeader(pages, h); err == nil {
			return pages, nil
		}
		pages.Close()
	}
	return nil, errors.Join(noSpace(err), os.Remove(path))
}

func writeSumHeader(pages *meta.Pages, h *meta.SumHeader) error {
	var page [meta.PageSize]byte
	h.Encode(page[:])
	_, err := pages.WriteAt(page[:], 0)
	return err
}

// openSums reads the checksum file. What sb and the log say of how the replica was left
// decides what is believed. It is bound to this process before the superblock is, as
// the log is. No failure is one of the replica: without a file that is known to be
// right there are no checksums, and the next process does not believe what there is,
// because it is not bound to this one.
func (r *Replica) openSums(sb *meta.Superblock) {
	s := &r.sums
	s.r = r
	s.stored.L = &s.mu
	err := s.open(sb)
	if err == nil {
		return
	}
	s.mu.why = fmt.Errorf("backing: no checksums of %s: %w", r.dir, err)
	s.off.Store(true)
	if s.pages != nil {
		s.gone.Do(s.invalidate) // what failed may have bound it to this process all the same
	}
}

func (s *sums) open(sb *meta.Superblock) error {
	r := s.r
	if r.pool.o.NoChecksums {
		return errNoChecksums
	}
	if sb.BlockSize != meta.SumBlock || sb.RegionSize != meta.SumRegion {
		return fmt.Errorf("%w: blocks of %d bytes, regions of %d", ErrInvalid, sb.BlockSize, sb.RegionSize)
	}
	h := &meta.SumHeader{
		SumOwner: meta.SumOwner{Replica: r.k.replica, Generation: newUUID()},
		Instance: r.pool.self, Previous: sb.Instance,
	}
	pages, old, err := readSums(r.dir, r.Info().Size)
	if err != nil {
		return err
	}
	// Believed: the last process kept it, and what that process may have
	// written since without the log telling is nothing.
	believed := old != nil && old.Continues(r.k.replica, sb.Instance) && (sb.CleanFlush || !r.log.Lost())
	if believed {
		h.Generation = old.Generation
	}
	if pages == nil {
		if pages, err = createSums(r.dir, r.Info().Size, h); err == nil {
			err = r.d.Sync()
		}
	} else {
		err = writeSumHeader(pages, h)
	}
	if pages != nil {
		s.pages = pages
	}
	if err != nil {
		return err
	}
	s.mu.header = *h
	s.headerBuf = block.NewBuffer(meta.PageSize)
	if !believed || sb.CleanFlush {
		return nil
	}
	// A crash: what the log has was being written.
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, g := range r.log.Active() {
		p := s.addLocked(g)
		p.loaded.Store(true)
		p.dirty.Store(true)
		p.covered.Store(true)
	}
	return nil
}

// readSums opens the checksum file in dir. pages is nil if there is none that is long
// enough, old is nil if it does not say whose it is.
func readSums(dir string, size int64) (pages *meta.Pages, old *meta.SumHeader, err error) {
	path := filepath.Join(dir, sumsFile)
	st, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil, nil
	case err != nil:
		return nil, nil, err
	case st.Size() < meta.SumPages(size)*meta.PageSize:
		return nil, nil, os.Remove(path)
	}
	if pages, err = meta.OpenPages(path); err != nil {
		return nil, nil, err
	}
	var page [meta.PageSize]byte
	if _, err := pages.ReadAt(page[:], 0); err == nil {
		old, _ = meta.DecodeSumHeader(page[:]) // one that is not whole tells nothing
	}
	return pages, old, nil
}

// storeLocked stores the page of p, perhaps after it has been read, or stored once more.
func (p *sumRegion) storeLocked(ops []*op) []*op {
	s := p.s
	if p.storing || !p.loaded.Load() {
		p.again = true
		return ops
	}
	p.storing = true
	s.mu.stores++
	p.buf = block.NewBuffer(meta.PageSize)
	p.encode(p.buf.Bytes(), s.mu.header.SumOwner)
	p.op = op{kind: opWrite, fd: s.pages.Fd(), off: meta.SumOffset(p.no), buf: p.buf.Bytes(), owner: p}
	p.batch[0] = &p.op
	s.r.gate.more()
	return append(ops, &p.op)
}

// encode makes the page of p. A block that is being written has no checksum in it.
func (p *sumRegion) encode(page []byte, owner meta.SumOwner) {
	p.dirty.Store(false) // whoever changes an entry that is read below sets it again
	var list [meta.SumBlocks]meta.Sum
	for i := range list {
		if e := p.entries[i].Load(); e&entryBusy == 0 {
			list[i] = entrySum(e)
		}
	}
	meta.EncodeSums(page, owner, p.no, &list)
}

// opDone implements opOwner for the page of p.
func (p *sumRegion) opDone(o *op, err error) {
	if o.kind == opRead {
		p.loadDone(err)
	} else {
		p.storeDone(err)
	}
}

// loadDone takes what was read, for blocks that were not written meanwhile. A page
// that cannot be read, or is not right, knows no checksum.
func (p *sumRegion) loadDone(err error) {
	s := p.s
	var list [meta.SumBlocks]meta.Sum
	s.mu.Lock()
	if err == nil && meta.DecodeSums(p.buf.Bytes(), s.mu.header.SumOwner, p.no, &list) == nil {
		for i, sum := range list {
			p.entries[i].CompareAndSwap(0, uint64(sum))
		}
	}
	p.buf.Release()
	p.buf = nil
	p.loaded.Store(true)
	waiting := p.waiting
	p.waiting = nil
	var ops []*op
	if p.again {
		p.again = false
		ops = p.storeLocked(ops)
	}
	s.mu.Unlock()
	s.submit(ops)
	for _, f := range waiting {
		f()
	}
	s.r.gate.exit()
}

func (p *sumRegion) storeDone(err error) {
	s := p.s
	s.mu.Lock()
	p.buf.Release()
	p.buf = nil
	p.storing = false
	if s.mu.stores--; s.mu.stores == 0 {
		s.stored.Broadcast()
	}
	if err == nil && p.again {
		p.again = false
		ops := p.storeLocked(nil)
		s.mu.Unlock()
		s.submit(ops)
		s.r.gate.exit()
		return
	}
	saves := p.saves
	p.saves = 0
	saved := func() {
		if saves > 0 && s.unsaved.Add(-saves) == 0 {
			s.r.log.resume()
		}
	}
	if err != nil {
		s.failLocked(fmt.Errorf("write the checksums of region %d: %w", p.no, err), saved)
		s.mu.Unlock()
	} else {
		s.mu.Unlock()
		saved()
	}
	s.r.gate.exit()
}

// failLocked gives the checksums up, and calls after, if it is not nil, when the file is
// such that no later process believes it. The caller is counted by the gate.
func (s *sums) failLocked(cause error, after func()) {
	if s.mu.why == nil {
		s.mu.why = fmt.Errorf("backing: no checksums of %s until it is opened again: %w", s.r.dir, cause)
	}
	s.r.gate.more()
	go func() {
		s.gone.Do(s.invalidate)
		s.off.Store(true)
		s.release()
		if after != nil {
			after()
		}
		s.r.gate.exit()
	}()
}

// invalidate makes the file one that nobody believes. If all of it fails the disk is one
// that nothing can be promised on.
func (s *sums) invalidate() {
	var zero [meta.PageSize]byte
	_, err := s.pages.WriteAt(zero[:], 0)
	if err == nil {
		return
	}
	if os.Remove(filepath.Join(s.r.dir, sumsFile)) == nil && s.r.d.Sync() == nil {
		return
	}
	s.r.fault(fmt.Errorf("checksum file can neither be written nor removed: %w", err))
}

// settle stores what is not. Nothing is in flight, and the data are stable.
func (s *sums) settle() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.why != nil {
		return
	}
	if err := s.storeAllLocked(true); err != nil {
		s.mu.why = err
		s.gone.Do(s.invalidate)
		s.off.Store(true)
	}
}

// tighten ends the time in which data were written to regions that are not in the log, if
// none is at the moment: what was stored for them is believed again.
func (s *sums) tighten() {
	if !s.r.gate.enter() {
		return
	}
	defer s.r.gate.exit()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.off.Load() || s.mu.why != nil || s.mu.loose != looseOn || s.mu.writing > 0 {
		return
	}
	s.mu.loose = looseGoing // what comes now is held
	s.mu.Unlock()
	err := block.Flush(s.r)
	s.mu.Lock()
	for s.mu.stores > 0 {
		s.stored.Wait()
	}
	switch {
	case s.mu.why != nil:
	case err != nil: // it is being closed, or has failed
		s.mu.loose = looseOn
	default:
		s.mu.loose = looseOff
		if err := s.storeAllLocked(false); err != nil {
			s.failLocked(err, nil)
			return
		}
	}
	s.mu.Unlock()
	s.release()
	s.mu.Lock()
}

// storeAllLocked stores every page that the log does not cover, or really all of them, and then that
// they are to be believed. The data are stable.
func (s *sums) storeAllLocked(all bool) error {
	var page [meta.PageSize]byte
	for _, p := range s.mu.resident {
		if !p.dirty.Load() || !all && p.covered.Load() {
			continue
		}
		p.encode(page[:], s.mu.header.SumOwner)
		if _, err := s.pages.WriteAt(page[:], meta.SumOffset(p.no)); err != nil {
			return fmt.Errorf("backing: write the checksums of region %d of %s: %w", p.no, s.r.dir, err)
		}
	}
	if !s.mu.header.Loose {
		return nil
	}
	s.mu.header.Loose = false
	if err := writeSumHeader(s.pages, &s.mu.header); err != nil {
		return fmt.Errorf("backing: write the header of the checksum file of %s: %w", s.r.dir, err)
	}
	return nil
}

func (s *sums) close() {
	if s.pages != nil {
		s.pages.Close()
	}
	if s.headerBuf != nil {
		s.headerBuf.Release()
	}
}
