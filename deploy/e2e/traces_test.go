package e2e

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tandem-storage/tandem/kvdb/etcdkv"
)

// traces is all that volumes may leave behind: keys of the kvdb, which is etcd, files of the nodes, files and devices that daemons have open, loop devices,
// mounts and processes.
func (c *cluster) traces(t *testing.T) map[string]bool {
	t.Helper()
	found := map[string]bool{}
	c.keys(t, found)
	servers := map[string]bool{}
	for _, p := range c.Processes("") {
		servers[fmt.Sprint(p.PID())] = true
	}
	for _, n := range stormNodes {
		err := filepath.WalkDir(c.Node(n).Dir, func(path string, _ fs.DirEntry, err error) error {
			if err == nil {
				found["file "+path] = true
			} else if !errors.Is(err, fs.ErrNotExist) {
				found[fmt.Sprintf("error %v", err)] = true
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		open, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", c.Node(n).PID())) // the pattern is right
		for _, fd := range open {
			if what, err := os.Readlink(fd); err == nil && strings.HasPrefix(what, "/") { // no sockets
				found["file that "+n+" has open: "+what] = true
			}
		}
	}
	loops, _ := filepath.Glob("/sys/block/loop*/loop/backing_file") // the pattern is right
	for _, l := range loops {
		if data, err := os.ReadFile(l); err == nil && strings.HasPrefix(string(data), c.dir+"/") {
			found["loop device "+l+" of "+strings.TrimSpace(string(data))] = true
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); strings.HasPrefix(f[4], c.dir+"/") {
			found["mount "+f[4]] = true
		}
	}
	commands, _ := filepath.Glob("/proc/[0-9]*/cmdline") // the pattern is right
	for _, file := range commands {
		if data, err := os.ReadFile(file); err == nil && strings.Contains(string(data), c.dir+"/") && !servers[strings.Split(file, "/")[2]] {
			found["process "+strings.ReplaceAll(string(data), "\x00", " ")] = true
		}
	}
	return found
}

func (c *cluster) keys(t *testing.T, found map[string]bool) {
	t.Helper()
	kv, err := etcdkv.Open(etcdkv.Options{Endpoints: c.Etcd()})
	if err != nil {
		t.Fatal(err)
	}
	kvs, _, err := kv.List(t.Context(), "/tandem/")
	if err = errors.Join(err, kv.Close()); err != nil {
		t.Fatal(err)
	}
	for _, e := range kvs {
		if !strings.Contains(e.Key, "/audit/") && !strings.Contains(e.Key, "/shrunk/") { // which are of operators, and of domains
			found["key "+e.Key] = true
		}
	}
}

// nothingLeft waits until there are no traces but those from before. A snapshot that was given up is looked for two minutes after that: a replica may be at it still.
func (c *cluster) nothingLeft(t *testing.T, before map[string]bool) {
	t.Helper()
	until(t, "nothing is left over", 5*time.Minute, func() (bool, error) {
		left := c.traces(t)
		maps.DeleteFunc(left, func(k string, _ bool) bool { return before[k] })
		names := slices.Sorted(maps.Keys(left))
		return len(names) == 0, fmt.Errorf("%d are left over: %v", len(names), names[:min(len(names), 20)])
	})
}
