package meta

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math/bits"
)

// UUID is a 128-bit identifier; zero means "none".
type UUID = [16]byte

// State says what a replica's local data are worth. The numbers are on disk: only append.
type State uint8

// States.
const (
	StateEmpty    State = 1 // just made, every block is zero, never in sync yet
	StateInSync   State = 2 // was in the in-sync set of the configuration it knows
	StateStale    State = 3 // lacks writes, consistent as of its epoch
	StateSyncing  State = 4 // being resynced: inconsistent, never read
	StateFaulted  State = 5 // its disk failed; made anew after an operator's reset
	StateDiverged State = 6 // its history is not an ancestor of the configuration's
	StateRetired  State = 7 // about to be removed
)

func (s State) String() string {
	switch s {
	case StateEmpty:
		return "EMPTY"
	case StateInSync:
		return "IN_SYNC"
	case StateStale:
		return "STALE"
	case StateSyncing:
		return "SYNCING"
	case StateFaulted:
		return "FAULTED"
	case StateDiverged:
		return "DIVERGED"
	case StateRetired:
		return "RETIRED"
	default:
		return fmt.Sprintf("STATE(%d)", uint8(s))
	}
}

func (s State) valid() bool { return s >= StateEmpty && s <= StateRetired }

// Incompat are features without which a superblock must not be used: a program
// that does not know one of them refuses the replica. Compat are features that
// such a program may ignore. Bits are on disk: only append.
type (
	Incompat uint64
	Compat   uint64
)

const (
	// IncompatSnapshots: the replica has a snapshot set. Who does not know would change
	// what its snapshots need.
	IncompatSnapshots Incompat = 1 << 0

	// KnownIncompat has every Incompat bit that this program understands.
	KnownIncompat = IncompatSnapshots
)

// Superblock is what a replica durably knows about itself. FORMAT.md has the byte table.
type Superblock struct {
	Seq      uint64 // +1 on every write; the larger one of the two slots counts
	Incompat Incompat
	Compat   Compat

	Cluster UUID
	Volume  UUID
	Replica UUID
	Inode   [16]byte // which directory this superblock was made for: tells a copied directory

	KVIncarnation UUID
	Epoch         uint64 // highest configuration durably learned
	Gen           uint64 // its random number
	ForkGen       uint64 // bumped only by an operator's force
	Term          uint64 // highest term promised (I6); the fencing token
	ISR           []UUID // in-sync set of Epoch, at most MaxPeers
	Missing       []UUID // peers a dirty map is kept for, at most MaxPeers
	State         State

	BootID     UUID // kernel boot in which the replica was last open
	Instance   UUID // process that last had it open
	CleanFlush bool // it was flushed and closed in order
	// Unclean: it stopped without CleanFlush and nobody has since made it equal to
	// the other replicas. Lossy: it also lost its volatile cache then, so completed
	// writes may be missing. Both survive any number of restarts and clean closes;
	// they are cleared by whoever has repaired the replica.
	Unclean bool
	Lossy   bool

	Thick      bool   // every block has space allocated
	Size       uint64 // bytes
	BlockSize  uint32 // bytes
	RegionSize uint32 // unit of the activity log, bytes
	ChunkSize  uint64 // bytes of one data file
}

// Layout; see FORMAT.md.
const (
	sbMagic   = "TNDMSBLK"
	sbVersion = 1

	// SuperblockLen is how many bytes of a slot can be other than zero: what a
	// mirror of the superblock has to keep.
	SuperblockLen = 752

	sbISR     = 240
	sbMissing = sbISR + 16*MaxPeers

	flagCleanFlush = 1 << 0
	flagUnclean    = 1 << 1
	flagLossy      = 1 << 2
	flagThick      = 1 << 3
	flagsKnown     = flagCleanFlush | flagUnclean | flagLossy | flagThick
)

// Validate says whether sb can be stored: ErrInvalid.
func (sb *Superblock) Validate() error {
	switch {
	case sb.Volume == UUID{} || sb.Replica == UUID{}:
		return fmt.Errorf("%w: superblock without volume or replica id", ErrInvalid)
	case !sb.State.valid():
		return fmt.Errorf("%w: superblock state %d", ErrInvalid, sb.State)
	case len(sb.ISR) > MaxPeers || len(sb.Missing) > MaxPeers:
		return fmt.Errorf("%w: %d in-sync and %d missing replicas, at most %d each", ErrInvalid, len(sb.ISR), len(sb.Missing), MaxPeers)
	case sb.BlockSize < 512 || bits.OnesCount32(sb.BlockSize) != 1:
		return fmt.Errorf("%w: block size %d", ErrInvalid, sb.BlockSize)
	case bits.OnesCount32(sb.RegionSize) != 1 || sb.RegionSize < sb.BlockSize:
		return fmt.Errorf("%w: region size %d", ErrInvalid, sb.RegionSize)
	case bits.OnesCount64(sb.ChunkSize) != 1 || sb.ChunkSize < uint64(sb.BlockSize) || sb.ChunkSize > 1<<40:
		return fmt.Errorf("%w: chunk size %d", ErrInvalid, sb.ChunkSize)
	case sb.Size == 0 || sb.Size%uint64(sb.BlockSize) != 0 || sb.Size > 1<<56:
		return fmt.Errorf("%w: size %d", ErrInvalid, sb.Size)
	}
	return nil
}

// Clone returns a deep copy.
func (sb *Superblock) Clone() *Superblock {
	c := *sb
	c.ISR = append([]UUID(nil), sb.ISR...)
	c.Missing = append([]UUID(nil), sb.Missing...)
	return &c
}

