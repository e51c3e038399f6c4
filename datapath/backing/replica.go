package backing

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/tandem-storage/tandem/datapath/block"
	"github.com/tandem-storage/tandem/datapath/meta"
)

// Replica is one open replica: a block.Device for its data, and its durable
// metadata. All methods may be called concurrently.
//
// The Device never waits in Submit. A write that finds no space completes with
// block.ErrNoSpace; any other failure of a write or a flush faults the replica.
type Replica struct {
	pool      *Pool
	k         key
	dir       string
	d         *os.File // dir
	lock      *os.File
	release   func() // of lock by the engine
	shape     atomic.Pointer[shape]
	chunkSize int64
	thick     bool
	epoch     atomic.Uint64 // of the superblock, for the identity of new chunks
	term      atomic.Uint64 // of the superblock, for the records of the log

	chunks   table[atomic.Pointer[chunk]] // nil: never written, reads as zeroes
	chunkMap chunkMap
	unsynced bitmap // chunks that are dirty or being synced
	maker    maker
	growing  sync.Mutex // one Grow at a time
	gate     gate
	log      *ActivityLog
	sums     sums
	snaps    snapshots

	failure atomic.Pointer[error]
	faulted chan struct{}

	meta  metadata
	close struct {
		sync.Mutex
		done bool
	}
}

var _ block.Device = (*Replica)(nil)

// Crowded is that of the replica's pool.
func (r *Replica) Crowded() (bool, error) { return r.pool.Crowded() }

// Open opens a replica, in one process at a time: ErrLocked if another one has it
// open or left I/O behind that has not ended. Other errors: ErrNotFound,
// ErrInUse, ErrForeign, ErrMisplaced, ErrIdentityMissing, meta.ErrCorrupt,
// meta.ErrIncompatible; nothing is changed then. Before Open returns it is
// durable that the replica is open (not CleanFlush), and whether the previous
// process left it Unclean or Lossy.
func (p *Pool) Open(volume, replica meta.UUID) (*Replica, error) {
	k := key{volume, replica}
	if err := p.begin(k); err != nil {
		return nil, err
	}
	defer p.end(k)
	r := &Replica{pool: p, k: k, dir: p.path(replicasDir, k.dirName()), faulted: make(chan struct{})}
	r.gate.idle = make(chan struct{})
	r.maker.waiting = make(map[int64]*op)
	r.meta.maps = make(map[meta.UUID]*dirtyMap)
	r.snaps.r = r
	r.snaps.held.waiting = make(map[int64][]*block.Request)
	r.snaps.stop = make(chan struct{})
	if err := r.open(); err != nil {
		r.shut()
		return nil, err
	}
	p.mu.Lock()
	p.mu.open[k] = r
	p.mu.Unlock()
	r.snaps.startCloner()
	return r, nil
}

func (r *Replica) open() (err error) {
	if r.d, err = os.Open(r.dir); errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: replica %x of volume %x", ErrNotFound, r.k.replica, r.k.volume)
	} else if err != nil {
		return err
	}
	if r.lock, err = lockExclusive(filepath.Join(r.dir, lockFile), r.pool.o.LockWait); err != nil {
		return err
	}
	if r.release, err = r.pool.engine.hold(r.lock); err != nil {
		return err
	}
	sb, err := r.openSuperblock()
	if err != nil {
		return err
	}
	if err := r.endRevert(); err != nil {
		return err
	}
	r.chunkSize = int64(sb.ChunkSize)
	r.thick = sb.Thick
	r.epoch.Store(sb.Epoch)
	r.term.Store(sb.Term)
	r.shape.Store(shapeOf(sb))
	if err := r.endGrow(); err != nil {
		return err
	}
	if err := r.openChunks(sb.CleanFlush); err != nil {
		return err
	}
	if err := r.checkChunkMap(); err != nil {
		return err
	}
	if err := r.openLog(sb.Instance); err != nil {
		return err
	}
	if err := r.openSnaps(sb); err != nil {
		return err
	}
	r.openSums(sb)
	if err := r.markOpen(sb); err != nil {
		return err
	}
	r.gate.enter()
	defer r.gate.exit()
	r.sums.cover(r.log.Active())
	return nil
}

