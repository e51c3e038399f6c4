package e2e

import (
	"encoding/json"
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/tandem-storage/tandem/deploy/lab"
)

// TestKVDBRolledBack restores the kvdb from a backup under a writer: I/O goes on, nothing is attached or changed until the import, which shows the
// truth again; nothing is lost, and the evicted replica, which the backup calls in sync, is never taken for it.
func TestKVDBRolledBack(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"etcd", "raft"} {
		t.Run(kind, func(t *testing.T) { rolledBack(t, kind) })
	}
}

func rolledBack(t *testing.T, kind string) {
	c := own(t, func(s *lab.Spec) { s.KVDB = kind })
	v, idle := c.create(t, "rolled", "64Mi"), c.create(t, "idle", "64Mi")
	w, wi := newWriter(t), newWriter(t)
	uri := c.attach(t, v.home, v.name)
	w.start(t, uri)
	wi.start(t, c.attach(t, idle.away, idle.name))
	backup := t.TempDir()

	chapters(t, chapter{"a backup, and the world goes on", func(t *testing.T) {
		c.restartKVDB(t, func() error { return c.SaveKVDB(backup) })
		wi.stop(t)
		c.detach(t, idle.away, idle.name)
		uri := c.attach(t, idle.home, idle.name) // in the other domain
		wi.check(t, uri)
		wi.start(t, uri)
		wi.stop(t)
		c.detach(t, idle.home, idle.name)
		m := c.mark(t, v.home)
		if err := c.Node(v.away).Kill(); err != nil {
			t.Fatal(err)
		}
		m.await(t, "replica evicted", 60*time.Second)
		w.more(t, 200, 20*time.Second)
	}}, chapter{"the backup is restored", func(t *testing.T) {
		m := c.mark(t, v.home)
		c.restartKVDB(t, func() error { return c.RestoreKVDB(backup) })
		w.more(t, 200, 20*time.Second)
		m.await(t, "kvdb knows less than a replica", 100*time.Second)
		if err := c.StartNode(c.Node(v.away)); err != nil {
			t.Fatal(err)
		}
		c.online(t, v.away)
		if s := c.ctl(t, v.home, "status"); !strings.Contains(s, "KVDB_ROLLBACK") || !strings.Contains(s, "tandemctl kvdb import") {
			t.Errorf("the status does not tell:\n%s", s)
		}
		for _, name := range []string{v.name, idle.name} {
			until(t, "a stall of "+name, time.Minute, func() (bool, error) {
				s := c.inspect(t, v.spare, name).stall()
				return s == "KVDB_ROLLBACK", errors.New(s)
			})
			c.refused(t, v.spare, 4, []string{"KVDB_ROLLBACK", "tandemctl kvdb import"}, "host", "attach", name)
			c.refused(t, v.away, 4, []string{"KVDB_ROLLBACK", "tandemctl kvdb import"}, "host", "attach", name)
			c.refused(t, v.away, 4, []string{"KVDB_ROLLBACK"}, "volume", "delete", name, "--yes")
		}
		w.more(t, 500, 20*time.Second)
	}}, chapter{"the import", func(t *testing.T) {
		c.refused(t, v.home, 2, []string{"--yes"}, "kvdb", "import", "--all")
		c.ctl(t, v.spare, "kvdb", "import", "--all", "--dry-run")
		if s := c.inspect(t, v.spare, v.name).stall(); s != "KVDB_ROLLBACK" {
			t.Errorf("after a dry run it stalls for %q", s)
		}
		t.Log(c.ctl(t, v.spare, "kvdb", "import", "--all", "--yes"))
		if out := c.ctl(t, v.spare, "kvdb", "import", "--all", "--yes"); !strings.Contains(out, "nothing to import") {
			t.Errorf("imported again: %s", out)
		}
		c.inSync(t, v.home, v.name, time.Minute, sorted(v.home, v.away)...) // it is resynced again: the coordinator may change things
		w.more(t, 200, 20*time.Second)
		w.stop(t)
		w.check(t, uri)
		c.detach(t, v.home, v.name)
		c.identical(t, v.name)
		uri := c.attach(t, idle.away, idle.name)
		wi.check(t, uri)
		c.inSync(t, idle.away, idle.name, time.Minute, sorted(idle.home, idle.away)...)
		c.detach(t, idle.away, idle.name)
		c.identical(t, idle.name)
	}})
}

