package lab

import (
	"fmt"
	"path/filepath"
	"syscall"
	"time"
)

// StartNode starts a node that does not run.
func (c *Cluster) StartNode(n *Node) error {
	if n.proc != nil { // the second time it must find its store, not found one
		if err := c.writeConfig(n, false); err != nil {
			return err
		}
	}
	p, err := StartProcess(n.Name, n.Log, nil, c.inside(n.Site, filepath.Join(c.spec.Bin, "tandemd"), "--config", n.config)...)
	if err != nil {
		return err
	}
	n.proc = p
	c.undo.Add(n.Name, p.Kill)
	return nil
}

// Running reports whether the node's daemon was started and has not ended.
func (n *Node) Running() bool { return n.proc != nil && n.proc.Running() }

// Kill ends the daemon with SIGKILL and waits until it is gone.
func (n *Node) Kill() error { return n.proc.Kill() }

// Signal sends a signal that does not end the daemon: SIGSTOP, SIGCONT.
func (n *Node) Signal(sig syscall.Signal) error { return n.proc.Signal(sig) }

// Stop ends the daemon with SIGTERM, which must succeed.
func (n *Node) Stop() error {
	if !n.Running() {
		return nil
	}
	if err := n.proc.Stop(syscall.SIGTERM, 40*time.Second); err != nil {
		return fmt.Errorf("%w\n%s", err, Tail(n.Log, 10))
	}
	if code := n.proc.ExitCode(); code != 0 {
		return fmt.Errorf("%s ended with code %d after SIGTERM\n%s", n.Name, code, Tail(n.Log, 10))
	}
	return nil
}

// Pool is the directory with the node's replicas.
func (n *Node) Pool() string { return filepath.Join(n.Dir, "data", "pool") }

// ConfigFile is the configuration that the node is started with.
func (n *Node) ConfigFile() string { return n.config }

// PeerAddr is where the node listens for other nodes.
func (n *Node) PeerAddr() string { return n.peerAddr }

// RaftAddr is where a kvdb member listens for the others.
func (n *Node) RaftAddr() string { return n.raftAddr }

// KVDB is the process of the kvdb member of a site: the etcd server, or the daemon that has it embedded.
func (c *Cluster) KVDB(site string) (*Process, error) {
	for _, e := range c.etcd {
		if e.site == site && e.proc != nil {
			return e.proc, nil
		}
	}
	for _, n := range c.nodes {
		if c.spec.KVDB != "etcd" && n.Site == site && n.Member && n.proc != nil {
			return n.proc, nil
		}
	}
	return nil, fmt.Errorf("no kvdb member runs in site %s", site)
}
