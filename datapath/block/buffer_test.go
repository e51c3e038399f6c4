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

// keptIn counts the free buffers of the class of n bytes, and the bytes of all that are free.
func keptIn(n int) (buffers int, bytes int64) {
	for i := range classes {
		cl := &classes[i]
		cl.Lock()
		bytes += int64(len(cl.free)) << (i + minClassBits)
		if 1<<(i+minClassBits) == n {
			buffers = len(cl.free)
		}
		cl.Unlock()
	}
	return buffers, bytes
}

// fill takes buffers of n bytes, half as much again as may be kept, and releases them.
func fill(n int) {
	held := make([]*Buffer, freeBytes/n*3/2)
	for i := range held {
		held[i] = NewBuffer(n)
	}
	for _, b := range held {
		b.Release()
	}
}

// Free buffers of all classes together have one bound, and what was released last stays.
func TestBufferPoolBound(t *testing.T) {
	for _, n := range []int{64 << 10, MaxIO, 2 << 20, 256 << 10} {
		fill(n)
		if _, got := keptIn(n); got > freeBytes || got < freeBytes/2 || got != kept.Load() {
			t.Errorf("after buffers of %d bytes: %d bytes are kept, counted %d, bound %d", n, got, kept.Load(), freeBytes)
		}
	}
	small, _ := keptIn(4096)
	held := make([]*Buffer, small+100)
	for i := range held {
		held[i] = NewBuffer(4096)
	}
	for _, b := range held {
		b.Release()
	}
	if got, bytes := keptIn(4096); got != len(held) || bytes > freeBytes {
		t.Errorf("%d of %d small buffers are kept after large ones, of %d bytes in all", got, len(held), bytes)
	}
}

// The bound holds, and the count of what is kept is right, with releases at once.
func TestBufferPoolBoundAtOnce(t *testing.T) {
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			for range 3 {
				fill(256 << 10 << (g % 3))
			}
		})
	}
	wg.Wait()
	if _, got := keptIn(4096); got > freeBytes || got != kept.Load() {
		t.Errorf("%d bytes are kept, counted %d, bound %d", got, kept.Load(), freeBytes)
	}
}

func TestBufferReuseDoesNotAllocate(t *testing.T) {
	NewBuffer(4096).Release()
	if n := testing.AllocsPerRun(100, func() { NewBuffer(4096).Release() }); n != 0 {
		t.Fatalf("%v allocations per buffer", n)
	}
}

func BenchmarkBuffer(b *testing.B) {
	b.Run("one", func(b *testing.B) {
		for b.Loop() {
			NewBuffer(4096).Release()
		}
	})
	b.Run("at once", func(b *testing.B) {
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				NewBuffer(4096).Release()
			}
		})
	})
}
