//go:build vm

package vm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tandem-storage/tandem/datapath/frontend/nbd"
	"github.com/tandem-storage/tandem/deploy/lab"
	"github.com/tandem-storage/tandem/deploy/vm/order"
)

// The cluster: a machine with a replica in each of two sites, and a witness that is a process beside them.
const (
	alpha, beta, gamma = "alpha", "beta", "gamma"

	peerPort, raftPort = "7000", "7001"

	systemSize = 256 << 20 // of the disk with the store's data
	poolSize   = 1 << 30   // of the disk with the replicas; XFS wants 300 MiB

	poolDisk, poolPath = "/dev/vdb", "/data/pool"
)

// daemon starts it.
var daemon = order.Request{Op: order.Daemon, Argv: []string{"/bin/tandemd", "--config", "/etc/tandem/tandemd.yaml"}}

// waitLimit is how long anything may take: far longer than it does, on a machine that others use as well.
const waitLimit = 10 * time.Minute

var nodes = []string{"a1", "b1"} // the machines

// cluster is two machines and a witness. Its methods fail the test.
type cluster struct {
	*lab.Cluster
	dir      string
	fs       string // of the pools
	mapped   bool   // they are on a device of the kernel's device mapper
	machines map[string]*Machine
	founded  bool         // the file systems and the store are there
	died     atomic.Value // string: how a daemon ended by itself
}

// found makes the cluster, with its pools on a file system of that type, mapped or not, and switches it on. News gets the lines of its writers.
func found(t *testing.T, fs string, mapped bool, news func(order.Line)) *cluster {
	t.Helper()
	c, network := hardware(t, fs, mapped, news)
	t.Cleanup(func() { c.logsOf(t) })
	c.prepare(t, network)
	if err := c.Start(gamma); err != nil {
		t.Fatal(err)
	}
	c.on(t, nodes...)
	c.founded = true
	return c
}

// hardware makes the machines, switched off.
func hardware(t *testing.T, fs string, mapped bool, news func(order.Line)) (*cluster, *Network) {
	t.Helper()
	dir, err := os.MkdirTemp("/var/tmp", "tandem-vm-")
	if err != nil {
		t.Fatal(err)
	}
	c := &cluster{dir: dir, fs: fs, mapped: mapped, machines: map[string]*Machine{}}
	undo.Add(dir, func() error {
		if *keepFlag {
			say("left in place: %s", dir)
			return nil
		}
		return os.RemoveAll(dir)
	})
	t.Cleanup(func() {
		if err := undo.Run(); err != nil {
			t.Error(err)
		}
	})
	ctx := t.Context()
	network, err := NewNetwork(ctx, len(nodes), &undo)
	if err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(dir, "nbd.sock")
	server, err := nbd.Listen(nbd.Options{Endpoints: []nbd.Endpoint{{Network: "unix", Address: socket}}})
	if err != nil {
		t.Fatal(err)
	}
	undo.Add("disks", server.Close)
	kernel, err := filepath.Glob(filepath.Join(*kernelFlag, "boot", "vmlinuz-*"))
	if err != nil || len(kernel) != 1 {
		t.Fatalf("no kernel in -kernel=%q (make test-vm fetches it)", *kernelFlag)
	}
	for i, n := range nodes {
		c.machines[n] = NewMachine(MachineSpec{
			Name: n, Work: dir, Kernel: kernel[0], Image: image, NBD: socket,
			Disks:   []*Disk{NewDisk(server, n+"-system", systemSize), NewDisk(server, n+"-pool", poolSize)},
			Network: network, Tap: network.Tap(i), MAC: network.MAC(i),
			News: func(line order.Line) {
				if line.Died != "" {
					c.died.Store(n + ": " + line.Died)
					return
				}
				news(line)
			},
		})
	}
	return c, network
}

