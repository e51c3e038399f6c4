package volume

import (
	"fmt"
	"maps"
	"time"

	"github.com/tandem-storage/tandem/clusterdomain"
	"github.com/tandem-storage/tandem/replication"
	"github.com/tandem-storage/tandem/volume/volumepb"
)

// Conversions to and from the messages of the API.

func parseProtection(p volumepb.Protection) (replication.Protection, error) {
	switch p {
	case volumepb.Protection_PROTECTION_UNSPECIFIED, volumepb.Protection_PROTECTION_MAX_AVAILABILITY:
		return replication.MaxAvailability, nil
	case volumepb.Protection_PROTECTION_MAX_PROTECTION:
		return replication.MaxProtection, nil
	default:
		return "", fmt.Errorf("%w: protection %d", ErrInvalid, p)
	}
}

// volumePB makes e a message.
func volumePB(e *Entry, live Live, online map[replication.NodeID]bool) *volumepb.Volume {
	v := &volumepb.Volume{
		Id: e.ID.String(), Name: e.Name, SizeBytes: uint64(e.Size), ReplicasWanted: uint32(len(e.Placed)),
		Protection: protectionPB(e.Protection), Needs: needsPB(e.Needs), ManualFailover: e.Failover == FailoverManual, Labels: maps.Clone(e.Labels),
		CreatedUnixMs: e.Created.UnixMilli(), Progress: e.Progress(),
		UnreconciledBytes: uint64(live.Unreconciled), Group: e.Group,
	}
	if r := e.Rollback; r != nil {
		v.Stall = &volumepb.Stall{Cause: causeRollback, Text: r.describe(e.ID), SinceUnixMs: r.Time.UnixMilli()}
	}
	if st := live.Stall; st != nil {
		v.Stall = &volumepb.Stall{Cause: st.Cause, Text: st.Text, SinceUnixMs: st.Since.UnixMilli()}
	}
	v.Verify, v.Damage = verifyPB(live.Verify), damagePB(&live.Damage)
	v.Unprotected = live.Unprotected
	v.Content, v.Limits = blankPB(e.Blank), limitsPB(e.limits())
	v.Placing, v.Thick, v.JoinedGroup = placingPB(e.Placing), e.Thick, e.Joins
	v.ResyncPriority = resyncPriorityPB(e.resyncPriority())
	switch s := e.From; {
	case s == nil:
	case s.Clone:
		v.FromVolume = s.Volume.String()
	default:
		v.FromSnapshot = s.Snapshot.String()
	}
	if p := e.Published; p != nil {
		v.Publication = &volumepb.Publication{Node: string(p.Node), ReadOnly: p.ReadOnly, SinceUnixMs: p.Since.UnixMilli()}
	}
	if cfg := e.Config; cfg != nil {
		configPB(v, cfg, live, online)
	} else {
		for _, p := range e.Placed {
			v.Replicas = append(v.Replicas, &volumepb.Replica{
				Id: p.Replica.String(), Node: string(p.Node), Domain: string(p.Domain), Pool: p.Pool,
				State: volumepb.ReplicaState_REPLICA_STATE_EMPTY, NodeOnline: online[p.Node],
			})
		}
	}
	switch e.State {
	case Creating:
		v.Phase = volumepb.Phase_PHASE_CREATING
	case Deleting:
		v.Phase = volumepb.Phase_PHASE_DELETING
	case Ready: // its configuration tells
	}
	return v
}

func configPB(v *volumepb.Volume, cfg *replication.Config, live Live, online map[replication.NodeID]bool) {
	v.Phase = volumepb.Phase(volumepb.Phase_value["PHASE_"+string(cfg.Phase)])
	v.Epoch, v.InSync = uint64(cfg.Epoch), uint32(len(cfg.ISR))
	v.Protection, v.Needs = protectionPB(cfg.Protection), needsPB(cfg.Needs)
	if co := cfg.Coord; co != nil {
		v.Term = uint64(co.Term)
		v.Attachment = &volumepb.Attachment{
			Node: string(co.Node), Domain: string(co.Domain), AttachId: co.AttachID.String(), Path: live.Path, Frontend: live.Frontend,
		}
	}
	for _, id := range sortedMembers(cfg) {
		m, p := cfg.Members[id], live.Replicas[id]
		v.Replicas = append(v.Replicas, &volumepb.Replica{
			Id: id.String(), Node: string(m.Node), Domain: string(m.Domain), Pool: m.Pool,
			State:  volumepb.ReplicaState(volumepb.ReplicaState_value["REPLICA_STATE_"+string(m.State)]),
			Reason: m.Reason, InSync: cfg.InISR(id), NodeOnline: online[m.Node],
			DirtyBytes: uint64(p.Dirty), ResyncTotalBytes: uint64(p.Total), ResyncDoneBytes: uint64(p.Done),
			ResyncBytesPerSecond: uint64(p.Rate), EtaSeconds: etaSeconds(p.ETA), ResyncWaits: p.Waits, ResyncRestsSeconds: etaSeconds(p.Rests),
			HealedBlocks: uint64(p.Healed), Suspect: p.Suspect,
		})
	}
}

// etaSeconds is rounded up: 0 is for what is not known.
func etaSeconds(d time.Duration) uint64 { return uint64((d + time.Second - 1) / time.Second) }

func verifyPB(y *Verify) *volumepb.Verify {
	if y == nil {
		return nil
	}
	v := &volumepb.Verify{
		Running: y.Running, StartedUnixMs: unixMs(y.Since), DoneBytes: uint64(y.Done), TotalBytes: uint64(y.Total),
		BytesPerSecond: uint64(y.Rate), EtaSeconds: uint64(y.ETA / time.Second),
		HealedBlocks: uint64(y.Healed), RecomputedBlocks: uint64(y.Recomputed), NextUnixMs: unixMs(y.Next), Last: clusterdomain.VerifiedPB(y.Last),
	}
	if y.Last != nil {
		v.LastUnixMs = unixMs(y.Last.Ended)
	}
	return v
}

// unixMs is 0 for the zero time.
func unixMs(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMilli()
}

// mostDamage is how many blocks of a kind are listed.
const mostDamage = 64

func damagePB(d *Damage) *volumepb.Damage {
	if len(d.Lost)+len(d.Differs)+d.More == 0 {
		return nil
	}
	p := &volumepb.Damage{MoreBlocks: uint64(d.More)}
	list := func(offs []int64) (out []uint64) {
		for i, off := range offs {
			if i == mostDamage {
				p.MoreBlocks += uint64(len(offs) - i)
				break
			}
			out = append(out, uint64(off))
		}
		return out
	}
	p.LostOffsets, p.DiffersOffsets = list(d.Lost), list(d.Differs)
	return p
}

func failoverOf(manual bool) Failover {
	if manual {
		return FailoverManual
	}
	return FailoverAutomatic
}

func protectionPB(p replication.Protection) volumepb.Protection {
	if p == replication.MaxProtection {
		return volumepb.Protection_PROTECTION_MAX_PROTECTION
	}
	return volumepb.Protection_PROTECTION_MAX_AVAILABILITY
}
