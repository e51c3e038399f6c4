package meta

import (
	"encoding/binary"
	"errors"
	"reflect"
	"testing"
)

func fullLogRecord() *logRecord {
	rec := &logRecord{
		owner: logOwner{UUID{1}, UUID{2}, UUID{3}}, tx: 1<<63 + 5, lost: true, term: 1<<62 + 7, stable: 1<<61 + 9,
		slots: MaxLogSlots, first: MaxLogSlots - maxLogContext,
	}
	for i := range uint32(maxLogUpdates) {
		rec.updates = append(rec.updates, logUpdate{uint16(MaxLogSlots - 1 - i), LogFree - 1 - i})
	}
	for i := range uint32(maxLogContext) {
		rec.context = append(rec.context, i*5_000_000)
	}
	return rec
}

func TestLogRecordRoundTrip(t *testing.T) {
	for _, want := range []*logRecord{
		fullLogRecord(),
		{owner: logOwner{replica: UUID{9}}, tx: 1, slots: 1},
		{owner: logOwner{replica: UUID{9}}, tx: 2, slots: 3, updates: []logUpdate{{2, LogFree}}, first: 3},
	} {
		var page [PageSize]byte
		want.encode(page[:])
		got, err := decodeLogRecord(page[:], want.owner.replica)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("got %+v, %v, want %+v", got, err, want)
		}
	}
}

// resealLog makes a record's checksum fit.
func resealLog(page []byte, replica UUID) {
	binary.LittleEndian.PutUint32(page[8:], logSum(page, replica))
}

func TestLogRecordRefused(t *testing.T) {
	le := binary.LittleEndian
	for _, c := range []struct {
		name   string
		change func(p []byte)
		want   error
	}{
		{"later version", func(p []byte) { p[12]++ }, ErrIncompatible},
		{"unknown flag", func(p []byte) { p[14] |= 2 }, ErrIncompatible},
		{"no slots", func(p []byte) { le.PutUint16(p[56:], 0) }, ErrIncompatible},
		{"too many slots", func(p []byte) { le.PutUint16(p[56:], MaxLogSlots+1) }, ErrIncompatible},
		{"too many updates", func(p []byte) { p[58]++ }, ErrIncompatible},
		{"too long a context", func(p []byte) { le.PutUint16(p[60:], 0); le.PutUint16(p[62:], maxLogContext+1) }, ErrIncompatible},
		{"context beyond the slots", func(p []byte) { le.PutUint16(p[60:], MaxLogSlots-maxLogContext+1) }, ErrIncompatible},
		{"slot beyond the slots", func(p []byte) { le.PutUint16(p[logUpdates:], MaxLogSlots) }, ErrIncompatible},
		{"another replica with the same checksum", func(p []byte) { p[24]++ }, ErrIncompatible},
		{"magic", func(p []byte) { p[0]++ }, ErrCorrupt},
	} {
		var page [PageSize]byte
		fullLogRecord().encode(page[:])
		c.change(page[:])
		resealLog(page[:], UUID{1})
		if _, err := decodeLogRecord(page[:], UUID{1}); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	var page [PageSize]byte
	fullLogRecord().encode(page[:])
	if _, err := decodeLogRecord(page[:], UUID{2}); !errors.Is(err, ErrCorrupt) {
		t.Errorf("record of another replica: %v", err)
	}
	if _, err := decodeLogRecord(page[:PageSize-1], UUID{1}); !errors.Is(err, ErrCorrupt) {
		t.Errorf("part of a record: %v", err)
	}
	for i := range PageSize {
		if i < 8 || i >= 12 {
			page[i] ^= 0x10
			if _, err := decodeLogRecord(page[:], UUID{1}); !errors.Is(err, ErrCorrupt) {
				t.Fatalf("byte %d is wrong: %v", i, err)
			}
			page[i] ^= 0x10
		}
	}
}

func FuzzLogRecord(f *testing.F) {
	var page [PageSize]byte
	fullLogRecord().encode(page[:])
	f.Add(page[:])
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) == PageSize { // most of what is found is kept from being a record by the checksum alone
			b = append([]byte(nil), b...)
			copy(b, logMagic)
			resealLog(b, UUID{1})
		}
		rec, err := decodeLogRecord(b, UUID{1})
		if err != nil {
			if !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrIncompatible) {
				t.Errorf("unexpected kind of error: %v", err)
			}
			return
		}
		var again [PageSize]byte
		rec.encode(again[:])
		if got, err := decodeLogRecord(again[:], UUID{1}); err != nil || !reflect.DeepEqual(got, rec) {
			t.Errorf("decoded %+v, then %+v (%v)", rec, got, err)
		}
	})
}

// FuzzLogFile reads logs of any records: never a panic, and always what FORMAT.md says.
func FuzzLogFile(f *testing.F) {
	f.Add(uint64(1), uint64(2), uint16(3), []byte{1, 2, 3, 4, 5, 6, 7, 8})
	f.Add(uint64(254), uint64(2), uint16(1000), []byte{0xff, 0, 9})
	f.Fuzz(func(t *testing.T, tx, bad uint64, slots uint16, b []byte) {
		m := newMemPages(LogPages)
		m.bad = map[int64]bool{int64(bad % (2 * LogPages)): true}
		for i, v := range b {
			rec := &logRecord{owner: logOwner{replica: UUID{1}}, tx: tx + uint64(i), slots: int(slots%MaxLogSlots) + 1, lost: v == 7}
			if rec.slots > 100 && v > 200 {
				rec.slots -= int(v) / 3
			}
			rec.first = min(i*maxLogContext%rec.slots, rec.slots)
			for s := rec.first; s < min(rec.first+maxLogContext, rec.slots); s++ {
				rec.context = append(rec.context, LogFree)
			}
			if s := int(v) % rec.slots; v%3 == 0 {
				rec.updates = append(rec.updates, logUpdate{uint16(s), uint32(v)})
				if s -= rec.first; s >= 0 && s < len(rec.context) {
					rec.context[s] = uint32(v)
				}
			}
			at := rec.tx % LogPositions * PageSize
			if v%5 != 1 {
				rec.encode(m.b[at:])
			}
			if v%7 != 1 {
				rec.encode(m.b[at+LogPositions*PageSize:])
			}
		}
		compareReaders(t, m, UUID{})
	})
}
