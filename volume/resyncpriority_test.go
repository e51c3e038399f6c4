package volume

import (
	"maps"
	"testing"

	"github.com/tandem-storage/tandem/replication"
	"github.com/tandem-storage/tandem/volume/volumepb"
)

// A resync priority is part of what a volume was asked to be, is changed while it is there, without its limits, and every node is told of those in force.
func TestResyncPriority(t *testing.T) {
	const low, normal, high = volumepb.ResyncPriority_RESYNC_PRIORITY_LOW, volumepb.ResyncPriority_RESYNC_PRIORITY_NORMAL, volumepb.ResyncPriority_RESYNC_PRIORITY_HIGH
	w := newWorld(t, "a", "b")
	asked := Request{Name: "v", Size: gib, ResyncPriority: replication.ResyncLow, Limits: Limits{IOPS: 100}}
	e, other := w.create(asked), w.create(Request{Name: "other", Size: gib})
	c, ctx := w.catalogue(w.store), t.Context()
	s := NewServer(c, ServerOptions{Node: "n-b", Runtime: runtime{w.configs(w.store), new(Verify)}, Orphans: func() []LocalReplica { return nil }})
	var told map[replication.VolumeID]replication.ResyncPriority
	r := w.reconciler(w.store, "n-a")
	r.o.Priorities = func(in map[replication.VolumeID]replication.ResyncPriority) { told = in }
	check := func(want map[replication.VolumeID]replication.ResyncPriority) {
		t.Helper()
		if err := r.Reconcile(ctx); err != nil {
			t.Fatal(err)
		}
		if !maps.Equal(told, want) {
			t.Errorf("a node is told %v, want %v", told, want)
		}
	}
	check(map[replication.VolumeID]replication.ResyncPriority{e.ID: replication.ResyncLow})
	for _, tc := range []struct {
		volume string
		p      volumepb.ResyncPriority
		want   map[replication.VolumeID]replication.ResyncPriority
	}{
		{other.ID.String(), high, map[replication.VolumeID]replication.ResyncPriority{e.ID: replication.ResyncLow, other.ID: replication.ResyncHigh}},
		{"v", high, map[replication.VolumeID]replication.ResyncPriority{e.ID: replication.ResyncHigh, other.ID: replication.ResyncHigh}},
		{"v", high, map[replication.VolumeID]replication.ResyncPriority{e.ID: replication.ResyncHigh, other.ID: replication.ResyncHigh}},
		{"v", normal, map[replication.VolumeID]replication.ResyncPriority{other.ID: replication.ResyncHigh}},
		{"other", low, map[replication.VolumeID]replication.ResyncPriority{other.ID: replication.ResyncLow}},
		{"other", 0, nil},
	} {
		resp, err := s.PrioritiseVolume(ctx, &volumepb.PrioritiseVolumeRequest{Volume: tc.volume, ResyncPriority: tc.p})
		if err != nil || tc.p != 0 && resp.GetVolume().GetResyncPriority() != tc.p {
			t.Fatalf("%v, %v", resp, err)
		}
		check(tc.want)
	}
	if got, err := c.Get(ctx, e.ID); err != nil || got.limits() != asked.Limits {
		t.Errorf("its limits are %+v, %v", got, err)
	}
	_, err := s.PrioritiseVolume(ctx, &volumepb.PrioritiseVolumeRequest{Volume: "v", ResyncPriority: 9})
	wantErr(t, err, ErrInvalid)
	_, err = s.CreateVolume(ctx, &volumepb.CreateVolumeRequest{Name: "bad", SizeBytes: gib, ResyncPriority: 9})
	wantErr(t, err, ErrInvalid)
	wantErr(t, c.Prioritise(ctx, e.ID, "urgent"), ErrInvalid)
	_, err = c.Create(ctx, Request{Name: "bad", Size: gib, ResyncPriority: "urgent"})
	wantErr(t, err, ErrInvalid)

	// The same creation again is the same volume, whatever its priority is now.
	if again, err := c.Create(ctx, asked); err != nil || again.ID != e.ID {
		t.Errorf("created again: %v, %v", again, err)
	}
	asked.ResyncPriority = replication.ResyncHigh
	_, err = c.Create(ctx, asked)
	wantErr(t, err, ErrVolumeExists)
	if err := c.Delete(ctx, e.ID); err != nil {
		t.Fatal(err)
	}
	wantErr(t, c.Prioritise(ctx, e.ID, replication.ResyncHigh), ErrDeleting)
	wantErr(t, c.Prioritise(ctx, replication.VolumeID(replication.NewUUID()), replication.ResyncHigh), replication.ErrVolumeNotFound)
}
