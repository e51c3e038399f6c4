package volume

import (
	"context"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/tandem-storage/tandem/clusterdomain"
	"github.com/tandem-storage/tandem/kvdb"
	"github.com/tandem-storage/tandem/replication"
	"github.com/tandem-storage/tandem/volume/volumepb"
)

// nowhere is the runtime of a node that has nothing attached.
type nowhere struct{ Runtime }

func (nowhere) SetPolicy(context.Context, replication.VolumeID, replication.Policy, replication.Epoch, string) error {
	return replication.ErrNotCoordinator
}

func (nowhere) Status(context.Context, replication.VolumeID) Live { return Live{} }

// called is another node, without a connection.
type called struct {
	volumepb.HandoversClient
	s *Switcher
}

func (c called) ProtectVolume(ctx context.Context, r *volumepb.ProtectVolumeRequest, _ ...grpc.CallOption) (*volumepb.ProtectVolumeResponse, error) {
	return c.s.ProtectVolume(ctx, r)
}

// The protection is changed detached and attached, on any node, in the epoch that was meant only, and to what the replicas can meet; a coordinator's next
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
	here := &Switcher{Catalogue: s.c, Node: "n-a", SetPolicy: s.o.Runtime.SetPolicy}
	var dialled []string
	var down error
	other := NewServer(w.catalogue(w.store), ServerOptions{Node: "n-b", Runtime: nowhere{}, Orphans: func() []LocalReplica { return nil }, Switcher: &Switcher{
		Dial: func(n clusterdomain.Node) (volumepb.HandoversClient, func() error, error) {
			dialled = append(dialled, n.Name)
			return called{s: here}, func() error { return nil }, down
		},
	}})
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
	if len(dialled) > 0 {
		t.Errorf("nodes %v were asked about a volume that is attached nowhere", dialled)
	}
	v, err = update(other, 0, &volumepb.Needs{Domains: []string{"b"}}, 0) // by the node where it is attached
	if err != nil || v.Protection != volumepb.Protection_PROTECTION_MAX_AVAILABILITY || !slices.Equal(v.Needs.GetDomains(), []string{"b"}) || !slices.Equal(dialled, []string{"n-a"}) {
		t.Fatal(v, err, dialled)
	}
	_, err = update(other, strict, nil, 1)
	wantErr(t, err, ErrConflict) // in the epoch that was meant only
	_, err = update(other, 0, &volumepb.Needs{InSync: 3}, 0)
	wantErr(t, err, ErrInvalid)
	down = kvdb.ErrUnavailable
	_, err = update(other, strict, nil, 0)
	wantErr(t, err, kvdb.ErrUnavailable)
	if p, _, _ := policy(); p.Protection != replication.MaxAvailability || p.InSync != 0 {
		t.Errorf("refused, and %+v is in force", p)
	}
	ask := func(s *Switcher, id string, n *volumepb.Needs) error {
		_, err := s.ProtectVolume(ctx, &volumepb.ProtectVolumeRequest{Request: &volumepb.UpdateVolumeRequest{Volume: id, Needs: n}})
		return err
	}
	for _, bad := range []error{
		ask(here, "v", nil), ask(here, id.String(), &volumepb.Needs{Domains: []string{"c"}}), ask(here, id.String(), &volumepb.Needs{StallMs: 1}),
	} {
		wantErr(t, bad, ErrInvalid)
	}
	wantErr(t, ask(&Switcher{Catalogue: s.c, Node: "n-b"}, id.String(), nil), ErrConflict) // it has moved
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
