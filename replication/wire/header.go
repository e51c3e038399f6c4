package wire

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"

	"github.com/tandem-storage/tandem/datapath/block"
	"github.com/tandem-storage/tandem/replication"
)

// Offsets within the header. Little-endian throughout.
const (
	offMagic     = 0
	offVersion   = 2
	offType      = 3
	offFlags     = 4
	offStatus    = 6
	offSession   = 8
	offTerm      = 16
	offSeq       = 24
	offOffset    = 32
	offLength    = 40
	offSums      = 44 // number of checksums
	offShort     = 46 // by how many bytes the payload is shorter than that many sectors
	offStableSeq = 48
	offCredit    = 56
	offCRC       = 60
)

// ignorable marks the types that a receiver which does not know them skips.
const ignorable = 0x80

// ignorableFlags are the flag bits that a receiver which does not know them
// ignores; any other unknown bit is an error.
const ignorableFlags = 0xff00

const knownFlags = uint16(replication.FlagFUA | replication.FlagStable | replication.FlagNoHole | replication.FlagAsIs | replication.FlagCrowded)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Checksum is the CRC32C of p, as used for headers and payload sectors.
func Checksum(p []byte) uint32 { return crc32.Checksum(p, castagnoli) }

// Sums appends the CRC32C of each block.SectorSize piece of data to dst. The
// last piece may be shorter.
func Sums(dst []uint32, data []byte) []uint32 {
	for len(data) > 0 {
		n := min(len(data), block.SectorSize)
		dst = append(dst, Checksum(data[:n]))
		data = data[n:]
	}
	return dst
}

// sectors is the number of checksums for n bytes of payload.
func sectors(n int) int { return (n + block.SectorSize - 1) / block.SectorSize }

// header is the fixed part of a frame whose payload has not been read yet.
type header struct {
	msg     replication.Message // without Sums, Data, Buf
	sums    int
	payload int // bytes
	known   bool
}

// parseHeader reads b, which has HeaderLen bytes.
func parseHeader(b []byte) (h header, err error) {
	le := binary.LittleEndian
	if m := le.Uint16(b[offMagic:]); m != Magic {
		return h, fmt.Errorf("%w: starts with %#04x instead of %#04x", ErrFrame, m, Magic)
	}
	// Before the version: of a damaged header nothing can be believed.
	if want, got := le.Uint32(b[offCRC:]), Checksum(b[:offCRC]); want != got {
		return h, fmt.Errorf("%w: checksum %#08x, computed %#08x", ErrHeaderCRC, want, got)
	}
	if v := Version(b[offVersion]); (v < MinVersion || v > MaxVersion) && !opens(replication.MessageType(b[offType])) {
		return h, fmt.Errorf("%w: frame of version %d, this node speaks %d to %d", ErrVersion, v, MinVersion, MaxVersion)
	}
	flags := le.Uint16(b[offFlags:])
	h.msg = replication.Message{
		Type:      replication.MessageType(b[offType]),
		Flags:     replication.MessageFlags(flags & knownFlags),
		Status:    replication.Status(le.Uint16(b[offStatus:])),
		Session:   replication.SessionID(le.Uint64(b[offSession:])),
		Term:      replication.Term(le.Uint64(b[offTerm:])),
		Seq:       replication.Seq(le.Uint64(b[offSeq:])),
		Offset:    int64(le.Uint64(b[offOffset:])),
		Length:    int64(le.Uint32(b[offLength:])),
		StableSeq: replication.Seq(le.Uint64(b[offStableSeq:])),
		Credit:    le.Uint32(b[offCredit:]),
	}
	h.sums = int(le.Uint16(b[offSums:]))
	short := int(le.Uint16(b[offShort:]))
	if h.sums > MaxSums || short >= block.SectorSize || (h.sums == 0 && short != 0) {
		return h, fmt.Errorf("%w: %v with %d checksums, %d bytes short", ErrFrame, h.msg.Type, h.sums, short)
	}
	h.payload = h.sums*block.SectorSize - short
	h.known = isKnown(h.msg.Type)
	if !h.known {
		if h.msg.Type&ignorable == 0 {
			return h, fmt.Errorf("%w: %v", ErrUnknownType, h.msg.Type)
		}
		return h, nil
	}
	if unknown := flags &^ (knownFlags | ignorableFlags); unknown != 0 {
		return h, fmt.Errorf("%w: %v with unknown flags %#x", ErrFrame, h.msg.Type, unknown)
	}
	return h, checkShape(&h.msg, h.payload, ErrFrame)
}

// putHeader writes the header of m with a payload of n bytes into b.
func putHeader(b []byte, m *replication.Message, n int) {
	le := binary.LittleEndian
	sums := sectors(n)
	le.PutUint16(b[offMagic:], Magic)
	b[offVersion] = byte(MinVersion)
	b[offType] = byte(m.Type)
	le.PutUint16(b[offFlags:], uint16(m.Flags))
	le.PutUint16(b[offStatus:], uint16(m.Status))
	le.PutUint64(b[offSession:], uint64(m.Session))
	le.PutUint64(b[offTerm:], uint64(m.Term))
	le.PutUint64(b[offSeq:], uint64(m.Seq))
	le.PutUint64(b[offOffset:], uint64(m.Offset))
	le.PutUint32(b[offLength:], uint32(m.Length))
	le.PutUint16(b[offSums:], uint16(sums))
	le.PutUint16(b[offShort:], uint16(sums*block.SectorSize-n))
	le.PutUint64(b[offStableSeq:], uint64(m.StableSeq))
	le.PutUint32(b[offCredit:], m.Credit)
	le.PutUint32(b[offCRC:], Checksum(b[:offCRC]))
}

// opens reports whether messages of the type may come before a version is agreed on. They carry the oldest that their
// sender speaks, are the same in every version, and are how the other end finds out that there is none in common.
func opens(t replication.MessageType) bool {
	return t == replication.MsgHello || t == replication.MsgHelloAck || t == replication.MsgNack
}

func isKnown(t replication.MessageType) bool {
	return t >= replication.MsgHello && t <= replication.MsgResyncWrite ||
		t == replication.MsgClose || t >= replication.MsgLease && t <= replication.MsgSnapCut
}

// checkShape says whether the lengths of m fit its type: one rule for both ends,
// so that what one may send the other accepts.
func checkShape(m *replication.Message, payload int, kind error) error {
	fits, span := payload == 0, int64(MaxPayload)
	switch m.Type {
	case replication.MsgHello, replication.MsgHelloAck:
		fits = payload > 0 && payload <= maxBody
	case replication.MsgWrite, replication.MsgData:
		fits = payload > 0 && int64(payload) == m.Length
	case replication.MsgResyncWrite:
		if payload == 0 {
			span = MaxSpan
		} else {
			fits = int64(payload) == m.Length
		}
	case replication.MsgHash:
		span = MaxSpan
		fits = payload > 0 && int64(payload) == (m.Length+replication.ResyncBlock-1)/replication.ResyncBlock*replication.HashLen
	case replication.MsgFindings:
		fits = payload > 0 && m.Length%block.SectorSize == 0 && int64(payload) == m.Length/block.SectorSize*replication.FindingLen
	case replication.MsgSnapCut:
		fits = payload == len(replication.SnapshotID{}) && int64(payload) == m.Length
	case replication.MsgExamine: // of what is answered in one message
	default:
		span = MaxSpan
	}
	if !fits || m.Length < 0 || m.Length > span || m.Offset < 0 {
		return fmt.Errorf("%w: %v of %d bytes at %d with a payload of %d", kind, m.Type, m.Length, m.Offset, payload)
	}
	return nil
}
