package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tandem-storage/tandem/deploy/lab"
)

// groupSnapshotView is what `volume snapshot inspect-group` tells.
type groupSnapshotView struct {
	ID        string         `json:"id"`
	Name      string         `json:"name"`
	State     string         `json:"state"`
	Snapshots []snapshotView `json:"snapshots"`
}

func (c *cluster) groupSnapshots(t *testing.T, ask string) []groupSnapshotView {
	t.Helper()
	var l struct {
		Groups []groupSnapshotView `json:"group_snapshots"`
	}
	out := c.ctl(t, ask, "volume", "snapshot", "list-groups", "-o", "json")
	if err := json.Unmarshal([]byte(out), &l); err != nil {
		t.Fatalf("volume snapshot list-groups printed %q: %v", out, err)
	}
	return l.Groups
}

// moment makes volumes of a group snapshot's members and returns how many writes of the chain they have, which have to be all up to some one, on every replica.
func (c *cluster) moment(t *testing.T, ask string, g groupSnapshotView, volumes ...string) int {
	t.Helper()
	tags := map[string]map[int]bool{} // by domain: each has an image of its own
	for _, v := range volumes {
		name := g.Name + "-" + v
		c.ctl(t, ask, "volume", "snapshot", "restore", g.Name+"."+v, name, "--timeout", "60s")
		for _, r := range c.inspect(t, ask, name).Volume.Replicas {
			if tags[r.Domain] == nil {
				tags[r.Domain] = map[int]bool{}
			}
			for tag := range c.tags(t, ask, name, r.Node) {
				tags[r.Domain][tag] = true
			}
		}
		c.ctl(t, ask, "volume", "delete", name, "--yes", "--wait", "--timeout", "60s")
	}
	n := -1
	for d, has := range tags {
		for tag := range len(has) {
			if !has[tag] {
				t.Errorf("%s: of %d tags in %s tag %d is missing: that is no image of one moment", g.Name, len(has), d, tag)
			}
		}
		if n >= 0 && n != len(has) && len(g.Snapshots[0].Holders) == 2 && len(g.Snapshots[1].Holders) == 2 {
			t.Errorf("%s: one domain has %d tags, another %d", g.Name, n, len(has))
		}
		n = max(n, len(has))
	}
	return n
}

