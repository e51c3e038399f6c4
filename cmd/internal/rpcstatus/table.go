// Package rpcstatus is the edge between Go errors and gRPC statuses. Handlers
// return the sentinels of the packages, wrapped; the server interceptors turn them into
// statuses by one table, and the client turns those into a Failure with a hint and an exit code.
//
// A test walks all sentinels of the source tree and fails when one is neither in
// the table nor exempt with a reason.
package rpcstatus

import (
	"google.golang.org/grpc/codes"

	"github.com/tandem-storage/tandem/clusterdomain"
	"github.com/tandem-storage/tandem/cmd/internal/config"
	"github.com/tandem-storage/tandem/datapath/block"
	"github.com/tandem-storage/tandem/datapath/frontend"
	"github.com/tandem-storage/tandem/datapath/meta"
	"github.com/tandem-storage/tandem/kvdb"
	"github.com/tandem-storage/tandem/replication"
)

// row maps one sentinel.
type row struct {
	name string // as in the source, "kvdb.ErrNotFound"
	err  error
	code codes.Code
	hint string // what the operator can do; "" if the message says it all
}

// Hints that several rows share.
const (
	hintBug       = "this should not have come this far: please report it with the daemon's log"
	hintRetry     = "look at the present state and try again"
	hintKVDB      = "see the kvdb section of \"tandemctl status\"; volumes that are attached and in sync go on without it"
	hintReset     = "replace or repair the disk, see \"tandemctl volume inspect\""
	hintTryOther  = "the daemon is stopping: ask another node with --endpoint, or try again when it is back"
	hintSeeDomain = "see \"tandemctl cluster domains show\""
	hintSeeVolume = "see \"tandemctl volume list\""
	hintAlign     = "use a multiple of the block size"
	hintMetadata  = "do not write to the pool: the other replicas have the data; see the daemon's log for the file"
)

