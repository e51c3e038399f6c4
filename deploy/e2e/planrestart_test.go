package e2e

import (
	"errors"
	"strings"
	"testing"
	"time"
)

// TestPlanRestart restarts the daemons of both sites one after the other, under a file system that is written, when the storage layer gives leave. The writer sees no error, and
// nobody has leave while another one has it, whose devices would end, or who has the last in-sync copy.
func TestPlanRestart(t *testing.T) {
	needRoot(t, "/dev/fuse", "/dev/loop-control")
	need(t, "mkfs.xfs", "xfs_repair", "mount", "umount", python)
	c := own(t, nil)
	v := c.create(t, "rolls", "512Mi")
	ask := v.spare2 // is not restarted
	c.devices(t, v.home)
	w := newFileWriter(t, c.attach(t, v.home, v.name, "device"))
	sh(t, "mkfs.xfs", "-q", "-f", w.dev)
	w.mount(t)
	w.start(t)
	granted := func(t *testing.T, node string) {
		t.Helper()
		until(t, node+" has leave", time.Minute, func() (bool, error) {
			_, err := c.Ctl(t.Context(), c.Node(ask), "cluster", "plan-restart", node)
			return err == nil, err
		})
	}
	waits := func(t *testing.T, node string, words ...string) {
		t.Helper()
		until(t, node+" waits", time.Minute, func() (bool, error) {
			out, err := c.Ctl(t.Context(), c.Node(ask), "cluster", "plan-restart", node)
			if err == nil {
				c.ctl(t, ask, "cluster", "plan-restart", node, "--cancel")
				return false, errors.New(out)
			}
			for _, word := range words {
				if !strings.Contains(err.Error(), word) {
					return false, err
				}
			}
			return true, nil
		})
	}
	chapters(t, chapter{"each in its turn", func(t *testing.T) {
		for _, node := range []string{v.away, v.home, v.spare, v.away, v.home} {
			granted(t, node)
			for _, other := range []string{v.away, v.home, v.spare} {
				if other != node {
					c.refused(t, ask, 4, []string{"node " + node + " has leave", "--cancel"}, "cluster", "plan-restart", other)
				}
			}
			began := time.Now()
			if err := c.Node(node).Stop(); err != nil {
				t.Fatal(err)
			}
			if err := c.StartNode(c.Node(node)); err != nil {
				t.Fatal(err)
			}
			w.more(t, 5, time.Minute)
			t.Logf("%s restarted: longest time without a confirmed fsync %v", node, w.pause(t, began).Round(time.Millisecond))
			c.online(t, node)
		}
	}}, chapter{"the last copy", func(t *testing.T) {
		if err := c.Node(v.away).Kill(); err != nil {
			t.Fatal(err)
		}
		waits(t, v.home, "volume "+v.name+": its last in-sync copy is there")
		w.more(t, 5, time.Minute)
		if err := c.StartNode(c.Node(v.away)); err != nil {
			t.Fatal(err)
		}
		granted(t, v.home)
		c.ctl(t, ask, "cluster", "plan-restart", v.home, "--cancel")
	}}, chapter{"devices that end", func(t *testing.T) {
		other := c.create(t, "ends", "64Mi")
		c.attach(t, v.spare, other.name, "fuseloop")
		waits(t, v.spare, "1 volumes are attached there with devices that end")
		c.detach(t, v.spare, other.name)
		granted(t, v.spare)
		c.ctl(t, ask, "cluster", "plan-restart", v.spare, "--cancel")
	}}, chapter{"nothing is lost", func(t *testing.T) {
		w.stop(t)
		w.check(t)
		w.unmount(t)
		let(t, w.dev)
		sh(t, "xfs_repair", "-n", w.dev)
		c.detach(t, v.home, v.name)
		c.identical(t, v.name)
	}})
	c.refused(t, ask, 3, []string{"no such node"}, "cluster", "plan-restart", "nobody")
}
