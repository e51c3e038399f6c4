package volume

import (
	"errors"
	"fmt"

	"github.com/tandem-storage/tandem/datapath/backing"
	"github.com/tandem-storage/tandem/datapath/meta"
	"github.com/tandem-storage/tandem/replication"
	"github.com/tandem-storage/tandem/replication/core"
)

// backed is a replica of a pool as Storage. The regions that are unsettled at a
// clean stop are kept in the dirty map that the replica keeps for itself.
type backed struct {
	*backing.Replica
	pool string
}

// Backed makes Storage of a replica of the local pool at path.
func Backed(r *backing.Replica, path string) Storage { return backed{r, path} }

// Pool implements Storage.
func (b backed) Pool() string { return b.pool }

var states = map[meta.State]replication.MemberState{
	meta.StateEmpty:   replication.MemberStale,
	meta.StateInSync:  replication.MemberInSync,
	meta.StateStale:   replication.MemberStale,
	meta.StateSyncing: replication.MemberSyncing,
	meta.StateFaulted: replication.MemberFaulted,
}

var metaStates = map[replication.MemberState]meta.State{
	replication.MemberInSync:  meta.StateInSync,
	replication.MemberStale:   meta.StateStale,
	replication.MemberSyncing: meta.StateSyncing,
	replication.MemberFaulted: meta.StateFaulted,
}

// Stored implements Storage.
func (b backed) Stored() (Stored, error) {
	sb := b.Superblock()
	state, ok := states[sb.State]
	if !ok {
		return Stored{}, fmt.Errorf("replication/volume: replica is %s; it can only be removed", sb.State)
	}
	s := Stored{
		Meta: core.ReplicaMeta{
			Epoch: replication.Epoch(sb.Epoch), Gen: sb.Gen, Term: replication.Term(sb.Term), State: state,
			Incarnation: replication.UUID(sb.KVIncarnation), Lossy: b.Lossy(), Clean: !b.Unclean(),
		},
		LogLost: b.Unclean(),
	}
	for _, id := range sb.ISR {
		s.Meta.ISR = append(s.Meta.ISR, replication.ReplicaID(id))
	}
	for _, id := range sb.Missing {
		s.Meta.Missing = append(s.Meta.Missing, replication.ReplicaID(id))
	}
	if s.LogLost {
		return s, nil
	}
	s.Dirty = make(map[replication.ReplicaID]*core.Bitmap)
	for _, id := range s.Meta.Missing {
		// A map that cannot be read counts as all ones.
		if m, _, err := b.DirtyMap(meta.UUID(id)); err == nil {
			s.Dirty[id] = core.NewBitmap(int(m.Blocks()))
			s.Dirty[id].OrBytes(m.Bytes())
		}
	}
	own, _, err := b.DirtyMap(b.ID())
	switch {
	case errors.Is(err, backing.ErrNotFound):
	case err != nil:
		s.LogLost = true
	default:
		for off := int64(0); off < b.Info().Size; off += replication.RegionSize {
			if own.Test(off) {
				s.Active = append(s.Active, uint32(off/replication.RegionSize))
			}
		}
	}
	return s, nil
}

// Persist implements Storage.
func (b backed) Persist(m core.ReplicaMeta) error {
	return b.UpdateSuperblock(func(sb *meta.Superblock) {
		sb.KVIncarnation = meta.UUID(m.Incarnation)
		sb.Epoch, sb.Gen, sb.Term = uint64(m.Epoch), m.Gen, uint64(m.Term)
		sb.State = metaStates[m.State]
		sb.ISR, sb.Missing = nil, nil
		for _, id := range m.ISR {
			sb.ISR = append(sb.ISR, meta.UUID(id))
		}
		for _, id := range m.Missing {
			sb.Missing = append(sb.Missing, meta.UUID(id))
		}
		sb.Lossy = m.Lossy
		if m.Clean {
			sb.Unclean = false
		}
	})
}

// CloseClean implements Storage.
func (b backed) CloseClean(active []uint32, dirty map[replication.ReplicaID]*core.Bitmap) error {
	if err := b.keep(active, dirty); err != nil {
		return errors.Join(err, b.Close()) // slower next time, not wrong
	}
	return b.Replica.CloseClean()
}

func (b backed) keep(active []uint32, dirty map[replication.ReplicaID]*core.Bitmap) error {
	save := func(id meta.UUID, mark func(*meta.DirtyMap)) error {
		m, err := b.CreateDirtyMap(id)
		if err != nil {
			return err
		}
		m.ClearAll()
		mark(m)
		return b.SaveDirtyMap(id)
	}
	size := b.Info().Size
	for id, bits := range dirty {
		err := save(meta.UUID(id), func(m *meta.DirtyMap) {
			for k := bits.Next(0); k >= 0; k = bits.Next(k + 1) {
				off := int64(k) * replication.ResyncBlock
				m.Set(off, min(replication.ResyncBlock, size-off))
			}
		})
		if err != nil {
			return err
		}
	}
	err := save(b.ID(), func(m *meta.DirtyMap) {
		for _, g := range active {
			off := int64(g) * replication.RegionSize
			m.Set(off, min(replication.RegionSize, size-off))
		}
	})
	if err != nil {
		return err
	}
	return b.UpdateSuperblock(func(sb *meta.Superblock) { sb.Unclean = false })
}
