package volume

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/tandem-storage/tandem/audit"
	"github.com/tandem-storage/tandem/kvdb"
	"github.com/tandem-storage/tandem/replication"
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
		Node: "n-a", Runtime: runtime{w.configs(w.store), new(Verify)}, Orphans: func() []LocalReplica { return nil }, Switcher: endersOf(w, "n-a").switcher("n-a"),
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
	for range 2 { // a driver asks each time that it stages a copy
		do(s.ResizeVolume(ctx, &volumepb.ResizeVolumeRequest{Volume: "v", SizeBytes: 2 * gib, Actor: "kim", Reason: "full"}))
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
		"kim: volume create 0: new", "kim: host attach 3: use", "kim: volume resize 4: full", "lee: volume verify start 4: doubt", "lee: volume verify stop 4: ",
		"kim: host detach 5: ", "kim: volume delete 6: old",
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

// Of two operators who decided on the same epoch one wins.
func TestTwoOperatorsOneEpoch(t *testing.T) {
	for range 20 {
		w := newWorld(t, "a", "b")
		e := w.create(Request{Name: "v", Size: gib})
		c, epoch := w.configs(w.store), e.Config.Epoch
		var wg sync.WaitGroup
		var deleted, attached error
		wg.Go(func() { deleted = w.catalogue(w.store).DeleteAt(t.Context(), e.ID, &epoch) })
		wg.Go(func() {
			s := NewServer(w.catalogue(w.store), ServerOptions{Node: "n-a", Runtime: runtime{c, new(Verify)}, Orphans: func() []LocalReplica { return nil }})
			_, attached = s.AttachVolume(t.Context(), &volumepb.AttachVolumeRequest{Volume: "v", ExpectedEpoch: (*uint64)(&epoch)})
		})
		wg.Wait()
		if (deleted == nil) == (attached == nil) {
			t.Fatalf("deleted %v, attached %v", deleted, attached)
		}
	}
}

// An order for an epoch that is over changes nothing and is not recorded.
func TestExpectedEpoch(t *testing.T) {
	w := newWorld(t, "a", "b")
	e := w.create(Request{Name: "v", Size: gib})
	s := NewServer(w.catalogue(w.store), ServerOptions{Node: "n-a", Runtime: runtime{w.configs(w.store), new(Verify)}, Orphans: func() []LocalReplica { return nil }})
	old, now := uint64(e.Config.Epoch), uint64(3)
	if _, err := s.AttachVolume(t.Context(), &volumepb.AttachVolumeRequest{Volume: "v", ExpectedEpoch: &old}); err != nil {
		t.Fatal(err)
	}
	_, err := s.AttachVolume(t.Context(), &volumepb.AttachVolumeRequest{Volume: "v", ExpectedEpoch: &old})
	wantErr(t, err, ErrConflict)
	_, err = s.DetachVolume(t.Context(), &volumepb.DetachVolumeRequest{Volume: "v", ExpectedEpoch: &old})
	wantErr(t, err, ErrConflict)
	if _, err = s.DetachVolume(t.Context(), &volumepb.DetachVolumeRequest{Volume: "v", ExpectedEpoch: &now}); err != nil {
		t.Fatal(err)
	}
	_, err = s.DeleteVolume(t.Context(), &volumepb.DeleteVolumeRequest{Volume: "v", ExpectedEpoch: &now})
	wantErr(t, err, ErrConflict)
	_, err = s.ReplaceReplica(t.Context(), &volumepb.ReplaceReplicaRequest{Volume: "v", Replica: "n-b", ExpectedEpoch: &now})
	wantErr(t, err, ErrReplicaInSync)
	if got := trailOf(t, w); len(got) != 3 {
		t.Errorf("%q", got)
	}
}

// Of two operators who send the successor of a replica to different nodes, each going by what he saw, the second is told.
func TestTwoReplacementsOneEpoch(t *testing.T) {
	w := newWorld(t, "a", "b")
	e := w.create(Request{Name: "v", Size: gib})
	w.fault(e.ID, "b")
	w.spare("n-b2", "b")
	w.spare("n-b3", "b")
	epoch := w.get(e.ID).Config.Epoch
	c := w.catalogue(w.store)
	for _, tc := range []struct {
		node replication.NodeID
		at   replication.Epoch
		err  error
	}{{"n-b2", epoch - 1, ErrConflict}, {"n-b2", epoch, nil}, {"n-b2", epoch, nil}, {"n-b3", epoch, ErrConflict}} {
		if err := c.Replace(t.Context(), e.ID, ReplaceRequest{Replica: "n-b", Node: tc.node, ExpectedEpoch: &tc.at}); !errors.Is(err, tc.err) {
			t.Errorf("to %s at epoch %d: %v, want %v", tc.node, tc.at, err, tc.err)
		}
	}
	if got := trailOf(t, w); len(got) != 2 {
		t.Errorf("%q", got)
	}
}

// Every change of a group is recorded once, with who asked, and none that changes nothing; and so is a cut that was made.
func TestGroupOrdersAreRecorded(t *testing.T) {
	w := newWorld(t, "a", "b")
	v, u := pair(w)
	c, ctx := w.catalogue(w.store), t.Context()
	s := NewGroupServer(c, nil, zap.NewNop())
	do := func(_ any, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	before := len(trailOf(t, w))
	for range 2 {
		do(s.CreateGroup(ctx, &volumepb.CreateGroupRequest{Name: "g", Volumes: []string{v.ID.String()}, Actor: "kim", Reason: "new"}))
		do(s.ChangeGroup(ctx, &volumepb.ChangeGroupRequest{Group: "g", AddVolumes: []string{u.ID.String()}, Actor: "kim", Reason: "log"}))
		do(s.ChangeGroup(ctx, &volumepb.ChangeGroupRequest{Group: "g", AddVolumes: []string{u.ID.String()}, Actor: "kim", Reason: "log"})) // it is in
		do(s.CutGroup(ctx, &volumepb.CutGroupRequest{Group: "g", Actor: "lee", Reason: "try"}))
		do(s.ChangeGroup(ctx, &volumepb.ChangeGroupRequest{Group: "g", RemoveVolumes: []string{u.ID.String()}, Actor: "lee"}))
		do(s.DeleteGroup(ctx, &volumepb.DeleteGroupRequest{Group: "g", Actor: "kim", Reason: "old"}))
		do(s.DeleteGroup(ctx, &volumepb.DeleteGroupRequest{Group: "g", Actor: "kim", Reason: "old"}))
	}
	if _, err := s.CutGroup(ctx, &volumepb.CutGroupRequest{Group: "g", Actor: "lee"}); err == nil {
		t.Error("a group that is deleted was cut")
	}
	round := []string{"kim: group create 0: new", "kim: group add 0: log", "lee: group cut 0: try", "lee: group remove 0: ", "kim: group delete 0: old"}
	if got := trailOf(t, w)[before:]; !slices.Equal(got, slices.Concat(round, round)) {
		t.Errorf("got %q", got)
	}
}
