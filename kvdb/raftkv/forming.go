package raftkv

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/hashicorp/raft"
	"go.uber.org/zap"

	"github.com/tandem-storage/tandem/kvdb/kvdbpb"
)

// formInterval is the pause between two attempts to become a member.
const formInterval = 500 * time.Millisecond

func identityPath(o Options) string { return filepath.Join(o.Dir, "member.json") }

// findIdentity returns who this node is, nil if it is nobody yet, or ErrMemberLost.
func findIdentity(o Options) (*identity, error) {
	id, err := readIdentity(identityPath(o))
	switch {
	case err == nil:
		if id.Node != o.Node {
			return nil, fmt.Errorf("raftkv: %s belongs to node %q, this is node %q", o.Dir, id.Node, o.Node)
		}
		return &id, nil
	case !errors.Is(err, os.ErrNotExist):
		return nil, err
	}
	if err := mustBeEmpty(o.Dir); err != nil {
		return nil, err
	}
	if o.Marker == "" {
		return nil, nil
	}
	was, err := readIdentity(o.Marker)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return nil, &lostError{was: was, marker: o.Marker, dir: o.Dir}
}

// lostError is ErrMemberLost of a node with a marker and an empty directory.
type lostError struct {
	was         identity
	marker, dir string
}

func (e *lostError) Error() string {
	return fmt.Sprintf("%v: %s says that it was member %s of cluster %s, but %s is empty; is a mount missing? else remove that member "+
		"from the cluster and start this node again: it joins anew", ErrMemberLost, e.marker, e.was.MemberID, e.was.ClusterID, e.dir)
}

func (e *lostError) Unwrap() error { return ErrMemberLost }

// removed reports whether a peer of the same cluster says that was is no member any more. Should it be behind the truth, the
// leader still refuses a second member of the node.
func (m *LocalMember) removed(was identity) bool {
	for _, peer := range m.o.Peers {
		st, err := memberStatus(m.ctx, m.peers, peer)
		if err != nil || st.ClusterID != was.ClusterID || len(st.Members) == 0 {
			continue
		}
		if !slices.ContainsFunc(st.Members, func(p Member) bool { return p.ID == was.MemberID }) {
			return true
		}
	}
	return false
}

// mustBeEmpty fails if dir has anything of a member in it, though no identity.
// What a start leaves that died before the identity was complete does not count.
func mustBeEmpty(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	for _, e := range entries {
		if e.Name() != "lost+found" && e.Name() != "member.json.tmp" {
			return fmt.Errorf("%w: %s has no member.json but has %s", ErrMemberLost, dir, e.Name())
		}
	}
	return nil
}

// remember makes the identity durable, in the marker first: a node that
// appears in a log anywhere has one.
func remember(o Options, id identity) error {
	if o.Marker != "" {
		if err := writeIdentity(o.Marker, id); err != nil {
			return fmt.Errorf("raftkv: write marker: %w", err)
		}
	}
	if err := writeIdentity(identityPath(o), id); err != nil {
		return fmt.Errorf("raftkv: write identity: %w", err)
	}
	return nil
}

