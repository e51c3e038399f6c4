package e2e

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestGroupMoves has a consumer whose writes depend on each other across the two volumes of a group. The group is moved to the other site by plan and
// back, all of it or nothing, then its site is lost and the other one takes all of it over. Another group, of which one volume has no replica
// there, is left alone as a whole, and the report and the status say why.
func TestGroupMoves(t *testing.T) {
	c := own(t, aggressive("raft", false))
	vs := []vol{c.create(t, "data", "64Mi"), c.create(t, "log", "64Mi")}
	torn := c.create(t, "torn", "16Mi")
	c.ctl(t, "b1", "volume", "create", "here", "--size", "16Mi", "--replicas", "1", "--domains", alpha, "--timeout", "30s")
	c.ctl(t, "a1", "group", "create", "db", "--volumes", "data,log")
	c.ctl(t, "a1", "group", "create", "mixed", "--volumes", "torn,here")
	w := newChain(t)
	dir := t.TempDir()
	where := []string{filepath.Join(dir, "data"), filepath.Join(dir, "log")}
	for i, n := range []string{"a1", "a2"} {
		tellWhere(t, where[i], c.attach(t, n, vs[i].name))
	}
	c.attach(t, "a1", torn.name)
	c.attach(t, "a2", "here")
	w.start(t, where...)

	chapters(t, chapter{"switchover", func(t *testing.T) {
		// A volume that cannot move keeps those of its group.
		out, err := c.Ctl(t.Context(), c.Node(c.third("b2")), "cluster", "domains", "switchover", "--to", beta, "--group", "mixed", "--reason", "test")
		if err == nil || !strings.Contains(err.Error()+out, "of its group mixed cannot move") {
			t.Errorf("a group of which one volume cannot move: %v\n%s", err, out)
		}
		if at := c.inspect(t, c.third("b2"), torn.name).Volume.Attachment.Node; at != "a1" {
			t.Errorf("%s was moved alone, to %s", torn.name, at)
		}
		for _, to := range []string{beta, alpha} {
			at := time.Now()
			out := c.ctl(t, c.third("b2"), "--timeout", "50s", "-o", "json", "cluster", "domains", "switchover", "--to", to, "--group", "db", "--reason", "test")
			var m moves
			if err := json.Unmarshal([]byte(out), &m); err != nil || len(m.Moves) != 2 || !m.Moves[0].Done || !m.Moves[1].Done {
				t.Fatalf("switchover printed %q: %v", out, err)
			}
			for _, move := range m.Moves {
				i := slices.IndexFunc(vs, func(v vol) bool { return v.name == move.Volume })
				if want := map[string]string{beta: vs[i].away, alpha: vs[i].home}[to]; move.To != want {
					t.Errorf("%s moved to %s, want %s", move.Volume, move.To, want)
				}
				tellWhere(t, where[i], move.Path)
			}
			w.more(t, 50, 20*time.Second)
			t.Logf("to %s: writes paused for %v", to, w.pause(t, at))
		}
	}}, chapter{"failover", func(t *testing.T) {
		at := time.Now()
		if err := c.Kill(alpha); err != nil {
			t.Fatal(err)
		}
		for i, v := range vs {
			tellWhere(t, where[i], c.moved(t, v.away, v.name, time.Minute))
		}
		t.Logf("all volumes are served at beta %v after the loss of alpha", time.Since(at))
		w.more(t, 50, 20*time.Second)
		var r failoverReport
		until(t, "the report has the volumes attached", 10*time.Second, func() (bool, error) {
			r = c.report(t, "b1")
			n := 0
			for _, f := range r.Failover.Volumes {
				if f.Attached > 0 {
					n++
				}
			}
			return n >= 2, fmt.Errorf("%+v", r)
		})
		causes := map[string]string{}
		for _, f := range r.Failover.Volumes {
			causes[f.Name] = f.Cause
		}
		if causes["data"] != "" || causes["log"] != "" || causes[torn.name] != "group-mixed" || causes["here"] != "last-copy" {
			t.Errorf("%+v", r)
		}
		if s := c.ctl(t, "b1", "status"); !strings.Contains(s, "failover-pending") || !strings.Contains(s, "no domain can go on with all volumes of its group mixed") {
			t.Errorf("the status does not tell what does not go on: %s", s)
		}
		if at := c.inspect(t, "b1", torn.name).Volume.Attachment.Node; at == torn.away {
			t.Errorf("%s goes on at %s without the rest of its group", torn.name, at)
		}
		// The consumer looks whether it has all that was confirmed to it, before it goes on.
		w.stop(t)
		w.start(t, where...)
		w.stop(t)
	}})
}
