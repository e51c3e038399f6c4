package daemon

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"

	"github.com/tandem-storage/tandem/replication"
)

// TestLock: attaches and detaches of one volume wait for each other, as long as
// their callers do, and for no other volume's.
func TestLock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &runtime{busy: make(map[replication.VolumeID]chan struct{})}
		a, b := replication.VolumeID{1}, replication.VolumeID{2}
		unlock, err := r.lock(t.Context(), a)
		if err != nil {
			t.Fatal(err)
		}
		other, err := r.lock(t.Context(), b)
		if err != nil {
			t.Fatalf("another volume: %v", err)
		}
		other()
		short, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := r.lock(short, a); !errors.Is(err, context.Canceled) || !errors.Is(err, replication.ErrStalled) {
			t.Errorf("a caller without time: %v", err)
		}
		got := 0
		for range 3 {
			go func() {
				unlock, err := r.lock(t.Context(), a)
				if err != nil {
					t.Error(err)
					return
				}
				got++ // the lock guards it
				unlock()
			}()
		}
		synctest.Wait()
		if got != 0 {
			t.Fatalf("%d entered beside the first", got)
		}
		unlock()
		synctest.Wait()
		if got != 3 || len(r.busy) != 0 {
			t.Errorf("%d of 3 entered, %d locks left", got, len(r.busy))
		}
	})
}
