package volume

import (
	"context"
	"fmt"
	"slices"
	"time"

	"go.uber.org/zap"

	"github.com/tandem-storage/tandem/audit"
	"github.com/tandem-storage/tandem/clusterdomain"
	"github.com/tandem-storage/tandem/replication"
	"github.com/tandem-storage/tandem/volume/volumepb"
)

// AttachOptions say how a volume is to be shown.
type AttachOptions struct {
	Frontend string             // "" = the node's default
	TakeFrom *replication.Coord // whom it may be taken from, nil if it was detached
	Format   bool               // for mkfs, after BeginFormat: the volume stays blank
}

// Live is what only a running node knows of a volume.
type Live struct {
	Path, Frontend string // of the attachment, if it is on this node
	Stall          *Stall // nil: I/O goes on
	Unprotected    bool   // writes go on without what the protection asks for, because it was away for too long
	Unreconciled   int64  // bytes in which in-sync replicas have still to be compared
	Replicas       map[replication.ReplicaID]Progress
	Verify         *Verify // nil: it is not attached here
	Damage         Damage
}

// Verify is what is known of the verifies of a volume since it was attached.
type Verify struct {
	Running            bool
	Since              time.Time
	Done, Total        int64 // bytes
	Rate               int64 // bytes per second
	ETA                time.Duration
	Healed, Recomputed int64                   // blocks
	Last               *clusterdomain.Verified // nil if there is none
	Next               time.Time               // zero if there is none
}

// Damage is the blocks of which reads fail until they are written, by their offsets in bytes.
type Damage struct {
	Lost    []int64 // no in-sync replica has them right
	Differs []int64 // in-sync replicas differ, and each vouches for what it has
	More    int     // that are not listed
}

// Stall is why a volume's I/O waits (G7).
type Stall struct {
	Cause string // for machines, as the core names it: KVDB, NEED_REPLICA, ...
	Text  string // what the operator can do
	Since time.Time
}

// Progress of the resync of one replica, in bytes.
type Progress struct {
	Dirty       int64 // what it lacks, as far as known
	Total, Done int64
	Rate        int64 // bytes per second
	ETA         time.Duration
	Waits       bool          // for its turn to be resynced
	Rests       time.Duration // before it is resynced: it was evicted because it is slow

	Healed  int64 // blocks that were rewritten because they did not read well
	Suspect bool  // so many that its disk is not to be trusted
}

// Runtime runs volumes on this node.
type Runtime interface {
	// Attach shows the volume as a block device here and returns what a consumer opens. Attaching it again
	// returns the same path. replication.ErrBusy: it is attached elsewhere, by another coordinator than o.TakeFrom.
	Attach(ctx context.Context, v replication.VolumeID, o AttachOptions) (path string, err error)
	// Detach ends the showing; a volume that is not attached is no error. frontend.ErrBusy: a consumer has it open.
	Detach(ctx context.Context, v replication.VolumeID) error
	// Status returns the live facts that can be had soon; the zero value if there are none.
	Status(ctx context.Context, v replication.VolumeID) Live
	// SetPolicy changes the protection of a volume that is attached here, in epoch expect, 0 for any, and returns when it is in force.
	// replication.ErrNotCoordinator: it is not attached here.
	SetPolicy(ctx context.Context, v replication.VolumeID, p replication.Policy, expect replication.Epoch, reason string) error
	// Grow gives a volume that is attached here size bytes, and tells its consumer. On nil every in-sync replica has them.
	// replication.ErrNotCoordinator: it is not attached here.
	Grow(ctx context.Context, v replication.VolumeID, size int64) error
	// StartVerify begins a verify of a volume that is attached here, at most rate bytes a second, nil being what is configured;
	// StopVerify ends it. replication.ErrNotCoordinator: it is not attached here.
	StartVerify(v replication.VolumeID, rate *int64) error
	StopVerify(v replication.VolumeID) error
}

// ServerOptions of a Server. All but Logger are required.
type ServerOptions struct {
	Node      replication.NodeID
	Runtime   Runtime
	Orphans   func() []LocalReplica // on this node
	Import    *Importer
	Switcher  *Switcher
	Snapshots SnapshotTaker
	Logger    *zap.Logger
}

// Server implements the gRPC service Volumes. It returns domain errors; an
// interceptor gives them their codes.
type Server struct {
	volumepb.UnimplementedVolumesServer
	c *Catalogue
	o ServerOptions
}

var _ volumepb.VolumesServer = (*Server)(nil)

