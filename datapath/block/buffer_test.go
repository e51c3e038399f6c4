package block

import (
	"fmt"
	"sync"
	"testing"
	"unsafe"
)

func mustPanic(t *testing.T, what string, f func()) {
	t.Helper()
	defer func() {
		t.Helper()
		if recover() == nil {
			t.Fatalf("%s did not panic", what)
		}
	}()
	f()
}

func TestBufferSizes(t *testing.T) {
	for _, n := range []int{1, 511, 4095, 4096, 4097, 65536, MaxIO, MaxIO + 64, 2 << 20} {
		b := NewBuffer(n)
		p := b.Bytes()
		if len(p) != n || cap(p) != n {
			t.Errorf("NewBuffer(%d): len %d cap %d", n, len(p), cap(p))
		}
		if uintptr(unsafe.Pointer(&p[0]))%4096 != 0 {
			t.Errorf("NewBuffer(%d) is not aligned to the page", n)
		}
		p[0], p[n-1] = 1, 2
		b.Release()
	}
	for _, n := range []int{-1, 0, 2<<20 + 1} {
		mustPanic(t, fmt.Sprintf("NewBuffer(%d)", n), func() { NewBuffer(n) })
	}
}

// Without further mappings there are buffers still, and they keep the rules.
func TestBufferOfHeap(t *testing.T) {
	for _, n := range []int{1, 4096, 4097, 2 << 20} {
		b := heapBuffer(n)
		p := b.Bytes()
		if len(p) != n || cap(p) != n || uintptr(unsafe.Pointer(&p[0]))%4096 != 0 {
			t.Errorf("heapBuffer(%d): len %d cap %d at %p", n, len(p), cap(p), &p[0])
		}
		b.Retain()
		b.Release()
		p[0], p[n-1] = 1, 2
		b.Release()
		mustPanic(t, "Release after the last reference", b.Release)
	}
}

func TestBufferReferences(t *testing.T) {
	b := NewBuffer(4096)
	b.Retain()
	b.Bytes()[0] = 7
	b.Release()
	if b.Bytes()[0] != 7 {
		t.Fatal("content lost while a reference is left")
	}
	b.Release()
	mustPanic(t, "Release after the last reference", b.Release)
}

func TestBufferRetainAfterRelease(t *testing.T) {
	b := NewBuffer(4096)
	b.Release()
	mustPanic(t, "Retain after the last reference", b.Retain)
}

// Two owners never hold the same memory.
func TestBufferExclusive(t *testing.T) {
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := range 2000 {
				b := NewBuffer(4096 << (i % 4))
				p := b.Bytes()
				for j := 0; j < len(p); j += 4096 {
					p[j] = byte(g)
				}
				for j := 0; j < len(p); j += 4096 {
					if p[j] != byte(g) {
						t.Errorf("owner %d finds a byte of %d", g, p[j])
					}
				}
				b.Release()
			}
		})
	}
	wg.Wait()
}

// A class keeps no more free memory than its bound.
func TestBufferPoolBound(t *testing.T) {
	const n = freeBytes/MaxIO + 8
	held := make([]*Buffer, n)
	for i := range held {
		held[i] = NewBuffer(MaxIO)
	}
	for _, b := range held {
		b.Release()
	}
	cl := &classes[20-minClassBits]
	cl.Lock()
	defer cl.Unlock()
	if got := len(cl.free) * MaxIO; got != freeBytes {
		t.Fatalf("%d bytes are kept after %d were released, bound %d", got, n*MaxIO, freeBytes)
	}
}

func TestBufferReuseDoesNotAllocate(t *testing.T) {
	NewBuffer(4096).Release()
	if n := testing.AllocsPerRun(100, func() { NewBuffer(4096).Release() }); n != 0 {
		t.Fatalf("%v allocations per buffer", n)
	}
}
