package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"

	"go.uber.org/zap"

	"github.com/tandem-storage/tandem/clusterdomain"
	"github.com/tandem-storage/tandem/cmd/internal/config"
	"github.com/tandem-storage/tandem/datapath/backing"
	"github.com/tandem-storage/tandem/datapath/meta"
	"github.com/tandem-storage/tandem/replication"
	replvolume "github.com/tandem-storage/tandem/replication/volume"
	"github.com/tandem-storage/tandem/volume"
)

// pools are the node's pools, open.
type pools struct {
	cluster meta.UUID
	lg      *zap.Logger
	all     []*backing.Pool
	classes map[*backing.Pool]string // as the configuration calls them

	mu   sync.Mutex
	open map[volume.LocalReplica]*backing.Replica // that are served
}

// openPools opens every configured pool; a witness has none.
func openPools(c *config.Config, lg *zap.Logger) (*pools, error) {
	p := &pools{cluster: clusterUUID(c.ClusterName), lg: lg, classes: map[*backing.Pool]string{}, open: make(map[volume.LocalReplica]*backing.Replica)}
	for _, pc := range c.Pools {
		if err := os.MkdirAll(pc.Path, 0o700); err != nil {
			return nil, errors.Join(fmt.Errorf("pool %s: %w", pc.Path, err), p.close())
		}
		pool, err := backing.OpenPool(backing.Options{Path: pc.Path, Cluster: p.cluster, Node: c.NodeID, AllowAnyFS: pc.AllowAnyFS, NoChecksums: pc.NoChecksums})
		if err != nil {
			return nil, errors.Join(err, p.close())
		}
		p.all = append(p.all, pool)
		p.classes[pool] = pc.Class
		engine, why := pool.Engine()
		lg.Info("pool open", zap.String("path", pc.Path), zap.String("fs", pool.FS().Type),
			zap.Bool("reflink", pool.FS().Reflink), zap.Stringer("engine", engine), zap.NamedError("not-better-because", why))
	}
	return p, nil
}

func (p *pools) close() error {
	var errs []error
	for _, pool := range p.all {
		errs = append(errs, pool.Close())
	}
	return errors.Join(errs...)
}

// summary tells the cluster how full the pools are.
func (p *pools) summary() []clusterdomain.Pool {
	var s []clusterdomain.Pool
	for _, pool := range p.all {
		c, err := pool.Capacity()
		if err != nil {
			p.lg.Error("pool capacity cannot be read", zap.String("path", pool.Path()), zap.Error(err))
			continue
		}
		s = append(s, clusterdomain.Pool{
			UUID: replication.UUID(pool.ID()).String(), Path: pool.Path(), FS: pool.FS().Type,
			Total: c.Total, Used: c.Used, Provisioned: c.Provisioned, Class: p.classes[pool],
		})
	}
	return s
}

// find returns the pool with an id.
func (p *pools) find(id string) *backing.Pool {
	for _, pool := range p.all {
		if replication.UUID(pool.ID()).String() == id {
			return pool
		}
	}
	return nil
}

// serve opens every replica. One that cannot be opened is left out and named; the
// others are served.
func (p *pools) serve(m *replvolume.Manager) error {
	for _, pool := range p.all {
		entries, err := pool.List()
		if err != nil {
			return fmt.Errorf("pool %s: %w", pool.Path(), err)
		}
		for _, e := range entries {
			if err := p.serveOne(pool, e, m); err != nil {
				p.lg.Error("replica cannot be served", zap.String("directory", e.Dir), zap.Error(err))
			}
		}
	}
	return nil
}

func (p *pools) serveOne(pool *backing.Pool, e backing.Entry, m *replvolume.Manager) error {
	if e.Err != nil {
		return e.Err
	}
	return p.openReplica(pool, replication.VolumeID(e.Volume), replication.ReplicaID(e.Replica), m)
}

// localReplica names a replica in a pool.
func localReplica(pool *backing.Pool, v replication.VolumeID, id replication.ReplicaID) volume.LocalReplica {
	return volume.LocalReplica{Volume: v, Replica: id, Pool: replication.UUID(pool.ID()).String()}
}

