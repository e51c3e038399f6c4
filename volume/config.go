package volume

import (
	"crypto/rand"
	"encoding/binary"
	"slices"

	"github.com/tandem-storage/tandem/replication"
)

// firstConfig is the configuration of a new volume: every replica is in sync, they are all empty.
func firstConfig(s *Spec) *replication.Config {
	cfg := &replication.Config{
		Volume: s.ID, Epoch: 1, Gen: newGen(), Phase: replication.PhaseDetached,
		Members: make(map[replication.ReplicaID]replication.Member, len(s.Placed)),
		Size:    s.Size, ProposalID: replication.NewUUID(),
	}
	cfg.SetPolicy(s.policy())
	for _, p := range s.Placed {
		cfg.ISR = append(cfg.ISR, p.Replica)
		cfg.Members[p.Replica] = replication.Member{Node: p.Node, Domain: p.Domain, Pool: p.Pool, State: replication.MemberInSync}
	}
	cfg.History = []replication.EpochRecord{{Epoch: 1, Gen: cfg.Gen, ISR: slices.Clone(cfg.ISR), Cause: "create"}}
	return cfg
}

// nextConfig is cfg's successor in the given phase, for changes that are no coordinator's.
func nextConfig(cfg *replication.Config, p replication.Phase, cause string) *replication.Config {
	n := cfg.Clone()
	n.Epoch++
	n.Gen, n.ProposalID, n.Phase = newGen(), replication.NewUUID(), p
	n.History = append(n.History, replication.EpochRecord{Epoch: n.Epoch, Gen: n.Gen, ISR: slices.Clone(n.ISR), Cause: cause})
	if k := len(n.History) - replication.HistoryLen; k > 0 {
		n.History = slices.Delete(n.History, 0, k)
	}
	return n
}

// newGen is random and not 0.
func newGen() uint64 {
	var b [8]byte
	rand.Read(b[:]) // never fails, see crypto/rand
	return max(binary.LittleEndian.Uint64(b[:]), 1)
}

// coordinator is cfg's coordinator, the zero value if it is detached.
func coordinator(cfg *replication.Config) replication.Coord {
	if cfg.Coord == nil {
		return replication.Coord{}
	}
	return *cfg.Coord
}
