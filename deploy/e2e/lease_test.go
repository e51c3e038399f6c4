package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tandem-storage/tandem/deploy/lab"
)

// reads are what testdata/reader.py noted: when a read began, and what it showed, - if it failed.
type reads []struct {
	began, ended int64
	seen         string
}

func readsOf(t *testing.T, path string) (rs reads) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	for l := range strings.Lines(string(data)) {
		var r struct {
			began, ended int64
			seen         string
		}
		if _, err := fmt.Sscan(l, &r.began, &r.ended, &r.seen); err == nil {
			rs = append(rs, r)
		}
	}
	return rs
}

// watchFor is how long a coordinator that knows nothing is watched: longer than it takes to find its peers silent.
const watchFor = 4 * time.Second

// TestZombieReads pauses a coordinator whose consumer goes on asking for reads, cuts it off, takes over in the other
// domain, and writes there. When the old coordinator wakes up the reads are before it, its own replica has the old
// data, its connections are open as far as it knows, and nobody can tell it anything: no read that began after the
// write may show what was there before it: by read leases, and with each read confirmed, where nobody waits for a lease.
func TestZombieReads(t *testing.T) {
	for _, fence := range []string{"lease", "confirm"} {
		t.Run(fence, func(t *testing.T) { zombieReads(t, fence) })
	}
}

func zombieReads(t *testing.T, fence string) {
	t.Helper()
	needRoot(t)
	need(t, "ip", "nsenter")
	c := own(t, func(s *lab.Spec) {
		s.Networks = true
		s.Adjust = func(_ string, config map[string]any) { config["replication"] = map[string]any{"readFence": fence} }
	})
	v := c.create(t, "undead", "64Mi")
	newWriter(t) // libnbd is needed
	script, err := filepath.Abs("testdata/reader.py")
	if err != nil {
		t.Fatal(err)
	}
	put := func(uri, n string) { sh(t, python, script, "put", uri, n) }
	uri := c.attach(t, v.home, v.name)
	put(uri, "1")
	dir := t.TempDir()
	lines := filepath.Join(dir, "lines")
	p, err := lab.StartProcess("reader", filepath.Join(dir, "log"), nil, python, script, "read", uri, lines)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Kill() })
	until(t, "reads", 10*time.Second, func() (bool, error) { return len(readsOf(t, lines)) > 20, nil })

	site := c.Processes(alpha)
	for _, n := range site {
		if err := n.Signal(syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
	}
	c.Cut(alpha)
	at := time.Now()
	until(t, "deactivate alpha", 30*time.Second, func() (bool, error) {
		_, err := c.Ctl(t.Context(), c.Node(v.away), "cluster", "domains", "deactivate", "--name", alpha, "--peer-lost")
		return err == nil, err
	})
	put(c.attach(t, v.away, v.name), "2")
	written := time.Now().UnixNano()
	t.Logf("written on %s %v after the pause", v.away, time.Since(at))
	before := len(readsOf(t, lines))
	for _, n := range site {
		if err := n.Signal(syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
	}
	select {
	case <-p.Done():
	case <-time.After(watchFor):
	}
	c.Heal(alpha)
	select {
	case <-p.Done():
	case <-time.After(60 * time.Second):
		t.Errorf("the old coordinator's consumer still reads")
	}
	shown := 0
	all := readsOf(t, lines)
	for _, r := range all[before:] {
		if r.seen != "-" {
			shown++
		}
		if r.began > written && r.seen == "1" {
			t.Errorf("a read that began %v after the write of 2 was confirmed showed 1", time.Duration(r.began-written))
		}
	}
	t.Logf("%d reads ended after the old coordinator went on, %d of them showed something", len(all)-before, shown)
	c.ctl(t, v.away, "--timeout", "1m", "cluster", "domains", "activate", "--name", alpha, "--wait")
	c.inSync(t, v.away, v.name, time.Minute, v.home, v.away)
	c.detach(t, v.away, v.name)
	c.identical(t, v.name)
}
