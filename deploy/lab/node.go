package lab

import (
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/google/uuid"
)

// StartNode starts a node that does not run.
func (c *Cluster) StartNode(n *Node) error {
	if n.proc != nil { // the second time it must find its store, not found one
		if err := c.writeConfig(n, false); err != nil {
			return err
		}
	}
	program := n.program
	if program == "" {
		program = filepath.Join(c.spec.Bin, "tandemd")
	}
	argv := []string{program, "--config", n.config}
	if n.boot != "" {
		file := filepath.Join(n.Dir, "boot_id")
		if err := os.WriteFile(file, []byte(n.boot+"\n"), 0o644); err != nil {
			return err
		}
		// A mount namespace of its own: what it mounts nobody else sees.
		argv = append([]string{"unshare", "--mount", "sh", "-c", `mount --bind "$0" /proc/sys/kernel/random/boot_id && exec "$@"`, file}, argv...)
	}
	p, err := StartProcess(n.Name, n.Log, nil, c.inside(n.Site, argv...)...)
	if err != nil {
		return err
	}
	n.proc = p
	c.undo.Add(n.Name, p.Kill)
	return nil
}

// StartDevices starts the process that keeps the node's devices over restarts of its daemon.
func (c *Cluster) StartDevices(n *Node) (*Process, error) {
	name := n.Name + "-device"
	p, err := StartProcess(name, filepath.Join(c.spec.Work, "log", name+".log"), nil,
		c.inside(n.Site, filepath.Join(c.spec.Bin, "tandemd"), "device", "--config", n.config)...)
	if err != nil {
		return nil, err
	}
	c.undo.Add(name, p.Kill)
	return p, nil
}

// Running reports whether the node's daemon was started and has not ended.
func (n *Node) Running() bool { return n.proc != nil && n.proc.Running() }

// PID is the process id of the node's daemon, which was started.
func (n *Node) PID() int { return n.proc.PID() }

// Kill ends the daemon with SIGKILL and waits until it is gone.
func (n *Node) Kill() error { return n.proc.Kill() }

// Signal sends a signal that does not end the daemon: SIGSTOP, SIGCONT.
func (n *Node) Signal(sig syscall.Signal) error { return n.proc.Signal(sig) }

// Rebooted has the daemon find another boot id of its machine when it is started next, as after a power cut. What it had
// written and not flushed is there all the same; it does not know that. Needs root; with it the node cannot show devices.
func (n *Node) Rebooted() { n.boot = uuid.NewString() }

// Runs has the node be started with another build of tandemd from now on, with that of the cluster again for "".
func (n *Node) Runs(program string) { n.program = program }

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
