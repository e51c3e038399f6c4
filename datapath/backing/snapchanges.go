package backing

import (
	"fmt"
	"os"
	"slices"

	"github.com/tandem-storage/tandem/datapath/block"
	"github.com/tandem-storage/tandem/datapath/meta"
)

// ChangedBlocks calls f for the ranges of the volume at or after off in which one snapshot has other content than
// another one, base, in ascending order, until f returns false. If base is zero it is those in which the snapshot has
// anything: the rest reads as zeroes. A base that was smaller is one of zeroes behind its end, and of one that was larger what is
// behind the snapshot's does not count. Offsets and lengths are multiples of block.SectorSize. It is never too little; it is too
// much where a block was written with what it had. f may be called with ranges that touch. Either one may be the older.
//
// There is no record of changes: two snapshots have the same content where they have the same block of the disk, because one that is
// shared is never written in place. It takes a clone's time for each chunk in which they may differ, and does not
// read data. Errors: ErrNotFound; block.ErrIO.
func (r *Replica) ChangedBlocks(base, id meta.UUID, off int64, f func(off, length int64) bool) error {
	if !r.gate.enter() {
		return fmt.Errorf("%w: replica %x", block.ErrClosed, r.k.replica)
	}
	defer r.gate.exit()
	s := &r.snaps
	sn, err := s.use(id)
	if err != nil {
		return err
	}
	defer s.release(sn)
	var from *snap
	if base != (meta.UUID{}) {
		if from, err = s.use(base); err != nil {
			return err
		}
		defer s.release(from)
	}
	for n := max(off, 0) / r.chunkSize; n*r.chunkSize < sn.size; n++ {
		a, b, err := s.extents(from, sn, n)
		if err != nil {
			return fmt.Errorf("%w: %w", block.ErrIO, err)
		}
		begin := n * r.chunkSize
		more := differ(a, b, min(r.chunkSize, sn.size-begin), func(at, length int64) bool {
			at += begin
			if cut := off - at; cut > 0 {
				at, length = at+cut, length-cut
			}
			return length <= 0 || f(at, length)
		})
		if !more {
			return nil
		}
	}
	return nil
}

// extents are those of chunk n of two snapshots. They are none if both have the same file, and a is if from, which may be nil, has nothing there.
func (s *snapshots) extents(from, sn *snap, n int64) (a, b []extent, err error) {
	l := s.lockOf(n)
	l.RLock()
	defer l.RUnlock()
	chain := s.view.Load().chain
	at := holder(chain, sn, n)
	if from != nil && n*s.r.chunkSize < from.size {
		base := holder(chain, from, n)
		if base == at {
			return nil, nil, nil
		}
		if a, err = s.extentsIn(base, n); err != nil {
			return nil, nil, err
		}
	}
	b, err = s.extentsIn(at, n)
	return a, b, err
}

// extentsIn are those of chunk n as at has it, or the head if at is nil. The chunk's lock is held.
func (s *snapshots) extentsIn(at *snap, n int64) ([]extent, error) {
	if at == nil {
		if c := s.r.chunk(n); c != nil {
			return extentsOf(c.f, s.r.chunkSize)
		}
		return nil, nil
	}
	f, err := s.openClone(at, n)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return extentsOf(f, s.r.chunkSize)
}

// holder is the snapshot that has the file of what sn has of chunk n, nil for the head. The chunk's lock is held.
func holder(chain []*snap, sn *snap, n int64) *snap {
	for _, at := range chain[slices.Index(chain, sn):] {
		if at.cloned.has(n) {
			return at
		}
	}
	return nil
}

// SnapshotFrees is how many bytes of the pool deleting a snapshot gives back at this moment: what neither the head nor
// another snapshot shares. Deleting two may give back more than the sum. It looks at every chunk that the snapshot has a file
// of. Errors: ErrNotFound; block.ErrIO.
func (r *Replica) SnapshotFrees(id meta.UUID) (bytes int64, err error) {
	if !r.gate.enter() {
		return 0, fmt.Errorf("%w: replica %x", block.ErrClosed, r.k.replica)
	}
	defer r.gate.exit()
	s := &r.snaps
	sn, err := s.use(id)
	if err != nil {
		return 0, err
	}
	defer s.release(sn)
	sn.cloned.each(func(n int64) {
		if err == nil {
			var b int64
			b, err = s.frees(sn, n)
			bytes += b
		}
	})
	if err != nil {
		return 0, fmt.Errorf("%w: %w", block.ErrIO, err)
	}
	return bytes, nil
}

// frees is what deleting sn gives back of chunk n.
func (s *snapshots) frees(sn *snap, n int64) (bytes int64, err error) {
	l := s.lockOf(n)
	l.RLock()
	defer l.RUnlock()
	chain := s.view.Load().chain
	if i := slices.Index(chain, sn); !sn.cloned.has(n) || i > 0 && !chain[i-1].cloned.has(n) {
		return 0, nil // it is handed over
	}
	var f *os.File
	if f, err = s.openClone(sn, n); err != nil {
		return 0, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return 0, err
	}
	list, err := extentsOf(f, st.Size())
	for _, e := range list {
		if !e.shared {
			bytes += e.length
		}
	}
	return bytes, err
}
