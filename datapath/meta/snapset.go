package meta

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
)

// MaxSnapshots is how many snapshots a replica may have, those that are being deleted included.
const MaxSnapshots = 126

// SnapshotPages is the length of the file of the snapshot set, in pages.
const SnapshotPages = 2

// SnapshotRecord is one snapshot in the set of a replica.
type SnapshotRecord struct {
	ID UUID
	// Number is that of the cut: 1 for the first one of the replica, and never used again.
	Number uint64
	// Deleting: what others need of it is being moved, after that it is gone.
	Deleting bool
	// Size is that of the volume at the cut, bytes, a multiple of 512 below 2^57. 0: the replica has not grown since.
	Size uint64
}

// SnapshotSet are the snapshots of a replica, in the order of their cuts.
type SnapshotSet struct {
	Last    uint64 // number of the last cut that there ever was
	Records []SnapshotRecord
}

// Layout of the set; see FORMAT.md.
const (
	snapMagic   = "TNDMSNAP"
	snapVersion = 1

	snapRecords   = 64
	snapRecordLen = 32
	snapDeleting  = 1 << 0
	snapUnit      = 512 // of Size

	_ = uint(PageSize - snapRecords - MaxSnapshots*snapRecordLen)
)

// encodeSnapshots writes set to page, which has PageSize bytes.
func encodeSnapshots(page []byte, replica UUID, seq uint64, set *SnapshotSet) {
	page = page[:PageSize]
	clear(page)
	le := binary.LittleEndian
	copy(page, snapMagic)
	le.PutUint16(page[12:], snapVersion)
	le.PutUint16(page[14:], uint16(len(set.Records)))
	le.PutUint64(page[16:], seq)
	copy(page[24:], replica[:])
	le.PutUint64(page[40:], set.Last)
	for i, r := range set.Records {
		p := page[snapRecords+i*snapRecordLen:]
		copy(p, r.ID[:])
		le.PutUint64(p[16:], r.Number)
		le.PutUint64(p[24:], r.Size/snapUnit<<16)
		if r.Deleting {
			p[24] |= snapDeleting
		}
	}
	le.PutUint32(page[8:], crc32.Checksum(page[12:], castagnoli))
}

// decodeSnapshots reads one copy of the set of replica: ErrCorrupt, ErrIncompatible.
func decodeSnapshots(page []byte, replica UUID) (seq uint64, set *SnapshotSet, err error) {
	le := binary.LittleEndian
	if len(page) != PageSize || string(page[:8]) != snapMagic {
		return 0, nil, fmt.Errorf("%w: not a snapshot set", ErrCorrupt)
	}
	if got, sum := le.Uint32(page[8:]), crc32.Checksum(page[12:], castagnoli); got != sum {
		return 0, nil, fmt.Errorf("%w: snapshot set has checksum %08x, computed %08x", ErrCorrupt, got, sum)
	}
	if v := le.Uint16(page[12:]); v != snapVersion {
		return 0, nil, fmt.Errorf("%w: snapshot set of version %d, this program knows %d", ErrIncompatible, v, snapVersion)
	}
	n := int(le.Uint16(page[14:]))
	if of := UUID(page[24:]); of != replica || n > MaxSnapshots {
		return 0, nil, fmt.Errorf("%w: %d snapshots of replica %x, expected those of %x", ErrCorrupt, n, of, replica)
	}
	set = &SnapshotSet{Last: le.Uint64(page[40:])}
	for i := range n {
		p := page[snapRecords+i*snapRecordLen:]
		r := SnapshotRecord{ID: UUID(p), Number: le.Uint64(p[16:])}
		flags, before := le.Uint16(p[24:]), uint64(0)
		if i > 0 {
			before = set.Records[i-1].Number
		}
		if flags&^snapDeleting != 0 || r.Number <= before || r.Number > set.Last || r.ID == (UUID{}) || i == 0 && flags != 0 {
			return 0, nil, fmt.Errorf("%w: snapshot %x is number %d after %d, flags %#x", ErrCorrupt, r.ID, r.Number, before, flags)
		}
		r.Deleting = flags&snapDeleting != 0
		r.Size = le.Uint64(p[24:]) >> 16 * snapUnit
		set.Records = append(set.Records, r)
	}
	return le.Uint64(page[16:]), set, nil
}

// SnapshotFile keeps a SnapshotSet in two copies on a PageFile of SnapshotPages
// pages, written one after the other: a crash leaves the old set or the new one,
// and damage to one copy takes nothing back. Not safe for concurrent use.
type SnapshotFile struct {
	f       PageFile
	replica UUID
	seq     uint64
	set     SnapshotSet
	page    [PageSize]byte
}

// CreateSnapshots stores the first set, an empty one. It is stable on nil.
func CreateSnapshots(f PageFile, replica UUID) (*SnapshotFile, error) {
	s := &SnapshotFile{f: f, replica: replica}
	return s, s.Write(SnapshotSet{})
}

// OpenSnapshots reads the set and makes both copies the newer one. ErrCorrupt if neither
// is whole, ErrIncompatible if one is, but of a later version.
func OpenSnapshots(f PageFile, replica UUID) (*SnapshotFile, error) {
	s := &SnapshotFile{f: f, replica: replica}
	var errs [SnapshotPages]error
	whole := 0
	for i := range errs {
		_, err := f.ReadAt(s.page[:], int64(i)*PageSize)
		if err != nil {
			errs[i] = fmt.Errorf("%w: %w", ErrCorrupt, err)
			continue
		}
		seq, set, err := decodeSnapshots(s.page[:], replica)
		if errors.Is(err, ErrIncompatible) {
			return nil, err
		}
		if errs[i] = err; err != nil {
			continue
		}
		if whole++; whole == 1 || seq > s.seq {
			s.seq, s.set = seq, *set
		}
	}
	if whole == 0 {
		return nil, fmt.Errorf("%w: no copy of the snapshot set is whole (%w; %w); replace the replica (tandemctl volume replica replace)", ErrCorrupt, errs[0], errs[1])
	}
	return s, s.Write(s.Get())
}

// Get returns a copy of the set that is stable.
func (s *SnapshotFile) Get() SnapshotSet {
	return SnapshotSet{Last: s.set.Last, Records: append([]SnapshotRecord(nil), s.set.Records...)}
}

// Write stores set, which has at most MaxSnapshots records in rising order of their
// numbers. On nil it is stable; after an error, or a crash in between, the old one
// or the new one is.
func (s *SnapshotFile) Write(set SnapshotSet) error {
	if len(set.Records) > MaxSnapshots {
		return fmt.Errorf("%w: %d snapshots, at most %d", ErrInvalid, len(set.Records), MaxSnapshots)
	}
	encodeSnapshots(s.page[:], s.replica, s.seq+1, &set)
	for i := range int64(SnapshotPages) {
		if _, err := s.f.WriteAt(s.page[:], i*PageSize); err != nil {
			return fmt.Errorf("meta: write copy %d of the snapshot set: %w", i, err)
		}
	}
	s.seq, s.set = s.seq+1, set
	return nil
}
