package volume

import (
	"context"
	"errors"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"

	"github.com/tandem-storage/tandem/clusterdomain"
	"github.com/tandem-storage/tandem/replication"
	"github.com/tandem-storage/tandem/volume/volumepb"
)

// runtime attaches by writing the configuration, as node n-a.
type runtime struct {
	c      *Configs
	verify *Verify // of a volume that is attached
}

func (r runtime) Attach(ctx context.Context, v replication.VolumeID, _ AttachOptions) (string, error) {
	cfg, rev, err := r.c.Load(ctx, v)
	if err == nil && cfg.Coord == nil {
		cfg = elect(cfg, "a")
		if rev, err = r.c.CompareAndSwap(ctx, rev, cfg, "a"); err == nil {
			_, err = r.c.CompareAndSwap(ctx, rev, activate(cfg), "a")
		}
	}
	return "/dev/loop7", err
}

func (r runtime) Detach(ctx context.Context, v replication.VolumeID) error {
	cfg, rev, err := r.c.Load(ctx, v)
	if err == nil && cfg.Coord != nil {
		_, err = r.c.CompareAndSwap(ctx, rev, detach(cfg), "a")
	}
	return err
}

func (r runtime) Status(ctx context.Context, v replication.VolumeID) Live {
	cfg, _, err := r.c.Load(ctx, v)
	if err != nil || cfg.Coord == nil {
		return Live{}
	}
	return Live{
		Verify: r.verify, Damage: Damage{Lost: []int64{4096}},
		Path: "/dev/loop7", Frontend: "fuseloop", Unreconciled: 6, Stall: &Stall{Cause: "need-replica", Text: "bring it back", Since: time.UnixMilli(5)},
		Replicas: map[replication.ReplicaID]Progress{member(cfg, "b"): {Dirty: 1, Total: 2, Done: 3, Rate: 4, ETA: 5 * time.Second}},
	}
}

func (r runtime) StartVerify(v replication.VolumeID, rate *int64) error {
	if !r.Status(context.Background(), v).attached() {
		return replication.ErrNotCoordinator
	}
	*r.verify = Verify{Running: true, Rate: 7}
	if rate != nil {
		r.verify.Rate = *rate
	}
	return nil
}

// Grow has room for 4 GiB.
func (r runtime) Grow(ctx context.Context, v replication.VolumeID, size int64) error {
	cfg, rev, err := r.c.Load(ctx, v)
	switch {
	case err != nil || cfg.Coord == nil:
		return replication.ErrNotCoordinator
	case size > 4*gib:
		return replication.ErrNoRoom
	case size == cfg.Size:
		return nil
	}
	next := nextConfig(cfg, cfg.Phase, "resize")
	next.Size = size
	_, err = r.c.CompareAndSwap(ctx, rev, next, "a")
	return err
}

func (r runtime) SetPolicy(ctx context.Context, v replication.VolumeID, p replication.Policy, expect replication.Epoch, reason string) error {
	cfg, rev, err := r.c.Load(ctx, v)
	if err != nil || cfg.Coord == nil {
		return replication.ErrNotCoordinator
	}
	if expect != 0 && expect != cfg.Epoch {
		return ErrConflict
	}
	next := nextConfig(cfg, cfg.Phase, replication.PolicyCause(reason))
	next.SetPolicy(p)
	_, err = r.c.CompareAndSwap(ctx, rev, next, "a")
	return err
}

func (r runtime) StopVerify(replication.VolumeID) error {
	*r.verify = Verify{}
	return nil
}

func (l Live) attached() bool { return l.Path != "" }

