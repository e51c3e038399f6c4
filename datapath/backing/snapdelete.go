package backing

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/tandem-storage/tandem/datapath/block"
	"github.com/tandem-storage/tandem/datapath/meta"
)

// DeleteSnapshot deletes a snapshot, in any order. On nil that is stable, and its space returns in the
// background. It takes a rename for each chunk that the snapshot before it needs; writes to chunks that have
// to be cloned wait for a clone in flight and a few writes of metadata, others do not wait. After a crash the snapshot is there, or is
// gone when the replica has been opened. Errors: ErrNotFound; ErrInUse (a Snapshot of it is open).
func (r *Replica) DeleteSnapshot(id meta.UUID) error {
	if !r.gate.enter() {
		return fmt.Errorf("%w: replica %x", block.ErrClosed, r.k.replica)
	}
	defer r.gate.exit()
	s := &r.snaps
	s.removing.Lock()
	defer s.removing.Unlock()
	sn, older, err := s.beginDelete(id)
	if err != nil {
		return err
	}
	if older != nil {
		if err := s.hand(sn, older); err != nil {
			return r.metaFailed(fmt.Errorf("delete snapshot %x: %w", id, err))
		}
	}
	return s.endDelete(sn)
}

// beginDelete finds the snapshot with that id, and the one before it, nil if it is the oldest. If it is not
// it is durable that it is being deleted, and it gets no more clones.
func (s *snapshots) beginDelete(id meta.UUID) (sn, older *snap, err error) {
	s.merge.Lock()
	defer s.merge.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	old := s.view.Load()
	if sn = old.find(id); sn == nil {
		return nil, nil, fmt.Errorf("%w: snapshot %x of replica %x", ErrNotFound, id, s.r.k.replica)
	}
	if sn.open > 0 {
		return nil, nil, fmt.Errorf("%w: snapshot %x of replica %x is being read", ErrInUse, id, s.r.k.replica)
	}
	i := slices.Index(old.chain, sn)
	if i == 0 {
		return sn, nil, nil
	}
	set := s.mu.file.Get()
	set.Records[i].Deleting = true
	if err := s.storeLocked(set); err != nil {
		return nil, nil, err
	}
	older = old.chain[i-1]
	if sn == old.target {
		v := &snapView{chain: old.chain, target: older, done: new(bitmap)}
		older.cloned.each(v.done.set)
		sn.cloned.each(v.done.set)
		s.view.Store(v)
	}
	return sn, older, nil
}

// hand moves what older needs of sn to it. It is stable on nil.
func (s *snapshots) hand(sn, older *snap) error {
	var err error
	moved := false
	sn.cloned.each(func(n int64) {
		if err != nil || older.cloned.has(n) {
			return
		}
		if err = older.makeDir(); err != nil {
			return
		}
		l := s.lockOf(n)
		l.Lock()
		defer l.Unlock()
		if older.cloned.has(n) {
			return // cloned since
		}
		if err = os.Rename(filepath.Join(sn.dir, chunkName(n)), filepath.Join(older.dir, chunkName(n))); err == nil {
			older.cloned.set(n)
			sn.cloned.clear(n)
			moved = true
		}
	})
	if err == nil && moved {
		err = errors.Join(syncDir(older.dir), syncDir(sn.dir))
	}
	return err
}

// endDelete takes sn, which nobody needs any more, out of the set.
func (s *snapshots) endDelete(sn *snap) error {
	s.merge.Lock()
	defer s.merge.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	set := s.mu.file.Get()
	set.Records = slices.DeleteFunc(set.Records, func(m meta.SnapshotRecord) bool { return m.ID == sn.id })
	if err := s.storeLocked(set); err != nil {
		return err
	}
	old := s.view.Load()
	v := &snapView{target: old.target}
	for _, c := range old.chain {
		if c != sn {
			v.chain = append(v.chain, c)
		}
	}
	if len(v.chain) == 0 {
		v = nil
	} else {
		v.done = v.target.cloned
	}
	s.view.Store(v)
	if err := s.r.pool.discard(sn.dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return s.r.metaFailed(err) // the next opening removes it
	}
	return nil
}
