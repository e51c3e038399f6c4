package volume

import (
	"errors"
	"fmt"
	"math/bits"
	"slices"

	"github.com/tandem-storage/tandem/datapath/backing"
	"github.com/tandem-storage/tandem/datapath/meta"
	"github.com/tandem-storage/tandem/replication"
	"github.com/tandem-storage/tandem/replication/core"
)

// backed is a replica of a pool as Storage.
type backed struct {
	*backing.Replica
	pool string
}

// Backed makes Storage of a replica of the local pool at path.
func Backed(r *backing.Replica, path string) Storage { return backed{r, path} }

// Pool implements Storage.
func (b backed) Pool() string { return b.pool }

// ChecksumsOff implements Storage.
func (b backed) ChecksumsOff() error { return b.Checksums().Off }

var states = map[meta.State]replication.MemberState{
	meta.StateEmpty:   replication.MemberStale,
	meta.StateInSync:  replication.MemberInSync,
	meta.StateStale:   replication.MemberStale,
	meta.StateSyncing: replication.MemberSyncing,
	meta.StateFaulted: replication.MemberFaulted,
}

// StateOf is what a superblock's state is in a configuration. ok is false for one that no member can have.
func StateOf(s meta.State) (_ replication.MemberState, ok bool) {
	m, ok := states[s]
	return m, ok
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
	state, ok := StateOf(sb.State)
	if !ok {
		return Stored{}, fmt.Errorf("replication/volume: replica is %s; it can only be removed", sb.State)
	}
	s := Stored{
		Meta: core.ReplicaMeta{
			Epoch: replication.Epoch(sb.Epoch), Gen: sb.Gen, Term: replication.Term(sb.Term), State: state,
			Incarnation: replication.UUID(sb.KVIncarnation), Lossy: b.Lossy(), Clean: !b.Unclean(),
		},
		Slots: b.Log().Slots(), Active: b.Log().Active(), LogLost: b.Log().Lost(), Damage: b.Log().Damage(),
		Dirty: make(map[replication.ReplicaID]*core.Bitmap),
	}
	for _, id := range sb.ISR {
		s.Meta.ISR = append(s.Meta.ISR, replication.ReplicaID(id))
	}
	for _, id := range sb.Missing {
		s.Meta.Missing = append(s.Meta.Missing, replication.ReplicaID(id))
	}
	for _, id := range s.Meta.Missing {
		// A map that cannot be read counts as all ones.
		if m, _, err := b.DirtyMap(meta.UUID(id)); err == nil {
			s.Dirty[id] = core.NewBitmap(int(m.Blocks()))
			s.Dirty[id].OrBytes(m.Bytes())
		}
	}
	return s, nil
}

// Persist implements Storage.
func (b backed) Persist(p core.Persist) error {
	if p.Size != 0 {
		return b.Grow(p.Size)
	}
	if p.Meta != nil {
		for _, id := range p.Meta.Missing {
			if _, err := b.CreateDirtyMap(meta.UUID(id)); err != nil {
				return err
			}
		}
	}
	if err := b.saveMaps(p.Maps); err != nil || p.Meta == nil {
		return err
	}
	if err := b.writeMeta(p.Meta); err != nil {
		return err
	}
	peers, err := b.DirtyPeers()
	if err != nil {
		return err
	}
	for _, q := range peers {
		if slices.Contains(p.Meta.Missing, replication.ReplicaID(q)) {
			continue
		}
		if err := b.RemoveDirtyMap(q); err != nil {
			return err
		}
	}
	return nil
}

// saveMaps makes parts of dirty maps durable.
func (b backed) saveMaps(parts []core.MapPart) error {
	for len(parts) > 0 {
		peer := parts[0].Peer
		m, err := b.CreateDirtyMap(meta.UUID(peer))
		if err != nil {
			return err
		}
		for ; len(parts) > 0 && parts[0].Peer == peer; parts = parts[1:] {
			off := int64(parts[0].Region) * replication.RegionSize
			for w := parts[0].Bits; w != 0; {
				first := bits.TrailingZeros64(w)
				n := bits.TrailingZeros64(^(w >> first))
				m.Set(off+int64(first)*replication.ResyncBlock, int64(n)*replication.ResyncBlock)
				w &^= (1<<n - 1) << first
			}
		}
		if err := b.SaveDirtyMap(meta.UUID(peer)); err != nil {
			return err
		}
	}
	return nil
}

func (b backed) writeMeta(m *core.ReplicaMeta) error {
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

// ChangeLog implements Storage.
func (b backed) ChangeLog(c core.LogChange, done func(error)) {
	l := b.Log()
	l.Retire(c.Retire, uint64(c.Stable))
	if c.Lost != l.Lost() {
		l.SetLost(c.Lost)
		if done == nil {
			return
		}
		l.Activate(c.Activate, func(err error) {
			if err != nil {
				done(err)
				return
			}
			l.Flush(done)
		})
		return
	}
	switch {
	case done == nil:
	case len(c.Activate) > 0:
		l.Activate(c.Activate, done)
	default:
		l.Flush(done)
	}
}

// CloseClean implements Storage.
func (b backed) CloseClean(rest core.Rest) error {
	if err := b.saveMaps(rest.Maps); err != nil {
		return errors.Join(err, b.Close()) // what the log has does for what is not stored
	}
	b.Log().Retire(rest.Retire, 0)
	return b.Replica.CloseClean()
}
