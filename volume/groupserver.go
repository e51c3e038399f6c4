package volume

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"go.uber.org/zap"

	"github.com/tandem-storage/tandem/audit"
	"github.com/tandem-storage/tandem/replication"
	"github.com/tandem-storage/tandem/volume/volumepb"
)

// GroupServer implements the gRPC service Groups.
type GroupServer struct {
	volumepb.UnimplementedGroupsServer
	c  *Catalogue
	cs CutCoordinators
	lg *zap.Logger
}

var _ volumepb.GroupsServer = (*GroupServer)(nil)

// NewGroupServer returns the service over c; cs reaches the coordinators of all nodes.
func NewGroupServer(c *Catalogue, cs CutCoordinators, lg *zap.Logger) *GroupServer {
	return &GroupServer{c: c, cs: cs, lg: lg}
}

// CreateGroup implements Groups.
func (s *GroupServer) CreateGroup(ctx context.Context, r *volumepb.CreateGroupRequest) (*volumepb.CreateGroupResponse, error) {
	ctx = by(ctx, r)
	vols, err := s.resolve(ctx, r.Volumes)
	if err != nil {
		return nil, err
	}
	f := replication.FailoverAutomatic
	if r.Failover == volumepb.Failover_FAILOVER_MANUAL {
		f = replication.FailoverManual
	}
	e, err := s.c.CreateGroup(ctx, r.Name, f, vols)
	if err != nil {
		return nil, fmt.Errorf("create group %s: %w", r.Name, err)
	}
	g, err := s.show(ctx, e)
	return &volumepb.CreateGroupResponse{Group: g}, err
}

// ListGroups implements Groups.
func (s *GroupServer) ListGroups(ctx context.Context, _ *volumepb.ListGroupsRequest) (*volumepb.ListGroupsResponse, error) {
	es, err := s.c.Groups(ctx)
	if err != nil {
		return nil, err
	}
	resp := &volumepb.ListGroupsResponse{}
	for _, e := range es {
		g, err := s.show(ctx, e)
		if err != nil {
			return nil, err
		}
		resp.Groups = append(resp.Groups, g)
	}
	return resp, nil
}

// InspectGroup implements Groups.
func (s *GroupServer) InspectGroup(ctx context.Context, r *volumepb.InspectGroupRequest) (*volumepb.InspectGroupResponse, error) {
	e, err := s.c.Group(ctx, r.Group)
	if err != nil {
		return nil, err
	}
	g, err := s.show(ctx, e)
	return &volumepb.InspectGroupResponse{Group: g}, err
}

// ChangeGroup implements Groups.
func (s *GroupServer) ChangeGroup(ctx context.Context, r *volumepb.ChangeGroupRequest) (*volumepb.ChangeGroupResponse, error) {
	ctx = by(ctx, r)
	add, err := s.resolve(ctx, r.AddVolumes)
	if err != nil {
		return nil, err
	}
	remove, err := s.resolve(ctx, r.RemoveVolumes)
	if err != nil {
		return nil, err
	}
	e, err := s.c.ChangeGroup(ctx, r.Group, add, remove)
	if err != nil {
		return nil, fmt.Errorf("change group %s: %w", r.Group, err)
	}
	g, err := s.show(ctx, e)
	return &volumepb.ChangeGroupResponse{Group: g}, err
}

// DeleteGroup implements Groups.
func (s *GroupServer) DeleteGroup(ctx context.Context, r *volumepb.DeleteGroupRequest) (*volumepb.DeleteGroupResponse, error) {
	return &volumepb.DeleteGroupResponse{}, s.c.DeleteGroup(by(ctx, r), r.Group)
}

