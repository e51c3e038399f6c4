//go:build vm

package vm

import (
	"fmt"
	"testing"
	"time"

	"github.com/tandem-storage/tandem/deploy/vm/order"
)

// TestDisk lets the disk of a pool hang, at the far site and then under the coordinator, and fail its flushes: the volume goes
// on with the other replica, what hung returns by a resync, and what failed is FAULTED and stays out.
func TestDisk(t *testing.T) {
	p := &power{seed: seeded(), blocks: NewLedger(order.Places), home: "a1", away: "b1"}
	began := time.Now()
	p.cluster = found(t, "xfs", p.blocks.Note)
	if _, err := p.ctl(t, p.home, "volume", "create", rawVolume, "--size", "32Mi", "--replicas", "2"); err != nil {
		t.Fatal(err)
	}
	raw := p.attach(t, p.home, rawVolume)
	p.ask(t, order.Request{Op: order.Blocks, Path: raw})
	p.confirmed(t, 50)

	for _, n := range []string{p.away, p.home} {
		other := p.home
		if n == p.home {
			other = p.away
		}
		p.inSync(t, rawVolume, nodes...)
		at := time.Now()
		release := p.pool(n).Hang()
		p.inSync(t, rawVolume, other)
		evicted := since(at)
		p.confirmed(t, 50)
		release()
		p.inSync(t, rawVolume, nodes...)
		p.confirmed(t, 50)
		say("disk: that of %s hangs: its replica evicted after %v, the volume goes on, in sync again after %v", n, evicted, since(at))
	}

	p.inSync(t, rawVolume, nodes...)
	at := time.Now()
	cure := p.pool(p.away).FailFlushes()
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
	failed := cure()
	p.on(t, p.away) // with a disk that works again
	p.confirmed(t, 50)
	p.ask(t, order.Request{Op: order.Quiet})
	if rs, err := p.replicas(t, rawVolume); err != nil || rs[p.away].InSync || rs[p.away].State != "REPLICA_STATE_FAULTED" {
		t.Errorf("the replica that failed is %+v: %v", rs[p.away], err)
	}
	line := p.ask(t, order.Request{Op: order.Read, Path: raw})
	if _, err := p.blocks.Check(line.Versions); err != nil {
		t.Errorf("%v\n%s", err, line.Out)
	}
	confirmed, _, _ := p.blocks.Confirms()
	say("disk: that of %s fails flushes (%d): its replica FAULTED after %v, also after its machine's return; %d writes confirmed, all there; %v; SEED=%d",
		p.away, failed, faulted, confirmed, since(began), p.seed)
}

// pool is the disk with the replicas of a node.
func (c *cluster) pool(node string) *Disk { return c.machines[node].Disks[1] }
