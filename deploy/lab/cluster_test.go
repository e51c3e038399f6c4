package lab

import (
	"os"
	"path/filepath"
	"testing"
)

func TestPrepareWritesWhatEachNodeNeeds(t *testing.T) {
	bin := t.TempDir()
	if _, err := Run(t.Context(), "go", "-C", mustGetwd(t), "build", "-o", bin, "github.com/tandem-storage/tandem/cmd/tandemctl"); err != nil {
		t.Fatal(err)
	}
	for _, kvdb := range []string{"raft", "etcd"} {
		work := t.TempDir()
		var u Undo
		c, err := NewCluster(Spec{Bin: bin, Work: work, KVDB: kvdb, Frontend: "nbd", Nodes: []NodeSpec{
			{Name: "a", Site: "one", Member: true}, {Name: "b", Site: "two", Member: true},
			{Name: "c", Site: "two"}, {Name: "w", Site: "three", Member: true, Witness: true},
		}}, &u)
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Prepare(t.Context()); err != nil {
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
			for _, f := range []string{n.tls.ca, n.tls.cert, n.tls.key} {
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

func mustGetwd(t *testing.T) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	return dir
}
