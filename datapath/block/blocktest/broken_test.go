package blocktest

import (
	"errors"
	"hash/crc32"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"unsafe"

	"github.com/tandem-storage/tandem/datapath/block"
)

// broken is a Mem with one promise broken. Nil functions leave the Mem's way.
type broken struct {
	*Mem
	submit func(m *Mem, batch []*block.Request)
	close  func(m *Mem) error
	info   func(i block.Info) block.Info
}

func (b *broken) Submit(batch []*block.Request) {
	if b.submit != nil {
		b.submit(b.Mem, batch)
		return
	}
	b.Mem.Submit(batch)
}

func (b *broken) Close() error {
	if b.close != nil {
		return b.close(b.Mem)
	}
	return b.Mem.Close()
}

func (b *broken) Info() block.Info {
	if b.info != nil {
		return b.info(b.Mem.Info())
	}
	return b.Mem.Info()
}

// each breaks single requests: f returns false if the Mem is to serve it.
func each(f func(m *Mem, r *block.Request) bool) func(*Mem, []*block.Request) {
	return func(m *Mem, batch []*block.Request) {
		for _, r := range batch {
			if !f(m, r) {
				m.Submit([]*block.Request{r})
			}
		}
	}
}

// instead serves q, ignores what becomes of it, and completes r with err.
func instead(m *Mem, r *block.Request, q block.Request, err error) bool {
	q.By = block.CompleterFunc(func(*block.Request, error) {})
	m.Submit([]*block.Request{&q})
	r.By.Complete(r, err)
	return true
}

func is(op block.Op, f func(m *Mem, r *block.Request) bool) func(*Mem, []*block.Request) {
	return each(func(m *Mem, r *block.Request) bool { return r.Op == op && r.Check(m.Info()) == nil && f(m, r) })
}

// refused meets requests that fail with err.
func refused(want error, f func(m *Mem, r *block.Request) bool) func(*Mem, []*block.Request) {
	return each(func(m *Mem, r *block.Request) bool { return errors.Is(r.Check(m.Info()), want) && f(m, r) })
}