func (p *pools) openReplica(pool *backing.Pool, v replication.VolumeID, id replication.ReplicaID, m *replvolume.Manager) error {
	r, err := pool.Open(meta.UUID(v), meta.UUID(id))
	if err != nil {
		return err
	}
	if err := m.AddReplica(v, id, replvolume.Backed(r, pool.Path())); err != nil {
		return errors.Join(err, r.Close())
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.open[localReplica(pool, v, id)] = r
	return nil
}

// forget drops a replica that is not served any more.
func (p *pools) forget(v replication.VolumeID, id replication.ReplicaID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, pool := range p.all {
		delete(p.open, localReplica(pool, v, id))
	}
}

// localReplicas makes and removes replicas for the catalogue.
type localReplicas struct {
	pools   *pools
	volumes *replvolume.Manager
}

var _ volume.Replicas = (*localReplicas)(nil)

// Make implements volume.Replicas.
func (l *localReplicas) Make(_ context.Context, s volume.ReplicaSpec) error {
	if l.volumes.HasReplica(s.Volume, s.Replica) {
		return nil
	}
	pool := l.pools.find(s.Pool)
	if pool == nil {
		return fmt.Errorf("%w: pool %s is not on this node", backing.ErrNotFound, s.Pool)
	}
	spec := backing.ReplicaSpec{Cluster: l.pools.cluster, Volume: meta.UUID(s.Volume), Replica: meta.UUID(s.Replica), Size: s.Size, Thick: s.Thick}
	var err error
	if s.From == nil {
		err = pool.Create(spec)
	} else {
		var source *backing.Replica
		if source, err = l.pools.source(pool, s.From); err == nil {
			err = pool.CreateFrom(spec, source, meta.UUID(s.From.Snapshot))
		}
	}
	if err != nil && !errors.Is(err, backing.ErrExists) {
		return err
	}
	return l.pools.openReplica(pool, s.Volume, s.Replica, l.volumes)
}

// Remove implements volume.Replicas.
func (l *localReplicas) Remove(ctx context.Context, v replication.VolumeID, r replication.ReplicaID) error {
	err := l.volumes.RemoveReplica(ctx, v, r)
	if errors.Is(err, replvolume.ErrNotAtRest) {
		return err // the directory is in use
	}
	l.pools.forget(v, r)
	if err != nil {
		l.pools.lg.Warn("replica did not close in order before its removal", zap.Stringer("volume-id", v), zap.Error(err))
	}
	for _, pool := range l.pools.all {
		if err := pool.Remove(meta.UUID(v), meta.UUID(r)); err != nil && !errors.Is(err, backing.ErrNotFound) {
			return err
		}
	}
	return nil
}

// Note implements volume.Replicas.
func (l *localReplicas) Note(r volume.LocalReplica, spec []byte) error {
	pool := l.pools.find(r.Pool)
	if pool == nil {
		return fmt.Errorf("%w: pool %s is not on this node", backing.ErrNotFound, r.Pool)
	}
	return pool.SetNote(meta.UUID(r.Volume), meta.UUID(r.Replica), spec)
}

// markReverting keeps beside a replica here that its volume is being put back to a snapshot, or was.
func (p *pools) markReverting(r volume.LocalReplica, mark []byte) error {
	pool := p.find(r.Pool)
	if pool == nil {
		return fmt.Errorf("%w: pool %s is not on this node", backing.ErrNotFound, r.Pool)
	}
	return pool.SetReverting(meta.UUID(r.Volume), meta.UUID(r.Replica), mark)
}

// List implements volume.Replicas.
func (l *localReplicas) List(context.Context) ([]volume.LocalReplica, error) {
	var all []volume.LocalReplica
	for _, pool := range l.pools.all {
		entries, err := pool.ListKnown()
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			if e.Err == nil {
				all = append(all, localReplica(pool, replication.VolumeID(e.Volume), replication.ReplicaID(e.Replica)))
			}
		}
	}
	return all, nil
}