// TestAttachAfterActivation: a domain that was activated on another node a moment
// ago may attach at once, although this node has not heard of it.
func TestAttachAfterActivation(t *testing.T) {
	w := newWorld(t, "a", "b")
	w.follows = true
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var wg sync.WaitGroup
	for _, n := range []string{"n-a", "n-b"} {
		r := w.reconciler(w.store, n)
		wg.Go(func() { r.Run(ctx) })
	}
	s := NewServer(w.catalogue(w.store), ServerOptions{
		Node: "n-a", Runtime: runtime{w.configs(w.store), new(Verify)}, Orphans: func() []LocalReplica { return nil },
	})
	_, err := s.CreateVolume(ctx, &volumepb.CreateVolumeRequest{Name: "v", SizeBytes: gib})
	cancel()
	wg.Wait()
	if err != nil {
		t.Fatal(err)
	}
	w.setDomain("a", clusterdomain.Rejoining)
	w.readDomains()
	w.setDomain("a", clusterdomain.Active)
	if _, err := s.AttachVolume(t.Context(), &volumepb.AttachVolumeRequest{Volume: "v"}); err != nil {
		t.Error(err)
	}
}

func TestServer(t *testing.T) {
	w := newWorld(t, "a", "b")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var wg sync.WaitGroup
	rs := map[string]*Reconciler{}
	for _, n := range []string{"n-a", "n-b"} {
		r := w.reconciler(w.store, n)
		rs[n] = r
		wg.Go(func() { r.Run(ctx) })
	}
	defer wg.Wait()
	defer cancel()
	s := NewServer(w.catalogue(w.store), ServerOptions{Node: "n-a", Runtime: runtime{w.configs(w.store), new(Verify)}, Orphans: rs["n-a"].Orphans, Switcher: endersOf(w, "n-a").switcher("n-a")})

	created, err := s.CreateVolume(ctx, &volumepb.CreateVolumeRequest{Name: "v", SizeBytes: gib, Labels: map[string]string{"k": "x"}})
	if err != nil {
		t.Fatal(err)
	}
	v := created.Volume
	if v.Phase != volumepb.Phase_PHASE_DETACHED || v.ReplicasWanted != 2 || v.InSync != 2 || v.Replicas[0].Domain != "a" || !v.Replicas[1].NodeOnline {
		t.Errorf("%v", v)
	}
	_, err = s.CreateVolume(ctx, &volumepb.CreateVolumeRequest{Name: "w", SizeBytes: gib, Protection: 7})
	wantErr(t, err, ErrInvalid)
	_, err = s.CreateVolume(ctx, &volumepb.CreateVolumeRequest{Name: "w", SizeBytes: gib, Replicas: 1 << 31})
	wantErr(t, err, ErrInvalid)
	_, err = s.InspectVolume(ctx, &volumepb.InspectVolumeRequest{Volume: "nope"})
	wantErr(t, err, replication.ErrVolumeNotFound)
	_, err = s.StartVerify(ctx, &volumepb.StartVerifyRequest{Volume: "v"})
	wantErr(t, err, replication.ErrNotCoordinator)
	_, err = s.GetVerify(ctx, &volumepb.GetVerifyRequest{Volume: "v"})
	wantErr(t, err, replication.ErrNotCoordinator)
	_, err = s.AttachVolume(ctx, &volumepb.AttachVolumeRequest{Volume: "v", Node: "n-b"})
	wantErr(t, err, ErrOtherNode)
	if !strings.Contains(err.Error(), "b:1") {
		t.Error("does not say where to ask:", err)
	}
	for range 2 {
		a, err := s.AttachVolume(ctx, &volumepb.AttachVolumeRequest{Volume: v.Id})
		if err != nil || a.Path != "/dev/loop7" || a.Volume.Phase != volumepb.Phase_PHASE_ACTIVE || a.Volume.Attachment.Node != "n-a" ||
			a.Volume.Term != 2 || a.Volume.UnreconciledBytes != 6 || a.Volume.Stall.Cause != "need-replica" || a.Volume.Replicas[1].EtaSeconds != 5 || a.Volume.Replicas[1].ResyncBytesPerSecond != 4 {
			t.Fatal(a, err)
		}
	}
	rate := int64(-1)
	_, err = s.StartVerify(ctx, &volumepb.StartVerifyRequest{Volume: "v", RateBytesPerSecond: &rate})
	wantErr(t, err, ErrInvalid)
	rate = 9
	y, err := s.StartVerify(ctx, &volumepb.StartVerifyRequest{Volume: "v", RateBytesPerSecond: &rate})
	if err != nil || !y.Volume.Verify.Running || y.Volume.Verify.BytesPerSecond != 9 || y.Volume.Verify.LastUnixMs != 0 || y.Volume.Damage.LostOffsets[0] != 4096 {
		t.Error(y, err)
	}
	if y, err := s.GetVerify(ctx, &volumepb.GetVerifyRequest{Volume: "v"}); err != nil || !y.Volume.Verify.Running {
		t.Error(y, err)
	}
	if y, err := s.StopVerify(ctx, &volumepb.StopVerifyRequest{Volume: "v"}); err != nil || y.Volume.Verify.Running {
		t.Error(y, err)
	}
	_, err = s.DeleteVolume(ctx, &volumepb.DeleteVolumeRequest{Volume: "v"})
	wantErr(t, err, ErrAttached)
	if !strings.HasPrefix(err.Error(), "delete volume v: ") {
		t.Error("does not name the volume as it was asked for:", err)
	}
	other := NewServer(s.c, ServerOptions{Node: "n-b", Runtime: s.o.Runtime, Orphans: rs["n-b"].Orphans, Switcher: endersOf(w, "n-a").switcher("n-b")})
	_, err = other.GetVerify(ctx, &volumepb.GetVerifyRequest{Volume: "v"})
	wantErr(t, err, ErrOtherNode)
	_, err = other.DetachVolume(ctx, &volumepb.DetachVolumeRequest{Volume: "v"})
	wantErr(t, err, ErrOtherNode)
	_, err = other.AttachVolume(ctx, &volumepb.AttachVolumeRequest{Volume: "v"})
	wantErr(t, err, replication.ErrBusy)
	for range 2 {
		if _, err := s.DetachVolume(ctx, &volumepb.DetachVolumeRequest{Volume: "v"}); err != nil {
			t.Fatal(err)
		}
	}
	for req, want := range map[*volumepb.ListVolumesRequest]int{
		{}: 1, {Node: "n-b"}: 1, {Node: "n-c"}: 0, {Labels: map[string]string{"k": "x"}}: 1, {Labels: map[string]string{"k": ""}}: 0,
	} {
		if l, err := s.ListVolumes(ctx, req); err != nil || len(l.Volumes) != want {
			t.Error(req, l, err)
		}
	}
	watch(ctx, t, s)
	if l, err := s.DeleteVolume(ctx, &volumepb.DeleteVolumeRequest{Volume: "v"}); err != nil || l.Volume != nil {
		t.Error("delete of what is gone:", l, err)
	}
}

