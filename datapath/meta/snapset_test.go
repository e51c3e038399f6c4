package meta

import (
	"bytes"
	"errors"
	"reflect"
	"testing"
)

func testSet(n int) SnapshotSet {
	s := SnapshotSet{Last: uint64(n)}
	for i := range n {
		s.Records = append(s.Records, SnapshotRecord{ID: seq(byte(i + 1)), Number: uint64(i + 1), Deleting: i%3 == 1, Size: uint64(i) << 32})
	}
	return s
}

// TestSnapshotSetCut: a write that is cut short, whatever is left of it, leaves the old set or the new one, and
// then damage to one copy takes nothing back.
func TestSnapshotSetCut(t *testing.T) {
	replica := seq(0x30)
	before, after := testSet(4), testSet(MaxSnapshots)
	for cut := 0; cut <= 2*8; cut++ { // sectors of the two pages that are written
		f := newMemPages(SnapshotPages)
		s, err := CreateSnapshots(f, replica)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Write(before); err != nil {
			t.Fatal(err)
		}
		old := bytes.Clone(f.b)
		if err := s.Write(after); err != nil {
			t.Fatal(err)
		}
		copy(f.b[cut*512:], old[cut*512:])
		want := before
		if cut >= 8 {
			want = after
		}
		o, err := OpenSnapshots(f, replica)
		if err != nil || !reflect.DeepEqual(o.Get(), want) {
			t.Fatalf("cut after %d sectors: %d snapshots, want %d (%v)", cut, len(o.Get().Records), len(want.Records), err)
		}
		for copied := range SnapshotPages {
			rot := newMemPages(SnapshotPages)
			copy(rot.b, f.b)
			rot.b[copied*PageSize+100] ^= 1
			if o, err := OpenSnapshots(rot, replica); err != nil || !reflect.DeepEqual(o.Get(), want) {
				t.Fatalf("copy %d is damaged after a cut at %d: %v", copied, cut, err)
			}
		}
	}
}

func TestSnapshotSetRefused(t *testing.T) {
	replica := seq(0x30)
	f := newMemPages(SnapshotPages)
	if _, err := OpenSnapshots(f, replica); !errors.Is(err, ErrCorrupt) {
		t.Errorf("a file of zeroes: %v", err)
	}
	s, err := CreateSnapshots(f, replica)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := OpenSnapshots(f, seq(0x31)); !errors.Is(err, ErrCorrupt) {
		t.Errorf("the set of another replica: %v", err)
	}
	if err := s.Write(testSet(MaxSnapshots + 1)); !errors.Is(err, ErrInvalid) {
		t.Errorf("too many: %v", err)
	}
	f.b[PageSize+12]++
	seal(f.b[PageSize:])
	if _, err := OpenSnapshots(f, replica); !errors.Is(err, ErrIncompatible) {
		t.Errorf("a later version: %v", err)
	}
	for _, bad := range []func(s *SnapshotSet){
		func(s *SnapshotSet) { s.Records[1].Number = s.Records[0].Number },
		func(s *SnapshotSet) { s.Last-- },
		func(s *SnapshotSet) { s.Records[2].ID = UUID{} },
		func(s *SnapshotSet) { s.Records[0].Deleting = true }, // the oldest one has nothing to hand over
	} {
		set := testSet(3)
		bad(&set)
		var page [PageSize]byte
		encodeSnapshots(page[:], replica, 1, &set)
		if _, _, err := decodeSnapshots(page[:], replica); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%+v: %v", set, err)
		}
	}
}
