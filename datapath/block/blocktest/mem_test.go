package blocktest_test

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"github.com/tandem-storage/tandem/datapath/block"
	"github.com/tandem-storage/tandem/datapath/block/blocktest"
)

func mem(o blocktest.MemOptions) blocktest.Factory {
	return func(_ *testing.T, size int64) block.Device {
		o.Size = size
		return blocktest.NewMem(o)
	}
}

func TestMem(t *testing.T) {
	const all = block.CapFlush | block.CapFUA | block.CapDiscard | block.CapWriteZeroes
	blocktest.Run(t, "sync", mem(blocktest.MemOptions{}))
	blocktest.Run(t, "async", mem(blocktest.MemOptions{Async: true, Seed: 7}))
	blocktest.Run(t, "512", mem(blocktest.MemOptions{BlockSize: 512}))
	blocktest.Run(t, "plain", mem(blocktest.MemOptions{Without: all}))
}

func TestMemCrash(t *testing.T) {
	for name, o := range map[string]blocktest.MemOptions{
		"sync": {}, "async": {Async: true}, "512": {BlockSize: 512}, "no cache": {Without: block.CapFlush},
	} {
		for _, percent := range []int{0, 50, 100} {
			rng := rand.New(rand.NewPCG(uint64(percent), 3))
			blocktest.RunCrash(t, name, func(_ *testing.T, size int64) (block.Device, func(*testing.T) block.Device) {
				o.Size = size
				m := blocktest.NewMem(o)
				return m, func(*testing.T) block.Device {
					return m.CrashClone(blocktest.CrashOptions{UnsyncedPercent: percent, Rand: rand.New(rand.NewPCG(rng.Uint64(), 0))})
				}
			})
		}
	}
}

func write(t *testing.T, d block.Device, off int64, b byte, f block.Flags) {
	t.Helper()
	if err := block.WriteAt(d, bytes.Repeat([]byte{b}, block.SectorSize), off, f); err != nil {
		t.Fatal(err)
	}
}

func first(t *testing.T, d block.Device, off int64) byte {
	t.Helper()
	p := make([]byte, block.SectorSize)
	if err := block.ReadAt(d, p, off); err != nil {
		t.Fatal(err)
	}
	return p[0]
}

// Every state that a power cut may leave does occur.
func TestCrashCloneReachesEveryState(t *testing.T) {
	m := blocktest.NewMem(blocktest.MemOptions{Size: 1 << 20})
	write(t, m, 0, 1, 0)
	if err := block.Flush(m); err != nil {
		t.Fatal(err)
	}
	write(t, m, 0, 2, 0)
	write(t, m, 0, 3, 0)
	seen := map[byte]int{}
	rng := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		seen[first(t, m.CrashClone(blocktest.CrashOptions{UnsyncedPercent: 50, Rand: rng}), 0)]++
	}
	if len(seen) != 3 || seen[1] == 0 || seen[2] == 0 || seen[3] == 0 {
		t.Fatalf("contents after power cuts: %v, want 1, 2 and 3", seen)
	}
	if b := first(t, m.CrashClone(blocktest.CrashOptions{}), 0); b != 1 {
		t.Fatalf("0 %% kept left %d, want the flushed 1", b)
	}
	if b := first(t, m.CrashClone(blocktest.CrashOptions{UnsyncedPercent: 100}), 0); b != 3 {
		t.Fatalf("100 %% kept left %d, want the last 3", b)
	}
}

func TestCrashCloneReplays(t *testing.T) {
	m := blocktest.NewMem(blocktest.MemOptions{Size: 1 << 20})
	for i := range int64(200) {
		write(t, m, i*block.SectorSize, byte(i+1), 0)
	}
	image := func() []byte {
		p := make([]byte, 1<<20)
		c := m.CrashClone(blocktest.CrashOptions{UnsyncedPercent: 30, Rand: rand.New(rand.NewPCG(5, 5))})
		if err := block.ReadAt(c, p, 0); err != nil {
			t.Fatal(err)
		}
		return p
	}
	if !bytes.Equal(image(), image()) {
		t.Fatal("the same seed leaves different clones")
	}
}

func TestMemGivesSpaceBack(t *testing.T) {
	m := blocktest.NewMem(blocktest.MemOptions{Size: 1 << 20})
	write(t, m, 0, 1, block.FUA)
	write(t, m, 8192, 1, block.FUA)
	if err := block.Discard(m, 0, 4096); err != nil {
		t.Fatal(err)
	}
	if err := block.Flush(m); err != nil {
		t.Fatal(err)
	}
	if got := m.Allocated(); got != 4096 {
		t.Fatalf("%d bytes allocated, want 4096", got)
	}
}
