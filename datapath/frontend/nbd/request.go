package nbd

import (
	"encoding/binary"
	"strings"

	"github.com/tandem-storage/tandem/datapath/block"
)

// request is one command of a client on its way to the device and back. It
// belongs to its session and is used again for later commands.
type request struct {
	block.Request

	s      *session
	cookie uint64
	read   bool  // the reply of success carries Data
	cost   int64 // bytes counted against the export's window
	buf    *block.Buffer

	head    [structuredHead + 12]byte // of the reply; the largest is a block status
	headLen int
	payload []byte // follows the head
}

// maxErrorText limits the text that goes with an error, bytes.
const maxErrorText = 512

// Complete implements block.Completer: it makes the reply and queues it.
func (q *request) Complete(_ *block.Request, err error) {
	switch {
	case err != nil:
		q.fail(errnoOf(q.Op, err), errorText(err))
	case q.read:
		q.succeedRead()
	default:
		q.succeed()
	}
	q.s.completed(q)
}

// succeed makes a reply without payload.
func (q *request) succeed() {
	putSimple(q.head[:], 0, q.cookie)
	q.headLen = simpleHead
}

// succeedRead makes the reply of a read: one chunk with all the data.
func (q *request) succeedRead() {
	q.payload = q.Data
	if !q.s.structured {
		q.succeed()
		return
	}
	putStructured(q.head[:], replyOffsetData, q.cookie, 8+len(q.Data))
	binary.BigEndian.PutUint64(q.head[structuredHead:], uint64(q.Off))
	q.headLen = structuredHead + 8
}

// fail makes an error reply; the text, UTF-8, is for people and goes where the protocol has room for it.
func (q *request) fail(e errno, text []byte) {
	if !q.s.structured {
		putSimple(q.head[:], e, q.cookie)
		q.headLen = simpleHead
		return
	}
	putStructured(q.head[:], replyError, q.cookie, 6+len(text))
	binary.BigEndian.PutUint32(q.head[structuredHead:], uint32(e))
	binary.BigEndian.PutUint16(q.head[structuredHead+4:], uint16(len(text)))
	q.headLen = structuredHead + 6
	q.payload = text
}

// succeedStatus makes the reply of a block status: n bytes of which nothing is
// known but that they may be data, which the protocol allows to say of any block.
func (q *request) succeedStatus(n uint32) {
	putStructured(q.head[:], replyBlockStatus, q.cookie, 12)
	binary.BigEndian.PutUint32(q.head[structuredHead:], contextAllocationID)
	binary.BigEndian.PutUint32(q.head[structuredHead+4:], n)
	binary.BigEndian.PutUint32(q.head[structuredHead+8:], 0)
	q.headLen = structuredHead + 12
}

// withBuffer gives q a Buffer of n bytes.
func (q *request) withBuffer(n int) {
	q.buf = block.NewBuffer(n)
	q.Buf, q.Data = q.buf, q.buf.Bytes()
}

// reset gives back what q holds, for its next use.
func (q *request) reset() {
	if q.buf != nil {
		q.buf.Release()
		q.buf = nil
	}
	q.Request = block.Request{By: q}
	q.payload, q.read = nil, false
}

// errorText is what the client is told of err.
func errorText(err error) []byte {
	text := err.Error()
	if len(text) > maxErrorText {
		text = text[:maxErrorText]
	}
	return []byte(strings.ToValidUTF8(text, "?"))
}
