package e2e

import (
	"testing"
	"time"
)

// TestResync lets a replica miss 256 MiB, once after an orderly end (what it lacks is copied) and once after a kill
// (everything is compared by hash), and shows how fast it returns.
func TestResync(t *testing.T) {
	need(t, "fio")
	c := shared(t)
	v := c.create(t, "bulk", "512Mi")
	uri := c.attach(t, v.home, v.name)
	const written = 256 << 20
	away := c.Node(v.away)
	for _, end := range []struct {
		how  string
		f    func() error
		seed string
		most int // blocks of 64 KiB
	}{
		{"SIGTERM", away.Stop, "--randseed=1", written >> 16},
		{"SIGKILL", away.Kill, "--randseed=2", 512 << 20 >> 16},
	} {
		m := c.mark(t, v.home)
		if err := end.f(); err != nil {
			t.Fatal(err)
		}
		m.await(t, "replica evicted", 10*time.Second)
		sh(t, "fio", "--name=fill", "--ioengine=nbd", "--uri="+uri, "--rw=write", "--bs=256k", "--size=256M", "--iodepth=8", "--refill_buffers", end.seed, "--output=/dev/null")
		if err := c.StartNode(away); err != nil {
			t.Fatal(err)
		}
		started := m.await(t, "resync started", 30*time.Second)
		at := time.Now()
		if started.Blocks > end.most {
			t.Errorf("%s: resync of %d blocks, at most %d are to be looked at", end.how, started.Blocks, end.most)
		}
		m.await(t, "replica in sync", time.Minute)
		took := time.Since(at)
		t.Logf("after %s: %d blocks in %v: %.0f MB/s looked at, %.0f MB/s copied", end.how, started.Blocks, took,
			float64(started.Blocks)*65536/1e6/took.Seconds(), written/1e6/took.Seconds())
	}
	c.detach(t, v.home, v.name)
	c.identical(t, v.name)
}
