package lab

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// kvdbMember is a process that is a member of the kvdb: an etcd server, or the daemon of a node.
type kvdbMember struct {
	name, site, dir string
	proc            *Process
	start           func() error
}

func (c *Cluster) kvdbMembers() []kvdbMember {
	var ms []kvdbMember
	for _, e := range c.etcd {
		ms = append(ms, kvdbMember{e.name, e.site, e.dir, e.proc, func() error { return c.startEtcd(e) }})
	}
	for _, n := range c.nodes {
		if n.Member && len(c.etcd) == 0 {
			ms = append(ms, kvdbMember{n.Name, n.Site, filepath.Join(n.Dir, "data", "kvdb"), n.proc, func() error { return c.StartNode(n) }})
		}
	}
	return ms
}

// stopped wants every member of the kvdb to have ended.
func (c *Cluster) stopped() error {
	for _, m := range c.kvdbMembers() {
		if m.proc != nil && m.proc.Running() {
			return fmt.Errorf("kvdb member %s runs", m.name)
		}
	}
	return nil
}

// KillKVDBs sends SIGKILL to every member of the kvdb.
func (c *Cluster) KillKVDBs() error {
	var errs []error
	for _, m := range c.kvdbMembers() {
		errs = append(errs, m.proc.Kill())
	}
	return errors.Join(errs...)
}

// StartKVDBs starts the members of the kvdb that do not run.
func (c *Cluster) StartKVDBs() error {
	for _, m := range c.kvdbMembers() {
		if m.proc != nil && m.proc.Running() {
			continue
		}
		if err := m.start(); err != nil {
			return err
		}
	}
	return nil
}

// SaveKVDB copies what the members of the kvdb, which must not run, have on disk to dir.
func (c *Cluster) SaveKVDB(dir string) error {
	if err := c.stopped(); err != nil {
		return err
	}
	for _, m := range c.kvdbMembers() {
		if err := os.CopyFS(filepath.Join(dir, m.name), os.DirFS(m.dir)); err != nil {
			return err
		}
	}
	return nil
}

// RestoreKVDB puts what SaveKVDB copied back, as from a backup. The members must not run.
func (c *Cluster) RestoreKVDB(dir string) error {
	if err := c.stopped(); err != nil {
		return err
	}
	for _, m := range c.kvdbMembers() {
		if err := os.RemoveAll(m.dir); err != nil {
			return err
		}
		if err := os.CopyFS(m.dir, os.DirFS(filepath.Join(dir, m.name))); err != nil {
			return err
		}
	}
	return nil
}

// LoseKVDB takes what the members of the kvdb have on disk away; they found a new, empty one when they are started. They must not run.
func (c *Cluster) LoseKVDB() error {
	if err := c.stopped(); err != nil {
		return err
	}
	for _, m := range c.kvdbMembers() {
		if err := os.RemoveAll(m.dir); err != nil {
			return err
		}
	}
	for _, e := range c.etcd {
		e.proc = nil
	}
	for _, n := range c.nodes {
		if !n.Member || len(c.etcd) > 0 {
			continue
		}
		if err := os.RemoveAll(filepath.Join(n.Dir, "data", "kvdb-member")); err != nil { // without it it may found one
			return err
		}
		n.proc = nil
		if err := c.writeConfig(n, true); err != nil {
			return err
		}
	}
	return nil
}
