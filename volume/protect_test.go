package volume

import (
	"context"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tandem-storage/tandem/replication"
	"github.com/tandem-storage/tandem/volume/volumepb"
)

// The protection is changed detached and attached, in the epoch that was meant only, and to what the replicas can meet; a coordinator's next
// change carries it on.
func TestUpdateVolume(t *testing.T) {
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
	other := NewServer(w.catalogue(w.store), ServerOptions{Node: "n-b", Runtime: runtime{configs, new(Verify)}, Orphans: func() []LocalReplica { return nil }})
	create := func(name string, needs *volumepb.Needs) error {
		_, err := s.CreateVolume(ctx, &volumepb.CreateVolumeRequest{Name: name, SizeBytes: gib, Needs: needs})
		return err
	}
	wantErr(t, create("v", &volumepb.Needs{Domains: []string{"c"}}), ErrInvalid)
	wantErr(t, create("v", &volumepb.Needs{InSync: 3}), ErrInvalid)
	wantErr(t, create("v", &volumepb.Needs{StallMs: 1}), ErrInvalid)
	for range 2 { // the same again
		if err := create("v", &volumepb.Needs{InSync: 2, Domains: []string{"b", "a", "b"}, StallMs: 5000}); err != nil {
			t.Fatal(err)
		}
	}
	wantErr(t, create("v", nil), ErrVolumeExists)

	id, err := s.c.Resolve(ctx, "v")
	if err != nil {
		t.Fatal(err)
	}
	policy := func() (replication.Policy, replication.Epoch, uint32) {
		t.Helper()
		cfg, _, err := configs.Load(ctx, id)
		if err != nil {
			t.Fatal(err)
		}
		return cfg.Policy(), cfg.Epoch, cfg.Version
	}
	want := replication.Policy{Protection: replication.MaxAvailability, Needs: replication.Needs{InSync: 2, Domains: []replication.DomainID{"a", "b"}, StallMs: 5000}}
	if p, _, version := policy(); !p.Equal(want) || version != 2 {
		t.Fatalf("created with %+v in version %d, want %+v", p, version, want)
	}

	update := func(s *Server, mode volumepb.Protection, n *volumepb.Needs, epoch replication.Epoch) (*volumepb.Volume, error) {
		q := &volumepb.UpdateVolumeRequest{Volume: "v", Protection: mode, Needs: n, Reason: "test"}
		if epoch != 0 {
			q.ExpectedEpoch = (*uint64)(&epoch)
		}
		r, err := s.UpdateVolume(ctx, q)
		return r.GetVolume(), err
	}
	strict := volumepb.Protection_PROTECTION_MAX_PROTECTION
	_, err = update(s, strict, nil, 7)
	wantErr(t, err, ErrConflict)
	_, err = update(s, 9, nil, 0)
	wantErr(t, err, ErrInvalid)
	_, err = update(s, 0, &volumepb.Needs{Domains: []string{"c"}}, 0)
	wantErr(t, err, replication.ErrBadPolicy)
	_, epoch, _ := policy()
	v, err := update(other, strict, nil, epoch)
	if err != nil || v.Protection != strict || v.Needs != nil || v.Epoch != uint64(epoch)+1 {
		t.Fatal(v, err)
	}
	if p, _, version := policy(); !p.Equal(replication.Policy{Protection: replication.MaxProtection}) || version != 1 {
		t.Errorf("%+v in version %d", p, version)
	}

	if _, err := s.AttachVolume(ctx, &volumepb.AttachVolumeRequest{Volume: "v"}); err != nil {
		t.Fatal(err)
	}
	_, err = update(other, 0, nil, 0)
	wantErr(t, err, ErrOtherNode)
	wantErr(t, configs.protect(ctx, id, "n-b", replication.Policy{Protection: replication.MaxAvailability}, 0, ""), ErrConflict)
	v, err = update(s, 0, &volumepb.Needs{InSync: 1}, 0)
	if err != nil || v.Needs.InSync != 1 || v.Protection != volumepb.Protection_PROTECTION_MAX_AVAILABILITY || v.Phase != volumepb.Phase_PHASE_ACTIVE {
		t.Fatal(v, err)
	}
	if _, err := s.DetachVolume(ctx, &volumepb.DetachVolumeRequest{Volume: "v"}); err != nil {
		t.Fatal(err)
	}
	cfg, _, err := configs.Load(ctx, id)
	if h := cfg.History; err != nil || h[len(h)-2].Cause != "protection: test" {
		t.Errorf("the history does not tell why: %+v, %v", h, err)
	}
	_, err = s.UpdateVolume(ctx, &volumepb.UpdateVolumeRequest{Volume: "v", Reason: strings.Repeat("x", maxReason+1)})
	wantErr(t, err, ErrInvalid)
	if p, _, _ := policy(); p.InSync != 1 {
		t.Errorf("detached with %+v", p)
	}
}

// A coordinator changes the protection alone, with the version that knows of it, to something that can be met.
func TestCheckPolicy(t *testing.T) {
	prev := activate(elect(firstConfig(&Spec{Request: Request{Size: gib, Protection: replication.MaxAvailability}, Placed: []Placement{
		{Replica: replication.ReplicaID{1}, Node: "n-a", Domain: "a"}, {Replica: replication.ReplicaID{2}, Node: "n-b", Domain: "b"},
	}}), "a"))
	two := replication.Policy{Protection: replication.MaxAvailability, Needs: replication.Needs{InSync: 2}}
	for name, tc := range map[string]struct {
		change func(n *replication.Config)
		ok     bool
	}{
		"two in sync":        {func(n *replication.Config) { n.SetPolicy(two) }, true},
		"of an old version":  {func(n *replication.Config) { n.SetPolicy(two); n.Version = 1 }, false},
		"of a later version": {func(n *replication.Config) { n.Version = 2 }, false},
		"more than there are": {func(n *replication.Config) {
			n.SetPolicy(replication.Policy{Protection: replication.MaxAvailability, Needs: replication.Needs{InSync: 3}})
		}, false},
		"with a detach": {func(n *replication.Config) { n.SetPolicy(two); n.Phase, n.Coord = replication.PhaseDetached, nil }, false},
		"with an eviction": {func(n *replication.Config) {
			n.SetPolicy(two)
			n.ISR = n.ISR[:1]
			m := n.Members[replication.ReplicaID{2}]
			m.State = replication.MemberStale
			n.Members[replication.ReplicaID{2}] = m
		}, false},
	} {
		next := nextConfig(prev, replication.PhaseActive, "protection")
		tc.change(next)
		if err := checkChange(prev, next); (err == nil) != tc.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}
