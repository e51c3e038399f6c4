package main

import (
	"testing"

	pb "github.com/tandem-storage/tandem/volume/volumepb"
)

// What is said to be left of a volume that is out of sync: what the node knows that was asked, or who knows.
func TestMissing(t *testing.T) {
	out := func(change func(v *pb.Volume, r *pb.Replica)) *pb.Volume {
		v := degraded(50)
		r := v.Replicas[1]
		r.DirtyBytes, r.EtaSeconds = 1<<30, 0
		change(v, r)
		return v
	}
	var vs []*pb.Volume
	for _, tc := range []struct {
		v    *pb.Volume
		want string
	}{
		{attached(), "-"},
		{out(func(_ *pb.Volume, r *pb.Replica) { r.EtaSeconds = 90 }), "1.0 GiB, 1m30s"},
		{out(func(_ *pb.Volume, r *pb.Replica) { r.ResyncWaits = true }), "1.0 GiB, waits"},
		{out(func(_ *pb.Volume, _ *pb.Replica) {}), "1.0 GiB"},
		{out(func(_ *pb.Volume, r *pb.Replica) { r.DirtyBytes = 0 }), "ask b1"},
		{out(func(v *pb.Volume, r *pb.Replica) { v.Attachment, r.DirtyBytes = nil, 0 }), "attach it to resync"},
		{out(func(v *pb.Volume, _ *pb.Replica) { v.Phase = pb.Phase_PHASE_CREATING }), "-"},
	} {
		if got := missingOf(tc.v).text(tc.v); got != tc.want {
			t.Errorf("%q is left, want %q", got, tc.want)
		}
		vs = append(vs, tc.v)
	}
	const want = "7 volumes, 5 not redundant, 3.0 GiB left, 1m30s at the longest, 1 waiting for their turn, " +
		"1 of which the node knows more where they are attached, 1 detached: a resync needs them attached"
	if got := redundancyLine(vs); got != want {
		t.Errorf("all of them: %q, want %q", got, want)
	}
	if got := redundancyLine(vs[:1]); got != "1 volume, 0 not redundant" {
		t.Errorf("one in sync: %q", got)
	}
}
