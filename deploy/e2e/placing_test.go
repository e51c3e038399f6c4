package e2e

import (
	"io/fs"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tandem-storage/tandem/deploy/lab"
)

// TestPlacing: replicas go where labels of nodes, classes of pools and other volumes let them, and a thick one has its space before anything is written.
func TestPlacing(t *testing.T) {
	c := own(t, func(s *lab.Spec) {
		s.Adjust = func(node string, config map[string]any) {
			if labels := map[string]string{"a1": "r1", "a2": "r2", "b1": "r2", "b2": "r1"}[node]; labels != "" {
				config["labels"] = map[string]string{"rack": labels}
				config["pools"] = []map[string]any{{"path": filepath.Join(config["dataDir"].(string), "pool"), "class": map[string]string{"r1": "fast", "r2": "slow"}[labels]}}
			}
		}
	})
	const size = 256 << 20 // of a chunk: the last one is taken whole
	create := func(name, want string, args ...string) view {
		t.Helper()
		c.ctl(t, "a1", append([]string{"volume", "create", name, "--size", "256Mi"}, args...)...)
		v := c.inspect(t, "a1", name)
		var nodes []string
		for _, r := range v.Volume.Replicas {
			nodes = append(nodes, r.Node)
		}
		slices.Sort(nodes)
		if got := slices.Compact(nodes); len(got) != 2 || got[0]+" "+got[1] != want {
			t.Errorf("%s lies on %v, want %s", name, got, want)
		}
		return v
	}
	create("by-rack", "a1 b2", "--nodes", "rack=r1", "--label", "app=db")
	create("by-class", "a2 b1", "--pool-class", "slow")
	create("beside", "a1 b2", "--near", "app=db")
	create("away", "a2 b1", "--apart", "app=db")
	c.refused(t, "b1", 4, []string{"rack", "r9", "a1"}, "volume", "create", "nowhere", "--size", "64Mi", "--nodes", "rack=r9")
	c.refused(t, "b1", 2, []string{"=x"}, "volume", "create", "unreadable", "--size", "64Mi", "--near", "=x")

	thick := create("thick", "a1 b2", "--nodes", "rack=r1", "--thick")
	for _, r := range thick.Volume.Replicas {
		var taken int64
		err := filepath.WalkDir(filepath.Join(c.Node(r.Node).Dir, "data", "pool"), func(path string, e fs.DirEntry, err error) error {
			var st unix.Stat_t
			if err == nil && e.Type().IsRegular() {
				if err = unix.Lstat(path, &st); err == nil {
					taken += st.Blocks * 512
				}
			}
			return err
		})
		if err != nil || taken < size || taken > size+size/4 {
			t.Errorf("the pool of %s has %d bytes in use beside two thin volumes, %v", r.Node, taken, err)
		}
	}
}
