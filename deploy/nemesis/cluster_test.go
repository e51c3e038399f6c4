package nemesis

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tandem-storage/tandem/deploy/lab"
)

// The sites, and the nodes with a replica; both have a member of the kvdb, as the witness at gamma.
const (
	alpha, beta, gamma = "alpha", "beta", "gamma"

	volume = "v"
)

var (
	sites  = []string{alpha, beta, gamma}
	siteOf = map[string]string{"a1": alpha, "b1": beta}
)

// suspect is the shortest that is recommended, as the other timers of the cluster are: a run has many faults.
const suspect = 1200 * time.Millisecond

var timers = map[string]any{
	"beatInterval": "200ms", "suspectTimeout": suspect.String(), "leaseTime": "800ms", "leaseGrant": "1s", "opTimeout": "3s", "sealTimeout": "2s", "stallTimeout": "20s",
}

// failover is about as fast as the configuration allows, with what the timers above leave to it.
var failover = map[string]any{"profile": "aggressive", "nodeTTL": "3s", "confirm": "1500ms", "minInterval": "10s"}

const (
	// slow is what is told of.
	slow = 10 * time.Second

	// waitLimit is how long anything may take that must come about without faults.
	waitLimit = 2 * time.Minute
)

// cluster is the three sites. Its methods fail the test.
type cluster struct {
	*lab.Cluster
	dir string
}

// found makes the cluster and starts it.
func found(t *testing.T) *cluster {
	t.Helper()
	c := &cluster{dir: directory(t)}
	bin := filepath.Join(c.dir, "bin")
	if err := build(t.Context(), bin); err != nil {
		t.Fatal(err)
	}
	var err error
	c.Cluster, err = lab.NewCluster(lab.Spec{
		Bin: bin, Work: c.dir, KVDB: *kvdbFlag, Frontend: "nbd", Networks: true,
		Nodes: []lab.NodeSpec{{Name: "a1", Site: alpha, Member: true}, {Name: "b1", Site: beta, Member: true}, {Name: "w1", Site: gamma, Member: true, Witness: true}},
		Adjust: func(_ string, config map[string]any) {
			config["replication"] = timers
			if *failoverFlag > 0 {
				config["failover"] = failover
			}
		},
	}, &undo)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Prepare(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.logsOf(t) })
	for node := range siteOf {
		c.disk(t, node)
	}
	for _, s := range sites {
		if err := c.Start(s); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Ready(t.Context(), waitLimit); err != nil {
		t.Fatal(err)
	}
	return c
}

