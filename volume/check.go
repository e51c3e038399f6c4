package volume

import (
	"fmt"
	"slices"

	"github.com/tandem-storage/tandem/replication"
)

// checkChange reports ErrInvalidChange if a coordinator may not turn prev into next: I1, I2, and
// that nothing else was touched on the way.
func checkChange(prev, next *replication.Config) error {
	bad := func(format string, a ...any) error {
		return fmt.Errorf("%w: volume %s at epoch %d: "+format, append([]any{ErrInvalidChange, prev.Volume, prev.Epoch}, a...)...)
	}
	switch {
	case prev.Phase == replication.PhaseDeleting:
		return fmt.Errorf("%w: volume %s", ErrDeleting, prev.Volume)
	case next.Epoch != prev.Epoch+1:
		return bad("next epoch is %d", next.Epoch)
	case next.Gen == 0 || next.Gen == prev.Gen:
		return bad("no new gen")
	case next.ProposalID.IsZero() || next.ProposalID == prev.ProposalID:
		return bad("no new proposal id")
	case next.Volume != prev.Volume ||
		next.ForkGen != prev.ForkGen || next.Forced != prev.Forced:
		return bad("volume or fork differ")
	}
	if err := checkPolicy(prev, next); err != nil {
		return bad("%w", err)
	}
	if err := checkSize(prev, next); err != nil {
		return bad("%w", err)
	}
	if err := checkPhase(prev, next); err != nil {
		return bad("%s to %s: %w", prev.Phase, next.Phase, err)
	}
	if err := checkMembers(prev, next); err != nil {
		return bad("%w", err)
	}
	if err := checkHistory(prev, next); err != nil {
		return bad("history: %w", err)
	}
	return nil
}

// checkPolicy lets a coordinator that serves change the protection, and nothing else with it.
func checkPolicy(prev, next *replication.Config) error {
	p := next.Policy()
	want := *next
	if want.SetPolicy(p); next.Version != want.Version {
		return fmt.Errorf("schema version %d of a configuration of version %d", next.Version, want.Version)
	}
	if p.Equal(prev.Policy()) {
		return nil
	}
	if prev.Phase != replication.PhaseActive || next.Phase != replication.PhaseActive || len(prev.ISR) != len(next.ISR) || !subset(next.ISR, prev.ISR) {
		return fmt.Errorf("the protection changed with something else")
	}
	return p.Validate(memberDomains(next))
}

// checkSize lets a coordinator that serves make the volume larger, and change nothing else with it.
func checkSize(prev, next *replication.Config) error {
	switch serves := prev.Phase == replication.PhaseActive && next.Phase == replication.PhaseActive; {
	case next.Size == prev.Size:
		return nil
	case next.Size < prev.Size || next.Size%SizeUnit != 0 || next.Size > MaxSize:
		return fmt.Errorf("%d bytes became %d", prev.Size, next.Size)
	case !serves || len(prev.ISR) != len(next.ISR) || !subset(next.ISR, prev.ISR) || !prev.Policy().Equal(next.Policy()):
		return fmt.Errorf("the size changed with something else")
	}
	return nil
}

// memberDomains are the domains of cfg's members, one entry for each.
func memberDomains(cfg *replication.Config) (ds []replication.DomainID) {
	for _, m := range cfg.Members {
		ds = append(ds, m.Domain)
	}
	return ds
}

