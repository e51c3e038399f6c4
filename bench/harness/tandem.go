package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/tandem-storage/tandem/deploy/lab"
)

const volumeName = "bench"

// tandem is the system under measurement: one node in each of two sites, two replicas, attached through NBD on the first.
type tandem struct {
	c    *lab.Cluster
	size string
	target
}

func startTandem(ctx context.Context, bin, work, size string, u *lab.Undo) (*tandem, error) {
	c, err := lab.NewCluster(lab.Spec{Bin: bin, Work: work, KVDB: "raft", Frontend: "nbd", Nodes: []lab.NodeSpec{
		{Name: "a1", Site: "site-a", Member: true}, {Name: "b1", Site: "site-b", Member: true},
		{Name: "w1", Site: "site-w", Member: true, Witness: true},
	}}, u)
	if err != nil {
		return nil, err
	}
	if err := c.Prepare(ctx); err != nil {
		return nil, err
	}
	for _, site := range []string{"site-a", "site-b", "site-w"} {
		if err := c.Start(site); err != nil {
			return nil, err
		}
	}
	if err := c.Ready(ctx, time.Minute); err != nil {
		return nil, err
	}
	t := &tandem{c: c, size: size}
	if err := lab.Until(ctx, "the volume is created", 30*time.Second, 500*time.Millisecond, func() (bool, error) {
		_, err := c.Ctl(ctx, c.Node("a1"), "volume", "create", volumeName, "--size", size+"i", "--replicas", "2")
		return err == nil, err // pools register within the first seconds
	}); err != nil {
		return nil, err
	}
	uri, err := c.Attach(ctx, c.Node("a1"), volumeName)
	if err != nil {
		return nil, err
	}
	t.target = target{name: "tandem", uri: uri, pids: func() []int {
		var pids []int
		for _, p := range c.Processes("") {
			pids = append(pids, p.PID())
		}
		return pids
	}}
	return t, nil
}

// close detaches the volume, ends the daemons and makes sure that what was measured was replicated.
func (t *tandem) close(ctx context.Context) error {
	v, err := t.c.Inspect(ctx, t.c.Node("a1"), volumeName)
	if err != nil {
		return err
	}
	if _, err := t.c.Ctl(ctx, t.c.Node("a1"), "host", "detach", volumeName); err != nil {
		return err
	}
	if err := t.c.Shutdown(); err != nil {
		return err
	}
	n, err := t.c.CompareReplicas(v)
	if err == nil && n == 0 {
		err = errors.New("nothing to compare")
	}
	return err
}

// demoRTO runs the demo and returns its storage RTO in seconds.
func demoRTO(ctx context.Context, bin, dir string) (float64, error) {
	out, err := lab.Run(ctx, filepath.Join(bin, "demo"), "-bin", bin, "-dir", dir)
	if err != nil {
		return 0, fmt.Errorf("the demo failed: %w\n%s", err, out)
	}
	for _, line := range strings.Split(out, "\n") {
		if text, ok := strings.CutPrefix(line, "storage RTO: "); ok {
			return strconv.ParseFloat(strings.TrimSuffix(text, " s"), 64)
		}
	}
	return 0, errors.New("the demo printed no storage RTO")
}
