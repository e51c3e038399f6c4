package meta

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"maps"
	"slices"
)

// formatReader reads an activity log as FORMAT.md says and shares nothing with the
// package: what both make of the same bytes must be the same.
type formatReader struct {
	f        io.ReaderAt
	replica  [16]byte
	instance [16]byte // of the superblock
}

type formatRecord struct {
	tx                 uint64
	lost               bool
	slots              uint16
	says               []formatSlot // the last one of a slot counts
	instance, previous [16]byte
}

type formatSlot struct {
	slot   uint16
	region uint32
}

var errLost = errors.New("the activity log is lost")

// page returns the record of page n. kind is "unreadable", "zero", "damaged" or "whole".
func (r *formatReader) page(n int) (rec *formatRecord, kind string, err error) {
	b := make([]byte, 4096)
	if _, err := r.f.ReadAt(b, int64(n)*4096); err != nil {
		return nil, "unreadable", nil
	}
	if bytes.Count(b, []byte{0}) == len(b) {
		return nil, "zero", nil
	}
	sum := crc32.New(crc32.MakeTable(crc32.Castagnoli))
	sum.Write(r.replica[:])
	sum.Write(b[12:])
	if string(b[:8]) != "TNDMALOG" || binary.LittleEndian.Uint32(b[8:]) != sum.Sum32() {
		return nil, "damaged", nil
	}
	u16 := func(at int) uint16 { return binary.LittleEndian.Uint16(b[at:]) }
	u32 := func(at int) uint32 { return binary.LittleEndian.Uint32(b[at:]) }
	rec = &formatRecord{
		tx: binary.LittleEndian.Uint64(b[16:]), lost: u16(14) == 1, slots: u16(56),
		instance: [16]byte(b[4048:4064]), previous: [16]byte(b[4064:4080]),
	}
	updates, first, context := u16(58), u16(60), u16(62)
	if u16(12) != 1 || u16(14) > 1 || [16]byte(b[24:40]) != r.replica || rec.slots < 1 || rec.slots > 16384 ||
		updates > 128 || context > 740 || int(first)+int(context) > int(rec.slots) {
		return nil, "", errLost
	}
	rec.says = make([]formatSlot, 0, context+updates)
	for i := range int(context) {
		rec.says = append(rec.says, formatSlot{first + uint16(i), u32(1088 + 4*i)})
	}
	for i := range int(updates) {
		slot, region := u16(64+8*i), u32(64+8*i+4)
		if slot >= rec.slots {
			return nil, "", errLost
		}
		rec.says = append(rec.says, formatSlot{slot, region})
	}
	return rec, "whole", nil
}

// read returns the active regions.
func (r *formatReader) read() (active []uint32, lost bool, err error) {
	var at [256]*formatRecord
	var kinds [512]string
	var top *formatRecord
	for n := range 512 {
		rec, kind, err := r.page(n)
		if err != nil {
			return nil, false, err
		}
		kinds[n] = kind
		if rec == nil || rec.tx%256 != uint64(n%256) {
			continue
		}
		if old := at[n%256]; old == nil || rec.tx > old.tx {
			at[n%256] = rec
		}
		if top == nil || rec.tx > top.tx {
			top = rec
		}
	}
	if top == nil {
		return nil, false, errLost
	}
	if p := (top.tx + 1) % 256; kinds[p] == "unreadable" && kinds[p+256] == "unreadable" {
		return nil, false, errLost
	}
	if p := (top.tx + 2) % 256; top.tx+2 <= 256 {
		if kinds[p] != "zero" || kinds[p+256] != "zero" {
			return nil, false, errLost
		}
	} else if at[p] == nil || at[p].tx != top.tx+2-256 {
		return nil, false, errLost
	}
	told := make(map[uint16]uint32)
	for tx := top.tx; len(told) < int(top.slots); tx-- {
		rec := at[tx%256]
		if rec == nil || rec.tx != tx {
			return nil, false, errLost
		}
		says := rec.says
		for slot := rec.slots; slot < top.slots; slot++ {
			says = append(says, formatSlot{slot, 0xffffffff})
		}
		for _, s := range slices.Backward(says) {
			if _, known := told[s.slot]; !known && s.slot < top.slots {
				told[s.slot] = s.region
			}
		}
	}
	set := make(map[uint32]bool)
	for _, region := range told {
		if region == 0xffffffff {
			continue
		}
		if set[region] {
			return nil, false, errLost
		}
		set[region] = true
	}
	if top.instance != r.instance && top.previous != r.instance {
		return nil, false, errLost
	}
	return slices.Sorted(maps.Keys(set)), top.lost, nil
}
