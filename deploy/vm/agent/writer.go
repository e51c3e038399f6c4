package main

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/tandem-storage/tandem/deploy/vm/order"
)

// depth is how many requests a writer of blocks has in flight.
const depth = 4

// writer writes and tells the host of every request, before and after, so that
// the host knows what may be there and what must be. Safe for concurrent use.
type writer struct {
	name string
	seed uint64
	tell func(order.Line)
	all  sync.WaitGroup

	mu      sync.Mutex // also over telling: the host is told in the order in which things happen
	rng     *rand.Rand
	version int64
	flushes int
	busy    map[int64]bool // places in flight
	ending  bool
}

func newWriter(q order.Request, tell func(order.Line)) *writer {
	return &writer{
		name: q.Op, seed: q.Seed, tell: tell, version: q.After,
		rng: rand.New(rand.NewPCG(q.Seed, uint64(q.After))), busy: map[int64]bool{},
	}
}

func (w *writer) start(q order.Request) error {
	if q.Op == order.Files {
		w.all.Go(func() { w.loop(func() error { return w.file(q.Path) }) })
		return nil
	}
	f, size, err := openDevice(q.Path, os.O_RDWR)
	if err != nil {
		return err
	}
	var users sync.WaitGroup
	for range depth {
		buf := aligned(16 * order.BlockSize)
		work := func() { w.loop(func() error { return w.block(f, size, buf) }) }
		users.Go(work)
	}
	w.all.Go(func() {
		users.Wait()
		f.Close()
	})
	return nil
}

func (w *writer) end() {
	w.mu.Lock()
	w.ending = true
	w.mu.Unlock()
	w.all.Wait()
}

// loop repeats a step until the end or an error, of which the host is told once.
func (w *writer) loop(step func() error) {
	for {
		w.mu.Lock()
		ending := w.ending
		w.mu.Unlock()
		if ending {
			return
		}
		if err := step(); err != nil {
			w.mu.Lock()
			defer w.mu.Unlock()
			if !w.ending {
				w.ending = true
				w.tell(order.Line{Writer: w.name, Failed: err.Error()})
			}
			return
		}
	}
}

// block does one request: a write of 1 to 16 blocks, stable or not, zeroes, or a flush.
func (w *writer) block(f *os.File, size int64, buf []byte) error {
	w.mu.Lock()
	if w.rng.IntN(25) == 0 {
		w.flushes++
		n := w.flushes
		w.tell(order.Line{Writer: w.name, Flush: n})
		w.mu.Unlock()
		if err := unix.Fdatasync(int(f.Fd())); err != nil {
			return fmt.Errorf("flush: %w", err)
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		w.tell(order.Line{Writer: w.name, Flushed: n})
		return nil
	}
	q := w.next()
	w.tell(order.Line{Writer: w.name, Submit: &q})
	w.mu.Unlock()
	err := w.submit(f, size, q, buf[:q.Count*order.BlockSize])
	if err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for i := range q.Count {
		delete(w.busy, q.First+i)
	}
	w.tell(order.Line{Writer: w.name, Confirm: q.Version})
	return nil
}

// next chooses a request that overlaps none in flight and no end of a run of places.
func (w *writer) next() order.Write {
	const run = order.Places / 4
	for {
		q := order.Write{First: w.rng.Int64N(order.Places), Count: []int64{1, 1, 1, 2, 4, 16}[w.rng.IntN(6)], Sync: w.rng.IntN(5) == 0}
		if q.First%run+q.Count > run {
			continue
		}
		free := true
		for i := range q.Count {
			free = free && !w.busy[q.First+i]
		}
		if !free {
			continue
		}
		for i := range q.Count {
			w.busy[q.First+i] = true
		}
		w.version++
		q.Version = w.version
		return q
	}
}

func (w *writer) submit(f *os.File, size int64, q order.Write, buf []byte) error {
	off := order.Offset(q.First, size)
	if order.Zeroes(q.Version) {
		if err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, int64(len(buf))); err != nil {
			return fmt.Errorf("punch: %w", err)
		}
		if q.Sync {
			return os.NewSyscallError("fdatasync", unix.Fdatasync(int(f.Fd())))
		}
		return nil
	}
	for i := range q.Count {
		order.Fill(buf[i*order.BlockSize:(i+1)*order.BlockSize], w.seed, q.First+i, q.Version)
	}
	flags := 0
	if q.Sync {
		flags = unix.RWF_DSYNC
	}
	n, err := unix.Pwritev2(int(f.Fd()), [][]byte{buf}, off, flags)
	if err != nil {
		return fmt.Errorf("write: %w", err)
	}
	if n != len(buf) {
		return fmt.Errorf("write: %d of %d bytes", n, len(buf))
	}
	return nil
}

// file writes a new version of a file beside the old one, makes it stable and puts it in its place.
func (w *writer) file(dir string) error {
	w.mu.Lock()
	w.version++
	q := order.Write{Version: w.version, First: w.rng.Int64N(order.FilesInUse), Count: 1, Sync: true}
	size := (1 + w.rng.IntN(16)) * order.BlockSize
	w.tell(order.Line{Writer: w.name, Submit: &q})
	w.mu.Unlock()
	data := make([]byte, size)
	order.FillFile(data, w.seed, q.First, q.Version)
	if err := replaceFile(dir, fmt.Sprintf("f%02d", q.First), data); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.tell(order.Line{Writer: w.name, Confirm: q.Version})
	return nil
}

func replaceFile(dir, name string, data []byte) error {
	tmp := filepath.Join(dir, "new")
	f, err := os.Create(tmp)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.Write(data); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := os.Rename(tmp, filepath.Join(dir, name)); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// openDevice opens a block device past the page cache.
func openDevice(path string, mode int) (*os.File, int64, error) {
	fd, err := unix.Open(path, mode|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, 0, fmt.Errorf("open %s: %w", path, err)
	}
	f := os.NewFile(uintptr(fd), path)
	size, err := f.Seek(0, 2)
	if err != nil {
		f.Close()
		return nil, 0, err
	}
	return f, size, nil
}

// aligned returns a buffer for direct I/O.
func aligned(n int) []byte {
	buf := make([]byte, n+order.BlockSize)
	shift := order.BlockSize - int(uintptr(unsafe.Pointer(&buf[0]))%order.BlockSize)
	return buf[shift : shift+n : shift+n]
}
