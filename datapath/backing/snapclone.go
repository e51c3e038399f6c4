package backing

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/pkg/xattr"
	"golang.org/x/sys/unix"

	"github.com/tandem-storage/tandem/datapath/block"
	"github.com/tandem-storage/tandem/datapath/meta"
)

// DefaultClonePause is Options.ClonePause if that is 0.
const DefaultClonePause = 50 * time.Millisecond

// cloneShare bounds how much of the time the cloner clones: one part in cloneShare+1.
const cloneShare = 4

// heldRequests wait until chunks have been cloned.
type heldRequests struct {
	sync.Mutex
	waiting map[int64][]*block.Request
	queue   []int64
	running int
}

// blocked returns a chunk that has to be cloned before req, which changes data, may be started.
func (v *snapView) blocked(r *Replica, req *block.Request) (n int64, ok bool) {
	for n := req.Off / r.chunkSize; n*r.chunkSize < req.Off+req.Len; n++ {
		if !v.settled(n, r.chunkSize) && (r.chunk(n) != nil || r.opKind(req) != opPunch) {
			return n, true
		}
	}
	return 0, false
}

// hold has chunk n cloned and starts req then, anew. The gate has let req in.
func (s *snapshots) hold(n int64, req *block.Request) {
	h := &s.held
	h.Lock()
	defer h.Unlock()
	_, queued := h.waiting[n]
	h.waiting[n] = append(h.waiting[n], req)
	if queued {
		return
	}
	h.queue = append(h.queue, n)
	if h.running < maxMakers {
		h.running++
		go s.cloneHeld()
	}
}

// cloneHeld clones the chunks in the queue. The requests that wait for them keep the replica open.
func (s *snapshots) cloneHeld() {
	h := &s.held
	h.Lock()
	for len(h.queue) > 0 {
		n := h.queue[0]
		h.queue = h.queue[1:]
		h.Unlock()
		err := s.preserve(n)
		h.Lock()
		reqs := h.waiting[n]
		delete(h.waiting, n)
		h.Unlock()
		if err == nil {
			s.r.startAll(reqs)
		} else {
			for _, req := range reqs {
				req.By.Complete(req, &block.RequestError{Op: req.Op, Off: req.Off, Len: req.Len, Err: err})
				s.r.gate.exit()
			}
		}
		h.Lock()
	}
	h.running--
	h.Unlock()
}

// preserve gives the target chunk n as the head has it, unless nobody needs that. On nil the chunk may be
// changed, until the next cut. The caller is counted by the gate.
func (s *snapshots) preserve(n int64) error {
	s.merge.RLock()
	defer s.merge.RUnlock()
	l := s.lockOf(n)
	l.Lock()
	defer l.Unlock()
	v := s.view.Load()
	if v == nil || v.settled(n, s.r.chunkSize) {
		return nil
	}
	if err := s.r.Err(); err != nil {
		return err
	}
	if err := s.clone(v.target, n); err != nil {
		return s.r.classify(opWrite, fmt.Errorf("clone chunk %d for snapshot %x: %w", n, v.target.id, err))
	}
	v.target.cloned.set(n)
	v.done.set(n)
	return nil
}

// clone makes sn's file of chunk n from the head, which nobody changes meanwhile. It is stable on nil; after
// a crash it is whole, or its name begins with newPrefix.
func (s *snapshots) clone(sn *snap, n int64) error {
	if err := sn.makeDir(); err != nil {
		return err
	}
	c := s.r.chunk(n)
	return newFile(sn.dir, chunkName(n), func(f *os.File) error {
		if c == nil {
			return f.Truncate(s.r.chunkSize)
		}
		if err := unix.IoctlFileClone(int(f.Fd()), c.fd); err != nil {
			return &os.PathError{Op: "clone", Path: c.f.Name(), Err: err}
		}
		return s.writeSums(f, n)
	}, func(f *os.File) error { return identify(f, s.r.k, n, s.r.epoch.Load()) })
}

// identify gives f the identity of chunk n of k.
func identify(f *os.File, k key, n int64, epoch uint64) error {
	inode, err := inodeOf(f)
	if err != nil {
		return err
	}
	return xattr.FSet(f, xattrChunk, chunkIdentity(k, n, epoch, inode))
}