// CutGroup implements Groups.
func (s *GroupServer) CutGroup(ctx context.Context, r *volumepb.CutGroupRequest) (*volumepb.CutGroupResponse, error) {
	cut, err := s.c.CutGroup(ctx, s.cs, r.Group, time.Duration(min(r.HoldMs, 1<<32))*time.Millisecond)
	if err != nil {
		return nil, err
	}
	rec := audit.Record{Verb: "group cut", Object: groupObject(r.Group), Outcome: fmt.Sprintf("operation %s, writes were held for at most %v", cut.Op, cut.Hold)}
	if err := s.c.trail.Note(by(ctx, r), rec); err != nil {
		s.lg.Error("action not in the audit trail", zap.String("verb", rec.Verb), zap.String("group", r.Group), zap.Error(err))
	}
	names, err := s.names(ctx)
	if err != nil {
		return nil, err
	}
	resp := &volumepb.CutGroupResponse{Op: cut.Op.String(), HoldUs: uint64(cut.Hold.Microseconds())}
	for v, at := range cut.Positions {
		p := positionPB(v, at)
		p.Name, p.Node = names[v], string(cut.Nodes[v])
		resp.Positions = append(resp.Positions, p)
	}
	slices.SortFunc(resp.Positions, func(a, b *volumepb.CutPosition) int { return cmp.Compare(a.Name+a.VolumeId, b.Name+b.VolumeId) })
	return resp, nil
}

func positionPB(v replication.VolumeID, at replication.CutPosition) *volumepb.CutPosition {
	return &volumepb.CutPosition{VolumeId: v.String(), Epoch: uint64(at.Epoch), Term: uint64(at.Term), Seq: uint64(at.Seq), Writes: at.Writes}
}

func (s *GroupServer) resolve(ctx context.Context, refs []string) ([]replication.VolumeID, error) {
	var vs []replication.VolumeID
	for _, ref := range refs {
		v, err := s.c.Resolve(ctx, ref)
		if err != nil {
			return nil, err
		}
		vs = append(vs, v)
	}
	return vs, nil
}

// names are those of all volumes.
func (s *GroupServer) names(ctx context.Context) (map[replication.VolumeID]string, error) {
	es, err := s.c.List(ctx)
	if err != nil {
		return nil, err
	}
	names := map[replication.VolumeID]string{}
	for _, e := range es {
		names[e.ID] = e.Name
	}
	return names, nil
}

// show makes e a message.
func (s *GroupServer) show(ctx context.Context, e *GroupEntry) (*volumepb.Group, error) {
	names, err := s.names(ctx)
	if err != nil {
		return nil, err
	}
	g := &volumepb.Group{
		Name: e.Name, CreatedUnixMs: e.Created.UnixMilli(), Failover: volumepb.Failover_FAILOVER_AUTOMATIC, State: volumepb.GroupState_GROUP_STATE_LINKED,
	}
	if e.Failover == replication.FailoverManual {
		g.Failover = volumepb.Failover_FAILOVER_MANUAL
	}
	if e.State() == replication.Split {
		g.State = volumepb.GroupState_GROUP_STATE_SPLIT
	}
	domains := map[replication.DomainID]bool{}
	for _, v := range e.Volumes {
		m := &volumepb.GroupVolume{Id: v.String(), Name: names[v]}
		if cfg := e.Configs[v]; cfg != nil {
			m.Node = string(coordinator(cfg).Node)
			for _, mem := range cfg.Members {
				domains[mem.Domain] = true
			}
		}
		g.Volumes = append(g.Volumes, m)
	}
	slices.SortFunc(g.Volumes, func(a, b *volumepb.GroupVolume) int { return cmp.Compare(a.Name+a.Id, b.Name+b.Id) })
	for _, d := range slices.Sorted(maps.Keys(domains)) {
		im := e.ImageIn(d, e.Configs)
		side := &volumepb.GroupSide{Domain: string(d), InSync: im.InSync, Consistent: im.Consistent, Reason: im.Why, MayFailOver: e.MayFailOver(d, e.Configs) == nil}
		if sp, ok := e.Splits[d]; ok {
			side.Split, side.SplitUnixMs, side.SplitBy = true, unixMs(sp.Since), sp.By.String()
		}
		g.Sides = append(g.Sides, side)
	}
	return g, nil
}

// CutTarget is a volume attached on this node.
type CutTarget interface {
	HoldForCut(ctx context.Context, op replication.UUID, d time.Duration) error
	Cut(ctx context.Context, op replication.UUID) (at replication.CutPosition, held bool, err error)
	ReleaseCut(ctx context.Context, op replication.UUID) (held bool, err error)
}

