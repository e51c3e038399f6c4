package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tandem-storage/tandem/deploy/lab"
)

// frozenView is what `volume snapshot inspect` tells of how a file system was taken.
type frozenView struct {
	Frozen bool   `json:"frozen"`
	Why    string `json:"not_frozen"`

	Holders []struct {
		Node    string `json:"node"`
		Frees   string `json:"frees_bytes"`
		Unknown string `json:"frees_unknown"`
	} `json:"holders"`
}

func (c *cluster) frozen(t *testing.T, ask, snapshot string) frozenView {
	t.Helper()
	var r struct {
		Snapshot frozenView `json:"snapshot"`
	}
	out := c.ctl(t, ask, "volume", "snapshot", "inspect", snapshot, "-o", "json")
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		t.Fatalf("volume snapshot inspect printed %q: %v", out, err)
	}
	return r.Snapshot
}

// files mounts what a snapshot has, with options, and returns the files that are there.
func (c *cluster) files(t *testing.T, snapshot, options string, want map[string][]byte) map[string]bool {
	t.Helper()
	const node = "b1"
	name := "from-" + snapshot
	c.ctl(t, node, "volume", "snapshot", "restore", snapshot, name, "--timeout", "60s")
	dev := c.attach(t, node, name, "fuseloop")
	dir := t.TempDir()
	sh(t, "mount", "-o", options, dev, dir)
	found := map[string]bool{}
	for f, data := range want {
		got, err := os.ReadFile(filepath.Join(dir, f))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Error(err)
		}
		found[f] = bytes.Equal(got, data)
	}
	sh(t, "umount", dir)
	let(t, dev)
	c.detach(t, node, name)
	c.ctl(t, node, "volume", "delete", name, "--yes", "--wait", "--timeout", "60s")
	return found
}

