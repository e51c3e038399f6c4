package backing

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/tandem-storage/tandem/datapath/block"
	"github.com/tandem-storage/tandem/datapath/meta"
)

// growDir has the new chunks of a thick replica until its superblock has the size that they are of.
const growDir = "grow"

// shape is what growing changes of a replica. It is immutable.
type shape struct {
	info            block.Info
	chunks, regions int64
}

func shapeOf(sb *meta.Superblock) *shape {
	return &shape{
		info: block.Info{
			Size:      int64(sb.Size),
			BlockSize: int(sb.BlockSize),
			Caps:      block.CapFlush | block.CapFUA | block.CapDiscard | block.CapWriteZeroes,
		},
		chunks:  pieces(int64(sb.Size), int64(sb.ChunkSize)),
		regions: pieces(int64(sb.Size), int64(sb.RegionSize)),
	}
}

// pieces is in how many pieces size falls, the last one perhaps a part of one.
func pieces(size, piece int64) int64 { return (size + piece - 1) / piece }

// Grow makes the replica one of a volume of size bytes, a multiple of block.SectorSize; what is new reads as zeroes. On nil
// that is stable and Info tells it; after a crash the replica has the one size or the other, and nothing else differs. Requests
// go on meanwhile, and nobody waits for it. Snapshots keep the size of their cut. The replica's own size is nil at once;
// a replica never shrinks: ErrInvalid. If there is no room, ErrPoolFull or block.ErrNoSpace, nothing is changed. A thick replica
// has all its new space when it has the new size. Any other error after the first change faults the replica.
func (r *Replica) Grow(size int64) error {
	if !r.gate.enter() {
		return fmt.Errorf("%w: replica %x", block.ErrClosed, r.k.replica)
	}
	defer r.gate.exit()
	r.growing.Lock()
	defer r.growing.Unlock()
	was := r.Info().Size
	switch {
	case size == was:
		return r.Err()
	case size < was:
		return fmt.Errorf("%w: replica %x has %d bytes and cannot shrink to %d: what is behind would be lost", ErrInvalid, r.k.replica, was, size)
	case size%block.SectorSize != 0:
		return fmt.Errorf("%w: size %d is not a multiple of %d", ErrInvalid, size, block.SectorSize)
	}
	if err := r.Err(); err != nil {
		return err
	}
	if err := r.pool.hasRoom(size, was, r.thick); err != nil {
		return err
	}
	undo, err := r.makeRoom(size)
	if err == nil {
		err = r.takeSize(size)
	}
	if err != nil {
		if r.Err() == nil { // else it did change something
			err = noSpace(err)
		}
		return errors.Join(fmt.Errorf("backing: grow %s from %d to %d bytes: %w", r.dir, was, size, err), undo())
	}
	r.pool.mu.Lock()
	r.pool.mu.provisioned += size - was
	r.pool.mu.Unlock()
	return nil
}

// hasRoom says whether a replica of the pool may grow, by the rules of a new one: ErrPoolFull.
func (p *Pool) hasRoom(size, was int64, thick bool) error {
	c, err := p.Capacity()
	switch {
	case err != nil:
		return err
	case size > c.Total:
		return fmt.Errorf("%w: size %d is above the %d bytes of pool %s", ErrPoolFull, size, c.Total, p.o.Path)
	case thick && size-was > c.Free:
		return fmt.Errorf("%w: %d bytes of pool %s are free, a thick replica cannot grow by %d", ErrPoolFull, c.Free, p.o.Path, size-was)
	case c.Level >= LevelNoThin:
		return fmt.Errorf("%w: %d of %d bytes of pool %s are used, above %d %% no replica grows", ErrPoolFull, c.Used, c.Total, p.o.Path, noThinPercent)
	}
	return nil
}

// makeRoom takes the space that a replica of size bytes needs, and makes the chunks of a thick one. Whoever opens the
// replica as it is takes no notice. undo, which is never nil, gives everything back unless the size has been taken.
func (r *Replica) makeRoom(size int64) (undo func() error, err error) {
	longer := make(map[string]int64) // length of the files before
	undo = func() error {
		if r.Info().Size == size || r.Err() != nil {
			return nil
		}
		err := os.RemoveAll(filepath.Join(r.dir, growDir))
		for path, length := range longer {
			// Absent: a dirty map was renamed since; it keeps what it got.
			if cut := os.Truncate(path, length); !errors.Is(cut, fs.ErrNotExist) {
				err = errors.Join(err, cut)
			}
		}
		return err
	}
	sums := filepath.Join(r.dir, sumsFile)
	if !r.sums.off.Load() {
		length, err := lengthen(sums, meta.SumPages(size)*meta.PageSize, false)
		if errors.Is(err, fs.ErrNotExist) {
			err = nil // given up just now
		} else if length > 0 {
			longer[sums] = length
		}
		if err != nil {
			return undo, err
		}
	}
	if err := r.lengthenMaps(size, longer); err != nil {
		return undo, err
	}
	if r.thick {
		err = r.makeGrowth(size)
	}
	return undo, err
}