// TestSuiteFindsBrokenDevices breaks each promise once: the check named has to
// see it. It runs in a bubble, where waiting for a lost completion takes no time.
func TestSuiteFindsBrokenDevices(t *testing.T) {
	for _, c := range []struct {
		name, check string
		make        func() *broken
	}{
		{"size wrong", "info", func() *broken {
			return &broken{info: func(i block.Info) block.Info { i.Size -= page; return i }}
		}},
		{"block size odd", "info", func() *broken {
			return &broken{info: func(i block.Info) block.Info { i.BlockSize = 1536; return i }}
		}},
		{"fresh device has content", "fresh device reads zeroes", func() *broken {
			return &broken{submit: is(block.OpRead, func(m *Mem, r *block.Request) bool {
				m.serve(r)
				if r.Off+r.Len == m.info.Size {
					r.Data[r.Len-1] = 1
				}
				r.By.Complete(r, nil)
				return true
			})}
		}},
		{"last block not written", "write and read at the edges", func() *broken {
			return &broken{submit: is(block.OpWrite, func(m *Mem, r *block.Request) bool {
				if r.Off+r.Len != m.info.Size {
					return false
				}
				r.By.Complete(r, nil)
				return true
			})}
		}},
		{"write spills over", "write and read at the edges", func() *broken {
			return &broken{submit: is(block.OpWrite, func(m *Mem, r *block.Request) bool {
				if r.Off+r.Len == m.info.Size {
					return false
				}
				q := *r
				q.Off, q.Len, q.Data = r.Off+r.Len, page, r.Data[:page]
				m.serve(&q)
				return false
			})}
		}},
		{"second write ignored", "overwrite", func() *broken {
			seen := map[int64]bool{}
			return &broken{submit: is(block.OpWrite, func(_ *Mem, r *block.Request) bool {
				if !seen[r.Off] {
					seen[r.Off] = true
					return false
				}
				r.By.Complete(r, nil)
				return true
			})}
		}},
		{"misaligned served", "invalid requests change nothing", func() *broken {
			return &broken{submit: refused(block.ErrMisaligned, func(m *Mem, r *block.Request) bool {
				q := *r
				q.Off, q.Len = r.Off&^(page-1), page
				if q.Data != nil {
					q.Data = make([]byte, page)
				}
				return instead(m, r, q, nil)
			})}
		}},
		{"out of range cut short", "invalid requests change nothing", func() *broken {
			return &broken{submit: refused(block.ErrOutOfRange, func(m *Mem, r *block.Request) bool {
				if r.Op != block.OpWrite || r.Off >= m.info.Size {
					return false
				}
				q := *r
				q.Len = m.info.Size - r.Off
				q.Data = r.Data[:q.Len]
				return instead(m, r, q, r.Check(m.info))
			})}
		}},
		{"too large written in part", "invalid requests change nothing", func() *broken {
			return &broken{submit: refused(block.ErrTooLarge, func(m *Mem, r *block.Request) bool {
				q := *r
				q.Len, q.Data = block.MaxIO, r.Data[:block.MaxIO]
				return instead(m, r, q, r.Check(m.info))
			})}
		}},
		{"length mismatch taken", "invalid requests change nothing", func() *broken {
			return &broken{submit: refused(block.ErrInvalid, func(m *Mem, r *block.Request) bool {
				if r.Op != block.OpWrite || len(r.Data) == 0 {
					return false
				}
				q := *r
				q.Len = int64(len(r.Data))
				return instead(m, r, q, nil)
			})}
		}},
		{"wrong sentinel", "invalid requests change nothing", func() *broken {
			return &broken{submit: refused(block.ErrOutOfRange, func(_ *Mem, r *block.Request) bool {
				r.By.Complete(r, block.ErrInvalid)
				return true
			})}
		}},
		{"unknown op taken", "invalid requests change nothing", func() *broken {
			return &broken{submit: refused(block.ErrNotSupported, func(_ *Mem, r *block.Request) bool {
				r.By.Complete(r, nil)
				return true
			})}
		}},
		{"one bad request spoils the batch", "invalid request beside valid ones", func() *broken {
			return &broken{submit: func(m *Mem, batch []*block.Request) {
				for _, r := range batch {
					if err := r.Check(m.info); err != nil {
						for _, r := range batch {
							r.By.Complete(r, err)
						}
						return
					}
				}
				m.Submit(batch)
			}}
		}},
		{"empty batch breaks it", "empty batch", func() *broken {
			dead := false
			return &broken{submit: func(m *Mem, batch []*block.Request) {
				if dead = dead || len(batch) == 0; dead {
					for _, r := range batch {
						r.By.Complete(r, block.ErrIO)
					}
					return
				}
				m.Submit(batch)
			}}
		}},
		{"completion lost", "batch of many", func() *broken {
			n := 0
			return &broken{submit: is(block.OpRead, func(*Mem, *block.Request) bool { n++; return n == 100 })}
		}},
		{"completed twice", "batch of many", func() *broken {
			n := 0
			return &broken{submit: is(block.OpWrite, func(_ *Mem, r *block.Request) bool {
				if n++; n == 100 {
					r.By.Complete(r, nil)
				}
				return false
			})}
		}},
		{"batch slice kept", "batch of many", func() *broken {
			var kept []*block.Request
			return &broken{
				submit: func(m *Mem, batch []*block.Request) { kept = batch; m.Submit(batch) },
				close: func(m *Mem) error {
					for _, r := range kept {
						r.By.Complete(r, nil)
					}
					return m.Close()
				},
			}
		}},
		{"request changed", "batch of many", func() *broken {
			return &broken{submit: is(block.OpWrite, func(m *Mem, r *block.Request) bool {
				err := m.serve(r)
				r.Off += m.info.Size
				r.By.Complete(r, err)
				return true
			})}
		}},
		{"data of a write changed", "write and read at the edges", func() *broken {
			return &broken{submit: is(block.OpWrite, func(m *Mem, r *block.Request) bool {
				err := m.serve(r)
				r.Data[0] ^= 1
				r.By.Complete(r, err)
				return true
			})}
		}},
		{"no submission from a completer", "submit from a completer", func() *broken {
			inside := false
			return &broken{submit: each(func(m *Mem, r *block.Request) bool {
				if inside {
					r.By.Complete(r, block.ErrIO)
					return true
				}
				err := m.serve(r)
				inside = true
				r.By.Complete(r, err)
				inside = false
				return true
			})}
		}},
		{"request not to be used again", "request used again", func() *broken {
			seen := map[*block.Request]bool{}
			return &broken{submit: is(block.OpWrite, func(_ *Mem, r *block.Request) bool {
				again := seen[r]
				if seen[r] = true; again {
					r.By.Complete(r, nil)
				}
				return again
			})}
		}},
		{"Buffer kept without Retain", "buffers", func() *broken { return writeBehind(true) }},
		{"slice kept without a copy", "slices and unaligned memory", func() *broken { return writeBehind(false) }},
		{"late write to the memory of a read", "slices and unaligned memory", func() *broken {
			var last []byte
			return &broken{
				submit: is(block.OpRead, func(_ *Mem, r *block.Request) bool { last = r.Data; return false }),
				close:  func(m *Mem) error { fill(last, 0); return m.Close() },
			}
		}},
		{"aligned memory only", "slices and unaligned memory", func() *broken {
			return &broken{submit: is(block.OpWrite, func(_ *Mem, r *block.Request) bool {
				if uintptr(unsafe.Pointer(&r.Data[0]))%512 == 0 {
					return false
				}
				r.By.Complete(r, block.ErrIO) // as O_DIRECT does
				return true
			})}
		}},
		{"checksums of another kind", "checksums given", func() *broken {
			return &broken{submit: is(block.OpWrite, func(_ *Mem, r *block.Request) bool {
				if r.Sums == nil || r.Sums[0] == crc32.ChecksumIEEE(r.Data[:page]) {
					return false
				}
				r.By.Complete(r, block.ErrIO)
				return true
			})}
		}},
		{"zeroes forget the last block", "write zeroes", func() *broken { return shortZeroes(block.OpWriteZeroes, 0, 0) }},
		{"NoHole does nothing", "write zeroes without holes", func() *broken {
			return &broken{submit: is(block.OpWriteZeroes, func(_ *Mem, r *block.Request) bool {
				if r.Flags&block.NoHole == 0 {
					return false
				}
				r.By.Complete(r, nil)
				return true
			})}
		}},
		{"discard is a hint", "discard", func() *broken {
			return &broken{submit: is(block.OpDiscard, func(_ *Mem, r *block.Request) bool {
				r.By.Complete(r, nil)
				return true
			})}
		}},
		{"zeroes stop at MaxIO", "write zeroes, large", func() *broken { return shortZeroes(block.OpWriteZeroes, 0, block.MaxIO) }},
		{"discard stops at the chunk", "discard, large", func() *broken { return shortZeroes(block.OpDiscard, 256*mib, 0) }},
		{"idle flush fails", "flush", func() *broken {
			wrote := false
			return &broken{submit: each(func(_ *Mem, r *block.Request) bool {
				wrote = wrote || r.Op == block.OpWrite
				if r.Op == block.OpFlush && !wrote {
					r.By.Complete(r, block.ErrIO)
					return true
				}
				return false
			})}
		}},
		{"flush never ends", "flush", func() *broken {
			return &broken{submit: is(block.OpFlush, func(*Mem, *block.Request) bool { return true })}
		}},
		{"stale reads", "random concurrent I/O", func() *broken {
			var mu sync.Mutex
			var old *Mem
			n := 0
			return &broken{submit: is(block.OpRead, func(m *Mem, r *block.Request) bool {
				mu.Lock()
				if n++; n%50 == 1 {
					old = m.CrashClone(CrashOptions{UnsyncedPercent: 100})
				}
				o := old
				mu.Unlock()
				r.By.Complete(r, o.serve(r))
				return true
			})}
		}},
		{"torn blocks", "random I/O on few blocks", func() *broken {
			return &broken{submit: is(block.OpWrite, func(m *Mem, r *block.Request) bool {
				m.mu.Lock()
				if m.rng.IntN(20) == 0 {
					m.eachSector(r.Off, r.Len, func(n int64, _, _ int, at int64) { m.store(n, 0, page/2, r.Data[at:at+page/2], false) })
					m.mu.Unlock()
					r.By.Complete(r, nil)
					return true
				}
				m.mu.Unlock()
				return false
			})}
		}},
		{"second Close fails", "close twice", func() *broken {
			closed := false
			return &broken{close: func(m *Mem) error {
				if closed {
					return block.ErrClosed
				}
				closed = true
				return m.Close()
			}}
		}},
		{"served after Close", "submit after close", func() *broken {
			return &broken{close: func(*Mem) error { return nil }}
		}},
		{"no Info after Close", "submit after close", func() *broken {
			closed := false
			return &broken{
				close: func(m *Mem) error { closed = true; return m.Close() },
				info: func(i block.Info) block.Info {
					if closed {
						return block.Info{}
					}
					return i
				},
			}
		}},
		{"Close does not wait", "close with requests in flight", func() *broken {
			var mu sync.Mutex
			var held []*block.Request
			return &broken{
				submit: is(block.OpWrite, func(_ *Mem, r *block.Request) bool {
					mu.Lock()
					defer mu.Unlock()
					held = append(held, r)
					return true
				}),
			}
		}},
		{"another error beside Close", "close with requests in flight", func() *broken {
			return &broken{submit: is(block.OpRead, func(_ *Mem, r *block.Request) bool {
				r.By.Complete(r, block.ErrIO)
				return true
			})}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				for _, k := range checks {
					if k.name != c.check {
						continue
					}
					d := c.make()
					d.Mem = NewMem(MemOptions{Size: k.size})
					err := k.on(d, 1)
					if err == nil {
						t.Fatalf("check %q does not see it", c.check)
					}
					t.Log(err)
					return
				}
				t.Fatalf("no check %q", c.check)
			})
		})
	}
}

