package wire

import (
	"bytes"
	"encoding/hex"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/tandem-storage/tandem/datapath/block"
	"github.com/tandem-storage/tandem/internal/testseed"
	"github.com/tandem-storage/tandem/replication"
)

// frame encodes m with its payload.
func frame(t testing.TB, m replication.Message) []byte {
	t.Helper()
	b, err := AppendHead(nil, &m)
	if err != nil {
		t.Fatal(err)
	}
	if len(b) != HeadLen(&m) {
		t.Errorf("head of %v has %d bytes, HeadLen says %d", m.Type, len(b), HeadLen(&m))
	}
	return append(b, m.Data...)
}

// pieces cuts b at random places, now and then leaving empty pieces.
func pieces(rng *rand.Rand, b []byte) [][]byte {
	var out [][]byte
	for len(b) > 0 {
		n := rng.IntN(len(b) + 1)
		out = append(out, b[:n])
		b = b[n:]
	}
	return out
}

// piecewise delivers one piece a Read.
type piecewise [][]byte

func (p *piecewise) Read(b []byte) (int, error) {
	if len(*p) == 0 {
		return 0, io.EOF
	}
	n := copy(b, (*p)[0])
	if (*p)[0] = (*p)[0][n:]; len((*p)[0]) == 0 {
		*p = (*p)[1:]
	}
	return n, nil
}

// decode gives the messages of b as plain memory, without Buf, up to the first
// error, which is nil if b ends with a frame.
func decode(b ...[]byte) ([]replication.Message, error) {
	in := piecewise(b)
	d := NewDecoder(&in)
	var ms []replication.Message
	for {
		m, err := d.Next()
		if errors.Is(err, io.EOF) {
			return ms, nil
		}
		if err != nil {
			return ms, err
		}
		if m.Buf != nil {
			m.Data = bytes.Clone(m.Data)
			m.Buf.Release()
			m.Buf = nil
		}
		ms = append(ms, m)
	}
}

func pattern(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*7 + i>>8)
	}
	return b
}

// every is one message of each type and shape.
func every() []replication.Message {
	hello := HelloBody(replication.Hello{
		Volume: replication.VolumeID{0xaa}, Replica: replication.ReplicaID{0xbb}, AttachID: replication.AttachID{0xcc}, Epoch: 7, Gen: 9,
	}, Local)
	ack := HelloAckBody(replication.HelloAck{Boot: replication.BootID{1}, Instance: replication.UUID{2}, Credit: 32 << 20}, Agreed{Version: 1})
	ms := []replication.Message{
		{Type: replication.MsgHello, Data: hello},
		{Type: replication.MsgHelloAck, Data: ack},
		{Type: replication.MsgWrite, Flags: replication.FlagFUA, Seq: 1 << 40, Offset: 1 << 45, Length: 8192, StableSeq: 3, Data: pattern(8192)},
		{Type: replication.MsgWrite, Seq: 1, Length: MaxPayload, Data: pattern(MaxPayload)},
		{Type: replication.MsgZero, Flags: replication.FlagNoHole, Offset: 4096, Length: MaxSpan},
		{Type: replication.MsgTrim, Length: 4096},
		{Type: replication.MsgFlush, Seq: 5},
		{Type: replication.MsgAck, Flags: replication.FlagStable, Seq: 5, Credit: 1<<32 - 1},
		{Type: replication.MsgNack, Seq: 6, Status: replication.StatusDomain},
		{Type: replication.MsgRead, Seq: 7, Length: 4096},
		{Type: replication.MsgData, Seq: 7, Length: 4096, Data: pattern(4096)},
		{Type: replication.MsgStable, StableSeq: 1<<64 - 1},
		{Type: replication.MsgHashReq, Length: 1 << 20},
		{Type: replication.MsgHash, Length: replication.ResyncBlock + 4096, Data: pattern(2 * replication.HashLen)},
		{Type: replication.MsgHash, Length: MaxSpan, Data: pattern(MaxSpan / replication.ResyncBlock * replication.HashLen)},
		{Type: replication.MsgResyncWrite, Length: replication.ResyncBlock, Data: pattern(replication.ResyncBlock)},
		{Type: replication.MsgResyncWrite, Length: replication.ResyncBlock},
		{Type: replication.MsgClose},
		{Type: replication.MsgLease, Offset: 1<<62 + 1},
		{Type: replication.MsgGrant, Offset: 1<<62 + 1, Length: 3000},
		{Type: replication.MsgRead, Flags: replication.FlagAsIs, Seq: 7, Length: 4096},
		{Type: replication.MsgExamine, Seq: 8, Offset: 4096, Length: MaxPayload},
		{Type: replication.MsgSnapCut, Seq: 9, Offset: 1 << 30, Length: 16, Data: pattern(16)},
		{Type: replication.MsgFindings, Seq: 8, Offset: 4096, Length: 12288, Data: pattern(3 * replication.FindingLen)},
	}
	for i := range ms {
		ms[i].Session, ms[i].Term = 0x1122334455667788, 42
	}
	return ms
}

