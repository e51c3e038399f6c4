package raftkv

import (
	"fmt"
	"strings"

	"github.com/hashicorp/raft"

	"github.com/tandem-storage/tandem/kvdb/kvdbpb"
)

// Member is one voter as its cluster knows it.
type Member struct {
	ID            string // "<node>-<16 hex digits>", new with every data directory
	Node          string
	PeerAddress   string // of the members' own traffic
	ClientAddress string // of its gRPC server
	Witness       bool
}

// The configuration of raft has one string for a member's address. Ours holds
// all that others must know to reach it, so that it is replicated, and
// stored with snapshots, by raft itself: "<id>,<peer>,<client>,<voter|witness>".
func (m Member) serverAddress() raft.ServerAddress {
	kind := "voter"
	if m.Witness {
		kind = "witness"
	}
	return raft.ServerAddress(strings.Join([]string{m.ID, m.PeerAddress, m.ClientAddress, kind}, ","))
}

func (m Member) server() raft.Server {
	return raft.Server{Suffrage: raft.Voter, ID: raft.ServerID(m.ID), Address: m.serverAddress()}
}

func parseServerAddress(a raft.ServerAddress) (Member, error) {
	parts := strings.Split(string(a), ",")
	if len(parts) != 4 {
		return Member{}, fmt.Errorf("raftkv: member address %q has %d parts, want 4", a, len(parts))
	}
	m := Member{ID: parts[0], PeerAddress: parts[1], ClientAddress: parts[2], Witness: parts[3] == "witness"}
	if i := strings.LastIndexByte(m.ID, '-'); i > 0 {
		m.Node = m.ID[:i]
	}
	return m, nil
}

func (m Member) proto() *kvdbpb.Member {
	return &kvdbpb.Member{
		Id: m.ID, Node: m.Node, PeerAddress: m.PeerAddress, ClientAddress: m.ClientAddress, Witness: m.Witness,
	}
}

func memberFromProto(p *kvdbpb.Member) Member {
	return Member{
		ID: p.GetId(), Node: p.GetNode(), PeerAddress: p.GetPeerAddress(), ClientAddress: p.GetClientAddress(), Witness: p.GetWitness(),
	}
}
