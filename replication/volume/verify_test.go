package volume

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"time"

	"github.com/tandem-storage/tandem/datapath/block"
	"github.com/tandem-storage/tandem/replication"
)

// TestVerifyHeals: a verify finds what is damaged in a replica that nobody reads, and it is rewritten.
func TestVerifyHeals(t *testing.T) {
	c := newTestCluster(t, 16<<20)
	a, b := c.nodes[0], c.nodes[1]
	disks := c.rottenDisks()
	v := a.attach()
	if err := block.WriteAt(v, bytes.Repeat([]byte{7}, 64<<10), 5<<20, 0); err != nil {
		t.Fatal(err)
	}
	disks[1].rot(5<<20 + 4096)
	unlimited := int64(0)
	if err := v.StartVerify(&unlimited); err != nil {
		t.Fatal(err)
	}
	c.eventually("the verify is complete", func() bool { return v.Status().Verify.Last != nil })
	if s := v.Status(); s.Health[b.rep] != (Health{Healed: 1}) || s.Health[a.rep] != (Health{}) || s.Verify.Running != nil {
		t.Errorf("health %+v, verify %+v", s.Health, s.Verify)
	}
	if r := v.Status().Verify.Last; !r.Equal() || len(r.Sides) != 2 || r.Healed != 1 || r.Size != 16<<20 {
		t.Errorf("found %+v", r)
	}
	if _, healed := disks[1].counts(); healed != 1 {
		t.Errorf("the damaged block was written %d times", healed)
	}
	detach(t, a)
	c.compare()
}

// TestVerifyDiffers: what differs and is vouched for on both sides is not read any more, and nobody
// picks one, until it is written.
func TestVerifyDiffers(t *testing.T) {
	c := newTestCluster(t, 16<<20)
	a, b := c.nodes[0], c.nodes[1]
	told := make(chan *Pass, 2)
	a.m.o.Verified = func(_ context.Context, _ replication.VolumeID, p *Pass) error {
		told <- p
		return nil
	}
	v := a.attach()
	const at = 3<<20 + 8192
	p := bytes.Repeat([]byte{9}, 4096)
	if err := block.WriteAt(b.st.mem, p, at, 0); err != nil {
		t.Fatal(err)
	}
	if err := v.StartVerify(nil); err != nil {
		t.Fatal(err)
	}
	c.eventually("the verify is complete", func() bool { return v.Status().Verify.Last != nil })
	if r := v.Status().Verify.Last; r.Equal() || len(r.Sides) != 2 || r.Sides[0].Digest == nil || r.Sides[1].Digest == nil || r.Differs != 1 {
		t.Errorf("found %+v", r)
	}
	if d := v.Status().Damage; len(d.Differs) != 1 || d.Differs[0] != at || len(d.Lost) != 0 {
		t.Errorf("damage %+v", d)
	}
	got := make([]byte, 4096)
	if err := block.ReadAt(v, got, at); !errors.Is(err, block.ErrIO) {
		t.Errorf("read of a block that differs: %v", err)
	}
	if err := block.ReadAt(v, got, at+4096); err != nil {
		t.Errorf("read of the next one: %v", err)
	}
	if err := block.ReadAt(a.st.mem, got, at); err != nil || !bytes.Equal(got, make([]byte, 4096)) {
		t.Errorf("the coordinator's own replica was changed: %v", err)
	}
	if err := block.ReadAt(b.st.mem, got, at); err != nil || !bytes.Equal(got, p) {
		t.Errorf("the other replica was changed: %v", err)
	}
	p[0] = 1
	if err := block.WriteAt(v, p, at, 0); err != nil {
		t.Fatal(err)
	}
	if err := block.ReadAt(v, got, at); err != nil || !bytes.Equal(got, p) {
		t.Errorf("read after it was written: %v", err)
	}
	c.eventually("nothing is damaged", func() bool { return len(v.Status().Damage.Differs) == 0 })
	if err := v.StartVerify(nil); err != nil {
		t.Fatal(err)
	}
	for i, equal := range []bool{false, true} { // a digest is of what was read: the same content, the same digest
		if p := <-told; p.Equal() != equal || p.Ended.Before(p.Began) {
			t.Errorf("verify %d was told as %+v", i, p)
		}
	}
	detach(t, a)
	c.compare()
}

// TestVerifySchedule: an attached volume is verified when it is due, again and again.
func TestVerifySchedule(t *testing.T) {
	c := newTestCluster(t, 4<<20)
	a := c.nodes[0]
	a.m.o.Verify = VerifySchedule{Every: time.Millisecond}
	v := a.attach()
	c.eventually("a verify is complete", func() bool { return v.Status().Verify.Last != nil })
	first := v.Status().Verify.Last
	c.eventually("another one is", func() bool { return v.Status().Verify.Last != first })
	detach(t, a)
	if err := v.StartVerify(nil); err == nil {
		t.Error("a volume that is not attached is verified")
	}
}

// TestVerifySpread: volumes that come at once are not verified at once, nor any later than they should.
func TestVerifySpread(t *testing.T) {
	const week = int64(7 * 24 * time.Hour)
	m := &Manager{o: Options{Verify: VerifySchedule{Every: time.Duration(week)}}}
	var last int64
	for i := range 4 {
		v := &Volume{m: m}
		v.id[0] = byte(i * 64)
		due := v.firstVerify(1000) - 1000
		if want := week / 4 * int64(i); due < want-1e9 || due > want+1e9 || due < last {
			t.Errorf("volume %d of 4 is due after %v", i, time.Duration(due))
		}
		last = due
	}
}

// TestSuspectDisk: a replica of which too many blocks a day are healed is suspect, for a day.
func TestSuspectDisk(t *testing.T) {
	var d healDay
	d.add(suspectHeals - 1)
	if d.suspect() {
		t.Error("suspect too early")
	}
	d.add(1)
	if !d.suspect() {
		t.Error("not suspect")
	}
	d.began = d.began.Add(-24 * time.Hour)
	if d.suspect() {
		t.Error("suspect after a day")
	}
	if d.add(1); d.n != 1 {
		t.Errorf("%d heals on the second day", d.n)
	}
}
