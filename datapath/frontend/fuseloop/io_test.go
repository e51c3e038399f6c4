package fuseloop

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tandem-storage/tandem/datapath/block"
	"github.com/tandem-storage/tandem/datapath/block/blocktest"
	"github.com/tandem-storage/tandem/internal/testseed"
)

func memory(size int64) *blocktest.Mem {
	return blocktest.NewMem(blocktest.MemOptions{Size: size, Async: true})
}

func TestDeviceNode(t *testing.T) {
	f := newFront(t)
	a := attach(t, f, "vol1", memory(64*mib))
	for name, want := range map[string]string{
		"size":                      fmt.Sprint(64 * mib / 512),
		"queue/logical_block_size":  "4096",
		"queue/max_sectors_kb":      fmt.Sprint(loopRequestKiB),
		"queue/write_cache":         "write back",
		"queue/fua":                 "0",
		"queue/discard_granularity": "4096",
		"loop/dio":                  "1",
		"loop/autoclear":            "0",
		"loop/backing_file":         filepath.Join(f.dir, "vol1", "device"),
	} {
		if got := sysfs(t, a, name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	detach(t, a)
	if err := a.Detach(t.Context()); err != nil {
		t.Fatalf("second Detach: %v", err)
	}
}

func TestFilesystems(t *testing.T) {
	for _, fs := range []struct {
		name  string
		mkfs  []string
		check []string
	}{
		{"xfs", []string{"mkfs.xfs", "-q", "-f"}, []string{"xfs_repair", "-n"}},
		{"ext4", []string{"mkfs.ext4", "-q", "-F"}, []string{"fsck.ext4", "-n", "-f"}},
	} {
		t.Run(fs.name, func(t *testing.T) {
			m := memory(512 * mib)
			model := blocktest.NewModel(m)
			rec := blocktest.NewRecord(model)
			f := newFront(t)
			a := attach(t, f, "vol-"+fs.name, rec)
			run(t, fs.mkfs[0], append(fs.mkfs[1:], a.Path())...)
			dir := mountAt(t, a.Path())

			content := make([]byte, 20*mib+123)
			rng := rand.NewChaCha8([32]byte{1})
			_, _ = rng.Read(content) // never fails
			name := filepath.Join(dir, "file")
			file, err := os.Create(name)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := file.Write(content); err != nil {
				t.Fatal(err)
			}
			rec.Reset()
			if err := errors.Join(file.Sync(), file.Close()); err != nil {
				t.Fatal(err)
			}
			if rec.Completed(block.OpFlush) == 0 {
				t.Error("fsync of a file brought no flush")
			}

			// Space given back by the file system is given back by the device.
			trash := filepath.Join(dir, "trash")
			run(t, "dd", "if=/dev/urandom", "of="+trash, "bs=1M", "count=50", "conv=fsync", "status=none")
			full := m.Allocated()
			if err := os.Remove(trash); err != nil {
				t.Fatal(err)
			}
			// XFS frees a deleted file in the background, at the latest here.
			unmount(t, dir)
			run(t, "mount", a.Path(), dir)
			rec.Reset()
			run(t, "fstrim", dir)
			if rec.Completed(block.OpDiscard) == 0 {
				t.Error("fstrim brought no discard")
			}
			unmount(t, dir)
			if err := block.Flush(m); err != nil {
				t.Fatal(err)
			}
			if left := m.Allocated(); left > full-45*mib {
				t.Errorf("after fstrim %d MiB are allocated, before %d", left/mib, full/mib)
			}
			run(t, fs.check[0], append(fs.check[1:], a.Path())...)

			// What fsync promised is there after power was cut, whatever else is.
			for _, percent := range []int{0, 50} {
				detach(t, a)
				clone := m.CrashClone(blocktest.CrashOptions{UnsyncedPercent: percent, Rand: rand.New(rand.NewPCG(1, 1))})
				a = attach(t, f, "vol-"+fs.name, clone)
				dir = mountAt(t, a.Path())
				got, err := os.ReadFile(filepath.Join(dir, "file"))
				if err != nil {
					t.Fatal(err)
				}
				if sha256.Sum256(got) != sha256.Sum256(content) {
					t.Fatal("the file has other content after a power cut")
				}
				unmount(t, dir)
			}
			detach(t, a)
			if err := model.Err(); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// A power cut at any moment, with the file system mounted and being written.
func TestCrashUnderLoad(t *testing.T) {
	m := memory(512 * mib)
	f := newFront(t)
	a := attach(t, f, "vol", m)
	run(t, "mkfs.xfs", "-q", "-f", a.Path())
	dir := mountAt(t, a.Path())
	const files = 20
	body := func(i int) []byte { return bytes.Repeat([]byte(fmt.Sprintf("%08d", i)), 5000) }
	var clones []*blocktest.Mem
	for i := range files {
		file, err := os.Create(filepath.Join(dir, fmt.Sprint(i)))
		if err != nil {
			t.Fatal(err)
		}
		_, err = file.Write(body(i))
		if err := errors.Join(err, file.Sync(), file.Close()); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "unsynced"), body(i*7), 0o600); err != nil {
			t.Fatal(err)
		}
		if i%5 == 4 {
			clones = append(clones, m.CrashClone(blocktest.CrashOptions{UnsyncedPercent: 50, Rand: rand.New(rand.NewPCG(uint64(i), 2))}))
		}
	}
	unmount(t, dir)
	for k, c := range clones {
		b := attach(t, f, fmt.Sprintf("clone%d", k), c)
		at := mountAt(t, b.Path(), "-o", "nouuid")
		for i := range 5 * (k + 1) {
			got, err := os.ReadFile(filepath.Join(at, fmt.Sprint(i)))
			if err != nil || !bytes.Equal(got, body(i)) {
				t.Fatalf("power cut %d: file %d, synced before it, is wrong: %v", k, i, err)
			}
		}
		unmount(t, at)
		run(t, "xfs_repair", "-n", b.Path())
		detach(t, b)
	}
	detach(t, a)
}

func TestFio(t *testing.T) {
	for _, job := range [][]string{
		{"--rw=randrw", "--bsrange=4k-512k", "--iodepth=32"},
		{"--rw=randwrite", "--bs=4k", "--iodepth=64", "--fsync=64"},
		{"--rw=write", "--bs=1m", "--iodepth=8"},
		{"--rw=randtrimwrite", "--bs=64k", "--iodepth=16"},
	} {
		t.Run(strings.Join(job[:2], " "), func(t *testing.T) {
			model := blocktest.NewModel(memory(64 * mib))
			f := newFront(t)
			a := attach(t, f, "vol", model)
			args := append([]string{
				"--name=j", "--filename=" + a.Path(), "--ioengine=io_uring", "--direct=1", "--size=64m", "--io_size=64m",
				"--verify=crc32c", "--verify_fatal=1", "--randseed=17", "--allow_mounted_write=0",
			}, job...)
			if strings.Contains(job[0], "trim") {
				args = append(args, "--do_verify=0")
			}
			run(t, "fio", args...)
			detach(t, a)
			if err := model.Err(); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// Requests larger than a FUSE request, and discards larger than 32 bits of sectors.
func TestLargeDiscardAndZeroes(t *testing.T) {
	const size = 9 << 30
	m := memory(size)
	rec := blocktest.NewRecord(m)
	f := newFront(t)
	a := attach(t, f, "vol", rec)
	marks := []int64{0, 4<<30 - 4096, 4 << 30, 8<<30 - 4096, size - 4096}
	for _, op := range []block.Op{block.OpDiscard, block.OpWriteZeroes} {
		for _, off := range marks {
			if err := block.WriteAt(m, bytes.Repeat([]byte{7}, 4096), off, 0); err != nil {
				t.Fatal(err)
			}
		}
		rec.Reset()
		args := []string{"-f", a.Path()}
		if op == block.OpWriteZeroes {
			args = append([]string{"-z"}, args...)
		}
		run(t, "blkdiscard", args...)
		if rec.Completed(op) == 0 {
			t.Errorf("blkdiscard %v brought no %v:\n%s", args, op, rec)
		}
		if n := rec.Completed(block.OpWrite); n > 0 {
			t.Errorf("blkdiscard %v brought %d writes", args, n)
		}
		for _, e := range rec.History() {
			if e.Err != nil {
				t.Errorf("%v", e)
			}
			if op == block.OpWriteZeroes && e.Op == op && e.Flags&block.NoHole == 0 {
				t.Errorf("zeroing that keeps the space came as %v", e)
			}
		}
		for _, off := range marks {
			p := make([]byte, 4096)
			if err := block.ReadAt(m, p, off); err != nil || p[0] != 0 {
				t.Fatalf("after %v: %d at %d, %v", op, p[0], off, err)
			}
		}
	}
	detach(t, a)
}

// Memory that is scattered so that the kernel splits requests within blocks.
func TestScatteredMemory(t *testing.T) {
	seed := testseed.Of(t)
	rng := rand.New(rand.NewPCG(seed, 1))
	rec := blocktest.NewRecord(blocktest.NewModel(memory(16 * mib)))
	f := newFront(t)
	a := attach(t, f, "vol", rec)
	file := openDirect(t, a.Path())
	arena, err := unix.Mmap(-1, 0, 16*mib, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(arena)
	image := make([]byte, 16*mib)
	for round := range 50 {
		n := (1 + rng.IntN(256)) * 4096
		off := int64(rng.IntN((len(image)-n)/4096+1)) * 4096
		var vec [][]byte
		for left, at := n, 0; left > 0; {
			at += 512 * (1 + rng.IntN(9))
			k := min(left, 512*(1+rng.IntN(21)))
			if len(vec) == 1023 {
				k = left
			}
			p := arena[at : at+k]
			for i := range p {
				p[i] = byte(rng.Uint32())
			}
			copy(image[off+int64(n-left):], p)
			vec = append(vec, p)
			left, at = left-k, at+k
		}
		if got, err := unix.Pwritev(int(file.Fd()), vec, off); err != nil || got != n {
			t.Fatalf("round %d: wrote %d of %d bytes at %d: %v", round, got, n, off, err)
		}
		for _, p := range vec {
			clear(p)
		}
		if got, err := unix.Preadv(int(file.Fd()), vec, off); err != nil || got != n {
			t.Fatalf("round %d: read %d of %d bytes at %d: %v", round, got, n, off, err)
		}
		if !bytes.Equal(bytes.Join(vec, nil), image[off:off+int64(n)]) {
			t.Fatalf("round %d: %d bytes at %d read back wrong", round, n, off)
		}
	}
	if err := file.Close(); err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(t.TempDir(), "image")
	run(t, "dd", "if="+a.Path(), "of="+out, "bs=1M", "status=none")
	if got, err := os.ReadFile(out); err != nil || !bytes.Equal(got, image) {
		t.Fatalf("the whole device differs: %v", err)
	}
	detach(t, a)
}

// The edges of a write that is not a whole number of blocks.
func TestPartialBlocks(t *testing.T) {
	m := blocktest.NewMem(blocktest.MemOptions{Size: 1 * mib})
	s := newFileSystem(&Attachment{gate: &gate{dev: m}})
	image := make([]byte, mib)
	rng := rand.New(rand.NewPCG(3, 3))
	for range 300 {
		n := 1 + rng.IntN(20000)
		off := rng.IntN(len(image) - n)
		p := make([]byte, n)
		for i := range p {
			p[i] = byte(rng.Uint32())
		}
		copy(image[off:], p)
		if err := s.writePart(p, int64(off)); err != nil {
			t.Fatal(err)
		}
		q := make([]byte, n)
		if err := s.readPart(q, int64(off)); err != nil || !bytes.Equal(p, q) {
			t.Fatalf("%d bytes at %d read back wrong: %v", n, off, err)
		}
	}
	got := make([]byte, mib)
	if err := block.ReadAt(m, got, 0); err != nil || !bytes.Equal(got, image) {
		t.Fatalf("the whole device differs: %v", err)
	}
}

// meeting lets something happen between the first read of a device and its answer, if it can happen then.
type meeting struct {
	block.Device
	meanwhile func()
	over      chan struct{} // closed when that has happened
	first     sync.Once
}

func (m *meeting) Submit(batch []*block.Request) {
	for _, req := range batch {
		if req.Op != block.OpRead {
			m.Device.Submit([]*block.Request{req})
			continue
		}
		err := block.ReadAt(m.Device, req.Data, req.Off)
		m.first.Do(func() {
			go func() {
				defer close(m.over)
				m.meanwhile()
			}()
			for range 10_000 { // many times what it takes
				select {
				case <-m.over:
					return
				default:
					runtime.Gosched()
				}
			}
		})
		req.By.Complete(req, err)
	}
}

// Two parts of one block at once, as the kernel sends them: neither brings back what the other one has replaced.
func TestPartsOfOneBlock(t *testing.T) {
	const half = loopBlock / 2
	m := &meeting{Device: blocktest.NewMem(blocktest.MemOptions{Size: 1 * mib}), over: make(chan struct{})}
	s := newFileSystem(&Attachment{gate: &gate{dev: m}})
	m.meanwhile = func() {
		if err := s.writePart(bytes.Repeat([]byte{2}, half), half); err != nil {
			t.Error(err)
		}
	}
	if err := s.writePart(bytes.Repeat([]byte{1}, half), 0); err != nil {
		t.Fatal(err)
	}
	<-m.over
	got := make([]byte, loopBlock)
	if err := block.ReadAt(m.Device, got, 0); err != nil {
		t.Fatal(err)
	}
	if got[0] != 1 || got[half] != 2 {
		t.Errorf("the halves have %d and %d", got[0], got[half])
	}
}

func TestErrorsReachTheConsumer(t *testing.T) {
	inject := blocktest.NewInject(memory(16 * mib))
	f := newFront(t)
	a := attach(t, f, "vol", inject)
	dd := func(want string, args ...string) {
		t.Helper()
		out, err := try(t, "dd", append(args, "bs=64k", "count=1", "status=none")...)
		if want == "" {
			if err != nil {
				t.Fatalf("dd %v: %v\n%s", args, err, out)
			}
			return
		}
		if err == nil || !strings.Contains(out, want) {
			t.Fatalf("dd %v ended with %v, want %q\n%s", args, err, want, out)
		}
	}
	write := []string{"if=/dev/zero", "of=" + a.Path(), "oflag=direct"}
	read := []string{"if=" + a.Path(), "of=/dev/null", "iflag=direct"}
	for _, c := range []struct {
		rule blocktest.Rule
		want string
		args []string
	}{
		{blocktest.Rule{Op: block.OpWrite, Err: block.ErrIO}, "Input/output error", write},
		{blocktest.Rule{Op: block.OpWrite, Err: block.ErrNoSpace}, "No space left on device", write},
		{blocktest.Rule{Op: block.OpRead, Err: block.ErrIO}, "Input/output error", read},
		{blocktest.Rule{Op: block.OpRead, Err: errors.New("somebody's own")}, "Input/output error", read},
		{blocktest.Rule{Op: block.OpFlush, Err: block.ErrIO}, "Input/output error", append(write, "conv=fsync")},
	} {
		fired := inject.Add(c.rule)
		dd(c.want, c.args...)
		if fired() == 0 {
			t.Errorf("%v: the device was not asked", c.rule)
		}
		inject.Clear()
		dd("", c.args...)
	}
	inject.Add(blocktest.Rule{Err: block.ErrIO})
	detach(t, a) // a device that fails can be detached
}

// A flush reaches the device after the writes that it is to cover, and fsync
// returns after the flush.
func TestFlushOrder(t *testing.T) {
	rec := blocktest.NewRecord(memory(16 * mib))
	f := newFront(t)
	a := attach(t, f, "vol", rec)
	run(t, "dd", "if=/dev/urandom", "of="+a.Path(), "bs=1M", "count=8", "conv=fsync", "status=none")
	written, flushed := int64(0), false
	for _, e := range rec.History() {
		if e.Done && e.Op == block.OpWrite {
			written += e.Len
		}
		if !e.Done && e.Op == block.OpFlush && written == 8*mib {
			flushed = true
		}
	}
	if !flushed {
		t.Fatalf("no flush after all of the writes:\n%s", rec)
	}
	detach(t, a)
}

func TestStatus(t *testing.T) {
	for _, c := range []struct {
		op   block.Op
		err  error
		want unix.Errno
	}{
		{block.OpRead, nil, 0},
		{block.OpWrite, block.ErrNoSpace, unix.ENOSPC},
		{block.OpWrite, block.ErrOutOfRange, unix.ENOSPC},
		{block.OpRead, block.ErrOutOfRange, unix.EINVAL},
		{block.OpDiscard, block.ErrOutOfRange, unix.EINVAL},
		{block.OpWrite, block.ErrMisaligned, unix.EINVAL},
		{block.OpRead, block.ErrTooLarge, unix.EINVAL},
		{block.OpRead, block.ErrInvalid, unix.EINVAL},
		{block.OpDiscard, block.ErrNotSupported, unix.EOPNOTSUPP},
		{block.OpWrite, block.ErrClosed, unix.ESHUTDOWN},
		{block.OpFlush, block.ErrIO, unix.EIO},
		{block.OpFlush, errors.New("anything else"), unix.EIO},
	} {
		err := c.err
		if err != nil {
			err = &block.RequestError{Op: c.op, Err: err}
		}
		if got := status(c.op, err); unix.Errno(got) != c.want {
			t.Errorf("%v, %v: %v, want %v", c.op, c.err, got, c.want)
		}
	}
}
