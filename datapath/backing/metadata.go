package backing

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"github.com/tandem-storage/tandem/datapath/block"
	"github.com/tandem-storage/tandem/datapath/meta"
)

const (
	superblockFile = "sb"
	dirtyPrefix    = "dm."      // then the peer's id
	sparePrefix    = "dm.free." // then a number
)

func spareName(i int) string { return sparePrefix + strconv.Itoa(i) }

func dirtyName(peer meta.UUID) string { return dirtyPrefix + hex.EncodeToString(peer[:]) }

// metadata is the durable state of a Replica beside its data.
type metadata struct {
	sync.Mutex // held over the I/O of sb, and over changes of maps
	closed     bool
	pages      *meta.Pages
	sb         *meta.SuperblockFile
	maps       map[meta.UUID]*dirtyMap
}

// dirtyMap is an open dirty map file.
type dirtyMap struct {
	sync.Mutex // held over its I/O; taken after metadata's
	pages      *meta.Pages
	file       *meta.DirtyFile
	damaged    []int64
}

func (m *metadata) close() {
	m.Lock()
	defer m.Unlock()
	m.closed = true
	if m.pages != nil {
		m.pages.Close()
	}
	for _, d := range m.maps {
		d.Lock()
		d.pages.Close()
		d.Unlock()
	}
}

// openSuperblock reads the superblock and checks it against its mirror and place.
func (r *Replica) openSuperblock() (*meta.Superblock, error) {
	mirror, mirrorErr := r.pool.readMirror(r.dir, r.k)
	pages, err := meta.OpenPages(filepath.Join(r.dir, superblockFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %s has no superblock file (mirror: %s); do not initialise this directory: replace the replica (tandemctl volume replica replace)",
			ErrIdentityMissing, r.dir, describeMirror(mirror, mirrorErr))
	}
	if err != nil {
		return nil, err
	}
	r.meta.pages = pages
	sf, damaged, err := meta.OpenSuperblock(pages)
	if err != nil {
		if errors.Is(err, meta.ErrCorrupt) && mirror == nil {
			err = fmt.Errorf("%w: %w", ErrIdentityMissing, err)
		}
		return nil, fmt.Errorf("backing: superblock of %s (mirror: %s): %w", r.dir, describeMirror(mirror, mirrorErr), err)
	}
	sb := sf.Get()
	if err := r.pool.checkPlace(r.d, r.k, sb); err != nil {
		return nil, err
	}
	// The mirror is written last, so that what was ever promised is in it: it is
	// never newer, unless the newer slot has been damaged since.
	if mirrorErr == nil && mirror.Seq > sb.Seq {
		if damaged == nil || mirror.Seq != sb.Seq+1 {
			return nil, fmt.Errorf("%w: the superblock of %s is older (%d) than its mirror (%d): it was restored from a copy; "+
				"replace the replica (tandemctl volume replica replace)", ErrForeign, r.dir, sb.Seq, mirror.Seq)
		}
		sf.Adopt(mirror)
		sb = mirror
	}
	r.meta.sb = sf
	return sb, nil
}

func describeMirror(sb *meta.Superblock, err error) string {
	if err != nil {
		return err.Error()
	}
	return fmt.Sprintf("replica %x of volume %x, epoch %d, term %d, %v", sb.Replica, sb.Volume, sb.Epoch, sb.Term, sb.State)
}

// markOpen makes it durable that the replica is open and how it was left.
func (r *Replica) markOpen(old *meta.Superblock) error {
	sb := old.Clone()
	if !old.CleanFlush {
		sb.Unclean = true
		sb.Lossy = old.Lossy || old.BootID != r.pool.boot
	}
	sb.CleanFlush, sb.BootID, sb.Instance = false, r.pool.boot, r.pool.self
	r.meta.Lock()
	defer r.meta.Unlock()
	return r.storeLocked(sb)
}

func (r *Replica) markClean() error {
	r.meta.Lock()
	defer r.meta.Unlock()
	sb := r.meta.sb.Get()
	sb.CleanFlush = true
	return r.storeLocked(sb)
}

// noteLoss makes it durable, if it can, that completed writes may be missing.
func (r *Replica) noteLoss() {
	r.meta.Lock()
	defer r.meta.Unlock()
	if r.meta.closed || r.meta.sb == nil {
		return
	}
	sb := r.meta.sb.Get()
	if sb.Unclean && sb.Lossy {
		return
	}
	sb.Unclean, sb.Lossy = true, true
	_ = r.storeLocked(sb) // best effort, see fault
}

