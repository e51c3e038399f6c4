package wire

import (
	"encoding/binary"
	"fmt"

	"github.com/tandem-storage/tandem/datapath/block"
	"github.com/tandem-storage/tandem/replication"
)

// HeadLen is the length of m's frame without the payload, in bytes.
func HeadLen(m *replication.Message) int { return HeaderLen + 4*sectors(len(m.Data)) }

// AppendHead appends everything of m's frame but the payload, which the caller
// sends right behind it: m.Data as it stands. The checksums are m.Sums if given,
// so that they cover the whole way from where the data were first summed, and
// computed from m.Data otherwise.
//
// A message that breaks a limit gives ErrMessage, and dst as it was.
func AppendHead(dst []byte, m *replication.Message) ([]byte, error) {
	n := len(m.Data)
	if !isKnown(m.Type) || n > MaxPayload || uint16(m.Flags)&^knownFlags != 0 {
		return dst, fmt.Errorf("%w: %v with flags %#x and a payload of %d bytes", ErrMessage, m.Type, uint16(m.Flags), n)
	}
	if err := checkShape(m, n, ErrMessage); err != nil {
		return dst, err
	}
	if m.Sums != nil && len(m.Sums) != sectors(n) {
		return dst, fmt.Errorf("%w: %v of %d bytes with %d checksums instead of %d", ErrMessage, m.Type, n, len(m.Sums), sectors(n))
	}
	at := len(dst)
	dst = append(dst, make([]byte, HeaderLen)...)
	putHeader(dst[at:], m, n)
	if m.Sums != nil {
		for _, s := range m.Sums {
			dst = binary.LittleEndian.AppendUint32(dst, s)
		}
		return dst, nil
	}
	for data := m.Data; len(data) > 0; {
		k := min(len(data), block.SectorSize)
		dst = binary.LittleEndian.AppendUint32(dst, Checksum(data[:k]))
		data = data[k:]
	}
	return dst, nil
}
