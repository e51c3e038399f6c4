package raftkv

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	"google.golang.org/protobuf/proto"

	"github.com/tandem-storage/tandem/kvdb"
	"github.com/tandem-storage/tandem/kvdb/kvdbpb"
)

// A log entry is a version byte, the CRC32C of the rest (4 bytes, little
// endian), and a kvdbpb.Command.
const commandVersion = 1

func encodeCommand(c *kvdbpb.Command) ([]byte, error) {
	raw := make([]byte, 5, 5+proto.Size(c))
	raw, err := proto.MarshalOptions{}.MarshalAppend(raw, c)
	if err != nil {
		return nil, fmt.Errorf("raftkv: encode command: %w", err)
	}
	raw[0] = commandVersion
	binary.LittleEndian.PutUint32(raw[1:], crc32.Checksum(raw[5:], castagnoli))
	return raw, nil
}

func decodeCommand(raw []byte) (*kvdbpb.Command, error) {
	if len(raw) < 5 {
		return nil, errors.New("raftkv: log entry is cut short")
	}
	if raw[0] != commandVersion {
		return nil, fmt.Errorf("raftkv: log entry of version %d, this version knows %d", raw[0], commandVersion)
	}
	if crc32.Checksum(raw[5:], castagnoli) != binary.LittleEndian.Uint32(raw[1:]) {
		return nil, errors.New("raftkv: log entry is damaged: checksum mismatch")
	}
	c := new(kvdbpb.Command)
	if err := proto.Unmarshal(raw[5:], c); err != nil {
		return nil, fmt.Errorf("raftkv: log entry: %w", err)
	}
	return c, nil
}

func txnToProto(t kvdb.Txn) *kvdbpb.Txn {
	p := &kvdbpb.Txn{Then: opsToProto(t.Then), Else: opsToProto(t.Else)}
	for _, c := range t.If {
		p.If = append(p.If, &kvdbpb.Cmp{
			Target: kvdbpb.Cmp_Target(c.Target), Key: c.Key, Revision: int64(c.Revision), Value: c.Value,
		})
	}
	return p
}

func opsToProto(ops []kvdb.Op) []*kvdbpb.Op {
	var out []*kvdbpb.Op
	for _, op := range ops {
		out = append(out, &kvdbpb.Op{Kind: kvdbpb.Op_Kind(op.Kind), Key: op.Key, Value: op.Value, Lease: int64(op.Lease)})
	}
	return out
}

// txnFromProto does not check: a number that means nothing fails Txn.Check.
func txnFromProto(p *kvdbpb.Txn) kvdb.Txn {
	t := kvdb.Txn{Then: opsFromProto(p.GetThen()), Else: opsFromProto(p.GetElse())}
	for _, c := range p.GetIf() {
		t.If = append(t.If, kvdb.Cmp{
			Target: kvdb.CmpTarget(c.GetTarget()), Key: c.GetKey(), Revision: kvdb.Revision(c.GetRevision()), Value: c.GetValue(),
		})
	}
	return t
}

func opsFromProto(ops []*kvdbpb.Op) []kvdb.Op {
	var out []kvdb.Op
	for _, op := range ops {
		out = append(out, kvdb.Op{
			Kind: kvdb.OpKind(op.GetKind()), Key: op.GetKey(), Value: op.GetValue(), Lease: kvdb.LeaseID(op.GetLease()),
		})
	}
	return out
}

func kvToProto(kv kvdb.KV) *kvdbpb.KeyValue {
	return &kvdbpb.KeyValue{
		Key: kv.Key, Value: kv.Value, Created: int64(kv.Created), Mod: int64(kv.Mod), Lease: int64(kv.Lease),
	}
}

func kvFromProto(p *kvdbpb.KeyValue) kvdb.KV {
	return kvdb.KV{
		Key: p.GetKey(), Value: p.GetValue(), Created: kvdb.Revision(p.GetCreated()), Mod: kvdb.Revision(p.GetMod()),
		Lease: kvdb.LeaseID(p.GetLease()),
	}
}

func resultToProto(r kvdb.TxnResult) *kvdbpb.TxnReply {
	p := &kvdbpb.TxnReply{Succeeded: r.Succeeded, Revision: int64(r.Revision)}
	for _, kv := range r.Gets {
		got := &kvdbpb.Got{}
		if kv != nil {
			got.Kv = kvToProto(*kv)
		}
		p.Gets = append(p.Gets, got)
	}
	return p
}

func resultFromProto(p *kvdbpb.TxnReply) kvdb.TxnResult {
	r := kvdb.TxnResult{Succeeded: p.GetSucceeded(), Revision: kvdb.Revision(p.GetRevision())}
	for _, got := range p.GetGets() {
		var kv *kvdb.KV
		if got.GetKv() != nil {
			v := kvFromProto(got.GetKv())
			kv = &v
		}
		r.Gets = append(r.Gets, kv)
	}
	return r
}

func eventToProto(e kvdb.Event) *kvdbpb.Event {
	return &kvdbpb.Event{Type: kvdbpb.Event_Type(e.Type), Kv: kvToProto(e.KV)}
}

func eventFromProto(p *kvdbpb.Event) kvdb.Event {
	return kvdb.Event{Type: kvdb.EventType(p.GetType()), KV: kvFromProto(p.GetKv())}
}

// failures pairs each sentinel with its code on the wire.
var failures = []struct {
	code kvdbpb.Failure_Code
	err  error
}{
	{kvdbpb.Failure_CODE_NO_LEADER, kvdb.ErrNoLeader},
	{kvdbpb.Failure_CODE_LEASE_GONE, kvdb.ErrLeaseGone},
	{kvdbpb.Failure_CODE_INVALID, kvdb.ErrInvalid},
	{kvdbpb.Failure_CODE_COMPACTED, kvdb.ErrCompacted},
	{kvdbpb.Failure_CODE_CONFLICT, ErrMemberExists},
	{kvdbpb.Failure_CODE_NOT_FOUND, ErrMemberNotFound},
	{kvdbpb.Failure_CODE_UNAVAILABLE, kvdb.ErrUnavailable},
}

// toFailure makes whatever is not known to be definite an unknown outcome.
func toFailure(err error) *kvdbpb.Failure {
	if err == nil {
		return nil
	}
	for _, f := range failures {
		if errors.Is(err, f.err) {
			return &kvdbpb.Failure{Code: f.code, Message: err.Error()}
		}
	}
	return &kvdbpb.Failure{Code: kvdbpb.Failure_CODE_UNAVAILABLE, Message: err.Error()}
}

// remoteError is a failure that another node reported.
type remoteError struct {
	kind    error
	message string
}

func (e *remoteError) Error() string { return e.message }
func (e *remoteError) Unwrap() error { return e.kind }

func fromFailure(p *kvdbpb.Failure) error {
	if p == nil {
		return nil
	}
	for _, f := range failures {
		if p.GetCode() == f.code {
			return &remoteError{kind: f.err, message: p.GetMessage()}
		}
	}
	return fmt.Errorf("%w: failure %v: %s", kvdb.ErrUnavailable, p.GetCode(), p.GetMessage())
}