// form waits for the peers' word and then begins a cluster or joins theirs.
func (m *LocalMember) form() {
	find, state := m.findCluster, stateJoining
	if m.o.Bootstrap && !m.rejoins {
		find, state = m.awaitNoCluster, stateForming
	}
	clusterID, err := find()
	if err == nil {
		err = m.start(newIdentity(m.o.Node, clusterID, state))
	}
	if err == nil {
		return
	}
	if m.ctx.Err() == nil {
		m.lg.Error("cannot become a member", zap.Error(err))
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.mu.err = err
	close(m.formed)
}

// awaitNoCluster returns the id for a new cluster once every peer has said that it has none.
func (m *LocalMember) awaitNoCluster() (string, error) {
	for {
		waiting := 0
		for _, peer := range m.o.Peers {
			st, err := m.peerStatus(peer)
			switch {
			case err != nil:
				waiting++
				m.lg.Info("waiting for peer before bootstrap", zap.String("peer-address", peer), zap.Error(err))
			case st.GetClusterId() != "":
				return "", fmt.Errorf("%w: %s, at peer %s; to join it start without bootstrap, after removing this node's former member if it has one",
					ErrClusterExists, st.GetClusterId(), peer)
			}
		}
		if waiting == 0 {
			return randomHex(16), nil
		}
		if err := m.pause(); err != nil {
			return "", err
		}
	}
}

// findCluster returns the peers' cluster, once one of them has one.
func (m *LocalMember) findCluster() (string, error) {
	for {
		for _, peer := range m.o.Peers {
			st, err := m.peerStatus(peer)
			if err == nil && st.GetClusterId() != "" {
				return st.GetClusterId(), nil
			}
		}
		if err := m.pause(); err != nil {
			return "", err
		}
	}
}

func (m *LocalMember) pause() error {
	select {
	case <-m.ctx.Done():
		return m.ctx.Err()
	case <-time.After(formInterval):
		return nil
	}
}

func (m *LocalMember) peerStatus(peer string) (*kvdbpb.StatusReply, error) {
	ctx, cancel := context.WithTimeout(m.ctx, 2*time.Second)
	defer cancel()
	conn, err := m.peers.ready(ctx, peer)
	if err != nil {
		return nil, err
	}
	return kvdbpb.NewMembersClient(conn).Status(ctx, &kvdbpb.StatusRequest{})
}

// settle sees to it that the configuration has this member with its present
// addresses: it asks to be added until it is, once, and then only to be updated.
func (m *LocalMember) settle(node *raftNode, id identity) {
	for m.ctx.Err() == nil {
		known, found := findMember(node, node.self.ID)
		if found && id.State != stateMember {
			id.State = stateMember
			if err := remember(m.o, id); err != nil {
				m.lg.Error("cannot record membership", zap.Error(err))
			}
		}
		if found && known == node.self {
			return
		}
		ctx, cancel := context.WithTimeout(m.ctx, m.o.RequestTimeout)
		err := m.requestMembership(ctx, node.self, found || id.State == stateMember)
		cancel()
		switch {
		case errors.Is(err, ErrMemberExists), errors.Is(err, ErrMemberNotFound):
			m.lg.Error("this member has no place in the cluster", zap.String("member", node.self.ID), zap.Error(err))
			return
		case err != nil:
			m.lg.Info("waiting to become a member", zap.Error(err))
		}
		if m.pause() != nil {
			return
		}
	}
}

// requestMembership asks the leader, or whoever can be reached at Peers, to add or update self.
func (m *LocalMember) requestMembership(ctx context.Context, self Member, updateOnly bool) error {
	req := &kvdbpb.AddMemberRequest{Member: self.proto(), UpdateOnly: updateOnly}
	if _, leader := m.node().LeaderWithID(); leader != "" {
		reply, err := membersServer{m: m}.AddMember(ctx, req)
		if err == nil {
			err = fromFailure(reply.GetFailure())
		}
		return err
	}
	last := errors.New("raftkv: no leader, and no peers to ask")
	for _, peer := range m.o.Peers {
		conn, err := m.peers.ready(ctx, peer)
		if err != nil {
			last = err
			continue
		}
		reply, err := kvdbpb.NewMembersClient(conn).AddMember(ctx, req)
		if err == nil {
			err = fromFailure(reply.GetFailure())
		}
		if err == nil || errors.Is(err, ErrMemberExists) || errors.Is(err, ErrMemberNotFound) {
			return err
		}
		last = err
	}
	return last
}

func findMember(node *raftNode, id string) (Member, bool) {
	for _, s := range configuration(node) {
		if string(s.ID) == id {
			known, err := parseServerAddress(s.Address)
			return known, err == nil
		}
	}
	return Member{}, false
}

// configuration is the latest one; it may not be committed yet.
func configuration(node *raftNode) []raft.Server {
	f := node.GetConfiguration()
	if f.Error() != nil {
		return nil
	}
	return f.Configuration().Servers
}
