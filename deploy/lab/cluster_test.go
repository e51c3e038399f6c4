package lab

import (
	"os"
	"path/filepath"
	"testing"
)

func TestPrepareWritesWhatEachNodeNeeds(t *testing.T) {
	for _, kvdb := range []string{"raft", "etcd"} {
		work := t.TempDir()
		var u Undo
		c, err := NewCluster(Spec{Bin: "/nowhere", Work: work, KVDB: kvdb, Frontend: "nbd", Nodes: []NodeSpec{
			{Name: "a", Site: "one", Member: true}, {Name: "b", Site: "two", Member: true},
			{Name: "c", Site: "two"}, {Name: "w", Site: "three", Member: true, Witness: true},
		}}, &u)
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Prepare(); err != nil {
			t.Fatal(err)
		}
		want := 4
		if kvdb == "etcd" {
			want = 3 // etcd's third member is the witness
		}
		configs, err := filepath.Glob(filepath.Join(work, "*", "*", "tandemd.yaml"))
		if err != nil || len(configs) != want {
			t.Errorf("%s: %d configurations, want %d (%v)", kvdb, len(configs), want, err)
		}
		for _, n := range c.nodes {
			for _, f := range []string{n.tls.CA, n.tls.Cert, n.tls.Key} {
				if _, err := os.Stat(f); err != nil {
					t.Errorf("%s: %v", kvdb, err)
				}
			}
		}
		if ps := c.Processes(""); len(ps) != 0 {
			t.Errorf("%s: %d processes before Start", kvdb, len(ps))
		}
	}
}
