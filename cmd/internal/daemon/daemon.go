// Package daemon is the composition root of tandemd: the only package that knows
// every subsystem. It starts them in order, passes each what it needs of the
// others, and stops them in reverse.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/uuid"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	"github.com/tandem-storage/tandem/clusterdomain"
	"github.com/tandem-storage/tandem/cmd/internal/config"
	"github.com/tandem-storage/tandem/cmd/internal/doctor"
	"github.com/tandem-storage/tandem/cmd/internal/doctor/doctorpb"
	"github.com/tandem-storage/tandem/cmd/internal/rpcstatus"
	"github.com/tandem-storage/tandem/kvdb"
	"github.com/tandem-storage/tandem/replication"
	"github.com/tandem-storage/tandem/replication/transport"
	replvolume "github.com/tandem-storage/tandem/replication/volume"
	"github.com/tandem-storage/tandem/replication/wire"
	"github.com/tandem-storage/tandem/volume"
	"github.com/tandem-storage/tandem/volume/volumepb"
)

// stopTimeout bounds each part of an orderly end that waits for consumers or other
// nodes, and stopLimit all of it: a disk or a file system may never answer.
const (
	stopTimeout = 30 * time.Second
	stopLimit   = 90 * time.Second
)

// errNotStopped is how Run ends when something did not let itself be stopped.
var errNotStopped = errors.New("daemon: not stopped in time; the process ends with something still in use, as after a kill")

// daemon is a running node. Its fields are set once by Run, in this order.
type daemon struct {
	c       *config.Config
	version string
	lg      *zap.Logger
	node    replication.NodeID
	domain  replication.DomainID
	boot    replication.BootID

	security   *transport.Security
	late       *lateHandler
	lateSwitch lateSwitcher
	peerSrv    *grpc.Server
	peers      *transport.Peers
	store      kvdb.Store
	kvdbInfo   func(context.Context) clusterdomain.KvdbStatus
	// kvdbRemove takes a member out; nil if this node is none of an embedded kvdb.
	kvdbRemove func(ctx context.Context, ref string) error
	// kvdbTerm is the term of the kvdb's leader.
	kvdbTerm func(ctx context.Context) (uint64, error)

	configs    *volume.Configs
	catalogue  *volume.Catalogue
	domains    *clusterdomain.Manager
	pools      *pools
	volumes    *replvolume.Manager
	reconciler *volume.Reconciler
	groups     *volume.GroupKeeper
	runtime    *runtime
	service    *volume.Server
	coords     *cutCoordinators
	recheck    chan struct{} // has room for one: checkReplicas is due
}

// Run is tandemd: it returns when ctx ends, after everything was closed in
// order, or with the error because of which the node cannot run.
func Run(ctx context.Context, c *config.Config, version string, lg *zap.Logger) (err error) {
	d := &daemon{c: c, version: version, lg: lg, node: replication.NodeID(c.NodeID), domain: replication.DomainID(c.Domain), recheck: make(chan struct{}, 1)}
	d.coords = &cutCoordinators{d: d}
	lg.Info("tandemd starting", zap.String("version", version), zap.Any("config", c.Effective()))
	var stops stopper
	g, ctx := errgroup.WithContext(ctx)
	defer func() {
		err = errors.Join(err, inTime(stopLimit, func() error { return errors.Join(stops.run(), unlessCanceled(g.Wait())) }))
		lg.Info("tandemd stopped", zap.Error(err))
	}()
	if d.boot, err = bootID(); err != nil {
		return err
	}
	for _, dir := range []string{c.DataDir, c.RunDir} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("make directory: %w", err)
		}
	}
	if err := d.startTransport(&stops); err != nil {
		return err
	}
	if err := d.startStore(g, &stops); err != nil {
		return err
	}
	if err := d.startVolumes(ctx, &stops); err != nil {
		return unlessCanceled(err)
	}
	if err := d.startAPI(g, &stops); err != nil {
		return err
	}
	if err := d.startCSI(g, &stops); err != nil {
		return err
	}
	d.follow(ctx, g)
	lg.Info("tandemd ready", zap.String("api", c.API.Socket))
	<-ctx.Done()
	lg.Info("tandemd stopping")
	return nil // what was started goes on until it is stopped in order
}

// unlessCanceled is err if it is more than having been asked to end.
func unlessCanceled(err error) error {
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// inTime is what f returns, or errNotStopped after d; f goes on then.
func inTime(d time.Duration, f func() error) error {
	done := make(chan error, 1)
	go func() { done <- f() }()
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case err := <-done:
		return err
	case <-t.C:
		return errNotStopped
	}
}

