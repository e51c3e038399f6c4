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

	// Persist makes m durable before it returns. One call at a time.
	Persist(m core.ReplicaMeta) error

	// Crowded reports whether there is so little room left that the replica should
	// leave the in-sync set. It does not wait for I/O.
	Crowded() (bool, error)

	// CloseClean keeps what is unsettled, makes everything durable and closes: the
	// next open counts as after a clean stop. No I/O is in flight.
	CloseClean(active []uint32, dirty map[replication.ReplicaID]*core.Bitmap) error
}

// Stored is the durable state of a replica at its opening.
type Stored struct {
	Meta    core.ReplicaMeta
	LogLost bool // it stopped uncleanly
	Active  []uint32
	Dirty   map[replication.ReplicaID]*core.Bitmap
}
