package daemon

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"google.golang.org/grpc"

	"github.com/tandem-storage/tandem/replication"
	"github.com/tandem-storage/tandem/volume"
	"github.com/tandem-storage/tandem/volume/volumepb"
)

// grouped are the volumes attached here, for the keeper of their groups.
func (d *daemon) grouped() []volume.GroupVolume {
	var vs []volume.GroupVolume
	for _, v := range d.volumes.Volumes() {
		vs = append(vs, v)
	}
	return vs
}

// cutTarget finds a volume that is to be held for a cut.
func (d *daemon) cutTarget(v replication.VolumeID) (volume.CutTarget, error) {
	m, err := d.late.get()
	if err != nil {
		return nil, err
	}
	if a := m.Volume(v); a != nil {
		return a, nil
	}
	return nil, fmt.Errorf("%w: %s", replication.ErrNotCoordinator, v)
}

// cutCoordinators reaches the coordinators of a group, here and on other nodes.
type cutCoordinators struct {
	d *daemon

	mu    sync.Mutex
	conns map[string]*grpc.ClientConn // by address and node
}

var _ volume.GroupTaker = (*cutCoordinators)(nil)

// client returns what speaks with another node about groups.
func (c *cutCoordinators) client(n replication.NodeID) (volume.GroupClient, error) {
	cc, err := c.conn(n)
	if err != nil {
		return volume.GroupClient{}, err
	}
	return volume.GroupClient{GroupCoordinatorsClient: volumepb.NewGroupCoordinatorsClient(cc)}, nil
}

// conn returns the connection with another node, which stays.
func (c *cutCoordinators) conn(n replication.NodeID) (*grpc.ClientConn, error) {
	info, ok := c.d.domains.View().Node(string(n))
	if !ok {
		return nil, fmt.Errorf("%w: there is no node %s", replication.ErrNotCoordinator, n)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	key := info.Address + " " + info.Name
	cc := c.conns[key]
	if cc == nil {
		var err error
		if cc, err = grpc.NewClient("passthrough:///"+info.Address, c.d.security.DialOptions(n)...); err != nil {
			return nil, fmt.Errorf("node %s: address %q: %w", n, info.Address, err)
		}
		if c.conns == nil {
			c.conns = make(map[string]*grpc.ClientConn)
		}
		c.conns[key] = cc
	}
	return cc, nil
}

func (c *cutCoordinators) close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	var errs []error
	for _, cc := range c.conns {
		errs = append(errs, cc.Close())
	}
	return errors.Join(errs...)
}

// HoldForCut implements volume.CutCoordinators.
func (c *cutCoordinators) HoldForCut(ctx context.Context, n replication.NodeID, v replication.VolumeID, op replication.UUID, d time.Duration) error {
	if n != c.d.node {
		cl, err := c.client(n)
		if err != nil {
			return err
		}
		return cl.Hold(ctx, v, op, d)
	}
	t, err := c.d.cutTarget(v)
	if err != nil {
		return err
	}
	return t.HoldForCut(ctx, op, d)
}

// Cut implements volume.CutCoordinators.
func (c *cutCoordinators) Cut(ctx context.Context, n replication.NodeID, v replication.VolumeID, op replication.UUID) (replication.CutPosition, bool, error) {
	if n != c.d.node {
		cl, err := c.client(n)
		if err != nil {
			return replication.CutPosition{}, false, err
		}
		return cl.At(ctx, v, op)
	}
	t, err := c.d.cutTarget(v)
	if err != nil {
		return replication.CutPosition{}, false, err
	}
	return t.Cut(ctx, op)
}

// ReleaseCut implements volume.CutCoordinators.
func (c *cutCoordinators) ReleaseCut(ctx context.Context, n replication.NodeID, v replication.VolumeID, op replication.UUID) (bool, error) {
	if n != c.d.node {
		cl, err := c.client(n)
		if err != nil {
			return false, err
		}
		return cl.Release(ctx, v, op)
	}
	t, err := c.d.cutTarget(v)
	if err != nil {
		return false, err
	}
	return t.ReleaseCut(ctx, op)
}