// lengthenMaps makes the chunk map, the dirty maps and the spare ones long enough for a volume of size bytes. It notes in
// longer how long they were.
func (r *Replica) lengthenMaps(size int64, longer map[string]int64) error {
	entries, err := os.ReadDir(r.dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		want := meta.DirtyPages(size)
		switch {
		case e.Name() == chunkMapFile:
			want = meta.DirtyPages(chunkMapSize(pieces(size, r.chunkSize)))
		case !strings.HasPrefix(e.Name(), dirtyPrefix):
			continue
		}
		path := filepath.Join(r.dir, e.Name())
		length, err := lengthen(path, want*meta.PageSize, true)
		if errors.Is(err, fs.ErrNotExist) {
			continue // renamed since: takeSize looks again
		}
		if _, known := longer[path]; !known && length > 0 {
			longer[path] = length
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// lengthen gives the file at path at least length bytes, with the space for them, written if fill is set. It is stable on nil. If the file was
// shorter, was is its length before, also with an error.
func lengthen(path string, length int64, fill bool) (was int64, err error) {
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil || st.Size() >= length {
		return 0, err
	}
	if fill {
		err = meta.FillZero(f, st.Size(), length)
	} else if err = unix.Fallocate(int(f.Fd()), 0, st.Size(), length-st.Size()); err == nil {
		err = f.Sync()
	}
	if err != nil {
		err = fmt.Errorf("lengthen %s: %w", path, err)
	}
	return st.Size(), err
}

// makeGrowth makes the chunks in growDir that a thick replica of size bytes has more.
func (r *Replica) makeGrowth(size int64) error {
	dir := filepath.Join(r.dir, growDir)
	if err := os.RemoveAll(dir); err != nil { // of a try that could not be undone
		return err
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	for n := r.shape.Load().chunks; n < pieces(size, r.chunkSize); n++ {
		f, err := makeChunk(dir, r.k, n, r.chunkSize, r.epoch.Load(), true)
		if err != nil {
			return err
		}
		f.Close()
	}
	return r.d.Sync()
}

// takeSize makes size that of the replica, for which there is room. It is stable on nil; before the superblock is written
// nothing has changed that a replica of the old size takes notice of.
func (r *Replica) takeSize(size int64) error {
	s := &r.snaps
	s.mu.Lock() // no cut meanwhile
	defer s.mu.Unlock()
	r.meta.Lock() // and no new dirty map
	defer r.meta.Unlock()
	if err := r.usableLocked(); err != nil {
		return err
	}
	if err := r.lengthenMaps(size, make(map[string]int64)); err != nil { // those that were made since
		return err
	}
	if err := r.growMapsLocked(size); err != nil {
		return err
	}
	sb := r.meta.sb.Get()
	if s.mu.file != nil {
		if err := s.keepSizesLocked(sb.Size); err != nil {
			return err
		}
	}
	sb.Size = uint64(size)
	if err := sb.Validate(); err != nil {
		return err
	}
	if err := r.storeLocked(sb); err != nil {
		return r.metaFailed(err)
	}
	if r.thick {
		if err := r.takeGrowth(size); err != nil {
			return r.metaFailed(err)
		}
	}
	r.shape.Store(shapeOf(sb))
	return nil
}

// growMapsLocked makes the maps ones of a volume of size bytes, stably.
func (r *Replica) growMapsLocked(size int64) error {
	peers, err := r.DirtyPeers()
	if err != nil {
		return err
	}
	maps := make([]*dirtyMap, len(peers))
	for i, peer := range peers {
		if maps[i], err = r.dirtyLocked(peer); err != nil {
			return err
		}
	}
	for _, d := range maps {
		d.Lock()
		d.file.Map().Grow(size)
		err = d.file.Save()
		d.Unlock()
		if err != nil {
			return r.metaFailed(err)
		}
	}
	m := &r.chunkMap
	m.Lock()
	defer m.Unlock()
	m.file.Map().Grow(chunkMapSize(pieces(size, r.chunkSize)))
	if err := m.file.Save(); err != nil {
		return r.metaFailed(err)
	}
	return nil
}

// keepSizesLocked makes the set tell the size of every snapshot: that of those that do not tell is size.
func (s *snapshots) keepSizesLocked(size uint64) error {
	set, changed := s.mu.file.Get(), false
	for i := range set.Records {
		if set.Records[i].Size == 0 {
			set.Records[i].Size, changed = size, true
		}
	}
	if !changed {
		return nil
	}
	return s.storeLocked(set)
}

// takeGrowth puts the new chunks of a thick replica, which has size bytes by its superblock, among the others.
func (r *Replica) takeGrowth(size int64) error {
	from := r.shape.Load().chunks
	if err := r.endGrow(); err != nil {
		return err
	}
	for n := from; n < pieces(size, r.chunkSize); n++ {
		f, err := os.OpenFile(filepath.Join(r.dir, headDir, chunkName(n)), os.O_RDWR|unix.O_DIRECT|unix.O_NOFOLLOW, 0)
		if err != nil {
			return err
		}
		if err := r.chunkMap.made(n); err != nil {
			f.Close()
			return err
		}
		r.addChunk(n, f)
	}
	return nil
}

// endGrow moves the chunks in growDir to their places if the superblock has a size that they are of, and removes
// them otherwise.
func (r *Replica) endGrow() error {
	dir, head := filepath.Join(r.dir, growDir), filepath.Join(r.dir, headDir)
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	chunks := pieces(int64(r.meta.sb.Get().Size), r.chunkSize)
	for _, e := range entries {
		n, err := strconv.ParseInt(e.Name(), 10, 64)
		if err != nil || n >= chunks {
			continue
		}
		from, to := filepath.Join(dir, e.Name()), filepath.Join(head, e.Name())
		if err := unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE); err != nil {
			return &os.LinkError{Op: "rename", Old: from, New: to, Err: err}
		}
	}
	if err := errors.Join(syncDir(head), syncDir(dir)); err != nil {
		return err
	}
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	return r.d.Sync()
}
