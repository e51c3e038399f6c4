package backing

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/tandem-storage/tandem/datapath/block"
	"github.com/tandem-storage/tandem/datapath/meta"
)

// Snapshot is an open snapshot: a block.Device that can only be read, and never changes. What changes
// data completes with block.ErrNotSupported. Reads are checked as those of the replica are. It needs the
// replica open, and is closed on its own; as long as it is not, the snapshot cannot be deleted.
type Snapshot struct {
	r    *Replica
	sn   *snap
	info block.Info
	gate gate

	mu struct {
		sync.Mutex
		closed bool
		files  map[int64]*os.File // chunks that do not come from the head any more
	}
}

var _ block.Device = (*Snapshot)(nil)

// OpenSnapshot opens a snapshot: ErrNotFound if there is none with that id.
func (r *Replica) OpenSnapshot(id meta.UUID) (*Snapshot, error) {
	if !r.gate.enter() {
		return nil, fmt.Errorf("%w: replica %x", block.ErrClosed, r.k.replica)
	}
	defer r.gate.exit()
	sn, err := r.snaps.use(id)
	if err != nil {
		return nil, err
	}
	d := &Snapshot{r: r, sn: sn, info: block.Info{Size: sn.size, BlockSize: r.Info().BlockSize}}
	d.gate.idle = make(chan struct{})
	d.mu.files = make(map[int64]*os.File)
	return d, nil
}

// use keeps a snapshot from being deleted until release is called.
func (s *snapshots) use(id meta.UUID) (*snap, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	sn := s.view.Load().find(id)
	if sn == nil || slices.ContainsFunc(s.mu.file.Get().Records, func(m meta.SnapshotRecord) bool { return m.ID == id && m.Deleting }) {
		return nil, fmt.Errorf("%w: snapshot %x of replica %x", ErrNotFound, id, s.r.k.replica)
	}
	sn.open++
	return sn, nil
}

func (s *snapshots) release(sn *snap) {
	s.mu.Lock()
	defer s.mu.Unlock()
	sn.open--
}

// Info implements block.Device.
func (d *Snapshot) Info() block.Info { return d.info }

// Submit implements block.Device.
func (d *Snapshot) Submit(batch []*block.Request) {
	for _, req := range batch {
		if !d.gate.enter() {
			req.By.Complete(req, fmt.Errorf("%w: snapshot %x", block.ErrClosed, d.sn.id))
			continue
		}
		go func() {
			err := d.serve(req)
			req.By.Complete(req, err)
			d.gate.exit()
		}()
	}
}

// Close implements block.Device.
func (d *Snapshot) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.mu.closed {
		return nil
	}
	d.mu.closed = true
	d.mu.Unlock()
	d.gate.shut()
	d.mu.Lock()
	d.r.snaps.release(d.sn)
	var err error
	for _, f := range d.mu.files {
		err = errors.Join(err, f.Close())
	}
	return err
}

func (d *Snapshot) serve(req *block.Request) error {
	if err := req.Check(d.info); err != nil || req.Op == block.OpFlush {
		return err
	}
	if req.Op != block.OpRead {
		return &block.RequestError{Op: req.Op, Off: req.Off, Len: req.Len, Err: fmt.Errorf("%w: a snapshot is read only", block.ErrNotSupported)}
	}
	if !d.r.gate.enter() {
		return fmt.Errorf("%w: replica %x", block.ErrClosed, d.r.k.replica)
	}
	defer d.r.gate.exit()
	if err := d.r.Err(); err != nil {
		return err
	}
	buf := block.NewBuffer(len(req.Data))
	defer buf.Release()
	for p, off := buf.Bytes(), req.Off; len(p) > 0; {
		n, in := off/d.r.chunkSize, off%d.r.chunkSize
		length := min(int64(len(p)), d.r.chunkSize-in)
		if err := d.readChunk(p[:length], n, in, req.Flags&block.AsIs != 0); err != nil {
			return &block.RequestError{Op: req.Op, Off: req.Off, Len: req.Len, Err: err}
		}
		p, off = p[length:], off+length
	}
	copy(req.Data, buf.Bytes())
	return nil
}

