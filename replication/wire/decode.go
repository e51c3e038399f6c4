package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/tandem-storage/tandem/datapath/block"
	"github.com/tandem-storage/tandem/replication"
)

// sumsSlab is how many checksums a Decoder allocates at a time.
const sumsSlab = 256

// Decoder takes batches apart. Its zero value is ready. Not safe for concurrent use.
type Decoder struct {
	pieces [][]byte // what is left of the batch; the first may be partly consumed
	left   int      // bytes in pieces
	frames int      // of this batch, so far
	head   [HeaderLen]byte
	slab   []uint32
}

// Decode appends the messages of one batch to dst. The batch is given in pieces
// cut anywhere; they are not referred to afterwards, and the slice pieces is
// used up.
//
// Each payload is copied once, into a new block.Buffer of which the message has
// the only reference, and its checksums are verified on the copy. A message
// whose payload was damaged on the way has Status StatusCRC and no Data; the
// frames behind it are not affected. Messages of unknown types that may be
// ignored are left out, so that dst may come back as it was.
//
// On any other error everything that was decoded from this batch is released,
// and dst comes back as it was.
func (d *Decoder) Decode(dst []replication.Message, pieces [][]byte) ([]replication.Message, error) {
	d.pieces, d.left, d.frames = pieces, 0, 0
	for _, p := range pieces {
		d.left += len(p)
	}
	had := len(dst)
	err := d.checkLen()
	for err == nil {
		var m replication.Message
		switch m, err = d.next(); {
		case err == nil:
			dst = append(dst, m)
		case errors.Is(err, errIgnored):
			err = nil
		}
	}
	clear(d.pieces)
	d.pieces = nil
	if errors.Is(err, io.EOF) {
		return dst, nil
	}
	for i := range dst[had:] {
		if b := dst[had+i].Buf; b != nil {
			b.Release()
		}
	}
	clear(dst[had:])
	return dst[:had], err
}

func (d *Decoder) checkLen() error {
	if d.left > MaxBatchLen {
		return fmt.Errorf("%w: batch of %d bytes, at most %d are allowed", ErrFrame, d.left, MaxBatchLen)
	}
	return nil
}

// errIgnored says that a frame was skipped.
var errIgnored = errors.New("wire: ignored")

// next decodes one frame; io.EOF at the end of the batch.
func (d *Decoder) next() (replication.Message, error) {
	if d.left == 0 {
		return replication.Message{}, io.EOF
	}
	if d.frames++; d.frames > MaxBatchFrames {
		return replication.Message{}, fmt.Errorf("%w: more than %d frames in a batch", ErrFrame, MaxBatchFrames)
	}
	if d.left < HeaderLen {
		return replication.Message{}, fmt.Errorf("%w: %d bytes are too few for a header", ErrFrame, d.left)
	}
	d.copy(d.head[:])
	h, err := parseHeader(d.head[:])
	if err != nil {
		return replication.Message{}, err
	}
	// Bounded by what has arrived before anything is allocated.
	if d.left < 4*h.sums+h.payload {
		return replication.Message{}, fmt.Errorf("%w: %v of %d bytes in a batch with %d left", ErrFrame, h.msg.Type, 4*h.sums+h.payload, d.left)
	}
	if !h.known {
		d.skip(4*h.sums + h.payload)
		return replication.Message{}, errIgnored
	}
	m := h.msg
	if h.payload == 0 {
		return m, nil
	}
	m.Sums = d.takeSums(h.sums)
	for i := range m.Sums {
		var s [4]byte
		d.copy(s[:])
		m.Sums[i] = binary.LittleEndian.Uint32(s[:])
	}
	m.Buf = block.NewBuffer(h.payload)
	m.Data = m.Buf.Bytes()
	intact := true
	for i := range m.Sums {
		// Copied and summed sector by sector: the second pass finds it in the cache.
		p := m.Data[i*block.SectorSize : min((i+1)*block.SectorSize, h.payload)]
		d.copy(p)
		intact = Checksum(p) == m.Sums[i] && intact
	}
	if !intact {
		m.Buf.Release()
		m.Buf, m.Data, m.Sums, m.Status = nil, nil, nil, replication.StatusCRC
	}
	return m, nil
}

// takeSums returns n checksums that nobody else has. They outlive the batch.
func (d *Decoder) takeSums(n int) []uint32 {
	if len(d.slab) < n {
		d.slab = make([]uint32, max(n, sumsSlab))
	}
	s := d.slab[:n:n]
	d.slab = d.slab[n:]
	return s
}

// copy fills p from the batch, which has that much.
func (d *Decoder) copy(p []byte) {
	d.left -= len(p)
	for len(p) > 0 {
		n := copy(p, d.pieces[0])
		p = p[n:]
		d.consume(n)
	}
}

func (d *Decoder) skip(n int) {
	d.left -= n
	for n > 0 {
		k := min(n, len(d.pieces[0]))
		n -= k
		d.consume(k)
	}
}

// consume drops n bytes of the first piece.
func (d *Decoder) consume(n int) {
	if d.pieces[0] = d.pieces[0][n:]; len(d.pieces[0]) == 0 {
		d.pieces = d.pieces[1:]
	}
}
