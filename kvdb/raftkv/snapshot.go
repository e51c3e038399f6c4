package raftkv

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/protobuf/encoding/protodelim"

	"github.com/tandem-storage/tandem/kvdb"
	"github.com/tandem-storage/tandem/kvdb/internal/kvstate"
	"github.com/tandem-storage/tandem/kvdb/kvdbpb"
)

// A snapshot is snapshotMagic, a kvdbpb.SnapshotHead, its KeyValues in order of
// key (each with its length before it, as protodelim writes them), and the CRC32C
// of all that (4 bytes, little endian). The file store of raft has a checksum of its own for the
// file; this one also covers the way from one member to another.
const (
	snapshotMagic   = "TDMKVS\r\n"
	snapshotVersion = 1
)

type fsmSnapshot struct {
	state   kvstate.Snapshot
	applied uint64
}

// Persist implements raft.FSMSnapshot.
func (s fsmSnapshot) Persist(sink raft.SnapshotSink) error {
	if err := s.write(sink); err != nil {
		return errors.Join(err, sink.Cancel())
	}
	return sink.Close()
}

// Release implements raft.FSMSnapshot.
func (s fsmSnapshot) Release() {}

func (s fsmSnapshot) write(to io.Writer) error {
	sum := crc32.New(castagnoli)
	buf := bufio.NewWriterSize(to, 1<<16)
	w := io.MultiWriter(buf, sum)

	head := &kvdbpb.SnapshotHead{Version: snapshotVersion, Revision: int64(s.state.Revision), Keys: s.state.Len(), Applied: s.applied}
	for id, ttl := range s.state.Leases {
		head.Leases = append(head.Leases, &kvdbpb.GrantLease{Id: int64(id), TtlMs: ttl.Milliseconds()})
	}
	if _, err := io.WriteString(w, snapshotMagic); err != nil {
		return err
	}
	if _, err := protodelim.MarshalTo(w, head); err != nil {
		return err
	}
	err := s.state.Keys(func(kv kvdb.KV) error {
		_, err := protodelim.MarshalTo(w, kvToProto(kv))
		return err
	})
	if err != nil {
		return err
	}
	if err := binary.Write(buf, binary.LittleEndian, sum.Sum32()); err != nil {
		return err
	}
	return buf.Flush()
}

// snapshotContent is a snapshot that was read whole and found sound.
type snapshotContent struct {
	revision kvdb.Revision
	applied  uint64
	leases   map[kvdb.LeaseID]time.Duration
	kvs      []kvdb.KV
}

func readSnapshot(from io.Reader) (snapshotContent, error) {
	fail := func(err error) (snapshotContent, error) {
		return snapshotContent{}, fmt.Errorf("raftkv: snapshot is damaged: %w", err)
	}
	r := &summingReader{r: bufio.NewReaderSize(from, 1<<16), sum: crc32.New(castagnoli)}
	magic := make([]byte, len(snapshotMagic))
	if _, err := io.ReadFull(r, magic); err != nil {
		return fail(err)
	}
	if string(magic) != snapshotMagic {
		return fail(fmt.Errorf("it begins with %q", magic))
	}
	unmarshal := protodelim.UnmarshalOptions{MaxSize: -1}
	var head kvdbpb.SnapshotHead
	if err := unmarshal.UnmarshalFrom(r, &head); err != nil {
		return fail(err)
	}
	if head.GetVersion() != snapshotVersion {
		return snapshotContent{}, fmt.Errorf("raftkv: snapshot of version %d, this version knows %d", head.GetVersion(), snapshotVersion)
	}
	s := snapshotContent{
		revision: kvdb.Revision(head.GetRevision()),
		applied:  head.GetApplied(),
		leases:   make(map[kvdb.LeaseID]time.Duration),
	}
	for _, l := range head.GetLeases() {
		s.leases[kvdb.LeaseID(l.GetId())] = time.Duration(l.GetTtlMs()) * time.Millisecond
	}
	for range head.GetKeys() {
		var kv kvdbpb.KeyValue
		if err := unmarshal.UnmarshalFrom(r, &kv); err != nil {
			return fail(err)
		}
		s.kvs = append(s.kvs, kvFromProto(&kv))
	}
	want := r.sum.Sum32()
	var got uint32
	if err := binary.Read(r.r, binary.LittleEndian, &got); err != nil {
		return fail(err)
	}
	if got != want {
		return fail(errors.New("checksum mismatch"))
	}
	return s, nil
}

// summingReader sums up exactly what was read through it.
type summingReader struct {
	r   *bufio.Reader
	sum hash.Hash32
}

func (s *summingReader) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	s.sum.Write(p[:n])
	return n, err
}

func (s *summingReader) ReadByte() (byte, error) {
	b, err := s.r.ReadByte()
	if err == nil {
		s.sum.Write([]byte{b})
	}
	return b, err
}
