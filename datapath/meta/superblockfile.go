package meta

import (
	"errors"
	"fmt"
)

// SuperblockFile keeps a superblock in two slots of a PageFile, written
// alternately: a crash during a write leaves the one before. Not safe for
// concurrent use.
type SuperblockFile struct {
	f    PageFile
	last *Superblock // what is stable
	page [PageSize]byte
}

// SuperblockPages is the length of the file, in pages.
const SuperblockPages = 2

// CreateSuperblock stores the first superblock, in both slots. It is stable on return.
func CreateSuperblock(f PageFile, sb *Superblock) (*SuperblockFile, error) {
	s := &SuperblockFile{f: f}
	for seq := uint64(1); seq <= SuperblockPages; seq++ {
		c := sb.Clone()
		c.Seq = seq
		if err := s.put(c); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// OpenSuperblock reads both slots and takes the valid one with the larger
// sequence number. damaged says that the other one is not valid; the next Write
// repairs it. ErrCorrupt if neither is valid, or if they contradict each other;
// ErrIncompatible if either is whole but of a later version.
func OpenSuperblock(f PageFile) (s *SuperblockFile, damaged error, err error) {
	s = &SuperblockFile{f: f}
	var slots [SuperblockPages]*Superblock
	var errs [SuperblockPages]error
	for i := range slots {
		slots[i], errs[i] = s.readSlot(i)
		if errors.Is(errs[i], ErrIncompatible) {
			return nil, nil, errs[i]
		}
	}
	a, b := slots[0], slots[1]
	switch {
	case a == nil && b == nil:
		return nil, nil, fmt.Errorf("%w: no valid superblock (slot 0: %w; slot 1: %w); "+
			"do not initialise this directory: replace the replica (tandemctl volume replica replace)", ErrCorrupt, errs[0], errs[1])
	case a != nil && b != nil && (a.Volume != b.Volume || a.Replica != b.Replica || a.Cluster != b.Cluster):
		return nil, nil, fmt.Errorf("%w: the two superblocks are of different replicas (%x and %x); "+
			"replace the replica (tandemctl volume replica replace)", ErrCorrupt, a.Replica, b.Replica)
	case a == nil:
		s.last, damaged = b, errs[0]
	case b == nil || a.Seq > b.Seq:
		s.last, damaged = a, errs[1]
	default:
		s.last = b
	}
	return s, damaged, nil
}

func (s *SuperblockFile) readSlot(i int) (*Superblock, error) {
	if _, err := s.f.ReadAt(s.page[:], int64(i)*PageSize); err != nil {
		return nil, fmt.Errorf("%w: superblock slot %d: %w", ErrCorrupt, i, err)
	}
	sb, err := DecodeSuperblock(s.page[:])
	if err != nil {
		return nil, err
	}
	if int(sb.Seq&1) != i {
		return nil, fmt.Errorf("%w: superblock %d found in slot %d", ErrCorrupt, sb.Seq, i)
	}
	return sb, nil
}

// Get returns a copy of the superblock that is stable.
func (s *SuperblockFile) Get() *Superblock { return s.last.Clone() }

// Adopt makes sb, a newer one that was found elsewhere (the mirror), the base of
// the next Write. Nothing is stored.
func (s *SuperblockFile) Adopt(sb *Superblock) { s.last = sb.Clone() }

// Write stores sb with the next sequence number; sb.Seq is not read. On nil it is
// stable. After an error, or a crash in between, the old one or the new one is;
// the caller then stops using the replica.
func (s *SuperblockFile) Write(sb *Superblock) error {
	c := sb.Clone()
	c.Seq = s.last.Seq + 1
	return s.put(c)
}

func (s *SuperblockFile) put(sb *Superblock) error {
	if err := sb.Encode(s.page[:]); err != nil {
		return err
	}
	if _, err := s.f.WriteAt(s.page[:], int64(sb.Seq&1)*PageSize); err != nil {
		return fmt.Errorf("meta: write superblock slot %d: %w", sb.Seq&1, err)
	}
	s.last = sb
	return nil
}
