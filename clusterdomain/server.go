package clusterdomain

import (
	"context"
	"fmt"
	"time"

	"go.uber.org/zap"

	"github.com/tandem-storage/tandem/audit"
	"github.com/tandem-storage/tandem/clusterdomain/arbiter"
	"github.com/tandem-storage/tandem/clusterdomain/clusterdomainpb"
)

// KvdbStatus is what the status shows of the kvdb.
type KvdbStatus struct {
	Kind      string // "raft", "etcd", "mem"
	Err       error  // why it is not healthy, nil if it is
	Endpoints []string
	Leader    string // member name, "" if there is none
	Members   []KvdbMember
}

// KvdbMember is one member of the kvdb.
type KvdbMember struct {
	ID            string // "" if the kvdb is not embedded
	Name, Address string
	Role          string // leader, follower, learner, unknown
	Witness       bool
	Healthy       bool
}

// ServerOptions are what the services show that the manager does not know itself.
type ServerOptions struct {
	Version string                               // of the daemon
	RTTs    func() []RTT                         // from this node to the others
	Kvdb    func(ctx context.Context) KvdbStatus // must not wait for a store out of reach
	// RemoveKvdbMember takes a member, given by id or node, out of the embedded kvdb: ErrKvdbMember, ErrKvdbMajority. Nil: this
	// node is no member of one.
	RemoveKvdbMember func(ctx context.Context, ref string) error
}

// Server implements the gRPC services ClusterDomains and Cluster. It returns errors
// of this package and of the store; an interceptor gives them their codes.
type Server struct {
	clusterdomainpb.UnimplementedClusterDomainsServer
	clusterdomainpb.UnimplementedClusterServer
	m *Manager
	o ServerOptions
}

var (
	_ clusterdomainpb.ClusterDomainsServer = (*Server)(nil)
	_ clusterdomainpb.ClusterServer        = (*Server)(nil)
)

// NewServer returns the services over m.
func NewServer(m *Manager, o ServerOptions) *Server { return &Server{m: m, o: o} }

// statusWait bounds how long a status waits for the kvdb: it is wanted most when that is out of reach.
const statusWait = 2 * time.Second

// ListDomains implements ClusterDomains. Without the kvdb it shows what was last known.
func (s *Server) ListDomains(ctx context.Context, _ *clusterdomainpb.ListDomainsRequest) (*clusterdomainpb.ListDomainsResponse, error) {
	v, vols, _ := s.read(ctx)
	return &clusterdomainpb.ListDomainsResponse{LocalDomain: s.m.o.Node.Domain, Domains: s.domainsPB(v, vols)}, nil
}

// ActivateDomain implements ClusterDomains.
func (s *Server) ActivateDomain(ctx context.Context, r *clusterdomainpb.ActivateDomainRequest) (*clusterdomainpb.ActivateDomainResponse, error) {
	d, err := s.m.Activate(ctx, Change{Domain: r.Domain, ExpectedEpoch: r.ExpectedEpoch, Actor: audit.Actor(ctx, r.Actor), Reason: r.Reason})
	if err != nil {
		return nil, err
	}
	return &clusterdomainpb.ActivateDomainResponse{Domain: s.domain(ctx, d)}, nil
}

// DeactivateDomain implements ClusterDomains.
func (s *Server) DeactivateDomain(ctx context.Context, r *clusterdomainpb.DeactivateDomainRequest) (*clusterdomainpb.DeactivateDomainResponse, error) {
	d, err := s.m.Deactivate(ctx, Change{
		Domain: r.Domain, ExpectedEpoch: r.ExpectedEpoch, Actor: audit.Actor(ctx, r.Actor), Reason: r.Reason,
		PeerLost: r.PeerLost, AcceptDataLoss: r.AcceptDataLossVolumes,
	})
	if err != nil {
		return nil, err
	}
	return &clusterdomainpb.DeactivateDomainResponse{Domain: s.domain(ctx, d)}, nil
}

// ListFailovers implements ClusterDomains.
func (s *Server) ListFailovers(ctx context.Context, _ *clusterdomainpb.ListFailoversRequest) (*clusterdomainpb.ListFailoversResponse, error) {
	rs, err := s.m.Failovers(ctx)
	if err != nil {
		return nil, err
	}
	var r clusterdomainpb.ListFailoversResponse
	for i := range rs {
		rs[i].Volumes = nil
		r.Failovers = append(r.Failovers, failoverPB(&rs[i]))
	}
	return &r, nil
}

// GetFailover implements ClusterDomains.
func (s *Server) GetFailover(ctx context.Context, r *clusterdomainpb.GetFailoverRequest) (*clusterdomainpb.GetFailoverResponse, error) {
	f, err := s.m.FailoverReport(ctx, r.Id)
	if err != nil {
		return nil, err
	}
	report := failoverPB(&f)
	report.Sum = sumPB(report.Volumes)
	return &clusterdomainpb.GetFailoverResponse{Failover: report}, nil
}

