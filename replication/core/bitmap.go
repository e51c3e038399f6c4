package core

import "math/bits"

// Bitmap is a set of small integers, with a count.
type Bitmap struct {
	w []uint64
	n int // size of the domain
	c int // members
}

// NewBitmap returns an empty set over [0, n).
func NewBitmap(n int) *Bitmap { return &Bitmap{w: make([]uint64, (n+63)/64), n: n} }

// Len is the size of the domain.
func (b *Bitmap) Len() int { return b.n }

// Count is the number of members.
func (b *Bitmap) Count() int { return b.c }

// Test reports whether i is a member.
func (b *Bitmap) Test(i int) bool { return b.w[i/64]>>(i%64)&1 != 0 }

// Set adds i and reports whether it was absent.
func (b *Bitmap) Set(i int) bool {
	if b.Test(i) {
		return false
	}
	b.w[i/64] |= 1 << (i % 64)
	b.c++
	return true
}

// Clear removes i and reports whether it was a member.
func (b *Bitmap) Clear(i int) bool {
	if !b.Test(i) {
		return false
	}
	b.w[i/64] &^= 1 << (i % 64)
	b.c--
	return true
}

// SetRange adds [from, to).
func (b *Bitmap) SetRange(from, to int) {
	for i := from; i < to; i++ {
		if i%64 == 0 && to-i >= 64 {
			b.c += 64 - bits.OnesCount64(b.w[i/64])
			b.w[i/64] = ^uint64(0)
			i += 63
			continue
		}
		b.Set(i)
	}
}

// SetAll adds everything.
func (b *Bitmap) SetAll() { b.SetRange(0, b.n) }

// Grow makes the domain [0, n); what is new is absent. It never shrinks.
func (b *Bitmap) Grow(n int) {
	b.w = append(b.w, make([]uint64, (n+63)/64-len(b.w))...)
	b.n = n
}

// Reset removes everything.
func (b *Bitmap) Reset() {
	clear(b.w)
	b.c = 0
}

// Or adds the members of o, a set over the same domain.
func (b *Bitmap) Or(o *Bitmap) {
	b.c = 0
	for i := range b.w {
		b.w[i] |= o.w[i]
		b.c += bits.OnesCount64(b.w[i])
	}
}

// Next returns the first member >= i, or -1.
func (b *Bitmap) Next(i int) int {
	if i < 0 || i >= b.n {
		return -1
	}
	k := i / 64
	w := b.w[k] >> (i % 64) << (i % 64)
	for w == 0 {
		if k++; k == len(b.w) {
			return -1
		}
		w = b.w[k]
	}
	return k*64 + bits.TrailingZeros64(w)
}

// Bytes returns the set with member i at bit i%8 of byte i/8.
func (b *Bitmap) Bytes() []byte {
	p := make([]byte, (b.n+7)/8)
	for i := range p {
		p[i] = byte(b.w[i/8] >> (i % 8 * 8))
	}
	return p
}

// OrBytes adds the members of p, in the form of Bytes. Bits beyond the domain,
// and bytes that are missing, count as absent.
func (b *Bitmap) OrBytes(p []byte) {
	for i, v := range p {
		for ; v != 0; v &= v - 1 {
			if k := i*8 + bits.TrailingZeros8(v); k < b.n {
				b.Set(k)
			}
		}
	}
}