// NewServer returns the service over c.
func NewServer(c *Catalogue, o ServerOptions) *Server {
	if o.Logger == nil {
		o.Logger = zap.NewNop()
	}
	return &Server{c: c, o: o}
}

// CreateVolume implements Volumes.
func (s *Server) CreateVolume(ctx context.Context, r *volumepb.CreateVolumeRequest) (*volumepb.CreateVolumeResponse, error) {
	ctx = by(ctx, r)
	prot, err := parseProtection(r.Protection)
	if err != nil {
		return nil, err
	}
	priority, err := parseResyncPriority(r.ResyncPriority)
	if err != nil {
		return nil, err
	}
	e, err := s.create(ctx, r, Request{
		Name: r.Name, Size: r.SizeBytes, Replicas: int(min(r.Replicas, MaxReplicas+1)), Protection: prot, Labels: r.Labels, Domains: r.Domains,
		Needs: parseNeeds(r.Needs), Failover: failoverOf(r.ManualFailover), Limits: parseLimits(r.Limits), Placing: parsePlacing(r.Placing), Thick: r.Thick,
		NearNode: replication.NodeID(r.NearNode), Joins: r.Group, ResyncPriority: priority,
	})
	if err != nil {
		return nil, err
	}
	return &volumepb.CreateVolumeResponse{Volume: s.show(ctx, e)}, nil
}

// create makes the volume, of a snapshot or another volume if r says so.
func (s *Server) create(ctx context.Context, r *volumepb.CreateVolumeRequest, q Request) (*Entry, error) {
	switch {
	case r.FromSnapshot != "" && r.FromVolume != "":
		return nil, fmt.Errorf("%w: volume %s is to begin with a snapshot and with another volume: give one of them", ErrInvalid, r.Name)
	case r.FromSnapshot != "":
		return s.c.Restore(ctx, q, r.FromSnapshot)
	case r.FromVolume != "":
		v, err := s.c.Resolve(ctx, r.FromVolume)
		if err != nil {
			return nil, fmt.Errorf("clone volume %s: %w", r.FromVolume, err)
		}
		var e *Entry
		err = s.o.Switcher.orEndUnserved(ctx, []replication.VolumeID{v}, func() (err error) {
			e, err = s.c.Clone(ctx, s.o.Snapshots, q, v)
			return err
		})
		return e, err
	default:
		return s.c.Create(ctx, q)
	}
}

// ListVolumes implements Volumes.
func (s *Server) ListVolumes(ctx context.Context, r *volumepb.ListVolumesRequest) (*volumepb.ListVolumesResponse, error) {
	es, err := s.c.List(ctx)
	if err != nil {
		return nil, err
	}
	resp := &volumepb.ListVolumesResponse{}
	for _, e := range es {
		if e.matches(r.Labels, replication.NodeID(r.Node)) {
			resp.Volumes = append(resp.Volumes, s.show(ctx, e))
		}
	}
	for _, o := range s.o.Orphans() {
		resp.Orphans = append(resp.Orphans, &volumepb.Orphan{
			Node: string(s.o.Node), Pool: o.Pool, VolumeId: o.Volume.String(), ReplicaId: o.Replica.String(),
			Text: "no volume claims this replica; it is kept",
		})
	}
	return resp, nil
}

// matches reports whether e has all the labels and something on the node; "" = any.
func (e *Entry) matches(labels map[string]string, node replication.NodeID) bool {
	for k, v := range labels {
		if have, ok := e.Labels[k]; !ok || have != v {
			return false
		}
	}
	if node == "" {
		return true
	}
	if e.Config != nil && coordinator(e.Config).Node == node {
		return true
	}
	return slices.ContainsFunc(e.Placed, func(p Placement) bool { return p.Node == node })
}

// InspectVolume implements Volumes.
func (s *Server) InspectVolume(ctx context.Context, r *volumepb.InspectVolumeRequest) (*volumepb.InspectVolumeResponse, error) {
	e, err := s.entry(ctx, r.Volume)
	if err != nil {
		return nil, err
	}
	return &volumepb.InspectVolumeResponse{Volume: s.show(ctx, e), Exposure: s.exposure(ctx, e)}, nil
}

