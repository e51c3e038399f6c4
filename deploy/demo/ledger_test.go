package main

import (
	"maps"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
)

func TestLedgerIsReadBack(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ledger")
	l, err := newLedger(path)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	want := map[int64]string{}
	for id := range int64(200) {
		want[id] = "f" + strconv.FormatInt(id, 10)
		wg.Go(func() {
			if err := l.confirm(id, "f"+strconv.FormatInt(id, 10)); err != nil {
				t.Error(err)
			}
			// What confirm returned for is on disk by now.
			got, err := readLedger(path)
			if err != nil {
				t.Error(err)
			}
			if _, ok := got[id]; !ok {
				t.Errorf("%d was confirmed and is not in the file", id)
			}
		})
	}
	wg.Wait()
	got, err := readLedger(path)
	if err != nil {
		t.Fatal(err)
	}
	if !maps.Equal(got, want) {
		t.Errorf("read back %d entries, want %d", len(got), len(want))
	}
}

func TestCompare(t *testing.T) {
	confirmed := map[int64]string{1: "a", 2: "b", 3: "c"}
	c := compare(confirmed, map[int64]string{1: "a", 2: "x", 9: "n"})
	if len(c.lost) != 1 || c.lost[0] != 3 || len(c.damaged) != 1 || c.damaged[0] != 2 || c.extra != 1 || c.ok() {
		t.Errorf("compare found %v", c)
	}
	if c := compare(confirmed, maps.Clone(confirmed)); !c.ok() || c.extra != 0 || c.confirmed != 3 {
		t.Errorf("equal: compare found %v", c)
	}
}

func TestPayloadsDiffer(t *testing.T) {
	seen := map[string]int64{}
	for id := range int64(10000) {
		p := payload(id)
		if other, ok := seen[p]; ok {
			t.Fatalf("%d and %d have the same payload", id, other)
		}
		seen[p] = id
	}
}
