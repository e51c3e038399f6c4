package raftkv

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/raft"
	"go.uber.org/zap"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tandem-storage/tandem/kvdb"
	"github.com/tandem-storage/tandem/kvdb/kvdbpb"
)

// Status is a member's view; everything in it may be behind the truth.
type Status struct {
	ClusterID    string // empty: not yet a member of any
	MemberID     string
	LeaderID     string // empty: none known
	Members      []Member
	Term         uint64
	CommitIndex  uint64
	AppliedIndex uint64
	Revision     kvdb.Revision
	Err          error // why this node cannot become a member
}

// IsLeader tells whether the member takes itself for the leader.
func (s Status) IsLeader() bool { return s.MemberID != "" && s.LeaderID == s.MemberID }

// Status returns this member's view, from memory.
func (m *LocalMember) Status() Status {
	m.mu.Lock()
	id, node, err := m.mu.id, m.mu.raft, m.mu.err
	m.mu.Unlock()
	s := Status{ClusterID: id.ClusterID, MemberID: id.MemberID, Err: err, Revision: m.fsm.state.Revision()}
	if node == nil {
		return s
	}
	_, leader := node.LeaderWithID()
	s.LeaderID = string(leader)
	s.Term, s.CommitIndex, s.AppliedIndex = node.CurrentTerm(), node.CommitIndex(), node.AppliedIndex()
	for _, server := range configuration(node) {
		if member, err := parseServerAddress(server.Address); err == nil {
			s.Members = append(s.Members, member)
		}
	}
	return s
}

// memberStatus asks the member at address for its view, within dialTimeout.
func memberStatus(ctx context.Context, p *pool, address string) (Status, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	conn, err := p.ready(ctx, address)
	if err != nil {
		return Status{}, err
	}
	r, err := kvdbpb.NewMembersClient(conn).Status(ctx, &kvdbpb.StatusRequest{})
	if err != nil {
		return Status{}, err
	}
	st := Status{
		ClusterID: r.GetClusterId(), MemberID: r.GetMemberId(), LeaderID: r.GetLeaderId(), Term: r.GetTerm(),
		CommitIndex: r.GetCommitIndex(), AppliedIndex: r.GetAppliedIndex(), Revision: kvdb.Revision(r.GetRevision()), Err: fromFailure(r.GetFailure()),
	}
	for _, m := range r.GetMembers() {
		st.Members = append(st.Members, memberFromProto(m))
	}
	return st, nil
}

// RemoveMember takes a member, given by its id or its node, out for good. Its node can become a member again only with a new, empty directory.
// Refused if of the members that remain no majority answers: nothing could be changed afterwards, not even that.
// Errors: ErrMemberNotFound, ErrMajority, kvdb.ErrInvalid for the last member, kvdb.ErrNoLeader, kvdb.ErrUnavailable.
func (m *LocalMember) RemoveMember(ctx context.Context, ref string) error {
	st := m.Status()
	i := slices.IndexFunc(st.Members, func(p Member) bool { return p.ID == ref || p.Node == ref })
	if i < 0 {
		return fmt.Errorf("%w: %s", ErrMemberNotFound, ref)
	}
	rest := slices.Delete(slices.Clone(st.Members), i, i+1)
	var silent []string
	for _, p := range rest {
		if p.ID == st.MemberID {
			continue
		}
		if got, err := memberStatus(ctx, m.peers, p.ClientAddress); err != nil || got.MemberID != p.ID {
			silent = append(silent, p.Node)
		}
	}
	if len(rest) > 0 && len(rest)-len(silent) <= len(rest)/2 {
		return fmt.Errorf("%w: of the %d that remain %s do not answer", ErrMajority, len(rest), strings.Join(silent, ", "))
	}
	ctx, cancel := m.bound(ctx)
	defer cancel()
	for {
		reply, err := membersServer{m: m}.RemoveMember(ctx, &kvdbpb.RemoveMemberRequest{Id: st.Members[i].ID})
		if err == nil {
			err = fromFailure(reply.GetFailure())
		}
		if !errors.Is(err, kvdb.ErrNoLeader) { // which had no effect: the member led, maybe
			return err
		}
		select {
		case <-time.After(retryMost):
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", err, ctx.Err())
		}
	}
}

