package volume

import (
	"maps"
	"testing"

	"github.com/tandem-storage/tandem/replication"
	"github.com/tandem-storage/tandem/volume/volumepb"
)

// Limits are part of what a volume was asked to be, are changed while it is there, and every node is told of those in force.
func TestLimits(t *testing.T) {
	w := newWorld(t, "a", "b")
	asked := Limits{IOPS: 100, Bandwidth: 8 << 20}
	e, free := w.create(Request{Name: "v", Size: gib, Limits: asked}), w.create(Request{Name: "free", Size: gib})
	c, ctx := w.catalogue(w.store), t.Context()
	s := NewServer(c, ServerOptions{Node: "n-b", Runtime: runtime{w.configs(w.store), new(Verify)}, Orphans: func() []LocalReplica { return nil }})

	var told map[replication.VolumeID]Limits
	r := w.reconciler(w.store, "n-a")
	r.o.Limits = func(in map[replication.VolumeID]Limits) { told = in }
	check := func(want map[replication.VolumeID]Limits) {
		t.Helper()
		if err := r.Reconcile(ctx); err != nil {
			t.Fatal(err)
		}
		if !maps.Equal(told, want) {
			t.Errorf("a node is told %v, want %v", told, want)
		}
	}
	check(map[replication.VolumeID]Limits{e.ID: asked})

	limit := func(v string, l *volumepb.Limits) (*volumepb.Limits, error) {
		resp, err := s.LimitVolume(ctx, &volumepb.LimitVolumeRequest{Volume: v, Limits: l})
		return resp.GetVolume().GetLimits(), err
	}
	for range 2 {
		if got, err := limit("v", &volumepb.Limits{Iops: 10}); err != nil || got.GetIops() != 10 || got.GetBandwidthBytesPerSecond() != 0 {
			t.Fatalf("%v, %v", got, err)
		}
	}
	if _, err := limit(free.ID.String(), &volumepb.Limits{BandwidthBytesPerSecond: MinBandwidth}); err != nil {
		t.Fatal(err)
	}
	check(map[replication.VolumeID]Limits{e.ID: {IOPS: 10}, free.ID: {Bandwidth: MinBandwidth}})
	for _, bad := range []*volumepb.Limits{{Iops: 9}, {Iops: -1}, {BandwidthBytesPerSecond: MinBandwidth - 1}, {BandwidthBytesPerSecond: -1}} {
		_, err := limit("v", bad)
		wantErr(t, err, ErrInvalid)
		_, err = c.Create(ctx, Request{Name: "bad", Size: gib, Limits: parseLimits(bad)})
		wantErr(t, err, ErrInvalid)
	}
	if got, err := limit("v", nil); err != nil || got != nil {
		t.Fatalf("%v, %v", got, err)
	}
	check(map[replication.VolumeID]Limits{free.ID: {Bandwidth: MinBandwidth}})

	// The same creation again is the same volume, whatever its limits are now.
	if again, err := c.Create(ctx, Request{Name: "v", Size: gib, Limits: asked}); err != nil || again.ID != e.ID {
		t.Errorf("created again: %v, %v", again, err)
	}
	_, err := c.Create(ctx, Request{Name: "v", Size: gib})
	wantErr(t, err, ErrVolumeExists)
	if err := c.Delete(ctx, e.ID); err != nil {
		t.Fatal(err)
	}
	wantErr(t, c.Limit(ctx, e.ID, asked), ErrDeleting)
	wantErr(t, c.Limit(ctx, replication.VolumeID(replication.NewUUID()), asked), replication.ErrVolumeNotFound)
}
