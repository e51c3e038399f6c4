package backing

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"math/bits"
	"os"
	"path/filepath"

	"github.com/pkg/xattr"

	"github.com/tandem-storage/tandem/datapath/block"
	"github.com/tandem-storage/tandem/datapath/meta"
)

// Limits of a replica.
const (
	DefaultChunkSize = 256 << 20
	MinChunkSize     = block.MaxIO // so that a read or write touches two chunks at most
	MaxChunkSize     = 4 << 30
	regionSize       = 4 << 20

	// spareMaps is how many dirty maps have their space allocated from the start: one
	// for each other replica of a volume of three, and one for the replica's own
	// unsettled regions.
	spareMaps = 3
)

// ReplicaSpec says what replica to make.
type ReplicaSpec struct {
	Cluster, Volume, Replica meta.UUID
	Size                     int64 // bytes, a multiple of block.SectorSize
	ChunkSize                int64 // bytes, a power of two; 0 is DefaultChunkSize
	Thick                    bool  // allocate all space now, and keep it
}

func (s *ReplicaSpec) validate(p *Pool, c Capacity) error {
	switch {
	case s.Volume == meta.UUID{} || s.Replica == meta.UUID{}:
		return fmt.Errorf("%w: replica without id", ErrInvalid)
	case s.Cluster != p.o.Cluster:
		return fmt.Errorf("%w: replica of cluster %x, pool of cluster %x", ErrForeign, s.Cluster, p.o.Cluster)
	case s.Size <= 0 || s.Size%block.SectorSize != 0:
		return fmt.Errorf("%w: size %d is not a positive multiple of %d", ErrInvalid, s.Size, block.SectorSize)
	case s.ChunkSize < MinChunkSize || s.ChunkSize > MaxChunkSize || bits.OnesCount64(uint64(s.ChunkSize)) != 1:
		return fmt.Errorf("%w: chunk size %d is not a power of two between %d and %d", ErrInvalid, s.ChunkSize, MinChunkSize, MaxChunkSize)
	case s.Size > c.Total:
		return fmt.Errorf("%w: size %d is above the pool's %d bytes", ErrPoolFull, s.Size, c.Total)
	case s.Thick && s.Size > c.Free:
		return fmt.Errorf("%w: %d bytes are free, a thick replica of %d does not fit", ErrPoolFull, c.Free, s.Size)
	case c.Level >= LevelNoThin:
		return fmt.Errorf("%w: %d of %d bytes are used, above %d %% no replica is made", ErrPoolFull, c.Used, c.Total, noThinPercent)
	}
	return nil
}

// Create makes a replica in state EMPTY, all zeroes. On nil it is stable; after a
// crash it is whole or absent. Errors: ErrInvalid, ErrForeign, ErrExists, ErrPoolFull.
func (p *Pool) Create(s ReplicaSpec) error { return p.create(s, nil) }

// create makes a replica: of zeroes, or of what from has.
func (p *Pool) create(s ReplicaSpec, from *source) error {
	if s.ChunkSize == 0 {
		s.ChunkSize = DefaultChunkSize
	}
	c, err := p.Capacity()
	if err != nil {
		return err
	}
	if err := s.validate(p, c); err != nil {
		return err
	}
	k := key{s.Volume, s.Replica}
	if err := p.begin(k); err != nil {
		return err
	}
	defer p.end(k)
	final := p.path(replicasDir, k.dirName())
	if ok, err := exists(final); err != nil || ok {
		return errors.Join(err, fmt.Errorf("%w: %s", ErrExists, final))
	}
	tmp := p.path(tmpDir, k.dirName())
	err = p.build(tmp, k, s, from)
	if err == nil {
		err = os.Rename(tmp, final)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("backing: create replica: %w", noSpace(err)), os.RemoveAll(tmp))
	}
	p.mu.Lock()
	p.mu.provisioned += s.Size
	p.mu.Unlock()
	return errors.Join(syncDir(p.path(replicasDir)), syncDir(p.path(tmpDir)))
}