// TestRoundTrip sends every message in one stream, cut anywhere.
func TestRoundTrip(t *testing.T) {
	seed := testseed.Of(t)
	rng := rand.New(rand.NewPCG(seed, 0))
	var batch []byte
	want := every()
	for i := range want {
		batch = append(batch, frame(t, want[i])...)
		want[i].Sums = Sums(nil, want[i].Data)
	}
	for range 20 {
		got, err := decode(pieces(rng, batch)...)
		if err != nil {
			t.Fatal(err)
		}
		if len(got) != len(want) {
			t.Fatalf("%d messages, want %d", len(got), len(want))
		}
		for i := range want {
			if !reflect.DeepEqual(got[i], want[i]) {
				t.Errorf("message %d: got %v %+v", i, got[i].Type, got[i])
			}
		}
	}
}

// TestPayload says that payloads come aligned, with one reference, in own memory.
func TestPayload(t *testing.T) {
	b := frame(t, replication.Message{Type: replication.MsgWrite, Length: 4096, Data: pattern(4096)})
	m, err := NewDecoder(bytes.NewReader(b)).Next()
	if err != nil {
		t.Fatal(err)
	}
	clear(b)
	if !bytes.Equal(m.Data, pattern(4096)) {
		t.Error("payload refers to what was read")
	}
	if &m.Data[0] != &m.Buf.Bytes()[0] {
		t.Error("payload does not begin at its buffer")
	}
	m.Buf.Release()
	defer func() {
		if recover() == nil {
			t.Error("there was a second reference")
		}
	}()
	m.Buf.Release()
}

// TestGivenSums says that checksums of the sender's caller travel as they are, so
// that damage before the sender is found by the receiver.
func TestGivenSums(t *testing.T) {
	data := pattern(8192)
	m := replication.Message{Type: replication.MsgWrite, Length: 8192, Data: data, Sums: Sums(nil, data)}
	data[5000] ^= 1
	got, err := decode(frame(t, m))
	if err != nil || got[0].Status != replication.StatusCRC || got[0].Data != nil {
		t.Errorf("damage was not noticed: %+v, %v", got, err)
	}
}

// TestDamage flips every bit of a frame with a payload in turn: nothing gets through.
func TestDamage(t *testing.T) {
	m := replication.Message{Type: replication.MsgHash, Seq: 77, Length: replication.ResyncBlock, Data: pattern(replication.HashLen)}
	behind := replication.Message{Type: replication.MsgFlush, Seq: 78}
	good := frame(t, m)
	head := len(good)
	good = append(good, frame(t, behind)...)
	for bit := range head * 8 {
		b := bytes.Clone(good)
		b[bit/8] ^= 1 << (bit % 8)
		got, err := decode(b)
		if bit/8 < HeaderLen {
			want := ErrHeaderCRC
			if bit/8 < 2 {
				want = ErrFrame
			}
			if !errors.Is(err, want) || got != nil {
				t.Errorf("bit %d of the header: %v, %v; want %v", bit, got, err, want)
			}
			continue
		}
		if err != nil || len(got) != 2 || got[0].Status != replication.StatusCRC || got[0].Data != nil || got[0].Seq != 77 || got[1].Seq != 78 {
			t.Errorf("bit %d: %v, %v; want a message with status crc and the next one whole", bit, got, err)
		}
	}
}

// TestTruncated ends a stream everywhere but between frames.
func TestTruncated(t *testing.T) {
	b := frame(t, replication.Message{Type: replication.MsgHash, Length: replication.ResyncBlock, Data: pattern(replication.HashLen)})
	for n := 1; n < len(b); n++ {
		if got, err := decode(b[:n]); !errors.Is(err, io.ErrUnexpectedEOF) || got != nil {
			t.Errorf("cut at %d: %v, %v", n, got, err)
		}
	}
	if got, err := decode(); got != nil || err != nil {
		t.Errorf("empty stream: %v, %v", got, err)
	}
}

