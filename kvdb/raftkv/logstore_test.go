package raftkv

import (
	"bytes"
	"errors"
	"path/filepath"
	"reflect"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"go.etcd.io/bbolt"
)

func entries(first, last, term uint64) (logs []*raft.Log) {
	for i := first; i <= last; i++ {
		logs = append(logs, &raft.Log{Index: i, Term: term, Data: bytes.Repeat([]byte{byte(i)}, int(i))})
	}
	return logs
}

func TestLogStore(t *testing.T) {
	path := filepath.Join(t.TempDir(), "raft.db")
	s, err := openLogStore(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.close() }()
	check := func(first, last, term uint64) {
		t.Helper()
		if err := s.close(); err != nil { // everything is on disk
			t.Fatal(err)
		}
		if s, err = openLogStore(path); err != nil {
			t.Fatal(err)
		}
		gotFirst, err1 := s.FirstIndex()
		gotLast, err2 := s.LastIndex()
		if err := errors.Join(err1, err2); err != nil || gotFirst != first || gotLast != last {
			t.Fatalf("log is from %d to %d, %v, want from %d to %d", gotFirst, gotLast, err, first, last)
		}
		for _, want := range entries(first, last, term) {
			if want.Index == 0 {
				break
			}
			var got raft.Log
			if err := s.GetLog(want.Index, &got); err != nil || got.Index != want.Index || !bytes.Equal(got.Data, want.Data) {
				t.Fatalf("entry %d: %+v, %v", want.Index, got, err)
			}
		}
		for _, beyond := range []uint64{first - 1, last + 1} {
			if err := s.GetLog(beyond, new(raft.Log)); !errors.Is(err, raft.ErrLogNotFound) {
				t.Fatalf("entry %d: %v, want ErrLogNotFound", beyond, err)
			}
		}
	}
	do := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	check(0, 0, 0)
	do(s.StoreLogs(entries(1, 100, 1)))
	check(1, 100, 1)
	do(s.DeleteRange(1, 30)) // behind a snapshot
	check(31, 100, 1)
	do(s.DeleteRange(91, 100)) // a conflict
	check(31, 90, 1)
	do(s.StoreLogs(entries(91, 95, 2)))
	check(31, 95, 1)
	if err := s.StoreLogs(entries(95, 96, 3)); err == nil {
		t.Error("an entry was overwritten")
	}
	check(31, 95, 1)
	do(s.StoreLogs(entries(200, 210, 4))) // after a snapshot from the leader
	check(200, 210, 4)
	do(s.DeleteRange(1, 1000))
	check(0, 0, 0)
	do(s.StoreLogs(entries(7, 9, 4)))
	check(7, 9, 4)
}

func TestEntryCoding(t *testing.T) {
	for _, want := range []raft.Log{
		{Index: 1},
		{Index: 1 << 60, Term: 1 << 61, Type: raft.LogConfiguration, Data: []byte("data"), AppendedAt: time.Unix(1, 2)},
		{Index: 3, Extensions: []byte("ext"), Data: []byte("data")},
	} {
		var got raft.Log
		if err := decodeEntry(encodeEntry(&want), &got); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("got %+v, %v, want %+v", got, err, want)
		}
	}
	sound := encodeEntry(&raft.Log{Index: 3, Term: 4, Extensions: []byte("ext"), Data: []byte("data")})
	for i := range sound {
		for _, damaged := range [][]byte{flip(sound, i, 1), flip(sound, i, 0x80), sound[:i]} {
			if err := decodeEntry(damaged, new(raft.Log)); !errors.Is(err, errLogDamaged) {
				t.Errorf("damaged at byte %d: %v", i, err)
			}
		}
	}
}

// An entry that is damaged, or another one than it should be, is not handed out.
func TestDamagedLog(t *testing.T) {
	s, err := openLogStore(filepath.Join(t.TempDir(), "raft.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.close() }()
	if err := s.StoreLogs(entries(1, 3, 1)); err != nil {
		t.Fatal(err)
	}
	err = s.db.Update(func(tx *bbolt.Tx) error {
		log := tx.Bucket(bucketLog)
		return errors.Join(
			log.Put(indexKey(1), flip(log.Get(indexKey(1)), 20, 4)),
			log.Put(indexKey(2), bytes.Clone(log.Get(indexKey(3)))),
		)
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range []uint64{1, 2} {
		if err := s.GetLog(i, new(raft.Log)); !errors.Is(err, errLogDamaged) {
			t.Errorf("entry %d: %v, want damaged", i, err)
		}
	}
	if err := s.GetLog(3, new(raft.Log)); err != nil {
		t.Error(err)
	}
}