// GroupCoordinatorsServer implements the gRPC service GroupCoordinators, for the other nodes.
type GroupCoordinatorsServer struct {
	volumepb.UnimplementedGroupCoordinatorsServer
	find func(replication.VolumeID) (CutTarget, error)
}

var _ volumepb.GroupCoordinatorsServer = (*GroupCoordinatorsServer)(nil)

// NewGroupCoordinatorsServer returns the service for the volumes that find finds.
func NewGroupCoordinatorsServer(find func(replication.VolumeID) (CutTarget, error)) *GroupCoordinatorsServer {
	return &GroupCoordinatorsServer{find: find}
}

func (s *GroupCoordinatorsServer) target(volume, op []byte) (CutTarget, replication.UUID, error) {
	v, err := parseIdentifier(volume)
	if err != nil {
		return nil, replication.UUID{}, err
	}
	o, err := parseIdentifier(op)
	if err != nil {
		return nil, replication.UUID{}, err
	}
	t, err := s.find(replication.VolumeID(v))
	return t, o, err
}

// HoldVolume implements GroupCoordinators.
func (s *GroupCoordinatorsServer) HoldVolume(ctx context.Context, r *volumepb.HoldVolumeRequest) (*volumepb.HoldVolumeResponse, error) {
	t, op, err := s.target(r.VolumeId, r.Op)
	if err != nil {
		return nil, err
	}
	d := time.Duration(min(r.HoldMs, uint64(MaxCutHold.Milliseconds()))) * time.Millisecond
	return &volumepb.HoldVolumeResponse{}, t.HoldForCut(ctx, op, d)
}

// CutVolume implements GroupCoordinators.
func (s *GroupCoordinatorsServer) CutVolume(ctx context.Context, r *volumepb.CutVolumeRequest) (*volumepb.CutVolumeResponse, error) {
	t, op, err := s.target(r.VolumeId, r.Op)
	if err != nil {
		return nil, err
	}
	at, held, err := t.Cut(ctx, op)
	return &volumepb.CutVolumeResponse{Held: held, Position: positionPB(replication.VolumeID{}, at)}, err
}

// ReleaseVolume implements GroupCoordinators.
func (s *GroupCoordinatorsServer) ReleaseVolume(ctx context.Context, r *volumepb.ReleaseVolumeRequest) (*volumepb.ReleaseVolumeResponse, error) {
	t, op, err := s.target(r.VolumeId, r.Op)
	if err != nil {
		return nil, err
	}
	held, err := t.ReleaseCut(ctx, op)
	return &volumepb.ReleaseVolumeResponse{Held: held}, err
}

// GroupClient speaks with the coordinators on one other node.
type GroupClient struct {
	volumepb.GroupCoordinatorsClient
}

// Hold asks for HoldForCut.
func (c GroupClient) Hold(ctx context.Context, v replication.VolumeID, op replication.UUID, d time.Duration) error {
	_, err := c.HoldVolume(ctx, &volumepb.HoldVolumeRequest{VolumeId: v[:], Op: op[:], HoldMs: uint64(d.Milliseconds())})
	return err
}

// At asks for Cut.
func (c GroupClient) At(ctx context.Context, v replication.VolumeID, op replication.UUID) (replication.CutPosition, bool, error) {
	r, err := c.CutVolume(ctx, &volumepb.CutVolumeRequest{VolumeId: v[:], Op: op[:]})
	if err != nil {
		return replication.CutPosition{}, false, err
	}
	p := r.GetPosition()
	return replication.CutPosition{Epoch: replication.Epoch(p.GetEpoch()), Term: replication.Term(p.GetTerm()), Seq: replication.Seq(p.GetSeq()), Writes: p.GetWrites()}, r.Held, nil
}

// Release asks for ReleaseCut.
func (c GroupClient) Release(ctx context.Context, v replication.VolumeID, op replication.UUID) (bool, error) {
	r, err := c.ReleaseVolume(ctx, &volumepb.ReleaseVolumeRequest{VolumeId: v[:], Op: op[:]})
	return r.GetHeld(), err
}