// TestGroupSnapshots has a consumer whose writes depend on each other across two volumes that are attached on two nodes, and takes snapshots of both and of one that is not attached, asked anywhere. Whoever is
// asked is killed in the middle. Each group snapshot that there is then is of one moment, and of the others nothing is left.
func TestGroupSnapshots(t *testing.T) {
	needDisks(t, "mkfs.xfs")
	c := own(t, nil, func(u *lab.Undo, c *cluster) { disks(t, u, c, "mkfs.xfs", "-q", "-K") })
	for _, v := range []string{"data", "log", "idle"} {
		c.create(t, v, "64Mi")
	}
	w := newChain(t)
	w.start(t, c.attach(t, "a1", "data"), c.attach(t, "a2", "log"))
	volumes := "data,log,idle"
	asked := map[string]int{} // what the ledger had before
	take := func(t *testing.T, ask, name string) groupSnapshotView {
		t.Helper()
		asked[name] = len(w.acks(t))
		var r struct {
			Group groupSnapshotView `json:"group_snapshot"`
		}
		out := c.ctl(t, ask, "volume", "snapshot", "create-group", name, "--volumes", volumes, "-o", "json", "--timeout", "60s")
		if err := json.Unmarshal([]byte(out), &r); err != nil {
			t.Fatalf("create-group printed %q: %v", out, err)
		}
		return r.Group
	}
	check := func(t *testing.T, g groupSnapshotView) {
		t.Helper()
		n := c.moment(t, "a1", g, "data", "log")
		if n < asked[g.Name] {
			t.Errorf("%s has %d writes, %d were confirmed before it was asked for", g.Name, n, asked[g.Name])
		}
		t.Logf("%s has the first %d writes", g.Name, n)
	}
	chapters(t, chapter{"asked anywhere", func(t *testing.T) {
		for i, ask := range []string{"a1", "a2", "b1", "b2", "a1", "b2"} {
			began := time.Now()
			g := take(t, ask, fmt.Sprintf("g%d", i))
			if len(g.Snapshots) != 3 || g.State != "SNAPSHOT_STATE_READY" || slices.ContainsFunc(g.Snapshots, func(s snapshotView) bool { return len(s.Holders) != 2 }) {
				t.Errorf("%+v", g)
			}
			w.more(t, 50, 20*time.Second)
			t.Logf("writes paused for %v", w.pause(t, began))
		}
		if n := c.inspect(t, "b1", "idle").Volume.Attachment.Node; n != "" {
			t.Errorf("the idle volume stays attached on %s", n)
		}
		c.refused(t, "b1", 4, []string{"group snapshot"}, "volume", "snapshot", "delete", "g0.log", "--yes")
		c.refused(t, "b1", 2, []string{"twice"}, "volume", "snapshot", "create-group", "x", "--volumes", "data,log,data")
		c.refused(t, "b1", 6, []string{"g0"}, "volume", "snapshot", "create-group", "g0", "--volumes", "data,log")
		c.ctl(t, "b2", "group", "create", "cg", "--volumes", volumes)
		asked["g6"] = len(w.acks(t))
		c.ctl(t, "b2", "volume", "snapshot", "create-group", "g6", "--group", "cg", "--timeout", "60s")
		c.ctl(t, "b2", "group", "delete", "cg")
		all := c.groupSnapshots(t, "b1")
		if len(all) != 7 || len(all[6].Snapshots) != 3 {
			t.Errorf("%+v", all)
		}
		for _, g := range all {
			check(t, g)
		}
	}}, chapter{"whoever is asked dies", func(t *testing.T) {
		rng := seeded(t)
		wait := []string{"b1", "b2"}
		for i := range 6 {
			ask, name := wait[i%2], fmt.Sprintf("k%d", i)
			asked[name] = len(w.acks(t))
			ended := make(chan error, 1)
			go func() {
				_, err := c.Ctl(t.Context(), c.Node(ask), "volume", "snapshot", "create-group", name, "--volumes", volumes, "--timeout", "30s")
				ended <- err
			}()
			select { // at any time before, in and after it
			case <-time.After(time.Duration(rng.IntN(1200)) * time.Millisecond):
			case <-t.Context().Done():
			}
			if err := c.Node(ask).Kill(); err != nil {
				t.Fatal(err)
			}
			err := <-ended
			w.more(t, 50, 30*time.Second)
			t.Logf("%s: %v", name, err)
			if err := c.StartNode(c.Node(ask)); err != nil {
				t.Fatal(err)
			}
			c.online(t, ask)
			until(t, "the idle volume is not attached", 30*time.Second, func() (bool, error) {
				n := c.inspect(t, "a1", "idle").Volume.Attachment.Node
				if n == ask { // it had attached it for the cut itself, and has forgotten
					c.attach(t, ask, "idle")
					c.detach(t, ask, "idle")
				}
				return n == "", fmt.Errorf("it is on %s", n)
			})
			for _, v := range []string{"data", "log"} {
				until(t, v+" is in sync", time.Minute, func() (bool, error) {
					return !slices.ContainsFunc(c.inspect(t, "a1", v).Volume.Replicas, func(r lab.ReplicaView) bool { return !r.InSync }), nil
				})
			}
		}
		until(t, "what was not taken is cleaned up", 30*time.Second, func() (bool, error) {
			for _, g := range c.groupSnapshots(t, "a1") {
				if g.State != "SNAPSHOT_STATE_READY" {
					return false, fmt.Errorf("%s is %s", g.Name, g.State)
				}
			}
			return true, nil
		})
		ready := 0
		for _, g := range c.groupSnapshots(t, "a1") {
			if strings.HasPrefix(g.Name, "k") {
				ready++
				check(t, g)
			}
		}
		t.Logf("%d of 6 were taken", ready)
		take(t, "b1", "k0") // taken, or its name is free
		w.stop(t)           // before its volumes are full
	}}, chapter{"deleted", func(t *testing.T) {
		for _, g := range c.groupSnapshots(t, "b2") {
			c.ctl(t, "b2", "volume", "snapshot", "delete-group", g.Name, "--yes")
		}
		until(t, "nothing is left of them", 3*time.Minute, func() (bool, error) { // what failed is looked for a minute later
			out := c.ctl(t, "a1", "volume", "snapshot", "list", "-o", "json")
			var l struct {
				Snapshots []snapshotView `json:"snapshots"`
			}
			if err := json.Unmarshal([]byte(out), &l); err != nil || len(l.Snapshots) > 0 {
				return false, errors.New(out)
			}
			for _, n := range []string{"a1", "a2", "b1", "b2"} {
				dirs, err := filepath.Glob(filepath.Join(c.Node(n).Pool(), "*", "*", "snap", "*"))
				if err != nil || len(dirs) > 0 {
					return false, fmt.Errorf("%s has %v, %w", n, dirs, err)
				}
			}
			return true, nil
		})
	}})
	for n, v := range map[string]string{"a1": "data", "a2": "log"} {
		c.detach(t, n, v)
		c.identical(t, v)
	}
}
