package e2e

import (
	"testing"
	"time"
)

// TestForce is a rolling disaster (protocol.md 11, F14): a replica is evicted, writes go on without it, then the site with the last copy is lost.
// What was evicted is never served by itself; the operator forces it, which shows the volume as it was then. The lost site
// returns with writes of its own, which are overwritten.
func TestForce(t *testing.T) {
	need(t, "qemu-io")
	c := own(t, nil)
	v := c.create(t, "rolling", "64Mi")
	do := func(uri string, commands ...string) {
		t.Helper()
		for _, command := range commands {
			sh(t, "qemu-io", "-f", "raw", "-c", command, uri)
		}
	}
	uri := c.attach(t, v.home, v.name)
	do(uri, "write -P 1 0 1M")
	if err := c.Node(v.away).Kill(); err != nil {
		t.Fatal(err)
	}
	c.inSync(t, v.home, v.name, 20*time.Second, v.home)
	do(uri, "write -P 2 0 64k", "write -P 2 32M 64k") // exposed
	c.detach(t, v.home, v.name)                       // so that the activity log of the last replica does not name them
	c.attach(t, v.home, v.name)
	if err := c.Kill(alpha); err != nil {
		t.Fatal(err)
	}
	if err := c.StartNode(c.Node(v.away)); err != nil {
		t.Fatal(err)
	}
	c.online(t, v.away)
	force := []string{"volume", "replica", "force", v.name, v.away, "--yes", "--reason", "it burnt down"}
	chapters(t, chapter{"nothing old is served by itself", func(t *testing.T) {
		c.refused(t, v.away, 4, []string{alpha, "deactivate"}, force...)
		c.refused(t, v.away, 4, []string{v.name, "--accept-data-loss"}, "cluster", "domains", "deactivate", "--name", alpha, "--peer-lost")
		c.ctl(t, v.away, "cluster", "domains", "deactivate", "--name", alpha, "--peer-lost", "--accept-data-loss", v.name, "--yes")
		c.refused(t, v.away, 4, []string{v.name, alpha}, "host", "attach", v.name)
		c.refused(t, v.away, 7, []string{"epoch"}, append(force, "--expect-epoch", "1")...)
	}}, chapter{"it is forced", func(t *testing.T) {
		t.Log(c.ctl(t, v.away, force...))
		uri := c.attach(t, v.away, v.name)
		do(uri, "read -P 1 0 1M", "read -P 0 32M 64k", "write -P 3 512k 64k")
	}}, chapter{"the lost site returns", func(t *testing.T) {
		m := c.mark(t, v.away)
		if err := c.Start(alpha); err != nil {
			t.Fatal(err)
		}
		for _, n := range []string{v.home, v.spare} {
			c.online(t, n)
		}
		c.ctl(t, v.away, "--timeout", "1m", "cluster", "domains", "activate", "--name", alpha, "--wait")
		m.await(t, "resync started", 20*time.Second)
		c.detach(t, v.away, v.name)
		c.identical(t, v.name)
		uri := c.attach(t, v.home, v.name)
		do(uri, "read -P 1 0 512k", "read -P 3 512k 64k", "read -P 1 576k 448k", "read -P 0 32M 64k")
		c.detach(t, v.home, v.name)
	}})
}