// DeleteVolume implements Volumes.
func (s *Server) DeleteVolume(ctx context.Context, r *volumepb.DeleteVolumeRequest) (*volumepb.DeleteVolumeResponse, error) {
	ctx = by(ctx, r)
	id, err := s.c.Resolve(ctx, r.Volume)
	if err == nil {
		err = s.orEndDead(ctx, id, func(after *replication.Epoch) error {
			expected := (*replication.Epoch)(r.ExpectedEpoch)
			if expected != nil && after != nil {
				expected = after
			}
			return s.c.DeleteAt(ctx, id, expected)
		})
	}
	if err == nil && r.Wait {
		err = s.c.waitGone(ctx, id)
	}
	var e *Entry
	if err == nil {
		e, err = s.c.Get(ctx, id)
	}
	switch {
	case isNotFound(err):
		return &volumepb.DeleteVolumeResponse{}, nil
	case err != nil:
		return nil, fmt.Errorf("delete volume %s: %w", r.Volume, err)
	}
	return &volumepb.DeleteVolumeResponse{Volume: s.show(ctx, e)}, nil
}

// ReplaceReplica implements Volumes.
func (s *Server) ReplaceReplica(ctx context.Context, r *volumepb.ReplaceReplicaRequest) (*volumepb.ReplaceReplicaResponse, error) {
	e, err := s.entry(ctx, r.Volume)
	if err != nil {
		return nil, err
	}
	ctx = by(ctx, r)
	err = s.c.Replace(ctx, e.ID, ReplaceRequest{Replica: r.Replica, Node: replication.NodeID(r.Node), Pool: r.Pool, ExpectedEpoch: (*replication.Epoch)(r.ExpectedEpoch)})
	if err == nil && r.Wait {
		err = s.c.waitReplaced(ctx, e.ID)
	}
	if err != nil {
		return nil, fmt.Errorf("replace replica %s of volume %s: %w", r.Replica, e.Name, err)
	}
	v, err := s.again(ctx, e)
	if err != nil {
		return nil, err
	}
	return &volumepb.ReplaceReplicaResponse{Volume: v}, nil
}

// AttachVolume implements Volumes.
func (s *Server) AttachVolume(ctx context.Context, r *volumepb.AttachVolumeRequest) (*volumepb.AttachVolumeResponse, error) {
	if n := replication.NodeID(r.Node); n != "" && n != s.o.Node {
		return nil, s.otherNode(n, "attaches only on itself")
	}
	e, err := s.entry(ctx, r.Volume)
	if err != nil {
		return nil, err
	}
	if e.State != Ready {
		return nil, e.notReady()
	}
	if e.Reverting != nil {
		return nil, fmt.Errorf("attach volume %s: %w", e.Name, e.Reverting.refuse())
	}
	// What comes between this and the takeover is found by TakeFrom.
	if err := checkEpoch(e.Config, (*replication.Epoch)(r.ExpectedEpoch)); err != nil {
		return nil, fmt.Errorf("attach volume %s: %w", e.Name, err)
	}
	if e.Rollback != nil {
		return nil, fmt.Errorf("attach volume %s: %w: %s", e.Name, replication.ErrRolledBack, e.Rollback.describe(e.ID))
	}
	if err := s.c.cluster.Refresh(ctx); err != nil { // the domain may have been activated a moment ago, elsewhere
		return nil, fmt.Errorf("attach volume %s: %w", e.Name, err)
	}
	err = s.orEndDead(by(ctx, r), e.ID, func(after *replication.Epoch) error {
		if after != nil {
			var err error
			if e, err = s.c.Get(ctx, e.ID); err != nil {
				return err
			}
		}
		return checkAttach(e.Config, s.c.cluster.View(), s.o.Node)
	})
	if err != nil {
		return nil, fmt.Errorf("attach volume %s: %w", e.Name, err)
	}
	o := AttachOptions{Frontend: r.Frontend, Format: r.ForFormat}
	fresh := false
	if r.ForFormat {
		if fresh, err = s.c.BeginFormat(ctx, e.ID, s.o.Node); err != nil {
			return nil, fmt.Errorf("attach volume %s for formatting: %w", e.Name, err)
		}
	}
	if e.Config != nil {
		o.TakeFrom = e.Config.Coord
	}
	path, err := s.o.Runtime.Attach(ctx, e.ID, o)
	if co := o.TakeFrom; co == nil || co.Node != s.o.Node {
		s.record(ctx, r, "host attach", e, err)
	}
	if err != nil {
		return nil, fmt.Errorf("attach volume %s: %w", e.Name, err)
	}
	s.catchUp(ctx, e)
	v, err := s.again(ctx, e)
	if err != nil {
		return nil, err
	}
	// The transaction of an attachment takes the mark away. Where it still is the device is that of an attachment for mkfs.
	if !r.ForFormat && v.Content != volumepb.Content_CONTENT_WRITTEN {
		return nil, fmt.Errorf("attach volume %s: %w for mkfs, which has not ended", e.Name, ErrAttached)
	}
	return &volumepb.AttachVolumeResponse{Path: path, Volume: v, Fresh: fresh}, nil
}

