package nemesis

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// evict kills away and waits until the volume goes on without it.
func (r *runner) evict() {
	r.t.Helper()
	if err := r.Node(r.away).Kill(); err != nil {
		r.t.Fatal(err)
	}
	until(r.t, "away is evicted", func() (bool, error) {
		v, err := r.Inspect(r.t.Context(), r.Node(r.home), volume)
		if err != nil {
			return false, err
		}
		for _, p := range v.Volume.Replicas {
			if p.Node == r.away {
				return !p.InSync, fmt.Errorf("%+v", p)
			}
		}
		return false, fmt.Errorf("no replica on %s: %+v", r.away, v.Volume.Replicas)
	})
	r.progress("without away")
}

// rollBack kills all members of the kvdb, and has them come back with what they had at the last time, or with nothing at the first; what they
// have now is for the next time.
func (r *runner) rollBack() error {
	old, next := r.backup, filepath.Join(r.dir, fmt.Sprintf("backup-%d", r.cycles))
	r.backup, r.rolled = next, true
	return r.restartKVDBs(func() error {
		if err := r.SaveKVDB(next); err != nil {
			return err
		}
		if old == "" {
			return r.LoseKVDB()
		}
		return errors.Join(r.RestoreKVDB(old), os.RemoveAll(old))
	})
}

// rollBehind evicts away, and has the kvdb come back with what it had immediately before, when away was in sync.
func (r *runner) rollBehind() error {
	r.t.Helper()
	r.settle()
	backup := filepath.Join(r.dir, "backup-before")
	if err := r.restartKVDBs(func() error { return r.SaveKVDB(backup) }); err != nil {
		return err
	}
	r.serve() // the embedded kvdb's members are the daemons
	r.evict()
	r.rolled = true
	return r.restartKVDBs(func() error { return errors.Join(r.RestoreKVDB(backup), os.RemoveAll(backup)) })
}

// restartKVDBs kills the members of the kvdb, lets something happen to what they have on disk, and starts them.
func (r *runner) restartKVDBs(meanwhile func() error) error {
	if err := r.KillKVDBs(); err != nil {
		return err
	}
	if err := meanwhile(); err != nil {
		return err
	}
	return r.StartKVDBs()
}

// importAll does what docs/ops/kvdb-lost.md tells the operator.
func (r *runner) importAll() {
	r.t.Helper()
	for node := range siteOf {
		until(r.t, node+" is registered", func() (bool, error) { return r.registered(node) })
	}
	out := r.operator(r.t, r.home, "kvdb", "import", "--all", "--yes")
	if !strings.Contains(out, "nothing to import") {
		r.imports++
	}
	r.rolled = false
}

// registered reports whether a node is in the kvdb, as it says itself.
func (r *runner) registered(node string) (bool, error) {
	out, err := r.Ctl(r.t.Context(), r.Node(node), "--timeout", "5s", "cluster", "list", "-o", "json")
	if err != nil {
		return false, err
	}
	var l struct {
		Nodes []struct {
			Name  string `json:"name"`
			State string `json:"state"`
		} `json:"nodes"`
	}
	if err := json.Unmarshal([]byte(out), &l); err != nil {
		return false, err
	}
	for _, n := range l.Nodes {
		if n.Name == node {
			return n.State == "NODE_STATE_ONLINE", fmt.Errorf("it is %s", n.State)
		}
	}
	return false, fmt.Errorf("only %v are", l.Nodes)
}
