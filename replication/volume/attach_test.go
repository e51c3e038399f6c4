package volume

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/tandem-storage/tandem/datapath/block"
	"github.com/tandem-storage/tandem/replication"
	"github.com/tandem-storage/tandem/replication/core"
)

// refuse lets the kvdb answer reads and take no change, or everything again.
func (k *testConfigs) refuse(err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.noSwap = err
}

func (c *testCluster) waiters(m *Manager) int {
	v := m.Volume(c.vol)
	if v == nil {
		return 0
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return v.waiters
}

// TestAttachesShareATakeover: one of two who attach has no time left; the other gets the volume.
func TestAttachesShareATakeover(t *testing.T) {
	for _, leaves := range []int{0, 1} { // who began the takeover, and who came second
		t.Run(fmt.Sprint(leaves), func(t *testing.T) {
			c := newTestCluster(t, 16<<20)
			a := c.nodes[0].m
			c.kv.refuse(ErrNotSent)
			var leave context.CancelFunc
			got := [2]chan error{make(chan error, 1), make(chan error, 1)}
			for i := range got {
				ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
				defer cancel()
				if i == leaves {
					leave = cancel
				}
				go func() {
					v, err := a.Attach(ctx, c.vol, AttachOptions{})
					if (v == nil) == (err == nil) {
						t.Errorf("%d: volume %p and error %v", i, v, err)
					}
					got[i] <- err
				}()
				c.eventually("one more who waits", func() bool { return c.waiters(a) == i+1 })
			}
			leave()
			if err := <-got[leaves]; !errors.Is(err, replication.ErrStalled) || !errors.Is(err, context.Canceled) {
				t.Errorf("who left: %v", err)
			}
			c.kv.refuse(nil)
			if err := <-got[1-leaves]; err != nil {
				t.Errorf("who stayed: %v", err)
			}
		})
	}
}

// TestAttachesThatLeave: whoever leaves, at whatever moment, somebody who has time gets the volume, and all
// who get one get the same.
func TestAttachesThatLeave(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	rng := rand.New(rand.NewPCG(seed, 0))
	c := newTestCluster(t, 16<<20)
	a := c.nodes[0]
	for round := range 30 {
		var wg sync.WaitGroup
		var mu sync.Mutex
		vols := map[*Volume]bool{}
		for i := range 4 {
			within := 15 * time.Second
			if i > 0 {
				within = time.Duration(rng.IntN(20_000)) * time.Microsecond
			}
			wg.Go(func() {
				ctx, cancel := context.WithTimeout(t.Context(), within)
				defer cancel()
				v, err := a.m.Attach(ctx, c.vol, AttachOptions{})
				mu.Lock()
				defer mu.Unlock()
				switch {
				case err == nil:
					vols[v] = true
				case i == 0 || !errors.Is(err, context.DeadlineExceeded):
					t.Errorf("seed %d, round %d, caller %d: %v", seed, round, i, err)
				}
			})
		}
		wg.Wait()
		if len(vols) != 1 {
			t.Fatalf("seed %d, round %d: %d volumes", seed, round, len(vols))
		}
		detach(t, a)
	}
}

// TestDetachWithoutTime: a detach whose caller has gone completes when what it waits for is
// there; until then the status says so, and an attach waits for its end and begins anew.
func TestDetachWithoutTime(t *testing.T) {
	c := newTestCluster(t, 16<<20)
	a := c.nodes[0]
	v := a.attach()
	c.kv.refuse(ErrNotSent)
	short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	for range 2 {
		if err := a.m.Detach(short, c.vol); !errors.Is(err, replication.ErrStalled) || !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("detach without the kvdb: %v", err)
		}
	}
	c.eventually("a status that tells of it", func() bool { s := v.Status(); return s.Detaching && s.Stall == core.StallKVDB })
	if w, err := a.m.Attach(short, c.vol, AttachOptions{}); w != nil || !errors.Is(err, replication.ErrStalled) {
		t.Errorf("attach meanwhile, without time: %p, %v", w, err)
	}
	again := make(chan *Volume, 1)
	go func() {
		w, err := a.m.Attach(t.Context(), c.vol, AttachOptions{})
		if err != nil {
			t.Error(err)
		}
		again <- w
	}()
	c.kv.refuse(nil)
	<-v.Dead()
	if err := v.Err(); err != nil {
		t.Errorf("the detach ended with %v", err)
	}
	w := <-again
	if w == nil || w == v {
		t.Fatalf("attached again: %p, was %p", w, v)
	}
	if err := block.WriteAt(w, make([]byte, block.SectorSize), 0, 0); err != nil {
		t.Error(err)
	}
}

// TestVolumeGone: a coordinator whose volume is gone from the kvdb learns that with its next change, and says so.
func TestVolumeGone(t *testing.T) {
	c := newTestCluster(t, 16<<20)
	v := c.nodes[0].attach()
	c.kv.mu.Lock()
	c.kv.gone = true
	c.kv.mu.Unlock()
	c.net.Down(c.nodes[1].id)
	c.nodes[0].m.PeerUp(c.nodes[1].id, false)
	c.eventually("the end of the volume", func() bool { return isClosed(v.Dead()) })
	if err := v.Err(); !errors.Is(err, replication.ErrVolumeNotFound) {
		t.Errorf("it ended with %v", err)
	}
}
