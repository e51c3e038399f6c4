package e2e

import (
	"syscall"
	"testing"
	"time"
)

// pauseBound is how long writes may pause for the eviction of a silent replica: suspectTimeout (3 s), the rounds of the
// eviction, and what a busy machine takes for them.
const pauseBound = 8 * time.Second

// TestRemoteReplica lets the daemon of the remote replica stall, end and die under a writer: it is evicted only when it must
// be, writes go on, and it returns by a resync of what it lacks.
func TestRemoteReplica(t *testing.T) {
	c := shared(t)
	v := c.create(t, "remote", "256Mi")
	w := newWriter(t)
	uri := c.attach(t, v.home, v.name)
	w.start(t, uri)
	remote := c.Node(v.away)

	chapters(t, chapter{"a stall of a second changes nothing", func(t *testing.T) {
		m, at := c.mark(t, v.home), time.Now()
		if err := remote.Signal(syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		<-time.After(time.Second) // the fault itself: a stall of this length
		if err := remote.Signal(syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
		w.more(t, 200, 20*time.Second)
		if es := m.since(t, "replica evicted"); len(es) > 0 {
			t.Errorf("evicted after a stall of 1 s: %s", es[0].raw)
		}
		t.Logf("longest pause %v", w.pause(t, at))
		c.inSync(t, v.home, v.name, time.Second, v.home, v.away)
	}}, chapter{"a long stall", func(t *testing.T) {
		m, at := c.mark(t, v.home), time.Now()
		if err := remote.Signal(syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		m.await(t, "replica evicted", 30*time.Second)
		w.more(t, 200, 20*time.Second)
		pause := w.pause(t, at)
		if pause > pauseBound {
			t.Errorf("writes paused for %v", pause)
		}
		c.inSync(t, v.home, v.name, time.Second, v.home)
		<-time.After(time.Until(at.Add(10 * time.Second))) // the fault itself: longer than every timeout of a session
		if err := remote.Signal(syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
		at = time.Now()
		c.inSync(t, v.home, v.name, 40*time.Second, v.home, v.away)
		t.Logf("pause %v; in sync %v after SIGCONT, resync of %d blocks", pause, time.Since(at), m.await(t, "resync started", time.Second).Blocks)
	}}, chapter{"a clean end and return", func(t *testing.T) {
		m, at := c.mark(t, v.home), time.Now()
		if err := remote.Stop(); err != nil {
			t.Fatal(err)
		}
		m.await(t, "replica evicted", 30*time.Second)
		w.more(t, 200, 20*time.Second)
		pause := w.pause(t, at)
		if pause > pauseBound {
			t.Errorf("writes paused for %v", pause)
		}
		if err := c.StartNode(remote); err != nil {
			t.Fatal(err)
		}
		c.inSync(t, v.home, v.name, 40*time.Second, v.home, v.away)
		blocks := m.await(t, "resync started", time.Second).Blocks
		// The whole volume has 4096; the writer uses 64 MiB, 1024.
		if blocks == 0 || blocks > 1100 {
			t.Errorf("resync of %d blocks: that is not what was written meanwhile", blocks)
		}
		t.Logf("pause %v; resync of %d blocks", pause, blocks)
	}}, chapter{"a kill and return", func(t *testing.T) {
		m, at := c.mark(t, v.home), time.Now()
		if err := remote.Kill(); err != nil {
			t.Fatal(err)
		}
		e := m.await(t, "replica evicted", 30*time.Second)
		if r := c.inspect(t, v.home, v.name).replica(v.away); r.InSync || r.ID != e.Replica {
			t.Errorf("after %s: %+v", e.raw, r)
		}
		w.more(t, 200, 20*time.Second)
		pause := w.pause(t, at)
		if pause > pauseBound {
			t.Errorf("writes paused for %v", pause)
		}
		if err := c.StartNode(remote); err != nil {
			t.Fatal(err)
		}
		at = time.Now()
		c.inSync(t, v.home, v.name, time.Minute, v.home, v.away)
		t.Logf("pause %v; in sync %v after the start, resync of %d blocks", pause, time.Since(at), m.await(t, "resync started", time.Second).Blocks)
	}})

	w.stop(t)
	w.check(t, uri)
	c.detach(t, v.home, v.name)
	c.identical(t, v.name)
}