// newFile makes the file name in dir of what the steps put into it. It is stable on nil; after a crash
// it is whole, or its name begins with newPrefix.
func newFile(dir, name string, steps ...func(f *os.File) error) error {
	path, tmp := filepath.Join(dir, name), filepath.Join(dir, newPrefix+name)
	f, err := os.OpenFile(tmp, os.O_RDWR|os.O_CREATE|os.O_TRUNC|unix.O_DIRECT, 0o600)
	if err != nil {
		return err
	}
	for _, step := range steps {
		if err == nil {
			err = step(f)
		}
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = giveName(tmp, path, syncDir)
	}
	if err != nil {
		if rm := os.Remove(tmp); !errors.Is(rm, fs.ErrNotExist) {
			err = errors.Join(err, rm)
		}
	}
	return err
}

// makeDir makes the snapshot's directory, stably, if it is not there.
func (sn *snap) makeDir() error {
	sn.making.Lock()
	defer sn.making.Unlock()
	if sn.made {
		return nil
	}
	parent := filepath.Dir(sn.dir)
	for _, dir := range []string{parent, sn.dir} {
		if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		if err := syncDir(filepath.Dir(dir)); err != nil {
			return err
		}
	}
	sn.made = true
	return nil
}

// regionsOfChunk is the first region of checksums that chunk n has blocks of, and the one after the last.
func (r *Replica) regionsOfChunk(n int64) (first, end uint32) {
	from, to := n*r.chunkSize, min((n+1)*r.chunkSize, r.Info().Size)
	return uint32(from / meta.SumRegion), uint32((to + meta.SumRegion - 1) / meta.SumRegion)
}

// sumsPlace is where the page of a region is in a file of chunk n of a snapshot.
func (r *Replica) sumsPlace(n int64, region uint32) int64 {
	first, _ := r.regionsOfChunk(n)
	return r.chunkSize + int64(region-first)*meta.PageSize
}

// snapSums is whose the checksums in the chunks of snapshots are.
func (r *Replica) snapSums() meta.SumOwner { return meta.SumOwner{Replica: r.k.replica} }

// writeSums appends the checksums of chunk n to f, if there are any. Nobody changes the chunk meanwhile.
func (s *snapshots) writeSums(f *os.File, n int64) error {
	if s.r.sums.off.Load() {
		return nil
	}
	page := block.NewBuffer(meta.PageSize)
	defer page.Release()
	first, end := s.r.regionsOfChunk(n)
	for g := first; g < end; g++ {
		list := s.r.headSums(n, g)
		meta.EncodeSums(page.Bytes(), s.r.snapSums(), g, &list)
		if _, err := f.WriteAt(page.Bytes(), s.r.sumsPlace(n, g)); err != nil {
			return err
		}
	}
	return nil
}

// headSums are the checksums that the blocks of chunk n in region g have now. The caller is
// counted by the gate.
func (r *Replica) headSums(n int64, g uint32) (list [meta.SumBlocks]meta.Sum) {
	base := int64(g) * meta.SumBlocks
	p := r.sums.load(base)
	for i := range list {
		if (base+int64(i))*meta.SumBlock/r.chunkSize == n {
			if e := p.entries[i].Load(); isKnown(e) {
				list[i] = entrySum(e)
			}
		}
	}
	return list
}

// startCloner starts the cloner if there may be something for it.
func (s *snapshots) startCloner() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.startClonerLocked()
}

func (s *snapshots) startClonerLocked() {
	if s.mu.cloning || s.r.pool.o.ClonePause < 0 || s.view.Load() == nil {
		return
	}
	s.mu.cloning = true
	s.cloner.Go(s.cloneRest)
}

// cloneRest clones what no write has waited for: one chunk of the pool at a time, with a pause after each, so that
// the first write to a chunk seldom finds a clone to wait for. If one fails, the next cut or opening starts again.
func (s *snapshots) cloneRest() {
	for v := s.view.Load(); ; {
		for n := range s.r.shape.Load().chunks {
			if s.r.chunk(n) == nil || v.settled(n, s.r.chunkSize) {
				continue
			}
			if !s.r.gate.enter() {
				return
			}
			s.r.pool.cloning.Lock()
			began := time.Now()
			err := s.preserve(n)
			took := time.Since(began)
			s.r.pool.cloning.Unlock()
			s.r.gate.exit()
			if err != nil {
				s.mu.Lock()
				s.mu.cloning = false
				s.mu.Unlock()
				return
			}
			select {
			case <-s.stop:
				return
			case <-time.After(max(s.r.pool.o.ClonePause, cloneShare*took)):
			}
		}
		s.mu.Lock()
		if next := s.view.Load(); next != nil && next != v {
			v = next
			s.mu.Unlock()
			continue
		}
		s.mu.cloning = false
		s.mu.Unlock()
		return
	}
}
