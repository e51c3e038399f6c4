// Package rpcstatus is the edge between Go errors and gRPC statuses. Handlers
// return the sentinels of the packages, wrapped; the server interceptors turn them into
// statuses by one table, and the client turns those into a Failure with a hint and an exit code.
//
// A test walks all sentinels of the source tree and fails when one is neither in
// the table nor exempt with a reason.
package rpcstatus

import (
	"google.golang.org/grpc/codes"

	"github.com/tandem-storage/tandem/audit"
	"github.com/tandem-storage/tandem/clusterdomain"
	"github.com/tandem-storage/tandem/cmd/internal/config"
	"github.com/tandem-storage/tandem/datapath/backing"
	"github.com/tandem-storage/tandem/datapath/block"
	"github.com/tandem-storage/tandem/datapath/frontend"
	"github.com/tandem-storage/tandem/datapath/frontend/device"
	"github.com/tandem-storage/tandem/datapath/frontend/fuseloop"
	"github.com/tandem-storage/tandem/datapath/frontend/nbd"
	"github.com/tandem-storage/tandem/datapath/meta"
	"github.com/tandem-storage/tandem/kvdb"
	"github.com/tandem-storage/tandem/replication"
	"github.com/tandem-storage/tandem/replication/core"
	"github.com/tandem-storage/tandem/replication/transport"
	engine "github.com/tandem-storage/tandem/replication/volume"
	"github.com/tandem-storage/tandem/replication/wire"
	"github.com/tandem-storage/tandem/volume"
)

// row maps one sentinel.
type row struct {
	name string // folder and identifier, "datapath/block.ErrIO"
	err  error
	code codes.Code
	hint string // what the operator can do; "" if the message says it all
}

// Hints that several rows share.
const (
	hintPool      = "nothing in the directory was changed: the daemon's log says what was found there"
	hintCerts     = "check the tls files of both nodes: same cluster, right node and domain"
	hintVersions  = "run versions of tandemd that know each other, see \"tandemctl cluster list\""
	hintBug       = "this should not have come this far: please report it with the daemon's log"
	hintRetry     = "look at the present state and try again"
	hintKVDB      = "see the kvdb section of \"tandemctl status\"; volumes that are attached and in sync go on without it"
	hintReset     = "replace or repair the disk, then \"tandemctl volume replica replace\""
	hintTryOther  = "the daemon is stopping: ask another node with --endpoint, or try again when it is back"
	hintMoved     = "the volume lives on another node now: unmount and detach it here"
	hintSpace     = "free or add space in the pool, see \"tandemctl status\""
	hintSeeDomain = "see \"tandemctl cluster domains show\""
	hintSeeVolume = "see \"tandemctl volume list\""
	hintAlign     = "use a multiple of the block size"
	hintRecord    = "the kvdb holds a record that this version cannot read: was it written by a later one?"
	hintImport    = "\"tandemctl kvdb import --all --dry-run\" shows what the replicas know, see docs/ops/kvdb-lost.md"
	hintMetadata  = "do not write to the pool: the other replicas have the data; see the daemon's log for the file"
)