// TestFreeze takes snapshots of a mounted XFS: one that was frozen has every file, written a moment ago and not synced, without a look into its log; one that was not needs the log, and has only what was synced. A daemon
// that died with the file system frozen thaws it when it is back.
func TestFreeze(t *testing.T) {
	needDisks(t, "mkfs.xfs")
	need(t, "fsfreeze", "mount", "umount")
	c := own(t, nil, func(u *lab.Undo, c *cluster) { disks(t, u, c, "mkfs.xfs", "-q", "-K") })
	c.create(t, "data", "320Mi")
	c.create(t, "raw", "64Mi")
	c.devices(t, "a1")
	dev := c.attach(t, "a1", "data", "device")
	sh(t, "mkfs.xfs", "-q", "-f", dev)
	dir := t.TempDir()
	sh(t, "mount", dev, dir)
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) }) // of a test that failed
	c.attach(t, "a2", "raw")
	want := map[string][]byte{}
	write := func(t *testing.T, name string) {
		t.Helper()
		want[name] = bytes.Repeat([]byte(name+"\n"), 1<<15)
		done := make(chan error, 1)
		go func() { done <- os.WriteFile(filepath.Join(dir, name), want[name], 0o600) }()
		select {
		case err := <-done:
			if err != nil {
				t.Fatal(err)
			}
		case <-time.After(time.Minute):
			t.Fatal("the file system is frozen for ever")
		}
	}
	chapters(t, chapter{"frozen", func(t *testing.T) {
		write(t, "first")
		c.ctl(t, "b1", "volume", "snapshot", "create", "data", "s1", "--timeout", "60s")
		if f := c.frozen(t, "b2", "s1"); !f.Frozen || f.Why != "" {
			t.Errorf("%+v", f)
		}
		if has := c.files(t, "s1", "ro,norecovery,nouuid", want); !has["first"] {
			t.Error("the file is not in the snapshot, or only in the log")
		}
		write(t, "second")
	}}, chapter{"not frozen", func(t *testing.T) {
		write(t, "synced")
		sh(t, "sync", "-f", dir)
		write(t, "third")
		c.ctl(t, "b1", "volume", "snapshot", "create", "data", "s2", "--freeze=false", "--timeout", "60s")
		if f := c.frozen(t, "b1", "s2"); f.Frozen || f.Why != "" {
			t.Errorf("%+v", f)
		}
		overwrite(t, filepath.Join(dir, "first"), want["first"]) // in place: now the snapshot alone has the blocks from before
		f := c.frozen(t, "b2", "s1")
		for _, h := range f.Holders {
			if n, err := strconv.Atoi(h.Frees); err != nil || n < len(want["first"]) || h.Unknown != "" {
				t.Errorf("the deletion of s1 gives back %+v", h)
			}
		}
		if len(f.Holders) != 2 {
			t.Errorf("%+v", f)
		}
		if has := c.files(t, "s2", "ro,norecovery,nouuid", want); has["synced"] && has["third"] {
			t.Error("nothing is in the log alone: then the chapter before proves nothing")
		}
		if has := c.files(t, "s2", "nouuid", want); !has["first"] || !has["second"] || !has["synced"] {
			t.Errorf("after a look into the log: %v", has)
		}
	}}, chapter{"of a group", func(t *testing.T) {
		write(t, "fourth")
		c.ctl(t, "b2", "volume", "snapshot", "create-group", "g", "--volumes", "data,raw", "--timeout", "60s")
		if f := c.frozen(t, "b1", "g.data"); !f.Frozen {
			t.Errorf("%+v", f)
		}
		if f := c.frozen(t, "b1", "g.raw"); f.Frozen || !strings.Contains(f.Why, "no file system") {
			t.Errorf("%+v", f)
		}
		if has := c.files(t, "g.data", "ro,norecovery,nouuid", want); !has["fourth"] {
			t.Error("the file is not in the snapshot, or only in the log")
		}
		write(t, "fifth")
	}}, chapter{"cloned", func(t *testing.T) {
		write(t, "sixth")
		c.ctl(t, "b1", "volume", "clone", "data", "clone", "--timeout", "60s")
		c.ctl(t, "b1", "volume", "snapshot", "create", "clone", "s3", "--timeout", "60s")
		if f := c.frozen(t, "b1", "s3"); f.Frozen || !strings.Contains(f.Why, "detached") {
			t.Errorf("%+v", f)
		}
		if has := c.files(t, "s3", "ro,norecovery,nouuid", want); !has["sixth"] {
			t.Error("the file is not in the clone, or only in the log")
		}
	}}, chapter{"frozen by hand", func(t *testing.T) {
		sh(t, "fsfreeze", "--freeze", dir)
		c.ctl(t, "b1", "volume", "snapshot", "create", "data", "s4", "--timeout", "60s")
		if f := c.frozen(t, "b1", "s4"); f.Frozen || !strings.Contains(f.Why, "frozen by somebody else") {
			t.Errorf("%+v", f)
		}
		sh(t, "fsfreeze", "--unfreeze", dir) // fails if it is not frozen any more
	}}, chapter{"whoever froze it dies", func(t *testing.T) {
		// As the daemon leaves it that dies between its freeze and its thaw.
		record := filepath.Join(c.Node("a1").Dir, "data", "frozen", c.inspect(t, "a1", "data").Volume.ID)
		if err := os.WriteFile(record, []byte(dir), 0o600); err != nil {
			t.Fatal(err)
		}
		sh(t, "fsfreeze", "--freeze", dir)
		if err := c.Node("a1").Kill(); err != nil {
			t.Fatal(err)
		}
		if err := c.StartNode(c.Node("a1")); err != nil {
			t.Fatal(err)
		}
		write(t, "seventh")
		sh(t, "sync", "-f", dir)
		if _, err := os.Stat(record); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the record is left: %v", err)
		}
	}})
	sh(t, "umount", dir)
	let(t, dev)
	c.detach(t, "a1", "data")
	c.detach(t, "a2", "raw")
	for _, s := range []string{"s1", "s2", "s3", "s4"} {
		c.ctl(t, "b1", "volume", "snapshot", "delete", s, "--yes")
	}
	c.ctl(t, "b1", "volume", "snapshot", "delete-group", "g", "--yes")
	c.ctl(t, "b1", "volume", "delete", "clone", "--yes", "--wait", "--timeout", "60s")
	c.identical(t, "data")
}
