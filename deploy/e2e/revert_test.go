package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tandem-storage/tandem/datapath/block"
	"github.com/tandem-storage/tandem/datapath/block/blocktest"
	"github.com/tandem-storage/tandem/deploy/lab"
)

// image is what a volume has, with holes; each block that is none begins with tag.
func image(rng *rand.Rand, size int, tag string) []byte {
	p := make([]byte, size)
	for off := 0; off < size; {
		n := min((1+rng.IntN(64))*block.SectorSize, size-off)
		if rng.IntN(4) > 0 {
			for i := off; i < off+n; i += 8 {
				v := rng.Uint64()
				for j := range 8 {
					p[i+j] = byte(v >> (8 * j))
				}
			}
			for i := off; i < off+n; i += block.SectorSize {
				copy(p[i:], tag)
			}
		}
		off += n
	}
	return p
}

// writeImage gives a device all of an image.
func writeImage(t *testing.T, dev string, p []byte) {
	t.Helper()
	f, err := os.OpenFile(dev, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.Write(p)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		t.Fatal(err)
	}
}

// isImage compares every byte of a volume, as node shows it, with an image.
func (c *cluster) isImage(t *testing.T, node, volume string, want []byte) {
	t.Helper()
	f, err := os.Open(c.attach(t, node, volume, "fuseloop"))
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(f)
	if err = errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	if len(got) != len(want) {
		t.Fatalf("%s has %d bytes on %s, want %d", volume, len(got), node, len(want))
	}
	for off := 0; off < len(want); off += block.SectorSize {
		if g, w := got[off:off+block.SectorSize], want[off:off+block.SectorSize]; !bytes.Equal(g, w) {
			t.Fatalf("%s on %s has %q... at %d, want %q...", volume, node, g[:8], off, w[:8])
		}
	}
	c.detach(t, node, volume)
}