// prepare makes certificates and configuration files.
func (c *cluster) prepare(t *testing.T, network *Network) {
	t.Helper()
	ips := map[string]string{"a1": network.Address(0), "b1": network.Address(1), "w1": network.Host()}
	type m = map[string]any
	var members []m
	for _, n := range []string{"a1", "b1", "w1"} {
		members = append(members, m{"id": n, "raftAddr": net.JoinHostPort(ips[n], raftPort), "peerAddr": net.JoinHostPort(ips[n], peerPort)})
	}
	lc, err := lab.NewCluster(lab.Spec{
		Bin: bin, Work: c.dir, KVDB: "raft", Frontend: "fuseloop", Namespace: network.Namespace,
		Nodes: []lab.NodeSpec{{Name: "a1", Site: alpha, Member: true}, {Name: "b1", Site: beta, Member: true}, {Name: "w1", Site: gamma, Member: true, Witness: true}},
		Adjust: func(node string, config map[string]any) {
			config["peer"] = m{"listen": net.JoinHostPort(ips[node], peerPort)}
			raft := config["kvdb"].(m)["raft"].(m)
			raft["listen"], raft["members"] = net.JoinHostPort(ips[node], raftPort), members
			if node != "w1" {
				config["dataDir"], config["runDir"] = "/data", "/run/tandem"
				config["tls"] = m{"ca": "/etc/tandem/ca.crt", "cert": "/etc/tandem/node.crt", "key": "/etc/tandem/node.key"}
			}
		},
	}, &undo)
	if err != nil {
		t.Fatal(err)
	}
	c.Cluster = lc
	if err := lc.Prepare(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// on boots machines, all at once, and starts their daemons.
func (c *cluster) on(t *testing.T, names ...string) {
	t.Helper()
	errs := make([]error, len(names))
	var wg sync.WaitGroup
	for i, n := range names {
		wg.Go(func() { errs[i] = c.boot(t.Context(), n) })
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	for _, n := range names {
		c.online(t, n)
	}
}

// boot switches a machine on, checks its file systems, or makes them, and starts the daemon.
func (c *cluster) boot(ctx context.Context, name string) error {
	m := c.machines[name]
	if err := m.Boot(ctx, &undo); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	config, address, err := c.configuration(name)
	if err != nil {
		return err
	}
	for _, argv := range [][]string{{"ip", "link", "set", "lo", "up"}, {"ip", "addr", "add", address + "/24", "dev", "eth0"}, {"ip", "link", "set", "eth0", "up"}} {
		if _, err := m.Run(ctx, argv...); err != nil {
			return err
		}
	}
	for _, f := range []string{"ca.crt", "node.crt", "node.key"} {
		data, err := os.ReadFile(filepath.Join(c.Node(name).Dir, "pki", f))
		if err != nil {
			return err
		}
		if _, err := m.Ask(ctx, order.Request{Op: order.Put, Path: "/etc/tandem/" + f, Input: string(data)}); err != nil {
			return err
		}
	}
	if _, err := m.Ask(ctx, order.Request{Op: order.Put, Path: "/etc/tandem/tandemd.yaml", Input: string(config)}); err != nil {
		return err
	}
	if c.mapped {
		if err := c.mapPool(ctx, m); err != nil {
			return err
		}
	}
	if !c.founded {
		if err := errors.Join(makeFS(ctx, m, "ext4", "/dev/vda"), makeFS(ctx, m, c.fs, c.poolDevice())); err != nil {
			return err
		}
	}
	if err := mountClean(ctx, m, "/dev/vda", "/data", "ext4"); err != nil {
		return err
	}
	if err := c.mountPool(ctx, name); err != nil {
		return err
	}
	_, err = m.Ask(ctx, daemon)
	return err
}

// poolDevice is what the file system of a pool is on.
func (c *cluster) poolDevice() string {
	if c.mapped {
		return "/dev/dm-0" // udev, which gives it its name, is not here
	}
	return poolDisk
}

// mountPool mounts the pool of a node, which must be without fault.
func (c *cluster) mountPool(ctx context.Context, node string) error {
	return mountClean(ctx, c.machines[node], c.poolDevice(), poolPath, c.fs)
}

// configuration returns the daemon's configuration, and the machine's address. It founds a store the first time only.
func (c *cluster) configuration(node string) (config []byte, address string, err error) {
	if config, err = os.ReadFile(c.Node(node).ConfigFile()); err != nil {
		return nil, "", err
	}
	var parsed map[string]any
	if err := json.Unmarshal(config, &parsed); err != nil {
		return nil, "", err
	}
	if c.founded {
		parsed["kvdb"].(map[string]any)["raft"].(map[string]any)["bootstrap"] = false
		if config, err = json.Marshal(parsed); err != nil {
			return nil, "", err
		}
	}
	address, _, err = net.SplitHostPort(parsed["peer"].(map[string]any)["listen"].(string))
	return config, address, err
}

func makeFS(ctx context.Context, m *Machine, fs, dev string) error {
	argv := []string{"mkfs.xfs", "-q", "--unsupported", dev} // of less than 300 MiB
	if fs == "ext4" {
		argv = []string{"mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=1", dev}
	}
	_, err := m.Run(ctx, argv...)
	return err
}

// mountClean mounts a file system, which replays its log, checks that it is without fault then, and leaves it mounted.
func mountClean(ctx context.Context, m *Machine, dev, path, fs string) error {
	for _, q := range []order.Request{{Op: order.Mount, Device: dev, Path: path, FS: fs}, {Op: order.Umount, Path: path}} {
		if _, err := m.Ask(ctx, q); err != nil {
			return err
		}
	}
	if err := checkFS(ctx, m, dev, fs); err != nil {
		return err
	}
	_, err := m.Ask(ctx, order.Request{Op: order.Mount, Device: dev, Path: path, FS: fs})
	return err
}

// checkFS checks a file system that is not mounted.
func checkFS(ctx context.Context, m *Machine, dev, fs string) error {
	argv := []string{"xfs_repair", "-n", dev}
	if fs == "ext4" {
		argv = []string{"e2fsck", "-f", "-n", dev}
	}
	_, err := m.Run(ctx, argv...)
	return err
}

// cutPower takes the power from machines, and the machines away.
func (c *cluster) cutPower(t *testing.T, l Loss, names ...string) {
	t.Helper()
	var disks []*Disk
	for _, n := range names {
		disks = append(disks, c.machines[n].Disks...)
	}
	Cut(l, disks...)
	for _, n := range names {
		if err := c.machines[n].Remove(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

// order has the agent of a node do something.
func (c *cluster) order(t *testing.T, node string, q order.Request) order.Line {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), waitLimit)
	defer cancel()
	line, err := c.machines[node].Ask(ctx, q)
	if err != nil {
		t.Fatal(err)
	}
	return line
}

// ctl runs tandemctl in a machine.
func (c *cluster) ctl(t *testing.T, node string, args ...string) (string, error) {
	return c.machines[node].Run(t.Context(), append([]string{"/bin/tandemctl"}, args...)...)
}

// look runs tandemctl on the host, against the witness: a program starts there in no time.
func (c *cluster) look(t *testing.T, args ...string) (string, error) {
	return c.Ctl(t.Context(), c.Node("w1"), args...)
}

// until polls cond for what is seen in the cluster's state only.
func (c *cluster) until(t *testing.T, what string, cond func() (bool, error)) {
	t.Helper()
	err := lab.Until(t.Context(), what, waitLimit, 200*time.Millisecond, func() (bool, error) {
		for _, m := range c.machines {
			if err := m.Died(); err != nil {
				return false, lab.Final(err)
			}
		}
		if how, ok := c.died.Load().(string); ok {
			return false, lab.Final(errors.New(how))
		}
		return cond()
	})
	if err != nil {
		t.Fatal(err)
	}
}

// online waits until a node is registered, with its pool.
func (c *cluster) online(t *testing.T, node string) {
	t.Helper()
	c.until(t, node+" is online", func() (bool, error) {
		out, err := c.look(t, "cluster", "list", "-o", "json")
		if err != nil {
			return false, err
		}
		var l struct {
			Nodes []struct {
				Name  string `json:"name"`
				State string `json:"state"`
				Pools []any  `json:"pools"`
			} `json:"nodes"`
		}
		if err := json.Unmarshal([]byte(out), &l); err != nil {
			return false, lab.Final(err)
		}
		for _, n := range l.Nodes {
			if n.Name == node {
				return n.State == "NODE_STATE_ONLINE" && len(n.Pools) > 0, fmt.Errorf("it is %+v", n)
			}
		}
		return false, errors.New("it is not in the list")
	})
}

// attach attaches a volume and returns its device. It may be asked for again: a takeover waits for what the dead one held.
func (c *cluster) attach(t *testing.T, node, volume string) string {
	t.Helper()
	var a struct {
		Path string `json:"path"`
	}
	c.until(t, "attach "+volume+" on "+node, func() (bool, error) {
		out, err := c.ctl(t, node, "--timeout", "60s", "host", "attach", volume, "-o", "json")
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

// replicas tells the state of each replica, by node.
func (c *cluster) replicas(t *testing.T, volume string) (map[string]lab.ReplicaView, error) {
	out, err := c.look(t, "volume", "inspect", volume, "-o", "json")
	if err != nil {
		return nil, err
	}
	var v lab.VolumeView
	if err := json.Unmarshal([]byte(out), &v); err != nil {
		return nil, lab.Final(fmt.Errorf("volume inspect printed %q: %w", out, err))
	}
	byNode := map[string]lab.ReplicaView{}
	for _, r := range v.Volume.Replicas {
		byNode[r.Node] = r
	}
	return byNode, nil
}

// inSync waits until the replicas of these nodes, and of no others, are in sync.
func (c *cluster) inSync(t *testing.T, volume string, want ...string) {
	t.Helper()
	c.until(t, fmt.Sprintf("%s is in sync on %v", volume, want), func() (bool, error) {
		rs, err := c.replicas(t, volume)
		if err != nil {
			return false, err
		}
		var are []string
		for _, n := range nodes {
			if rs[n].InSync {
				are = append(are, n)
			}
		}
		return slices.Equal(are, want), fmt.Errorf("%+v", rs)
	})
}

// identical compares the replicas of all volumes, which must be detached, and returns how many bytes each node has that are not zero.
func (c *cluster) identical(t *testing.T) int64 {
	t.Helper()
	var first map[string]string
	var compared int64
	for _, n := range nodes {
		line := c.order(t, n, order.Request{Op: order.Digest, Path: poolPath})
		byVolume := map[string]string{}
		for dir, digest := range line.Digests {
			volume, _, _ := strings.Cut(dir, ".")
			byVolume[volume] = digest
		}
		switch {
		case first == nil:
			first, compared = byVolume, line.Bytes
		case len(byVolume) == 0 || !maps.Equal(first, byVolume):
			t.Fatalf("the replicas differ: %v on %s, %v on %s", first, nodes[0], byVolume, n)
		}
	}
	return compared
}

// logsOf shows what there is to see when the test failed.
func (c *cluster) logsOf(t *testing.T) {
	if !t.Failed() {
		return
	}
	t.Log(lab.Tail(c.Node("w1").Log, 8))
	for _, n := range nodes {
		t.Log(lab.Tail(c.machines[n].console(), 8))
		t.Log(strings.ReplaceAll(lab.Tail(c.machines[n].Log, 25), "\r", ""))
	}
}
