package kube

import (
	"context"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/tandem-storage/tandem/deploy/kube/nodeplan"
	"github.com/tandem-storage/tandem/deploy/lab"
)

// Node is one machine of a cluster.
type Node struct {
	Name, Address string

	cluster *Cluster
	number  int // of all in the world, from 0
	dir     string
	space   *lab.Namespace
	proc    *lab.Process // unshare(1), whose only child is the first process of the node
}

// podRange are the addresses of the node's pods.
func (n *Node) podRange() string { return fmt.Sprintf("10.%d.0.0/24", 200+n.number) }

// kubeletDir is what the kubelet has as /var/lib/kubelet.
func (n *Node) kubeletDir() string { return filepath.Join(n.dir, "kubelet") }

func (n *Node) groups() string { return "tandem-kube-" + n.Name }

func (n *Node) ip(ctx context.Context, commands ...string) error {
	for _, c := range commands {
		if _, err := lab.Run(ctx, n.space.Inside(append([]string{"ip"}, strings.Fields(c)...)...)...); err != nil {
			return err
		}
	}
	return nil
}

// newNode makes the files and the network of a node.
func (c *Cluster) newNode(ctx context.Context, name string) (*Node, error) {
	w := c.world
	n := &Node{Name: name, cluster: c, number: w.nodes, dir: filepath.Join(w.dir, name)}
	n.Address = fmt.Sprintf(strings.TrimSuffix(nodeAddress, "/24"), firstNode+n.number)
	w.nodes++
	for _, d := range []string{"log", "containerd", "kubelet", "cni", "pods", "tandem"} {
		if err := os.MkdirAll(filepath.Join(n.dir, d), 0o755); err != nil {
			return nil, err
		}
	}
	if w.disk > 0 {
		if err := n.giveDisk(ctx, w.disk); err != nil {
			return nil, err
		}
	}
	if err := w.plug(ctx, n); err != nil {
		return nil, err
	}
	// Pods reach those of other nodes of the cluster by routes, without an overlay.
	for _, o := range c.nodes {
		if err := errors.Join(n.ip(ctx, "route add "+o.podRange()+" via "+o.Address), o.ip(ctx, "route add "+n.podRange()+" via "+n.Address)); err != nil {
			return nil, err
		}
	}
	w.undo.Add("control groups of "+name, func() error { return removeGroups(n.groups()) })
	w.undo.Add("node "+name, n.Kill)
	cert := "kubelet-" + name
	err := c.pki.issue(cert, pkix.Name{Organization: []string{"system:nodes"}, CommonName: "system:node:" + name}, []string{name}, net.ParseIP(n.Address))
	if err != nil {
		return nil, err
	}
	c.nodes = append(c.nodes, n)
	return n, errors.Join(c.pki.kubeconfig(cert, c.server()), n.writeFiles())
}