// Encode writes sb as one slot to page, which has PageSize bytes. sb must be valid.
func (sb *Superblock) Encode(page []byte) error {
	if err := sb.Validate(); err != nil {
		return err
	}
	page = page[:PageSize]
	clear(page)
	le := binary.LittleEndian
	copy(page, sbMagic)
	le.PutUint16(page[12:], sbVersion)
	le.PutUint64(page[16:], sb.Seq)
	le.PutUint64(page[24:], uint64(sb.Incompat))
	le.PutUint64(page[32:], uint64(sb.Compat))
	copy(page[40:], sb.Cluster[:])
	copy(page[56:], sb.Volume[:])
	copy(page[72:], sb.Replica[:])
	copy(page[88:], sb.Inode[:])
	copy(page[104:], sb.KVIncarnation[:])
	copy(page[120:], sb.BootID[:])
	copy(page[136:], sb.Instance[:])
	le.PutUint64(page[152:], sb.Epoch)
	le.PutUint64(page[160:], sb.Gen)
	le.PutUint64(page[168:], sb.ForkGen)
	le.PutUint64(page[176:], sb.Term)
	le.PutUint64(page[184:], sb.Size)
	le.PutUint64(page[192:], sb.ChunkSize)
	le.PutUint32(page[200:], sb.BlockSize)
	le.PutUint32(page[204:], sb.RegionSize)
	page[208] = byte(sb.State)
	page[209] = sb.flags()
	page[210] = byte(len(sb.ISR))
	page[211] = byte(len(sb.Missing))
	for i := range sb.ISR {
		copy(page[sbISR+16*i:], sb.ISR[i][:])
	}
	for i := range sb.Missing {
		copy(page[sbMissing+16*i:], sb.Missing[i][:])
	}
	seal(page)
	return nil
}

// seal sets the checksum of a slot.
func seal(page []byte) {
	binary.LittleEndian.PutUint32(page[8:], crc32.Checksum(page[12:], castagnoli))
}

func (sb *Superblock) flags() (f byte) {
	set := func(on bool, bit byte) {
		if on {
			f |= bit
		}
	}
	set(sb.CleanFlush, flagCleanFlush)
	set(sb.Unclean, flagUnclean)
	set(sb.Lossy, flagLossy)
	set(sb.Thick, flagThick)
	return f
}

// DecodeSuperblock reads one slot. p is a page, or the first SuperblockLen bytes
// of one (a mirror). It returns ErrCorrupt for damage and ErrIncompatible for a
// whole superblock of a later version; it never panics.
func DecodeSuperblock(p []byte) (*Superblock, error) {
	if len(p) < SuperblockLen || len(p) > PageSize {
		return nil, fmt.Errorf("%w: superblock of %d bytes", ErrCorrupt, len(p))
	}
	le := binary.LittleEndian
	if !bytes.Equal(p[:8], []byte(sbMagic)) {
		return nil, fmt.Errorf("%w: superblock without magic number", ErrCorrupt)
	}
	sum := crc32.Checksum(p[12:], castagnoli)
	sum = crc32.Update(sum, castagnoli, zeroes[:PageSize-len(p)])
	if got := le.Uint32(p[8:]); got != sum {
		return nil, fmt.Errorf("%w: superblock checksum %08x, computed %08x", ErrCorrupt, got, sum)
	}
	if v := le.Uint16(p[12:]); v != sbVersion {
		return nil, fmt.Errorf("%w: superblock version %d, this program knows %d", ErrIncompatible, v, sbVersion)
	}
	sb := &Superblock{
		Seq:           le.Uint64(p[16:]),
		Incompat:      Incompat(le.Uint64(p[24:])),
		Compat:        Compat(le.Uint64(p[32:])),
		Cluster:       UUID(p[40:]),
		Volume:        UUID(p[56:]),
		Replica:       UUID(p[72:]),
		Inode:         [16]byte(p[88:]),
		KVIncarnation: UUID(p[104:]),
		BootID:        UUID(p[120:]),
		Instance:      UUID(p[136:]),
		Epoch:         le.Uint64(p[152:]),
		Gen:           le.Uint64(p[160:]),
		ForkGen:       le.Uint64(p[168:]),
		Term:          le.Uint64(p[176:]),
		Size:          le.Uint64(p[184:]),
		ChunkSize:     le.Uint64(p[192:]),
		BlockSize:     le.Uint32(p[200:]),
		RegionSize:    le.Uint32(p[204:]),
		State:         State(p[208]),
		CleanFlush:    p[209]&flagCleanFlush != 0,
		Unclean:       p[209]&flagUnclean != 0,
		Lossy:         p[209]&flagLossy != 0,
		Thick:         p[209]&flagThick != 0,
	}
	if u := sb.Incompat &^ KnownIncompat; u != 0 {
		return nil, fmt.Errorf("%w: unknown features %#x", ErrIncompatible, uint64(u))
	}
	nISR, nMissing := int(p[210]), int(p[211])
	if nISR > MaxPeers || nMissing > MaxPeers || p[209]&^flagsKnown != 0 {
		return nil, fmt.Errorf("%w: superblock with %d in-sync and %d missing replicas, flags %#x", ErrCorrupt, nISR, nMissing, p[209])
	}
	for i := range nISR {
		sb.ISR = append(sb.ISR, UUID(p[sbISR+16*i:]))
	}
	for i := range nMissing {
		sb.Missing = append(sb.Missing, UUID(p[sbMissing+16*i:]))
	}
	if err := sb.Validate(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	return sb, nil
}

var zeroes [PageSize]byte
