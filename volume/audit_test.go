package volume

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tandem-storage/tandem/audit"
	"github.com/tandem-storage/tandem/kvdb"
	"github.com/tandem-storage/tandem/volume/volumepb"
)

// trailOf is the audit trail of w, which must be intact: "actor verb epoch reason" of each entry.
func trailOf(t *testing.T, w *world) []string {
	t.Helper()
	l := audit.New(w.store, "c", "test")
	if r, err := l.Verify(t.Context()); err != nil || !r.Intact() {
		t.Errorf("%+v %v", r, err)
	}
	es, _, err := l.Entries(t.Context(), time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	var s []string
	for _, e := range es {
		s = append(s, fmt.Sprintf("%s: %s %d: %s", e.Actor, e.Verb, e.Epoch, e.Reason))
	}
	return s
}

// Every order that changes something is recorded once, with who asked, and none that does not.
func TestOrdersAreRecorded(t *testing.T) {
	w := newWorld(t, "a", "b")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	for _, n := range []string{"n-a", "n-b"} {
		r := w.reconciler(w.store, n)
		wg.Go(func() { r.Run(ctx) })
	}
	s := NewServer(w.catalogue(w.store), ServerOptions{
		Node: "n-a", Runtime: runtime{w.configs(w.store), new(Verify)}, Orphans: func() []LocalReplica { return nil },
	})
	do := func(_ any, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for range 2 { // the second time nothing is left to be done
		do(s.CreateVolume(ctx, &volumepb.CreateVolumeRequest{Name: "v", SizeBytes: gib, Actor: "kim", Reason: "new"}))
	}
	for range 2 {
		do(s.AttachVolume(ctx, &volumepb.AttachVolumeRequest{Volume: "v", Actor: "kim", Reason: "use"}))
	}
	do(s.StartVerify(ctx, &volumepb.StartVerifyRequest{Volume: "v", Actor: "lee", Reason: "doubt"}))
	do(s.StopVerify(ctx, &volumepb.StopVerifyRequest{Volume: "v", Actor: "lee"}))
	if _, err := s.DeleteVolume(ctx, &volumepb.DeleteVolumeRequest{Volume: "v", Actor: "lee"}); err == nil {
		t.Error("deleted while attached")
	}
	for range 2 {
		do(s.DetachVolume(ctx, &volumepb.DetachVolumeRequest{Volume: "v", Actor: "kim"}))
	}
	for range 2 {
		do(s.DeleteVolume(ctx, &volumepb.DeleteVolumeRequest{Volume: "v", Wait: true, Actor: "kim", Reason: "old"}))
	}
	want := []string{
		"kim: volume create 0: new", "kim: host attach 3: use", "lee: volume verify start 3: doubt", "lee: volume verify stop 3: ",
		"kim: host detach 4: ", "kim: volume delete 5: old",
	}
	if got := trailOf(t, w); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// A trail of garbage stops nobody.
func TestOrdersWithADamagedTrail(t *testing.T) {
	w := newWorld(t, "a", "b")
	for _, key := range []string{"head", "log/00000000000000000001", "log/x", "log/99999999999999999999"} {
		if _, err := kvdb.Put(t.Context(), w.store, "/tandem/c/audit/"+key, []byte("\x00")); err != nil {
			t.Fatal(err)
		}
	}
	e := w.create(Request{Name: "v", Size: gib})
	if err := w.catalogue(w.store).Delete(t.Context(), e.ID); err != nil {
		t.Fatal(err)
	}
	l := audit.New(w.store, "c", "test")
	r, err := l.Verify(t.Context())
	if err != nil || r.Intact() || r.Last != 3 || !strings.Contains(fmt.Sprint(r.Faults), "cannot be read") {
		t.Errorf("%+v %v", r, err)
	}
}
