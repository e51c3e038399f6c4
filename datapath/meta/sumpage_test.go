package meta

import (
	"encoding/hex"
	"errors"
	"math/rand/v2"
	"testing"
)

var sumOwner = SumOwner{Replica: seq(0x30), Generation: seq(0xa0)}

func randomSums(rng *rand.Rand) *[SumBlocks]Sum {
	s := new([SumBlocks]Sum)
	for i := range s {
		s[i] = Sum(rng.Uint32()) & SumBits
	}
	return s
}

func TestSumPage(t *testing.T) {
	rng := testRand(t)
	for range 100 {
		want, got := randomSums(rng), new([SumBlocks]Sum)
		var page [PageSize]byte
		EncodeSums(page[:], sumOwner, 7, want)
		if err := DecodeSums(page[:], sumOwner, 7, got); err != nil || *got != *want {
			t.Fatalf("a page is read as another: %v", err)
		}
		for what, err := range map[string]error{
			"region":     DecodeSums(page[:], sumOwner, 8, got),
			"replica":    DecodeSums(page[:], SumOwner{seq(1), sumOwner.Generation}, 7, got),
			"generation": DecodeSums(page[:], SumOwner{sumOwner.Replica, seq(1)}, 7, got),
			"nothing":    DecodeSums(zeroes[:], sumOwner, 0, got),
		} {
			if !errors.Is(err, ErrCorrupt) {
				t.Errorf("page of another %s: %v", what, err)
			}
		}
		bit := rng.IntN(8 * PageSize)
		page[bit/8] ^= 1 << (bit % 8)
		if err := DecodeSums(page[:], sumOwner, 7, got); !errors.Is(err, ErrCorrupt) || *got != *want {
			t.Errorf("damaged bit %d: %v", bit, err)
		}
	}
}

// TestSumHeaderTorn: of a header whose write was cut short the old one or the new one is found.
func TestSumHeaderTorn(t *testing.T) {
	rng := testRand(t)
	old := SumHeader{SumOwner: sumOwner, Instance: seq(1), Previous: seq(2)}
	next := SumHeader{SumOwner: SumOwner{sumOwner.Replica, seq(9)}, Instance: seq(3), Previous: seq(1), Loose: true}
	var a, b [PageSize]byte
	old.Encode(a[:])
	next.Encode(b[:])
	for range 100 {
		page := a
		for s := 0; s < PageSize; s += 512 {
			if rng.IntN(2) == 0 {
				copy(page[s:s+512], b[s:])
			}
		}
		if h, err := DecodeSumHeader(page[:]); err != nil || *h != old && *h != next {
			t.Fatalf("torn header: %+v, %v", h, err)
		}
	}
	for i := range 512 {
		page := a
		page[i] ^= 0x10
		if _, err := DecodeSumHeader(page[:]); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("damaged byte %d: %v", i, err)
		}
	}
	if _, err := DecodeSumHeader(zeroes[:]); !errors.Is(err, ErrCorrupt) {
		t.Errorf("a header of zeroes: %v", err)
	}
}

func TestSumHeaderContinues(t *testing.T) {
	h := SumHeader{SumOwner: sumOwner, Instance: seq(1), Previous: seq(2)}
	for _, c := range []struct {
		replica, instance UUID
		loose, want       bool
	}{
		{sumOwner.Replica, seq(1), false, true},
		{sumOwner.Replica, seq(2), false, true},  // it did not get as far as the superblock
		{sumOwner.Replica, seq(3), false, false}, // a version that keeps none has had it open
		{seq(9), seq(1), false, false},
		{sumOwner.Replica, seq(1), true, false},
	} {
		h.Loose = c.loose
		if got := h.Continues(c.replica, c.instance); got != c.want {
			t.Errorf("replica %x, instance %x, loose %v: %v", c.replica, c.instance, c.loose, got)
		}
	}
}

func TestMakeSum(t *testing.T) {
	if a, b := MakeSum(0x12345678, 5), MakeSum(0x12345678, 6); a == b {
		t.Error("the same content in two places has the same checksum")
	}
	for crc := range uint32(1 << 16) {
		if MakeSum(crc, 0) == NoSum || MakeSum(crc<<31, 0) == NoSum {
			t.Fatal("a checksum that stands for none")
		}
	}
}

func TestGoldenSums(t *testing.T) {
	var again [PageSize]byte
	page := golden(t, "checksum file header")
	h := SumHeader{SumOwner: sumOwner, Instance: seq(0x70), Previous: seq(0x80), Loose: true}
	if got, err := DecodeSumHeader(page); err != nil || *got != h {
		t.Errorf("the documented header decodes as %+v (%v)", got, err)
	}
	if h.Encode(again[:]); string(again[:]) != string(page) {
		t.Errorf("the header is encoded as\n%s", hex.Dump(again[:128]))
	}
	page = golden(t, "checksum page")
	var want, got [SumBlocks]Sum
	want[0], want[1], want[31], want[33] = MakeSum(0x98f94189, 7*SumBlocks), 1, 0x40000005, SumBits
	if err := DecodeSums(page, sumOwner, 7, &got); err != nil || got != want {
		t.Errorf("the documented page of checksums decodes as %x (%v)", got[:40], err)
	}
	if EncodeSums(again[:], sumOwner, 7, &want); string(again[:]) != string(page) {
		t.Errorf("the page of checksums is encoded as\n%s", hex.Dump(again[:]))
	}
}
