package transport

import (
	"fmt"
	"sync"

	"google.golang.org/grpc/mem"

	"github.com/tandem-storage/tandem/datapath/block"
	"github.com/tandem-storage/tandem/replication"
	"github.com/tandem-storage/tandem/replication/wire"
)

const (
	// inlineLen is the largest payload that is copied beside the header instead of
	// sent from its own buffer, in bytes. It cannot be smaller: gRPC does not tell
	// when it is done with buffers up to this length.
	inlineLen = 1 << 10

	// A batch is sent when it has this many frames or bytes: the receiver cannot
	// begin with a batch before all of it is there.
	batchFrames = 256
	batchLen    = 256 << 10

	// headsLen is the capacity that the memory for headers starts with, and
	// maxHeadsLen the largest that is kept for the next batch, in bytes.
	headsLen    = 4 << 10
	maxHeadsLen = 64 << 10
)

// Any one frame fits into a batch that may still be added to.
const _ = uint(wire.MaxBatchLen - batchLen - wire.MaxHeadLen - wire.MaxPayload)

// outBatch collects messages into the next gRPC message of a Conn.
type outBatch struct {
	heads  *heads
	cuts   []cut
	frames int
	bytes  int
}

// cut says that data stand in the batch behind the first at bytes of the heads.
type cut struct {
	at   int
	data []byte
	buf  *block.Buffer
}

// add appends m's frame and takes over one reference of m.Buf, also on error.
func (b *outBatch) add(m *replication.Message) error {
	if b.heads == nil {
		b.heads = headsPool.Get().(*heads)
	}
	h, err := wire.AppendHead(b.heads.data, m)
	if err != nil {
		if m.Buf != nil {
			m.Buf.Release()
		}
		return err
	}
	b.bytes += len(h) - len(b.heads.data) + len(m.Data)
	b.frames++
	if m.Buf != nil && len(m.Data) > inlineLen {
		b.heads.data = h
		b.cuts = append(b.cuts, cut{at: len(h), data: m.Data, buf: m.Buf})
		return nil
	}
	// Data without an owner may change once Send returns: they are copied, too.
	b.heads.data = append(h, m.Data...)
	if m.Buf != nil {
		m.Buf.Release()
	}
	return nil
}

func (b *outBatch) full() bool  { return b.frames >= batchFrames || b.bytes >= batchLen }
func (b *outBatch) empty() bool { return b.frames == 0 }

// take returns the batch as the buffers of a gRPC message and empties it. What
// the buffers refer to is released when gRPC frees them: after the transport has
// written them, however long after the peer's answer that is.
func (b *outBatch) take() mem.BufferSlice {
	out := make(mem.BufferSlice, 0, 2*len(b.cuts)+1)
	h := b.heads
	root := mem.NewBuffer(&h.data, h)
	from := 0
	for i := range b.cuts {
		c := &b.cuts[i]
		if from < c.at { // not so if a payload follows a payload, which cannot be, but costs nothing
			out = append(out, root.Slice(from, c.at))
			from = c.at
		}
		out = append(out, newPayload(c.data, c.buf))
	}
	if end := len(h.data); from < end {
		out = append(out, root.Slice(from, end))
	}
	root.Free() // the slices hold it
	b.reset()
	return out
}

// drop releases what was added and not taken.
func (b *outBatch) drop() {
	for i := range b.cuts {
		b.cuts[i].buf.Release()
	}
	if b.heads != nil {
		b.heads.Put(nil)
	}
	b.reset()
}

func (b *outBatch) reset() {
	clear(b.cuts)
	b.heads, b.cuts, b.frames, b.bytes = nil, b.cuts[:0], 0, 0
}

// heads is the memory of the frames of one batch without the payloads. It is a
// mem.BufferPool so that gRPC hands it back.
type heads struct{ data []byte }

var headsPool = sync.Pool{New: func() any { return &heads{data: make([]byte, 0, headsLen)} }}

// Get implements mem.BufferPool; gRPC asks the pool of a buffer for nothing.
func (h *heads) Get(n int) *[]byte { return mem.DefaultBufferPool().Get(n) }

// Put implements mem.BufferPool: gRPC is done with the batch.
func (h *heads) Put(*[]byte) {
	if cap(h.data) <= maxHeadsLen {
		h.data = h.data[:0]
		headsPool.Put(h)
	}
}

// payload is the data of one message while gRPC has them.
type payload struct {
	data []byte
	buf  *block.Buffer
}

var payloadPool = sync.Pool{New: func() any { return new(payload) }}

// newPayload takes over one reference of buf.
func newPayload(data []byte, buf *block.Buffer) mem.Buffer {
	p := payloadPool.Get().(*payload)
	p.data, p.buf = data, buf
	return mem.NewBuffer(&p.data, p)
}

// Get implements mem.BufferPool; gRPC asks the pool of a buffer for nothing.
func (p *payload) Get(n int) *[]byte { return mem.DefaultBufferPool().Get(n) }

// Put implements mem.BufferPool: gRPC is done with the data.
func (p *payload) Put(*[]byte) {
	buf := p.buf
	p.data, p.buf = nil, nil
	payloadPool.Put(p)
	buf.Release()
}

// inBatch is the last gRPC message that a Conn received.
type inBatch struct {
	dec    wire.Decoder
	pieces [][]byte
	msgs   []replication.Message
	err    error
}

// decode is called by the codec while gRPC's buffers are valid.
func (b *inBatch) decode(data mem.BufferSlice) {
	b.pieces = b.pieces[:0]
	for _, p := range data {
		b.pieces = append(b.pieces, p.ReadOnlyData())
	}
	clear(b.msgs)
	b.msgs, b.err = b.dec.Decode(b.msgs[:0], b.pieces)
	if b.err != nil {
		b.err = fmt.Errorf("transport: frames from peer: %w", b.err)
	}
}
