//go:build kube

package kube

import (
	"flag"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/tandem-storage/tandem/deploy/lab"
)

var kills = flag.Int("kills", 2, "how many nodes TestNodeLoss ends")

// TestNodeLoss ends the node of a database, again and again, each time at one instant with everything on it. Nobody says anything to anybody: the database is Ready at the other
// site with all that it had confirmed, and the node comes back.
func TestNodeLoss(t *testing.T) {
	top, bin := programs(t)
	dir, undo := workDir(t)
	tandem, err := TandemImage(t.Context(), top, bin, filepath.Join(dir, "root"))
	if err != nil {
		t.Fatal(err)
	}
	postgres, err := PostgresImage(t.Context(), filepath.Join(dir, "postgres"))
	if err != nil {
		t.Fatal(err)
	}
	w, err := NewWorld(t.Context(), bin, dir, undo, append(SidecarImages(bin), tandem, postgres)...)
	if err != nil {
		t.Fatal(err)
	}
	c := cluster(t, w, "metro", "site-w", "site-a", "site-b")
	witness := c.Node("site-w")
	s := &stand{t: t, c: c, a: c.Node("site-a"), b: c.Node("site-b")}
	s.domains = map[*Node]string{s.a: "north", s.b: "south", witness: third}
	t.Cleanup(s.tell)
	s.install(top, makeAuthority(t, bin, dir), s.a, s.b, witness)
	s.founded(top)
	s.database()
	s.must("", "exec", "db-0", "--", "psql", "-h", "/tmp", "-qc", "create table confirmed (n int primary key)", "postgres")

	var took []time.Duration
	at, other := s.b, s.a
	for k := range *kills {
		s.insync()
		last := s.fill(k)
		start := time.Now()
		if err := at.Kill(); err != nil {
			t.Fatal(err)
		}
		s.until(other.Name+" True", "get", "pod", "db-0", "-o", `jsonpath={.spec.nodeName} {.status.conditions[?(@.type=="Ready")].status}`)
		took = append(took, time.Since(start).Round(100*time.Millisecond))
		if got := s.must("", "exec", "db-0", "--", "psql", "-h", "/tmp", "-Atc", "select count(*), max(n) from confirmed", "postgres"); got != fmt.Sprintf("%d|%d", last, last) {
			t.Errorf("after %s died the database has %s rows, %d were confirmed", at.Name, got, last)
		}
		t.Logf("%s died, the database was Ready on %s after %v", at.Name, other.Name, took[k])
		if err := at.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := c.Ready(t.Context(), at.Name); err != nil {
			t.Fatal(err)
		}
		s.unmarked(at)
		s.ready()
		at, other = other, at
	}
	slices.Sort(took)
	t.Logf("from the death of a node to its database Ready on another one, %d times: least %v, median %v, most %v; all: %v", len(took), took[0], took[len(took)/2], took[len(took)-1], took)
	t.Log("by two seconds:\n" + histogram(took))
	s.must("", "delete", "statefulset", "db")
	s.must("", "delete", "pvc", "--all", "--wait=false")
	s.nothingLeft()
}

// histogram has a line for each two seconds in which there is any of these, which are in order.
func histogram(took []time.Duration) string {
	const wide = 2 * time.Second
	counts := map[time.Duration]int{}
	for _, d := range took {
		counts[d.Truncate(wide)]++
	}
	var b strings.Builder
	for at := took[0].Truncate(wide); at <= took[len(took)-1]; at += wide {
		fmt.Fprintf(&b, "%8.2f s %4d %s\n", at.Seconds(), counts[at], strings.Repeat("#", counts[at]))
	}
	return b.String()
}

// fill inserts rows, each in a transaction of its own, and returns how many there are now.
func (s *stand) fill(round int) int {
	s.t.Helper()
	const rows = 200
	var b strings.Builder
	for i := range rows {
		fmt.Fprintf(&b, "insert into confirmed values (%d);\n", round*rows+i+1)
	}
	s.must(b.String(), "exec", "-i", "db-0", "--", "psql", "-h", "/tmp", "-q", "postgres")
	n, err := strconv.Atoi(s.must("", "exec", "db-0", "--", "psql", "-h", "/tmp", "-Atc", "select count(*) from confirmed", "postgres"))
	if err != nil || n != (round+1)*rows {
		s.t.Fatalf("%d rows after %d rounds of %d, %v", n, round+1, rows, err)
	}
	return n
}

// unmarked waits until a node that was lost is taken for one that is back.
func (s *stand) unmarked(n *Node) {
	s.t.Helper()
	s.until("", "get", "node", n.Name, "-o", `jsonpath={.spec.taints[?(@.key=="tandem.storage/node-lost")].key}`)
}

// insync waits until every volume has all its replicas in sync.
func (s *stand) insync() {
	s.t.Helper()
	err := lab.Until(s.t.Context(), "all is in sync", 2*time.Minute, 500*time.Millisecond, func() (bool, error) {
		out, err := s.c.Kubectl(s.t.Context(), "", "-n", namespace, "exec", "ds/tandem-north", "-c", "tandemd", "--", "tandemctl", "volume", "list", "-o", "json")
		return err == nil && strings.Contains(out, `"in_sync": 2`) && !strings.Contains(out, `"in_sync": 1`), err
	})
	if err != nil {
		s.t.Fatal(err)
	}
}
