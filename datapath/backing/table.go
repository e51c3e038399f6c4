package backing

import (
	"math/bits"
	"sync"
	"sync/atomic"
)

// tablePart is how many values of a table are made at once.
const tablePart = 256

// table has a value for each number from 0 on, zero at first, and takes memory for those only that somebody has needed. A
// value never moves: whoever has a pointer to it has the value, however far the table reaches meanwhile.
type table[T any] struct {
	mu    sync.Mutex // held to make parts
	parts atomic.Pointer[[]atomic.Pointer[[tablePart]T]]
}

// at is the value of n, nil if nobody has needed it, or one near it: it is zero then.
func (t *table[T]) at(n int64) *T {
	parts := t.parts.Load()
	if parts == nil || n/tablePart >= int64(len(*parts)) {
		return nil
	}
	if p := (*parts)[n/tablePart].Load(); p != nil {
		return &p[n%tablePart]
	}
	return nil
}

// need is the value of n.
func (t *table[T]) need(n int64) *T {
	if p := t.at(n); p != nil {
		return p
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	var parts []atomic.Pointer[[tablePart]T]
	if old := t.parts.Load(); old != nil {
		parts = *old
	}
	i := n / tablePart
	if i >= int64(len(parts)) {
		longer := make([]atomic.Pointer[[tablePart]T], max(i+1, 2*int64(len(parts))))
		for j := range parts {
			longer[j].Store(parts[j].Load())
		}
		t.parts.Store(&longer)
		parts = longer
	}
	if parts[i].Load() == nil {
		parts[i].Store(new([tablePart]T))
	}
	return &parts[i].Load()[n%tablePart]
}

// each calls f for the values that are there, in ascending order of their numbers.
func (t *table[T]) each(f func(n int64, v *T)) {
	parts := t.parts.Load()
	if parts == nil {
		return
	}
	for i := range *parts {
		if p := (*parts)[i].Load(); p != nil {
			for j := range p {
				f(int64(i)*tablePart+int64(j), &p[j])
			}
		}
	}
}

// bitmap is a set of numbers from 0 on that is changed and read concurrently.
type bitmap struct{ words table[atomic.Uint64] }

func (b *bitmap) set(n int64) { b.words.need(n / 64).Or(1 << (n % 64)) }

func (b *bitmap) has(n int64) bool {
	w := b.words.at(n / 64)
	return w != nil && w.Load()&(1<<(n%64)) != 0
}

func (b *bitmap) clear(n int64) {
	if w := b.words.at(n / 64); w != nil {
		w.And(^uint64(1 << (n % 64)))
	}
}

// each calls f for the members.
func (b *bitmap) each(f func(n int64)) {
	b.words.each(func(i int64, word *atomic.Uint64) {
		for w := word.Load(); w != 0; w &= w - 1 {
			f(i*64 + int64(bits.TrailingZeros64(w)))
		}
	})
}
