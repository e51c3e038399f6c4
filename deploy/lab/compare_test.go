package lab

import (
	"os"
	"path/filepath"
	"testing"
)

func TestCompareHeads(t *testing.T) {
	a, b := t.TempDir(), t.TempDir()
	write := func(dir, name string, size int64, at int64, what string) {
		t.Helper()
		f, err := os.OpenFile(filepath.Join(dir, name), os.O_CREATE|os.O_RDWR, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if err := f.Truncate(size); err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt([]byte(what), at); err != nil {
			t.Fatal(err)
		}
	}
	same := func(want bool, when string) {
		t.Helper()
		_, err := compareHeads(a, b)
		if (err == nil) != want {
			t.Errorf("%s: %v, want identical %v", when, err, want)
		}
	}
	write(a, "0", 8<<20, 5<<20, "data")
	write(b, "0", 8<<20, 5<<20, "data")
	same(true, "equal files")
	write(a, "3", 4<<20, 0, "\x00\x00")
	same(true, "a chunk of zeroes on one side only")
	write(b, "3", 2<<20, 2<<20-1, "\x00")
	same(true, "zeroes of other length")
	write(b, "3", 4<<20, 3<<20+17, "x")
	same(false, "one byte differs")
	write(a, "3", 4<<20, 3<<20+17, "x")
	same(true, "the byte is the same again")
	write(a, "4", 1<<20, 1<<20-1, "y")
	same(false, "a chunk with data on one side only")
}
