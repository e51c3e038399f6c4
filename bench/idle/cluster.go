package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/tandem-storage/tandem/deploy/lab"
	"github.com/tandem-storage/tandem/volume/volumepb"
)

// home is where everything is attached, away has the other replica.
const home, away, witness = "a1", "b1", "w1"

// limit is how long anything may take that comes about by itself.
const limit = 2 * time.Minute

// cluster is two nodes and a witness.
type cluster struct {
	*lab.Cluster
	o       options
	volumes volumepb.VolumesClient
	names   []string
}

func found(ctx context.Context, o options, dir string, u *lab.Undo) (*cluster, error) {
	lc, err := lab.NewCluster(lab.Spec{
		Bin: o.bin, Work: dir, KVDB: "raft", Frontend: o.frontend,
		Nodes: []lab.NodeSpec{
			{Name: home, Site: "site-a", Member: true}, {Name: away, Site: "site-b", Member: true},
			{Name: witness, Site: "site-w", Member: true, Witness: true},
		},
	}, u)
	if err != nil {
		return nil, err
	}
	c := &cluster{Cluster: lc, o: o}
	if err := c.Prepare(ctx); err != nil {
		return nil, err
	}
	for _, s := range []string{"site-a", "site-b", "site-w"} {
		if err := c.Start(s); err != nil {
			return nil, err
		}
	}
	if err := c.Ready(ctx, limit); err != nil {
		return nil, err
	}
	cc, err := grpc.NewClient("unix://"+c.Node(home).Socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, err
	}
	u.Add("connection", cc.Close)
	c.volumes = volumepb.NewVolumesClient(cc)
	// Pools register within the first seconds; a volume that is made then is not counted.
	if err := lab.Until(ctx, "a first volume is created", limit, 200*time.Millisecond, func() (bool, error) {
		err := c.create(ctx, "first")
		return err == nil, err
	}); err != nil {
		return nil, err
	}
	_, err = c.volumes.DeleteVolume(ctx, &volumepb.DeleteVolumeRequest{Volume: "first"})
	return c, err
}

func (c *cluster) create(ctx context.Context, name string) error {
	_, err := c.volumes.CreateVolume(ctx, &volumepb.CreateVolumeRequest{Name: name, SizeBytes: c.o.size, Replicas: 2})
	return err
}

// each calls f for every name, some at a time, and returns how many seconds all of them took.
func (c *cluster) each(ctx context.Context, names []string, f func(ctx context.Context, name string) error) (float64, error) {
	began := time.Now()
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(c.o.parallel)
	for _, name := range names {
		g.Go(func() error {
			if err := f(ctx, name); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			return nil
		})
	}
	err := g.Wait()
	return time.Since(began).Seconds(), err
}

// grow creates and attaches volumes until there are n.
func (c *cluster) grow(ctx context.Context, n int) (s step, err error) {
	var names []string
	for i := len(c.names); i < n; i++ {
		names = append(names, fmt.Sprintf("volume-%04d", i))
	}
	s.Volumes, s.Added = n, len(names)
	if s.CreateSeconds, err = c.each(ctx, names, c.create); err != nil {
		return s, fmt.Errorf("create: %w", err)
	}
	if s.AttachSeconds, err = c.each(ctx, names, func(ctx context.Context, name string) error {
		_, err := c.volumes.AttachVolume(ctx, &volumepb.AttachVolumeRequest{Volume: name, Frontend: c.o.frontend})
		return err
	}); err != nil {
		return s, fmt.Errorf("attach: %w", err)
	}
	c.names = append(c.names, names...)
	return s, nil
}

// shrink detaches and deletes all volumes.
func (c *cluster) shrink(ctx context.Context) (e end, err error) {
	if e.DetachSeconds, err = c.each(ctx, c.names, func(ctx context.Context, name string) error {
		_, err := c.volumes.DetachVolume(ctx, &volumepb.DetachVolumeRequest{Volume: name})
		return err
	}); err != nil {
		return e, fmt.Errorf("detach: %w", err)
	}
	if e.DeleteSeconds, err = c.each(ctx, c.names, func(ctx context.Context, name string) error {
		_, err := c.volumes.DeleteVolume(ctx, &volumepb.DeleteVolumeRequest{Volume: name})
		return err
	}); err != nil {
		return e, fmt.Errorf("delete: %w", err)
	}
	return e, nil
}

// rest measures every daemon while nothing is asked of it.
func (c *cluster) rest(ctx context.Context) (all []usage, err error) {
	if err := wait(ctx, c.o.settle); err != nil {
		return nil, err
	}
	nodes := []string{home, away, witness}
	before := map[string]float64{}
	for _, n := range nodes {
		if before[n], err = processorSeconds(c.Node(n).PID()); err != nil {
			return nil, err
		}
	}
	began := time.Now()
	if err := wait(ctx, c.o.window); err != nil {
		return nil, err
	}
	for _, n := range nodes {
		after, err := processorSeconds(c.Node(n).PID())
		if err != nil {
			return nil, err
		}
		u := usage{Node: n, CorePercent: 100 * (after - before[n]) / time.Since(began).Seconds()}
		if err := u.memory(c.Node(n).PID()); err != nil {
			return nil, err
		}
		all = append(all, u)
	}
	return all, nil
}

// wait lets time go by: what is measured is that nothing happens.
func wait(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// tick is the unit of times in proc_pid_stat(5), seconds; it is the same on every Linux that Go runs on.
const tick = 0.01

// processorSeconds is what a process has used of any processor so far, for itself and in the kernel.
func processorSeconds(pid int) (float64, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	_, rest, _ := strings.Cut(string(data), ") ") // the name may have spaces
	f := strings.Fields(rest)
	if len(f) < 13 {
		return 0, fmt.Errorf("/proc/%d/stat has %q", pid, data)
	}
	user, err := strconv.ParseFloat(f[11], 64)
	system, serr := strconv.ParseFloat(f[12], 64)
	return (user + system) * tick, errors.Join(err, serr)
}

// memory fills in what a process has in memory.
func (u *usage) memory(pid int) error {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(data)) {
		f := strings.Fields(line)
		if len(f) != 3 || f[2] != "kB" {
			continue
		}
		kb, err := strconv.ParseFloat(f[1], 64)
		if err != nil {
			return err
		}
		switch f[0] {
		case "Rss:":
			u.RSS = kb / 1024
		case "Pss:":
			u.PSS = kb / 1024
		}
	}
	if data, err = os.ReadFile(fmt.Sprintf("/proc/%d/status", pid)); err != nil {
		return err
	}
	for line := range strings.Lines(string(data)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "Threads:" {
			u.Threads, err = strconv.Atoi(f[1])
		}
	}
	files, ferr := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	u.Files = len(files)
	return errors.Join(err, ferr)
}