// stopper runs what was pushed in reverse, once.
type stopper struct{ fs []func() error }

func (s *stopper) push(f func() error) { s.fs = append(s.fs, f) }

func (s *stopper) run() error {
	var errs []error
	for i := len(s.fs) - 1; i >= 0; i-- {
		errs = append(errs, s.fs[i]())
	}
	s.fs = nil
	return errors.Join(errs...)
}

// bootID identifies this boot of the kernel.
func bootID() (replication.BootID, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return replication.BootID{}, fmt.Errorf("read the kernel's boot id: %w", err)
	}
	u, err := replication.ParseUUID(strings.TrimSpace(string(b)))
	return replication.BootID(u), err
}

// clusterUUID is the cluster's name as an identifier for what lies on disk.
func clusterUUID(name string) [16]byte {
	return uuid.NewSHA1(uuid.NameSpaceURL, []byte("tandem://"+name))
}

// startTransport opens the port for other nodes.
func (d *daemon) startTransport(stops *stopper) error {
	self := transport.Identity{Cluster: d.c.ClusterName, Domain: d.domain, Node: d.node}
	var err error
	if d.c.TLS.Insecure {
		d.security, err = transport.InsecureLoopback(self)
	} else {
		d.security, err = transport.LoadTLS(transport.TLSFiles{CA: d.c.TLS.CA, Cert: d.c.TLS.Cert, Key: d.c.TLS.Key}, d.c.ClusterName)
	}
	if err != nil {
		return err
	}
	if got := d.security.Self(); got != self {
		return fmt.Errorf("certificate %s is of %s, but the configuration says %s; issue one with tandemctl pki issue", d.c.TLS.Cert, got, self)
	}
	d.late = &lateHandler{suspect: d.suspect}
	srv := transport.NewServer(transport.ServerConfig{Handler: d.late, Security: d.security.WithLogger(d.lg), Boot: d.boot, Logger: d.lg})
	opts := append(srv.ServerOptions(),
		grpc.ChainUnaryInterceptor(rpcstatus.UnaryServerInterceptor(d.lg)),
		grpc.ChainStreamInterceptor(rpcstatus.StreamServerInterceptor(d.lg)))
	d.peerSrv = grpc.NewServer(opts...)
	srv.Register(d.peerSrv)
	volumepb.RegisterReplicasServer(d.peerSrv, volume.NewReplicasServer(d.report, d.markReplica))
	volumepb.RegisterGroupCoordinatorsServer(d.peerSrv, volume.NewGroupCoordinatorsServer(d.cutTarget))
	volumepb.RegisterSnapshotCoordinatorsServer(d.peerSrv, volume.NewSnapshotCoordinatorsServer(d.localTaker))
	volumepb.RegisterSnapshotHoldersServer(d.peerSrv, volume.NewSnapshotHoldersServer(d.localBlocks))
	volumepb.RegisterHandoversServer(d.peerSrv, &d.lateSwitch)
	doctorpb.RegisterMeasurerServer(d.peerSrv, doctor.NewMeasurer(d.measured))
	d.peers, err = transport.NewPeers(transport.PeersConfig{
		Security: d.security, Boot: d.boot, BeatInterval: d.c.Replication.BeatInterval,
		SuspectAfter: d.c.Replication.SuspectTimeout, OnLiveness: d.late.liveness, Logger: d.lg,
	})
	if err != nil {
		return err
	}
	stops.push(func() error {
		d.peerSrv.Stop()
		return errors.Join(srv.Close(), d.peers.Close())
	})
	return nil
}

