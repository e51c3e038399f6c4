package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// Sites of the demo.
const (
	primary = "primary"
	drSite  = "dr-site"
	witness = "witness"
)

// node is one tandemd with its own directories and ports.
type node struct {
	name, site          string
	dir                 string // <work>/<site>/<name>
	peerAddr, raftAddr  string
	member, isWitness   bool
	proc                *process
	config, log, socket string
}

// cluster is everything that runs as a server: tandemd on all nodes, and etcd if the kvdb is that.
type cluster struct {
	bin, work string
	kvdb      string // "raft" or "etcd"
	frontend  string
	nodes     []*node
	etcd      []*etcdMember
	undo      *undo
}

// etcdMember is one etcd server, in a site.
type etcdMember struct {
	name, site         string
	dir, log           string
	clientURL, peerURL string
	proc               *process
}

func newCluster(bin, work, kvdb, frontend string, u *undo) (*cluster, error) {
	c := &cluster{bin: bin, work: work, kvdb: kvdb, frontend: frontend, undo: u}
	for _, n := range []*node{
		{name: "p1", site: primary, member: true}, {name: "p2", site: primary},
		{name: "d1", site: drSite, member: true}, {name: "d2", site: drSite},
		{name: "w1", site: witness, member: true, isWitness: true},
	} {
		if n.isWitness && kvdb == "etcd" {
			continue // the third etcd member is the witness
		}
		n.dir = filepath.Join(work, n.site, n.name)
		n.config = filepath.Join(n.dir, "tandemd.yaml")
		n.log = filepath.Join(work, "log", n.name+".log")
		n.socket = filepath.Join(n.dir, "run", "tandemd.sock")
		c.nodes = append(c.nodes, n)
	}
	ports, err := freePorts(2*len(c.nodes) + 6)
	if err != nil {
		return nil, err
	}
	for i, n := range c.nodes {
		n.peerAddr, n.raftAddr = ports[2*i], ports[2*i+1]
	}
	if kvdb == "etcd" {
		ports = ports[2*len(c.nodes):]
		for i, site := range []string{primary, drSite, witness} {
			name := "etcd-" + site
			c.etcd = append(c.etcd, &etcdMember{
				name: name, site: site, dir: filepath.Join(work, site, name), log: filepath.Join(work, "log", name+".log"),
				clientURL: "http://" + ports[2*i], peerURL: "http://" + ports[2*i+1],
			})
		}
	}
	return c, nil
}

// freePorts returns addresses on loopback that nobody listens on.
func freePorts(n int) ([]string, error) {
	var addrs []string
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer l.Close()
		addrs = append(addrs, l.Addr().String())
	}
	return addrs, nil
}

// prepare makes directories, certificates and configuration files.
func (c *cluster) prepare(ctx context.Context) error {
	ca := filepath.Join(c.work, "ca")
	if err := c.pkiInit(ctx, ca); err != nil {
		return err
	}
	for _, n := range c.nodes {
		for _, dir := range []string{"data", "run", "pki"} {
			if err := os.MkdirAll(filepath.Join(n.dir, dir), 0o755); err != nil {
				return err
			}
		}
		if err := c.pkiIssue(ctx, ca, n); err != nil {
			return err
		}
		if err := c.writeConfig(n, true); err != nil {
			return err
		}
	}
	return nil
}

// writeConfig writes the configuration of a node. found lets a kvdb member found the store: on the first start only.
func (c *cluster) writeConfig(n *node, found bool) error {
	pki := filepath.Join(n.dir, "pki")
	role := "node"
	if n.isWitness {
		role = "witness"
	}
	cfg := map[string]any{
		"apiVersion":  "tandem-storage.github.io/v1",
		"kind":        "Config",
		"clusterName": "demo",
		"nodeID":      n.name,
		"domain":      n.site,
		"role":        role,
		"dataDir":     filepath.Join(n.dir, "data"),
		"runDir":      filepath.Join(n.dir, "run"),
		"peer":        map[string]any{"listen": n.peerAddr},
		"tls":         map[string]any{"ca": filepath.Join(pki, "ca.crt"), "cert": filepath.Join(pki, "node.crt"), "key": filepath.Join(pki, "node.key")},
		"frontends":   map[string]any{"default": c.frontend},
		"log":         map[string]any{"level": "info"},
	}
	if c.kvdb == "etcd" {
		var urls []string
		for _, e := range c.etcd {
			urls = append(urls, e.clientURL)
		}
		cfg["kvdb"] = map[string]any{"kind": "etcd", "etcd": map[string]any{"endpoints": urls}}
	} else {
		raft := map[string]any{"member": n.member}
		var members []any
		for _, m := range c.nodes {
			if m.member {
				members = append(members, map[string]any{"id": m.name, "raftAddr": m.raftAddr, "peerAddr": m.peerAddr})
			}
		}
		raft["members"] = members
		if n.member {
			raft["listen"] = n.raftAddr
			raft["bootstrap"] = found
		}
		cfg["kvdb"] = map[string]any{"kind": "raft", "raft": raft}
	}
	data, err := json.MarshalIndent(cfg, "", "  ") // JSON is YAML
	if err != nil {
		return err
	}
	return os.WriteFile(n.config, append(data, '\n'), 0o644)
}