// table is searched from the top with errors.Is: of an error that wraps several
// sentinels the first row found decides. So what says more stands further up:
// the volume and the domain before the store and the disk beneath.
var table = []row{
	// clusterdomain
	{"clusterdomain.ErrDomainNotFound", clusterdomain.ErrDomainNotFound, codes.NotFound, hintSeeDomain},
	{"clusterdomain.ErrUnknownVolume", clusterdomain.ErrUnknownVolume, codes.NotFound, hintSeeVolume},
	{"clusterdomain.ErrEpochChanged", clusterdomain.ErrEpochChanged, codes.Aborted, "somebody changed the domain meanwhile: " + hintSeeDomain + ", then try again"},
	{"clusterdomain.ErrLastCopy", clusterdomain.ErrLastCopy, codes.FailedPrecondition, "wait until the other domain is in sync, or name the volumes whose last writes may be lost: --accept-data-loss V1,V2"},
	{"clusterdomain.ErrOutcomeUnknown", clusterdomain.ErrOutcomeUnknown, codes.Unavailable, hintSeeDomain + " whether the change took effect"},
	{"clusterdomain.ErrNodeDomain", clusterdomain.ErrNodeDomain, codes.FailedPrecondition, "a node keeps its domain: set domain in its configuration back, or give the node a new nodeID"},
	{"clusterdomain.ErrInvalid", clusterdomain.ErrInvalid, codes.InvalidArgument, ""},
	{"clusterdomain.ErrBadRecord", clusterdomain.ErrBadRecord, codes.DataLoss, "the kvdb holds a record that this version cannot read: was it written by a later one?"},

	// replication
	{"replication.ErrVolumeNotFound", replication.ErrVolumeNotFound, codes.NotFound, hintSeeVolume},
	{"replication.ErrBadUUID", replication.ErrBadUUID, codes.InvalidArgument, ""},
	{"replication.ErrBusy", replication.ErrBusy, codes.FailedPrecondition, "detach it there first; if that node is lost, deactivate its domain with --peer-lost"},
	{"replication.ErrNotCoordinator", replication.ErrNotCoordinator, codes.FailedPrecondition, "attach it first, or ask the node where it is attached"},
	{"replication.ErrNoInSyncReplica", replication.ErrNoInSyncReplica, codes.FailedPrecondition, "bring a node with an in-sync replica back, see \"tandemctl volume inspect\""},
	{"replication.ErrDomainFenced", replication.ErrDomainFenced, codes.FailedPrecondition, "activate the domain: \"tandemctl cluster domains activate\""},
	{"replication.ErrPoisoned", replication.ErrPoisoned, codes.FailedPrecondition, "unmount, detach and attach again; what was written since the last flush must be written again"},
	{"replication.ErrReplicaFaulted", replication.ErrReplicaFaulted, codes.FailedPrecondition, hintReset},
	{"replication.ErrDeposed", replication.ErrDeposed, codes.FailedPrecondition, "the volume lives on the other node now: detach it here"},
	{"replication.ErrFenced", replication.ErrFenced, codes.Aborted, hintRetry},
	{"replication.ErrStaleEpoch", replication.ErrStaleEpoch, codes.Aborted, hintRetry},
	{"replication.ErrStalled", replication.ErrStalled, codes.Unavailable, "\"tandemctl volume inspect\" names the cause of the stall"},
	{"replication.ErrClosed", replication.ErrClosed, codes.Unavailable, hintTryOther},

	// kvdb
	{"kvdb.ErrConflict", kvdb.ErrConflict, codes.Aborted, hintRetry},
	{"kvdb.ErrNoLeader", kvdb.ErrNoLeader, codes.Unavailable, hintKVDB},
	{"kvdb.ErrUnavailable", kvdb.ErrUnavailable, codes.Unavailable, hintKVDB},
	{"kvdb.ErrClosed", kvdb.ErrClosed, codes.Unavailable, hintTryOther},
	{"kvdb.ErrNotFound", kvdb.ErrNotFound, codes.NotFound, ""},
	{"kvdb.ErrLeaseGone", kvdb.ErrLeaseGone, codes.Unavailable, hintKVDB},
	{"kvdb.ErrCompacted", kvdb.ErrCompacted, codes.Aborted, hintRetry},
	{"kvdb.ErrInvalid", kvdb.ErrInvalid, codes.InvalidArgument, ""},

	// datapath
	{"frontend.ErrBusy", frontend.ErrBusy, codes.FailedPrecondition, "unmount the file system and close the device first (\"tandemctl host unmount\")"},
	{"meta.ErrCorrupt", meta.ErrCorrupt, codes.DataLoss, hintMetadata},
	{"meta.ErrIncompatible", meta.ErrIncompatible, codes.FailedPrecondition, "start the version of tandemd that wrote it, or a later one"},
	{"meta.ErrInvalid", meta.ErrInvalid, codes.Internal, hintBug},
	{"block.ErrMisaligned", block.ErrMisaligned, codes.InvalidArgument, hintAlign},
	{"block.ErrOutOfRange", block.ErrOutOfRange, codes.OutOfRange, ""},
	{"block.ErrTooLarge", block.ErrTooLarge, codes.InvalidArgument, ""},
	{"block.ErrInvalid", block.ErrInvalid, codes.InvalidArgument, ""},
	{"block.ErrNotSupported", block.ErrNotSupported, codes.Unimplemented, ""},
	{"block.ErrNoSpace", block.ErrNoSpace, codes.ResourceExhausted, "free or add space in the pool, see \"tandemctl status\""},
	{"block.ErrClosed", block.ErrClosed, codes.Unavailable, hintTryOther},
	{"block.ErrIO", block.ErrIO, codes.DataLoss, hintReset},

	// cmd
	{"config.ErrInvalid", config.ErrInvalid, codes.InvalidArgument, ""},
	{"config.ErrBadSize", config.ErrBadSize, codes.InvalidArgument, ""},
}

// find returns the row that decides about err.
func find(err error, is func(err, target error) bool) *row {
	for i := range table {
		if is(err, table[i].err) {
			return &table[i]
		}
	}
	return nil
}
