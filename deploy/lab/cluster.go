package lab

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Spec says what cluster to make.
type Spec struct {
	Bin      string // directory with tandemd, tandemctl and, for KVDB "etcd", etcd
	Work     string // directory for everything that it writes; on a disk with XFS or ext4
	KVDB     string // "raft" (embedded) or "etcd" (a server for each member)
	Frontend string // default front end: "fuseloop" or "nbd"
	Nodes    []NodeSpec
	// Failover is the profile of automatic failover, "" for none.
	Failover string

	// Adjust, if not nil, changes the configuration of a node before it is written.
	Adjust func(node string, config map[string]any)
	// Networks gives every site a network of its own, which Cut separates from the others. Needs root, ip(8) and /dev/net/tun.
	Networks bool
	// Namespace, if not nil, is where all servers run. It does not go with Networks.
	Namespace *Namespace
}

// NodeSpec is one node.
type NodeSpec struct {
	Name, Site string
	Member     bool // of the kvdb
	Witness    bool // holds no data
}

// Cluster is everything that runs as a server. Not safe for concurrent use.
type Cluster struct {
	spec  Spec
	nodes []*Node
	etcd  []*etcdMember
	nets  *networks // nil: all on loopback
	undo  *Undo
}

// Node is one tandemd.
type Node struct {
	NodeSpec
	Dir    string // of all its directories: <work>/<site>/<name>
	Log    string
	Socket string // for tandemctl

	config             string
	tls                tlsFiles
	peerAddr, raftAddr string
	proc               *Process
	program            string // tandemd, "": that of the cluster
	boot               string // what it takes for the boot id of its machine, "": the real one
}

// etcdMember is one etcd server, in the site of a kvdb member.
type etcdMember struct {
	name, site         string
	dir, log           string
	clientURL, peerURL string
	proc               *Process
}

// NewCluster returns a cluster of which nothing runs yet. What it starts is ended by u.
func NewCluster(s Spec, u *Undo) (*Cluster, error) {
	c := &Cluster{spec: s, undo: u}
	ports, err := freePorts(2 * len(s.Nodes))
	if err != nil {
		return nil, err
	}
	if s.Networks {
		c.nets = planNetworks(s.Nodes)
		ports = c.nets.addresses(s.Nodes)
	}
	for i, ns := range s.Nodes {
		if s.KVDB == "etcd" && ns.Member {
			name := "etcd-" + ns.Site
			e := &etcdMember{name: name, site: ns.Site, dir: filepath.Join(s.Work, ns.Site, name), log: filepath.Join(s.Work, "log", name+".log")}
			urls, err := freePorts(2)
			if err != nil {
				return nil, err
			}
			if c.nets != nil {
				urls = []string{c.nets.kvdbAt(ns.Site, 2379), c.nets.kvdbAt(ns.Site, 2380)}
			}
			e.clientURL, e.peerURL = "http://"+urls[0], "http://"+urls[1]
			c.etcd = append(c.etcd, e)
			if ns.Witness {
				continue // the etcd member is the witness
			}
		}
		dir := filepath.Join(s.Work, ns.Site, ns.Name)
		c.nodes = append(c.nodes, &Node{
			NodeSpec: ns, Dir: dir, Log: filepath.Join(s.Work, "log", ns.Name+".log"), Socket: filepath.Join(dir, "run", "tandemd.sock"),
			config: filepath.Join(dir, "tandemd.yaml"), peerAddr: ports[2*i], raftAddr: ports[2*i+1],
		})
	}
	return c, nil
}

// given are the addresses that freePorts returned: of another cluster of this process, whose daemons are about to listen there.
var given = struct {
	sync.Mutex
	addrs map[string]bool
}{addrs: map[string]bool{}}

// freePorts returns addresses on loopback that nobody listens on.
func freePorts(n int) ([]string, error) {
	given.Lock()
	defer given.Unlock()
	var addrs []string
	for len(addrs) < n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer l.Close()
		if addr := l.Addr().String(); !given.addrs[addr] {
			given.addrs[addr] = true
			addrs = append(addrs, addr)
		}
	}
	return addrs, nil
}

// Node returns the node of that name, which must be one of the Spec.
func (c *Cluster) Node(name string) *Node {
	return c.nodes[slices.IndexFunc(c.nodes, func(n *Node) bool { return n.Name == name })]
}

// Etcd returns the client URLs of the etcd servers, none with another KVDB.
func (c *Cluster) Etcd() (urls []string) {
	for _, e := range c.etcd {
		urls = append(urls, e.clientURL)
	}
	return urls
}

// SiteDir is where everything of a site is.
func (c *Cluster) SiteDir(site string) string { return filepath.Join(c.spec.Work, site) }

// Prepare makes directories, certificates and configuration files.
func (c *Cluster) Prepare(ctx context.Context) error {
	if err := os.MkdirAll(filepath.Join(c.spec.Work, "log"), 0o755); err != nil {
		return err
	}
	if err := c.issue(ctx); err != nil {
		return err
	}
	if c.nets != nil {
		if err := c.nets.make(ctx, c.undo); err != nil {
			return err
		}
	}
	for _, n := range c.nodes {
		for _, dir := range []string{"data", "run"} {
			if err := os.MkdirAll(filepath.Join(n.Dir, dir), 0o755); err != nil {
				return err
			}
		}
		if err := c.writeConfig(n, true); err != nil {
			return err
		}
	}
	return nil
}

