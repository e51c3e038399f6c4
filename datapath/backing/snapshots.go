package backing

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/tandem-storage/tandem/datapath/block"
	"github.com/tandem-storage/tandem/datapath/meta"
)

const (
	snapSetFile = "snaps"
	snapDir     = "snap" // then a snapshot's id, then chunks
)

// snapLocks is how many locks the chunks share.
const snapLocks = 64

// snap is one snapshot of an open replica. A chunk that it has no file of is the
// same in the next one of the chain, or in the head after the last one.
type snap struct {
	id     meta.UUID
	dir    string
	size   int64   // of the volume at the cut, bytes: what is behind is not the snapshot's
	cloned *bitmap // chunks that have a file in dir; changed under the chunk's lock

	making sync.Mutex
	made   bool // dir is there

	open int // Snapshots of it, under snapshots.mu
}

// snapView is what requests look at. It does not change, but for the members of done.
type snapView struct {
	chain  []*snap // in the order of the cuts, with the one that is being deleted
	target *snap   // the newest one that stays; it gets the clones
	// done has the chunks that may be changed: the target and what is after it do not need the head for them.
	done *bitmap
}

// snapshots are those of a replica. Without any, view is nil and that is all a request sees of them.
//
// Locks: removing, then merge, then the chunk's, or mu. No request waits for one; what has to wait for
// a clone is held, and started anew by the goroutine that cloned.
type snapshots struct {
	r    *Replica
	view atomic.Pointer[snapView]

	removing sync.Mutex   // one DeleteSnapshot at a time
	merge    sync.RWMutex // held shared while a chunk is cloned, and alone while a snapshot gets out of the way
	chunks   [snapLocks]sync.RWMutex

	mu struct {
		sync.Mutex // held over changes of the set and of view
		pages      *meta.Pages
		file       *meta.SnapshotFile // nil: there has never been a snapshot
		cloning    bool               // the cloner runs
	}
	held   heldRequests
	stop   chan struct{} // closed when the replica is being closed
	cloner sync.WaitGroup
}

func (s *snapshots) lockOf(n int64) *sync.RWMutex { return &s.chunks[n%snapLocks] }

// settled reports whether chunk n may be changed.
func (v *snapView) settled(n, chunkSize int64) bool {
	return v.done.has(n) || n*chunkSize >= v.target.size // so have all that are older
}

func (s *snapshots) newSnap(id meta.UUID, size int64) *snap {
	return &snap{
		id:     id,
		size:   size,
		dir:    filepath.Join(s.r.dir, snapDir, hex.EncodeToString(id[:])),
		cloned: new(bitmap),
	}
}

// Cut takes a snapshot of the first size bytes, a multiple of block.SectorSize: what every write completed before has left. A replica may be larger than its
// volume is yet, and what is behind that has never been written. No write, zeroing, discard or flush
// may be in flight, and none may be submitted before Cut returns. It flushes, and on nil the snapshot is
// stable; after a crash during Cut it is there, or not. It costs two writes of a page and copies nothing: from
// then on a chunk is cloned before its first change. Errors: ErrNoReflink; ErrExists (the snapshot is there,
// and stays as it is); ErrTooManySnapshots; ErrInvalid; block.ErrNoSpace, with the first snapshot only.
func (r *Replica) Cut(id meta.UUID, size int64) error {
	if !r.gate.enter() {
		return fmt.Errorf("%w: replica %x", block.ErrClosed, r.k.replica)
	}
	defer r.gate.exit()
	if !r.pool.fs.Reflink {
		return fmt.Errorf("%w: pool %s is on %s; snapshots need a pool on XFS made with reflink=1: make one and move the replica there (tandemctl volume replica replace)",
			ErrNoReflink, r.pool.o.Path, r.pool.fs.Type)
	}
	if id == (meta.UUID{}) {
		return fmt.Errorf("%w: snapshot without id", ErrInvalid)
	}
	if has := r.Info().Size; size <= 0 || size > has || size%block.SectorSize != 0 {
		return fmt.Errorf("%w: a snapshot of %d bytes of replica %x, which has %d", ErrInvalid, size, r.k.replica, has)
	}
	if err := block.Flush(r); err != nil {
		return err
	}
	s := &r.snaps
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.needFileLocked(); err != nil {
		return err
	}
	set := s.mu.file.Get()
	switch {
	case slices.ContainsFunc(set.Records, func(m meta.SnapshotRecord) bool { return m.ID == id }):
		return fmt.Errorf("%w: snapshot %x of replica %x", ErrExists, id, r.k.replica)
	case len(set.Records) == meta.MaxSnapshots:
		return fmt.Errorf("%w: replica %x has %d; delete one", ErrTooManySnapshots, r.k.replica, len(set.Records))
	}
	set.Last++
	set.Records = append(set.Records, meta.SnapshotRecord{ID: id, Number: set.Last, Size: uint64(size)})
	if err := s.storeLocked(set); err != nil {
		return err
	}
	v := &snapView{target: s.newSnap(id, size)}
	if old := s.view.Load(); old != nil {
		v.chain = slices.Clone(old.chain)
	}
	v.chain = append(v.chain, v.target)
	v.done = v.target.cloned
	s.view.Store(v)
	s.startClonerLocked()
	return nil
}

// storeLocked makes set the stable one.
func (s *snapshots) storeLocked(set meta.SnapshotSet) error {
	if err := s.r.Err(); err != nil {
		return err
	}
	if err := s.mu.file.Write(set); err != nil {
		return s.r.metaFailed(err)
	}
	return nil
}