// watch follows the volume over a real stream while it is deleted.
func watch(ctx context.Context, t *testing.T, s *Server) {
	l := bufconn.Listen(1 << 16)
	g := grpc.NewServer(grpc.StreamInterceptor(func(srv any, ss grpc.ServerStream, _ *grpc.StreamServerInfo, h grpc.StreamHandler) error {
		err := h(srv, ss)
		if !errors.Is(err, replication.ErrVolumeNotFound) {
			t.Error("the stream ended with", err)
		}
		return err
	}))
	volumepb.RegisterVolumesServer(g, s)
	go g.Serve(l)
	defer g.Stop()
	conn, err := grpc.NewClient("passthrough:v", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	st, err := volumepb.NewVolumesClient(conn).WatchVolume(ctx, &volumepb.WatchVolumeRequest{Volume: "v", IntervalMs: 1})
	if err != nil {
		t.Fatal(err)
	}
	m, err := st.Recv()
	if err != nil || m.Volume.Name != "v" {
		t.Fatal(m, err)
	}
	if d, err := s.DeleteVolume(ctx, &volumepb.DeleteVolumeRequest{Volume: "v", Wait: true}); err != nil || d.Volume != nil {
		t.Fatal(d, err)
	}
	for err == nil {
		_, err = st.Recv()
	}
}
