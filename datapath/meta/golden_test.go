package meta

import (
	"bufio"
	"encoding/hex"
	"os"
	"reflect"
	"strconv"
	"strings"
	"testing"
)

// golden returns the page of the dump in FORMAT.md that follows the line with
// the name, in a form like that of hexdump -C; what is left out is zero.
func golden(t *testing.T, name string) []byte {
	t.Helper()
	f, err := os.Open("FORMAT.md")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	out := make([]byte, PageSize)
	found, in, lines := false, false, 0
	for s := bufio.NewScanner(f); s.Scan(); {
		line := s.Text()
		switch {
		case strings.Contains(line, "Dump: "+name):
			found = true
		case found && strings.HasPrefix(line, "```"):
			if in {
				if lines == 0 {
					t.Fatalf("the dump of the %s is empty", name)
				}
				return out
			}
			in = true
		case in && !strings.HasPrefix(line, "*"):
			at, rest, _ := strings.Cut(line, "  ")
			off, err := strconv.ParseInt(at, 16, 64)
			if err != nil {
				t.Fatal(err)
			}
			hexed, _, _ := strings.Cut(rest, "|")
			b, err := hex.DecodeString(strings.ReplaceAll(hexed, " ", ""))
			if err != nil {
				t.Fatal(err)
			}
			copy(out[off:], b)
			lines++
		}
	}
	t.Fatalf("FORMAT.md has no dump of the %s", name)
	return nil
}

// seq returns n bytes that count up from first, as the dumps have them.
func seq(first byte) (u UUID) {
	for i := range u {
		u[i] = first + byte(i)
	}
	return u
}

// TestGolden holds the documented bytes against the code, in both directions.
func TestGolden(t *testing.T) {
	page := golden(t, "superblock")
	want := &Superblock{
		Seq: 6, Cluster: seq(0x10), Volume: seq(0x20), Replica: seq(0x30), Inode: seq(0x40), KVIncarnation: seq(0x50),
		BootID: seq(0x60), Instance: seq(0x70), Epoch: 7, Gen: 0x1122334455667788, ForkGen: 1, Term: 5,
		ISR: []UUID{seq(0x30), seq(0x80)}, Missing: []UUID{seq(0x90)},
		State: StateInSync, Unclean: true, Thick: true,
		Size: 2 << 30, BlockSize: 4096, RegionSize: 4 << 20, ChunkSize: 256 << 20,
	}
	got, err := DecodeSuperblock(page)
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("the documented superblock decodes as %+v (%v)", got, err)
	}
	var again [PageSize]byte
	if err := want.Encode(again[:]); err != nil || string(again[:]) != string(page) {
		t.Errorf("the superblock is encoded as (%v)\n%s", err, hex.Dump(again[:SuperblockLen]))
	}

	page = golden(t, "activity log record")
	rec := &logRecord{
		owner: logOwner{seq(0x30), seq(0x70), seq(0x80)}, tx: 300, lost: true, term: 5, stable: 1000, slots: 8,
		updates: []logUpdate{{2, 9}, {5, LogFree}}, first: 1, context: []uint32{LogFree, 9, 7, 0x12345678, LogFree},
	}
	if got, err := decodeLogRecord(page, seq(0x30)); err != nil || !reflect.DeepEqual(got, rec) {
		t.Errorf("the documented log record decodes as %+v (%v)", got, err)
	}
	rec.encode(again[:])
	if string(again[:]) != string(page) {
		t.Errorf("the log record is encoded as\n%s", hex.Dump(again[:]))
	}

	page = golden(t, "dirty map page")
	m := NewDirtyMap(40000 * DirtyBlock) // two pages; this is the second one
	for _, b := range []int64{0, 1, 9, 63, 64, 7000} {
		m.Set((PageBits+b)*DirtyBlock, 1)
	}
	var buf [PageSize]byte
	encodeDirtyPage(buf[:], dirtyPage{No: 1, Gen: 0xa1b2c3d4, Peer: seq(0x80)}, m.words[pageWords:])
	if string(buf[:]) != string(page) {
		t.Errorf("the dirty map page is encoded as\n%s", hex.Dump(buf[:]))
	}
	if h, err := decodeDirtyPage(page); err != nil || h != (dirtyPage{No: 1, Gen: 0xa1b2c3d4, Peer: seq(0x80)}) {
		t.Errorf("the documented page decodes as %+v (%v)", h, err)
	}

	page = golden(t, "snapshot set")
	set := &SnapshotSet{Last: 9, Records: []SnapshotRecord{{ID: seq(0xa0), Number: 4}, {ID: seq(0xb0), Number: 7, Deleting: true, Size: 2 << 30}}}
	if seq5, got, err := decodeSnapshots(page, seq(0x30)); err != nil || seq5 != 5 || !reflect.DeepEqual(got, set) {
		t.Errorf("the documented snapshot set decodes as %d, %+v (%v)", seq5, got, err)
	}
	encodeSnapshots(again[:], seq(0x30), 5, set)
	if string(again[:]) != string(page) {
		t.Errorf("the snapshot set is encoded as\n%s", hex.Dump(again[:]))
	}
}
