package meta

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
)

// Sizes of a checksum file.
const (
	// SumRegion is how many bytes of a volume one page of checksums is for, and
	// SumBlock how many one checksum is for.
	SumRegion = 4 << 20
	SumBlock  = 4096
	// SumBlocks is how many checksums a page has.
	SumBlocks = SumRegion / SumBlock
)

// SumPages is the length of the checksum file of a volume of size bytes, in pages.
func SumPages(size int64) int64 { return 1 + (size+SumRegion-1)/SumRegion }

// SumOffset is where in the checksum file the page of a region is, in bytes.
func SumOffset(region uint32) int64 { return (1 + int64(region)) * PageSize }

// Sum is the checksum of one block as it is stored: 31 bits, of what the block has
// and where it is. NoSum: it is not known.
type Sum uint32

// NoSum stands for a checksum that is not known.
const NoSum Sum = 0

// SumBits are the bits that a Sum has.
const SumBits = 1<<31 - 1

// MakeSum is the checksum of the block with that number in the volume, whose
// content has that CRC32C. It is never NoSum.
func MakeSum(crc uint32, block int64) Sum {
	mix := uint32((uint64(block) * 0x9e3779b97f4a7c15) >> 32)
	return max(Sum(crc^mix)&SumBits, 1)
}

// SumOwner says whose checksums a page has. A page of another owner is none.
type SumOwner struct {
	Replica    UUID
	Generation UUID // random; a new one makes all checksums unknown
}

// Layout of the checksum file; see FORMAT.md.
const (
	sumMagic       = "TNDMSUMS"
	sumHeaderMagic = "TNDMSUMH"
	sumVersion     = 1
	sumFlagLoose   = 1 << 0

	sumWords = 128                  // where the checksums begin
	sumGroup = 32                   // checksums that share sumGroup-1 words
	sumLen   = 4 * (sumGroup - 1)   // bytes of them
	sumUsed  = SumBlocks / sumGroup // groups
	_        = uint(PageSize - sumWords - sumUsed*sumLen)
)

// EncodeSums writes the checksums of a region to page, which has PageSize bytes.
func EncodeSums(page []byte, owner SumOwner, region uint32, sums *[SumBlocks]Sum) {
	page = page[:PageSize]
	clear(page)
	le := binary.LittleEndian
	copy(page, sumMagic)
	le.PutUint16(page[12:], sumVersion)
	le.PutUint32(page[16:], region)
	copy(page[24:], owner.Replica[:])
	copy(page[40:], owner.Generation[:])
	for g := range sumUsed {
		group, words := sums[g*sumGroup:(g+1)*sumGroup], page[sumWords+g*sumLen:]
		last := uint32(group[sumGroup-1])
		for i := range sumGroup - 1 {
			le.PutUint32(words[4*i:], uint32(group[i])&SumBits|last>>i<<31)
		}
	}
	le.PutUint32(page[8:], crc32.Checksum(page[12:], castagnoli))
}

// DecodeSums reads the checksums of a region. ErrCorrupt: the page is damaged, of
// another region or of another owner, or was never written; sums is not changed then.
func DecodeSums(page []byte, owner SumOwner, region uint32, sums *[SumBlocks]Sum) error {
	le := binary.LittleEndian
	if len(page) != PageSize || string(page[:8]) != sumMagic {
		return fmt.Errorf("%w: not a page of checksums", ErrCorrupt)
	}
	if got, sum := le.Uint32(page[8:]), crc32.Checksum(page[12:], castagnoli); got != sum {
		return fmt.Errorf("%w: page of checksums has checksum %08x, computed %08x", ErrCorrupt, got, sum)
	}
	if v := le.Uint16(page[12:]); v != sumVersion {
		return fmt.Errorf("%w: page of checksums of version %d", ErrCorrupt, v)
	}
	at, of := le.Uint32(page[16:]), SumOwner{UUID(page[24:]), UUID(page[40:])}
	if at != region || of != owner {
		return fmt.Errorf("%w: checksums of region %d, replica %x, generation %x found at region %d", ErrCorrupt, at, of.Replica, of.Generation, region)
	}
	for g := range sumUsed {
		group, words := sums[g*sumGroup:(g+1)*sumGroup], page[sumWords+g*sumLen:]
		last := uint32(0)
		for i := range sumGroup - 1 {
			w := le.Uint32(words[4*i:])
			group[i] = Sum(w & SumBits)
			last |= w >> 31 << i
		}
		group[sumGroup-1] = Sum(last)
	}
	return nil
}

// SumHeader is the first page of a checksum file.
type SumHeader struct {
	SumOwner
	Instance UUID // the process that keeps the checksums
	Previous UUID // instance in the superblock when that process opened the replica
	// Loose: data are written to regions that the activity log does not have. After a
	// crash no checksum is believed.
	Loose bool
}

// Encode writes h to page, which has PageSize bytes. All that is not zero is in its
// first sector: a write that is cut short leaves the old header or the new one.
func (h *SumHeader) Encode(page []byte) {
	page = page[:PageSize]
	clear(page)
	le := binary.LittleEndian
	copy(page, sumHeaderMagic)
	le.PutUint16(page[12:], sumVersion)
	if h.Loose {
		le.PutUint16(page[14:], sumFlagLoose)
	}
	copy(page[24:], h.Replica[:])
	copy(page[40:], h.Generation[:])
	copy(page[56:], h.Instance[:])
	copy(page[72:], h.Previous[:])
	le.PutUint32(page[8:], crc32.Checksum(page[12:], castagnoli))
}

// DecodeSumHeader reads the first page of a checksum file. ErrCorrupt: it is damaged,
// or was never written. ErrIncompatible: it is whole, and of a later version.
func DecodeSumHeader(page []byte) (*SumHeader, error) {
	le := binary.LittleEndian
	if len(page) != PageSize || !bytes.Equal(page[:8], []byte(sumHeaderMagic)) {
		return nil, fmt.Errorf("%w: not the header of a checksum file", ErrCorrupt)
	}
	if got, sum := le.Uint32(page[8:]), crc32.Checksum(page[12:], castagnoli); got != sum {
		return nil, fmt.Errorf("%w: header of a checksum file has checksum %08x, computed %08x", ErrCorrupt, got, sum)
	}
	version, flags := le.Uint16(page[12:]), le.Uint16(page[14:])
	if version != sumVersion || flags&^sumFlagLoose != 0 {
		return nil, fmt.Errorf("%w: checksum file of version %d, flags %#x", ErrIncompatible, version, flags)
	}
	return &SumHeader{
		SumOwner: SumOwner{UUID(page[24:]), UUID(page[40:])},
		Instance: UUID(page[56:]), Previous: UUID(page[72:]), Loose: flags&sumFlagLoose != 0,
	}, nil
}

// Continues reports whether the checksums tell of the data, as far as the crash of a
// process goes: they are of replica, and the process that last had it open,
// which the superblock calls instance, kept them, or did not get as far as that.
func (h *SumHeader) Continues(replica, instance UUID) bool {
	return h.Replica == replica && !h.Loose && (h.Instance == instance || h.Previous == instance)
}