// build makes the replica's directory at dir; everything in it is stable on nil.
func (p *Pool) build(dir string, k key, s ReplicaSpec, from *source) error {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	inode, err := inodeOf(d)
	if err != nil {
		return err
	}
	sb := &meta.Superblock{
		Cluster: s.Cluster, Volume: s.Volume, Replica: s.Replica, Inode: inode,
		State: meta.StateEmpty, BootID: p.boot, Instance: p.self, CleanFlush: true, Thick: s.Thick,
		Size: uint64(s.Size), BlockSize: block.SectorSize, RegionSize: regionSize, ChunkSize: uint64(s.ChunkSize),
	}
	if err := os.WriteFile(filepath.Join(dir, lockFile), nil, 0o600); err != nil {
		return err
	}
	if err := p.buildData(dir, k, s, sb.Epoch, from); err != nil {
		return err
	}
	pages, _, err := createLog(dir, meta.LogOptions{Replica: s.Replica, Instance: p.self, Previous: p.self, Slots: p.o.LogSlots}, false)
	if err != nil {
		return err
	}
	pages.Close()
	for i := range spareMaps {
		f, err := meta.CreatePages(filepath.Join(dir, spareName(i)), meta.DirtyPages(s.Size))
		if err != nil {
			return err
		}
		f.Close()
	}
	f, err := meta.CreatePages(filepath.Join(dir, superblockFile), meta.SuperblockPages)
	if err != nil {
		return err
	}
	defer f.Close()
	sf, err := meta.CreateSuperblock(f, sb)
	if err != nil {
		return err
	}
	return mirrorSuperblock(d, sf.Get())
}

// buildData makes the data of a replica in dir, which has none: the head, the chunk map and the checksums. All of it but their
// directory entries is stable on nil.
func (p *Pool) buildData(dir string, k key, s ReplicaSpec, epoch uint64, from *source) error {
	head := filepath.Join(dir, headDir)
	if err := os.Mkdir(head, 0o700); err != nil {
		return err
	}
	chunks := (s.Size + s.ChunkSize - 1) / s.ChunkSize
	made := new(bitmap)
	if from != nil {
		from.size = s.Size
	}
	var sums *meta.Pages
	if !p.o.NoChecksums {
		h := &meta.SumHeader{SumOwner: meta.SumOwner{Replica: s.Replica, Generation: newUUID()}, Instance: p.self, Previous: p.self}
		var err error
		if sums, err = createSums(dir, s.Size, h); err != nil {
			return err
		}
		defer sums.Close()
		if from != nil {
			from.to = h.SumOwner
		}
	}
	for n := range chunks {
		switch {
		case from != nil:
			ok, err := from.chunk(head, sums, k, n, epoch)
			if err != nil {
				return err
			}
			if !ok {
				continue
			}
		case s.Thick:
			f, err := makeChunk(head, k, n, s.ChunkSize, epoch, true)
			if err != nil {
				return err
			}
			f.Close()
		default:
			continue
		}
		made.set(n)
	}
	if err := syncDir(head); err != nil {
		return err
	}
	return createChunkMap(dir, k, chunks, made)
}

// mirrorSuperblock copies sb to the directory d. Stable on nil.
func mirrorSuperblock(d *os.File, sb *meta.Superblock) error {
	var page [meta.PageSize]byte
	if err := sb.Encode(page[:]); err != nil {
		return err
	}
	if err := xattr.FSet(d, xattrSuperblock, page[:meta.SuperblockLen]); err != nil {
		return err
	}
	return d.Sync()
}

// Entry is one replica found in a pool.
type Entry struct {
	Volume, Replica meta.UUID
	Dir             string // its directory
	// Err says why the replica cannot be opened: ErrIdentityMissing, ErrForeign,
	// meta.ErrCorrupt. The ids are then those of the directory's name, if it has any.
	Err        error
	Superblock *meta.Superblock // as mirrored; nil if Err is not
}

// List tells every replica in the pool, and everything else that lies among them
// as an entry with Err. It reads the mirrored superblocks and opens no file, so
// that it can be done at any time; Open looks closer.
func (p *Pool) List() ([]Entry, error) { return p.list(func(key) bool { return false }) }

// ListKnown is List, but of a replica that is open here only the directory's name is read: it was looked at
// when it was opened, and its entry has neither Superblock nor Err. For who looks often.
func (p *Pool) ListKnown() ([]Entry, error) {
	p.mu.Lock()
	open := make(map[key]bool, len(p.mu.open))
	for k := range p.mu.open {
		open[k] = true
	}
	p.mu.Unlock()
	return p.list(func(k key) bool { return open[k] })
}

// list is List that does not read the replicas that are known.
func (p *Pool) list(known func(key) bool) ([]Entry, error) {
	names, err := os.ReadDir(p.path(replicasDir))
	if err != nil {
		return nil, err
	}
	var list []Entry
	for _, n := range names {
		e := Entry{Dir: p.path(replicasDir, n.Name())}
		k, ok := parseDirName(n.Name())
		e.Volume, e.Replica = k.volume, k.replica
		switch {
		case !ok:
			e.Err = fmt.Errorf("%w: %s is not the name of a replica", ErrIdentityMissing, e.Dir)
		case !known(k):
			e.Superblock, e.Err = p.readMirror(e.Dir, k)
		}
		list = append(list, e)
	}
	return list, nil
}