// DetachVolume implements Volumes.
func (s *Server) DetachVolume(ctx context.Context, r *volumepb.DetachVolumeRequest) (*volumepb.DetachVolumeResponse, error) {
	e, err := s.entry(ctx, r.Volume)
	if err != nil {
		return nil, err
	}
	if e.Config != nil {
		if n := coordinator(e.Config).Node; n != "" && n != s.o.Node {
			return nil, s.otherNode(n, "does not have volume "+e.Name+" attached")
		}
	}
	if err := checkEpoch(e.Config, (*replication.Epoch)(r.ExpectedEpoch)); err != nil {
		return nil, fmt.Errorf("detach volume %s: %w", e.Name, err)
	}
	err = s.o.Runtime.Detach(ctx, e.ID)
	if e.Config != nil && e.Config.Coord != nil {
		s.record(ctx, r, "host detach", e, err)
	}
	if err != nil {
		return nil, fmt.Errorf("detach volume %s: %w", e.Name, err)
	}
	s.endOwn(by(ctx, r), e)
	v, err := s.again(ctx, e)
	if err != nil {
		return nil, err
	}
	return &volumepb.DetachVolumeResponse{Volume: v}, nil
}

// order is a request to change something.
type order interface {
	GetActor() string
	GetReason() string
}

// by has what is done in ctx recorded as asked for by r.
func by(ctx context.Context, r order) context.Context {
	return audit.By(ctx, audit.Actor(ctx, r.GetActor()), r.GetReason())
}

// record puts into the audit trail what was done about e, of which err came. What was refused or failed is not recorded, but what was
// not waited for to its end is.
func (s *Server) record(ctx context.Context, r order, verb string, e *Entry, err error) {
	rec := audit.Record{Verb: verb, Object: object(e.ID), Outcome: "done on node " + string(s.o.Node)}
	switch {
	case ctx.Err() != nil:
		rec.Outcome = fmt.Sprintf("goes on on node %s: %v", s.o.Node, err)
	case err != nil:
		return
	}
	ctx = by(ctx, r)
	rctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), audit.NoteTimeout)
	defer cancel()
	if cfg, _, err := s.c.configs.Load(rctx, e.ID); err == nil {
		rec.Epoch = uint64(cfg.Epoch)
	}
	if err := s.c.trail.Note(ctx, rec); err != nil {
		s.o.Logger.Error("action not in the audit trail", zap.String("verb", verb), zap.Stringer("volume-id", e.ID), zap.Error(err))
	}
}

// otherNode names the node that is to be asked, and how it is reached.
func (s *Server) otherNode(n replication.NodeID, why string) error {
	info, ok := s.c.cluster.View().Node(string(n))
	if !ok {
		return fmt.Errorf("%w: node %s %s, and there is no node %s", ErrOtherNode, s.o.Node, why, n)
	}
	return fmt.Errorf("%w: node %s %s; ask node %s (domain %s, %s)", ErrOtherNode, s.o.Node, why, n, info.Domain, info.Address)
}

func (e *Entry) notReady() error {
	if e.State == Deleting {
		return fmt.Errorf("%w: %s", ErrDeleting, e.Name)
	}
	return fmt.Errorf("%w: %s: %s", ErrNotReady, e.Name, e.Progress())
}

// entry returns a volume by id or name.
func (s *Server) entry(ctx context.Context, ref string) (*Entry, error) {
	id, err := s.c.Resolve(ctx, ref)
	if err != nil {
		return nil, err
	}
	return s.c.Get(ctx, id)
}

// again reads a volume anew after it was changed.
func (s *Server) again(ctx context.Context, e *Entry) (*volumepb.Volume, error) {
	e, err := s.c.Get(ctx, e.ID)
	if err != nil {
		return nil, err
	}
	return s.show(ctx, e), nil
}

// show makes e a message, with what is known of its running.
func (s *Server) show(ctx context.Context, e *Entry) *volumepb.Volume {
	var live Live
	if e.State == Ready {
		live = s.o.Runtime.Status(ctx, e.ID)
	}
	online := map[replication.NodeID]bool{}
	for _, n := range s.c.cluster.View().Nodes {
		online[replication.NodeID(n.Name)] = n.Online
	}
	return volumePB(e, live, online)
}
