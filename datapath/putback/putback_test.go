package putback

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/tandem-storage/tandem/datapath/block"
	"github.com/tandem-storage/tandem/datapath/block/blocktest"
	"github.com/tandem-storage/tandem/internal/testseed"
)

const size = 96 << 20

// ranges are some of a device, in blocks, that may touch.
func ranges(rng *rand.Rand, end int64) (rs [][2]int64) {
	for off := int64(0); off < end; {
		n := min(int64(1+rng.IntN(700))*block.SectorSize, end-off)
		if rng.IntN(3) > 0 {
			rs = append(rs, [2]int64{off, n})
		}
		off += n
	}
	return rs
}

func changed(rs [][2]int64) func(f func(off, length int64) bool) error {
	return func(f func(off, length int64) bool) error {
		for _, r := range rs {
			if !f(r[0], r[1]) {
				break
			}
		}
		return nil
	}
}

// random has holes.
func random(t *testing.T, rng *rand.Rand, n int64) (*blocktest.Mem, []byte) {
	t.Helper()
	m, p := blocktest.NewMem(blocktest.MemOptions{Size: n}), make([]byte, n)
	for _, r := range ranges(rng, n) {
		for i := r[0]; i < r[0]+r[1]; i++ {
			p[i] = byte(rng.Uint32()) | 1
		}
		if err := block.WriteAt(m, p[r[0]:r[0]+r[1]], r[0], 0); err != nil {
			t.Fatal(err)
		}
	}
	return m, p
}

func content(t *testing.T, d block.Device) []byte {
	t.Helper()
	p := make([]byte, d.Info().Size)
	if err := block.ReadAt(d, p, 0); err != nil {
		t.Fatal(err)
	}
	return p
}

// What is in the ranges is the source's, what is behind its end is zeroes, the rest is as it was; and it is stable. before comes before the first write.
func TestBlocks(t *testing.T) {
	rng := rand.New(rand.NewPCG(testseed.Of(t), 0))
	from, src := random(t, rng, size-12<<20)
	to, want := random(t, rng, size)
	rs := ranges(rng, size)
	all := int64(0)
	for _, r := range rs {
		for off := r[0]; off < r[0]+r[1]; off++ {
			want[off] = 0
			if off < int64(len(src)) {
				want[off] = src[off]
			}
		}
		all += r[1]
	}
	asked := 0
	was := content(t, to)
	before := func() error {
		if asked++; asked == 1 && !bytes.Equal(content(t, to), was) {
			t.Error("written before it was asked")
		}
		return nil
	}
	written, err := Blocks(t.Context(), to, from, changed(rs), before)
	if err != nil || written != all || asked < 2 {
		t.Fatalf("%d of %d, asked %d times: %v", written, all, asked, err)
	}
	if !bytes.Equal(content(t, to.CrashClone(blocktest.CrashOptions{})), want) {
		t.Error("the content is another one")
	}
}

// Whatever fails is told, ends it, and nothing is under way any more; done again it comes to its end.
func TestBlocksFails(t *testing.T) {
	from, src := random(t, rand.New(rand.NewPCG(testseed.Of(t), 0)), size)
	rs := [][2]int64{{0, size}}
	errBroken := errors.New("broken")
	for _, tc := range []struct {
		name         string
		reads        bool           // rule is of the source
		rule         blocktest.Rule // none if it has no error
		stop, cancel bool           // before fails, or who asked goes, in the middle
		unknown      bool           // where they differ cannot be told to the end
		want         error
	}{
		{name: "read", reads: true, rule: blocktest.Rule{Op: block.OpRead, After: 9, Err: block.ErrIO}, want: block.ErrIO},
		{name: "write", rule: blocktest.Rule{Op: block.OpWrite, After: 9, Err: block.ErrNoSpace}, want: block.ErrNoSpace},
		{name: "discard", rule: blocktest.Rule{Op: block.OpDiscard, After: 3, Err: block.ErrIO}, want: block.ErrIO},
		{name: "flush", rule: blocktest.Rule{Op: block.OpFlush, Err: block.ErrIO}, want: block.ErrIO},
		{name: "before", stop: true, want: errBroken},
		{name: "cancelled", cancel: true, want: context.Canceled},
		{name: "changed", unknown: true, want: errBroken},
	} {
		t.Run(tc.name, func(t *testing.T) {
			mem := blocktest.NewMem(blocktest.MemOptions{Size: size})
			to, bad := blocktest.NewInject(mem), blocktest.NewInject(from)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			switch {
			case tc.reads:
				bad.Add(tc.rule)
			case tc.rule.Err != nil:
				to.Add(tc.rule)
			}
			asked := 0
			before := func() error {
				switch asked++; {
				case asked > 1 && tc.stop:
					return errBroken
				case asked > 1 && tc.cancel:
					cancel()
				}
				return nil
			}
			of := changed(rs)
			if tc.unknown {
				of = func(f func(off, length int64) bool) error {
					f(0, 1<<20)
					return errBroken
				}
			}
			if written, err := Blocks(ctx, to, bad, of, before); !errors.Is(err, tc.want) || tc.name != "flush" && written == size {
				t.Fatalf("%d written, %v, want %v", written, err, tc.want)
			}
			to.Clear()
			bad.Clear()
			if _, err := Blocks(t.Context(), to, bad, changed(rs), func() error { return nil }); err != nil || !bytes.Equal(content(t, mem), src) {
				t.Errorf("again: %v", err)
			}
		})
	}
}
