package backing

import (
	"encoding/binary"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// FIEMAP, which x/sys/unix lacks: linux/fiemap.h.
const (
	fsIocFiemap    = 0xc020660b
	fiemapHead     = 32
	fiemapExtent   = 56
	fiemapBatch    = 512
	extentLast     = 0x0001
	extentUnknown  = 0x0002 | 0x0004 | 0x0008 // not on the disk yet, or not at one place
	extentNoData   = 0x0800                   // unwritten: reads as zeroes
	extentIsShared = 0x2000
)

// extent is a piece of a file that is on the disk and is not a hole.
type extent struct {
	off, length int64 // in the file, bytes
	place       int64 // on the file system, bytes; -1 if it is not known
	shared      bool  // other files have it, too
}

// extentsOf lists the extents of the first length bytes of f, in ascending order. Nobody changes f meanwhile.
func extentsOf(f *os.File, length int64) (list []extent, err error) {
	le := binary.LittleEndian
	buf := make([]byte, fiemapHead+fiemapBatch*fiemapExtent)
	for at := int64(0); at < length; {
		clear(buf[:fiemapHead])
		le.PutUint64(buf, uint64(at))
		le.PutUint64(buf[8:], uint64(length-at))
		le.PutUint32(buf[24:], fiemapBatch)
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), fsIocFiemap, uintptr(unsafe.Pointer(&buf[0])))
		if errno == unix.EINTR {
			continue
		}
		if errno != 0 {
			return nil, &os.PathError{Op: "fiemap", Path: f.Name(), Err: errno}
		}
		n := int(le.Uint32(buf[20:]))
		if n == 0 {
			return list, nil
		}
		var flags uint32
		for i := range n {
			p := buf[fiemapHead+i*fiemapExtent:]
			e := extent{off: int64(le.Uint64(p)), place: int64(le.Uint64(p[8:])), length: int64(le.Uint64(p[16:]))}
			flags = le.Uint32(p[40:])
			at = e.off + e.length
			e.length = min(e.length, length-e.off)
			e.shared = flags&extentIsShared != 0
			if flags&extentUnknown != 0 {
				e.place = -1
			}
			if flags&extentNoData == 0 && e.length > 0 {
				list = append(list, e)
			}
		}
		if flags&extentLast != 0 {
			return list, nil
		}
	}
	return list, nil
}

// cover says what of list, whose first extents end before x, is at x: where on the disk, if there is anything, and up to
// where that goes, at most limit. rest has no extents that end before x.
func cover(list []extent, x, limit int64) (place int64, there bool, end int64, rest []extent) {
	for len(list) > 0 && list[0].off+list[0].length <= x {
		list = list[1:]
	}
	switch {
	case len(list) == 0:
		return 0, false, limit, list
	case list[0].off > x:
		return 0, false, min(list[0].off, limit), list
	}
	e := list[0]
	if place = -1; e.place >= 0 {
		place = e.place + x - e.off
	}
	return place, true, min(e.off+e.length, limit), list
}

// differ calls f for the ranges of [0, length) in which two files do not have the same blocks of the disk, in ascending order, until it
// returns false; differ returns that.
func differ(a, b []extent, length int64, f func(off, length int64) bool) bool {
	from := int64(-1) // where a range that differs began
	for x := int64(0); x < length; {
		var placeA, placeB, endA, endB int64
		var inA, inB bool
		placeA, inA, endA, a = cover(a, x, length)
		placeB, inB, endB, b = cover(b, x, length)
		same := inA == inB && (!inA || placeA == placeB && placeA >= 0)
		switch {
		case !same && from < 0:
			from = x
		case same && from >= 0:
			if !f(from, x-from) {
				return false
			}
			from = -1
		}
		x = min(endA, endB)
	}
	return from < 0 || f(from, length-from)
}
