package e2e

import (
	"testing"
	"time"
)

// TestResync lets a replica of 512 MiB miss 256 MiB, once after an orderly end and once after a kill, which finds writes on
// the way: what it lacks is gone through, and what its activity log and that of the other one had then, nothing else.
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
		{"SIGKILL", away.Kill, "--randseed=2", (written + 32<<20) >> 16},
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

// TestReconcile kills the coordinator of a volume that is written in four places: when it is attached again, what is
// compared is what the activity logs have there, not the volume.
func TestReconcile(t *testing.T) {
	c := shared(t)
	v := c.create(t, "sparse", "2Gi")
	w := newWriter(t)
	w.start(t, c.attach(t, v.home, v.name))
	w.more(t, 200, 20*time.Second)
	if err := c.Node(v.home).Kill(); err != nil {
		t.Fatal(err)
	}
	w.failed(t, 10*time.Second)
	m := c.mark(t, v.home)
	if err := c.StartNode(c.Node(v.home)); err != nil {
		t.Fatal(err)
	}
	uri := c.attach(t, v.home, v.name)
	const written, slack = 64 << 20, 32 << 20 // each place begins and ends somewhere in a region
	blocks := m.await(t, "volume serving", 10*time.Second).Dirty
	if blocks == 0 || blocks > (written+slack)>>16 {
		t.Errorf("%d blocks are compared, the volume has %d, and %d were written", blocks, 2<<30>>16, written>>16)
	}
	t.Logf("%d blocks compared of %d", blocks, 2<<30>>16)
	w.check(t, uri)
	c.detach(t, v.home, v.name)
	c.identical(t, v.name)
}

// TestResyncInterrupted ends every resync shortly after its start, by killing its target, or the coordinator, under a writer: the
// half-made replica is never taken for a whole one.
func TestResyncInterrupted(t *testing.T) {
	c := shared(t)
	v := c.create(t, "flapping", "512Mi")
	w := newWriter(t)
	uri := c.attach(t, v.home, v.name)
	w.start(t, uri)
	m := c.mark(t, v.home)
	if err := c.Node(v.away).Kill(); err != nil {
		t.Fatal(err)
	}
	m.await(t, "replica evicted", 10*time.Second)
	for round := range 5 {
		m := c.mark(t, v.home)
		if err := c.StartNode(c.Node(v.away)); err != nil {
			t.Fatal(err)
		}
		m.await(t, "resync started", 30*time.Second)
		victim := v.away
		if w.rng.IntN(3) == 0 {
			victim = v.home
		}
		w.more(t, 1+w.rng.IntN(100), 20*time.Second)
		if err := c.Node(victim).Kill(); err != nil {
			t.Fatal(err)
		}
		done := len(m.since(t, "replica in sync")) > 0
		t.Logf("round %d: %s killed during the resync (or right after its end: %v)", round, victim, done)
		if victim == v.home {
			w.failed(t, 10*time.Second)
			if err := c.StartNode(c.Node(v.home)); err != nil {
				t.Fatal(err)
			}
			uri = c.attach(t, v.home, v.name)
			w.check(t, uri)
			w.start(t, uri)
			if err := c.Node(v.away).Kill(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := c.StartNode(c.Node(v.away)); err != nil {
		t.Fatal(err)
	}
	c.inSync(t, v.home, v.name, time.Minute, v.home, v.away)
	w.stop(t)
	w.check(t, uri)
	c.detach(t, v.home, v.name)
	c.identical(t, v.name)
}
