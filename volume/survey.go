package volume

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"

	"github.com/tandem-storage/tandem/replication"
	"github.com/tandem-storage/tandem/volume/volumepb"
)

// ReplicasServer implements the gRPC service Replicas, for the other nodes.
type ReplicasServer struct {
	volumepb.UnimplementedReplicasServer
	report func() (*NodeReport, error)
	mark   func(r LocalReplica, mark []byte) error
}

var _ volumepb.ReplicasServer = (*ReplicasServer)(nil)

// NewReplicasServer returns the service that tells what report returns, and keeps marks of reverts beside replicas by mark.
func NewReplicasServer(report func() (*NodeReport, error), mark func(r LocalReplica, mark []byte) error) *ReplicasServer {
	return &ReplicasServer{report: report, mark: mark}
}

// MarkReplica implements Replicas.
func (s *ReplicasServer) MarkReplica(_ context.Context, r *volumepb.MarkReplicaRequest) (*volumepb.MarkReplicaResponse, error) {
	v, err := parseIdentifier(r.Volume)
	if err != nil {
		return nil, err
	}
	id, err := parseIdentifier(r.Replica)
	if err != nil {
		return nil, err
	}
	return &volumepb.MarkReplicaResponse{}, s.mark(LocalReplica{Volume: replication.VolumeID(v), Replica: replication.ReplicaID(id), Pool: r.Pool}, r.Revert)
}

// MarkReplicaOn asks another node for ReplicaMarker.MarkReplica.
func MarkReplicaOn(ctx context.Context, c volumepb.ReplicasClient, r LocalReplica, mark []byte) error {
	_, err := c.MarkReplica(ctx, &volumepb.MarkReplicaRequest{Volume: r.Volume[:], Replica: r.Replica[:], Pool: r.Pool, Revert: mark})
	return err
}

// ListReplicas implements Replicas.
func (s *ReplicasServer) ListReplicas(context.Context, *volumepb.ListReplicasRequest) (*volumepb.ListReplicasResponse, error) {
	r, err := s.report()
	if err != nil {
		return nil, err
	}
	resp := &volumepb.ListReplicasResponse{Node: string(r.Node), Incarnation: r.Incarnation[:]}
	for i := range r.Replicas {
		resp.Replicas = append(resp.Replicas, foundPB(&r.Replicas[i]))
	}
	for _, cfg := range r.Serving {
		b, err := json.Marshal(cfg)
		if err != nil {
			return nil, fmt.Errorf("%w: configuration of %s: %w", ErrBadRecord, cfg.Volume, err)
		}
		resp.Coordinators = append(resp.Coordinators, b)
	}
	return resp, nil
}

// ParseReport decodes what another node's ListReplicas answered. ErrBadRecord: it is not what a node sends.
func ParseReport(resp *volumepb.ListReplicasResponse) (*NodeReport, error) {
	r := &NodeReport{Node: replication.NodeID(resp.Node)}
	if len(resp.Incarnation) > 0 { // a node of an older version does not tell
		var err error
		if r.Incarnation, err = parseIdentifier(resp.Incarnation); err != nil {
			return nil, err
		}
	}
	for _, m := range resp.Replicas {
		f, err := parseFound(m)
		if err != nil {
			return nil, err
		}
		r.Replicas = append(r.Replicas, *f)
	}
	for _, b := range resp.Coordinators {
		cfg := new(replication.Config)
		if err := json.Unmarshal(b, cfg); err != nil {
			return nil, fmt.Errorf("%w: configuration of a coordinator: %w", ErrBadRecord, err)
		}
		r.Serving = append(r.Serving, cfg)
	}
	return r, nil
}

func foundPB(f *FoundReplica) *volumepb.FoundReplica {
	m := &volumepb.FoundReplica{
		Volume: f.Volume[:], Replica: f.Replica[:], Pool: f.Pool, SizeBytes: f.Size, Epoch: uint64(f.Epoch), Gen: f.Gen, Term: uint64(f.Term),
		State: string(f.State), Incarnation: f.Incarnation[:], Spec: f.Spec, Error: f.Err, Revert: f.Revert,
	}
	for _, r := range f.ISR {
		m.Isr = append(m.Isr, r[:])
	}
	for _, r := range f.Missing {
		m.Missing = append(m.Missing, r[:])
	}
	return m
}

