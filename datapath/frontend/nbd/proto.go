package nbd

import "encoding/binary"

// Numbers of the protocol, named as in its specification.

// Magic numbers.
const (
	magicServer     = 0x4e42444d41474943 // NBDMAGIC
	magicOption     = 0x49484156454F5054 // IHAVEOPT
	magicOptReply   = 0x0003e889045565a9
	magicRequest    = 0x25609513
	magicSimple     = 0x67446698
	magicStructured = 0x668e33ef
)

// Handshake flags, of the server and of the client alike.
const (
	flagFixedNewstyle = 1 << 0
	flagNoZeroes      = 1 << 1
)

// Transmission flags.
const (
	flagHasFlags        = 1 << 0
	flagReadOnly        = 1 << 1
	flagSendFlush       = 1 << 2
	flagSendFUA         = 1 << 3
	flagSendTrim        = 1 << 5
	flagSendWriteZeroes = 1 << 6
	flagSendDF          = 1 << 7
	flagCanMultiConn    = 1 << 8
)

// Options.
const (
	optExportName      = 1
	optAbort           = 2
	optList            = 3
	optStartTLS        = 5
	optInfo            = 6
	optGo              = 7
	optStructuredReply = 8
	optListMetaContext = 9
	optSetMetaContext  = 10
)

// Option replies.
const (
	repAck         = 1
	repServer      = 2
	repInfo        = 3
	repMetaContext = 4

	repErrUnsup    = 1<<31 + 1
	repErrPolicy   = 1<<31 + 2
	repErrInvalid  = 1<<31 + 3
	repErrTLSReqd  = 1<<31 + 5
	repErrUnknown  = 1<<31 + 6
	repErrShutdown = 1<<31 + 7
	repErrTooBig   = 1<<31 + 9
)

// Information types of NBD_OPT_INFO and NBD_OPT_GO.
const (
	infoExport    = 0
	infoName      = 1
	infoBlockSize = 3
)

// Commands.
const (
	cmdRead        = 0
	cmdWrite       = 1
	cmdDisc        = 2
	cmdFlush       = 3
	cmdTrim        = 4
	cmdWriteZeroes = 6
	cmdBlockStatus = 7
)

// Command flags.
const (
	cmdFlagFUA    = 1 << 0
	cmdFlagNoHole = 1 << 1
	cmdFlagDF     = 1 << 2
	cmdFlagReqOne = 1 << 3
)

// Structured replies.
const (
	replyFlagDone = 1 << 0

	replyOffsetData  = 1
	replyBlockStatus = 5
	replyError       = 1<<15 + 1
)

// errno is an error value of the protocol; 0 is success.
type errno uint32

const (
	errnoIO       errno = 5
	errnoInval    errno = 22
	errnoNoSpace  errno = 28
	errnoNotSup   errno = 95
	errnoShutdown errno = 108
)

const (
	maxString   = 4096 // longest string of the protocol, bytes
	oldZeroes   = 124  // padding after the reply to NBD_OPT_EXPORT_NAME
	maxMinBlock = 1 << 16

	optionHead     = 16
	requestHead    = 28
	simpleHead     = 16
	structuredHead = 20
)

// contextAllocation is the one metadata context, and the id it is selected under.
const (
	contextAllocation   = "base:allocation"
	contextAllocationID = 1
)

// header is the fixed part of a request of the transmission phase.
type header struct {
	flags  uint16
	cmd    uint16
	cookie uint64
	off    uint64
	n      uint32
}

// parseHeader decodes b, which has requestHead bytes; ok is false if they do not start with the magic number.
func parseHeader(b []byte) (h header, ok bool) {
	_ = b[requestHead-1]
	if binary.BigEndian.Uint32(b) != magicRequest {
		return header{}, false
	}
	return header{
		flags:  binary.BigEndian.Uint16(b[4:]),
		cmd:    binary.BigEndian.Uint16(b[6:]),
		cookie: binary.BigEndian.Uint64(b[8:]),
		off:    binary.BigEndian.Uint64(b[16:]),
		n:      binary.BigEndian.Uint32(b[24:]),
	}, true
}

// putSimple encodes a simple reply into b.
func putSimple(b []byte, e errno, cookie uint64) {
	binary.BigEndian.PutUint32(b, magicSimple)
	binary.BigEndian.PutUint32(b[4:], uint32(e))
	binary.BigEndian.PutUint64(b[8:], cookie)
}

// putStructured encodes the head of a structured reply's last chunk, with n bytes of payload, into b.
func putStructured(b []byte, kind uint16, cookie uint64, n int) {
	binary.BigEndian.PutUint32(b, magicStructured)
	binary.BigEndian.PutUint16(b[4:], replyFlagDone)
	binary.BigEndian.PutUint16(b[6:], kind)
	binary.BigEndian.PutUint64(b[8:], cookie)
	binary.BigEndian.PutUint32(b[16:], uint32(n))
}