// forge is a frame with a header that AppendHead would not make, checksum right.
func forge(change func(h []byte)) []byte {
	b := make([]byte, HeaderLen)
	putHeader(b, &replication.Message{Type: replication.MsgFlush}, 0)
	change(b)
	putCRC(b)
	return b
}

func putCRC(h []byte) {
	c := Checksum(h[:offCRC])
	h[offCRC], h[offCRC+1], h[offCRC+2], h[offCRC+3] = byte(c), byte(c>>8), byte(c>>16), byte(c>>24)
}

func TestHostile(t *testing.T) {
	put16 := func(at int, v uint16) func([]byte) {
		return func(h []byte) { h[at], h[at+1] = byte(v), byte(v>>8) }
	}
	set := func(at int, v byte) func([]byte) { return func(h []byte) { h[at] = v } }
	tests := []struct {
		name   string
		change func(h []byte)
		want   error
	}{
		{"version 0", set(offVersion, 0), ErrVersion},
		{"version from the future", set(offVersion, byte(MaxVersion)+1), ErrVersion},
		{"nack from the future", func(h []byte) { set(offVersion, byte(MaxVersion)+1)(h); set(offType, byte(replication.MsgNack))(h) }, nil},
		{"type 0", set(offType, 0), ErrUnknownType},
		{"unknown type", set(offType, 99), ErrUnknownType},
		{"reserved type", set(offType, 15), ErrUnknownType},
		{"unknown flag", put16(offFlags, 1<<7), ErrFrame},
		{"unknown flag that may be ignored", put16(offFlags, 1<<15), nil},
		{"payload of what has none", put16(offSums, 1), ErrFrame},
		{"payload beyond the limit", put16(offSums, MaxSums+1), ErrFrame},
		{"payload of the largest number", put16(offSums, 0xffff), ErrFrame},
		{"short by a sector", func(h []byte) { put16(offSums, 1)(h); put16(offShort, block.SectorSize)(h) }, ErrFrame},
		{"short of nothing", put16(offShort, 1), ErrFrame},
		{"negative offset", set(offOffset+7, 0x80), ErrFrame},
		{"length beyond the limit", set(offLength+3, 0xff), ErrFrame},
		{"write without payload", set(offType, byte(replication.MsgWrite)), ErrFrame},
		{"hello without payload", set(offType, byte(replication.MsgHello)), ErrFrame},
		{"hash without payload", set(offType, byte(replication.MsgHash)), ErrFrame},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := decode(forge(tt.change))
			if !errors.Is(err, tt.want) {
				t.Errorf("got %v, %v; want %v", got, err, tt.want)
			}
		})
	}
}

// TestIgnorable: an unknown type with the bit is skipped, payload and all.
func TestIgnorable(t *testing.T) {
	unknown := make([]byte, HeaderLen)
	putHeader(unknown, &replication.Message{Type: ignorable | 5, Length: 1}, 5000)
	unknown = append(unknown, make([]byte, 8+5000)...)
	b := append(unknown, frame(t, replication.Message{Type: replication.MsgFlush, Seq: 3})...)
	got, err := decode(b[:100], b[100:])
	if err != nil || len(got) != 1 || got[0].Seq != 3 {
		t.Errorf("got %v, %v", got, err)
	}
	if got, err := decode(unknown); err != nil || len(got) != 0 {
		t.Errorf("alone: got %v, %v", got, err)
	}
}

// TestReady: it is said of whole frames only, whatever is behind them, and of what
// will be an error.
func TestReady(t *testing.T) {
	whole := frame(t, replication.Message{Type: replication.MsgWrite, Length: 4096, Data: pattern(4096)})
	flush := frame(t, replication.Message{Type: replication.MsgFlush})
	long := frame(t, replication.Message{Type: replication.MsgWrite, Length: 2 * readLen, Data: pattern(2 * readLen)})
	for name, tt := range map[string]struct {
		behind []byte
		ready  bool
	}{
		"nothing":           {nil, false},
		"part of a header":  {flush[:HeaderLen-1], false},
		"part of a payload": {whole[:len(whole)-1], false},
		"a payload":         {whole, true},
		"no payload":        {flush, true},
		"a long payload":    {long[:8<<10], false},
		"garbage":           {make([]byte, HeaderLen), true},
	} {
		t.Run(name, func(t *testing.T) {
			in := piecewise{append(bytes.Clone(flush), tt.behind...)}
			d := NewDecoder(&in)
			if d.Ready() {
				t.Error("ready before anything was read")
			}
			if _, err := d.Next(); err != nil {
				t.Fatal(err)
			}
			if d.Ready() != tt.ready {
				t.Errorf("ready is %v", d.Ready())
			}
		})
	}
}

