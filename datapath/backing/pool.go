package backing

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tandem-storage/tandem/datapath/meta"
)

// Names in a pool.
const (
	identityFile = "pool.json"
	lockFile     = "lock"
	replicasDir  = "replicas"
	tmpDir       = "tmp"   // half-made replicas
	trashDir     = "trash" // half-removed replicas
)

// DefaultLockWait is Options.LockWait if that is 0.
const DefaultLockWait = 5 * time.Second

// Options of OpenPool.
type Options struct {
	Path    string    // the directory; it must exist
	Cluster meta.UUID // the cluster that the pool must belong to
	Node    string    // the node that the pool must belong to
	// AllowAnyFS takes file systems other than XFS and ext4. What
	// is promised of durability is then up to that file system.
	AllowAnyFS bool
	// ReserveBytes of the file system are left to others: they count as used.
	ReserveBytes int64
	// LockWait is how long to wait for the locks of a process that has just ended:
	// its I/O in flight and its ring are taken down shortly after it. 0 is
	// DefaultLockWait, negative is not at all.
	LockWait time.Duration
	// LogSlots is how many regions of a replica may be active at once, up to
	// meta.MaxLogSlots. 0 is meta.DefaultLogSlots.
	LogSlots int
	// NoChecksums keeps no checksums of the blocks.
	NoChecksums bool
	// ClonePause is the least time between two chunks that are cloned for snapshots before a write needs
	// that. 0 is DefaultClonePause, negative clones only for writes.
	ClonePause time.Duration
	// Engine chooses how I/O is done; zero is the best that the kernel offers.
	Engine Engine
}

// Pool is a directory that holds replicas, open in one process at a time. All
// methods may be called concurrently.
type Pool struct {
	o      Options
	id     meta.UUID
	fs     FSInfo
	dir    *os.File
	lock   *os.File
	engine engine
	kind   Engine
	why    error // why the engine is not the best one
	boot   meta.UUID
	self   meta.UUID // this process's opening of the pool

	release func() // of the lock held by the engine

	mu struct {
		sync.Mutex
		closed      bool
		open        map[key]*Replica
		busy        map[key]bool  // being made, opened or removed
		unsure      map[key]error // removed in memory, with the error that says why perhaps not on the disk
		provisioned int64
		crowded     bool // what Crowded said last
	}
	removals sync.WaitGroup
	cloning  sync.Mutex // by the one cloner that clones
}

// key names a replica in a pool.
type key struct{ volume, replica meta.UUID }

// OpenPool opens the pool at o.Path, or makes one if the directory is empty
// (lost+found aside). It removes what was left half-made or half-removed.
// Errors: ErrUnsafeFS, ErrLocked, ErrForeign, ErrIdentityMissing.
func OpenPool(o Options) (*Pool, error) {
	if o.Cluster == (meta.UUID{}) || o.Node == "" || o.ReserveBytes < 0 {
		return nil, fmt.Errorf("%w: a pool needs a cluster id and a node id", ErrInvalid)
	}
	if o.LogSlots == 0 {
		o.LogSlots = meta.DefaultLogSlots
	}
	if o.LogSlots < 1 || o.LogSlots > meta.MaxLogSlots {
		return nil, fmt.Errorf("%w: activity logs of %d slots, at most %d", ErrInvalid, o.LogSlots, meta.MaxLogSlots)
	}
	if o.LockWait == 0 {
		o.LockWait = DefaultLockWait
	}
	if o.ClonePause == 0 {
		o.ClonePause = DefaultClonePause
	}
	p := &Pool{o: o, self: newUUID()}
	p.mu.open = make(map[key]*Replica)
	p.mu.busy = make(map[key]bool)
	p.mu.unsure = make(map[key]error)
	if err := p.init(); err != nil {
		p.shut()
		return nil, err
	}
	return p, nil
}

func (p *Pool) init() (err error) {
	if p.boot, err = bootID(); err != nil {
		return err
	}
	if p.dir, err = os.Open(p.o.Path); err != nil {
		return fmt.Errorf("backing: open pool: %w", err)
	}
	if p.fs, err = checkFS(p.dir, p.o.AllowAnyFS); err != nil {
		return err
	}
	if _, err := p.isEmpty(); err != nil { // before anything is made in a directory that is not ours
		return err
	}
	if p.lock, err = lockExclusive(p.path(lockFile), p.o.LockWait); err != nil {
		return err
	}
	fresh, err := p.isEmpty()
	if err != nil {
		return err
	}
	if !fresh {
		if err := p.loadIdentity(); err != nil {
			return err
		}
	}
	if err := p.clean(); err != nil {
		return err
	}
	if p.fs.Reflink, err = probeFS(p.path(tmpDir)); err != nil {
		return err
	}
	if fresh {
		if err := p.makeIdentity(); err != nil {
			return err
		}
	}
	if err := p.countProvisioned(); err != nil {
		return err
	}
	p.engine, p.kind, p.why = newEngine(p.o.Engine)
	if p.engine == nil {
		return fmt.Errorf("backing: engine %v: %w", p.o.Engine, p.why)
	}
	p.release, err = p.engine.hold(p.lock)
	return err
}