// TestKVDBLostWholly lets all etcd members lose their disks under a writer: the import makes the volumes anew, with their names.
func TestKVDBLostWholly(t *testing.T) {
	c := own(t, func(s *lab.Spec) { s.KVDB = "etcd" })
	c.ctl(t, "a1", "volume", "create", "strict", "--size", "8Mi", "--protection", "max-protection", "-l", "app=db")
	v, idle := c.create(t, "lost", "64Mi"), c.create(t, "resting", "64Mi")
	w, wi := newWriter(t), newWriter(t)
	uri := c.attach(t, idle.away, idle.name)
	wi.start(t, uri)
	wi.stop(t)
	c.detach(t, idle.away, idle.name)
	uri = c.attach(t, v.home, v.name)
	w.start(t, uri)
	for _, n := range []string{"a1", "a2", "b1", "b2"} {
		n := c.Node(n)
		until(t, "the records are noted on "+n.Name, 20*time.Second, func() (bool, error) {
			dirs, _ := filepath.Glob(filepath.Join(n.Pool(), "replicas", "*"))
			notes, _ := filepath.Glob(filepath.Join(n.Pool(), "replicas", "*", "note"))
			return len(dirs) == len(notes), nil
		})
	}
	c.restartKVDB(t, c.LoseKVDB)
	for _, n := range []string{"a1", "a2", "b1", "b2"} {
		c.online(t, n)
	}
	w.more(t, 200, 20*time.Second)
	until(t, "every node tells", 90*time.Second, func() (bool, error) {
		s, err := c.Ctl(t.Context(), c.Node(v.spare), "status")
		return strings.Count(s, "KVDB_ROLLBACK") >= 2, errors.Join(err, errors.New(s))
	})
	c.refused(t, v.spare, 4, []string{"tandemctl kvdb import"}, "host", "attach", v.name)

	if err := c.Node(v.away).Kill(); err != nil { // nobody knows what its replicas know
		t.Fatal(err)
	}
	for _, x := range []vol{v, idle} {
		c.refused(t, v.home, 4, []string{x.name, "on node " + x.away, "--accept-data-loss"}, "kvdb", "import", "--volume", x.name, "--yes")
	}
	if err := c.StartNode(c.Node(v.away)); err != nil {
		t.Fatal(err)
	}
	c.online(t, v.away)
	w.more(t, 200, 60*time.Second)
	t.Log(c.ctl(t, v.spare, "kvdb", "import", "--all", "--yes"))
	w.more(t, 200, 20*time.Second)
	w.stop(t)
	w.check(t, uri)
	c.detach(t, v.home, v.name)
	c.identical(t, v.name)
	uri = c.attach(t, idle.spare, idle.name)
	wi.check(t, uri)
	c.inSync(t, idle.spare, idle.name, time.Minute, sorted(idle.home, idle.away)...)
	c.detach(t, idle.spare, idle.name)
	c.identical(t, idle.name)
	var got struct {
		Volume struct {
			Protection string            `json:"protection"`
			Labels     map[string]string `json:"labels"`
		} `json:"volume"`
	}
	if err := json.Unmarshal([]byte(c.inspect(t, "b2", "strict").raw), &got); err != nil || got.Volume.Protection != "PROTECTION_MAX_PROTECTION" || got.Volume.Labels["app"] != "db" {
		t.Errorf("the volume that was never attached came back as %+v, %v", got, err)
	}
	if out := c.ctl(t, v.spare, "kvdb", "import", "--all", "--dry-run"); strings.Contains(out, "REFUSED") || strings.Contains(out, " import ") {
		t.Errorf("after the import there is something to import:\n%s", out)
	}
}

// restartKVDB stops every member of the kvdb, lets something happen to what they have on disk, and starts them.
func (c *cluster) restartKVDB(t *testing.T, meanwhile func() error) {
	t.Helper()
	if err := c.KillKVDBs(); err != nil {
		t.Fatal(err)
	}
	if err := meanwhile(); err != nil {
		t.Fatal(err)
	}
	if err := c.StartKVDBs(); err != nil {
		t.Fatal(err)
	}
}
