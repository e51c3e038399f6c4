package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tandem-storage/tandem/deploy/lab"
)

// Sites. Each has two nodes that can take replicas and attach volumes, and a kvdb member that can be killed alone.
const (
	alpha = "alpha"
	beta  = "beta"
	gamma = "gamma"
)

var topology = []lab.NodeSpec{
	{Name: "a1", Site: alpha}, {Name: "a2", Site: alpha}, {Name: "a3", Site: alpha, Member: true, Witness: true},
	{Name: "b1", Site: beta}, {Name: "b2", Site: beta}, {Name: "b3", Site: beta, Member: true, Witness: true},
	{Name: "w1", Site: gamma, Member: true, Witness: true},
}

// cluster is a lab cluster and what tests ask of it. Its methods fail the test.
type cluster struct {
	*lab.Cluster
	dir string
}

// found starts a cluster of its own for a test. change, if not nil, alters the Spec.
func found(t *testing.T, u *lab.Undo, change func(*lab.Spec)) *cluster {
	t.Helper()
	dir, err := os.MkdirTemp(root, strings.ReplaceAll(t.Name(), "/", "_")+"-")
	if err != nil {
		t.Fatal(err)
	}
	spec := lab.Spec{Bin: bin, Work: dir, KVDB: *kvdbFlag, Frontend: "nbd", Nodes: topology}
	if change != nil {
		change(&spec)
	}
	lc, err := lab.NewCluster(spec, u)
	if err != nil {
		t.Fatal(err)
	}
	c := &cluster{Cluster: lc, dir: dir}
	if err := c.Prepare(t.Context()); err != nil {
		t.Fatal(err)
	}
	return c
}

