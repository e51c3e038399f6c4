package block

import (
	"errors"
	"math"
	"testing"
)

const allCaps = CapFlush | CapFUA | CapDiscard | CapWriteZeroes

func TestRequestCheck(t *testing.T) {
	const size = 8 << 20
	buf := make([]byte, MaxIO+4096)
	full := Info{Size: size, BlockSize: 4096, Caps: allCaps}
	small := Info{Size: size, BlockSize: 512, Caps: allCaps}
	plain := Info{Size: size, BlockSize: 4096}
	data := func(op Op, off int64, n int, f Flags) Request {
		return Request{Op: op, Off: off, Len: int64(n), Data: buf[:n], Flags: f}
	}
	for _, c := range []struct {
		name string
		info Info
		req  Request
		want error
	}{
		{"read", full, data(OpRead, 0, 4096, 0), nil},
		{"write", full, data(OpWrite, size-4096, 4096, 0), nil},
		{"write fua", full, data(OpWrite, 0, 4096, FUA), nil},
		{"largest", full, data(OpWrite, 0, MaxIO, 0), nil},
		{"512-byte block", small, data(OpWrite, 512, 1536, 0), nil},
		{"flush", full, Request{Op: OpFlush}, nil},
		{"flush without a cache", plain, Request{Op: OpFlush}, nil},
		{"whole device zeroed", full, Request{Op: OpWriteZeroes, Len: size}, nil},
		{"whole device discarded", full, Request{Op: OpDiscard, Len: size}, nil},

		{"too large", full, data(OpRead, 0, MaxIO+4096, 0), ErrTooLarge},
		{"offset misaligned", full, data(OpWrite, 512, 4096, 0), ErrMisaligned},
		{"length misaligned", full, data(OpWrite, 0, 512, 0), ErrMisaligned},
		{"discard misaligned", full, Request{Op: OpDiscard, Off: 1, Len: 4096}, ErrMisaligned},
		{"zeroes misaligned", full, Request{Op: OpWriteZeroes, Len: 4097}, ErrMisaligned},
		{"past the end", full, data(OpRead, size, 4096, 0), ErrOutOfRange},
		{"across the end", full, data(OpWrite, size-4096, 8192, 0), ErrOutOfRange},
		{"offset overflow", full, Request{Op: OpDiscard, Off: math.MaxInt64 &^ 4095, Len: 8192}, ErrOutOfRange},
		{"length overflow", full, Request{Op: OpWriteZeroes, Off: 4096, Len: math.MaxInt64 &^ 4095}, ErrOutOfRange},
		{"negative offset", full, data(OpRead, -4096, 4096, 0), ErrInvalid},
		{"negative length", full, Request{Op: OpDiscard, Off: 4096, Len: -4096}, ErrInvalid},
		{"empty", full, Request{Op: OpRead}, ErrInvalid},
		{"empty discard", full, Request{Op: OpDiscard}, ErrInvalid},
		{"data shorter than length", full, Request{Op: OpWrite, Len: 8192, Data: buf[:4096]}, ErrInvalid},
		{"data longer than length", full, Request{Op: OpRead, Len: 4096, Data: buf[:8192]}, ErrInvalid},
		{"no data", full, Request{Op: OpRead, Len: 4096}, ErrInvalid},
		{"too few sums", full, Request{Op: OpWrite, Len: 8192, Data: buf[:8192], Sums: make([]uint32, 1)}, ErrInvalid},
		{"too many sums", full, Request{Op: OpWrite, Len: 4096, Data: buf[:4096], Sums: make([]uint32, 2)}, ErrInvalid},
		{"flush with a range", full, Request{Op: OpFlush, Len: 4096}, ErrInvalid},
		{"flush with an offset", full, Request{Op: OpFlush, Off: 4096}, ErrInvalid},
		{"op zero", full, Request{}, ErrNotSupported},
		{"unknown op", full, Request{Op: 99, Len: 4096}, ErrNotSupported},
		{"no discard", plain, Request{Op: OpDiscard, Len: 4096}, ErrNotSupported},
		{"no write zeroes", plain, Request{Op: OpWriteZeroes, Len: 4096}, ErrNotSupported},
		{"no fua", plain, data(OpWrite, 0, 4096, FUA), ErrNotSupported},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := c.req.Check(c.info)
			if !errors.Is(err, c.want) {
				t.Fatalf("got %v, want %v", err, c.want)
			}
			if c.want == nil {
				return
			}
			var re *RequestError
			if !errors.As(err, &re) || re.Op != c.req.Op || re.Off != c.req.Off || re.Len != c.req.Len {
				t.Fatalf("%v does not name the request %+v", err, c.req)
			}
		})
	}
}

func TestOpString(t *testing.T) {
	for op, want := range map[Op]string{
		OpRead: "read", OpWrite: "write", OpWriteZeroes: "write-zeroes",
		OpDiscard: "discard", OpFlush: "flush", 42: "op(42)",
	} {
		if got := op.String(); got != want {
			t.Errorf("Op(%d).String() = %q, want %q", uint8(op), got, want)
		}
	}
}