// checkPhase holds who may be coordinator, and what the phase lets change in the in-sync set.
func checkPhase(prev, next *replication.Config) error {
	sameISR := len(prev.ISR) == len(next.ISR) && subset(next.ISR, prev.ISR)
	switch next.Phase {
	case replication.PhaseRecovering:
		switch {
		case next.Coord == nil || next.Coord.Node == "" || next.Coord.Domain == "":
			return fmt.Errorf("no coordinator")
		case next.Coord.Term != replication.Term(next.Epoch):
			return fmt.Errorf("term %d is not the epoch", next.Coord.Term)
		case isHandover(next) && (prev.Phase != replication.PhaseActive || prev.Coord == nil ||
			next.Coord.From != replication.Handover{Node: prev.Coord.Node, AttachID: prev.Coord.AttachID, Term: prev.Coord.Term}):
			return fmt.Errorf("only an active coordinator hands over")
		case !sameISR:
			return fmt.Errorf("a takeover does not change the in-sync set")
		}
	case replication.PhaseActive:
		switch {
		case next.Coord == nil || prev.Coord == nil || *next.Coord != *prev.Coord:
			return fmt.Errorf("another coordinator without a takeover")
		case prev.Phase == replication.PhaseRecovering && !subset(next.ISR, prev.ISR):
			return fmt.Errorf("a takeover does not enlarge the in-sync set")
		}
	case replication.PhaseDetached:
		switch {
		case prev.Phase != replication.PhaseActive:
			return fmt.Errorf("only an active coordinator detaches")
		case next.Coord != nil:
			return fmt.Errorf("coordinator left behind")
		case !sameISR:
			return fmt.Errorf("a detach does not change the in-sync set")
		}
	default:
		return fmt.Errorf("not a coordinator's to write")
	}
	return nil
}

// isHandover reports whether a configuration was made by the coordinator before, for the one that it names.
func isHandover(c *replication.Config) bool {
	return c.Phase == replication.PhaseRecovering && c.Coord != nil && c.Coord.From != replication.Handover{}
}

// checkMembers holds I2 and that the member states tell the in-sync set.
func checkMembers(prev, next *replication.Config) error {
	if len(next.ISR) == 0 {
		return fmt.Errorf("the in-sync set is empty (I2)")
	}
	if len(next.Members) != len(prev.Members) {
		return fmt.Errorf("%d members became %d", len(prev.Members), len(next.Members))
	}
	for i, r := range next.ISR {
		was, ok := prev.Members[r]
		switch {
		case slices.Contains(next.ISR[:i], r):
			return fmt.Errorf("replica %s is twice in the in-sync set", r)
		case !ok:
			return fmt.Errorf("replica %s in the in-sync set is no member", r)
		case !prev.InISR(r) && was.State != replication.MemberSyncing:
			return fmt.Errorf("replica %s joins the in-sync set from %s (I2)", r, was.State)
		}
	}
	for r, m := range next.Members {
		was, ok := prev.Members[r]
		if !ok || m.Node != was.Node || m.Domain != was.Domain || m.Pool != was.Pool {
			return fmt.Errorf("replica %s appeared or moved", r)
		}
		switch m.State {
		case replication.MemberInSync, replication.MemberStale, replication.MemberSyncing, replication.MemberFaulted:
		default:
			return fmt.Errorf("replica %s has no such state: %q", r, m.State)
		}
		if (m.State == replication.MemberInSync) != next.InISR(r) {
			return fmt.Errorf("replica %s is %s against the in-sync set", r, m.State)
		}
	}
	return nil
}

// checkHistory wants next's own epoch as the last record, trimmed, on top of prev's.
func checkHistory(prev, next *replication.Config) error {
	n := len(next.History)
	switch {
	case n == 0 || next.History[n-1].Epoch != next.Epoch || next.History[n-1].Gen != next.Gen:
		return fmt.Errorf("the last record is not this epoch")
	case n > replication.HistoryLen:
		return fmt.Errorf("%d records, at most %d", n, replication.HistoryLen)
	case n != min(len(prev.History)+1, replication.HistoryLen):
		return fmt.Errorf("%d records after %d", n, len(prev.History))
	}
	old := prev.History[len(prev.History)-(n-1):]
	for i, r := range next.History[:n-1] {
		if r.Epoch != old[i].Epoch || r.Gen != old[i].Gen {
			return fmt.Errorf("record of epoch %d was changed", old[i].Epoch)
		}
	}
	return nil
}

func subset(a, b []replication.ReplicaID) bool {
	return !slices.ContainsFunc(a, func(r replication.ReplicaID) bool { return !slices.Contains(b, r) })
}
