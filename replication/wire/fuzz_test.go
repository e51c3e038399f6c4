package wire

import (
	"bytes"
	"testing"

	"github.com/tandem-storage/tandem/replication"
)

// FuzzDecode: whatever comes, the Decoder does not panic, takes no more memory
// than what arrived accounts for, and what it accepts encodes to the same again.
func FuzzDecode(f *testing.F) {
	for _, m := range every() {
		if len(m.Data) <= 8192 {
			f.Add(frame(f, m), uint16(20), false)
		}
	}
	f.Add([]byte{}, uint16(0), false)
	f.Fuzz(func(t *testing.T, b []byte, cut uint16, mend bool) {
		if mend && len(b) >= HeaderLen { // get past the header's checksum
			b = bytes.Clone(b)
			b[0], b[1], b[2] = 0x44, 0x54, 1
			putCRC(b)
		}
		n := min(int(cut), len(b))
		ms, _ := decode(b[:n], b[n:]) // with garbage behind them, messages are still messages
		mem := 0
		for i := range ms {
			m := &ms[i]
			mem += HeaderLen + len(m.Data)
			if m.Length < 0 || m.Length > MaxSpan || m.Offset < 0 || len(m.Data) > MaxPayload || len(m.Sums) != sectors(len(m.Data)) {
				t.Errorf("accepted %+v", m)
			}
			if m.Status != replication.StatusCRC { // damaged ones have lost their payload
				again, err := decode(frame(t, *m))
				if err != nil || len(again) != 1 || !bytes.Equal(again[0].Data, m.Data) || again[0].Seq != m.Seq {
					t.Errorf("%+v becomes %+v, %v", m, again, err)
				}
			}
		}
		if mem > len(b) {
			t.Errorf("%d bytes of messages from %d", mem, len(b))
		}
	})
}

// FuzzHello feeds the bodies.
func FuzzHello(f *testing.F) {
	f.Add(HelloBody(replication.Hello{}, Local))
	f.Add(HelloAckBody(replication.HelloAck{}, Agreed{Version: 1}))
	f.Fuzz(func(t *testing.T, b []byte) {
		if h, p, err := ParseHello(b); err == nil && !bytes.Equal(HelloBody(h, p)[8:], b[8:helloLen]) {
			t.Errorf("%x is not what was parsed", b)
		}
		if a, g, err := ParseHelloAck(b, Local); err == nil && !bytes.Equal(HelloAckBody(a, g)[8:], b[8:helloAckLen]) {
			t.Errorf("%x is not what was parsed", b)
		}
	})
}

func BenchmarkDecode4k(b *testing.B)   { benchmarkDecode(b, 4<<10) }
func BenchmarkDecode128k(b *testing.B) { benchmarkDecode(b, 128<<10) }

func benchmarkDecode(b *testing.B, size int) {
	d := NewDecoder(endless{frame(b, replication.Message{Type: replication.MsgWrite, Length: int64(size), Data: pattern(size)}), new(int)})
	b.SetBytes(int64(size))
	b.ReportAllocs()
	for b.Loop() {
		m, err := d.Next()
		if err != nil {
			b.Fatal(err)
		}
		m.Buf.Release()
	}
}