// guardedMembers is the Members service as others reach it: it lets in who may change the members.
type guardedMembers struct{ membersServer }

// AddMember lets a node add itself, if it is meant to be a member, and members pass that on.
func (s guardedMembers) AddMember(ctx context.Context, r *kvdbpb.AddMemberRequest) (*kvdbpb.AddMemberReply, error) {
	o := s.m.o
	node := r.GetMember().GetNode()
	switch caller, err := s.caller(ctx); {
	case err != nil:
		return nil, err
	case o.Candidates != nil && !slices.Contains(o.Candidates, node):
		return nil, status.Errorf(codes.PermissionDenied, "raftkv: node %s is not meant to be a member", node)
	case caller != node && !s.isMember(caller):
		return nil, status.Errorf(codes.PermissionDenied, "raftkv: node %s is no member and asks for node %s", caller, node)
	}
	return s.membersServer.AddMember(ctx, r)
}

// RemoveMember lets members in only: the operator asks one of them.
func (s guardedMembers) RemoveMember(ctx context.Context, r *kvdbpb.RemoveMemberRequest) (*kvdbpb.RemoveMemberReply, error) {
	switch caller, err := s.caller(ctx); {
	case err != nil:
		return nil, err
	case !s.isMember(caller):
		return nil, status.Errorf(codes.PermissionDenied, "raftkv: node %s is no member and may not change them", caller)
	}
	return s.membersServer.RemoveMember(ctx, r)
}

// caller is the node that asks; "" if Options.Caller says nothing of that.
func (s guardedMembers) caller(ctx context.Context) (string, error) {
	if s.m.o.Caller == nil {
		return "", nil
	}
	return s.m.o.Caller(ctx)
}

func (s guardedMembers) isMember(node string) bool {
	return s.m.o.Caller == nil || slices.ContainsFunc(s.m.Status().Members, func(p Member) bool { return p.Node == node })
}

// TransferLeadership makes another member lead, before this one is stopped on purpose.
func (m *LocalMember) TransferLeadership() error {
	node := m.node()
	if node == nil {
		return notServed(errStarting)
	}
	if err := node.LeadershipTransfer().Error(); err != nil {
		return fromRaft(err)
	}
	return nil
}

// membersServer is the Members service.
type membersServer struct {
	kvdbpb.UnimplementedMembersServer
	m *LocalMember
}

func (s membersServer) Status(context.Context, *kvdbpb.StatusRequest) (*kvdbpb.StatusReply, error) {
	st := s.m.Status()
	reply := &kvdbpb.StatusReply{
		ClusterId: st.ClusterID, MemberId: st.MemberID, LeaderId: st.LeaderID, Term: st.Term,
		CommitIndex: st.CommitIndex, AppliedIndex: st.AppliedIndex, Revision: int64(st.Revision), Failure: toFailure(st.Err),
	}
	for _, member := range st.Members {
		reply.Members = append(reply.Members, member.proto())
	}
	return reply, nil
}

func (s membersServer) AddMember(ctx context.Context, r *kvdbpb.AddMemberRequest) (*kvdbpb.AddMemberReply, error) {
	reply := &kvdbpb.AddMemberReply{ClusterId: s.m.clusterID()}
	node, leader, err := s.route(ctx, r.GetOrigin())
	switch {
	case err != nil:
	case leader != nil:
		return leader.AddMember(ctx, &kvdbpb.AddMemberRequest{Origin: s.forwarded(), Member: r.GetMember(), UpdateOnly: r.GetUpdateOnly()})
	default:
		err = s.add(node, memberFromProto(r.GetMember()), r.GetUpdateOnly())
	}
	reply.Failure = toFailure(err)
	return reply, nil
}

