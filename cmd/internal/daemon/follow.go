package daemon

import (
	"context"
	"errors"
	"fmt"
	"net"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	"github.com/tandem-storage/tandem/audit"
	"github.com/tandem-storage/tandem/audit/auditpb"
	"github.com/tandem-storage/tandem/clusterdomain"
	"github.com/tandem-storage/tandem/clusterdomain/clusterdomainpb"
	"github.com/tandem-storage/tandem/cmd/internal/doctor/doctorpb"
	"github.com/tandem-storage/tandem/cmd/internal/rpcstatus"
	"github.com/tandem-storage/tandem/replication"
	"github.com/tandem-storage/tandem/volume"
	"github.com/tandem-storage/tandem/volume/volumepb"
)

// follow runs what goes on all the time: the node's registration, the cluster's
// domains and nodes, the catalogue and the configurations.
func (d *daemon) follow(ctx context.Context, g *errgroup.Group) {
	d.late.m.Store(d.volumes)
	d.lateSwitch.s.Store(d.switcher())
	g.Go(func() error { return d.domains.Run(ctx) })
	g.Go(func() error {
		d.reconciler.Run(ctx)
		return nil
	})
	g.Go(func() error {
		d.groups.Run(ctx)
		return nil
	})
	g.Go(func() error {
		d.checkReplicas(ctx)
		return nil
	})
	g.Go(func() error {
		d.trim(ctx)
		return nil
	})
	g.Go(func() error {
		resumed := false
		for v := range d.domains.Watch(ctx) {
			d.clusterChanged(v)
			if resumed || v.State(d.c.Domain) == "" {
				continue // it is not known who may do what
			}
			resumed = true
			g.Go(func() error {
				d.runtime.resume(ctx, func() bool { return d.domains.LocalState().MustStop() })
				return nil
			})
		}
		return nil
	})
	g.Go(func() error {
		for e := range d.configs.WatchAll(ctx) {
			switch {
			case e.Err != nil:
				d.lg.Error("configuration of a volume cannot be read, it is left alone", zap.Stringer("volume-id", e.Volume), zap.Error(e.Err))
			case e.Config != nil:
				d.volumes.ConfigChanged(e.Config)
				d.runtime.followHandover(e.Config)
			}
		}
		return nil
	})
}

// clusterChanged passes a view of the cluster on.
func (d *daemon) clusterChanged(v *clusterdomain.View) {
	addrs := make(map[replication.NodeID]string)
	for _, n := range v.Nodes {
		if n.Name != d.c.NodeID && n.Address != "" {
			addrs[replication.NodeID(n.Name)] = n.Address
		}
	}
	if err := d.peers.SetNodes(addrs); err != nil {
		d.lg.Error("address of a node cannot be used", zap.Error(err))
	}
	d.volumes.DomainsChanged() // also if none has: whoever missed a change hears of it now
}

// rtts are the round-trip times to the other nodes.
func (d *daemon) rtts() []clusterdomain.RTT {
	var all []clusterdomain.RTT
	for _, n := range d.domains.View().Nodes {
		if n.Name == d.c.NodeID {
			continue
		}
		r := d.peers.RTT(replication.NodeID(n.Name))
		all = append(all, clusterdomain.RTT{
			Node: n.Name, Domain: n.Domain, P50: r.P50, P99: r.P99, Samples: r.Samples, LastSeen: r.LastSeen,
		})
	}
	return all
}

// startAPI serves operators.
func (d *daemon) startAPI(g *errgroup.Group, stops *stopper) error {
	cs := clusterdomain.NewServer(d.domains, clusterdomain.ServerOptions{Version: d.version, RTTs: d.rtts, Kvdb: d.kvdbInfo, RemoveKvdbMember: d.kvdbRemove})
	coords := d.coords
	stops.push(coords.close)
	d.service = volume.NewServer(d.catalogue, volume.ServerOptions{
		Node: d.node, Runtime: d.runtime, Orphans: d.reconciler.Orphans, Import: d.importer(), Switcher: d.switcher(), Snapshots: coords, Logger: d.lg,
	})
	ss := volume.NewSnapshotServer(d.catalogue, coords, coords, coords, d.switcher())
	blocks := volume.NewSnapshotBlocksServer(d.catalogue, d.node, d.pools, coords)
	gss := volume.NewGroupSnapshotServer(d.catalogue, coords, d.switcher())
	gs := volume.NewGroupServer(d.catalogue, coords, d.lg)
	as := audit.NewServer(audit.New(d.store, d.c.ClusterName, d.c.NodeID))
	ds := d.doctor()
	start := func(l net.Listener, o ...grpc.ServerOption) {
		o = append(o, grpc.ChainUnaryInterceptor(rpcstatus.UnaryServerInterceptor(d.lg), rpcstatus.AnswerInTime()), grpc.ChainStreamInterceptor(rpcstatus.StreamServerInterceptor(d.lg)))
		s := grpc.NewServer(o...)
		clusterdomainpb.RegisterClusterDomainsServer(s, cs)
		clusterdomainpb.RegisterClusterServer(s, cs)
		volumepb.RegisterVolumesServer(s, d.service)
		volumepb.RegisterGroupsServer(s, gs)
		volumepb.RegisterSnapshotsServer(s, ss)
		volumepb.RegisterSnapshotBlocksServer(s, blocks)
		volumepb.RegisterGroupSnapshotsServer(s, gss)
		auditpb.RegisterAuditServer(s, as)
		doctorpb.RegisterDoctorServer(s, ds)
		serveOn(g, s, l)
		stops.push(func() error {
			s.Stop()
			return nil
		})
	}
	l, err := listenUnix(d.c.API.Socket)
	if err != nil {
		return fmt.Errorf("listen for operators (api.socket): %w", err)
	}
	start(l)
	if d.c.API.Listen == "" {
		return nil
	}
	if l, err = net.Listen("tcp", d.c.API.Listen); err != nil {
		return errors.Join(fmt.Errorf("listen for operators (api.listen): %w", err))
	}
	start(l, grpc.Creds(d.security.ServerCredentials()))
	return nil
}
