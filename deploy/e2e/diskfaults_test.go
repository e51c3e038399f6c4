package e2e

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/tandem-storage/tandem/deploy/lab"
)

// failedBound and hungBound are how long writes may pause for the eviction of a replica whose disk fails, of which it tells at once, and of
// one whose disk hangs: opTimeout (10 s), and what pauseBound is more than suspectTimeout.
const (
	failedBound = 5 * time.Second
	hungBound   = 15 * time.Second
)

// TestDiskHangs (F4) lets the disk of the remote replica hang under a writer and then that of the coordinator's node: the replica is evicted after
// opTimeout, the volume goes on with the other one without an error, and what hung returns by a resync when the disk answers again.
func TestDiskHangs(t *testing.T) {
	needDisks(t, "mkfs.xfs")
	var all map[string]*disk
	c := own(t, nil, func(u *lab.Undo, c *cluster) { all = disks(t, u, c, "mkfs.xfs", "-q", "-K") })
	v := c.create(t, "hung", "64Mi")
	w := newWriter(t)
	uri := c.attach(t, v.home, v.name)
	w.start(t, uri)
	for _, x := range []struct{ what, ill, other string }{{"remote replica", v.away, v.home}, {"coordinator's node", v.home, v.away}} {
		chapters(t, chapter{x.what, func(t *testing.T) {
			m, at := c.mark(t, v.home), time.Now()
			all[x.ill].hangs()
			e := m.await(t, "replica evicted", 30*time.Second)
			if e.Reason != "does not answer a request" {
				t.Errorf("evicted because %q", e.Reason)
			}
			w.more(t, 100, 20*time.Second)
			c.inSync(t, v.home, v.name, time.Second, x.other)
			pause := w.pause(t, at)
			if pause < 9*time.Second || pause > hungBound {
				t.Errorf("writes paused for %v, opTimeout is 10 s", pause)
			}
			all[x.ill].mended()
			at = time.Now()
			c.inSync(t, v.home, v.name, time.Minute, sorted(v.home, v.away)...)
			t.Logf("writes paused for %v; in sync %v after the disk answered again", pause.Round(time.Millisecond), time.Since(at).Round(time.Millisecond))
			w.more(t, 100, 20*time.Second)
		}})
	}
	w.stop(t)
	w.check(t, uri)
	c.detach(t, v.home, v.name)
	c.identical(t, v.name)
}

// TestDiskFails (F3) lets the disk of the remote replica answer every request by EIO under a writer, and, when that replica was replaced, the disk of
// the coordinator's node: the replica is FAULTED and evicted, the volume goes on with the other one without an error, and a new one takes its place.
// The old disk comes back with what it has, which nobody asks for.
func TestDiskFails(t *testing.T) {
	needDisks(t, "mkfs.ext4")
	var all map[string]*disk
	c := own(t, nil, func(u *lab.Undo, c *cluster) { all = disks(t, u, c, "mkfs.ext4", "-q", "-F", "-m", "0") })
	v := c.create(t, "failed", "64Mi")
	w := newWriter(t)
	uri := c.attach(t, v.home, v.name)
	w.start(t, uri)
	for _, x := range []struct{ what, ill, other, then string }{
		{"remote replica", v.away, v.home, v.spare2}, {"coordinator's node", v.home, v.spare2, v.spare},
	} {
		chapters(t, chapter{x.what, func(t *testing.T) {
			m, at := c.mark(t, v.home), time.Now()
			all[x.ill].fails()
			e := m.await(t, "replica evicted", 30*time.Second)
			w.more(t, 100, 20*time.Second)
			c.inSync(t, v.home, v.name, time.Second, x.other)
			if r := c.inspect(t, v.home, v.name).replica(x.ill); r.State != "REPLICA_STATE_FAULTED" || e.Reason != "disk failed" {
				t.Errorf("the replica is %+v after %s", r, e.raw)
			}
			pause := w.pause(t, at)
			if pause > failedBound {
				t.Errorf("writes paused for %v", pause)
			}
			t.Logf("writes paused for %v", pause.Round(time.Millisecond))
		}}, chapter{x.what + " is replaced", func(t *testing.T) {
			c.ctl(t, v.home, "volume", "replica", "replace", v.name, x.ill, "--yes")
			w.stop(t)
			c.detach(t, v.home, v.name)
			until(t, "the two are exchanged", 30*time.Second, func() (bool, error) {
				got := c.inspect(t, v.home, v.name)
				return got.replica(x.ill) == nil && got.replica(x.then) != nil, errors.New(got.raw)
			})
			uri = c.attach(t, v.home, v.name)
			w.start(t, uri)
			c.inSync(t, v.home, v.name, time.Minute, sorted(x.other, x.then)...)
		}}, chapter{"its disk comes back", func(t *testing.T) {
			if x.ill == v.home { // its daemon serves the consumer
				w.stop(t)
				w.check(t, uri)
				c.detach(t, v.home, v.name)
			}
			n, d := c.Node(x.ill), all[x.ill]
			if err := errors.Join(n.Kill(), d.unmount()); err != nil {
				t.Fatal(err)
			}
			d.mended()
			d.mount(t)
			if err := c.StartNode(n); err != nil {
				t.Fatal(err)
			}
			c.online(t, x.ill)
			until(t, "the old replica is removed", 30*time.Second, func() (bool, error) {
				dirs, _ := filepath.Glob(filepath.Join(n.Pool(), "replicas", "*")) // the pattern is right
				return len(dirs) == 0, errors.New(strings.Join(dirs, " "))
			})
		}})
	}
	uri = c.attach(t, v.home, v.name)
	w.check(t, uri)
	c.detach(t, v.home, v.name)
	c.identical(t, v.name)
}
