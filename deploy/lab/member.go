package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"time"
)

// LoseMember kills the member of the kvdb in a site and takes what it has on disk away. ReplaceMember brings another one there.
func (c *Cluster) LoseMember(site string) error {
	m, err := c.memberIn(site)
	if err != nil {
		return err
	}
	return errors.Join(m.proc.Kill(), os.RemoveAll(m.dir))
}

// ReplaceMember has the others forget the member that LoseMember took and starts one without a past in its place, as an operator
// does. A majority must be there. It may be called again after an error.
func (c *Cluster) ReplaceMember(ctx context.Context, site string) error {
	m, err := c.memberIn(site)
	if err != nil {
		return err
	}
	for _, other := range c.kvdbMembers() {
		if other.site == site || !other.proc.Running() {
			continue
		}
		if len(c.etcd) > 0 {
			err = c.replaceEtcd(ctx, c.etcdIn(site), c.etcdIn(other.site))
		} else {
			err = c.removeRaft(ctx, m.name, c.Node(other.name))
		}
		if err != nil {
			return err
		}
		return m.start()
	}
	return fmt.Errorf("no other kvdb member runs than %s", m.name)
}

func (c *Cluster) memberIn(site string) (kvdbMember, error) {
	for _, m := range c.kvdbMembers() {
		if m.site == site {
			return m, nil
		}
	}
	return kvdbMember{}, fmt.Errorf("no kvdb member in site %s", site)
}

func (c *Cluster) etcdIn(site string) *etcdMember {
	for _, e := range c.etcd {
		if e.site == site {
			return e
		}
	}
	return nil
}

// notThere is the exit code of tandemctl for what does not exist.
const notThere = 3

// removeRaft has a node remove a member; the daemon that comes back without data makes itself one.
func (c *Cluster) removeRaft(ctx context.Context, member string, ask *Node) error {
	_, err := c.Ctl(ctx, ask, "--timeout", "20s", "kvdb", "remove", member, "--yes")
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() == notThere {
		return nil // it was removed by a call before, whose answer was lost
	}
	return err
}

// replaceEtcd removes the lost member from the cluster and adds one that has not begun yet.
func (c *Cluster) replaceEtcd(ctx context.Context, lost, ask *etcdMember) error {
	var list struct {
		Members []struct {
			ID       string   `json:"ID"`
			Name     string   `json:"name"`
			PeerURLs []string `json:"peerURLs"`
		} `json:"members"`
	}
	if err := c.callEtcd(ctx, ask, "cluster/member/list", struct{}{}, &list); err != nil {
		return err
	}
	for _, m := range list.Members {
		switch {
		case len(m.PeerURLs) != 1 || m.PeerURLs[0] != lost.peerURL:
		case m.Name == "":
			return nil // it was added by a call before
		default:
			if err := c.callEtcd(ctx, ask, "cluster/member/remove", map[string]string{"ID": m.ID}, nil); err != nil {
				return err
			}
		}
	}
	return c.callEtcd(ctx, ask, "cluster/member/add", map[string][]string{"peerURLs": {lost.peerURL}}, nil)
}

// callEtcd asks an etcd server through its gateway, which takes JSON.
func (c *Cluster) callEtcd(ctx context.Context, e *etcdMember, what string, question, answer any) error {
	body, err := json.Marshal(question)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second) // without a leader it waits in vain
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, e.clientURL+"/v3/"+what, bytes.NewReader(body))
	if err != nil {
		return err
	}
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			return c.dial(ctx, e.site, network, address)
		},
	}}
	res, err := client.Do(req)
	if err != nil {
		return fmt.Errorf("%s: %w", e.name, err)
	}
	defer res.Body.Close()
	said, err := io.ReadAll(res.Body)
	switch {
	case err != nil:
		return fmt.Errorf("%s: %s: %w", e.name, what, err)
	case res.StatusCode != http.StatusOK:
		return fmt.Errorf("%s: %s: %s: %.200s", e.name, what, res.Status, said)
	case answer == nil:
		return nil
	}
	if err := json.Unmarshal(said, answer); err != nil {
		return fmt.Errorf("%s: %s: said %.200q: %w", e.name, what, said, err)
	}
	return nil
}
