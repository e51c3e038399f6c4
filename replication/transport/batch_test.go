package transport

import (
	"errors"
	"testing"

	"google.golang.org/grpc/mem"

	"github.com/tandem-storage/tandem/datapath/block"
	"github.com/tandem-storage/tandem/replication"
	pb "github.com/tandem-storage/tandem/replication/replicationpb"
	"github.com/tandem-storage/tandem/replication/wire"
)

// released says whether the reference that was handed over has been given up: the
// one of the test, which is used up, is the last.
func released(b *block.Buffer) (last bool) {
	defer func() { last = recover() != nil }()
	b.Release() // the test's
	b.Release() // panics if it is free
	return false
}

func held(n int) (*block.Buffer, replication.Message) {
	b := block.NewBuffer(n)
	b.Retain()
	return b, replication.Message{Type: replication.MsgWrite, Length: int64(n), Data: b.Bytes(), Buf: b}
}

// TestBatchLifetime: payloads are kept until gRPC frees the last of its
// references, and given up then.
func TestBatchLifetime(t *testing.T) {
	for _, n := range []int{inlineLen, inlineLen + 1, 4096, wire.MaxPayload} {
		buf, m := held(n)
		var b outBatch
		if err := b.add(&m); err != nil {
			t.Fatal(err)
		}
		s := b.take()
		if want := wire.HeadLen(&m) + n; s.Len() != want {
			t.Errorf("%d bytes, want %d", s.Len(), want)
		}
		s.Ref() // as the stream does
		s.Free()
		var in inBatch
		in.decode(s)
		if in.err != nil || len(in.msgs) != 1 || in.msgs[0].Status != replication.StatusOK || len(in.msgs[0].Data) != n {
			t.Fatalf("payload of %d: %v, %v", n, in.msgs, in.err)
		}
		in.msgs[0].Buf.Release()
		s.Free()
		if !released(buf) {
			t.Errorf("a payload of %d is kept for ever", n)
		}
	}
}

func TestBatchDrop(t *testing.T) {
	buf, m := held(4096)
	small, ms := held(512)
	var b outBatch
	for _, m := range []replication.Message{m, ms} {
		if err := b.add(&m); err != nil {
			t.Fatal(err)
		}
	}
	b.drop()
	bad, mb := held(4096)
	mb.Length = 3
	if err := b.add(&mb); !errors.Is(err, wire.ErrMessage) {
		t.Errorf("got %v", err)
	}
	b.drop()
	for i, buf := range []*block.Buffer{buf, small, bad} {
		if !released(buf) {
			t.Errorf("buffer %d is kept for ever", i)
		}
	}
	if !b.empty() {
		t.Error("not empty")
	}
}

// TestCodecStrangers: what is not a session cannot use the codec.
func TestCodecStrangers(t *testing.T) {
	if s, err := (codec{}).Marshal(&pb.SealRequest{}); !errors.Is(err, errNotFrames) {
		t.Errorf("Marshal: %v, %v", s, err)
	}
	if err := (codec{}).Unmarshal(mem.BufferSlice{mem.SliceBuffer("x")}, &pb.SealRequest{}); !errors.Is(err, errNotFrames) {
		t.Errorf("Unmarshal: %v", err)
	}
}

// FuzzInBatch feeds what arrives as a gRPC message.
func FuzzInBatch(f *testing.F) {
	_, m := held(2000)
	var b outBatch
	if err := b.add(&m); err != nil {
		f.Fatal(err)
	}
	f.Add(b.take().Materialize(), 100)
	f.Fuzz(func(t *testing.T, p []byte, cut int) {
		cut = min(max(cut, 0), len(p))
		var in inBatch
		if err := (codec{}).Unmarshal(mem.BufferSlice{mem.SliceBuffer(p[:cut]), mem.SliceBuffer(p[cut:])}, &in); err != nil {
			t.Fatal(err)
		}
		if in.err != nil && len(in.msgs) != 0 {
			t.Errorf("%d messages and %v", len(in.msgs), in.err)
		}
		releaseAll(in.msgs)
	})
}

// BenchmarkBatch is the sender's share: 32 writes of 4 KiB.
func BenchmarkBatch(b *testing.B) {
	buf := block.NewBuffer(4096)
	defer buf.Release()
	sums := wire.Sums(nil, buf.Bytes())
	var out outBatch
	b.ReportAllocs()
	for b.Loop() {
		for range 32 {
			buf.Retain()
			if err := out.add(&replication.Message{Type: replication.MsgWrite, Length: 4096, Data: buf.Bytes(), Buf: buf, Sums: sums}); err != nil {
				b.Fatal(err)
			}
		}
		out.take().Free()
	}
}

func TestFramePool(t *testing.T) {
	var p framePool
	for _, n := range []int{0, 1, 1 << minFrameBits, 1<<minFrameBits + 1, 4169, 16 << 10, 1 << maxFrameBits, 1<<maxFrameBits + 1, 4 << 20} {
		b := p.Get(n)
		if len(*b) != n {
			t.Errorf("%d bytes for %d", len(*b), n)
		}
		if c := cap(*b); n >= 1<<minFrameBits && n <= 1<<maxFrameBits && c >= 2*n {
			t.Errorf("%d bytes take %d", n, c)
		}
		*b = (*b)[:n/2] // gRPC may hand back a prefix
		p.Put(b)
		if b := p.Get(n); len(*b) != n {
			t.Errorf("%d bytes for %d again", len(*b), n)
		}
	}
	stranger := make([]byte, 5000)
	p.Put(&stranger)
}
