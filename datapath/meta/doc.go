// Package meta has the on-disk metadata of one replica: the superblock, which
// says what the replica is and what it has promised, the dirty maps, which say
// what a missing peer lacks, and the activity log, which says where the replica
// may differ from the others after a crash. FORMAT.md describes every byte.
//
// The codecs are pure. SuperblockFile, DirtyFile and LogTable keep what they have
// in a PageFile, whose writes are stable when they return; OpenPages gives one on
// a local file.
package meta

import (
	"errors"
	"hash/crc32"
)

// PageSize is the unit of every metadata read and write, in bytes. A page is
// written in one piece; if it is torn its checksum tells.
const PageSize = 4096

// MaxPeers is how many replicas the in-sync set and the missing set may each have.
const MaxPeers = 16

// Errors. Test with errors.Is.
var (
	// ErrCorrupt means that stored metadata are damaged beyond what redundancy repairs.
	ErrCorrupt = errors.New("meta: metadata are damaged")
	// ErrIncompatible means that metadata are whole but written by a later version.
	ErrIncompatible = errors.New("meta: metadata need a newer program")
	// ErrInvalid means that a value cannot be stored.
	ErrInvalid = errors.New("meta: value cannot be stored")
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)