// writeBehind completes writes at once and carries them out before the next
// request, from memory that may not be its own any more.
func writeBehind(withBuf bool) *broken {
	var behind []block.Request
	return &broken{submit: each(func(m *Mem, r *block.Request) bool {
		for _, q := range behind {
			m.serve(&q)
		}
		behind = nil
		if r.Op != block.OpWrite || (r.Buf != nil) != withBuf || r.Check(m.info) != nil {
			return false
		}
		behind = append(behind, *r)
		r.By.Complete(r, nil)
		return true
	})}
}

// shortZeroes stops at the next multiple of boundary, after limit bytes, or, if
// both are 0, a block too early.
func shortZeroes(op block.Op, boundary, limit int64) *broken {
	return &broken{submit: is(op, func(m *Mem, r *block.Request) bool {
		q := *r
		switch {
		case boundary > 0:
			q.Len = min(q.Len, boundary-q.Off%boundary)
		case limit > 0:
			q.Len = min(q.Len, limit)
		case q.Len > page:
			q.Len -= page
		}
		return instead(m, r, q, nil)
	})}
}

// TestCrashSuiteFindsBrokenDevices breaks each promise about power cuts once.
func TestCrashSuiteFindsBrokenDevices(t *testing.T) {
	lose := func(m *Mem) block.Device { return m.CrashClone(CrashOptions{}) }
	for _, c := range []struct {
		name, check string
		submit      func(m *Mem, batch []*block.Request)
		crash       func(m *Mem) block.Device
	}{
		{"content out of nowhere", "fresh device", nil, func(m *Mem) block.Device {
			d := lose(m).(*Mem)
			d.store(3, 0, page, pattern(1, 0, page), true)
			return d
		}},
		{"flush does nothing", "flushed writes are there", is(block.OpFlush, func(_ *Mem, r *block.Request) bool {
			r.By.Complete(r, nil)
			return true
		}), lose},
		{"flush forgets a block", "flushed writes are there", is(block.OpFlush, func(m *Mem, r *block.Request) bool {
			m.mu.Lock()
			for n := range m.dirty {
				if n != 17 {
					m.sync(n, m.sectors[n])
				}
			}
			m.mu.Unlock()
			r.By.Complete(r, nil)
			return true
		}), lose},
		{"FUA ignored", "FUA writes are there", is(block.OpWrite, func(m *Mem, r *block.Request) bool {
			q := *r
			q.Flags = 0
			return instead(m, r, q, nil)
		}), lose},
		{"discard not flushed", "zeroes and discards", is(block.OpDiscard, func(m *Mem, r *block.Request) bool {
			r.By.Complete(r, nil)
			return true
		}), lose},
		{"torn block", "overwrites since the last flush", nil, func(m *Mem) block.Device {
			d := m.CrashClone(CrashOptions{UnsyncedPercent: 100})
			if s := d.sectors[5]; s != nil {
				d.store(5, page/2, page, nil, true)
			}
			return d
		}},
		{"older than the last flush", "overwrites since the last flush", is(block.OpFlush, func(_ *Mem, r *block.Request) bool {
			r.By.Complete(r, nil)
			return true
		}), lose},
		{"flush completes too early", "random I/O", is(block.OpFlush, func(_ *Mem, r *block.Request) bool {
			r.By.Complete(r, nil)
			return true
		}), func(m *Mem) block.Device {
			return m.CrashClone(CrashOptions{UnsyncedPercent: 50, Rand: rand.New(rand.NewPCG(1, 1))})
		}},
		{"survivor takes no writes", "survivor works", nil, func(m *Mem) block.Device {
			return &broken{Mem: m.CrashClone(CrashOptions{}), submit: is(block.OpWrite, func(_ *Mem, r *block.Request) bool {
				r.By.Complete(r, nil)
				return true
			})}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				for _, k := range crashChecks {
					if k.name != c.check {
						continue
					}
					d := &broken{Mem: NewMem(MemOptions{Size: crashSize}), submit: c.submit}
					err := k.on(d, func() block.Device { return c.crash(d.Mem) }, 1)
					if err == nil {
						t.Fatalf("check %q does not see it", c.check)
					}
					t.Log(err)
					return
				}
				t.Fatalf("no check %q", c.check)
			})
		})
	}
}
