package meta

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
)

// Sizes of an activity log.
const (
	// LogPositions is how many records each of the log's two copies has: record tx
	// is in position tx % LogPositions.
	LogPositions = 256
	// LogPages is the length of an activity log, in pages.
	LogPages = 2 * LogPositions

	// DefaultLogSlots and MaxLogSlots are how many regions may be active at once.
	DefaultLogSlots = 1024
	MaxLogSlots     = 16384

	// LogFree stands for no region. A region has a smaller number.
	LogFree = ^uint32(0)

	// maxLogUpdates and maxLogContext are what one record has room for.
	maxLogUpdates = 128
	maxLogContext = 740
)

// Layout of a log record; see FORMAT.md.
const (
	logMagic   = "TNDMALOG"
	logVersion = 1

	logUpdates  = 64
	logContext  = logUpdates + 8*maxLogUpdates
	logInstance = logContext + 4*maxLogContext

	logFlagLost = 1 << 0
)

// logOwner says whose log it is, in every record.
type logOwner struct {
	replica  UUID
	instance UUID // the process that has the replica open
	previous UUID // the one that had it open before
}

// logUpdate gives a slot to a region, or to none (LogFree).
type logUpdate struct {
	slot   uint16
	region uint32
}

// logRecord is one record. Its updates and its context are both of the moment
// after it: they never contradict each other.
type logRecord struct {
	owner   logOwner
	tx      uint64
	lost    bool   // every region counts as active
	term    uint64 // of the replica, when the record was made
	stable  uint64 // number up to which writes of that term were settled
	slots   int    // slots from this one on are free
	updates []logUpdate
	first   int      // slot of context[0]
	context []uint32 // regions of slots that follow each other
}

// encode writes rec to page, which has PageSize bytes.
func (rec *logRecord) encode(page []byte) {
	page = page[:PageSize]
	clear(page)
	le := binary.LittleEndian
	copy(page, logMagic)
	le.PutUint16(page[12:], logVersion)
	if rec.lost {
		le.PutUint16(page[14:], logFlagLost)
	}
	le.PutUint64(page[16:], rec.tx)
	copy(page[24:], rec.owner.replica[:])
	le.PutUint64(page[40:], rec.term)
	le.PutUint64(page[48:], rec.stable)
	le.PutUint16(page[56:], uint16(rec.slots))
	le.PutUint16(page[58:], uint16(len(rec.updates)))
	le.PutUint16(page[60:], uint16(rec.first))
	le.PutUint16(page[62:], uint16(len(rec.context)))
	for i, u := range rec.updates[:min(len(rec.updates), maxLogUpdates)] {
		le.PutUint16(page[logUpdates+8*i:], u.slot)
		le.PutUint32(page[logUpdates+8*i+4:], u.region)
	}
	for i, g := range rec.context[:min(len(rec.context), maxLogContext)] {
		le.PutUint32(page[logContext+4*i:], g)
	}
	copy(page[logInstance:], rec.owner.instance[:])
	copy(page[logInstance+16:], rec.owner.previous[:])
	le.PutUint32(page[8:], logSum(page, rec.owner.replica))
}

// logSum is the checksum of a record of replica: another replica's is damaged.
func logSum(page []byte, replica UUID) uint32 {
	return crc32.Update(crc32.Checksum(replica[:], castagnoli), castagnoli, page[12:])
}

// decodeLogRecord reads a stored record of replica. ErrCorrupt: it is damaged, or
// its write was cut short, or it is of another replica. ErrIncompatible: it is
// whole, and not what this program writes.
func decodeLogRecord(page []byte, replica UUID) (*logRecord, error) {
	le := binary.LittleEndian
	if len(page) != PageSize || string(page[:8]) != logMagic {
		return nil, fmt.Errorf("%w: not an activity log record", ErrCorrupt)
	}
	if got, sum := le.Uint32(page[8:]), logSum(page, replica); got != sum {
		return nil, fmt.Errorf("%w: activity log record checksum %08x, computed %08x", ErrCorrupt, got, sum)
	}
	version, flags := le.Uint16(page[12:]), le.Uint16(page[14:])
	if version != logVersion || flags&^logFlagLost != 0 {
		return nil, fmt.Errorf("%w: activity log record of version %d, flags %#x", ErrIncompatible, version, flags)
	}
	rec := &logRecord{
		owner:  logOwner{UUID(page[24:]), UUID(page[logInstance:]), UUID(page[logInstance+16:])},
		lost:   flags&logFlagLost != 0,
		tx:     le.Uint64(page[16:]),
		term:   le.Uint64(page[40:]),
		stable: le.Uint64(page[48:]),
		slots:  int(le.Uint16(page[56:])),
		first:  int(le.Uint16(page[60:])),
	}
	updates, context := int(le.Uint16(page[58:])), int(le.Uint16(page[62:]))
	if rec.owner.replica != replica || rec.slots == 0 || rec.slots > MaxLogSlots || updates > maxLogUpdates ||
		context > maxLogContext || rec.first+context > rec.slots {
		return nil, fmt.Errorf("%w: activity log record with %d slots, %d updates, context of %d slots from %d",
			ErrIncompatible, rec.slots, updates, context, rec.first)
	}
	if updates > 0 {
		rec.updates = make([]logUpdate, 0, updates)
	}
	for i := range updates {
		u := logUpdate{slot: le.Uint16(page[logUpdates+8*i:]), region: le.Uint32(page[logUpdates+8*i+4:])}
		if int(u.slot) >= rec.slots {
			return nil, fmt.Errorf("%w: activity log record with slot %d of %d", ErrIncompatible, u.slot, rec.slots)
		}
		rec.updates = append(rec.updates, u)
	}
	if context > 0 {
		rec.context = make([]uint32, 0, context)
	}
	for i := range context {
		rec.context = append(rec.context, le.Uint32(page[logContext+4*i:]))
	}
	return rec, nil
}
