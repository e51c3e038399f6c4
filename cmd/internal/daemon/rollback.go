package daemon

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.uber.org/zap"

	"github.com/tandem-storage/tandem/clusterdomain"
	"github.com/tandem-storage/tandem/datapath/meta"
	"github.com/tandem-storage/tandem/replication"
	replvolume "github.com/tandem-storage/tandem/replication/volume"
	"github.com/tandem-storage/tandem/volume"
	"github.com/tandem-storage/tandem/volume/volumepb"
)

// checkEvery is how often the kvdb is compared with the replicas of this node: it may be restored from a backup while everything runs.
const checkEvery = time.Minute

// checkReplicas compares the kvdb with the replicas of this node, now and from time to time, until ctx ends.
func (d *daemon) checkReplicas(ctx context.Context) {
	tick := time.NewTicker(checkEvery)
	defer tick.Stop()
	told := map[replication.VolumeID]string{}
	for failing := false; ; {
		cctx, cancel := context.WithTimeout(ctx, checkEvery)
		marks, err := d.configs.CheckReplicas(cctx, d.pools.survey)
		cancel()
		if err != nil && !failing && ctx.Err() == nil {
			d.lg.Warn("replicas not compared with the kvdb", zap.Error(err))
		}
		failing = err != nil
		for v, m := range marks {
			if told[v] != m.Text {
				d.lg.Error("kvdb knows less than a replica", zap.String("cause", "KVDB_ROLLBACK"), zap.Stringer("volume-id", v),
					zap.Stringer("replica-id", m.Replica), zap.String("found", m.Text))
			}
			told[v] = m.Text
		}
		for v := range told {
			if err == nil && marks[v] == nil {
				delete(told, v)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-d.recheck:
		}
	}
}

// suspect has the replicas compared soon.
func (d *daemon) suspect() {
	select {
	case d.recheck <- struct{}{}:
	default: // it is due already
	}
}

// report is what an import asks this node.
func (d *daemon) report() (*volume.NodeReport, error) {
	m, err := d.late.get()
	if err != nil {
		return nil, err
	}
	r := &volume.NodeReport{Node: d.node, Domain: d.domain, Replicas: d.pools.look(true)}
	r.Incarnation, _ = d.configs.Incarnation()
	for _, v := range m.Volumes() {
		if cfg := v.InForce(); cfg != nil {
			r.Serving = append(r.Serving, cfg)
		}
	}
	return r, nil
}

// importer imports on behalf of operators who ask this node.
func (d *daemon) importer() *volume.Importer {
	return &volume.Importer{Catalogue: d.catalogue, Node: d.node, Ask: d.askReport, Logger: d.lg}
}

// askReport asks a node, also this one, for its report.
func (d *daemon) askReport(ctx context.Context, n clusterdomain.Node) (_ *volume.NodeReport, err error) {
	if n.Name == d.c.NodeID {
		return d.report()
	}
	cc, err := d.dial(n.Name, n.Address)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, cc.Close()) }()
	resp, err := volumepb.NewReplicasClient(cc).ListReplicas(ctx, &volumepb.ListReplicasRequest{})
	if err != nil {
		return nil, fmt.Errorf("node %s: %w", n.Name, err)
	}
	return volume.ParseReport(resp)
}

// survey tells what the superblocks of this node's replicas say.
func (p *pools) survey() []volume.FoundReplica { return p.look(false) }

// look is survey, with the records that lie beside the replicas if an import wants them.
func (p *pools) look(records bool) []volume.FoundReplica {
	var all []volume.FoundReplica
	for _, pool := range p.all {
		entries, err := pool.ListKnown()
		if err != nil {
			p.lg.Error("replicas of a pool cannot be listed", zap.String("path", pool.Path()), zap.Error(err))
			continue
		}
		for _, e := range entries {
			f := volume.FoundReplica{LocalReplica: localReplica(pool, replication.VolumeID(e.Volume), replication.ReplicaID(e.Replica))}
			p.mu.Lock()
			r := p.open[f.LocalReplica]
			p.mu.Unlock()
			switch {
			case e.Err != nil:
				f.Err = e.Err.Error()
			case r == nil:
				f.Err = "it is not served: the daemon's log says why"
			default:
				found(&f, r.Superblock())
				if !records {
					break
				}
				if f.Spec, err = pool.Note(e.Volume, e.Replica); err != nil {
					p.lg.Warn("record of a volume beside its replica cannot be read", zap.String("directory", e.Dir), zap.Error(err))
				}
				if f.Revert, err = pool.Reverting(e.Volume, e.Replica); err != nil {
					f.Err = fmt.Sprintf("whether its volume was being put back to a snapshot cannot be read: %v", err)
				}
			}
			all = append(all, f)
		}
	}
	return all
}

// found fills in what a superblock says.
func found(f *volume.FoundReplica, sb *meta.Superblock) {
	f.Size, f.Epoch, f.Gen, f.Term = int64(sb.Size), replication.Epoch(sb.Epoch), sb.Gen, replication.Term(sb.Term)
	f.State, _ = replvolume.StateOf(sb.State)
	f.Incarnation = replication.UUID(sb.KVIncarnation)
	for _, id := range sb.ISR {
		f.ISR = append(f.ISR, replication.ReplicaID(id))
	}
	for _, id := range sb.Missing {
		f.Missing = append(f.Missing, replication.ReplicaID(id))
	}
}