// needFileLocked makes the file of the set if there is none, and makes the replica one that only
// programs open which know of snapshots.
func (s *snapshots) needFileLocked() error {
	if s.mu.file != nil {
		return nil
	}
	r := s.r
	path := filepath.Join(r.dir, snapSetFile)
	tmp := path + ".new"
	if err := removeIfThere(tmp); err != nil {
		return err
	}
	pages, err := meta.CreatePages(tmp, meta.SnapshotPages)
	if err != nil {
		return noSpace(err)
	}
	file, err := meta.CreateSnapshots(pages, r.k.replica)
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err == nil {
		err = r.d.Sync()
	}
	if err == nil {
		r.meta.Lock()
		sb := r.meta.sb.Get()
		sb.Incompat |= meta.IncompatSnapshots
		err = r.storeLocked(sb)
		r.meta.Unlock()
	}
	if err != nil {
		pages.Close()
		return r.metaFailed(err)
	}
	s.mu.pages, s.mu.file = pages, file
	return nil
}

// removeIfThere removes the file at path.
func removeIfThere(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// SnapshotInfo tells about a snapshot.
type SnapshotInfo struct {
	ID     meta.UUID
	Number uint64 // of the cut; rises, and is never used again in this replica
	Size   int64  // of the volume at the cut, bytes
	Chunks int64  // chunks that it has files of; the others it shares with what came after it
}

// Snapshots lists the replica's snapshots in the order of their cuts.
func (r *Replica) Snapshots() []SnapshotInfo {
	s := &r.snaps
	s.mu.Lock()
	defer s.mu.Unlock()
	v := s.view.Load()
	if v == nil {
		return nil
	}
	var list []SnapshotInfo
	for _, m := range s.mu.file.Get().Records {
		if m.Deleting {
			continue
		}
		sn := v.find(m.ID)
		i := SnapshotInfo{ID: m.ID, Number: m.Number, Size: sn.size}
		sn.cloned.each(func(int64) { i.Chunks++ })
		list = append(list, i)
	}
	return list
}

// find returns the snapshot with that id, nil if there is none.
func (v *snapView) find(id meta.UUID) *snap {
	if v != nil {
		for _, sn := range v.chain {
			if sn.id == id {
				return sn
			}
		}
	}
	return nil
}

// openSnaps reads the snapshot set of a replica and what its snapshots have, and removes what a crash has left.
func (r *Replica) openSnaps(sb *meta.Superblock) error {
	s := &r.snaps
	if sb.Incompat&meta.IncompatSnapshots == 0 {
		return removeIfThere(filepath.Join(r.dir, snapSetFile)) // made just before a crash, and empty
	}
	pages, err := meta.OpenPages(filepath.Join(r.dir, snapSetFile))
	if err != nil {
		return fmt.Errorf("%w: snapshot set of %s: %w; replace the replica (tandemctl volume replica replace)", ErrIdentityMissing, r.dir, err)
	}
	s.mu.pages = pages
	if s.mu.file, err = meta.OpenSnapshots(pages, r.k.replica); err != nil {
		return fmt.Errorf("backing: snapshots of %s: %w", r.dir, err)
	}
	set := s.mu.file.Get()
	v := &snapView{}
	for _, m := range set.Records {
		size := m.Size
		if size == 0 {
			size = sb.Size
		}
		sn := s.newSnap(m.ID, int64(size))
		if err := sn.load(r.shape.Load().chunks); err != nil {
			return err
		}
		v.chain = append(v.chain, sn)
		if !m.Deleting {
			v.target = sn
		}
	}
	if v.target != nil {
		v.done = v.target.cloned
		s.view.Store(v)
	}
	for i, m := range slices.Backward(set.Records) {
		if !m.Deleting { // a crash has cut it short otherwise
			continue
		}
		if err := s.hand(v.chain[i], v.chain[i-1]); err != nil {
			return err
		}
		if err := s.endDelete(v.chain[i]); err != nil {
			return err
		}
	}
	return s.removeStrays(s.view.Load())
}

// load finds the chunks that sn has files of.
func (sn *snap) load(chunks int64) error {
	entries, err := os.ReadDir(sn.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // nothing has been cloned
	}
	if err != nil {
		return err
	}
	sn.made = true
	for _, e := range entries {
		path := filepath.Join(sn.dir, e.Name())
		if strings.HasPrefix(e.Name(), newPrefix) {
			if err := os.Remove(path); err != nil {
				return err
			}
			continue
		}
		n, err := strconv.ParseInt(e.Name(), 10, 64)
		if err != nil || n < 0 || n >= chunks || e.Name() != chunkName(n) {
			return fmt.Errorf("%w: %s is not a chunk of this replica", ErrMisplaced, path)
		}
		sn.cloned.set(n)
	}
	return nil
}

// removeStrays removes directories of snapshots that are not in the set any more.
func (s *snapshots) removeStrays(v *snapView) error {
	entries, err := os.ReadDir(filepath.Join(s.r.dir, snapDir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		id, err := hex.DecodeString(e.Name())
		if err == nil && len(id) == len(meta.UUID{}) && v.find(meta.UUID(id)) != nil {
			continue
		}
		if err := s.r.pool.discard(filepath.Join(s.r.dir, snapDir, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// close releases what is open. Nothing is in flight.
func (s *snapshots) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.pages != nil {
		s.mu.pages.Close()
	}
}