// TestErrorStays: behind an error nothing is believed any more, and a message
// whose payload did not come leaves no buffer behind.
func TestErrorStays(t *testing.T) {
	good := frame(t, replication.Message{Type: replication.MsgFlush})
	bad := bytes.Clone(good)
	bad[offSeq] ^= 1
	d := NewDecoder(bytes.NewReader(append(bad, good...)))
	for range 2 {
		if m, err := d.Next(); !errors.Is(err, ErrHeaderCRC) {
			t.Errorf("got %v, %v", m, err)
		}
		if !d.Ready() {
			t.Error("the error is not ready")
		}
	}
	b := frame(t, replication.Message{Type: replication.MsgWrite, Length: 4096, Data: pattern(4096)})
	if m, err := NewDecoder(bytes.NewReader(b[:len(b)-1])).Next(); !errors.Is(err, io.ErrUnexpectedEOF) || m.Buf != nil {
		t.Errorf("got %+v, %v", m, err)
	}
}

func TestAppendHeadRefuses(t *testing.T) {
	tests := map[string]replication.Message{
		"no type":             {},
		"unknown type":        {Type: 99},
		"unknown flag":        {Type: replication.MsgFlush, Flags: 1 << 9},
		"payload too long":    {Type: replication.MsgWrite, Length: MaxPayload + 1, Data: make([]byte, MaxPayload+1)},
		"payload and length":  {Type: replication.MsgWrite, Length: 4096, Data: make([]byte, 8192)},
		"payload of a flush":  {Type: replication.MsgFlush, Data: make([]byte, 1)},
		"write of nothing":    {Type: replication.MsgWrite},
		"zero beyond a GiB":   {Type: replication.MsgZero, Length: MaxSpan + 1},
		"negative length":     {Type: replication.MsgZero, Length: -1},
		"negative offset":     {Type: replication.MsgZero, Length: 1, Offset: -1},
		"checksums missing":   {Type: replication.MsgWrite, Length: 8192, Data: make([]byte, 8192), Sums: []uint32{1}},
		"checksums of nought": {Type: replication.MsgFlush, Sums: []uint32{1}},
		"hashes missing":      {Type: replication.MsgHash, Length: 1 << 20, Data: make([]byte, 16)},
		"hello too long":      {Type: replication.MsgHello, Data: make([]byte, maxBody+1)},
	}
	for name, m := range tests {
		t.Run(name, func(t *testing.T) {
			dst, err := AppendHead([]byte("x"), &m)
			if !errors.Is(err, ErrMessage) || string(dst) != "x" {
				t.Errorf("got %d bytes, %v", len(dst), err)
			}
		})
	}
}

// TestGolden holds the bytes on the wire: a change here breaks running clusters.
// Rewrite the file with UPDATE_GOLDEN=1 only for a new version.
func TestGolden(t *testing.T) {
	var sb strings.Builder
	for _, m := range every() {
		if len(m.Data) > block.SectorSize+100 {
			continue
		}
		b := frame(t, m)
		if len(m.Data) > maxBody/2 {
			b = b[:HeadLen(&m)] // the payload is as it is
		}
		sb.WriteString("# " + m.Type.String() + "\n" + hex.Dump(b) + "\n")
	}
	const file = "testdata/frames.golden"
	if os.Getenv("UPDATE_GOLDEN") != "" {
		if err := os.WriteFile(file, []byte(sb.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if sb.String() != string(want) {
		t.Errorf("frames differ from %s:\n%s", file, sb.String())
	}
}

func TestDecodeAllocs(t *testing.T) {
	b := frame(t, replication.Message{Type: replication.MsgWrite, Length: 4096, Data: pattern(4096)})
	d := NewDecoder(endless{b, new(int)})
	run := func() {
		m, err := d.Next()
		if err != nil {
			t.Fatal(err)
		}
		m.Buf.Release()
	}
	run()
	// The checksums: one slab for sumsSlab frames.
	if n := testing.AllocsPerRun(10*sumsSlab, run); n > 0.1 {
		t.Errorf("%v allocations a frame", n)
	}
}

// endless delivers the same bytes again and again.
type endless struct {
	b  []byte
	at *int
}

func (e endless) Read(p []byte) (int, error) {
	n := copy(p, e.b[*e.at:])
	*e.at = (*e.at + n) % len(e.b)
	return n, nil
}