// storeLocked writes sb and its mirror. Stable on nil.
func (r *Replica) storeLocked(sb *meta.Superblock) error {
	if err := r.meta.sb.Write(sb); err != nil {
		return err
	}
	// The mirror replaces one of the same length in place; should the file system
	// want space for that and have none, the superblock itself is stable.
	if err := mirrorSuperblock(r.d, r.meta.sb.Get()); err != nil && !isNoSpace(err) {
		return err
	}
	return nil
}

// Superblock returns what is stable now. The caller may change it.
func (r *Replica) Superblock() *meta.Superblock {
	r.meta.Lock()
	defer r.meta.Unlock()
	return r.meta.sb.Get()
}

// Unclean reports that a process stopped without CloseClean and nobody has since
// cleared Unclean in the superblock: what its activity log names may differ from the
// other replicas.
func (r *Replica) Unclean() bool { return r.Superblock().Unclean }

// Lossy reports that the replica lost its volatile cache while it was open, by a
// new boot of the kernel or a failed sync, and nobody has since cleared Lossy in
// the superblock: completed writes may be missing.
func (r *Replica) Lossy() bool { return r.Superblock().Lossy }

// WriteSuperblock stores KVIncarnation, Epoch, Gen, ForkGen, Term, ISR, Missing,
// State, Unclean and Lossy of sb; the other fields are the store's own. On nil
// they and their mirror are stable. Term and Epoch never decrease: ErrRegress. A
// failed write faults the replica. Not ordered with respect to I/O in flight.
func (r *Replica) WriteSuperblock(sb *meta.Superblock) error {
	return r.UpdateSuperblock(func(s *meta.Superblock) {
		s.KVIncarnation, s.Epoch, s.Gen, s.ForkGen, s.Term = sb.KVIncarnation, sb.Epoch, sb.Gen, sb.ForkGen, sb.Term
		s.ISR, s.Missing, s.State, s.Unclean, s.Lossy = sb.ISR, sb.Missing, sb.State, sb.Unclean, sb.Lossy
	})
}

// UpdateSuperblock is WriteSuperblock of the stable superblock as changed by f,
// which runs with no other change in between.
func (r *Replica) UpdateSuperblock(f func(*meta.Superblock)) error {
	r.meta.Lock()
	defer r.meta.Unlock()
	if err := r.usableLocked(); err != nil {
		return err
	}
	old := r.meta.sb.Get()
	want := r.meta.sb.Get()
	f(want)
	sb := old.Clone()
	sb.KVIncarnation, sb.Epoch, sb.Gen, sb.ForkGen, sb.Term = want.KVIncarnation, want.Epoch, want.Gen, want.ForkGen, want.Term
	sb.ISR, sb.Missing, sb.State, sb.Unclean, sb.Lossy = want.ISR, want.Missing, want.State, want.Unclean, want.Lossy
	if sb.Term < old.Term || sb.Epoch < old.Epoch {
		return fmt.Errorf("%w: term %d to %d, epoch %d to %d", ErrRegress, old.Term, sb.Term, old.Epoch, sb.Epoch)
	}
	if err := sb.Validate(); err != nil {
		return err
	}
	if sb.State == meta.StateInSync && old.State != meta.StateInSync {
		r.sums.tighten() // it was resynced, which the log does not tell of
	}
	if err := r.storeLocked(sb); err != nil {
		r.fault(err)
		return r.Err()
	}
	r.epoch.Store(sb.Epoch)
	r.term.Store(sb.Term)
	return nil
}

func (r *Replica) usableLocked() error {
	if r.meta.closed {
		return fmt.Errorf("%w: replica %x", block.ErrClosed, r.k.replica)
	}
	return r.Err()
}

// DirtyMap returns the map kept for peer, the same one always: changes to it are
// in memory until SaveDirtyMap. damaged are the pages that were found damaged
// and read as all ones. ErrNotFound if there is none.
func (r *Replica) DirtyMap(peer meta.UUID) (m *meta.DirtyMap, damaged []int64, err error) {
	r.meta.Lock()
	defer r.meta.Unlock()
	d, err := r.dirtyLocked(peer)
	if err != nil {
		return nil, nil, err
	}
	return d.file.Map(), d.damaged, nil
}