// start starts every server of a site that does not run.
func (c *cluster) start(site string) error {
	for _, e := range c.etcd {
		if e.site == site && (e.proc == nil || !e.proc.running()) {
			if err := c.startEtcd(e); err != nil {
				return err
			}
		}
	}
	for _, n := range c.nodes {
		if n.site != site || n.proc != nil && n.proc.running() {
			continue
		}
		p, err := startProcess(n.name, n.log, nil, filepath.Join(c.bin, "tandemd"), "--config", n.config)
		if err != nil {
			return err
		}
		n.proc = p
		c.undo.add(n.name, p.kill)
	}
	return nil
}

func (c *cluster) startEtcd(e *etcdMember) error {
	var initial []string
	for _, m := range c.etcd {
		initial = append(initial, m.name+"="+m.peerURL)
	}
	state := "new"
	if _, err := os.Stat(e.dir); err == nil {
		state = "existing"
	}
	p, err := startProcess(e.name, e.log, nil, filepath.Join(c.bin, "etcd"), "--name", e.name, "--data-dir", e.dir,
		"--listen-client-urls", e.clientURL, "--advertise-client-urls", e.clientURL,
		"--listen-peer-urls", e.peerURL, "--initial-advertise-peer-urls", e.peerURL,
		"--initial-cluster", strings.Join(initial, ","), "--initial-cluster-state", state)
	if err != nil {
		return err
	}
	e.proc = p
	c.undo.add(e.name, p.kill)
	return nil
}

// processes returns what runs in a site, or everywhere for "".
func (c *cluster) processes(site string) []*process {
	var ps []*process
	for _, n := range c.nodes {
		if (site == "" || n.site == site) && n.proc != nil {
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

// kill sends SIGKILL to every process of a site at once and waits for their end.
func (c *cluster) kill(site string) error {
	ps := c.processes(site)
	var errs []error
	for _, p := range ps { // all first, then wait: none sees another die
		p.mu.Lock()
		p.stopped = true
		p.mu.Unlock()
		errs = append(errs, syscall.Kill(p.cmd.Process.Pid, syscall.SIGKILL))
	}
	for _, p := range ps {
		errs = append(errs, p.kill())
	}
	return errors.Join(errs...)
}

// shutdown ends everything in order and wants every daemon to end cleanly.
func (c *cluster) shutdown() error {
	var errs []error
	ps := c.processes("")
	slices.Reverse(ps)
	for _, p := range ps[len(c.etcd):] {
		errs = append(errs, cleanExit(p))
	}
	for _, e := range c.etcd {
		errs = append(errs, e.proc.stop(syscall.SIGTERM, 20*time.Second))
	}
	return errors.Join(errs...)
}

func cleanExit(p *process) error {
	if err := p.stop(syscall.SIGTERM, 30*time.Second); err != nil {
		return fmt.Errorf("%w\n%s", err, tail(p.logPath, 10))
	}
	if !p.cmd.ProcessState.Success() {
		return fmt.Errorf("%s: after SIGTERM: %v\n%s", p.name, p.cmd.ProcessState, tail(p.logPath, 10))
	}
	return nil
}

// died returns an error if a server ended by itself.
func (c *cluster) died() error {
	var errs []error
	for _, p := range c.processes("") {
		errs = append(errs, p.died())
	}
	return errors.Join(errs...)
}

// node returns the node of that name.
func (c *cluster) node(name string) *node {
	for _, n := range c.nodes {
		if n.name == name {
			return n
		}
	}
	return nil
}
