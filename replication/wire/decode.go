package wire

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/tandem-storage/tandem/datapath/block"
	"github.com/tandem-storage/tandem/replication"
)

const (
	// sumsSlab is how many checksums a Decoder allocates at a time.
	sumsSlab = 256

	// readLen is how much a Decoder reads ahead, in bytes: a TLS record. Payloads
	// beyond it are read straight into their buffers.
	readLen = 16 << 10

	// sumLen is how much of a payload is read before it is summed, in bytes: it is
	// still in the processor's cache then.
	sumLen = 64 << 10
)

// Decoder takes a stream of frames apart. Not safe for concurrent use. While it waits for a frame it holds next to no
// memory: there may be thousands of streams on which nothing comes.
type Decoder struct {
	src  io.Reader
	r    *bufio.Reader // of from; nil while nothing is buffered
	from begun
	head [1]byte
	slab []uint32
	err  error // the first; the stream is of no further use
}

// NewDecoder returns a Decoder of the frames that r delivers.
func NewDecoder(r io.Reader) *Decoder { return &Decoder{src: r} }

// readers are lent to Decoders while they have something to read.
var readers = sync.Pool{New: func() any { return bufio.NewReaderSize(nil, readLen) }}

// begin waits for the first byte of a frame, unless something is buffered. It takes no more: what comes with it is for the reader, all at once.
func (d *Decoder) begin() error {
	if d.r != nil {
		return nil
	}
	n := 0
	for n == 0 {
		var err error
		if n, err = d.src.Read(d.head[:]); n == 0 && err != nil {
			return err // what it returns beside bytes it returns again
		}
	}
	d.r = readers.Get().(*bufio.Reader)
	d.from = begun{head: d.head[:n], rest: d.src}
	d.r.Reset(&d.from)
	return nil
}

// idle gives the reader back if nothing is buffered.
func (d *Decoder) idle() {
	if d.r != nil && d.r.Buffered() == 0 {
		d.r.Reset(nil)
		readers.Put(d.r)
		d.r = nil
	}
}

// begun is a stream of which the first bytes were read already.
type begun struct {
	head []byte
	rest io.Reader
}

// Read implements io.Reader.
func (b *begun) Read(p []byte) (int, error) {
	if len(b.head) == 0 {
		return b.rest.Read(p)
	}
	n := copy(p, b.head)
	b.head = b.head[n:]
	return n, nil
}

// Next returns the next message, and waits for it as long as r does. Messages of
// unknown types that may be ignored are skipped.
//
// A payload is in a new block.Buffer of which the message has the only reference.
// Its checksums are verified there, after the last copy: a message whose payload
// was damaged on the way has Status StatusCRC and no Data, and the frames behind
// it are not affected.
//
// The error is one that Malformed knows if what arrived is not a frame, io.EOF if
// r ended between two frames, io.ErrUnexpectedEOF within one, and otherwise what r
// returned. It is returned for ever after.
func (d *Decoder) Next() (replication.Message, error) {
	if d.err != nil {
		return replication.Message{}, d.err
	}
	for {
		m, err := d.next()
		d.idle()
		if errors.Is(err, errIgnored) {
			continue
		}
		d.err = err
		return m, err
	}
}

// Ready says that Next will return without reading.
func (d *Decoder) Ready() bool {
	switch {
	case d.err != nil:
		return true
	case d.r == nil:
		return false
	}
	have := d.r.Buffered()
	if have < HeaderLen {
		return false
	}
	b, err := d.r.Peek(HeaderLen)
	if err != nil {
		return true // cannot be: it is buffered
	}
	h, err := parseHeader(b)
	return err != nil || have >= HeaderLen+4*h.sums+h.payload
}

// errIgnored says that a frame was skipped.
var errIgnored = errors.New("wire: ignored")

func (d *Decoder) next() (replication.Message, error) {
	if err := d.begin(); err != nil {
		return replication.Message{}, err
	}
	b, err := d.r.Peek(HeaderLen)
	if err != nil {
		if len(b) > 0 {
			err = within(err)
		}
		return replication.Message{}, err
	}
	h, err := parseHeader(b)
	if err != nil {
		return replication.Message{}, err
	}
	if !h.known {
		if _, err := d.r.Discard(HeaderLen + 4*h.sums + h.payload); err != nil {
			return replication.Message{}, within(err)
		}
		return replication.Message{}, errIgnored
	}
	if _, err := d.r.Discard(HeaderLen); err != nil {
		return replication.Message{}, within(err) // cannot be: it is buffered
	}
	m := h.msg
	if h.payload == 0 {
		return m, nil
	}
	return m, d.payload(&m, h)
}

// payload reads what stands behind the header of m.
func (d *Decoder) payload(m *replication.Message, h header) error {
	b, err := d.r.Peek(4 * h.sums)
	if err != nil {
		return within(err)
	}
	m.Sums = d.takeSums(h.sums)
	for i := range m.Sums {
		m.Sums[i] = binary.LittleEndian.Uint32(b[4*i:])
	}
	if _, err := d.r.Discard(4 * h.sums); err != nil {
		return within(err) // cannot be: it is buffered
	}
	m.Buf = block.NewBuffer(h.payload)
	m.Data = m.Buf.Bytes()
	intact := true
	for data, sums := m.Data, m.Sums; len(data) > 0; {
		part := data[:min(sumLen, len(data))]
		if _, err := io.ReadFull(d.r, part); err != nil {
			m.Buf.Release()
			*m = replication.Message{}
			return within(err)
		}
		data = data[len(part):]
		for ; len(part) > 0; sums = sums[1:] {
			sector := part[:min(block.SectorSize, len(part))]
			intact = Checksum(sector) == sums[0] && intact
			part = part[len(sector):]
		}
	}
	if !intact {
		m.Buf.Release()
		m.Buf, m.Data, m.Sums, m.Status = nil, nil, nil, replication.StatusCRC
	}
	return nil
}

// within makes the end of the stream one in the middle of a frame.
func within(err error) error {
	if errors.Is(err, io.EOF) {
		return fmt.Errorf("wire: the stream ends within a frame: %w", io.ErrUnexpectedEOF)
	}
	return err
}

// takeSums returns n checksums that nobody else has. They outlive the frame.
func (d *Decoder) takeSums(n int) []uint32 {
	if len(d.slab) < n {
		d.slab = make([]uint32, max(n, sumsSlab))
	}
	s := d.slab[:n:n]
	d.slab = d.slab[n:]
	return s
}
