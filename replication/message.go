package replication

import (
	"fmt"

	"github.com/tandem-storage/tandem/datapath/block"
)

// MessageType is the kind of a Message. The numbers are on the wire: only append.
type MessageType uint8

// Message types. C = coordinator, R = replica. wire/PROTOCOL.md has the table of
// who sends what when, and what must be stable before it is sent.
const (
	MsgHello       MessageType = 1  // C→R opens a session; body: Hello
	MsgHelloAck    MessageType = 2  // R→C body: HelloAck
	MsgWrite       MessageType = 3  // C→R
	MsgZero        MessageType = 4  // C→R
	MsgTrim        MessageType = 5  // C→R
	MsgFlush       MessageType = 6  // C→R
	MsgAck         MessageType = 7  // R→C done (write, zero, trim, flush, resync write)
	MsgNack        MessageType = 8  // R→C refused or failed; Status says why
	MsgRead        MessageType = 9  // C→R
	MsgData        MessageType = 10 // R→C answer to MsgRead
	MsgStable      MessageType = 11 // C→R StableSeq only
	MsgHashReq     MessageType = 12 // C→R
	MsgHash        MessageType = 13 // R→C body: one 16-byte hash per ResyncBlock
	MsgResyncWrite MessageType = 14 // C→R a block of a resync or reconcile; without payload: zeroes
	MsgClose       MessageType = 20 // both: no more messages follow
	MsgLease       MessageType = 23 // C→R asks for a read lease; Offset numbers the request, Length is how long it is wanted for, ms: 0 asks only whether the term is the latest promised
	MsgGrant       MessageType = 24 // R→C grants it; Offset as in the request, Length is for how many milliseconds
	MsgExamine     MessageType = 25 // C→R asks what is stored, sector by sector
	MsgFindings    MessageType = 26 // R→C body: FindingLen bytes for each sector
	MsgSnapCut     MessageType = 27 // C→R takes a snapshot; offset: the volume's size; body: its SnapshotID
)

func (t MessageType) String() string {
	switch t {
	case MsgHello:
		return "hello"
	case MsgHelloAck:
		return "hello-ack"
	case MsgWrite:
		return "write"
	case MsgZero:
		return "zero"
	case MsgTrim:
		return "trim"
	case MsgFlush:
		return "flush"
	case MsgAck:
		return "ack"
	case MsgNack:
		return "nack"
	case MsgRead:
		return "read"
	case MsgData:
		return "data"
	case MsgStable:
		return "stable"
	case MsgHashReq:
		return "hash-req"
	case MsgHash:
		return "hash"
	case MsgResyncWrite:
		return "resync-write"
	case MsgClose:
		return "close"
	case MsgLease:
		return "lease"
	case MsgGrant:
		return "grant"
	case MsgExamine:
		return "examine"
	case MsgFindings:
		return "findings"
	case MsgSnapCut:
		return "snap-cut"
	default:
		return fmt.Sprintf("type(%d)", uint8(t))
	}
}

// MessageFlags modify a Message. The bits are on the wire: only append.
type MessageFlags uint16

// Message flags.
const (
	FlagFUA    MessageFlags = 1 << 0 // request: stable before the ack
	FlagStable MessageFlags = 1 << 1 // ack: it is stable
	FlagNoHole MessageFlags = 1 << 2 // zero: keep the space allocated
	FlagAsIs   MessageFlags = 1 << 3 // read: what is stored, even if its checksum is wrong

	// Bits from 8 on may be lost on a peer that does not know them.

	FlagCrowded MessageFlags = 1 << 8 // answer: the replica's pool is nearly full, it asks to leave the in-sync set
)

// Status says why a MsgNack was sent. The numbers are on the wire: only append.
type Status uint16

// Nack statuses.
const (
	StatusOK           Status = 0
	StatusFenced       Status = 1 // a later term is sealed; Message.Term is it
	StatusEpoch        Status = 2 // the sender's configuration is older than the replica's
	StatusCRC          Status = 3 // payload damaged on the way; send again
	StatusIO           Status = 4 // the disk failed; the replica is FAULTED
	StatusNoSpace      Status = 5
	StatusShuttingDown Status = 6
	StatusVersion      Status = 7
	StatusNotFound     Status = 8 // no such replica here
	StatusState        Status = 9 // the replica is in a state that cannot serve this
	StatusInvalid      Status = 10
	StatusDomain       Status = 11 // the sender's cluster domain is fenced
	StatusUnsupported  Status = 12 // of a snapshot: the replica's pool cannot
	StatusLimit        Status = 13 // of a snapshot: the replica has as many as it can have
)

func (s Status) String() string {
	names := [...]string{"ok", "fenced", "epoch", "crc", "io", "no-space", "shutting-down", "version", "not-found", "state", "invalid", "domain", "unsupported", "limit"}
	if int(s) < len(names) {
		return names[s]
	}
	return fmt.Sprintf("status(%d)", uint16(s))
}

// ResyncBlock is the unit of dirty maps, hashes and resync copies, in bytes.
const ResyncBlock = 64 << 10

// HashLen is the length of the hash of one ResyncBlock: the first half of its SHA-256.
const HashLen = 16

// Finding is what a replica finds in a sector that it is asked to examine. The numbers are on the wire: only append.
type Finding uint8

// Findings.
const (
	FindingGood       Finding = 0 // it matches its checksum, or has none
	FindingDamaged    Finding = 1 // it does not match its checksum
	FindingUnreadable Finding = 2 // the disk does not return it
)

// FindingLen is the length of what MsgFindings tells of a sector: a Finding, then the first half of the SHA-256 of what is
// stored; zeroes for one that is not readable.
const FindingLen = 1 + HashLen

// Message is one unit of a session between a coordinator and a replica. On the
// wire it is a 64-byte header, the checksums and the payload (package wire).
//
// Data belongs to Buf if Buf is not nil; whoever keeps a Message beyond a call
// retains it.
type Message struct {
	Type      MessageType
	Flags     MessageFlags
	Status    Status
	Session   SessionID
	Term      Term
	Seq       Seq    // request's number, repeated in its answer
	Offset    int64  // bytes
	Length    int64  // bytes of the volume that are meant; for zero, trim and hash more than len(Data)
	StableSeq Seq    // C→R: every write with a number up to this is stable on all replicas that must have it
	Credit    uint32 // R→C: payload bytes that the receiver has room for again

	Sums []uint32      // CRC32C of each block.SectorSize piece of Data
	Data []byte        // payload
	Buf  *block.Buffer // owner of Data, may be nil
}

// Hello is the body of MsgHello.
type Hello struct {
	Volume   VolumeID
	Replica  ReplicaID
	AttachID AttachID
	Epoch    Epoch
	Gen      uint64
}

// HelloAck is the body of MsgHelloAck.
type HelloAck struct {
	Boot     BootID // of the replica's node
	Instance UUID   // of the replica's process: a change means that its memory is lost
	Credit   uint32 // payload bytes that may be on the way to the replica, in all

	Snapshots bool // MsgSnapCut may be sent: both ends know it. Not in the body, but agreed on
}
