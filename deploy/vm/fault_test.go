//go:build vm

package vm

import (
	"fmt"
	"testing"
	"time"

	"github.com/tandem-storage/tandem/deploy/vm/order"
)

// fault breaks the disk of a node's pool. The function that it returns mends it, for a machine that runs.
type fault func(t *testing.T, node string) (mend func())

// diskTest is a cluster with a writer of one volume, whose disks are broken.
type diskTest struct {
	*power
	began time.Time
}

// TestDisk lets the disk of a pool hang, at the far site and then under the coordinator, and fail its flushes: the volume goes
// on with the other replica, what hung returns by a resync, and what failed is FAULTED and stays out.
func TestDisk(t *testing.T) {
	p := newDiskTest(t, false)
	p.hangs(t, "hangs", func(_ *testing.T, n string) func() { return p.pool(n).Hang() })
	p.fails(t, "fails flushes", func(t *testing.T, n string) func() {
		cure := p.pool(n).FailFlushes()
		return func() {
			if cure() == 0 {
				t.Error("no flush failed")
			}
		}
	})
}

// newDiskTest makes the cluster. Mapped: see mapper_test.go.
func newDiskTest(t *testing.T, mapped bool) *diskTest {
	t.Helper()
	p := &diskTest{began: time.Now(), power: &power{seed: seeded(), blocks: NewLedger(order.Places), home: "a1", away: "b1"}}
	p.cluster = found(t, "xfs", mapped, p.blocks.Note)
	if _, err := p.ctl(t, p.home, "volume", "create", rawVolume, "--size", "32Mi", "--replicas", "2"); err != nil {
		t.Fatal(err)
	}
	p.ask(t, order.Request{Op: order.Blocks, Path: p.attach(t, p.home, rawVolume)})
	p.confirmed(t, 50)
	return p
}

// hangs lets the disk of each node hang, one after the other.
func (p *diskTest) hangs(t *testing.T, how string, hang fault) {
	t.Helper()
	for _, n := range []string{p.away, p.home} {
		other := p.home
		if n == p.home {
			other = p.away
		}
		p.inSync(t, rawVolume, nodes...)
		at := time.Now()
		release := hang(t, n)
		p.inSync(t, rawVolume, other)
		evicted := since(at)
		p.confirmed(t, 50)
		release()
		p.inSync(t, rawVolume, nodes...)
		p.confirmed(t, 50)
		say("disk: that of %s %s: its replica evicted after %v, the volume goes on, in sync again after %v", n, how, evicted, since(at))
	}
}

// fails lets the disk of the far site fail, for good, and checks what was written at the end: nothing comes after it.
func (p *diskTest) fails(t *testing.T, how string, fail fault) {
	t.Helper()
	p.inSync(t, rawVolume, nodes...)
	at := time.Now()
	mend := fail(t, p.away)
	p.until(t, "the replica is FAULTED", func() (bool, error) {
		rs, err := p.replicas(t, rawVolume)
		if err != nil {
			return false, err
		}
		r := rs[p.away]
		return r.State == "REPLICA_STATE_FAULTED" && !r.InSync && rs[p.home].InSync, fmt.Errorf("%+v", rs)
	})
	faulted := since(at)
	p.confirmed(t, 50)
	p.cutPower(t, Loss{}, p.away)
	mend()
	p.on(t, p.away) // with a disk that works again
	p.confirmed(t, 50)
	p.ask(t, order.Request{Op: order.Quiet})
	if rs, err := p.replicas(t, rawVolume); err != nil || rs[p.away].InSync || rs[p.away].State != "REPLICA_STATE_FAULTED" {
		t.Errorf("the replica that failed is %+v: %v", rs[p.away], err)
	}
	line := p.ask(t, order.Request{Op: order.Read, Path: p.attach(t, p.home, rawVolume)})
	if _, err := p.blocks.Check(line.Versions); err != nil {
		t.Errorf("%v\n%s", err, line.Out)
	}
	confirmed, _, _ := p.blocks.Confirms()
	say("disk: that of %s %s: its replica FAULTED after %v, also after its machine's return; %d writes confirmed, all there; %v; SEED=%d",
		p.away, how, faulted, confirmed, since(p.began), p.seed)
}

// pool is the disk with the replicas of a node.
func (c *cluster) pool(node string) *Disk { return c.machines[node].Disks[1] }
