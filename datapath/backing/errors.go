package backing

import (
	"errors"
	"fmt"

	"github.com/tandem-storage/tandem/datapath/block"
)

// What can be wrong with a pool or a replica. Test with errors.Is.
var (
	// ErrUnsafeFS means that the pool's file system is not one whose durability is known.
	ErrUnsafeFS = errors.New("backing: file system is not supported")
	// ErrLocked means that another process has the pool or the replica open, or
	// that I/O of a killed one has not ended in the kernel (I17).
	ErrLocked = errors.New("backing: in use by another process")
	// ErrForeign means that a directory belongs to another node, pool or cluster,
	// or is a copy of one that did: its content must not be trusted.
	ErrForeign = errors.New("backing: directory belongs elsewhere")
	// ErrIdentityMissing means that there are data without a valid identity. They
	// are never initialised.
	ErrIdentityMissing = errors.New("backing: data without a valid identity")
	// ErrMisplaced means that a chunk file is not the one that was made for its place.
	ErrMisplaced = errors.New("backing: chunk file is misplaced")
	// ErrNotFound means that the pool has no such replica, or no dirty map for that peer.
	ErrNotFound = errors.New("backing: not found")
	// ErrExists means that the pool has the replica already.
	ErrExists = errors.New("backing: replica exists")
	// ErrInUse means that the replica is open.
	ErrInUse = errors.New("backing: replica is open")
	// ErrInvalid means a specification that cannot be met.
	ErrInvalid = errors.New("backing: invalid specification")
	// ErrRegress means that a superblock would take a promise back.
	ErrRegress = errors.New("backing: superblock would go back")
	// ErrPoolFull means that the pool takes no new replica. It is also a block.ErrNoSpace.
	ErrPoolFull = fmt.Errorf("backing: pool is too full: %w", block.ErrNoSpace)
	// ErrNoReflink means that the pool's file system cannot clone files, so that there are no snapshots.
	ErrNoReflink = errors.New("backing: file system cannot clone files")
	// ErrTooManySnapshots means that a replica has meta.MaxSnapshots.
	ErrTooManySnapshots = errors.New("backing: too many snapshots")
	// ErrFaulted means that the replica met an error after which its data cannot
	// be known (I25). It is also a block.ErrIO.
	ErrFaulted = fmt.Errorf("backing: replica is faulted: %w", block.ErrIO)
)