// table is searched from the top with errors.Is: of an error that wraps several
// sentinels the first row found decides. So what says more stands further up:
// the volume and the domain before the store and the disk beneath.
var table = []row{
	// clusterdomain
	{"clusterdomain.ErrDomainNotFound", clusterdomain.ErrDomainNotFound, codes.NotFound, hintSeeDomain},
	{"clusterdomain.ErrNodeNotFound", clusterdomain.ErrNodeNotFound, codes.NotFound, "see \"tandemctl cluster list\""},
	{"clusterdomain.ErrFailoverNotFound", clusterdomain.ErrFailoverNotFound, codes.NotFound, "see \"tandemctl failover list\""},
	{"clusterdomain.ErrUnknownVolume", clusterdomain.ErrUnknownVolume, codes.NotFound, hintSeeVolume},
	{"clusterdomain.ErrEpochChanged", clusterdomain.ErrEpochChanged, codes.Aborted, "somebody changed the domain meanwhile: " + hintSeeDomain + ", then try again"},
	{"clusterdomain.ErrLastCopy", clusterdomain.ErrLastCopy, codes.FailedPrecondition, "wait until the other domain is in sync, or name the volumes whose last writes may be lost: --accept-data-loss V1,V2"},
	{"clusterdomain.ErrOutcomeUnknown", clusterdomain.ErrOutcomeUnknown, codes.Unavailable, hintSeeDomain + " whether the change took effect"},
	{"clusterdomain.ErrNodeDomain", clusterdomain.ErrNodeDomain, codes.FailedPrecondition, "a node keeps its domain: set domain in its configuration back, or give the node a new nodeID"},
	{"clusterdomain.ErrKvdbMember", clusterdomain.ErrKvdbMember, codes.NotFound, "see \"tandemctl kvdb members\""},
	{"clusterdomain.ErrKvdbMajority", clusterdomain.ErrKvdbMajority, codes.FailedPrecondition, "bring the other members back first, see \"tandemctl kvdb members\""},
	{"clusterdomain.ErrNoKvdbMember", clusterdomain.ErrNoKvdbMember, codes.FailedPrecondition, "run tandemctl on a node of \"tandemctl kvdb members\", or give --endpoint"},
	{"clusterdomain.ErrInvalid", clusterdomain.ErrInvalid, codes.InvalidArgument, ""},
	{"clusterdomain.ErrBadRecord", clusterdomain.ErrBadRecord, codes.DataLoss, hintRecord},

	{"audit.ErrBadRecord", audit.ErrBadRecord, codes.DataLoss, hintRecord},

	// volume
	{"volume.ErrVolumeExists", volume.ErrVolumeExists, codes.AlreadyExists, "choose another name, or look at it with \"tandemctl volume inspect\""},
	{"volume.ErrTooLarge", volume.ErrTooLarge, codes.OutOfRange, "see \"tandemctl cluster list\" for what the nodes have"},
	{"volume.ErrNoRoom", volume.ErrNoRoom, codes.ResourceExhausted, "free or add space, see \"tandemctl cluster list\""},
	{"volume.ErrTooFewNodes", volume.ErrTooFewNodes, codes.FailedPrecondition, "ask for fewer replicas, or bring nodes back, see \"tandemctl cluster list\""},
	{"volume.ErrReplicaNotFound", volume.ErrReplicaNotFound, codes.NotFound, "see \"tandemctl volume inspect\""},
	{"volume.ErrNotReplaced", volume.ErrNotReplaced, codes.Unavailable, "it goes on by itself: \"tandemctl volume inspect\" shows what it waits for"},
	{"volume.ErrReplicaInSync", volume.ErrReplicaInSync, codes.FailedPrecondition, "only a replica that is not in sync is replaced, see \"tandemctl volume inspect\""},
	{"volume.ErrDomainNotActive", volume.ErrDomainNotActive, codes.FailedPrecondition, hintSeeDomain},
	{"volume.ErrAttached", volume.ErrAttached, codes.FailedPrecondition, "unmount and detach it first, see \"tandemctl volume inspect\""},
	{"volume.ErrDeleting", volume.ErrDeleting, codes.FailedPrecondition, ""},
	{"volume.ErrOtherNode", volume.ErrOtherNode, codes.FailedPrecondition, "ask that node: run tandemctl there, or give --endpoint"},
	{"volume.ErrNotImported", volume.ErrNotImported, codes.FailedPrecondition, "bring the nodes that are named back, or see docs/ops/kvdb-lost.md"},
	{"volume.ErrNotForced", volume.ErrNotForced, codes.FailedPrecondition, "see docs/ops/site-loss.md"},
	{"replication.ErrRolledBack", replication.ErrRolledBack, codes.FailedPrecondition, hintImport},
	{"volume.ErrIncarnation", volume.ErrIncarnation, codes.FailedPrecondition, hintImport},
	{"volume.ErrCreateFailed", volume.ErrCreateFailed, codes.Aborted, "what was made of it is removed: remove the cause and try again"},
	{"volume.ErrConflict", volume.ErrConflict, codes.Aborted, hintRetry},
	{"volume.ErrNotReady", volume.ErrNotReady, codes.Unavailable, "wait: \"tandemctl volume inspect\" shows what it waits for"},
	{"volume.ErrNotSent", volume.ErrNotSent, codes.Unavailable, hintKVDB},
	{"volume.ErrOutcomeUnknown", volume.ErrOutcomeUnknown, codes.Unavailable, hintSeeVolume + " whether the change took effect"},
	{"volume.ErrBadRecord", volume.ErrBadRecord, codes.DataLoss, hintRecord},
	{"volume.ErrInvalidChange", volume.ErrInvalidChange, codes.Internal, hintBug},
	{"volume.ErrInvalid", volume.ErrInvalid, codes.InvalidArgument, ""},
	{"volume.ErrGroupNotFound", volume.ErrGroupNotFound, codes.NotFound, "see \"tandemctl group list\""},
	{"volume.ErrGroupExists", volume.ErrGroupExists, codes.AlreadyExists, "see \"tandemctl group inspect\"; \"tandemctl group add\" and \"remove\" change it"},
	{"volume.ErrInGroup", volume.ErrInGroup, codes.FailedPrecondition, "take it out of its group first: \"tandemctl group remove\""},
	{"volume.ErrGroupFull", volume.ErrGroupFull, codes.ResourceExhausted, "see \"tandemctl group list\""},
	{"volume.ErrNodeNotFound", volume.ErrNodeNotFound, codes.NotFound, "see \"tandemctl cluster list\""},
	{"volume.ErrPublishedOtherwise", volume.ErrPublishedOtherwise, codes.AlreadyExists, "unpublish it first"},
	{"volume.ErrPublished", volume.ErrPublished, codes.FailedPrecondition, "it is unpublished there first, by whoever published it"},
	{"volume.ErrNotBlank", volume.ErrNotBlank, codes.FailedPrecondition, "make the file system by hand if nothing on it is wanted"},
	{"volume.ErrSnapshotNotFound", volume.ErrSnapshotNotFound, codes.NotFound, "see \"tandemctl volume snapshot list\""},
	{"volume.ErrSnapshotExists", volume.ErrSnapshotExists, codes.AlreadyExists, "choose another name"},
	{"volume.ErrGroupSnapshotExists", volume.ErrGroupSnapshotExists, codes.AlreadyExists, "choose another name"},
	{"volume.ErrGroupSnapshotNotFound", volume.ErrGroupSnapshotNotFound, codes.NotFound, "see \"tandemctl volume snapshot list-groups\""},
	{"volume.ErrNotFrozen", volume.ErrNotFrozen, codes.FailedPrecondition, ""},
	{"volume.ErrInGroupSnapshot", volume.ErrInGroupSnapshot, codes.FailedPrecondition, "delete the whole group snapshot: \"tandemctl volume snapshot delete-group\""},
	{"volume.ErrSnapshotSize", volume.ErrSnapshotSize, codes.OutOfRange, ""},
	{"volume.ErrTooManySnapshots", volume.ErrTooManySnapshots, codes.ResourceExhausted, ""},
	{"volume.ErrSnapshotNotHeld", volume.ErrSnapshotNotHeld, codes.NotFound, ""},
	{"volume.ErrHoldersSilent", volume.ErrHoldersSilent, codes.Unavailable, "start a node that holds it, \"tandemctl volume snapshot inspect\" names them, and ask again behind the last range"},
	{"volume.ErrReverting", volume.ErrReverting, codes.FailedPrecondition, ""},
	{"volume.ErrNotReverting", volume.ErrNotReverting, codes.FailedPrecondition, hintSeeVolume + " whether it can be attached"},
	{"volume.ErrHasSnapshots", volume.ErrHasSnapshots, codes.FailedPrecondition, ""},
	{"volume.ErrNotCut", volume.ErrNotCut, codes.Aborted, "nothing was cut and writes go on: try again (\"group cut\" takes a longer --hold)"},

	// replication
	{"replication.ErrVolumeNotFound", replication.ErrVolumeNotFound, codes.NotFound, hintSeeVolume},
	{"replication.ErrSnapshotUnsupported", replication.ErrSnapshotUnsupported, codes.FailedPrecondition, "snapshots need every in-sync replica in a pool on XFS with reflink (mkfs.xfs -m reflink=1)"},
	{"replication.ErrTooManySnapshots", replication.ErrTooManySnapshots, codes.ResourceExhausted, "delete snapshots of the volume"},
	{"replication.ErrSnapshotExists", replication.ErrSnapshotExists, codes.Internal, hintBug},
	{"replication.ErrNotCut", replication.ErrNotCut, codes.Aborted, "nothing was taken and writes go on: try again when \"tandemctl volume inspect\" shows no stall"},
	{"replication.ErrGroupMixed", replication.ErrGroupMixed, codes.FailedPrecondition, "wait until all volumes of the group are in sync, see \"tandemctl group inspect\""},
	{"replication.ErrGroupManual", replication.ErrGroupManual, codes.FailedPrecondition, ""},
	{"replication.ErrBadPolicy", replication.ErrBadPolicy, codes.InvalidArgument, ""},
	{"replication/core.ErrEpoch", core.ErrEpoch, codes.Aborted, hintRetry},
	{"replication/core.ErrNotChanged", core.ErrNotChanged, codes.Unavailable, hintKVDB},
	{"replication.ErrBadUUID", replication.ErrBadUUID, codes.InvalidArgument, ""},
	{"replication.ErrNoRoom", replication.ErrNoRoom, codes.ResourceExhausted, "make room in that pool, or replace the replica by one in a larger pool (\"tandemctl volume replica replace\")"},
	{"replication.ErrBusy", replication.ErrBusy, codes.FailedPrecondition, "detach it there first; if that node is lost, deactivate its domain with --peer-lost"},
	{"replication.ErrNotCoordinator", replication.ErrNotCoordinator, codes.FailedPrecondition, "attach it first, or ask the node where it is attached"},
	{"replication.ErrNoInSyncReplica", replication.ErrNoInSyncReplica, codes.FailedPrecondition, "bring a node with an in-sync replica back, see \"tandemctl volume inspect\""},
	{"replication.ErrDomainFenced", replication.ErrDomainFenced, codes.FailedPrecondition, "activate the domain: \"tandemctl cluster domains activate\""},
	{"replication.ErrPoisoned", replication.ErrPoisoned, codes.FailedPrecondition, "unmount, detach and attach again; what was written since the last flush must be written again"},
	{"replication.ErrReplicaFaulted", replication.ErrReplicaFaulted, codes.FailedPrecondition, hintReset},
	{"replication.ErrDeposed", replication.ErrDeposed, codes.FailedPrecondition, hintMoved},
	{"replication.ErrHandedOver", replication.ErrHandedOver, codes.FailedPrecondition, hintMoved},
	{"replication.ErrFenced", replication.ErrFenced, codes.Aborted, hintRetry},
	{"replication.ErrStaleEpoch", replication.ErrStaleEpoch, codes.Aborted, hintRetry},
	{"replication.ErrStalled", replication.ErrStalled, codes.Unavailable, "\"tandemctl volume inspect\" names the cause of the stall"},
	{"replication.ErrClosed", replication.ErrClosed, codes.Unavailable, hintTryOther},
	{"replication/volume.ErrRefused", engine.ErrRefused, codes.FailedPrecondition, "activate the domain: \"tandemctl cluster domains activate\""},
	{"replication/volume.ErrConflict", engine.ErrConflict, codes.Aborted, hintRetry},
	{"replication/volume.ErrNotSent", engine.ErrNotSent, codes.Unavailable, hintKVDB},
	{"replication/volume.ErrInvalidChange", engine.ErrInvalidChange, codes.Internal, hintBug},
	{"replication/volume.ErrNotAtRest", engine.ErrNotAtRest, codes.Unavailable, "see the kernel's log for the disk of that pool"},
	{"replication/transport.ErrIdentity", transport.ErrIdentity, codes.PermissionDenied, hintCerts},
	{"replication/transport.ErrConfig", transport.ErrConfig, codes.InvalidArgument, hintCerts},
	{"replication/transport.ErrNotLoopback", transport.ErrNotLoopback, codes.InvalidArgument, ""},
	{"replication/transport.ErrUnknownPeer", transport.ErrUnknownPeer, codes.Unavailable, "is the node registered? see \"tandemctl cluster list\""},
	{"replication/transport.ErrProtocol", transport.ErrProtocol, codes.InvalidArgument, hintVersions},
	{"replication/transport.ErrDisconnected", transport.ErrDisconnected, codes.Unavailable, "is the other node up, and the way to it open? see \"tandemctl status\""},
	{"replication/transport.ErrClosed", transport.ErrClosed, codes.Unavailable, hintTryOther},
	{"replication/wire.ErrVersion", wire.ErrVersion, codes.FailedPrecondition, hintVersions},
	{"replication/wire.ErrUnknownType", wire.ErrUnknownType, codes.Unimplemented, hintVersions},
	{"replication/wire.ErrHeaderCRC", wire.ErrHeaderCRC, codes.Unavailable, "the network damages data: the connection is made anew"},
	{"replication/wire.ErrFrame", wire.ErrFrame, codes.InvalidArgument, ""},
	{"replication/wire.ErrMessage", wire.ErrMessage, codes.Internal, hintBug},

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
	{"datapath/frontend.ErrBusy", frontend.ErrBusy, codes.FailedPrecondition, "unmount the file system and close the device first (\"tandemctl host unmount\")"},
	{"datapath/frontend/fuseloop.ErrUnavailable", fuseloop.ErrUnavailable, codes.FailedPrecondition, "run tandemd as root where /dev/fuse and /dev/loop-control are, or attach with --frontend nbd"},
	{"datapath/frontend.ErrUnavailable", frontend.ErrUnavailable, codes.FailedPrecondition, "attach with the other --frontend, or see what the machine lacks"},
	{"datapath/frontend/fuseloop.ErrInUse", fuseloop.ErrInUse, codes.FailedPrecondition, "is another tandemd running with the same frontends.fuseloop.dir?"},
	{"datapath/frontend/fuseloop.ErrKilled", fuseloop.ErrKilled, codes.FailedPrecondition, hintMoved},
	{"datapath/frontend/fuseloop.ErrLost", fuseloop.ErrLost, codes.FailedPrecondition, "detach the volume and attach it again"},
	{"datapath/frontend/fuseloop.ErrInvalidID", fuseloop.ErrInvalidID, codes.InvalidArgument, ""},
	{"datapath/frontend/fuseloop.ErrClosed", fuseloop.ErrClosed, codes.Unavailable, hintTryOther},
	{"datapath/frontend/device.ErrKilled", device.ErrKilled, codes.FailedPrecondition, hintMoved},
	{"datapath/frontend/device.ErrLost", device.ErrLost, codes.FailedPrecondition, "see the log of \"tandemd device\" on this node, then detach the volume and attach it again"},
	{"datapath/frontend/nbd.ErrKilled", nbd.ErrKilled, codes.FailedPrecondition, hintMoved},
	{"datapath/frontend/nbd.ErrClosed", nbd.ErrClosed, codes.Unavailable, hintTryOther},
	{"datapath/frontend/nbd.ErrNoExport", nbd.ErrNoExport, codes.FailedPrecondition, "its attachment has ended: detach the volume and attach it again"},
	{"datapath/frontend/nbd.ErrNotBack", nbd.ErrNotBack, codes.Unavailable, "start tandemd again, then detach the volume and attach it again"},
	{"datapath/frontend/nbd.ErrNonsense", nbd.ErrNonsense, codes.Internal, hintBug},
	{"datapath/backing.ErrPoolFull", backing.ErrPoolFull, codes.ResourceExhausted, hintSpace},
	{"datapath/backing.ErrFaulted", backing.ErrFaulted, codes.FailedPrecondition, hintReset},
	{"datapath/backing.ErrUnsafeFS", backing.ErrUnsafeFS, codes.FailedPrecondition, "put the pool on XFS or ext4, or accept the risk with allowAnyFS: true in its configuration"},
	{"datapath/backing.ErrLocked", backing.ErrLocked, codes.Unavailable, "is another tandemd running on the pool? after a kill its last I/O may still have to end"},
	{"datapath/backing.ErrForeign", backing.ErrForeign, codes.FailedPrecondition, hintPool},
	{"datapath/backing.ErrIdentityMissing", backing.ErrIdentityMissing, codes.DataLoss, hintPool},
	{"datapath/backing.ErrMisplaced", backing.ErrMisplaced, codes.DataLoss, hintPool},
	{"datapath/backing.ErrInUse", backing.ErrInUse, codes.FailedPrecondition, ""},
	{"datapath/backing.ErrExists", backing.ErrExists, codes.AlreadyExists, ""},
	{"datapath/backing.ErrNotFound", backing.ErrNotFound, codes.NotFound, ""},
	{"datapath/backing.ErrRegress", backing.ErrRegress, codes.Internal, hintBug},
	{"datapath/backing.ErrNoReflink", backing.ErrNoReflink, codes.FailedPrecondition, "snapshots need a pool on XFS with reflink (mkfs.xfs -m reflink=1)"},
	{"datapath/backing.ErrTooManySnapshots", backing.ErrTooManySnapshots, codes.ResourceExhausted, "delete snapshots"},
	{"datapath/backing.ErrInvalid", backing.ErrInvalid, codes.InvalidArgument, ""},
	{"datapath/meta.ErrCorrupt", meta.ErrCorrupt, codes.DataLoss, hintMetadata},
	{"datapath/meta.ErrIncompatible", meta.ErrIncompatible, codes.FailedPrecondition, "start the version of tandemd that wrote it, or a later one"},
	{"datapath/meta.ErrInvalid", meta.ErrInvalid, codes.Internal, hintBug},
	{"datapath/meta.ErrLogFull", meta.ErrLogFull, codes.Internal, hintBug},
	{"datapath/block.ErrMisaligned", block.ErrMisaligned, codes.InvalidArgument, hintAlign},
	{"datapath/block.ErrOutOfRange", block.ErrOutOfRange, codes.OutOfRange, ""},
	{"datapath/block.ErrTooLarge", block.ErrTooLarge, codes.InvalidArgument, ""},
	{"datapath/block.ErrInvalid", block.ErrInvalid, codes.InvalidArgument, ""},
	{"datapath/block.ErrNotSupported", block.ErrNotSupported, codes.Unimplemented, ""},
	{"datapath/block.ErrNoSpace", block.ErrNoSpace, codes.ResourceExhausted, hintSpace},
	{"datapath/block.ErrClosed", block.ErrClosed, codes.Unavailable, hintTryOther},
	{"datapath/block.ErrChecksum", block.ErrChecksum, codes.DataLoss, "the disk returned what was not written, and no other replica has the block: write it anew from a backup; see the daemon's log for where it is"},
	{"datapath/block.ErrIO", block.ErrIO, codes.FailedPrecondition, hintReset},

	// cmd
	{"cmd/internal/config.ErrInvalid", config.ErrInvalid, codes.InvalidArgument, ""},
	{"cmd/internal/config.ErrBadSize", config.ErrBadSize, codes.InvalidArgument, ""},
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
