package core

import (
	"fmt"
	"strings"

	"github.com/tandem-storage/tandem/replication"
)

// describe is a message in a few words.
func describe(m *replication.Message) string {
	var b strings.Builder
	b.WriteString(m.Type.String())
	if m.Seq != 0 {
		fmt.Fprintf(&b, " #%d", m.Seq)
	}
	switch m.Type {
	case replication.MsgWrite, replication.MsgZero, replication.MsgTrim, replication.MsgRead, replication.MsgResyncWrite, replication.MsgHashReq, replication.MsgExamine:
		fmt.Fprintf(&b, " %dK at %dK", m.Length>>10, m.Offset>>10)
	case replication.MsgStable:
		fmt.Fprintf(&b, " up to %d", m.StableSeq)
	default:
	}
	if m.Flags&replication.FlagFUA != 0 {
		b.WriteString(" fua")
	}
	if m.Flags&replication.FlagAsIs != 0 {
		b.WriteString(" as-is")
	}
	if m.Flags&replication.FlagCrowded != 0 {
		b.WriteString(" crowded")
	}
	if m.Type == replication.MsgNack {
		fmt.Fprintf(&b, " %v", m.Status)
	}
	return b.String()
}

func (w *simWorld) names(ids []replication.ReplicaID) []replication.NodeID {
	var s []replication.NodeID
	for _, id := range ids {
		s = append(s, w.cfg.Members[id].Node)
	}
	return s
}

func (w *simWorld) describeControl(q *Control) string {
	switch {
	case q.Seal != nil:
		return fmt.Sprintf("SEAL term %d", q.Seal.Term)
	case q.Prepare != nil:
		return fmt.Sprintf("PREPARE missing %v, mark all %v", w.names(q.Prepare.Missing), w.names(q.Prepare.MarkAll))
	case q.Commit != nil:
		return fmt.Sprintf("COMMIT epoch %d in sync %v settled %v", q.Commit.Config.Epoch, w.names(q.Commit.Config.ISR), q.Commit.Settled)
	default:
		return fmt.Sprintf("DIRTY map for %v", w.names([]replication.ReplicaID{q.Dirty.Peer}))
	}
}

func describeResult(r *ControlResult) string {
	switch {
	case r.Seal != nil:
		s := fmt.Sprintf("SEALED %v term %d %s lossy %v log-lost %v active %v", r.Seal.Status, r.Seal.Term, r.Seal.State, r.Seal.Lossy, r.Seal.LogLost, r.Seal.Active)
		if r.Seal.Crowded {
			s += " crowded"
		}
		return s
	case r.Prepare != nil:
		return fmt.Sprintf("PREPARED %v", r.Prepare.Status)
	case r.Commit != nil:
		return fmt.Sprintf("COMMITTED %v epoch %d", r.Commit.Status, r.Commit.Epoch)
	case r.Dirty != nil:
		n := NewBitmap(simSize / replication.ResyncBlock)
		n.OrBytes(r.Dirty.Bits)
		return fmt.Sprintf("DIRTY %v %d blocks", r.Dirty.Status, n.Count())
	default:
		return "failed"
	}
}
