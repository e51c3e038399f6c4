package replication

import "errors"

// What can be wrong with a volume. Test with errors.Is.
var (
	ErrVolumeNotFound  = errors.New("replication: volume not found")
	ErrNotCoordinator  = errors.New("replication: volume is not attached on this node")
	ErrDeposed         = errors.New("replication: another node has taken the volume over")
	ErrPoisoned        = errors.New("replication: acknowledged data that were not flushed are lost; detach and attach again")
	ErrStalled         = errors.New("replication: volume could not proceed in time")
	ErrNoInSyncReplica = errors.New("replication: no in-sync replica can be reached")
	ErrFenced          = errors.New("replication: a later term is sealed")
	ErrStaleEpoch      = errors.New("replication: configuration is older than the replica's")
	ErrReplicaFaulted  = errors.New("replication: replica's disk has failed")
	ErrDomainFenced    = errors.New("replication: cluster domain is fenced")
	ErrRolledBack      = errors.New("replication: KVDB_ROLLBACK: the kvdb knows less than a replica, it was restored from a backup or replaced")
	ErrHandedOver      = errors.New("replication: volume was handed over to another node")
	ErrBusy            = errors.New("replication: volume is attached elsewhere")
	ErrNoRoom          = errors.New("replication: the pool of a replica has no room for the larger size")
	ErrClosed          = errors.New("replication: volume is closed")

	ErrNotCut = errors.New("replication: no snapshot was taken")
	// ErrSnapshotUnsupported: a replica lies on a file system that cannot share blocks between files, or is served by a version that knows no snapshots.
	ErrSnapshotUnsupported = errors.New("replication: a replica cannot take snapshots")
	ErrTooManySnapshots    = errors.New("replication: a replica has as many snapshots as it can have; delete one")
	ErrSnapshotExists      = errors.New("replication: the replica has a snapshot of that number")
)
