package block

import (
	"math/bits"
	"sync"
	"sync/atomic"
	"syscall"
	"unsafe"
)

// Buffer is a page-aligned, reference-counted piece of memory, outside the Go
// heap as long as the system gives such. It is made by NewBuffer with one reference and returned to its pool when
// the last one is released; whoever hands it to something asynchronous retains
// it first. The bytes are not zeroed.
type Buffer struct {
	mem  []byte
	n    int
	refs atomic.Int32
	cls  int // heapClass: in the Go heap
}

// Buffers come in classes of powers of two from one page to MaxIO plus room for
// a frame's header. A free buffer stays with its class. All classes together keep
// at most freeBytes; beyond that the class that keeps most gives back to the system.
const (
	minClassBits = 12
	maxClassBits = 21
	freeBytes    = 64 << 20

	heapClass = -1
	pageSize  = 1 << minClassBits
)

var classes [maxClassBits - minClassBits + 1]struct {
	sync.Mutex
	free []*Buffer
}

// kept is the size of all free buffers, bytes.
var kept atomic.Int64

// NewBuffer returns a buffer of n bytes, 0 < n <= 2 MiB, with one reference.
func NewBuffer(n int) *Buffer {
	if n <= 0 || n > 1<<maxClassBits {
		panic("block: buffer size out of range")
	}
	c := max(bits.Len(uint(n-1)), minClassBits) - minClassBits
	cl := &classes[c]
	cl.Lock()
	if k := len(cl.free); k > 0 {
		b := cl.free[k-1]
		cl.free = cl.free[:k-1]
		cl.Unlock()
		kept.Add(-b.size())
		b.n = n
		b.refs.Store(1)
		return b
	}
	cl.Unlock()
	mem, err := syscall.Mmap(-1, 0, 1<<(c+minClassBits), syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_ANON|syscall.MAP_PRIVATE)
	if err != nil {
		return heapBuffer(n)
	}
	b := &Buffer{mem: mem, n: n, cls: c}
	b.refs.Store(1)
	return b
}

// heapBuffer is what remains when the process may have no further mappings
// (vm.max_map_count). The garbage collector takes it back.
func heapBuffer(n int) *Buffer {
	mem := make([]byte, n+pageSize)
	off := -uintptr(unsafe.Pointer(unsafe.SliceData(mem))) % pageSize // the heap does not move
	b := &Buffer{mem: mem[off:], n: n, cls: heapClass}
	b.refs.Store(1)
	return b
}

// Bytes is the buffer's content, valid while the caller holds a reference.
func (b *Buffer) Bytes() []byte { return b.mem[:b.n:b.n] }

// Retain adds a reference.
func (b *Buffer) Retain() {
	if b.refs.Add(1) <= 1 {
		panic("block: retain of a released buffer")
	}
}

// Release drops a reference. After the last one the bytes belong to somebody else.
func (b *Buffer) Release() {
	switch r := b.refs.Add(-1); {
	case r > 0:
		return
	case r < 0:
		panic("block: buffer released twice")
	}
	if b.cls == heapClass {
		return
	}
	cl := &classes[b.cls]
	cl.Lock()
	cl.free = append(cl.free, b)
	cl.Unlock()
	if kept.Add(b.size()) > freeBytes {
		trim()
	}
}

// size is what b takes while it is free.
func (b *Buffer) size() int64 { return 1 << (b.cls + minClassBits) }

// trim gives free buffers back until no more than freeBytes are kept. It takes them where
// most is kept: what is released at the moment is more likely to be asked for again.
func trim() {
	for kept.Load() > freeBytes {
		c, most := -1, 0
		for i := range classes {
			cl := &classes[i]
			cl.Lock()
			if n := len(cl.free) << (i + minClassBits); n > most {
				c, most = i, n
			}
			cl.Unlock()
		}
		if c < 0 {
			return // others have taken all
		}
		cl := &classes[c]
		cl.Lock()
		k := len(cl.free) - 1
		if k < 0 {
			cl.Unlock()
			continue
		}
		b := cl.free[k]
		cl.free[k] = nil
		cl.free = cl.free[:k]
		cl.Unlock()
		kept.Add(-b.size())
		// Nobody has a reference; an error here could only mean a corrupt mapping.
		_ = syscall.Munmap(b.mem)
	}
}
