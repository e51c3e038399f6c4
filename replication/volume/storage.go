package volume

import (
	"github.com/tandem-storage/tandem/datapath/block"
	"github.com/tandem-storage/tandem/replication"
	"github.com/tandem-storage/tandem/replication/core"
)

// Storage is the local data and metadata of one replica.
type Storage interface {
	block.Device

	// Pool says where the replica lies, for people.
	Pool() string

	// Stored tells what was found when the replica was opened.
	Stored() (Stored, error)

	// Persist makes p durable before it returns. One call at a time. block.ErrNoSpace of a larger size means that nothing was changed;
	// any other error is the replica's end.
	Persist(p core.Persist) error

	// ChangeLog changes the activity log and calls done when that is durable; if nobody waits (done is nil) it is
	// stored with a later change. It does not block, and done must not; it may be called before ChangeLog returns.
	ChangeLog(c core.LogChange, done func(error))

	// Crowded reports whether there is so little room left that the replica should
	// leave the in-sync set. It does not wait for I/O.
	Crowded() (bool, error)

	// ChecksumsOff says why blocks have no checksums; nil if they have. It does not wait for I/O.
	ChecksumsOff() error

	// CutSnapshot takes a snapshot of the first size bytes, the volume's: of what every write completed before has left; on nil it is stable. Nothing that changes data or flushes
	// is in flight, nor is anything submitted before it returns. Errors: replication.ErrSnapshotUnsupported, replication.ErrTooManySnapshots,
	// replication.ErrSnapshotExists, block.ErrNoSpace, none of which harms the replica; others do.
	CutSnapshot(id replication.SnapshotID, size int64) error

	// CloseClean stores what is left, makes everything durable and closes: the
	// next open counts as after a clean stop. No I/O is in flight.
	CloseClean(rest core.Rest) error
}

// Stored is the durable state of a replica at its opening.
type Stored struct {
	Meta    core.ReplicaMeta
	Slots   int      // regions that the activity log has room for
	Active  []uint32 // those that it has
	LogLost bool     // it does not tell which are active: all may be
	Damage  error    // why, if that was found at this opening
	Dirty   map[replication.ReplicaID]*core.Bitmap
}
