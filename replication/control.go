package replication

import "time"

// The control exchange of takeover, eviction and join (protocol.md 5): seal,
// prepare, commit. Each request names the volume and the replica; each may be
// repeated without harm. They travel as unary gRPC calls (replicationpb); the
// identity of the caller comes from its certificate, not from the request.

// SealRequest asks a replica to promise Term: never again to serve an older one.
type SealRequest struct {
	Volume      VolumeID
	Replica     ReplicaID
	Term        Term
	Epoch       Epoch // of the configuration in which Term was elected
	Gen         uint64
	Incarnation UUID // of the kvdb
	AttachID    AttachID
	Ended       Term // coordinators of terms up to it serve no reads any more: their leases are not waited for
	// Former are the incarnations that an import replaced by Incarnation: a replica of one of them follows.
	Former []UUID
	// Lineage are the epochs that the configuration says it comes from, itself the last. A replica that knows another gen of one
	// of them refuses: the kvdb was rolled back and went another way (I22). Nil from a coordinator that does not tell it.
	Lineage []Ancestor
}

// Ancestor is one epoch of a configuration's history.
type Ancestor struct {
	Epoch Epoch
	Gen   uint64
}

// SealResult is answered after the promise is durable and every I/O of older
// sessions has ended in the kernel (I6, I17).
type SealResult struct {
	Status   Status // StatusOK, or why not
	Term     Term   // highest promised, also when refused
	Epoch    Epoch  // highest known to the replica
	Gen      uint64
	State    MemberState // as the replica's superblock says
	Boot     BootID
	Instance UUID
	Lossy    bool     // it lost power since its last flush: completed writes may be missing
	Crowded  bool     // its pool is nearly full: it should not join
	LogLost  bool     // its activity log does not tell: any region may differ from the other replicas
	Active   []uint32 // regions (RegionSize) whose writes may not be settled; any other too if LogLost
	Applied  Position // what it has of the last coordinator that wrote to it; zero: of none that was promised its term since the process started
}

// Position is how far the writes of one coordinator have come on a replica: none that was confirmed while the replica was in sync
// is above it. It is for people; nothing is decided by it.
type Position struct {
	Term Term
	Seq  Seq // highest of the writes that are done
}

// PrepareRequest tells for which members a replica must keep a dirty map, all of
// them in each request; maps that it has for others stay until a COMMIT. When it is
// answered that is durable, and each map of a member in Missing covers the replica's
// own unsettled regions.
type PrepareRequest struct {
	Volume  VolumeID
	Replica ReplicaID
	Term    Term
	Missing []ReplicaID
	// MarkAll are members of Missing whose map must be all ones, because nobody
	// knows what they lack.
	MarkAll []ReplicaID
	// Size is how many bytes the replica has to have at least: it grows first, durably. 0: as it is.
	Size int64
}

// PrepareResult answers PrepareRequest. StatusNoSpace: the replica has no room to grow, and nothing was changed.
type PrepareResult struct {
	Status Status
	Term   Term
	Size   int64 // that the replica has, bytes; 0 from one that does not know how to grow
}

// CommitRequest tells a replica the configuration in force. Answered when durable.
type CommitRequest struct {
	Volume      VolumeID
	Replica     ReplicaID
	Term        Term // of the sender; for a detach, of the coordinator that leaves
	Incarnation UUID
	Config      *Config
	// Boot is that of the replica when the sender sealed it. If it has not booted since and is in sync or being
	// resynced by Config, what it lost before is made good, or given up by all: it is not lossy any more (I19).
	Boot BootID
	// Settled: every write is stable on every member, nothing is in flight: the
	// activity log may be emptied. Sent with the configuration of a detach.
	Settled bool
}

// CommitResult answers CommitRequest.
type CommitResult struct {
	Status Status
	Epoch  Epoch
}

// DirtyRequest asks for the dirty map that a replica keeps for Peer.
type DirtyRequest struct {
	Volume  VolumeID
	Replica ReplicaID
	Term    Term
	Peer    ReplicaID
}

// DirtyResult is the map: one bit a ResyncBlock, bit n of byte n/8 for block n.
type DirtyResult struct {
	Status Status
	Bits   []byte
}

// RegionSize is the unit of the activity log, in bytes.
const RegionSize = 4 << 20

// ResyncPriority is how the resyncs of a volume stand to those of others wherever they need a turn.
type ResyncPriority string

// Priorities.
const (
	ResyncLow    ResyncPriority = "low"
	ResyncNormal ResyncPriority = ""
	ResyncHigh   ResyncPriority = "high"
)

// Valid reports whether p is one of them.
func (p ResyncPriority) Valid() bool { return p == ResyncLow || p == ResyncNormal || p == ResyncHigh }

// TurnRequest asks the node of a replica that is to be resynced for its turn: a bounded number of resyncs write to a disk at once,
// and share what it, and the way from the other domain, may carry (protocol.md 9.3). It is no part of the volume's safety. A turn is
// to be asked for again every second; after five without it is lost.
type TurnRequest struct {
	Volume  VolumeID
	Replica ReplicaID
	Runs    bool // it is being resynced already
	Ended   bool // no turn is needed any more
}

// TurnResult answers TurnRequest.
type TurnResult struct {
	Status  Status
	Granted bool
	Rate    int64         // bytes a second that the resync may copy, 0 unlimited
	Again   time.Duration // if it is not granted: ask after so long
}
