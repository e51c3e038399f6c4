package fuseloop

import (
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/tandem-storage/tandem/datapath/block"
	"github.com/tandem-storage/tandem/datapath/block/blocktest"
)

// TestMaxRequests: what is in flight of one attachment is bounded, and the rest follows.
func TestMaxRequests(t *testing.T) {
	const most, readers = 3, 16
	held := blocktest.NewDelay(memory(16 * mib))
	f := newFront(t)
	f.most = most
	a := attach(t, f, "vol", held)
	file := openDirect(t, a.Path())
	held.Pause(blocktest.BeforeStart, nil)
	var wg sync.WaitGroup
	for i := range readers {
		wg.Go(func() {
			p := block.NewBuffer(4096)
			defer p.Release()
			if _, err := file.ReadAt(p.Bytes(), int64(i)*mib); err != nil {
				t.Error(err)
			}
		})
	}
	for strings.Fields(sysfs(t, a, "inflight"))[0] != strconv.Itoa(readers) { // the kernel has them all
		runtime.Gosched()
	}
	held.WaitHeld(most)
	for range readers {
		if n := held.Held(); n > most {
			t.Errorf("%d requests at the device, at most %d are allowed", n, most)
		}
		for held.Step(1) == 0 {
			held.WaitHeld(1)
		}
	}
	held.Resume()
	wg.Wait()
	if err := file.Close(); err != nil {
		t.Error(err)
	}
	detach(t, a)
}