// writeFiles writes the configuration of what runs in the node.
func (n *Node) writeFiles() error {
	c := n.cluster
	pki := func(file string) string { return filepath.Join(c.pki.dir, file) }
	type m = map[string]any
	kubelet, err := json.Marshal(m{
		"apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
		"failCgroupV1": false, "failSwapOn": false, "cgroupDriver": "cgroupfs", "cgroupRoot": "/" + n.groups(),
		"containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
		"authentication":           m{"anonymous": m{"enabled": false}, "webhook": m{"enabled": true}, "x509": m{"clientCAFile": pki("ca.crt")}},
		"authorization":            m{"mode": "Webhook"},
		"tlsCertFile":              pki("kubelet-" + n.Name + ".crt"), "tlsPrivateKeyFile": pki("kubelet-" + n.Name + ".key"),
		"resolvConf": "", "clusterDomain": "cluster.local", "clusterDNS": []string{c.serviceIP(10)},
		"evictionHard":                m{"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
		"imageGCHighThresholdPercent": 100, "volumeStatsAggPeriod": "5s", "syncFrequency": "10s", "nodeStatusUpdateFrequency": "4s",
	})
	if err != nil {
		return err
	}
	cni, err := json.Marshal(m{"cniVersion": "0.4.0", "name": "pods", "plugins": []m{
		{"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true, "hairpinMode": true, "ipam": m{
			"type": "host-local", "ranges": [][]m{{{"subnet": n.podRange()}}}, "dataDir": "/run/cni-ipam", "routes": []m{{"dst": "0.0.0.0/0"}},
		}},
		{"type": "portmap", "capabilities": m{"portMappings": true}},
	}})
	if err != nil {
		return err
	}
	// A machine that may not raise an OOM score cannot lower it either: restrict_oom_score_adj.
	const containerd = `version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
[grpc]
  address = "/run/containerd/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "` + PauseImage + `"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "/etc/cni/net.d"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      SystemdCgroup = false
[plugins."io.containerd.internal.v1.opt"]
  path = "/var/lib/containerd/opt"
`
	for file, data := range map[string][]byte{"kubelet.json": kubelet, "cni/10-pods.conflist": cni, "containerd.toml": []byte(containerd)} {
		if err := os.WriteFile(filepath.Join(n.dir, file), data, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// kubeletOff is a file as long as which exists the kubelet is not started.
func (n *Node) kubeletOff() string { return filepath.Join(n.dir, "kubelet.off") }

// program is one of the node, with its log.
func (n *Node) program(name string, argv ...string) nodeplan.Program {
	return nodeplan.Program{Name: name, Argv: argv, Log: filepath.Join(n.dir, "log", name+".log")}
}

// Start starts the node, or starts it again after Kill, with its disks as they were. It is Ready when the cluster says so: see Cluster.Ready.
func (n *Node) Start(ctx context.Context) error {
	c := n.cluster
	if err := makeGroups(n.groups()); err != nil {
		return err
	}
	plan := nodeplan.Plan{Name: n.Name, Needs: []string{c.world.dir, c.world.bin, filepath.Join(n.dir, "tandem")}, Binds: []nodeplan.Bind{
		{From: n.kubeletDir(), At: "/var/lib/kubelet"},
		{From: filepath.Join(n.dir, "containerd"), At: "/var/lib/containerd"},
		{From: filepath.Join(n.dir, "pods"), At: "/var/log/pods"},
		{From: filepath.Join(n.dir, "cni"), At: "/etc/cni/net.d"},
		{From: filepath.Join(n.dir, "tandem"), At: "/var/lib/tandem"},
	}}
	if n == c.nodes[0] {
		plan.Programs = c.controlPlane(n)
	}
	kubelet := "kubelet-" + n.Name
	plan.Programs = append(plan.Programs,
		n.program("containerd", "/usr/bin/containerd", "--config", filepath.Join(n.dir, "containerd.toml")),
		n.program("kubelet", "/bin/sh", "-c", `while [ -e "$0" ]; do sleep 0.2; done; exec "$@"`, n.kubeletOff(), c.bin("kubelet"), "--config", filepath.Join(n.dir, "kubelet.json"), "--kubeconfig", c.conf(kubelet),
			"--hostname-override", n.Name, "--node-ip", n.Address, "--root-dir", "/var/lib/kubelet"),
		n.program("kube-proxy", c.bin("kube-proxy"), "--kubeconfig", c.conf("proxy"), "--proxy-mode", "iptables", "--hostname-override", n.Name,
			"--cluster-cidr", n.podRange(), "--conntrack-max-per-core", "0", "--bind-address", n.Address),
	)
	data, err := json.Marshal(plan)
	if err != nil {
		return err
	}
	file := filepath.Join(n.dir, "plan.json")
	if err := os.WriteFile(file, data, 0o644); err != nil {
		return err
	}
	n.proc, err = lab.StartProcess("node "+n.Name, filepath.Join(n.dir, "log", "init.log"), nil, n.space.Inside(
		"unshare", "--mount", "--pid", "--uts", "--ipc", "--fork", "--kill-child=KILL", "--mount-proc", "--propagation", "private", c.bin("nodeinit"), file)...)
	if err != nil {
		return err
	}
	return n.importImages(ctx)
}

// importImages waits for containerd and gives it the images.
func (n *Node) importImages(ctx context.Context) error {
	err := lab.Until(ctx, "containerd of "+n.Name, 30*time.Second, 100*time.Millisecond, func() (bool, error) {
		if err := n.proc.Died(); err != nil {
			return false, lab.Final(err)
		}
		_, err := n.Run(ctx, "ctr", "-n", "k8s.io", "version")
		return err == nil, err
	})
	if err != nil {
		return err
	}
	files, err := filepath.Glob(filepath.Join(n.cluster.world.imageDir(), "*.tar"))
	if err != nil {
		return err
	}
	for _, f := range files {
		if _, err := n.Run(ctx, "ctr", "-n", "k8s.io", "images", "import", f); err != nil {
			return err
		}
	}
	return nil
}

// Run runs a command in the node, as one who is logged in there does, and returns its standard output.
func (n *Node) Run(ctx context.Context, argv ...string) (string, error) {
	inside, err := n.inside(argv...)
	if err != nil {
		return "", err
	}
	return lab.Run(ctx, inside...)
}

// inside is a command that runs argv in the node.
func (n *Node) inside(argv ...string) ([]string, error) {
	pid, err := n.first()
	if err != nil {
		return nil, err
	}
	return append([]string{"nsenter", "-t", pid, "-m", "-n", "-p", "-u", "-i", "--"}, argv...), nil
}

// first is the process id, here, of the node's first process.
func (n *Node) first() (string, error) {
	if n.proc == nil {
		return "", fmt.Errorf("kube: node %s does not run", n.Name)
	}
	pid := n.proc.PID()
	children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		return "", err
	}
	all := strings.Fields(string(children))
	if len(all) == 0 {
		return "", fmt.Errorf("kube: node %s has no process yet: %s", n.Name, lab.Tail(n.proc.Log, 3))
	}
	return all[0], nil
}

// Kill ends everything that runs in the node at one instant, with its mounts, as a loss of power does to what it runs; what its programs had
// given to the kernel is written all the same. A node that does not run is left alone.
func (n *Node) Kill() error {
	if n.proc == nil {
		return nil
	}
	first, err := n.first()
	if err != nil {
		first = ""
	}
	before, err := loopFiles()
	err = errors.Join(err, n.proc.Kill())
	n.proc = nil
	if first == "" || err != nil {
		return err
	}
	err = lab.Until(context.Background(), "end of node "+n.Name, 30*time.Second, 20*time.Millisecond, func() (bool, error) {
		_, err := os.Stat("/proc/" + first)
		return errors.Is(err, os.ErrNotExist), err
	})
	if err != nil {
		return err
	}
	// A machine that was without power has none, and a kubelet that finds some of containers that are gone takes three seconds for each.
	return errors.Join(removeGroups(n.groups()), freeLoops(before))
}