func (r *Replica) dirtyLocked(peer meta.UUID) (*dirtyMap, error) {
	if err := r.usableLocked(); err != nil {
		return nil, err
	}
	if d := r.meta.maps[peer]; d != nil {
		return d, nil
	}
	pages, err := meta.OpenPages(filepath.Join(r.dir, dirtyName(peer)))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: dirty map of peer %x", ErrNotFound, peer)
	}
	if err != nil {
		return nil, err
	}
	d := &dirtyMap{pages: pages}
	d.file, d.damaged = meta.LoadDirty(pages, peer, r.Info().Size)
	r.meta.maps[peer] = d
	return d, nil
}

// CreateDirtyMap returns the map kept for peer and makes an empty one if there is
// none. On nil it is stable. It takes space that was allocated with the replica.
func (r *Replica) CreateDirtyMap(peer meta.UUID) (*meta.DirtyMap, error) {
	r.meta.Lock()
	defer r.meta.Unlock()
	d, err := r.dirtyLocked(peer)
	if errors.Is(err, ErrNotFound) {
		d, err = r.makeDirtyLocked(peer)
	}
	if err != nil {
		return nil, err
	}
	return d.file.Map(), nil
}

// makeDirtyLocked writes an empty map to a spare file and gives that its name.
func (r *Replica) makeDirtyLocked(peer meta.UUID) (*dirtyMap, error) {
	spare, err := r.takeSpareLocked()
	if err != nil {
		return nil, err
	}
	pages, err := meta.OpenPages(spare)
	if err != nil {
		return nil, r.metaFailed(err)
	}
	file, err := meta.CreateDirty(pages, peer, meta.NewDirtyMap(r.Info().Size))
	if err == nil {
		err = os.Rename(spare, filepath.Join(r.dir, dirtyName(peer)))
	}
	if err == nil {
		err = r.d.Sync()
	}
	if err != nil {
		pages.Close()
		return nil, r.metaFailed(err)
	}
	d := &dirtyMap{pages: pages, file: file}
	r.meta.maps[peer] = d
	return d, nil
}

// takeSpareLocked returns the path of a spare file, making one if there is none left.
func (r *Replica) takeSpareLocked() (string, error) {
	entries, err := os.ReadDir(r.dir)
	if err != nil {
		return "", err
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), sparePrefix) {
			return filepath.Join(r.dir, e.Name()), nil
		}
	}
	path := filepath.Join(r.dir, spareName(0))
	f, err := meta.CreatePages(path, meta.DirtyPages(r.Info().Size))
	if err != nil {
		return "", errors.Join(noSpace(err), os.Remove(path))
	}
	return path, f.Close()
}

// SaveDirtyMap makes every change made to peer's map before the call stable. A failure faults the replica.
func (r *Replica) SaveDirtyMap(peer meta.UUID) error {
	r.meta.Lock()
	d, err := r.dirtyLocked(peer)
	r.meta.Unlock()
	if err != nil {
		return err
	}
	d.Lock()
	defer d.Unlock()
	if err := d.file.Save(); err != nil {
		return r.metaFailed(err)
	}
	return nil
}

// RemoveDirtyMap removes peer's map; its space stays allocated for the next one.
// On nil that is stable. Absent is nil.
func (r *Replica) RemoveDirtyMap(peer meta.UUID) error {
	r.meta.Lock()
	defer r.meta.Unlock()
	if err := r.usableLocked(); err != nil {
		return err
	}
	if d := r.meta.maps[peer]; d != nil {
		d.Lock()
		d.pages.Close()
		d.Unlock()
		delete(r.meta.maps, peer)
	}
	spare := filepath.Join(r.dir, sparePrefix+hex.EncodeToString(peer[:]))
	err := os.Rename(filepath.Join(r.dir, dirtyName(peer)), spare)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = r.d.Sync()
	}
	if err != nil {
		return r.metaFailed(err)
	}
	return nil
}

// DirtyPeers lists the peers that a dirty map is kept for.
func (r *Replica) DirtyPeers() ([]meta.UUID, error) {
	entries, err := os.ReadDir(r.dir)
	if err != nil {
		return nil, err
	}
	var peers []meta.UUID
	for _, e := range entries {
		s, ok := strings.CutPrefix(e.Name(), dirtyPrefix)
		if b, err := hex.DecodeString(s); ok && err == nil && len(b) == 16 {
			peers = append(peers, meta.UUID(b))
		}
	}
	return peers, nil
}

// metaFailed faults the replica: what it knows durably is unknown now (I25).
func (r *Replica) metaFailed(err error) error {
	r.fault(err)
	return r.Err()
}
