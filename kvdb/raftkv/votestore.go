package raftkv

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"

	"github.com/hashicorp/raft"
)

// voteStore is a raft.StableStore in which the vote is one record.
//
// raft keeps its vote under two keys, set one after the other. After a crash
// between the two, the store below would hold the new term with the candidate
// of an earlier one, and raft would grant that candidate the new term as a
// repeated vote, without looking at its log (hashicorp/raft#661). Here each of
// the two sets replaces the whole record in one durable update, and a new term
// begins without a candidate: the pair is never mixed.
type voteStore struct {
	raft.StableStore // one durable update per set
}

var (
	keyLastVoteTerm = []byte("LastVoteTerm") // raft's names
	keyLastVoteCand = []byte("LastVoteCand")
	keyVote         = []byte("tandem/vote") // term (8 bytes), candidate, CRC32C of both (4 bytes)

	castagnoli = crc32.MakeTable(crc32.Castagnoli)
)

type vote struct {
	term      uint64
	candidate []byte
}

func (s voteStore) load() (vote, error) {
	raw, err := s.StableStore.Get(keyVote)
	if err != nil || len(raw) == 0 {
		return vote{}, err
	}
	if len(raw) < 12 {
		return vote{}, fmt.Errorf("raftkv: vote record of %d bytes is damaged", len(raw))
	}
	body, sum := raw[:len(raw)-4], binary.LittleEndian.Uint32(raw[len(raw)-4:])
	if crc32.Checksum(body, castagnoli) != sum {
		return vote{}, fmt.Errorf("raftkv: vote record is damaged: checksum mismatch")
	}
	v := vote{term: binary.LittleEndian.Uint64(body)}
	if len(body) > 8 {
		v.candidate = body[8:]
	}
	return v, nil
}

func (s voteStore) store(v vote) error {
	raw := binary.LittleEndian.AppendUint64(nil, v.term)
	raw = append(raw, v.candidate...)
	raw = binary.LittleEndian.AppendUint32(raw, crc32.Checksum(raw, castagnoli))
	return s.StableStore.Set(keyVote, raw)
}

func (s voteStore) Set(key, val []byte) error {
	if string(key) != string(keyLastVoteCand) {
		return s.StableStore.Set(key, val)
	}
	v, err := s.load()
	if err != nil {
		return err
	}
	v.candidate = val
	return s.store(v)
}

func (s voteStore) Get(key []byte) ([]byte, error) {
	if string(key) != string(keyLastVoteCand) {
		return s.StableStore.Get(key)
	}
	v, err := s.load()
	return v.candidate, err
}

func (s voteStore) SetUint64(key []byte, val uint64) error {
	if string(key) != string(keyLastVoteTerm) {
		return s.StableStore.SetUint64(key, val)
	}
	return s.store(vote{term: val})
}

func (s voteStore) GetUint64(key []byte) (uint64, error) {
	if string(key) != string(keyLastVoteTerm) {
		return s.StableStore.GetUint64(key)
	}
	v, err := s.load()
	return v.term, err
}
