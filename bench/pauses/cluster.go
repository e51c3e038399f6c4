package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/tandem-storage/tandem/deploy/lab"
)

// The sites, and the nodes with a replica.
const (
	siteA, siteB, siteW = "site-a", "site-b", "site-w"

	volumeName = "measured"
	groupName  = "measured-together"
)

var siteOf = map[string]string{"a1": siteA, "b1": siteB}

// limit is how long anything may take that comes about by itself.
const limit = 2 * time.Minute

// cluster is two sites and a witness, in networks of their own, with volumes and their clients.
type cluster struct {
	*lab.Cluster
	dir     string
	volumes []string // more than one: they are a group
	clients []*client
	home    string // the node where the volumes are attached
	away    string // the other one
}

// found starts a cluster whose two sites are rtt apart, attaches so many volumes at a1 and starts a client for each. More than one are put into a
// group. config changes the daemons' configuration.
func found(ctx context.Context, bin, dir string, rtt time.Duration, volumes int, config func(map[string]any), u *lab.Undo) (*cluster, error) {
	if err := os.MkdirAll(filepath.Join(dir, "log"), 0o755); err != nil {
		return nil, err
	}
	lc, err := lab.NewCluster(lab.Spec{
		Bin: bin, Work: dir, KVDB: "raft", Frontend: "nbd", Networks: true,
		Nodes: []lab.NodeSpec{
			{Name: "a1", Site: siteA, Member: true}, {Name: "b1", Site: siteB, Member: true},
			{Name: "w1", Site: siteW, Member: true, Witness: true},
		},
		Adjust: func(_ string, c map[string]any) { config(c) },
	}, u)
	if err != nil {
		return nil, err
	}
	c := &cluster{Cluster: lc, dir: dir, home: "a1", away: "b1"}
	if err := c.Prepare(ctx); err != nil {
		return nil, err
	}
	for _, pair := range [][2]string{{siteA, siteB}, {siteA, siteW}, {siteB, siteW}} {
		c.SetLink(pair[0], pair[1], lab.Link{Delay: rtt / 2})
		c.SetLink(pair[1], pair[0], lab.Link{Delay: rtt / 2})
	}
	for _, s := range []string{siteA, siteB, siteW} {
		if err := c.Start(s); err != nil {
			return nil, err
		}
	}
	if err := c.Ready(ctx, limit); err != nil {
		return nil, err
	}
	for n := range volumes {
		name := volumeName
		if n > 0 {
			name = fmt.Sprint(volumeName, "-", n)
		}
		if err := c.addVolume(ctx, name, u); err != nil {
			return nil, err
		}
	}
	if volumes > 1 {
		_, err = c.Ctl(ctx, c.Node(c.home), "group", "create", groupName, "--volumes", strings.Join(c.volumes, ","))
	}
	return c, err
}

// addVolume creates a volume, attaches it at home and starts its client.
func (c *cluster) addVolume(ctx context.Context, name string, u *lab.Undo) error {
	if err := lab.Until(ctx, "the volume is created", limit, 500*time.Millisecond, func() (bool, error) {
		_, err := c.Ctl(ctx, c.Node("a1"), "volume", "create", name, "--size", "64Mi", "--replicas", "2")
		return err == nil, err // pools register within the first seconds
	}); err != nil {
		return err
	}
	uri, err := c.Attach(ctx, c.Node(c.home), name)
	if err != nil {
		return err
	}
	cl, err := startClient(c.dir, name, u)
	if err != nil {
		return err
	}
	c.volumes, c.clients = append(c.volumes, name), append(c.clients, cl)
	if err := cl.moveTo(uri); err != nil {
		return err
	}
	_, err = cl.resumedAfter(ctx, 0)
	return err
}

// longest is the longest pause of any client since from; see client.longest.
func (c *cluster) longest(ctx context.Context, from, until instant) (seconds float64, err error) {
	for _, cl := range c.clients {
		s, err := cl.longest(ctx, from, until)
		if err != nil {
			return 0, err
		}
		seconds = max(seconds, s)
	}
	return seconds, nil
}

// view is what is read of `volume inspect -o json`.
type view struct {
	Volume struct {
		Attachment struct {
			Node string `json:"node"`
			Path string `json:"path"`
		} `json:"attachment"`
		InSync int `json:"in_sync"`
	} `json:"volume"`
}

func (c *cluster) inspect(ctx context.Context, node, volume string) (v view, err error) {
	out, err := c.Ctl(ctx, c.Node(node), "--timeout", "5s", "volume", "inspect", volume, "-o", "json")
	if err != nil {
		return v, err
	}
	if err := json.Unmarshal([]byte(out), &v); err != nil {
		return v, fmt.Errorf("volume inspect printed %.200q: %w", out, err)
	}
	return v, nil
}

// inSync waits until so many replicas of every volume are in sync, as seen at home.
func (c *cluster) inSync(ctx context.Context, replicas int) error {
	for _, name := range c.volumes {
		if err := lab.Until(ctx, fmt.Sprintf("%d replicas of %s are in sync", replicas, name), limit, 50*time.Millisecond, func() (bool, error) {
			v, err := c.inspect(ctx, c.home, name)
			return err == nil && v.Volume.InSync == replicas, err
		}); err != nil {
			return err
		}
	}
	return nil
}

// close detaches the volumes and ends the daemons.
func (c *cluster) close(ctx context.Context) error {
	for i, cl := range c.clients {
		if err := cl.end(); err != nil {
			return err
		}
		if _, err := c.Ctl(ctx, c.Node(c.home), "host", "detach", c.volumes[i]); err != nil {
			return err
		}
	}
	return c.Shutdown()
}
