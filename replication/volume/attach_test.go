package volume

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
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
	// While a replica is there nobody has deleted the volume: the kvdb was restored, or replaced.
	c.eventually("the stall", func() bool { return v.Status().Stall == core.StallRollback })
	if isClosed(v.Dead()) {
		t.Fatalf("it ended: %v", v.Err())
	}
	if err := c.nodes[0].m.RemoveReplica(t.Context(), c.vol, c.nodes[0].rep); err != nil {
		t.Fatal(err)
	}
	c.eventually("the end of the volume", func() bool { return isClosed(v.Dead()) })
	if err := v.Err(); !errors.Is(err, replication.ErrVolumeNotFound) {
		t.Errorf("it ended with %v", err)
	}
}

// TestAttachOnTwoNodes: two nodes attach at once, each because the volume was detached when it looked. One gets it and
// keeps it; the other is told where it is.
func TestAttachOnTwoNodes(t *testing.T) {
	c := newTestCluster(t, 16<<20)
	for round := range 20 {
		var vols [2]*Volume
		var errs [2]error
		var wg sync.WaitGroup
		for i, n := range c.nodes {
			wg.Go(func() { vols[i], errs[i] = n.m.Attach(t.Context(), c.vol, AttachOptions{}) })
		}
		wg.Wait()
		won := 0
		if errs[0] != nil {
			won = 1
		}
		if errs[won] != nil || !errors.Is(errs[1-won], replication.ErrBusy) || !strings.Contains(errs[1-won].Error(), "on node "+string(c.nodes[won].id)) {
			t.Fatalf("round %d: %v", round, errs)
		}
		if err := block.WriteAt(vols[won], make([]byte, block.SectorSize), 0, 0); err != nil {
			t.Errorf("round %d: the one that has it: %v", round, err)
		}
		detach(t, c.nodes[won])
	}
}

// TestTakeFromOneThatIsGone: a node may take the volume from one attachment, and finds the next one.
func TestTakeFromOneThatIsGone(t *testing.T) {
	c := newTestCluster(t, 16<<20)
	a, b := c.nodes[0], c.nodes[1]
	a.attach()
	from := c.kv.config().Coord
	detach(t, a)
	v := a.attach()
	if _, err := b.m.Attach(t.Context(), c.vol, AttachOptions{TakeFrom: from}); !errors.Is(err, replication.ErrBusy) {
		t.Errorf("taken from the wrong one: %v", err)
	}
	if err := block.WriteAt(v, make([]byte, block.SectorSize), 0, 0); err != nil {
		t.Error(err)
	}
	detach(t, a)
	for _, n := range []*testNode{a, b} {
		if _, err := n.m.Attach(t.Context(), c.vol, AttachOptions{TakeFrom: from, Still: true}); !errors.Is(err, replication.ErrNotCoordinator) {
			t.Errorf("%s attached what was detached meanwhile: %v", n.id, err)
		}
	}
	b.attach()
	if _, err := a.m.Attach(t.Context(), c.vol, AttachOptions{TakeFrom: from, Still: true}); !errors.Is(err, replication.ErrNotCoordinator) {
		t.Errorf("taken from the wrong one: %v", err)
	}
	if _, err := a.m.Attach(t.Context(), c.vol, AttachOptions{TakeFrom: c.kv.config().Coord, Still: true}); err != nil {
		t.Error(err)
	}
}

// TestDetachWithoutFlush: a detach whose last flush no disk could do gives the volume up, and says what that means.
func TestDetachWithoutFlush(t *testing.T) {
	c := newTestCluster(t, 16<<20)
	a, b := c.nodes[0], c.nodes[1]
	a.st.Device, b.st.Device = &noFlush{Device: a.st.mem}, &noFlush{Device: b.st.mem}
	v := a.attach()
	c.net.Down(b.id)
	c.awaitInSync(1)
	a.st.Device.(*noFlush).fails.Store(true)
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
	defer cancel()
	if err := a.m.Detach(ctx, c.vol); !errors.Is(err, replication.ErrReplicaFaulted) || errors.Is(err, replication.ErrStalled) {
		t.Errorf("detach without a flush: %v", err)
	}
	<-v.Dead()
	if cfg := c.kv.config(); cfg.Phase != replication.PhaseDetached {
		t.Errorf("phase %s", cfg.Phase)
	}
}

// noFlush is a disk that may fail flushes.
type noFlush struct {
	block.Device
	fails atomic.Bool
}

func (d *noFlush) Submit(batch []*block.Request) {
	var rest []*block.Request
	for _, r := range batch {
		if r.Op == block.OpFlush && d.fails.Load() {
			r.By.Complete(r, block.ErrIO)
			continue
		}
		rest = append(rest, r)
	}
	d.Device.Submit(rest)
}

// joining is a volume that is put into a group when an attach has just read that it is in none.
type joining struct {
	kv   *testConfigs
	asks atomic.Int32
}

func (j *joining) Grouped(context.Context, replication.VolumeID) (bool, error) {
	if j.asks.Add(1) > 1 {
		return true, nil
	}
	j.kv.mu.Lock()
	defer j.kv.mu.Unlock()
	j.kv.rev++ // its configuration is written once more
	return false, nil
}

func (*joining) Changed(replication.VolumeID) {}

// TestAttachAsksForTheGroupAgain: an election that is lost because the volume was put into a group leads to a coordinator that knows of it.
func TestAttachAsksForTheGroupAgain(t *testing.T) {
	c := newTestCluster(t, 16<<20)
	a, j := c.nodes[0].m, &joining{kv: c.kv}
	a.o.Groups, a.o.Timing.Group = j, 50*time.Millisecond // nobody tells it of its group
	v, err := a.Attach(t.Context(), c.vol, AttachOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if n := j.asks.Load(); n != 2 || !v.opts.Group {
		t.Errorf("asked %d times, serves as of a group: %v", n, v.opts.Group)
	}
}
