package backing

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/pkg/xattr"
	"golang.org/x/sys/unix"
)

const (
	headDir = "head"
	// newPrefix begins the names of chunk files that are being made. They have no data yet.
	newPrefix = "new."
)

// chunk is one data file and what of it is not yet stable.
//
// A write is covered by the fdatasync that begins after it has ended. Syncs of
// one chunk never overlap: whoever needs one while another runs waits for the
// next, together with all others who do.
type chunk struct {
	r  *Replica
	n  int64
	f  *os.File
	fd int

	dirty atomic.Bool // something has ended since the last sync began; set under mu

	mu      sync.Mutex
	syncing bool
	cur     []*task // wait for the sync that runs
	next    []*task // wait for the one after it
	spare   []*task // empty, to be used again
	sync    op
	batch   [1]*op // &sync
}

// written notes that a write has ended, before its caller is told.
func (c *chunk) written() {
	if c.dirty.Load() {
		return // the next sync has not begun yet, so it begins after this write
	}
	c.mu.Lock()
	// In this order: whoever finds dirty set goes without the lock, and a flush that
	// follows must find the chunk.
	c.r.unsynced.set(c.n)
	c.dirty.Store(true)
	c.mu.Unlock()
}

// stabilise makes t wait until everything that has ended is stable. It reports
// whether c.batch is to be submitted for that.
func (c *chunk) stabilise(t *task) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	dirty := c.dirty.Load()
	switch {
	case !dirty && !c.syncing:
		return false // a sync that has ended in between did it
	case dirty && c.syncing:
		t.pending.Add(1)
		c.next = append(c.next, t)
		return false
	}
	t.pending.Add(1)
	c.cur = append(c.cur, t)
	if dirty {
		c.beginLocked()
	}
	return dirty
}

func (c *chunk) beginLocked() {
	c.syncing = true
	c.dirty.Store(false)
	c.sync = op{kind: opDataSync, fd: c.fd, chunk: c, owner: c}
}

// opDone implements opOwner for c.sync.
func (c *chunk) opDone(_ *op, err error) {
	if err != nil {
		c.r.pool.syncFailed(fmt.Errorf("fdatasync of %s: %w", c.f.Name(), err))
	}
	err = c.r.Err() // also of a sync that succeeded after another one failed
	c.mu.Lock()
	done := c.cur
	if err != nil {
		done, c.next = append(done, c.next...), c.next[:0] // never again (I25)
	}
	c.cur, c.next, c.spare = c.next, c.spare[:0], nil
	c.syncing = false
	if err == nil && !c.dirty.Load() {
		c.r.unsynced.clear(c.n)
	}
	more := len(c.cur) > 0
	if more {
		c.beginLocked()
	}
	c.mu.Unlock()
	if more {
		c.r.pool.engine.submit(c.batch[:])
	}
	for _, t := range done {
		t.done(err)
	}
	clear(done)
	c.mu.Lock()
	c.spare = done[:0]
	c.mu.Unlock()
}

// openChunks opens every chunk file of the replica and checks that each is the one
// that was made for its place. Files whose making was cut short are removed.
//
// If settled is false, a process that is gone may have left completed writes that
// are not stable: the next flush covers every chunk.
func (r *Replica) openChunks(settled bool) error {
	head := filepath.Join(r.dir, headDir)
	entries, err := os.ReadDir(head)
	if err != nil {
		return err
	}
	for _, e := range entries {
		path := filepath.Join(head, e.Name())
		if strings.HasPrefix(e.Name(), newPrefix) {
			if err := os.Remove(path); err != nil {
				return err
			}
			continue
		}
		n, err := strconv.ParseInt(e.Name(), 10, 64)
		if err != nil || n < 0 || n >= r.shape.Load().chunks || e.Name() != chunkName(n) {
			return fmt.Errorf("%w: %s is not a chunk of this replica", ErrMisplaced, path)
		}
		f, err := os.OpenFile(path, os.O_RDWR|unix.O_DIRECT|unix.O_NOFOLLOW, 0)
		if err != nil {
			return err
		}
		r.addChunk(n, f)
		if err := checkChunk(f, r.k, n, r.chunkSize); err != nil {
			return err
		}
		if !settled {
			r.chunk(n).written()
		}
	}
	return nil
}

func (r *Replica) addChunk(n int64, f *os.File) {
	c := &chunk{r: r, n: n, f: f, fd: int(f.Fd())}
	c.batch[0] = &c.sync
	r.chunks.need(n).Store(c)
}

func chunkName(n int64) string { return strconv.FormatInt(n, 10) }

// makeChunk makes the chunk file n of k in head: size bytes of hole, or of
// allocated zeroes. It is stable on nil; after a crash it is whole, or absent, or
// has a name that begins with newPrefix.
func makeChunk(head string, k key, n, size int64, epoch uint64, alloc bool) (_ *os.File, err error) {
	path := filepath.Join(head, chunkName(n))
	tmp := filepath.Join(head, newPrefix+chunkName(n))
	fd, err := unix.Open(tmp, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL|unix.O_DIRECT|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, &os.PathError{Op: "create", Path: tmp, Err: err}
	}
	f := os.NewFile(uintptr(fd), path)
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close())
			if rm := os.Remove(tmp); !errors.Is(rm, fs.ErrNotExist) {
				err = errors.Join(err, rm)
			}
		}
	}()
	if err := f.Truncate(size); err != nil {
		return nil, err
	}
	if alloc {
		if err := unix.Fallocate(fd, 0, 0, size); err != nil {
			return nil, &os.PathError{Op: "fallocate", Path: path, Err: err}
		}
	}
	inode, err := inodeOf(f)
	if err != nil {
		return nil, err
	}
	if err := xattr.FSet(f, xattrChunk, chunkIdentity(k, n, epoch, inode)); err != nil {
		return nil, err
	}
	if err := f.Sync(); err != nil {
		return nil, err
	}
	if err := giveName(tmp, path, syncDir); err != nil {
		return nil, err
	}
	return f, nil
}

// giveName renames tmp to path in the same folder, which sync makes stable, and
// takes the name back if that fails, for the next attempt.
func giveName(tmp, path string, sync func(dir string) error) error {
	if err := unix.Renameat2(unix.AT_FDCWD, tmp, unix.AT_FDCWD, path, unix.RENAME_NOREPLACE); err != nil {
		return &os.LinkError{Op: "rename", Old: tmp, New: path, Err: err}
	}
	if err := sync(filepath.Dir(path)); err != nil {
		return errors.Join(err, os.Remove(path))
	}
	return nil
}
