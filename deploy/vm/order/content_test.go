package order

import "testing"

// TestVersion holds each version of each place against every other: none passes for another, nor does a torn one.
func TestVersion(t *testing.T) {
	block := make([]byte, BlockSize)
	for place := range int64(5) {
		for v := int64(1); v < 20; v++ {
			Fill(block, 7, place, v)
			want := v
			if Zeroes(v) {
				want = 0
			}
			if got := Version(block, 7, place); got != want {
				t.Errorf("version %d of place %d is taken for %d", v, place, got)
			}
			if Zeroes(v) {
				continue
			}
			if got := Version(block, 7, place+1); got != Damaged {
				t.Errorf("version %d of place %d is taken for %d of the next", v, place, got)
			}
			if got := Version(block, 8, place); got != Damaged {
				t.Errorf("version %d of seed 7 is taken for %d of seed 8", v, got)
			}
			clear(block[BlockSize/2:])
			if got := Version(block, 7, place); got != Damaged {
				t.Errorf("half of version %d is taken for %d", v, got)
			}
		}
	}
}

// TestOffsets wants every place on the device, and no two at the same offset.
func TestOffsets(t *testing.T) {
	const size = 64 << 20
	seen := map[int64]int64{}
	for place := range int64(Places) {
		off := Offset(place, size)
		if off < 0 || off+BlockSize > size || off%BlockSize != 0 {
			t.Fatalf("place %d is at %d", place, off)
		}
		if other, twice := seen[off]; twice {
			t.Fatalf("places %d and %d are both at %d", other, place, off)
		}
		seen[off] = place
	}
}