// TestRevert puts a volume back to a snapshot, undisturbed and with daemons killed when a part of it is put back: whoever does it, whoever only has a replica, and both together with
// whoever was asked. Until it has come to its end nobody gets the volume; then it has the snapshot, byte by byte, on both replicas.
func TestRevert(t *testing.T) {
	needDisks(t, "mkfs.xfs")
	var all map[string]*disk
	c := own(t, nil, func(u *lab.Undo, c *cluster) { all = disks(t, u, c, "mkfs.xfs", "-q", "-K") })
	const size = 48 << 20
	rng := seeded(t)
	v := c.create(t, "data", "48Mi")
	both := sorted(v.home, v.away)
	old := image(rng, size, "the old.")
	writeImage(t, c.attach(t, v.home, v.name, "fuseloop"), old)
	c.ctl(t, v.home, "volume", "snapshot", "create", v.name, "monday", "--timeout", "30s")
	revert := []string{"volume", "snapshot", "revert", v.name, "monday", "--yes"}
	c.refused(t, v.spare, 4, []string{"attached on node " + v.home}, revert...)
	c.detach(t, v.home, v.name)

	// change has the volume hold something else, in sync on both, and returns what.
	change := func(t *testing.T) []byte {
		t.Helper()
		p := image(rng, size, "the new.")
		writeImage(t, c.attach(t, v.home, v.name, "fuseloop"), p)
		c.inSync(t, v.home, v.name, time.Minute, both...)
		c.detach(t, v.home, v.name)
		return p
	}
	// isOld looks at it on both sides, and at both replicas.
	isOld := func(t *testing.T) {
		t.Helper()
		c.isImage(t, v.away, v.name, old)
		c.isImage(t, v.home, v.name, old)
		c.attach(t, v.home, v.name)
		c.inSync(t, v.home, v.name, time.Minute, both...)
		m := c.mark(t, v.home)
		c.verify(t, v)
		if e := m.await(t, "verify complete", time.Minute); !strings.Contains(e.raw, `"equal":true`) {
			t.Errorf("verify: %s", e.raw)
		}
		c.detach(t, v.home, v.name)
		c.identical(t, v.name)
	}
	// halfway begins a revert, asked of a node, and returns who does it, and who else has a replica, when some of the snapshot has been put back and both disks are held. The command ends in told.
	halfway := func(t *testing.T, ask string) (doer, other string, told chan error) {
		t.Helper()
		for _, n := range both {
			var seen atomic.Int32
			all[n].undo.Add("hang of "+all[n].path, func() error { all[n].mended(); return nil })
			all[n].hang.Pause(blocktest.BeforeStart, func(r *block.Request) bool {
				return r.Op == block.OpWrite && bytes.HasPrefix(r.Data, []byte("the old.")) && seen.Add(1) > 8
			})
		}
		told = make(chan error, 1)
		go func() {
			_, err := c.Ctl(t.Context(), c.Node(ask), revert...)
			told <- err
		}()
		until(t, "both disks hang", 30*time.Second, func() (bool, error) {
			return all[v.home].hang.Held() > 0 && all[v.away].hang.Held() > 0, fmt.Errorf("held: %d, %d", all[v.home].hang.Held(), all[v.away].hang.Held())
		})
		at := c.inspect(t, v.spare, v.name).Volume.Attachment
		if at.Node == "" {
			t.Fatal("it is not attached while it is put back")
		}
		if other = v.away; at.Node == v.away {
			other = v.home
		}
		return at.Node, other, told
	}
	kill := func(t *testing.T, nodes ...string) {
		t.Helper()
		for _, n := range nodes {
			if d := all[n]; d != nil {
				d.mended() // a process that waits for its disk does not end
			}
			if err := c.Node(n).Kill(); err != nil {
				t.Fatal(err)
			}
		}
	}
	start := func(t *testing.T, nodes ...string) {
		t.Helper()
		for _, n := range nodes {
			if err := c.StartNode(c.Node(n)); err != nil {
				t.Fatal(err)
			}
		}
		for _, n := range nodes {
			c.online(t, n)
		}
	}
	// notYet wants that nobody gets at a volume that is partly put back.
	notYet := func(t *testing.T, ask string) {
		t.Helper()
		said := []string{"being put back to snapshot monday"}
		c.refused(t, ask, 4, said, "host", "attach", v.name)
		c.refused(t, ask, 4, said, "volume", "snapshot", "create", v.name, "tuesday")
		c.refused(t, ask, 4, said, "volume", "snapshot", "delete", "monday", "--yes")
	}
	again := func(t *testing.T, ask string) {
		t.Helper()
		until(t, "the revert", time.Minute, func() (bool, error) {
			_, err := c.Ctl(t.Context(), c.Node(ask), revert...)
			return err == nil, err
		})
	}
	chapters(t, chapter{"undisturbed", func(t *testing.T) {
		p := change(t)
		out := c.ctl(t, v.spare, revert...)
		isOld(t)
		// What was before is a snapshot, and to be had again.
		_, before, _ := strings.Cut(strings.TrimSpace(out), "what it had before is snapshot ")
		c.ctl(t, v.spare2, "volume", "snapshot", "revert", v.name, before, "--yes")
		c.isImage(t, v.away, v.name, p)
		c.ctl(t, v.away, revert...)
		isOld(t)
	}}, chapter{"who does it is killed", func(t *testing.T) {
		change(t)
		doer, other, told := halfway(t, v.spare)
		notYet(t, doer)
		kill(t, doer)
		all[other].mended()
		if err := <-told; err == nil {
			t.Fatal("the revert has ended")
		}
		notYet(t, other)
		c.offline(t, other, doer)
		again(t, other)
		c.isImage(t, other, v.name, old)
		start(t, doer)
		c.attach(t, other, v.name)
		c.inSync(t, other, v.name, time.Minute, both...)
		c.detach(t, other, v.name)
		isOld(t)
	}}, chapter{"the other replica's node is killed", func(t *testing.T) {
		change(t)
		doer, other, told := halfway(t, v.spare2)
		kill(t, other)
		all[doer].mended()
		if err := <-told; err != nil {
			t.Fatal(err)
		}
		c.isImage(t, doer, v.name, old)
		start(t, other)
		c.attach(t, doer, v.name)
		c.inSync(t, doer, v.name, time.Minute, both...)
		c.detach(t, doer, v.name)
		isOld(t)
	}}, chapter{"all are killed", func(t *testing.T) {
		change(t)
		doer, other, told := halfway(t, v.spare)
		kill(t, other, doer, v.spare)
		if err := <-told; err == nil {
			t.Fatal("the revert has ended")
		}
		start(t, v.spare, other, doer)
		notYet(t, doer)
		again(t, v.spare2)
		isOld(t)
		for _, n := range both {
			if s := c.ctl(t, n, "audit", "list"); strings.Count(s, "volume revert") < 2 {
				t.Errorf("the audit trail does not tell of reverts:\n%s", s)
			}
		}
	}})
}
