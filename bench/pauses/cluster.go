package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/tandem-storage/tandem/deploy/lab"
)

// The sites, and the nodes with a replica.
const (
	siteA, siteB, siteW = "site-a", "site-b", "site-w"

	volumeName = "measured"
)

var siteOf = map[string]string{"a1": siteA, "b1": siteB}

// limit is how long anything may take that comes about by itself.
const limit = 2 * time.Minute

// cluster is two sites and a witness, in networks of their own, with a volume and its client.
type cluster struct {
	*lab.Cluster
	dir    string
	client *client
	home   string // the node where the volume is attached
	away   string // the other one
}

// found starts a cluster whose two sites are rtt apart, attaches the volume at a1 and starts the client. config changes the
// daemons' configuration.
func found(ctx context.Context, bin, dir string, rtt time.Duration, config func(map[string]any), u *lab.Undo) (*cluster, error) {
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
	if err := lab.Until(ctx, "the volume is created", limit, 500*time.Millisecond, func() (bool, error) {
		_, err := c.Ctl(ctx, c.Node("a1"), "volume", "create", volumeName, "--size", "64Mi", "--replicas", "2")
		return err == nil, err // pools register within the first seconds
	}); err != nil {
		return nil, err
	}
	uri, err := c.Attach(ctx, c.Node(c.home), volumeName)
	if err != nil {
		return nil, err
	}
	if c.client, err = startClient(dir, u); err != nil {
		return nil, err
	}
	if err := c.client.moveTo(uri); err != nil {
		return nil, err
	}
	_, err = c.client.resumedAfter(ctx, 0)
	return c, err
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

func (c *cluster) inspect(ctx context.Context, node string) (v view, err error) {
	out, err := c.Ctl(ctx, c.Node(node), "--timeout", "5s", "volume", "inspect", volumeName, "-o", "json")
	if err != nil {
		return v, err
	}
	if err := json.Unmarshal([]byte(out), &v); err != nil {
		return v, fmt.Errorf("volume inspect printed %.200q: %w", out, err)
	}
	return v, nil
}

// inSync waits until so many replicas are in sync, as seen at home.
func (c *cluster) inSync(ctx context.Context, replicas int) error {
	return lab.Until(ctx, fmt.Sprintf("%d replicas are in sync", replicas), limit, 50*time.Millisecond, func() (bool, error) {
		v, err := c.inspect(ctx, c.home)
		return err == nil && v.Volume.InSync == replicas, err
	})
}

// close detaches the volume and ends the daemons.
func (c *cluster) close(ctx context.Context) error {
	if err := c.client.end(); err != nil {
		return err
	}
	if _, err := c.Ctl(ctx, c.Node(c.home), "host", "detach", volumeName); err != nil {
		return err
	}
	return c.Shutdown()
}
