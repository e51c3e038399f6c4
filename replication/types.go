package replication

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
)

// UUID is a random 128-bit identifier. Its zero value means "none".
type UUID [16]byte

// VolumeID, ReplicaID, AttachID and BootID are told apart by the compiler.
type (
	VolumeID  UUID // a volume, for ever
	ReplicaID UUID // one copy of a volume on one pool; a replica made anew has a new id
	AttachID  UUID // one showing of a volume to one consumer; it never comes back once it ended
	BootID    UUID // one boot of a node's kernel: unsynced data do not survive its change

	SnapshotID UUID // one attempt to take a snapshot of one volume; an attempt that failed leaves it used
)

// NodeID is the name of a node, unique in the cluster.
type NodeID string

// DomainID is the name of a cluster domain.
type DomainID string

// Epoch is the version of a volume's configuration, +1 on every change.
type Epoch uint64

// Term is the epoch at which the current coordinator took over: the fencing token
// that replicas hold durably.
type Term uint64

// SessionID names one incarnation of a coordinator-to-replica stream. Random, never 0.
type SessionID uint64

// Seq numbers the writes of one term. It identifies, it does not order.
type Seq uint64

// NewUUID returns a random UUID.
func NewUUID() UUID {
	var u UUID
	rand.Read(u[:]) // never fails, see crypto/rand
	u[6] = u[6]&0x0f | 0x40
	u[8] = u[8]&0x3f | 0x80
	return u
}

// ParseUUID is the inverse of UUID.String.
func ParseUUID(s string) (UUID, error) {
	var u UUID
	if len(s) != 36 || s[8] != '-' || s[13] != '-' || s[18] != '-' || s[23] != '-' {
		return u, fmt.Errorf("%w: %q", ErrBadUUID, s)
	}
	if _, err := hex.Decode(u[:], []byte(s[0:8]+s[9:13]+s[14:18]+s[19:23]+s[24:])); err != nil {
		return UUID{}, fmt.Errorf("%w: %q", ErrBadUUID, s)
	}
	return u, nil
}

// ErrBadUUID is returned for text that is not a UUID.
var ErrBadUUID = errors.New("replication: not a UUID")

func (u UUID) String() string {
	var b [36]byte
	hex.Encode(b[:8], u[:4])
	b[8] = '-'
	hex.Encode(b[9:13], u[4:6])
	b[13] = '-'
	hex.Encode(b[14:18], u[6:8])
	b[18] = '-'
	hex.Encode(b[19:23], u[8:10])
	b[23] = '-'
	hex.Encode(b[24:], u[10:])
	return string(b[:])
}

// IsZero reports whether u is "none".
func (u UUID) IsZero() bool { return u == UUID{} }

// MarshalText implements encoding.TextMarshaler.
func (u UUID) MarshalText() ([]byte, error) { return []byte(u.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (u *UUID) UnmarshalText(b []byte) error {
	v, err := ParseUUID(string(b))
	*u = v
	return err
}

func (v VolumeID) String() string  { return UUID(v).String() }
func (r ReplicaID) String() string { return UUID(r).String() }
func (a AttachID) String() string  { return UUID(a).String() }
func (b BootID) String() string    { return UUID(b).String() }

func (s SnapshotID) String() string { return UUID(s).String() }

// MarshalText and UnmarshalText make the identifiers readable in JSON and usable as map keys there.
func (v VolumeID) MarshalText() ([]byte, error)   { return UUID(v).MarshalText() }
func (v *VolumeID) UnmarshalText(b []byte) error  { return (*UUID)(v).UnmarshalText(b) }
func (r ReplicaID) MarshalText() ([]byte, error)  { return UUID(r).MarshalText() }
func (r *ReplicaID) UnmarshalText(b []byte) error { return (*UUID)(r).UnmarshalText(b) }
func (a AttachID) MarshalText() ([]byte, error)   { return UUID(a).MarshalText() }
func (a *AttachID) UnmarshalText(b []byte) error  { return (*UUID)(a).UnmarshalText(b) }
func (b BootID) MarshalText() ([]byte, error)     { return UUID(b).MarshalText() }
func (b *BootID) UnmarshalText(t []byte) error    { return (*UUID)(b).UnmarshalText(t) }

func (s SnapshotID) MarshalText() ([]byte, error)  { return UUID(s).MarshalText() }
func (s *SnapshotID) UnmarshalText(b []byte) error { return (*UUID)(s).UnmarshalText(b) }

// ParseVolumeID is the inverse of VolumeID.String.
func ParseVolumeID(s string) (VolumeID, error) {
	u, err := ParseUUID(s)
	return VolumeID(u), err
}

// ParseSnapshotID is the inverse of SnapshotID.String.
func ParseSnapshotID(s string) (SnapshotID, error) {
	u, err := ParseUUID(s)
	return SnapshotID(u), err
}
