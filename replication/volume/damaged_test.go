package volume

import (
	"bytes"
	"sync"
	"testing"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/tandem-storage/tandem/datapath/block"
)

// rottenDisk is a storage whose block at an offset is not what was written, until it is written anew.
type rottenDisk struct {
	*testStorage
	mu     sync.Mutex
	at     int64 // -1: all is well
	reads  int   // that were refused
	healed int   // writes of the block
}

func (d *rottenDisk) rot(off int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.at, d.reads, d.healed = off, 0, 0
}

func (d *rottenDisk) counts() (reads, healed int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.reads, d.healed
}

func (d *rottenDisk) Submit(batch []*block.Request) {
	for _, r := range batch {
		d.mu.Lock()
		hit := d.at >= 0 && r.Op != block.OpFlush && r.Off <= d.at && d.at < r.Off+r.Len
		switch {
		case !hit:
		case r.Op != block.OpRead:
			d.at = -1
			d.healed++
		case r.Flags&block.AsIs == 0:
			d.reads++
			d.mu.Unlock()
			go r.By.Complete(r, &block.RequestError{Op: r.Op, Off: r.Off, Len: r.Len, Err: block.ErrChecksum})
			continue
		default:
			at := d.at
			d.mu.Unlock()
			by := r.By
			r.By = block.CompleterFunc(func(r *block.Request, err error) {
				r.By = by
				r.Data[at-r.Off] ^= 1
				by.Complete(r, err)
			})
			d.testStorage.Submit([]*block.Request{r})
			continue
		}
		d.mu.Unlock()
		d.testStorage.Submit([]*block.Request{r})
	}
}

// rottenDisks gives the nodes of c disks that rot.
func (c *testCluster) rottenDisks() []*rottenDisk {
	t := c.t
	t.Helper()
	var disks []*rottenDisk
	for i, n := range c.nodes {
		disks = append(disks, &rottenDisk{testStorage: n.st, at: -1})
		if err := n.m.RemoveReplica(t.Context(), c.vol, n.rep); err != nil {
			t.Fatal(err)
		}
		if err := n.m.AddReplica(c.vol, n.rep, disks[i]); err != nil {
			t.Fatal(err)
		}
	}
	return disks
}

// TestDamagedBlock: a block that is damaged in one replica is read from the other and rewritten, which keeps both
// in sync; and a replica that returns with one has it copied, as any block that differs.
func TestDamagedBlock(t *testing.T) {
	c := newTestCluster(t, 16<<20)
	a, b := c.nodes[0], c.nodes[1]
	disks := c.rottenDisks()
	v := a.attach()
	want := bytes.Repeat([]byte{7}, 64<<10)
	write := func() {
		t.Helper()
		if err := block.WriteAt(v, want, 1<<20, 0); err != nil {
			t.Fatal(err)
		}
		if err := block.Flush(v); err != nil {
			t.Fatal(err)
		}
	}
	write()
	const at = 1<<20 + 8192
	disks[0].rot(at)
	got := make([]byte, len(want))
	if err := block.ReadAt(v, got, 1<<20); err != nil || !bytes.Equal(got, want) {
		t.Errorf("read of a block that is damaged in one replica: %v", err)
	}
	c.eventually("the block is healed", func() bool { return v.Status().Health[a.rep].Healed == 1 })
	if reads, healed := disks[0].counts(); reads != 3 || healed != 1 {
		t.Errorf("%d reads were refused, want that of the consumer and two that look for the block; it was written %d times", reads, healed)
	}
	if n := len(c.kv.config().ISR); n != 2 {
		t.Errorf("%d replicas in sync", n)
	}

	c.net.Down(b.id)
	c.awaitInSync(1)
	want = bytes.Repeat([]byte{8}, 64<<10)
	write()
	disks[1].rot(at)
	c.net.Up(b.id)
	c.awaitInSync(2)
	if reads, healed := disks[1].counts(); reads != 0 || healed != 1 {
		t.Errorf("the damaged block of a replica that returned was refused %d times and written %d times", reads, healed)
	}
	detach(t, a)
	c.compare()
}

// TestNoChecksumsAreTold: a replica whose blocks have no checksums says so, once.
func TestNoChecksumsAreTold(t *testing.T) {
	c := newTestCluster(t, 16<<20)
	a := c.nodes[0]
	a.st.noSums = block.ErrNoSpace // nobody has looked yet
	seen, logs := observer.New(zap.WarnLevel)
	h := a.m.host(c.vol, a.rep)
	h.lg = zap.New(seen)
	for range 2 {
		h.look(now())
		h.looked = 0
	}
	es := logs.FilterMessage("no checksums kept, damage on the disk is not noticed").All()
	if len(es) != 1 || es[0].ContextMap()["reason"] != block.ErrNoSpace.Error() {
		t.Errorf("logged: %v", logs.All())
	}
}
