package wire

import (
	"encoding/binary"
	"fmt"

	"github.com/tandem-storage/tandem/replication"
)

// Version of the frames and of the meaning of the messages.
type Version uint8

// Versions that this build speaks. A release speaks its own and the one before.
const (
	MinVersion Version = 1
	MaxVersion Version = 1
)

// Features is a set of optional abilities, agreed on when a session opens. The
// bits are on the wire: only append.
type Features uint64

// Proposal is what one end of a session can do.
type Proposal struct {
	Min, Max Version  // versions that it speaks
	Able     Features // it can use these
	Needed   Features // it cannot work without these; a subset of Able
}

// FeatureLeases are the read leases (MsgLease, MsgGrant). A replica that does not know them would not
// wait for one, nor would a coordinator before it reads.
const FeatureLeases Features = 1 << 0

// FeatureExamine is what heals (MsgExamine, MsgFindings, FlagAsIs). A replica that does not know it would end the session.
const FeatureExamine Features = 1 << 1

// FeatureSnapshots is MsgSnapCut. Without it everything else goes on, and no snapshot is taken.
const FeatureSnapshots Features = 1 << 2

// Local is the Proposal of this build.
var Local = Proposal{Min: MinVersion, Max: MaxVersion, Able: FeatureLeases | FeatureExamine | FeatureSnapshots, Needed: FeatureLeases | FeatureExamine}

// Agreed is what both ends of a session may use.
type Agreed struct {
	Version  Version
	Features Features
}

// Agree finds what both ends can do: the highest common version, and the
// features that both have. ErrVersion if there is no common version or one needs
// a feature that the other lacks.
func Agree(a, b Proposal) (Agreed, error) {
	v := min(a.Max, b.Max)
	if v < max(a.Min, b.Min) {
		return Agreed{}, fmt.Errorf("%w: one end speaks versions %d to %d, the other %d to %d; upgrade the older one", ErrVersion, a.Min, a.Max, b.Min, b.Max)
	}
	if lack := a.Needed&^b.Able | b.Needed&^a.Able; lack != 0 {
		return Agreed{}, fmt.Errorf("%w: features %#x are needed by one end and unknown to the other", ErrVersion, uint64(lack))
	}
	return Agreed{Version: v, Features: a.Able & b.Able}, nil
}

// helloMagic opens the bodies of hello and hello-ack: "TNDM".
const helloMagic = 0x4d444e54

// Lengths of the bodies, in bytes. Later versions append; readers ignore what
// they do not know, up to maxBody.
const (
	helloLen    = 88
	helloAckLen = 52
	maxBody     = 4096
)

// HelloBody encodes h and p as the payload of MsgHello.
func HelloBody(h replication.Hello, p Proposal) []byte {
	le := binary.LittleEndian
	b := make([]byte, 0, helloLen)
	b = le.AppendUint32(b, helloMagic)
	b = append(b, byte(p.Min), byte(p.Max), 0, 0)
	b = le.AppendUint64(b, uint64(p.Able))
	b = le.AppendUint64(b, uint64(p.Needed))
	b = append(b, h.Volume[:]...)
	b = append(b, h.Replica[:]...)
	b = append(b, h.AttachID[:]...)
	b = le.AppendUint64(b, uint64(h.Epoch))
	return le.AppendUint64(b, h.Gen)
}

// ParseHello is the inverse of HelloBody. ErrFrame if b is not a hello.
func ParseHello(b []byte) (h replication.Hello, p Proposal, err error) {
	le := binary.LittleEndian
	if len(b) < helloLen || le.Uint32(b) != helloMagic {
		return h, p, fmt.Errorf("%w: %d bytes are not the body of a hello", ErrFrame, len(b))
	}
	p = Proposal{Min: Version(b[4]), Max: Version(b[5]), Able: Features(le.Uint64(b[8:])), Needed: Features(le.Uint64(b[16:]))}
	copy(h.Volume[:], b[24:])
	copy(h.Replica[:], b[40:])
	copy(h.AttachID[:], b[56:])
	h.Epoch = replication.Epoch(le.Uint64(b[72:]))
	h.Gen = le.Uint64(b[80:])
	return h, p, nil
}

// HelloAckBody encodes a and what was agreed on as the payload of MsgHelloAck.
func HelloAckBody(a replication.HelloAck, g Agreed) []byte {
	le := binary.LittleEndian
	b := make([]byte, 0, helloAckLen)
	b = le.AppendUint32(b, helloMagic)
	b = append(b, byte(g.Version), 0, 0, 0)
	b = le.AppendUint64(b, uint64(g.Features))
	b = append(b, a.Boot[:]...)
	b = append(b, a.Instance[:]...)
	return le.AppendUint32(b, a.Credit)
}

// ParseHelloAck is the inverse of HelloAckBody. ErrFrame if b is not a hello-ack,
// ErrVersion if it agrees to something that p did not propose.
func ParseHelloAck(b []byte, p Proposal) (a replication.HelloAck, g Agreed, err error) {
	le := binary.LittleEndian
	if len(b) < helloAckLen || le.Uint32(b) != helloMagic {
		return a, g, fmt.Errorf("%w: %d bytes are not the body of a hello-ack", ErrFrame, len(b))
	}
	g = Agreed{Version: Version(b[4]), Features: Features(le.Uint64(b[8:]))}
	if g.Version < p.Min || g.Version > p.Max || g.Features&^p.Able != 0 || p.Needed&^g.Features != 0 {
		return a, g, fmt.Errorf("%w: peer chose version %d with features %#x, which was not offered", ErrVersion, g.Version, uint64(g.Features))
	}
	copy(a.Boot[:], b[16:])
	copy(a.Instance[:], b[32:])
	a.Credit = le.Uint32(b[48:])
	a.Snapshots = g.Features&FeatureSnapshots != 0
	return a, g, nil
}
