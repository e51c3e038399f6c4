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

const (
	revertNew = "revert.new" // data that are being made to replace the replica's
	revertDir = "revert"     // and that are whole, and replace them
	revertOld = "old"        // in revertDir: the head that was
)

// source is where the data of a replica come from that begins with those of a snapshot.
type source struct {
	r    *Replica
	sn   *snap
	to   meta.SumOwner // of the new checksums
	size int64         // of what is made
}

// CreateFrom makes a replica with the content of a snapshot of from, which is open in this pool and may be in use. Nothing is
// copied: they share what neither changes. Size of s is at least that of the snapshot, and the rest is zeroes; or it is zero for the same. ChunkSize
// is that of from, or zero, and s is not Thick. It is in state EMPTY all the same, and
// whether it is what the volume has is for the caller to know. On nil it is stable; after a crash it is whole or absent. Errors: those
// of Create; ErrNotFound.
func (p *Pool) CreateFrom(s ReplicaSpec, from *Replica, id meta.UUID) error {
	if from.pool != p {
		return fmt.Errorf("%w: a replica of pool %s cannot be cloned in pool %s", ErrInvalid, from.pool.o.Path, p.o.Path)
	}
	if !from.gate.enter() {
		return fmt.Errorf("%w: replica %x", block.ErrClosed, from.k.replica)
	}
	defer from.gate.exit()
	sn, err := from.snaps.use(id)
	if err != nil {
		return err
	}
	defer from.snaps.release(sn)
	if s.Size == 0 {
		s.Size = sn.size
	}
	if s.Size < sn.size || s.ChunkSize != 0 && s.ChunkSize != from.chunkSize || s.Thick {
		return fmt.Errorf("%w: a clone of %d bytes in chunks of %d, thick %v: the snapshot has %d in %d, and what shares space is not thick", ErrInvalid,
			s.Size, s.ChunkSize, s.Thick, sn.size, from.chunkSize)
	}
	s.ChunkSize = from.chunkSize
	return p.create(s, &source{r: from, sn: sn})
}

// chunk makes chunk n of k in head, and its checksums in sums, which may be nil. It reports false if the snapshot has no such chunk.
// The chunk is stable on nil, and so are the checksums.
func (o *source) chunk(head string, sums *meta.Pages, k key, n int64, epoch uint64) (bool, error) {
	if n*o.r.chunkSize >= o.sn.size {
		return false, nil
	}
	c, err := o.r.snaps.content(o.sn, n)
	if err != nil {
		return false, err
	}
	defer c.release()
	if c.f == nil {
		return false, nil
	}
	err = newFile(head, chunkName(n), func(f *os.File) error {
		if err := unix.IoctlFileClone(int(f.Fd()), int(c.f.Fd())); err != nil {
			return &os.PathError{Op: "clone", Path: c.f.Name(), Err: err}
		}
		return f.Truncate(o.r.chunkSize) // without the checksums of a snapshot
	}, func(f *os.File) error { return identify(f, k, n, epoch) })
	if err != nil || sums == nil {
		return true, err
	}
	return true, o.copySums(c, sums, n)
}

// copySums stores what is known of the checksums of chunk n.
func (o *source) copySums(c content, sums *meta.Pages, n int64) error {
	var page [meta.PageSize]byte
	first, end := o.r.regionsOfChunk(n)
	for g := first; g < min(end, uint32(pieces(o.size, meta.SumRegion))); g++ {
		list, known := o.r.contentSums(c, n, g)
		if !known {
			return nil
		}
		if n*o.r.chunkSize > int64(g)*meta.SumRegion { // the chunks before have blocks of this region
			var before [meta.SumBlocks]meta.Sum
			if _, err := sums.ReadAt(page[:], meta.SumOffset(g)); err != nil {
				return err
			}
			_ = meta.DecodeSums(page[:], o.to, g, &before) // not written: they know none
			for i, sum := range before {
				list[i] = max(list[i], sum) // one of them is NoSum
			}
		}
		meta.EncodeSums(page[:], o.to, g, &list)
		if _, err := sums.WriteAt(page[:], meta.SumOffset(g)); err != nil {
			return err
		}
	}
	return nil
}

// Revert makes the data of a replica that is not open those of one of its snapshots. Of a snapshot that is smaller than the replica the rest is
// zeroes: the replica keeps its size. All its snapshots stay. Every dirty map of it
// then says that the peer lacks everything. It is all or nothing: on nil the next Open finds the snapshot's data; after
// a crash or an error it finds the one or the other. It takes a clone of each chunk. Errors: those of Open; ErrNotFound; block.ErrNoSpace.
func (p *Pool) Revert(volume, replica, id meta.UUID) error {
	r, err := p.Open(volume, replica)
	if err != nil {
		return err
	}
	return errors.Join(r.revert(id), r.CloseClean())
}

func (r *Replica) revert(id meta.UUID) error {
	r.gate.enter()
	defer r.gate.exit()
	sn, err := r.snaps.use(id)
	if err != nil {
		return err
	}
	defer r.snaps.release(sn)
	// What snapshots share with the head they need for themselves.
	for n := range r.shape.Load().chunks {
		if r.chunk(n) != nil {
			if err := r.snaps.preserve(n); err != nil {
				return err
			}
		}
	}
	dir := filepath.Join(r.dir, revertNew)
	if err := r.buildRevert(dir, sn); err != nil {
		return errors.Join(fmt.Errorf("backing: revert %s to snapshot %x: %w", r.dir, id, noSpace(err)), os.RemoveAll(dir))
	}
	if err := os.Rename(dir, filepath.Join(r.dir, revertDir)); err != nil {
		return err
	}
	if err := r.d.Sync(); err != nil {
		return r.metaFailed(err)
	}
	return nil
}

// buildRevert makes in dir what replaces the replica's data. It is stable on nil.
func (r *Replica) buildRevert(dir string, sn *snap) error {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	s := ReplicaSpec{Replica: r.k.replica, Size: r.Info().Size, ChunkSize: r.chunkSize}
	if err := r.pool.buildData(dir, r.k, s, r.epoch.Load(), &source{r: r, sn: sn}); err != nil {
		return err
	}
	peers, err := r.DirtyPeers()
	if err != nil {
		return err
	}
	for _, peer := range peers {
		f, err := meta.CreatePages(filepath.Join(dir, dirtyName(peer)), meta.DirtyPages(r.Info().Size))
		if err != nil {
			return err
		}
		m := meta.NewDirtyMap(r.Info().Size)
		m.SetAll()
		_, err = meta.CreateDirty(f, peer, m)
		if err = errors.Join(err, f.Close()); err != nil {
			return err
		}
	}
	return syncDir(dir)
}

// endRevert puts the data in place that a Revert has made, as far as that was not done before a crash, and
// removes those that were not whole. Nothing of the replica but its superblock is open.
func (r *Replica) endRevert() error {
	if err := os.RemoveAll(filepath.Join(r.dir, revertNew)); err != nil {
		return err
	}
	dir := filepath.Join(r.dir, revertDir)
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		from, to := filepath.Join(dir, e.Name()), filepath.Join(r.dir, e.Name())
		switch e.Name() {
		case revertOld:
			continue
		case headDir: // a directory that is not empty is not replaced by a rename
			if err := os.Rename(to, filepath.Join(dir, revertOld)); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
		if err := os.Rename(from, to); err != nil {
			return err
		}
	}
	if err := errors.Join(r.d.Sync(), syncDir(dir)); err != nil {
		return err
	}
	return r.pool.discard(dir)
}
