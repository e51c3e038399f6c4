package lab

import (
	"fmt"
	"os"
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
func (n *Node) Signal(sig syscall.Signal) error { return syscall.Kill(n.proc.PID(), sig) }

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

// KillKVDB sends SIGKILL to the etcd member of a site.
func (c *Cluster) KillKVDB(site string) error {
	for _, e := range c.etcd {
		if e.site == site && e.proc != nil {
			return e.proc.Kill()
		}
	}
	return fmt.Errorf("no etcd member in site %s", site)
}

// SaveKVDB copies what the etcd members, which must not run, have on disk to dir; RestoreKVDB puts it back, as from a backup: the members must not
// run then, either. With dir "" they begin with nothing.
func (c *Cluster) SaveKVDB(dir string) error {
	for _, e := range c.etcd {
		if e.proc != nil && e.proc.Running() {
			return fmt.Errorf("etcd of site %s runs", e.site)
		}
		if err := os.CopyFS(filepath.Join(dir, e.name), os.DirFS(e.dir)); err != nil {
			return err
		}
	}
	return nil
}

// RestoreKVDB is the opposite of SaveKVDB.
func (c *Cluster) RestoreKVDB(dir string) error {
	for _, e := range c.etcd {
		if e.proc != nil && e.proc.Running() {
			return fmt.Errorf("etcd of site %s runs", e.site)
		}
		if err := os.RemoveAll(e.dir); err != nil {
			return err
		}
		if dir == "" {
			e.proc = nil // it founds a cluster again
			continue
		}
		if err := os.CopyFS(e.dir, os.DirFS(filepath.Join(dir, e.name))); err != nil {
			return err
		}
	}
	return nil
}

// StartKVDB starts the etcd members that do not run.
func (c *Cluster) StartKVDB() error {
	for _, e := range c.etcd {
		if e.proc != nil && e.proc.Running() {
			continue
		}
		if err := c.startEtcd(e); err != nil {
			return err
		}
	}
	return nil
}