// clean makes the pool's directories and removes what is half-made or half-removed.
func (p *Pool) clean() error {
	for _, d := range []string{replicasDir, tmpDir, trashDir} {
		if err := os.Mkdir(p.path(d), 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	for _, d := range []string{tmpDir, trashDir} {
		if err := removeContent(p.path(d)); err != nil {
			return err
		}
	}
	return p.dir.Sync()
}

// isEmpty reports whether the directory was never a pool: it has no identity and
// nothing that could have come with data. A directory with data but without
// identity is ErrIdentityMissing.
func (p *Pool) isEmpty() (bool, error) {
	if ok, err := exists(p.path(identityFile)); err != nil || ok {
		return false, err
	}
	entries, err := os.ReadDir(p.o.Path)
	if err != nil {
		return false, err
	}
	for _, e := range entries {
		switch e.Name() {
		case "lost+found", lockFile, tmpDir:
			continue
		case replicasDir, trashDir: // made before the identity: empty then
			sub, err := os.ReadDir(p.path(e.Name()))
			if err != nil {
				return false, err
			}
			if len(sub) == 0 {
				continue
			}
		}
		return false, fmt.Errorf("%w: %s is not a pool but has %q; give an empty directory, or restore %s",
			ErrIdentityMissing, p.o.Path, e.Name(), identityFile)
	}
	return true, nil
}

// Close closes the pool. Every replica must have been closed: ErrInUse otherwise.
// Twice is nil.
func (p *Pool) Close() error {
	p.mu.Lock()
	if p.mu.closed {
		p.mu.Unlock()
		return nil
	}
	if n := len(p.mu.open) + len(p.mu.busy); n > 0 {
		p.mu.Unlock()
		return fmt.Errorf("%w: %d replicas of pool %s", ErrInUse, n, p.o.Path)
	}
	p.mu.closed = true
	p.mu.Unlock()
	p.removals.Wait()
	p.shut()
	return nil
}

func (p *Pool) shut() {
	unlock(p.lock, p.release)
	if p.engine != nil {
		p.engine.close()
	}
	if p.dir != nil {
		p.dir.Close()
	}
}

// ID is the pool's own identifier, for ever. Two pools with the same one are
// copies of the device below.
func (p *Pool) ID() meta.UUID { return p.id }

// Path is the pool's directory.
func (p *Pool) Path() string { return p.o.Path }

// FS tells what the pool lies on.
func (p *Pool) FS() FSInfo { return p.fs }

// Engine tells how I/O is done, and why not better.
func (p *Pool) Engine() (Engine, error) { return p.kind, p.why }

func (p *Pool) path(elem ...string) string {
	return filepath.Join(append([]string{p.o.Path}, elem...)...)
}

// syncFailed faults every open replica: they share a file system that lost data (I25).
func (p *Pool) syncFailed(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, r := range p.mu.open {
		r.fault(err)
	}
}

// lockPoll is how often a lock that is taken is tried again; the kernel tells nobody who does not wait in it.
const lockPoll = 10 * time.Millisecond

// lockExclusive opens or makes the file at path and takes its lock, within wait.
func lockExclusive(path string, wait time.Duration) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	poll := time.NewTicker(lockPoll)
	defer poll.Stop()
	for began := time.Now(); ; <-poll.C {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		switch {
		case err == nil:
			return f, nil
		case err != unix.EWOULDBLOCK && err != unix.EINTR:
			f.Close()
			return nil, &os.PathError{Op: "flock", Path: path, Err: err}
		case time.Since(began) >= wait:
			f.Close()
			return nil, fmt.Errorf("%w: %s is locked; a process that was killed keeps it until its I/O has ended", ErrLocked, path)
		}
	}
}

// unlock gives back what lockExclusive and engine.hold took; each may be nil.
func unlock(f *os.File, release func()) {
	if release != nil {
		release()
	}
	if f != nil {
		// Whatever the engine still refers to, the lock is free now.
		_ = unix.Flock(int(f.Fd()), unix.LOCK_UN)
		f.Close()
	}
}

// removeContent empties the directory at path.
func removeContent(path string) error {
	entries, err := os.ReadDir(path)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := os.RemoveAll(filepath.Join(path, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// bootID names the running boot of the kernel.
func bootID() (id meta.UUID, err error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return id, err
	}
	s := strings.ReplaceAll(strings.TrimSpace(string(b)), "-", "")
	if n, err := hex.Decode(id[:], []byte(s[:min(len(s), 32)])); err != nil || n != len(id) {
		return id, fmt.Errorf("backing: boot id %q", b)
	}
	return id, nil
}

func newUUID() (u meta.UUID) {
	rand.Read(u[:]) // never fails, see crypto/rand
	u[6] = u[6]&0x0f | 0x40
	u[8] = u[8]&0x3f | 0x80
	return u
}