// readChunk reads what the snapshot has at in of chunk n.
func (d *Snapshot) readChunk(p []byte, n, in int64, asIs bool) error {
	d.mu.Lock()
	f := d.mu.files[n]
	d.mu.Unlock()
	if f == nil {
		c, err := d.r.snaps.content(d.sn, n)
		if err != nil {
			return err
		}
		if c.head {
			defer c.release()
			return d.r.readContent(c, p, n, in, asIs)
		}
		d.mu.Lock()
		if f = d.mu.files[n]; f == nil {
			f = c.f
			d.mu.files[n] = f
		} else {
			c.release()
		}
		d.mu.Unlock()
	}
	return d.r.readContent(content{f: f}, p, n, in, asIs)
}

// content is what a snapshot has of one chunk.
type content struct {
	f       *os.File // nil: zeroes
	head    bool     // it is the head's: not to be changed until release, and its checksums are in memory
	release func()
}

// content finds out what sn has of chunk n. The caller is counted by the gate, and calls release in the end.
func (s *snapshots) content(sn *snap, n int64) (content, error) {
	l := s.lockOf(n)
	l.RLock()
	if at := holder(s.view.Load().chain, sn, n); at != nil {
		defer l.RUnlock()
		f, err := s.openClone(at, n)
		if err != nil {
			return content{}, err
		}
		return content{f: f, release: func() { f.Close() }}, nil
	}
	c := content{head: true, release: l.RUnlock}
	if at := s.r.chunk(n); at != nil {
		c.f = at.f
	}
	return c, nil
}

// openClone opens sn's file of chunk n and checks that it is the one that was made for its place.
func (s *snapshots) openClone(sn *snap, n int64) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(sn.dir, chunkName(n)), os.O_RDONLY|unix.O_DIRECT|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, fmt.Errorf("%w: chunk %d of snapshot %x: %w", block.ErrIO, n, sn.id, err)
	}
	size := s.r.chunkSize
	if st, err := f.Stat(); err == nil && st.Size() > size {
		// It has pages of checksums for what the volume had of the chunk when it was cloned.
		size = min(st.Size()/meta.PageSize*meta.PageSize, s.r.sumsPlace(n, uint32(pieces((n+1)*s.r.chunkSize, meta.SumRegion))))
	}
	if err := checkChunk(f, s.r.k, n, size); err != nil {
		f.Close()
		return nil, fmt.Errorf("%w: %w", block.ErrIO, err)
	}
	return f, nil
}

// readContent reads at in of chunk n, and checks what has a checksum unless asIs.
func (r *Replica) readContent(c content, p []byte, n, in int64, asIs bool) error {
	if c.f == nil {
		clear(p)
		return nil
	}
	if err := runOp(&op{kind: opRead, fd: int(c.f.Fd()), off: in, buf: p}); err != nil {
		return fmt.Errorf("%w: %w", block.ErrIO, err)
	}
	for b := (n*r.chunkSize + in) / meta.SumBlock; len(p) > 0 && !asIs; {
		g := uint32(b / meta.SumBlocks)
		list, known := r.contentSums(c, n, g)
		if !known {
			return nil
		}
		for ; len(p) > 0 && uint32(b/meta.SumBlocks) == g; b++ {
			if want := list[b%meta.SumBlocks]; want != meta.NoSum && sumOf(p, b) != want {
				return fmt.Errorf("%w: block at %d in %s", block.ErrChecksum, b*meta.SumBlock, c.f.Name())
			}
			p = p[meta.SumBlock:]
		}
	}
	return nil
}

// contentSums are the checksums of the blocks of chunk n that are in region g; known is false if the replica, or
// the file, has none at all. A page that is damaged knows none of its blocks.
func (r *Replica) contentSums(c content, n int64, g uint32) (list [meta.SumBlocks]meta.Sum, known bool) {
	if c.head {
		if r.sums.off.Load() {
			return list, false
		}
		return r.headSums(n, g), true
	}
	page := block.NewBuffer(meta.PageSize)
	defer page.Release()
	if _, err := c.f.ReadAt(page.Bytes(), r.sumsPlace(n, g)); errors.Is(err, io.EOF) {
		return list, false
	} else if err == nil {
		_ = meta.DecodeSums(page.Bytes(), r.snapSums(), g, &list) // a page that is not whole tells nothing
	}
	return list, true
}
