package volume

import (
	"testing"

	"github.com/tandem-storage/tandem/replication"
)

// handover is what a coordinator makes of its own configuration for another one.
func handover(cfg *replication.Config, d replication.DomainID) *replication.Config {
	n := elect(cfg, d)
	n.Coord.From = replication.Handover{Node: cfg.Coord.Node, AttachID: cfg.Coord.AttachID, Term: cfg.Coord.Term}
	return n
}

// TestHandoverOfAConfiguration: the coordinator names another one, in its own domain's name; that one is activated, or the first takes it back.
func TestHandoverOfAConfiguration(t *testing.T) {
	_, c, cfg, rev := attached(t)
	given := handover(cfg, "b")
	_, err := c.CompareAndSwap(t.Context(), rev, given, "b")
	wantErr(t, err, ErrInvalidChange) // nobody helps himself
	rev, err = c.CompareAndSwap(t.Context(), rev, given, "a")
	wantErr(t, err, nil)
	_, err = c.CompareAndSwap(t.Context(), rev, handover(given, "a"), "b")
	wantErr(t, err, ErrInvalidChange) // who does not serve has nothing to hand over
	took := activate(given)
	served, err := c.CompareAndSwap(t.Context(), rev, took, "b")
	wantErr(t, err, nil)
	_, err = c.CompareAndSwap(t.Context(), rev, elect(given, "a"), "a")
	wantErr(t, err, ErrConflict) // too late
	forged := handover(took, "a")
	forged.Coord.From.AttachID = given.Coord.From.AttachID
	_, err = c.CompareAndSwap(t.Context(), served, forged, "b")
	wantErr(t, err, ErrInvalidChange)
	again := handover(took, "a")
	rev, err = c.CompareAndSwap(t.Context(), served, again, "b")
	wantErr(t, err, nil)
	_, err = c.CompareAndSwap(t.Context(), rev, elect(again, "b"), "b")
	wantErr(t, err, nil) // taken back
}
