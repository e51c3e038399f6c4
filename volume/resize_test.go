package volume

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/tandem-storage/tandem/replication"
	"github.com/tandem-storage/tandem/volume/volumepb"
)

// A volume grows where it is attached, and then in its record; detached in its record, and where it is attached next. It never shrinks, and where there is no
// room nothing changes.
func TestResizeVolume(t *testing.T) {
	w := newWorld(t, "a", "b")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var wg sync.WaitGroup
	for _, n := range []string{"n-a", "n-b"} {
		r := w.reconciler(w.store, n)
		wg.Go(func() { r.Run(ctx) })
	}
	defer wg.Wait()
	defer cancel()
	configs := w.configs(w.store)
	s := NewServer(w.catalogue(w.store), ServerOptions{Node: "n-a", Runtime: runtime{configs, new(Verify)}, Orphans: func() []LocalReplica { return nil }})
	created, err := s.CreateVolume(ctx, &volumepb.CreateVolumeRequest{Name: "v", SizeBytes: gib})
	if err != nil {
		t.Fatal(err)
	}
	id, err := replication.ParseVolumeID(created.Volume.Id)
	if err != nil {
		t.Fatal(err)
	}
	resize := func(size int64) error {
		r, err := s.ResizeVolume(ctx, &volumepb.ResizeVolumeRequest{Volume: "v", SizeBytes: size, Reason: "test"})
		if err == nil && r.Volume.SizeBytes != uint64(size) {
			t.Errorf("%d bytes after a resize to %d", r.Volume.SizeBytes, size)
		}
		return err
	}
	check := func(what string, record, config int64) {
		t.Helper()
		e, err := s.c.Get(ctx, id)
		if err != nil || e.Size != record || e.Config.Size != config {
			t.Fatalf("%s: the record says %d bytes, the configuration %d, want %d and %d (%v)", what, e.Size, e.Config.Size, record, config, err)
		}
	}
	for _, bad := range []int64{0, -SizeUnit, gib - SizeUnit, gib + 1, MaxSize + SizeUnit} {
		wantErr(t, resize(bad), ErrInvalid)
	}
	check("refused", gib, gib)
	for range 2 {
		if err := resize(2 * gib); err != nil {
			t.Fatal(err)
		}
	}
	check("detached", 2*gib, gib)
	wantErr(t, resize(gib), ErrInvalid)
	attach := func() {
		t.Helper()
		if _, err := s.AttachVolume(ctx, &volumepb.AttachVolumeRequest{Volume: "v"}); err != nil {
			t.Fatal(err)
		}
	}
	attach()
	check("attached", 2*gib, 2*gib)
	for range 2 {
		if err := resize(3 * gib); err != nil {
			t.Fatal(err)
		}
	}
	check("grown", 3*gib, 3*gib)
	wantErr(t, resize(5*gib), replication.ErrNoRoom)
	check("without room", 3*gib, 3*gib)

	if _, err := s.DetachVolume(ctx, &volumepb.DetachVolumeRequest{Volume: "v"}); err != nil {
		t.Fatal(err)
	}
	if err := resize(5 * gib); err != nil {
		t.Fatal(err)
	}
	attach() // with what it has
	check("attached without room", 5*gib, 3*gib)
	wantErr(t, resize(5*gib), replication.ErrNoRoom)
	if err := resize(4 * gib); err != nil { // less than was wished for while it was detached
		t.Fatal(err)
	}
	check("attached, less", 4*gib, 4*gib)
}
