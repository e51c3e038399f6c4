package core

import (
	"testing"

	"github.com/tandem-storage/tandem/replication"
)

// TestNamed: only the attachment that was named, in the configuration of the handover itself, begins in the term that it was given; and only
// there nobody's leases are waited for.
func TestNamed(t *testing.T) {
	mine, other := replication.AttachID{1}, replication.AttachID{2}
	for _, tc := range []struct {
		name   string
		phase  replication.Phase
		from   replication.Term
		attach replication.AttachID
		begins bool
		ended  replication.Term
	}{
		{"named", replication.PhaseRecovering, 3, mine, true, 5},
		{"another attachment of the node", replication.PhaseRecovering, 3, other, false, 5},
		{"activated", replication.PhaseActive, 3, mine, false, 0},
		{"not handed over", replication.PhaseRecovering, 0, mine, false, 0},
	} {
		rid := replication.ReplicaID{1}
		cfg := &replication.Config{
			Version: 1, Epoch: 5, Gen: 5, Phase: tc.phase, Size: simSize, ISR: []replication.ReplicaID{rid},
			Members: map[replication.ReplicaID]replication.Member{rid: {Node: "n", State: replication.MemberInSync}},
			Coord:   &replication.Coord{Node: "n", AttachID: mine, Term: 5, From: replication.Handover{Node: "m", Term: tc.from}},
			History: []replication.EpochRecord{{Epoch: 5, Gen: 5}},
		}
		c := New(Options{Node: "n", Attach: tc.attach, Rand: func() uint64 { return 7 }}, cfg, 9)
		c.Start(1)
		if got := c.Ready().Change == nil && c.Term() == 5; got != tc.begins {
			t.Errorf("%s: begins in the term %v, want %v", tc.name, got, tc.begins)
		}
		if got := c.endedTerm(cfg); got != tc.ended {
			t.Errorf("%s: terms up to %d have ended, want %d", tc.name, got, tc.ended)
		}
	}
}
