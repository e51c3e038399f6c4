// Package raftkv is the embedded store: kvdb over hashicorp/raft, without
// another process beside tandemd.
//
// # Members
//
// OpenMember runs one voter. A witness is a voter too, on a node without
// replicas. Every member takes every request and passes it on to the leader;
// OpenClient is the store of a node that is no member. The node of a member that
// does not hear the leader, though a majority does, asks another member. What it
// watches stands still until it hears the leader again.
//
// # When is a change stable
//
// Txn returns when a majority of the members have the change in their log on
// stable storage (bbolt, fsynced) and the leader has applied it. A read
// first commits a barrier in the leader's term and then answers from memory.
// Reads that arrive together share one barrier. VerifyLeader of the library is
// not used for it: it counts the answers to heartbeats that were sent before
// the question, so that a leader process that was paused can confirm itself by
// an answer that waited in its socket.
//
// # Unknown outcomes
//
// A change is sent again only if it was definitely refused. When the leader or
// the way to it fails after the change was handed over, the caller gets
// kvdb.ErrUnavailable: it may have taken effect, or still may. It is applied at most once.
//
// # Identity, and a node that has lost its data
//
// A raft voter that forgets its votes and its log can elect a leader that lacks
// acknowledged changes. Therefore a member's identity is random and lives and
// dies with its data directory, and every connection between members names the
// cluster and the member that it is meant for; whoever is neither refuses. A
// node that returns without its data is a stranger: nothing that was meant for
// its predecessor reaches it.
//
// It will not make itself a place either. A node with an empty directory
// becomes a member only in one of these ways:
//
//   - Bootstrap without Peers: a new cluster of one, unless the marker file (kept
//     away from the directory) says that this node was a member.
//   - Bootstrap with Peers: the same, once every one of them has answered that it
//     belongs to no cluster. One that does, or cannot be asked, is a veto.
//   - Peers without Bootstrap: it asks the members to add it. They refuse while a
//     member of the same node name exists.
//
// To replace a lost member the operator removes it (RemoveMember, needs a
// majority) and starts the node: a marker of a member that a peer says is removed
// counts no more, and the node joins anew, Bootstrap or not. When the majority is lost for
// good, ForceNewCluster makes a new cluster from what one member has; the
// others, being of another cluster, can not interfere.
package raftkv
