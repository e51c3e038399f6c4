package daemon

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/tandem-storage/tandem/datapath/frontend"
	"github.com/tandem-storage/tandem/replication"
)

func TestAttachments(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "attachments")
	open := func() *attachments {
		s, err := openAttachments(dir)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	check := func(odd int, want ...record) {
		t.Helper()
		got, no, err := open().list()
		if err != nil || len(no) != odd || !slices.Equal(got, want) {
			t.Errorf("there are %v, %v, %v; want %v and %d that are none", got, no, err, want, odd)
		}
	}
	one := record{attachment{replication.VolumeID{1}, replication.AttachID{1}}, frontend.KindNBD}
	two := record{attachment{replication.VolumeID{1}, replication.AttachID{2}}, frontend.KindDevice}
	s := open()
	check(0)
	for _, a := range []record{two, one, one} {
		if err := s.put(a); err != nil {
			t.Fatal(err)
		}
	}
	check(0, one, two)
	for range 2 {
		if err := s.remove(one.attachment); err != nil {
			t.Fatal(err)
		}
	}
	check(0, two)
	for name, data := range map[string]string{one.String(): "fuseloop\n", "garbage": "nbd\n", one.String() + tmpSuffix: "nb"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(data), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	check(2, two)
	if _, err := os.Stat(filepath.Join(dir, one.String()+tmpSuffix)); !os.IsNotExist(err) {
		t.Errorf("half a record is left: %v", err)
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if err := s.put(one); err == nil {
		t.Error("put where it cannot be")
	}
	if err := s.remove(one.attachment); err == nil {
		t.Error("that a record is gone was said to be durable where it cannot be")
	}
}