// writeConfig writes the configuration of a node. found lets a kvdb member found the store: on its first start only.
func (c *Cluster) writeConfig(n *Node, found bool) error {
	role := "node"
	if n.Witness {
		role = "witness"
	}
	type m = map[string]any
	cfg := m{
		"apiVersion":  "tandem-storage.github.io/v1",
		"kind":        "Config",
		"clusterName": clusterName,
		"nodeID":      n.Name,
		"domain":      n.Site,
		"role":        role,
		"dataDir":     filepath.Join(n.Dir, "data"),
		"runDir":      filepath.Join(n.Dir, "run"),
		"peer":        m{"listen": n.peerAddr},
		"tls":         m{"ca": n.tls.ca, "cert": n.tls.cert, "key": n.tls.key},
		"frontends":   m{"default": c.spec.Frontend},
		"failover":    m{"enabled": false},
	}
	if c.spec.Failover != "" {
		cfg["failover"] = m{"profile": c.spec.Failover}
	}
	if c.spec.KVDB == "etcd" {
		var urls []string
		for _, e := range c.etcd {
			urls = append(urls, e.clientURL)
		}
		cfg["kvdb"] = m{"kind": "etcd", "etcd": m{"endpoints": urls}}
	} else {
		var members []m
		for _, o := range c.nodes {
			if o.Member {
				members = append(members, m{"id": o.Name, "raftAddr": o.raftAddr, "peerAddr": o.peerAddr})
			}
		}
		raft := m{"member": n.Member, "members": members}
		if n.Member {
			raft["listen"], raft["bootstrap"] = n.raftAddr, found
		}
		cfg["kvdb"] = m{"kind": "raft", "raft": raft}
	}
	if c.spec.Adjust != nil {
		c.spec.Adjust(n.Name, cfg)
	}
	data, err := json.MarshalIndent(cfg, "", "  ") // JSON is YAML
	if err != nil {
		return err
	}
	return os.WriteFile(n.config, append(data, '\n'), 0o644)
}

// Start starts every server of a site that does not run.
func (c *Cluster) Start(site string) error {
	for _, e := range c.etcd {
		if e.site == site && (e.proc == nil || !e.proc.Running()) {
			if err := c.startEtcd(e); err != nil {
				return err
			}
		}
	}
	for _, n := range c.nodes {
		if n.Site != site || n.proc != nil && n.proc.Running() {
			continue
		}
		if err := c.StartNode(n); err != nil {
			return err
		}
	}
	return nil
}

func (c *Cluster) startEtcd(e *etcdMember) error {
	var initial []string
	for _, m := range c.etcd {
		initial = append(initial, m.name+"="+m.peerURL)
	}
	state := "new"
	if e.proc != nil {
		state = "existing"
	}
	argv := c.inside(e.site, filepath.Join(c.spec.Bin, "etcd"), "--name", e.name, "--data-dir", e.dir,
		"--listen-client-urls", e.clientURL, "--advertise-client-urls", e.clientURL,
		"--listen-peer-urls", e.peerURL, "--initial-advertise-peer-urls", e.peerURL,
		"--initial-cluster", strings.Join(initial, ","), "--initial-cluster-state", state)
	p, err := StartProcess(e.name, e.log, nil, argv...)
	if err != nil {
		return err
	}
	e.proc = p
	c.undo.Add(e.name, p.Kill)
	return nil
}

// Ready waits until every node answers its operator and knows its domain.
func (c *Cluster) Ready(ctx context.Context, within time.Duration) error {
	return Until(ctx, "the cluster answers", within, 200*time.Millisecond, func() (bool, error) {
		if err := c.Died(); err != nil {
			return false, Final(err)
		}
		for _, n := range c.nodes {
			if n.Witness {
				continue
			}
			if _, err := c.Ctl(ctx, n, "--timeout", "5s", "cluster", "domains", "show"); err != nil {
				return false, err
			}
		}
		return true, nil
	})
}

// Processes returns what was started in a site, or everywhere for "".
func (c *Cluster) Processes(site string) []*Process {
	var ps []*Process
	for _, n := range c.nodes {
		if (site == "" || n.Site == site) && n.proc != nil {
			ps = append(ps, n.proc)
		}
	}
	for _, e := range c.etcd {
		if (site == "" || e.site == site) && e.proc != nil {
			ps = append(ps, e.proc)
		}
	}
	return ps
}

// Kill sends SIGKILL to every process of a site at once and waits for their end.
func (c *Cluster) Kill(site string) error {
	ps := c.Processes(site)
	var errs []error
	for _, p := range ps { // all first, then wait: none sees another die
		errs = append(errs, p.signal(syscall.SIGKILL))
	}
	for _, p := range ps {
		errs = append(errs, p.Kill())
	}
	return errors.Join(errs...)
}

// Shutdown ends everything in order and wants every daemon to end cleanly.
func (c *Cluster) Shutdown() error {
	var errs []error
	for _, n := range c.nodes {
		errs = append(errs, n.Stop())
	}
	for _, e := range c.etcd { // the store last: the daemons sign off there
		if e.proc != nil {
			errs = append(errs, e.proc.Stop(syscall.SIGTERM, 20*time.Second))
		}
	}
	return errors.Join(errs...)
}

// Died returns an error if a server ended by itself.
func (c *Cluster) Died() error {
	var errs []error
	for _, p := range c.Processes("") {
		errs = append(errs, p.Died())
	}
	return errors.Join(errs...)
}