func parseIdentifier(b []byte) (u replication.UUID, err error) {
	if copy(u[:], b) != len(u) || len(b) != len(u) {
		return u, fmt.Errorf("%w: an identifier of %d bytes in the report of a node", ErrBadRecord, len(b))
	}
	return u, nil
}

func parseFound(m *volumepb.FoundReplica) (*FoundReplica, error) {
	var bad error
	id := func(b []byte) replication.UUID {
		u, err := parseIdentifier(b)
		if err != nil {
			bad = err
		}
		return u
	}
	ids := func(bs [][]byte) (rs []replication.ReplicaID) {
		for _, b := range bs {
			rs = append(rs, replication.ReplicaID(id(b)))
		}
		return rs
	}
	f := &FoundReplica{
		LocalReplica: LocalReplica{Volume: replication.VolumeID(id(m.Volume)), Replica: replication.ReplicaID(id(m.Replica)), Pool: m.Pool},
		Size:         m.SizeBytes, Epoch: replication.Epoch(m.Epoch), Gen: m.Gen, Term: replication.Term(m.Term),
		State: replication.MemberState(m.State), ISR: ids(m.Isr), Missing: ids(m.Missing), Incarnation: id(m.Incarnation),
		Spec: m.Spec, Err: m.Error, Revert: m.Revert,
	}
	return f, bad
}

// ImportKvdb implements Volumes.
func (s *Server) ImportKvdb(ctx context.Context, r *volumepb.ImportKvdbRequest) (*volumepb.ImportKvdbResponse, error) {
	res, err := s.o.Import.Run(by(ctx, r), ImportRequest{Volumes: r.Volumes, All: r.All, DryRun: r.DryRun, Accept: r.AcceptDataLossVolumes})
	if err != nil {
		return nil, err
	}
	resp := &volumepb.ImportKvdbResponse{Written: res.Written}
	for _, n := range slices.Sorted(maps.Keys(res.Silent)) {
		resp.SilentNodes = append(resp.SilentNodes, &volumepb.SilentNode{Node: string(n), Error: res.Silent[n].Error()})
	}
	for i := range res.Volumes {
		resp.Volumes = append(resp.Volumes, importedPB(&res.Volumes[i]))
	}
	return resp, nil
}

func importedPB(p *Imported) *volumepb.ImportedVolume {
	m := &volumepb.ImportedVolume{
		Id: p.ID.String(), Name: p.Name, Text: p.text, KvdbEpoch: uint64(p.Kvdb), ReplicaEpoch: uint64(p.known), DataLoss: p.loss,
	}
	switch p.action {
	case importNone:
		m.Action = volumepb.ImportAction_IMPORT_ACTION_NONE
	case importRefused:
		m.Action = volumepb.ImportAction_IMPORT_ACTION_REFUSED
	case importWrite:
		m.Action, m.NewEpoch = volumepb.ImportAction_IMPORT_ACTION_IMPORT, uint64(p.config.Epoch)
		for _, r := range p.config.ISR {
			m.InSyncNodes = append(m.InSyncNodes, string(p.config.Members[r].Node))
		}
		slices.Sort(m.InSyncNodes)
	}
	return m
}

// ForceReplica implements Volumes.
func (s *Server) ForceReplica(ctx context.Context, r *volumepb.ForceReplicaRequest) (*volumepb.ForceReplicaResponse, error) {
	e, err := s.entry(ctx, r.Volume)
	if err != nil {
		return nil, err
	}
	f, err := s.o.Import.Force(by(ctx, r), e.ID, ForceRequest{Replica: r.Replica, ExpectedEpoch: (*replication.Epoch)(r.ExpectedEpoch)})
	if err != nil {
		return nil, err
	}
	v, err := s.again(ctx, e)
	if err != nil {
		return nil, err
	}
	resp := &volumepb.ForceReplicaResponse{Volume: v, DataEpoch: uint64(f.As)}
	for _, n := range f.Lost {
		resp.LostNodes = append(resp.LostNodes, string(n))
	}
	return resp, nil
}
