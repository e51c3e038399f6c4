package order

import (
	"bytes"
	"encoding/binary"
)

// BlockSize is what a writer writes at least, bytes.
const BlockSize = 4096

// Places is how many blocks of a device are written, FilesInUse how many files of a directory.
const (
	Places     = 2048
	FilesInUse = 24
)

// Offset is where on a device of that size a place is, bytes: the places are spread over its four quarters.
func Offset(place, size int64) int64 {
	const run = Places / 4
	return place/run*(size/4) + place%run*BlockSize
}

// Zeroes reports whether that version of a block is zeroes.
func Zeroes(version int64) bool { return version%8 == 0 }

const magic = 0x3a766d61646e6574

// Fill makes a version of a block, or of a piece of a file.
func Fill(p []byte, seed uint64, place, version int64) {
	if Zeroes(version) {
		clear(p)
		return
	}
	FillFile(p, seed, place, version)
}

// FillFile is Fill for a version that is never zeroes.
func FillFile(p []byte, seed uint64, place, version int64) {
	x := seed ^ uint64(place)<<40 ^ uint64(version)
	for i := 0; i+8 <= len(p); i += 8 {
		x += 0x9e3779b97f4a7c15 // SplitMix64
		z := (x ^ x>>30) * 0xbf58476d1ce4e5b9
		z = (z ^ z>>27) * 0x94d049bb133111eb
		binary.LittleEndian.PutUint64(p[i:], z^z>>31)
	}
	binary.LittleEndian.PutUint64(p, magic)
	binary.LittleEndian.PutUint64(p[8:], seed)
	binary.LittleEndian.PutUint64(p[16:], uint64(place))
	binary.LittleEndian.PutUint64(p[24:], uint64(version))
}

// Damaged is what Version says of a content that nobody wrote there.
const Damaged = -1

// Version tells which version of a place p is: 0 for zeroes, Damaged for what no writer of the seed wrote there.
func Version(p []byte, seed uint64, place int64) int64 {
	want := make([]byte, len(p))
	if bytes.Equal(p, want) {
		return 0
	}
	if len(p) < 32 {
		return Damaged
	}
	v := int64(binary.LittleEndian.Uint64(p[24:]))
	FillFile(want, seed, place, v)
	if v <= 0 || !bytes.Equal(p, want) {
		return Damaged
	}
	return v
}