// readMirror reads the superblock mirrored on the directory of k and checks that it belongs there.
func (p *Pool) readMirror(dir string, k key) (*meta.Superblock, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	b, err := xattr.FGet(d, xattrSuperblock)
	if errors.Is(err, xattr.ENOATTR) {
		return nil, fmt.Errorf("%w: %s has no attribute %s: it was not made here; replace the replica (tandemctl volume replica replace)", ErrIdentityMissing, dir, xattrSuperblock)
	}
	if err != nil {
		return nil, err
	}
	sb, err := meta.DecodeSuperblock(b)
	if err != nil {
		return nil, fmt.Errorf("%s of %s: %w", xattrSuperblock, dir, err)
	}
	return sb, p.checkPlace(d, k, sb)
}

// checkPlace says whether sb is of the replica k in the directory d of this pool: ErrForeign.
func (p *Pool) checkPlace(d *os.File, k key, sb *meta.Superblock) error {
	inode, err := inodeOf(d)
	if err != nil {
		return err
	}
	const remedy = "remove the directory and let the replica be made anew and resynced"
	switch {
	case sb.Cluster != p.o.Cluster:
		return fmt.Errorf("%w: %s is of cluster %x, not %x; %s", ErrForeign, d.Name(), sb.Cluster, p.o.Cluster, remedy)
	case sb.Volume != k.volume || sb.Replica != k.replica:
		return fmt.Errorf("%w: %s has the replica %x of volume %x; %s", ErrForeign, d.Name(), sb.Replica, sb.Volume, remedy)
	case sb.Inode != inode:
		return fmt.Errorf("%w: %s is a copy of the directory that was made; %s", ErrForeign, d.Name(), remedy)
	}
	return nil
}

func (p *Pool) countProvisioned() error {
	list, err := p.List()
	for _, e := range list {
		if e.Superblock != nil {
			p.mu.provisioned += int64(e.Superblock.Size)
		}
	}
	return err
}

// Remove removes a replica, whatever its state. On nil it will not come back; its
// space returns in the background. Absent is ErrNotFound, and it will not come back
// either: after an error of the disk every later call fails too, until the pool is
// opened anew. Open is ErrInUse.
func (p *Pool) Remove(volume, replica meta.UUID) error {
	k := key{volume, replica}
	if err := p.begin(k); err != nil {
		return err
	}
	defer p.end(k)
	dir := p.path(replicasDir, k.dirName())
	var size int64
	if sb, err := p.readMirror(dir, k); err == nil {
		size = int64(sb.Size)
	}
	switch err := p.discard(dir); {
	case errors.Is(err, fs.ErrNotExist):
		if err := p.unsureOf(k); err != nil {
			return err
		}
		return fmt.Errorf("%w: replica %x of volume %x", ErrNotFound, replica, volume)
	case err != nil:
		p.mu.Lock()
		p.mu.unsure[k] = err
		p.mu.Unlock()
		return err
	}
	p.mu.Lock()
	delete(p.mu.unsure, k) // of a try that had not got as far
	p.mu.provisioned -= size
	p.mu.Unlock()
	return nil
}

// discard removes a directory of this pool. On nil it will not come back; its space returns in the background.
func (p *Pool) discard(dir string) error {
	id := newUUID()
	trash := p.path(trashDir, hex.EncodeToString(id[:]))
	if err := os.Rename(dir, trash); err != nil {
		return err
	}
	if err := errors.Join(syncDir(filepath.Dir(dir)), syncDir(p.path(trashDir))); err != nil {
		return err
	}
	// What cannot be unlinked now is tried again by the next OpenPool.
	p.removals.Go(func() { _ = os.RemoveAll(trash) })
	return nil
}

// unsureOf is why a replica that is gone may come back: to sync again would lie.
func (p *Pool) unsureOf(k key) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.mu.unsure[k]
}

// begin reserves k for one operation: ErrInUse, block.ErrClosed.
func (p *Pool) begin(k key) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.mu.closed:
		return fmt.Errorf("%w: pool %s", block.ErrClosed, p.o.Path)
	case p.mu.open[k] != nil || p.mu.busy[k]:
		return fmt.Errorf("%w: replica %x of volume %x", ErrInUse, k.replica, k.volume)
	}
	p.mu.busy[k] = true
	return nil
}

func (p *Pool) end(k key) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.mu.busy, k)
}