// disk puts a node's data on a small file system of its own.
func (c *cluster) disk(t *testing.T, node string) {
	t.Helper()
	image, dir := filepath.Join(c.dir, node+".img"), filepath.Join(c.Node(node).Dir, "data")
	err := os.WriteFile(image, nil, 0o600)
	if err == nil {
		err = os.Truncate(image, 300<<20)
	}
	for _, argv := range [][]string{{"mkfs.ext4", "-q", "-F", "-m", "0", image}, {"mount", "-o", "loop", image, dir}} {
		if err == nil {
			_, err = lab.Run(t.Context(), argv...)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	undo.Add("mount "+dir, func() error { return os.NewSyscallError("umount", unix.Unmount(dir, unix.MNT_DETACH)) })
}

// filler takes the room on a node's disk.
func (c *cluster) filler(node string) string {
	return filepath.Join(c.Node(node).Dir, "data", "filler")
}

// fill leaves no block free on a node's disk.
func (c *cluster) fill(node string) error {
	f, err := os.Create(c.filler(node))
	if err != nil {
		return err
	}
	defer f.Close()
	size := int64(0)
	for step := int64(64 << 20); step >= 4096; {
		if err := unix.Fallocate(int(f.Fd()), 0, size, step); err != nil {
			step /= 2
			continue
		}
		size += step
	}
	return nil
}

// until polls cond for what is seen in the cluster's state only.
func until(t *testing.T, what string, cond func() (bool, error)) {
	t.Helper()
	if err := lab.Until(t.Context(), what, waitLimit, 50*time.Millisecond, cond); err != nil {
		t.Fatal(err)
	}
}

// operator runs tandemctl on a node until it succeeds.
func (c *cluster) operator(t *testing.T, node string, args ...string) string {
	t.Helper()
	var out string
	var last error
	began := time.Now()
	until(t, "tandemctl "+strings.Join(args, " "), func() (bool, error) {
		var err error
		if out, err = c.Ctl(t.Context(), c.Node(node), append([]string{"--timeout", "10s"}, args...)...); err != nil {
			last = err
		}
		return err == nil, err
	})
	if took := since(began); took > slow {
		say("tandemctl %s took %v; before it succeeded: %v", strings.Join(args, " "), took, last)
	}
	return out
}

// What tandemctl says.
const (
	absent  = 3 // exit code of what does not exist
	refused = 4 // of what must not be done in the state that there is

	toImport = "tandemctl kvdb import" // what to do, if the kvdb is older than a replica, or another one
)

// deactivate takes a domain out of service as an operator at a node does, and reports whether that was done: it is refused
// when the last in-sync replica is there, and for nothing else unless stale, when the kvdb may be known to be older than a replica.
func (c *cluster) deactivate(t *testing.T, node, site string, stale bool, how ...string) (done bool) {
	t.Helper()
	args := append([]string{"--timeout", "10s", "cluster", "domains", "deactivate", "--name", site}, how...)
	until(t, "deactivate "+site, func() (bool, error) {
		_, err := c.Ctl(t.Context(), c.Node(node), args...)
		if exitCode(err) == refused && (strings.Contains(err.Error(), "--accept-data-loss") || stale && strings.Contains(err.Error(), toImport)) {
			return true, nil
		}
		done = err == nil
		return done, err
	})
	return done
}

// exitCode is that of the program that failed with err; 0 if err has none.
func exitCode(err error) int {
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode()
	}
	return 0
}

// inSync reports whether both replicas are in sync, as a node sees it; the error tells what they are instead.
func (c *cluster) inSync(t *testing.T, node string) (both bool, err error) {
	v, err := c.Inspect(t.Context(), c.Node(node), volume)
	if err != nil {
		return false, err
	}
	for _, r := range v.Volume.Replicas {
		if !r.InSync {
			return false, fmt.Errorf("%+v", v.Volume.Replicas)
		}
	}
	return true, nil
}

// restore ends every fault: what was stopped or killed runs again, all links work, disks have room.
func (c *cluster) restore(t *testing.T) {
	t.Helper()
	for _, s := range sites {
		c.Heal(s)
	}
	for node := range siteOf {
		if err := os.Remove(c.filler(node)); err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
	}
	for _, p := range c.Processes("") {
		if !p.Running() {
			continue
		}
		if err := p.Signal(syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
	}
	for _, s := range sites {
		if err := c.Start(s); err != nil {
			t.Fatal(err)
		}
	}
}

// both sets the links between two sites, in both directions.
func (c *cluster) both(a, b string, l lab.Link) {
	c.SetLink(a, b, l)
	c.SetLink(b, a, l)
}

// path is what `host attach` printed.
func path(out string) (string, error) {
	var a struct {
		Path string `json:"path"`
	}
	if err := json.Unmarshal([]byte(out), &a); err != nil || a.Path == "" {
		return "", fmt.Errorf("host attach printed %q: %w", out, err)
	}
	return a.Path, nil
}

// logsOf shows what the daemons said last of the volume, when the test failed.
func (c *cluster) logsOf(t *testing.T) {
	if !t.Failed() {
		return
	}
	for node := range siteOf {
		data, err := os.ReadFile(c.Node(node).Log)
		if err != nil {
			t.Log(err)
			continue
		}
		var lines []string
		for line := range strings.Lines(string(data)) {
			if !strings.Contains(line, "retry_interceptor.go") { // the etcd client's, without end
				lines = append(lines, line[:min(len(line), 400)])
			}
		}
		t.Logf("%s:\n%s", node, strings.Join(lines[max(0, len(lines)-30):], ""))
	}
}
