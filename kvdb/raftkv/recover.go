package raftkv

import (
	"errors"
	"fmt"

	"github.com/hashicorp/raft"
	"go.uber.org/zap"

	"github.com/tandem-storage/tandem/kvdb"
	"github.com/tandem-storage/tandem/kvdb/internal/kvstate"
)

// ForceNewCluster makes a new cluster of one from what the stopped member in
// o.Dir has, for when the majority is lost for good. It is the operator's word
// that no other member of the old cluster serves any more, or that nobody
// listens to it: changes that the lost majority acknowledged and this
// member has not seen are gone, and entries of its log that were never acknowledged count.
//
// The new cluster has a new id, so that the other members, should they come
// back, can not reach this one. Each of them joins anew with an empty directory.
// An interrupted call is to be repeated.
func ForceNewCluster(o Options) (clusterID string, err error) {
	o = o.withDefaults()
	if err := o.check(); err != nil {
		return "", err
	}
	found, err := findIdentity(o)
	if err != nil {
		return "", err
	}
	if found == nil {
		return "", fmt.Errorf("%w: raftkv: %s has no member", kvdb.ErrInvalid, o.Dir)
	}
	d, err := openDisk(o)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, d.close()) }()

	// The id first: from here on this member is out of the others' reach.
	id := *found
	id.ClusterID = randomHex(16)
	if err := remember(o, id); err != nil {
		return "", err
	}
	self := Member{
		ID: id.MemberID, Node: id.Node, PeerAddress: o.PeerAdvertise, ClientAddress: o.ClientAdvertise, Witness: o.Witness,
	}
	_, transport := raft.NewInmemTransport(self.serverAddress())
	scratch := &fsm{state: kvstate.New(o.KeepEvents)}
	alone := raft.Configuration{Servers: []raft.Server{self.server()}}
	if err := raft.RecoverCluster(raftConfig(o, self, nil), scratch, d.log, d.stable, d.snapshots, transport, alone); err != nil {
		return "", fmt.Errorf("raftkv: make a new cluster from %s: %w", o.Dir, err)
	}
	o.Logger.Warn("new cluster by force", zap.String("member", id.MemberID), zap.String("old-cluster-id", found.ClusterID),
		zap.String("cluster-id", id.ClusterID), zap.Int64("revision", int64(scratch.state.Revision())))
	return id.ClusterID, nil
}
