package core

import "github.com/tandem-storage/tandem/replication"

// EventKind is a state transition worth telling.
type EventKind uint8

// Events.
const (
	EventElected        EventKind = iota + 1 // the takeover has begun
	EventServing                             // I/O is served; Dirty blocks are to be reconciled
	EventEvicted                             // Replica left the in-sync set for Reason
	EventLogLost                             // Replica's activity log does not tell: it is compared in full
	EventResyncStarted                       // Replica is being resynced; Dirty blocks to compare
	EventResyncProgress                      // Dirty blocks are left
	EventResyncStopped                       // it was given up for Reason
	EventJoined                              // Replica is in sync
	EventDetached                            // left in order; Err if its last flush failed
	EventDied                                // deposed or poisoned: Err
	EventHealed                              // Blocks sectors of Replica, the first about Off, were rewritten from another one
	EventRecomputed                          // Blocks sectors, the same everywhere, did not match their checksums, which were made anew
	EventLost                                // no in-sync replica has Blocks sectors from Off on right: reads of them fail
	EventDiffers                             // in-sync replicas differ in Blocks sectors from Off on, and each vouches for what it has: reads of them fail
	EventVerifyStarted                       // a pass over the volume has begun
	EventVerifyStopped                       // it was ended early
	EventVerified                            // it is complete; Blocks sectors were healed
	EventPolicy                              // the end of the SetPolicy of ID: the policy is in force, or, with Err, it is not and will not be
	EventUnprotected                         // what the protection asks for was away for too long: writes go on without
	EventProtected                           // it is back
	EventHandedOver                          // the configuration names another coordinator, which is to take over
	EventKept                                // a handover came to nothing for Err: it is served here as before
	EventGroupLate                           // the other volumes of the group were waited for too long
	EventResized                             // the end of the SetSize of ID: the size is in force, or, with Err, it is not and will not be, because of Replica if that is told
	EventHeld                                // a cut holds the volume, and nothing is in flight
	EventSnapshot                            // the end of the taking of Snapshot: Holders have it, or, with Err, it does not count
)

// Event is a state transition, for logs and metrics; never needed for correctness.
type Event struct {
	Kind    EventKind
	Epoch   replication.Epoch
	Replica replication.ReplicaID
	Dirty   int   // ResyncBlocks
	Off     int64 // bytes
	Blocks  int   // sectors
	Reason  string
	ID      uint64
	Err     error

	Snapshot replication.SnapshotID
	Holders  []replication.ReplicaID
}

// Stall is why a volume does not proceed, for machines (G7).
type Stall string

// Stalls.
const (
	StallNone         Stall = ""
	StallTakeover     Stall = "TAKEOVER"           // the takeover is on its way
	StallNoReplica    Stall = "NO_IN_SYNC_REPLICA" // no in-sync replica answers
	StallNeedReplica  Stall = "NEED_REPLICA"       // an in-sync replica is out of reach and not evicted yet
	StallReadLease    Stall = "READ_LEASE"         // reads wait: an in-sync replica has not renewed its lease in time
	StallKVDB         Stall = "KVDB"               // the configuration cannot be changed: the kvdb is out of reach
	StallProtection   Stall = "PROTECTION"         // what the volume's protection asks for is not in sync
	StallResyncStart  Stall = "RESYNC_START"       // a short pause at the start of a resync
	StallDetaching    Stall = "DETACHING"
	StallSnapshot     Stall = "SNAPSHOT" // a short pause while the replicas take a snapshot
	StallHandover     Stall = "HANDOVER" // a short pause while another node takes over by plan
	StallNotAttached  Stall = "NOT_ATTACHED"
	StallConfigChange Stall = "CONFIG_CHANGE" // a change of the in-sync set is on its way
	StallDomain       Stall = "DOMAIN"        // the configuration cannot be changed: the coordinator's cluster domain is not ACTIVE
	StallGroup        Stall = "GROUP"         // a short pause until the other volumes of the group have left a cluster domain too
	StallRollback     Stall = "KVDB_ROLLBACK" // the configuration cannot be changed: the kvdb knows an older one, or another (I22)
)

// Stall returns why writes, or else reads, do not proceed now, StallNone if they do.
func (c *Coordinator) Stall() Stall {
	switch c.stage {
	case stageServing:
	case stageSealing:
		_, ok := c.sealed()
		if !ok && c.now >= c.sealUntil {
			return StallNoReplica
		}
		return StallTakeover
	case stageHandedOver:
		return StallHandover
	case stageDead, stageDetached, stageIdle:
		return StallNotAttached
	case stageElecting, stagePreparing, stageActivating, stageCommitting:
		switch {
		case c.changeStall != StallNone:
			return c.changeStall
		case c.round != nil && c.round.got == 0 && c.now >= c.sealUntil:
			return StallNoReplica
		}
		return StallTakeover
	}
	switch {
	case c.change != nil && c.changeStall != StallNone && (c.holdAcks || c.detachReq || c.holding() || !c.reached().covers(c.need()) || !c.readable() || c.joining() && c.reconcile.Count() > 0):
		return c.changeStall
	case c.protectionStall(), c.withheld():
		return StallProtection
	case !c.reached().covers(c.need()):
		return StallNeedReplica
	case c.holdAcks:
		return StallConfigChange
	case c.groupHoldsAcks(), c.groupHoldsWrites():
		return StallGroup
	case c.detachReq:
		return StallDetaching
	case c.holding():
		return c.hold.why
	case !c.readable() && !(c.idle() && c.readers()&^c.openSet() == 0):
		return StallReadLease
	}
	return StallNone
}

// Progress of the resync of one member.
type Progress struct {
	Replica       replication.ReplicaID
	Total, Left   int // ResyncBlocks
	WaitingToJoin bool
}

// Resync returns the progress of the resync under way, nil if there is none.
func (c *Coordinator) Resync() *Progress {
	j := c.join
	if j == nil || !j.mirrored {
		return nil
	}
	return &Progress{Replica: c.m[j.q].id, Total: j.total, Left: j.todo.Count(), WaitingToJoin: j.wait}
}

// Unreconciled is the number of ResyncBlocks in which in-sync replicas may still differ.
func (c *Coordinator) Unreconciled() int { return c.reconcile.Count() }

// InSync lists the in-sync set.
func (c *Coordinator) InSync() []replication.ReplicaID { return c.ids(c.isr) }
