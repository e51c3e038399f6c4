package e2e

import (
	"bytes"
	"errors"
	"os"
	"strings"
	"testing"
	"time"
)

// TestDeadAttachments kills daemons under a loop device, which they do not go on with. Their volumes are deleted, and attached elsewhere, while the node is away and after it
// came back, and what was confirmed is there. An attachment that goes on after a restart is left alone.
func TestDeadAttachments(t *testing.T) {
	needRoot(t, "/dev/fuse", "/dev/loop-control")
	need(t, "qemu-io")
	c := own(t, nil)
	const precondition = 4
	want := bytes.Repeat([]byte("confirmed\n"), 1<<12)
	// left has a volume whose coordinator was killed under a loop device with something on it.
	left := func(t *testing.T, name string) vol {
		t.Helper()
		v := c.create(t, name, "64Mi")
		overwrite(t, c.attach(t, v.home, v.name, "fuseloop"), want)
		if err := c.Node(v.home).Kill(); err != nil {
			t.Fatal(err)
		}
		return v
	}
	back := func(t *testing.T, node string) {
		t.Helper()
		if err := c.StartNode(c.Node(node)); err != nil {
			t.Fatal(err)
		}
		c.online(t, node)
	}
	deleted := func(t *testing.T, ask, name string) {
		t.Helper()
		until(t, name+" is gone", 30*time.Second, func() (bool, error) {
			out, err := c.Ctl(t.Context(), c.Node(ask), "volume", "list")
			return err == nil && !strings.Contains(out, name), errors.Join(err, errors.New(out))
		})
	}
	// endedBy is who has ended the attachment, by what the node says that was asked.
	endedBy := func(t *testing.T, m mark, node string) {
		t.Helper()
		if es := m.since(t, "dead attachment ended"); len(es) != 1 || !strings.Contains(es[0].raw, `"by":"`+node+`"`) {
			t.Errorf("an attachment was to be ended by %s: %v", node, es)
		}
	}
	t.Run("deleted while the node is away", func(t *testing.T) {
		v := left(t, "away")
		c.offline(t, v.away, v.home)
		m, began := c.mark(t, v.away), time.Now()
		c.ctl(t, v.away, "volume", "delete", v.name, "--yes", "--timeout", "40s")
		t.Logf("deleted after %v", time.Since(began).Round(time.Millisecond))
		endedBy(t, m, v.away)
		back(t, v.home)
		deleted(t, v.away, v.name)
	})
	t.Run("deleted after it came back", func(t *testing.T) {
		v := left(t, "returned")
		back(t, v.home)
		m, began := c.mark(t, v.away), time.Now()
		c.ctl(t, v.away, "volume", "delete", v.name, "--yes", "--wait", "--timeout", "40s")
		t.Logf("deleted after %v", time.Since(began).Round(time.Millisecond))
		endedBy(t, m, v.home)
		deleted(t, v.home, v.name)
	})
	t.Run("attached elsewhere after it came back", func(t *testing.T) {
		v := left(t, "moves")
		back(t, v.home)
		m := c.mark(t, v.away)
		dev := c.attach(t, v.away, v.name, "fuseloop")
		endedBy(t, m, v.home)
		got := make([]byte, len(want))
		f, err := os.Open(dev)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
			t.Errorf("what was confirmed is not there: %v", err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		c.inSync(t, v.away, v.name, time.Minute, v.home, v.away)
		c.detach(t, v.away, v.name)
		c.identical(t, v.name)
	})
	t.Run("the only copy is away", func(t *testing.T) {
		c.ctl(t, "b1", "volume", "create", "alone", "--size", "64Mi", "--replicas", "1", "--domains", alpha, "--timeout", "30s")
		home := c.inspect(t, "b1", "alone").Volume.Replicas[0].Node
		overwrite(t, c.attach(t, home, "alone", "fuseloop"), want)
		if err := c.Node(home).Kill(); err != nil {
			t.Fatal(err)
		}
		c.offline(t, "b1", home)
		began := time.Now()
		c.refused(t, "b1", precondition, []string{"alone", "start " + home}, "volume", "delete", "alone", "--yes", "--timeout", "40s")
		if d := time.Since(began); d > 10*time.Second {
			t.Errorf("refused after %v", d)
		}
		back(t, home)
		c.ctl(t, "b1", "volume", "delete", "alone", "--yes", "--wait", "--timeout", "40s")
	})
	t.Run("one that goes on", func(t *testing.T) {
		v := c.create(t, "goes-on", "64Mi")
		do, end := returning(t, c.attach(t, v.home, v.name))
		if got := do("write -P 1 0 64k"); !succeeded(got) {
			t.Fatal(got)
		}
		m := c.mark(t, v.home)
		c.again(t, v.home)
		// It is asked while it starts, while it goes on and after that: it is never taken for dead.
		for served := false; !served; {
			served = len(m.since(t, "attachment goes on")) > 0
			if out, err := c.Ctl(t.Context(), c.Node(v.away), "volume", "delete", v.name, "--yes", "--timeout", "40s"); err == nil {
				t.Fatalf("an attachment that goes on was ended: %s", out)
			}
		}
		c.refused(t, v.away, precondition, []string{v.name, v.home}, "volume", "delete", v.name, "--yes", "--timeout", "40s")
		if got := do("read -P 1 0 64k"); !succeeded(got) {
			t.Error(got)
		}
		end()
		c.detach(t, v.home, v.name)
	})
}
