package backing

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/tandem-storage/tandem/datapath/meta"
)

// A note is what was written last, whole, survives a closing, and goes with its replica; what a crash left of the next one is nothing.
func TestNote(t *testing.T) {
	p := openTestPool(t, t.TempDir(), 0)
	createTestReplica(t, p, 4<<20)
	if b, err := p.Note(testVolume, testReplica); err != nil || b != nil {
		t.Errorf("a new replica has note %q, %v", b, err)
	}
	for _, want := range []string{"one", "", "a longer one"} {
		if err := p.SetNote(testVolume, testReplica, []byte(want)); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(p.path(replicasDir, key{testVolume, testReplica}.dirName()), noteFile+".new"), []byte("half"), 0o600); err != nil {
			t.Fatal(err)
		}
		r, err := p.Open(testVolume, testReplica)
		if err != nil {
			t.Fatal(err)
		}
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
		if b, err := p.Note(testVolume, testReplica); err != nil || !bytes.Equal(b, []byte(want)) {
			t.Errorf("note %q, %v, want %q", b, err, want)
		}
	}
	// The other note is another one.
	if b, err := p.Reverting(testVolume, testReplica); err != nil || b != nil {
		t.Errorf("the other note is %q, %v", b, err)
	}
	if err := p.SetReverting(testVolume, testReplica, []byte("to a snapshot")); err != nil {
		t.Fatal(err)
	}
	if b, err := p.Reverting(testVolume, testReplica); err != nil || string(b) != "to a snapshot" {
		t.Errorf("the other note is %q, %v", b, err)
	}
	if b, err := p.Note(testVolume, testReplica); err != nil || string(b) != "a longer one" {
		t.Errorf("note %q, %v", b, err)
	}
	if err := p.SetNote(testVolume, meta.UUID{77}, nil); !errors.Is(err, ErrNotFound) {
		t.Errorf("note of no replica: %v", err)
	}
	if err := p.SetNote(testVolume, testReplica, make([]byte, MaxNote+1)); !errors.Is(err, ErrInvalid) {
		t.Errorf("a note that is too long: %v", err)
	}
}