// startVolumes brings up what lies on this node's disks and what runs on it.
func (d *daemon) startVolumes(ctx context.Context, stops *stopper) error {
	if err := d.awaitStore(ctx); err != nil {
		return err
	}
	var err error
	if d.configs, err = volume.NewConfigs(ctx, d.store, d.c.ClusterName); err != nil {
		return err
	}
	if d.pools, err = openPools(d.c, d.lg); err != nil {
		return err
	}
	stops.push(d.pools.close)
	d.domains, err = clusterdomain.New(d.store, clusterdomain.Options{
		Cluster: d.c.ClusterName,
		Node: clusterdomain.Node{
			Name: d.c.NodeID, Domain: d.c.Domain, Address: d.c.Peer.Advertise, BootID: d.boot.String(),
			ProtoMin: uint32(wire.MinVersion), ProtoMax: uint32(wire.MaxVersion), Version: d.version,
			Witness: d.c.Role == config.RoleWitness, Labels: d.c.Labels,
		},
		Pools: d.pools.summary, Fragile: func() int { return d.runtime.fragile() }, Volumes: volume.NewDomainView(d.configs), TTL: d.c.Failover.NodeTTL, Failover: d.failover(), Logger: d.lg,
	})
	if err != nil {
		return err
	}
	d.catalogue = volume.NewCatalogue(d.configs, d.domains)
	d.groups = volume.NewGroupKeeper(d.catalogue, d.domain, d.grouped, d.lg)
	r := d.c.Replication
	d.volumes = replvolume.NewManager(replvolume.Options{
		Node: d.node, Domain: d.domain, Boot: d.boot, Instance: replication.NewUUID(), Incarnation: d.configs.Incarnation,
		Configs: configStore{d.configs}, Peers: d.peers, Groups: d.groups,
		Usable:    func(n replication.DomainID) bool { return !d.domains.DomainState(string(n)).MustStop() },
		MayKeep:   func(n replication.DomainID) bool { return d.domains.DomainState(string(n)) != clusterdomain.Draining },
		MayAttach: func(n replication.DomainID) bool { return d.domains.DomainState(string(n)).MayAttach() },
		Timing: replvolume.Timing{
			Suspect: r.SuspectTimeout, Operation: r.OpTimeout, EvictSlow: r.EvictSlow, Seal: r.SealTimeout, Lease: r.LeaseTime, LeaseGrant: r.LeaseGrant, ConfirmReads: r.ReadFence == config.FenceConfirm, Stall: r.StallTimeout,
			Handover:   r.HandoverTimeout,
			ResyncRate: int64(r.ResyncRate), Resyncs: r.Resyncs, ResyncFloor: int64(r.ResyncFloor),
			PoolResyncs: r.ResyncsPerPool, PoolResyncRate: int64(r.ResyncRatePerPool), LinkResyncRate: int64(r.ResyncRatePerLink),
		},
		Verify: replvolume.VerifySchedule{Every: r.VerifyInterval, Rate: int64(r.VerifyRate)}, Verified: d.verified,
		Logger: d.lg,
	})
	d.configs.Resynced, d.configs.Sealed = d.resynced, d.sealed
	stops.push(func() error {
		ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
		defer cancel()
		return d.volumes.Close(ctx)
	})
	if err := d.pools.serve(d.volumes); err != nil {
		return err
	}
	d.reconciler = volume.NewReconciler(d.catalogue, volume.ReconcilerOptions{
		Node: d.node, Replicas: &localReplicas{pools: d.pools, volumes: d.volumes}, Logger: d.lg,
		Limits: func(in map[replication.VolumeID]volume.Limits) { d.runtime.limit(in) }, Priorities: d.volumes.SetResyncPriorities,
	})
	if d.runtime, err = newRuntime(d.c, d.volumes, d.security, d.boot, d.suspect, d.lg); err != nil {
		return err
	}
	d.runtime.formatting, d.runtime.unshown, d.runtime.reverting, d.runtime.frees = d.configs.Formatting, d.configs.Unshown, d.configs.CheckReverting, d.pools.frees
	stops.push(d.runtime.close)
	return nil
}

// awaitStore waits until the kvdb answers, and gives it an incarnation if it has none.
func (d *daemon) awaitStore(ctx context.Context) error {
	const attempt = 5 * time.Second
	for {
		actx, cancel := context.WithTimeout(ctx, attempt)
		_, err := clusterdomain.Incarnation(actx, d.store, d.c.ClusterName, d.c.NodeID)
		cancel()
		if err == nil || ctx.Err() != nil {
			return ctx.Err()
		}
		d.lg.Warn("waiting for the kvdb", zap.Error(err))
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// serveOn serves s on l in g.
func serveOn(g *errgroup.Group, s *grpc.Server, l net.Listener) {
	g.Go(func() error {
		if err := s.Serve(l); err != nil && !errors.Is(err, grpc.ErrServerStopped) {
			return fmt.Errorf("serve on %s: %w", l.Addr(), err)
		}
		return nil
	})
}

// listenUnix opens a socket that its owner alone may use, and replaces one that a
// dead process left behind.
func listenUnix(path string) (net.Listener, error) {
	if c, err := net.DialTimeout("unix", path, time.Second); err == nil {
		return nil, errors.Join(fmt.Errorf("another process serves %s; stop it, or give this node another runDir", path), c.Close())
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	return l, os.Chmod(path, 0o600)
}
