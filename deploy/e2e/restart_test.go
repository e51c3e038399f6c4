package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// again kills the daemon of a node and starts it anew.
func (c *cluster) again(t *testing.T, node string) {
	t.Helper()
	if err := c.Node(node).Kill(); err != nil {
		t.Fatal(err)
	}
	if err := c.StartNode(c.Node(node)); err != nil {
		t.Fatal(err)
	}
}

// records are the attachments that a node would go on with after a restart.
func (c *cluster) records(t *testing.T, node string) []string {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(c.Node(node).Dir, "data", "attachments"))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func succeeded(said string) bool { return said != "" && !strings.Contains(said, "failed") }

// TestRestartUnderAClient kills a daemon again and again under a client that connects again by itself. The client sees pauses
// and no error; what was acknowledged is there, flushed or not.
func TestRestartUnderAClient(t *testing.T) {
	need(t, "qemu-io")
	c := shared(t)
	v := c.create(t, "restart", "64Mi")
	uri := c.attach(t, v.home, v.name)
	do, end := returning(t, uri)
	round := 0
	write := func(t *testing.T) {
		round++
		if got := do(fmt.Sprintf("write -P %d %dk 64k", round, 64*round)); !succeeded(got) {
			t.Fatalf("round %d: %s", round, got)
		}
	}
	read := func(t *testing.T) {
		for i := 1; i <= round; i++ {
			if got := do(fmt.Sprintf("read -P %d %dk 64k", i, 64*i)); !succeeded(got) {
				t.Fatalf("round %d, what was written in round %d: %s", round, i, got)
			}
		}
	}
	chapters(t, chapter{"killed ten times", func(t *testing.T) {
		for range 10 {
			write(t)
			m, killed := c.mark(t, v.home), time.Now()
			c.again(t, v.home)
			read(t)
			m.await(t, "attachment goes on", time.Second)
			t.Logf("from the kill to the end of the first reads: %v", time.Since(killed).Round(time.Millisecond))
		}
	}}, chapter{"killed in the takeover", func(t *testing.T) {
		write(t)
		for range 4 {
			m := c.mark(t, v.home)
			c.again(t, v.home)
			m.await(t, "takeover started", 20*time.Second)
		}
		read(t)
	}}, chapter{"without the other replica", func(t *testing.T) {
		write(t)
		if err := c.Node(v.away).Kill(); err != nil {
			t.Fatal(err)
		}
		c.again(t, v.home)
		write(t)
		read(t)
		if err := c.StartNode(c.Node(v.away)); err != nil {
			t.Fatal(err)
		}
		c.inSync(t, v.home, v.name, time.Minute, v.home, v.away)
	}}, chapter{"attached and detached", func(t *testing.T) {
		if again := c.attach(t, v.home, v.name); again != uri {
			t.Errorf("attached as %s, it was %s", again, uri)
		}
		c.refused(t, v.home, 4, []string{v.name, "in use"}, "host", "detach", v.name, "--timeout", "20s")
		end()
		c.detach(t, v.home, v.name)
		if names := c.records(t, v.home); len(names) > 0 {
			t.Errorf("records of attachments are left: %v", names)
		}
		c.identical(t, v.name)
	}})
}

// TestRestartTooLate is an attachment that may not go on: the client gets errors, never what another attachment has.
func TestRestartTooLate(t *testing.T) {
	need(t, "qemu-io")
	c := own(t, nil)
	v := c.create(t, "toolate", "64Mi")
	old := c.attach(t, v.home, v.name)
	do, _ := returning(t, old)
	if got := do("write -P 1 0 64k"); !succeeded(got) {
		t.Fatal(got)
	}
	if err := c.Node(v.home).Kill(); err != nil {
		t.Fatal(err)
	}
	uri := c.attach(t, v.spare2, v.name) // on the other site, while the daemon is down
	sh(t, "qemu-io", "-f", "raw", "-c", "write -P 2 0 64k", uri)
	m := c.mark(t, v.home)
	if err := c.StartNode(c.Node(v.home)); err != nil {
		t.Fatal(err)
	}
	m.await(t, "attachment has ended, its consumers get errors: attach again", 20*time.Second)
	if names := c.records(t, v.home); len(names) > 0 {
		t.Errorf("records of attachments are left: %v", names)
	}
	for _, command := range []string{"read -P 2 0 64k", "write -P 1 0 64k"} {
		if got := do(command); !strings.Contains(got, "failed: Input/output error") {
			t.Errorf("%s of a client of an attachment that has ended: %s", command, got)
		}
	}
	sh(t, "qemu-io", "-f", "raw", "-c", "read -P 2 0 64k", uri)
	c.detach(t, v.spare2, v.name)
	c.identical(t, v.name)
}

