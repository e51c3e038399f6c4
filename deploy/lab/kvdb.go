package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"
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

// KVDBLeader returns the site of the etcd server that leads, as the first one that answers tells.
func (c *Cluster) KVDBLeader(ctx context.Context) (site string, err error) {
	type status struct {
		Header struct {
			Member string `json:"member_id"`
		} `json:"header"`
		Leader string `json:"leader"`
	}
	ids, leader := map[string]string{}, ""
	errs := []error{errors.New("no etcd server answers that knows the leader")}
	for _, e := range c.etcd {
		var s status
		if err := askEtcd(ctx, e.clientURL+"/v3/maintenance/status", &s); err != nil {
			errs = append(errs, err)
			continue
		}
		ids[s.Header.Member] = e.site
		if s.Leader != "" && s.Leader != "0" {
			leader = s.Leader
		}
	}
	if site = ids[leader]; site == "" {
		return "", errors.Join(errs...)
	}
	return site, nil
}

// askEtcd sends an empty request to the JSON gateway of an etcd server.
func askEtcd(ctx context.Context, url string, answer any) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, url, strings.NewReader("{}"))
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", url, resp.Status)
	}
	return json.NewDecoder(resp.Body).Decode(answer)
}
