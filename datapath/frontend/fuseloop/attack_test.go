package fuseloop

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tandem-storage/tandem/datapath/block"
	"github.com/tandem-storage/tandem/datapath/block/blocktest"
	"github.com/tandem-storage/tandem/datapath/frontend"
)

// node is a block.Device over a device node: what a consumer of ours can do.
type node struct {
	file *os.File
	info block.Info
	wg   sync.WaitGroup

	mu     sync.Mutex
	closed bool
}

func (n *node) Info() block.Info { return n.info }

func (n *node) Submit(batch []*block.Request) {
	for _, r := range batch {
		n.mu.Lock()
		closed := n.closed
		if !closed {
			n.wg.Add(1)
		}
		n.mu.Unlock()
		if closed {
			r.By.Complete(r, block.ErrClosed)
			continue
		}
		go func() {
			err := n.serve(r)
			r.By.Complete(r, err)
			n.wg.Done()
		}()
	}
}

func (n *node) serve(r *block.Request) error {
	if err := r.Check(n.info); err != nil {
		return err
	}
	fd := int(n.file.Fd())
	switch r.Op {
	case block.OpFlush:
		return unix.Fdatasync(fd)
	case block.OpDiscard:
		return unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, r.Off, r.Len)
	case block.OpWriteZeroes:
		mode := uint32(unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE)
		if r.Flags&block.NoHole != 0 {
			mode = unix.FALLOC_FL_ZERO_RANGE | unix.FALLOC_FL_KEEP_SIZE
		}
		return unix.Fallocate(fd, mode, r.Off, r.Len)
	case block.OpRead, block.OpWrite:
	}
	b := block.NewBuffer(len(r.Data)) // direct I/O wants aligned memory
	defer b.Release()
	if r.Op == block.OpRead {
		_, err := n.file.ReadAt(b.Bytes(), r.Off)
		copy(r.Data, b.Bytes())
		return err
	}
	copy(b.Bytes(), r.Data)
	_, err := n.file.WriteAt(b.Bytes(), r.Off)
	return err
}

func (n *node) Close() error {
	n.mu.Lock()
	closed := n.closed
	n.closed = true
	n.mu.Unlock()
	n.wg.Wait()
	if closed {
		return nil
	}
	return n.file.Close()
}

// The contract of block.Device holds from end to end: suite, system calls, loop
// driver, FUSE, this package, Mem.
func TestConformanceThroughTheKernel(t *testing.T) {
	blocktest.Run(t, "node", func(t *testing.T, size int64) block.Device {
		f := newFront(t)
		a := attach(t, f, "vol", memory(size))
		return &node{
			file: openDirect(t, a.Path()),
			info: block.Info{Size: size, BlockSize: 4096, Caps: block.CapFlush | block.CapDiscard | block.CapWriteZeroes},
		}
	})
}

func TestPowerCutsThroughTheKernel(t *testing.T) {
	blocktest.RunCrash(t, "node", func(t *testing.T, size int64) (block.Device, func(*testing.T) block.Device) {
		f := newFront(t)
		m := memory(size)
		a := attach(t, f, "vol", m)
		n := &node{
			file: openDirect(t, a.Path()),
			info: block.Info{Size: size, BlockSize: 4096, Caps: block.CapFlush | block.CapDiscard | block.CapWriteZeroes},
		}
		return n, func(*testing.T) block.Device { return m.CrashClone(blocktest.CrashOptions{}) }
	})
}

func TestAttachmentsComeAndGo(t *testing.T) {
	f := newFront(t)
	var wg sync.WaitGroup
	for g := range 6 {
		wg.Go(func() {
			for i := range 5 {
				id, want := fmt.Sprintf("vol%d", g), bytes.Repeat([]byte{byte(g*16 + i + 1)}, 4096)
				m := memory(mib)
				if err := block.WriteAt(m, want, 8192, 0); err != nil {
					t.Error(err)
				}
				a, err := f.Attach(context.Background(), id, m)
				if err != nil {
					t.Error(err)
					return
				}
				got, err := readNode(a.Path(), 8192)
				if err != nil || !bytes.Equal(got, want) {
					t.Errorf("%s shows another device, %v", a.Path(), err)
				}
				if i%2 == 0 {
					a.Kill()
					<-a.Done()
				} else if err := a.Detach(context.Background()); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}

func readNode(path string, off int64) ([]byte, error) {
	file, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECT, 0)
	if err != nil {
		return nil, err
	}
	b := block.NewBuffer(4096)
	defer b.Release()
	_, err = file.ReadAt(b.Bytes(), off)
	return bytes.Clone(b.Bytes()), errors.Join(err, file.Close())
}

func TestDetachAndKillAtOnce(t *testing.T) {
	f := newFront(t)
	for range 20 {
		a := attach(t, f, "vol", memory(mib))
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() {
				if err := a.Detach(context.Background()); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Go(a.Kill)
		wg.Wait()
		<-a.Done()
		if err := a.Err(); err != nil && !errors.Is(err, ErrKilled) {
			t.Fatal(err)
		}
		mustBeUnbound(t, a.Path(), f.dir)
	}
}

// A writer that opens, writes and closes all the time races with Detach. What
// it was told to be written is on the device when Detach has succeeded.
func TestDetachAgainstOpeners(t *testing.T) {
	f := newFront(t)
	mid := 0
	for range 40 {
		m := memory(mib)
		a := attach(t, f, "vol", m)
		written := make(chan uint64)
		turn := make(chan struct{}, 1) // both go at once
		started := make(chan struct{})
		go func() {
			var n uint64
			b := block.NewBuffer(4096)
			defer b.Release()
			for range 200 {
				file, err := os.OpenFile(a.Path(), os.O_RDWR|unix.O_DIRECT, 0)
				if err != nil {
					break // the door is shut
				}
				// While we have it open it stays what it is, which may be
				// somebody else's.
				if !isOurs(a.Path(), f.dir) {
					_ = file.Close()
					break
				}
				binary.LittleEndian.PutUint64(b.Bytes(), n+1)
				_, err = file.WriteAt(b.Bytes(), 0)
				_ = file.Close()
				if err != nil {
					break // opened, but there is no device any more
				}
				if n++; n == 1 {
					close(started)
				}
				<-turn
			}
			written <- n
		}()
		<-started
		for { // what Detach does, without its pauses
			select {
			case turn <- struct{}{}:
			default:
			}
			err := a.loop.release()
			if err == nil {
				break
			}
			if !errors.Is(err, frontend.ErrBusy) {
				t.Fatal(err)
			}
		}
		close(turn)
		want := <-written
		if want > 1 {
			mid++
		}
		p := make([]byte, 4096)
		if err := block.ReadAt(m, p, 0); err != nil {
			t.Fatal(err)
		}
		if got := binary.LittleEndian.Uint64(p); got != want {
			t.Fatalf("%d writes were acknowledged, the device has number %d", want, got)
		}
		<-a.Done() // the closing of the file ends it
	}
	t.Logf("%d of 40 writers got through at least once more", mid)
}