// start starts every site and waits until all of it answers and every node is registered.
func (c *cluster) start(t *testing.T) {
	t.Helper()
	for _, site := range []string{alpha, beta, gamma} {
		if err := c.Start(site); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Ready(t.Context(), time.Minute); err != nil {
		t.Fatal(err)
	}
	for _, n := range []string{"a1", "a2", "b1", "b2"} {
		c.online(t, n)
	}
}

// own founds and starts a cluster that ends with the test, which runs beside others of that kind. prepare, if there, gets it before the start.
func own(t *testing.T, change func(*lab.Spec), prepare ...func(*lab.Undo, *cluster)) *cluster {
	t.Helper()
	t.Parallel()
	var u lab.Undo
	t.Cleanup(func() {
		if err := u.Run(); err != nil {
			t.Error(err)
		}
	})
	c := found(t, &u, change)
	t.Cleanup(func() { c.logsOf(t) })
	for _, f := range prepare {
		f(&u, c)
	}
	c.start(t)
	return c
}

var common *cluster // made by the first test that asks, replaced after a test that left it ill

// shared returns the cluster that tests share. Each makes volumes of its own and leaves every node running.
func shared(t *testing.T) *cluster {
	t.Helper()
	if common == nil {
		c := found(t, &undo, nil)
		c.start(t)
		common = c
	}
	c := common
	t.Cleanup(func() {
		c.logsOf(t)
		if t.Failed() { // what it left is nobody's business
			common = nil
			for _, p := range c.Processes("") {
				_ = p.Kill()
			}
		}
	})
	return c
}

// third is a node in no site of the data, which only an embedded kvdb has; with etcd it is the one named instead.
func (c *cluster) third(instead string) string {
	if *kvdbFlag == "raft" {
		return "w1"
	}
	return instead
}

// killMembers kills the kvdb's members of these sites. Start brings them back.
func (c *cluster) killMembers(t *testing.T, sites ...string) {
	t.Helper()
	for _, s := range sites {
		m, err := c.KVDB(s)
		if err == nil {
			err = m.Kill()
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// startSites starts what does not run in these sites.
func (c *cluster) startSites(t *testing.T, sites ...string) {
	t.Helper()
	for _, s := range sites {
		if err := c.Start(s); err != nil {
			t.Fatal(err)
		}
	}
}

// logsOf shows what the daemons said that is out of the ordinary, when the test failed.
func (c *cluster) logsOf(t *testing.T) {
	if !t.Failed() {
		return
	}
	logs, _ := filepath.Glob(filepath.Join(c.dir, "log", "*.log"))
	for _, l := range logs {
		data, err := os.ReadFile(l)
		if err != nil {
			t.Log(err)
			continue
		}
		var lines []string
		for line := range strings.Lines(string(data)) {
			var e entry
			if json.Unmarshal([]byte(line), &e) != nil || e.Level != "info" || e.Volume != "" {
				lines = append(lines, line[:min(len(line), 400)])
			}
		}
		t.Logf("%s:\n%s", filepath.Base(l), strings.Join(lines[max(0, len(lines)-20):], ""))
	}
}

// chapters runs subtests of which each needs the one before.
func chapters(t *testing.T, all ...chapter) {
	t.Helper()
	for _, ch := range all {
		if !t.Run(ch.name, ch.f) {
			t.FailNow()
		}
	}
}

type chapter struct {
	name string
	f    func(t *testing.T)
}

// until polls cond for what is seen in the cluster's state only.
func until(t *testing.T, what string, within time.Duration, cond func() (bool, error)) {
	t.Helper()
	if err := lab.Until(t.Context(), what, within, 100*time.Millisecond, cond); err != nil {
		t.Fatal(err)
	}
}

// ctl runs tandemctl, which must succeed, and returns what it printed.
func (c *cluster) ctl(t *testing.T, node string, args ...string) string {
	t.Helper()
	out, err := c.Ctl(t.Context(), c.Node(node), args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// refused runs tandemctl, which must fail with that exit code and an error message with all of those words.
func (c *cluster) refused(t *testing.T, node string, exit int, words []string, args ...string) {
	t.Helper()
	out, err := c.Ctl(t.Context(), c.Node(node), args...)
	if err == nil {
		t.Errorf("tandemctl %s: succeeded and printed %q, want exit code %d", strings.Join(args, " "), out, exit)
		return
	}
	checkRefusal(t, err, exit, words)
}

func checkRefusal(t *testing.T, err error, exit int, words []string) {
	t.Helper()
	var ee *exec.ExitError
	if !errors.As(err, &ee) || ee.ExitCode() != exit {
		t.Errorf("want exit code %d: %v", exit, err)
	}
	for _, w := range words {
		if _, said, _ := strings.Cut(err.Error(), "exit status"); !strings.Contains(said, w) {
			t.Errorf("the message does not say %q: %v", w, err)
		}
	}
	if n := strings.Count(err.Error(), "Error:"); n != 1 {
		t.Errorf("%d errors where one was asked for: %v", n, err)
	}
}

// vol is a volume with a replica in each domain, and the nodes as the tests see them.
type vol struct {
	name         string
	home, spare  string // in alpha: with the replica, without
	away, spare2 string // in beta: with the replica, without
}

// create makes a volume; it is deleted with the test if that leaves it detached.
func (c *cluster) create(t *testing.T, name, size string) vol {
	t.Helper()
	return c.createBy(t, "b1", name, size)
}

// createBy is create by way of a node.
func (c *cluster) createBy(t *testing.T, node, name, size string) vol {
	t.Helper()
	c.ctl(t, node, "volume", "create", name, "--size", size, "--replicas", "2", "--timeout", "30s")
	t.Cleanup(func() {
		if !t.Failed() {
			c.ctlLater("b1", "volume", "delete", name, "--yes", "--wait", "--timeout", "30s")
		}
	})
	v := vol{name: name}
	for _, r := range c.inspect(t, node, name).Volume.Replicas {
		other := map[string]string{"a1": "a2", "a2": "a1", "b1": "b2", "b2": "b1"}[r.Node]
		if r.Domain == alpha {
			v.home, v.spare = r.Node, other
		} else {
			v.away, v.spare2 = r.Node, other
		}
	}
	if v.home == "" || v.away == "" {
		t.Fatalf("not one replica of %s in each domain: %+v", name, c.inspect(t, node, name).Volume.Replicas)
	}
	return v
}

// ctlLater runs tandemctl after the end of a test, for what it left.
func (c *cluster) ctlLater(node string, args ...string) {
	_, _ = c.Ctl(context.Background(), c.Node(node), args...)
}

// view is what `volume inspect` tells.
type view struct {
	*lab.VolumeView
	raw string
}

func (v view) replica(node string) *lab.ReplicaView {
	i := slices.IndexFunc(v.Volume.Replicas, func(r lab.ReplicaView) bool { return r.Node == node })
	if i < 0 {
		return nil
	}
	return &v.Volume.Replicas[i]
}

func (c *cluster) inspect(t *testing.T, node, volume string) view {
	t.Helper()
	out := c.ctl(t, node, "volume", "inspect", volume, "-o", "json")
	var v lab.VolumeView
	if err := json.Unmarshal([]byte(out), &v); err != nil {
		t.Fatalf("volume inspect printed %q: %v", out, err)
	}
	return view{&v, out}
}

// stallOf returns the cause of a stall as the coordinator names it, or "".
func (v view) stall() string {
	var s struct {
		Volume struct {
			Stall *struct {
				Cause string `json:"cause"`
			} `json:"stall"`
		} `json:"volume"`
	}
	if json.Unmarshal([]byte(v.raw), &s) != nil || s.Volume.Stall == nil {
		return ""
	}
	return s.Volume.Stall.Cause
}

// attach attaches over NBD unless kind says otherwise. It may be asked for again: a takeover waits for leases and for the
// registration of a dead node to expire.
func (c *cluster) attach(t *testing.T, node, volume string, kind ...string) string {
	t.Helper()
	args := []string{"--timeout", "40s", "host", "attach", volume, "-o", "json"}
	if len(kind) > 0 {
		args = append(args, "--frontend", kind[0])
	}
	var a struct {
		Path string `json:"path"`
	}
	until(t, "attach "+volume+" on "+node, time.Minute, func() (bool, error) {
		out, err := c.Ctl(t.Context(), c.Node(node), args...)
		if err != nil {
			return false, err
		}
		if err := json.Unmarshal([]byte(out), &a); err != nil || a.Path == "" {
			return false, lab.Final(fmt.Errorf("host attach printed %q: %w", out, err))
		}
		return true, nil
	})
	return a.Path
}

func (c *cluster) detach(t *testing.T, node, volume string) {
	t.Helper()
	c.ctl(t, node, "host", "detach", volume, "--timeout", "30s")
}

// inSync waits until the replicas on these nodes, and on no other, are in sync.
func (c *cluster) inSync(t *testing.T, ask, volume string, within time.Duration, nodes ...string) {
	t.Helper()
	until(t, fmt.Sprintf("%s in sync on %v and there only", volume, nodes), within, func() (bool, error) {
		v, err := c.Inspect(t.Context(), c.Node(ask), volume)
		if err != nil {
			return false, err
		}
		var is []string
		for _, r := range v.Volume.Replicas {
			if r.InSync {
				is = append(is, r.Node)
			}
		}
		slices.Sort(is)
		return slices.Equal(is, nodes), fmt.Errorf("in sync on %v: %+v", is, v.Volume.Replicas)
	})
}

// identical compares the chunk files of both replicas of a volume that nobody writes to.
func (c *cluster) identical(t *testing.T, volume string) {
	t.Helper()
	v := c.inspect(t, "b1", volume)
	n, err := c.CompareReplicas(v.VolumeView)
	if err != nil {
		t.Errorf("%s: %v", volume, err)
	}
	t.Logf("%s: %d MiB of both replicas are identical", volume, n>>20)
}

// online waits until a node is registered, with its pools, and answers. It is asked itself: the others still see what a
// daemon that was killed registered, for as long as its lease lasts.
func (c *cluster) online(t *testing.T, node string) {
	t.Helper()
	until(t, fmt.Sprintf("node %s is online", node), 30*time.Second, func() (bool, error) {
		state, pools, err := c.registered(t, node, node)
		return state == "NODE_STATE_ONLINE" && pools > 0, errors.Join(err, fmt.Errorf("it is %s with %d pools", state, pools))
	})
}

// offline waits until the others do not count on a node any more that was stopped: if it could not take its registration back, that lasts as
// long as its lease.
func (c *cluster) offline(t *testing.T, asked, node string) {
	t.Helper()
	until(t, fmt.Sprintf("node %s is not online", node), 30*time.Second, func() (bool, error) {
		state, _, err := c.registered(t, asked, node)
		return err == nil && state != "NODE_STATE_ONLINE", errors.Join(err, fmt.Errorf("it is %s", state))
	})
}

// registered is what one node knows of another one's registration.
func (c *cluster) registered(t *testing.T, asked, node string) (state string, pools int, err error) {
	t.Helper()
	out, err := c.Ctl(t.Context(), c.Node(asked), "cluster", "list", "-o", "json")
	if err != nil {
		return "", 0, err
	}
	var l struct {
		Nodes []struct {
			Name  string `json:"name"`
			State string `json:"state"`
			Pools []any  `json:"pools"`
		} `json:"nodes"`
	}
	if err := json.Unmarshal([]byte(out), &l); err != nil {
		return "", 0, lab.Final(fmt.Errorf("cluster list printed %q: %w", out, err))
	}
	for _, n := range l.Nodes {
		if n.Name == node {
			return n.State, len(n.Pools), nil
		}
	}
	return "not in the list", 0, nil
}

// entry is a line of a daemon's log.
type entry struct {
	Level   string `json:"level"`
	Msg     string `json:"msg"`
	Volume  string `json:"volume-id"`
	Replica string `json:"replica-id"`
	Reason  string `json:"reason"`
	Blocks  int    `json:"blocks"`
	Dirty   int    `json:"unreconciled-blocks"`
	Epoch   uint64 `json:"epoch"`
	raw     string
}

// mark is a place in a daemon's log.
type mark struct {
	path string
	off  int64
}

// mark returns the present end of a node's log.
func (c *cluster) mark(t *testing.T, node string) mark {
	t.Helper()
	st, err := os.Stat(c.Node(node).Log)
	if err != nil {
		t.Fatal(err)
	}
	return mark{c.Node(node).Log, st.Size()}
}

// since returns the entries with that message that were logged after the mark.
func (m mark) since(t *testing.T, msg string) []entry {
	t.Helper()
	data, err := os.ReadFile(m.path)
	if err != nil {
		t.Fatal(err)
	}
	var found []entry
	for line := range strings.Lines(string(data[m.off:])) {
		e := entry{raw: line}
		if json.Unmarshal([]byte(line), &e) == nil && e.Msg == msg {
			found = append(found, e)
		}
	}
	return found
}

// await waits for an entry with that message.
func (m mark) await(t *testing.T, msg string, within time.Duration) entry {
	t.Helper()
	var es []entry
	until(t, fmt.Sprintf("%s says %q", filepath.Base(m.path), msg), within, func() (bool, error) {
		es = m.since(t, msg)
		return len(es) > 0, errors.New(lab.Tail(m.path, 5))
	})
	return es[len(es)-1]
}

// need skips the test where a program is not to be had.
func need(t *testing.T, programs ...string) {
	t.Helper()
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			t.Skipf("no %s here (make deps installs it)", p)
		}
	}
}

// needRoot skips the test without root or a device.
func needRoot(t *testing.T, devices ...string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("not root")
	}
	for _, d := range devices {
		if _, err := os.Stat(d); err != nil {
			t.Skip(err)
		}
	}
}

// sh runs a program, which must succeed, and returns what it printed.
func sh(t *testing.T, argv ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	out, err := lab.Run(ctx, argv...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}
