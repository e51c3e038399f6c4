package e2e

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tandem-storage/tandem/deploy/lab"
)

// TestReplaceReplica lets the disk of a replica fail for good under a writer and replaces the replica by a new one on
// another node, which is filled in full, is identical and is taken over from. The old disk comes back as it was: what
// it holds is never current again.
func TestReplaceReplica(t *testing.T) {
	needRoot(t, "/dev/loop-control")
	need(t, "mkfs.ext4", "losetup")
	c := own(t, nil, func(u *lab.Undo, c *cluster) {
		for _, node := range []string{"a1", "b1", "a2", "b2"} {
			smallDisk(t, u, c, node)
		}
	})
	v := c.create(t, "mended", "200Mi")
	w := newWriter(t)
	uri := c.attach(t, v.home, v.name)
	w.start(t, uri)
	old := *c.inspect(t, v.home, v.name).replica(v.away)

	chapters(t, chapter{"a disk fails", func(t *testing.T) {
		m := c.mark(t, v.home)
		failDisk(t, c.Node(v.away))
		e := m.await(t, "replica evicted", 30*time.Second)
		w.more(t, 100, 20*time.Second)
		if r := c.inspect(t, v.home, v.name).replica(v.away); r.InSync || r.State != "REPLICA_STATE_FAULTED" || e.Reason != "disk failed" {
			t.Errorf("the replica is %+v after %s", r, e.raw)
		}
	}}, chapter{"what may not go stays", func(t *testing.T) {
		c.refused(t, v.home, 4, []string{"in sync"}, "volume", "replica", "replace", v.name, v.home, "--yes")
		c.refused(t, v.home, 3, []string{v.spare2}, "volume", "replica", "replace", v.name, v.spare2, "--yes")
		c.refused(t, v.home, 8, []string{"domain " + beta + " only"}, "volume", "replica", "replace", v.name, v.away, "--to-node", v.spare, "--yes")
	}}, chapter{"a new replica in its place", func(t *testing.T) {
		c.ctl(t, v.home, "volume", "replica", "replace", v.name, v.away, "--yes")
		if p := progressOf(t, c.inspect(t, v.home, v.name)); !strings.Contains(p, v.spare2) || !strings.Contains(p, "when the volume is detached") {
			t.Errorf("progress while attached: %q", p)
		}
		w.stop(t)
		c.detach(t, v.home, v.name)
		until(t, "the two are exchanged", 30*time.Second, func() (bool, error) {
			got := c.inspect(t, v.home, v.name)
			return got.replica(v.away) == nil, errors.New(progressOf(t, got))
		})
		got := c.inspect(t, v.home, v.name)
		if r := got.replica(v.spare2); len(got.Volume.Replicas) != 2 || r == nil || r.InSync || r.ID == old.ID || r.State != "REPLICA_STATE_STALE" {
			t.Fatalf("after the exchange: %+v", got.Volume.Replicas)
		}
		m := c.mark(t, v.home)
		uri = c.attach(t, v.home, v.name)
		w.start(t, uri)
		c.inSync(t, v.home, v.name, time.Minute, sorted(v.home, v.spare2)...)
		if e := m.await(t, "resync started", time.Second); e.Blocks != 200<<20>>16 {
			t.Errorf("%d blocks were compared, the volume has %d", e.Blocks, 200<<20>>16)
		}
		w.stop(t)
		w.check(t, uri)
		c.detach(t, v.home, v.name)
		c.identical(t, v.name)
	}}, chapter{"the old disk comes back", func(t *testing.T) {
		n := c.Node(v.away)
		if err := n.Kill(); err != nil {
			t.Fatal(err)
		}
		dir := filepath.Join(n.Dir, "data")
		// What the dead process had in the kernel goes shortly after it.
		until(t, "the failed file system is unmounted", 20*time.Second, func() (bool, error) {
			err := unix.Unmount(dir, 0)
			return err == nil, err
		})
		sh(t, "mount", "-o", "loop", filepath.Join(c.dir, v.away+".img"), dir)
		dirs := func() []string {
			found, _ := filepath.Glob(filepath.Join(n.Pool(), "replicas", "*")) // the pattern is right
			return found
		}
		if len(dirs()) != 1 {
			t.Fatalf("on the disk that came back: %v", dirs())
		}
		if err := c.StartNode(n); err != nil {
			t.Fatal(err)
		}
		c.online(t, v.away)
		until(t, "the old replica is removed", 30*time.Second, func() (bool, error) {
			return len(dirs()) == 0, errors.New(strings.Join(dirs(), " "))
		})
		if got := c.inspect(t, v.away, v.name); got.replica(v.away) != nil {
			t.Errorf("it is a member again: %+v", got.Volume.Replicas)
		}
	}}, chapter{"the new replica is taken over from", func(t *testing.T) {
		uri = c.attach(t, v.home, v.name)
		w.start(t, uri)
		if err := c.Kill(alpha); err != nil {
			t.Fatal(err)
		}
		w.failed(t, 20*time.Second)
		until(t, "deactivate alpha", 30*time.Second, func() (bool, error) {
			_, err := c.Ctl(t.Context(), c.Node(v.spare2), "cluster", "domains", "deactivate", "--name", alpha, "--peer-lost")
			return err == nil, err
		})
		uri = c.attach(t, v.away, v.name)
		w.check(t, uri)
		c.detach(t, v.away, v.name)
		if err := c.Start(alpha); err != nil { // its replica is to be removed
			t.Fatal(err)
		}
	}})
}

// failDisk makes the file system of a node's pool fail from now on.
func failDisk(t *testing.T, n *lab.Node) {
	t.Helper()
	d, err := os.Open(filepath.Join(n.Dir, "data"))
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	const (
		fsShutdown = 0x8004587d // FS_IOC_SHUTDOWN, as ext4 and XFS have it
		noLogFlush = 2
	)
	if err := unix.IoctlSetPointerInt(int(d.Fd()), fsShutdown, noLogFlush); err != nil {
		t.Fatal(err)
	}
}

func progressOf(t *testing.T, v view) string {
	t.Helper()
	var p struct {
		Volume struct {
			Progress string `json:"progress"`
		} `json:"volume"`
	}
	if err := json.Unmarshal([]byte(v.raw), &p); err != nil {
		t.Fatal(err)
	}
	return p.Volume.Progress
}

func sorted(nodes ...string) []string {
	slices.Sort(nodes)
	return nodes
}