// Info implements block.Device. Grow changes it.
func (r *Replica) Info() block.Info { return r.shape.Load().info }

// chunk is chunk n, nil if it was never written.
func (r *Replica) chunk(n int64) *chunk {
	if p := r.chunks.at(n); p != nil {
		return p.Load()
	}
	return nil
}

// Volume and ID name the replica.
func (r *Replica) Volume() meta.UUID { return r.k.volume }

// ID is the replica's own identifier.
func (r *Replica) ID() meta.UUID { return r.k.replica }

// Faulted is closed when the replica is faulted; Err tells why.
func (r *Replica) Faulted() <-chan struct{} { return r.faulted }

// Err is nil, or the ErrFaulted with which every request now completes.
func (r *Replica) Err() error {
	if e := r.failure.Load(); e != nil {
		return *e
	}
	return nil
}

// fault ends the replica's usefulness for good. It does not block.
func (r *Replica) fault(cause error) {
	err := fmt.Errorf("%w: %w: its data are unknown now; replace the replica (tandemctl volume replica replace), it is then resynced", ErrFaulted, cause)
	if !r.failure.CompareAndSwap(nil, &err) {
		return
	}
	close(r.faulted)
	// If this replica is opened again its completed writes may be missing. The disk
	// may be too broken to note that; the configuration says FAULTED all the same.
	go r.noteLoss()
}

// Close implements block.Device: it waits for the requests in flight and releases
// the replica, without a flush: the next Open finds it Unclean.
func (r *Replica) Close() error { return r.shutDown(false) }

// CloseClean waits for the requests in flight, makes everything stable, notes
// that durably and releases the replica: the next Open does not find it Unclean
// because of this process. If it fails the replica is released all the same, as by Close.
func (r *Replica) CloseClean() error { return r.shutDown(true) }

func (r *Replica) shutDown(clean bool) error {
	r.close.Lock()
	defer r.close.Unlock()
	if r.close.done {
		return nil
	}
	r.close.done = true
	close(r.snaps.stop)
	r.gate.shut()
	r.snaps.cloner.Wait()
	var err error
	if clean {
		err = r.settle()
	}
	if r.Err() != nil {
		r.noteLoss()
	}
	r.shut()
	r.pool.mu.Lock()
	delete(r.pool.mu.open, r.k)
	r.pool.mu.Unlock()
	return err
}

// settle makes everything stable and says so. Nothing is in flight.
func (r *Replica) settle() error {
	if err := r.Err(); err != nil {
		return err
	}
	var err error
	r.unsynced.each(func(n int64) {
		if err != nil {
			return
		}
		c := r.chunk(n)
		if err = unix.Fdatasync(c.fd); err != nil {
			err = fmt.Errorf("fdatasync of %s: %w", c.f.Name(), err)
			r.pool.syncFailed(err)
		}
	})
	if err != nil {
		return r.Err()
	}
	r.sums.settle()
	if err := r.Err(); err != nil {
		return err
	}
	if err := r.log.settle(); err != nil {
		return err
	}
	return r.markClean()
}

// shut releases whatever open acquired. Nothing is in flight.
func (r *Replica) shut() {
	r.meta.close()
	r.chunkMap.close()
	if r.log != nil {
		r.log.close()
	}
	r.sums.close()
	r.snaps.close()
	r.chunks.each(func(_ int64, p *atomic.Pointer[chunk]) {
		if c := p.Load(); c != nil {
			c.f.Close()
		}
	})
	if r.d != nil {
		r.d.Close()
	}
	unlock(r.lock, r.release)
}