func (s membersServer) RemoveMember(ctx context.Context, r *kvdbpb.RemoveMemberRequest) (*kvdbpb.RemoveMemberReply, error) {
	node, leader, err := s.route(ctx, r.GetOrigin())
	switch {
	case err != nil:
	case leader != nil:
		return leader.RemoveMember(ctx, &kvdbpb.RemoveMemberRequest{Origin: s.forwarded(), Id: r.GetId()})
	default:
		err = s.remove(node, r.GetId())
	}
	return &kvdbpb.RemoveMemberReply{Failure: toFailure(err)}, nil
}

func (s membersServer) forwarded() *kvdbpb.Origin {
	return &kvdbpb.Origin{Forwarded: true, ClusterId: s.m.clusterID()}
}

// route returns the raft that leads here, or else the service of the leader.
func (s membersServer) route(ctx context.Context, o *kvdbpb.Origin) (*raftNode, kvdbpb.MembersClient, error) {
	b, err := kvServer{m: s.m}.route(ctx, o)
	if err != nil {
		return nil, nil, err
	}
	if r, elsewhere := b.(*remote); elsewhere {
		conn, err := s.m.peers.ready(ctx, r.address)
		if err != nil {
			return nil, nil, notServed(err)
		}
		return nil, kvdbpb.NewMembersClient(conn), nil
	}
	return s.m.node(), nil, nil
}

// membershipTimeout bounds how long a change of the members waits to be begun.
const membershipTimeout = 5 * time.Second

// add makes the member a voter or brings its addresses up to date.
func (s membersServer) add(node *raftNode, member Member, updateOnly bool) error {
	if err := checkMember(member); err != nil {
		return err
	}
	f := node.GetConfiguration()
	if err := f.Error(); err != nil {
		return fromRaft(err)
	}
	known := false
	for _, server := range f.Configuration().Servers {
		other, err := parseServerAddress(server.Address)
		if err != nil {
			return err
		}
		switch {
		case other == member:
			return nil
		case other.ID == member.ID:
			known = true
		case other.Node == member.Node:
			return fmt.Errorf("%w: %s; if its data are lost, remove it first", ErrMemberExists, other.ID)
		}
	}
	if !known && updateOnly {
		return fmt.Errorf("%w: %s; it was removed", ErrMemberNotFound, member.ID)
	}
	// The index makes it one compare-and-swap with what was just read.
	added := node.AddVoter(raft.ServerID(member.ID), member.serverAddress(), f.Index(), membershipTimeout)
	if err := added.Error(); err != nil {
		return fromRaft(err)
	}
	s.m.lg.Info("member added", zap.String("member", member.ID), zap.String("peer-address", member.PeerAddress),
		zap.String("client-address", member.ClientAddress), zap.Bool("witness", member.Witness))
	return nil
}

func checkMember(m Member) error {
	parsed, err := parseServerAddress(m.serverAddress())
	if err != nil || parsed != m || !nodeName.MatchString(m.Node) || m.PeerAddress == "" || m.ClientAddress == "" || len(m.ID) > 128 {
		return fmt.Errorf("%w: member %q with peer address %q and client address %q", kvdb.ErrInvalid, m.ID, m.PeerAddress, m.ClientAddress)
	}
	return nil
}

func (s membersServer) remove(node *raftNode, id string) error {
	f := node.GetConfiguration()
	if err := f.Error(); err != nil {
		return fromRaft(err)
	}
	servers := f.Configuration().Servers
	if _, found := findMember(node, id); !found {
		return fmt.Errorf("%w: %s", ErrMemberNotFound, id)
	}
	if len(servers) == 1 {
		return fmt.Errorf("%w: %s is the last member", kvdb.ErrInvalid, id)
	}
	err := node.RemoveServer(raft.ServerID(id), f.Index(), membershipTimeout).Error()
	if err != nil && !errors.Is(err, raft.ErrRaftShutdown) { // it removed itself
		return fromRaft(err)
	}
	s.m.lg.Info("member removed", zap.String("member", id))
	return nil
}
