package opgate

import (
	"errors"
	"sync"
	"sync/atomic"
	"testing"
)

func TestGate(t *testing.T) {
	var g Gate
	leave, err := g.Enter("a", "stage")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := g.Enter("a", "unstage"); !errors.Is(err, ErrPending) {
		t.Fatalf("second operation on a: %v, want %v", err, ErrPending)
	}
	other, err := g.Enter("b", "stage")
	if err != nil {
		t.Fatalf("operation on another volume: %v", err)
	}
	other()
	leave()
	leave, err = g.Enter("a", "unstage")
	if err != nil {
		t.Fatalf("after the first has ended: %v", err)
	}
	leave()
	if len(g.pending) != 0 {
		t.Errorf("%d keys left", len(g.pending))
	}
}

// TestGateRace has one winner among many at any time.
func TestGateRace(t *testing.T) {
	var g Gate
	var inside, won atomic.Int64
	var all sync.WaitGroup
	for range 64 {
		all.Go(func() {
			leave, err := g.Enter("v", "op")
			if err != nil {
				return
			}
			if inside.Add(1) != 1 {
				t.Error("two operations at once")
			}
			won.Add(1)
			inside.Add(-1)
			leave()
		})
	}
	all.Wait()
	if won.Load() == 0 {
		t.Error("nobody got in")
	}
}