// GetStatus implements Cluster. It answers also without the kvdb.
func (s *Server) GetStatus(ctx context.Context, _ *clusterdomainpb.GetStatusRequest) (*clusterdomainpb.GetStatusResponse, error) {
	v, vols, err := s.read(ctx)
	r := &clusterdomainpb.GetStatusResponse{
		ClusterName: s.m.o.Cluster, ThisNode: s.m.o.Node.Name, Version: s.o.Version, Domains: s.domainsPB(v, vols),
	}
	for _, n := range v.Nodes {
		r.Nodes = append(r.Nodes, nodePB(n, v.Local))
	}
	o := Observed{View: v, Volumes: vols, Kvdb: err, Outlook: s.m.Outlook(vols), Failover: s.m.o.Failover.Enabled}
	if s.o.Kvdb != nil {
		st := s.o.Kvdb(ctx)
		if st.Err == nil {
			st.Err = err
		}
		o.Kvdb, o.Members, r.Kvdb = st.Err, st.Members, kvdbPB(st)
	}
	if s.o.RTTs != nil {
		o.RTTs = s.o.RTTs()
	}
	for _, t := range o.RTTs {
		r.Rtts = append(r.Rtts, rttPB(t))
	}
	for _, a := range Alerts(o) {
		r.Alerts = append(r.Alerts, &clusterdomainpb.Alert{
			Code: string(a.Code), Severity: clusterdomainpb.Severity(a.Severity), Resource: a.Resource, Text: a.Text,
		})
	}
	ctx, cancel := context.WithTimeout(ctx, statusWait)
	defer cancel()
	if r.ClusterId, err = readIncarnation(ctx, s.m.store, s.m.o.Cluster); err != nil {
		r.ClusterId = "" // shown as unknown; the alert about the kvdb says why
	}
	return r, nil
}

// PlanRestart implements Cluster.
func (s *Server) PlanRestart(ctx context.Context, r *clusterdomainpb.PlanRestartRequest) (*clusterdomainpb.PlanRestartResponse, error) {
	var members []string
	if s.o.Kvdb != nil {
		st := s.o.Kvdb(ctx)
		if st.Err != nil {
			return nil, fmt.Errorf("plan the restart of node %s: %w", r.Node, st.Err)
		}
		for _, m := range st.Members {
			members = append(members, m.Name)
		}
	}
	waits, err := s.m.PlanRestart(ctx, r.Node, r.Cancel, members)
	if err != nil {
		return nil, fmt.Errorf("plan the restart of node %s: %w", r.Node, err)
	}
	return &clusterdomainpb.PlanRestartResponse{Granted: !r.Cancel && len(waits) == 0, Waits: waits}, nil
}

// RemoveKvdbMember implements Cluster.
func (s *Server) RemoveKvdbMember(ctx context.Context, r *clusterdomainpb.RemoveKvdbMemberRequest) (*clusterdomainpb.RemoveKvdbMemberResponse, error) {
	switch {
	case s.o.RemoveKvdbMember == nil:
		return nil, fmt.Errorf("%w: node %s is no member of an embedded kvdb", ErrNoKvdbMember, s.m.o.Node.Name)
	case r.Member == "":
		return nil, fmt.Errorf("%w: no member is named", ErrInvalid)
	}
	err := s.o.RemoveKvdbMember(ctx, r.Member)
	if err == nil {
		rec := audit.Record{Actor: audit.Actor(ctx, r.Actor), Verb: "kvdb remove", Object: "member/" + r.Member, Reason: r.Reason, Outcome: "removed"}
		if err := s.m.trail.Note(ctx, rec); err != nil {
			s.m.lg.Error("removal of a kvdb member not in the audit trail", zap.String("member", r.Member), zap.Error(err))
		}
	}
	if err != nil {
		return nil, fmt.Errorf("remove member %s of the kvdb: %w", r.Member, err)
	}
	return &clusterdomainpb.RemoveKvdbMemberResponse{Kvdb: kvdbPB(s.o.Kvdb(ctx))}, nil
}

// read returns the view, read anew if the kvdb answers in time, the volumes (nil if it does not), and why not.
func (s *Server) read(ctx context.Context) (*View, []arbiter.Volume, error) {
	ctx, cancel := context.WithTimeout(ctx, statusWait)
	defer cancel()
	if err := s.m.Refresh(ctx); err != nil {
		return s.m.View(), nil, err
	}
	vols, err := s.m.Facts(ctx)
	return s.m.View(), vols, err
}

// domainsPB are the domains of a view; of those that may be lost it tells what the arbiter makes of them.
func (s *Server) domainsPB(v *View, vols []arbiter.Volume) []*clusterdomainpb.Domain {
	ds, outlook := domainsPB(v, vols), s.m.Outlook(vols)
	for _, d := range ds {
		if o, ok := outlook[d.Name]; ok && o.Lost() {
			d.Failover = &clusterdomainpb.FailoverOutlook{Idle: string(o.Idle), Text: o.Text, LeftMs: uint64(time.Duration(o.Left).Milliseconds())}
		}
	}
	return ds
}

// domain is d as it was written, with the counts of the present view.
func (s *Server) domain(ctx context.Context, d Domain) *clusterdomainpb.Domain {
	v, vols, _ := s.read(ctx)
	return domainPB(v, vols, d)
}