// TestRestartRecords: a record that is stale, or is none, does no harm, and a full state directory keeps nobody from its volume.
func TestRestartRecords(t *testing.T) {
	need(t, "qemu-io", "mount")
	needRoot(t)
	c := own(t, nil)
	v := c.create(t, "records", "64Mi")
	dir := filepath.Join(c.Node(v.home).Dir, "data", "attachments")
	c.attach(t, v.home, v.name)
	live := c.records(t, v.home)
	if len(live) != 1 {
		t.Fatalf("the records are %v", live)
	}
	id, _, _ := strings.Cut(live[0], ".")
	stale := []string{id + "." + id, strings.Replace(live[0], id, "00000000-0000-4000-8000-000000000001", 1)}
	odd := []string{"garbage", live[0] + ".tmp"}
	for _, name := range append(stale, odd...) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("nbd\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	m := c.mark(t, v.home)
	c.again(t, v.home)
	m.await(t, "attachment goes on", 20*time.Second)
	until(t, "the stale records are removed", 20*time.Second, func() (bool, error) {
		names := c.records(t, v.home)
		return len(names) == 2, fmt.Errorf("there are %v", names) // the one that is none stays, for whoever put it there
	})
	if n := len(m.since(t, "attachment has ended, its consumers get errors: attach again")); n != len(stale) {
		t.Errorf("%d attachments have ended, want %d", n, len(stale))
	}
	c.detach(t, v.home, v.name)
	if names := c.records(t, v.home); len(names) != 1 {
		t.Errorf("after the detach there are %v", names)
	}

	sh(t, "mount", "-t", "tmpfs", "-o", "nr_inodes=1", "full", dir)
	t.Cleanup(func() {
		if err := c.Node(v.home).Kill(); err != nil {
			t.Error(err)
		}
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	m = c.mark(t, v.home)
	do, _ := returning(t, c.attach(t, v.home, v.name))
	m.await(t, "attachment will not survive a restart of this daemon: make room in dataDir, then detach and attach again", time.Second)
	if got := do("write -P 3 0 64k"); !succeeded(got) {
		t.Fatal(got)
	}
	c.again(t, v.home)
	if got := do("read -P 3 0 64k"); !strings.Contains(got, "failed: Input/output error") {
		t.Errorf("a client of an attachment without a record: %s", got)
	}
}

// TestRestartUnderAFileSystem kills the daemon under XFS: a loop device on a file that qemu-storage-daemon shows (FUSE), whose NBD
// client connects again. The writer sees pauses and no error, and what was confirmed to it is there.
func TestRestartUnderAFileSystem(t *testing.T) {
	needRoot(t, "/dev/fuse", "/dev/loop-control")
	need(t, "qemu-storage-daemon", "losetup", "mkfs.xfs", "xfs_repair", "mount", "umount", python)
	c := shared(t)
	v := c.create(t, "restartfs", "512Mi")
	dev, gone := loopOver(t, c.attach(t, v.home, v.name))
	sh(t, "mkfs.xfs", "-q", "-f", dev)
	w := newFileWriter(t, dev)
	w.mount(t)
	w.start(t)
	rng := seeded(t)
	var longest time.Duration
	for range 10 {
		w.more(t, 5+rng.IntN(40), time.Minute)
		killed := time.Now()
		c.again(t, v.home)
		w.more(t, 1, time.Minute)
		longest = max(longest, w.pause(t, killed))
	}
	t.Logf("longest time without a confirmed fsync, of 10 restarts: %v", longest.Round(time.Millisecond))
	w.stop(t)
	w.check(t)
	w.unmount(t)
	sh(t, "xfs_repair", "-n", dev)
	gone()
	c.detach(t, v.home, v.name)
	c.identical(t, v.name)

	dev, gone = loopOver(t, c.attach(t, v.home, v.name))
	w.dev = dev
	w.mount(t)
	w.check(t)
	w.unmount(t)
	gone()
	c.detach(t, v.home, v.name)
}
