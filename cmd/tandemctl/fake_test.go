package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/proto"

	"github.com/tandem-storage/tandem/audit/auditpb"
	domainpb "github.com/tandem-storage/tandem/clusterdomain/clusterdomainpb"
	"github.com/tandem-storage/tandem/cmd/internal/doctor/doctorpb"
	"github.com/tandem-storage/tandem/cmd/internal/rpcstatus"
	"github.com/tandem-storage/tandem/datapath/frontend/device/devicepb"
	"github.com/tandem-storage/tandem/volume/volumepb"
)

// fakeDaemon answers every call with what the test put in, through the daemon's own
// interceptors, and notes the requests.
type fakeDaemon struct {
	domainpb.UnimplementedClusterDomainsServer
	domainpb.UnimplementedClusterServer
	volumepb.UnimplementedVolumesServer
	volumepb.UnimplementedGroupsServer
	volumepb.UnimplementedSnapshotsServer
	volumepb.UnimplementedSnapshotBlocksServer
	volumepb.UnimplementedGroupSnapshotsServer
	auditpb.UnimplementedAuditServer
	doctorpb.UnimplementedDoctorServer
	devicepb.UnimplementedDevicesServer

	err      error // of every call but GetStatus
	status   *domainpb.GetStatusResponse
	domains  []*domainpb.ListDomainsResponse // one after the other; the last one stays
	volumes  []*volumepb.ListVolumesResponse
	change   *domainpb.Domain
	imported *volumepb.ImportKvdbResponse
	trail    *auditpb.ListAuditResponse
	verdict  *auditpb.VerifyAuditResponse
	exposure *volumepb.Exposure
	refusal  string // of every SwitchOver and PlanRestart
	group    string // of a volume whose replica is forced
	examined *doctorpb.ExamineResponse
	block    <-chan struct{} // DetachVolume answers when it is closed

	mu       sync.Mutex
	requests []proto.Message
}

func (f *fakeDaemon) note(m proto.Message) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.requests = append(f.requests, m)
}

// next returns the first element and drops it unless it is the last.
func next[T any](f *fakeDaemon, list *[]*T) *T {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(*list) == 0 {
		return new(T)
	}
	m := (*list)[0]
	if len(*list) > 1 {
		*list = (*list)[1:]
	}
	return m
}

func (f *fakeDaemon) GetStatus(_ context.Context, r *domainpb.GetStatusRequest) (*domainpb.GetStatusResponse, error) {
	f.note(r)
	return f.status, nil
}

func (f *fakeDaemon) PlanRestart(_ context.Context, r *domainpb.PlanRestartRequest) (*domainpb.PlanRestartResponse, error) {
	f.note(r)
	return &domainpb.PlanRestartResponse{Granted: !r.GetCancel() && f.refusal == "", Waits: strings.Fields(f.refusal)}, f.err
}

// ListDevices is of the device process, which is another one.
func (f *fakeDaemon) ListDevices(_ context.Context, r *devicepb.ListDevicesRequest) (*devicepb.ListDevicesResponse, error) {
	f.note(r)
	return &devicepb.ListDevicesResponse{}, f.err
}

func (f *fakeDaemon) RemoveKvdbMember(_ context.Context, r *domainpb.RemoveKvdbMemberRequest) (*domainpb.RemoveKvdbMemberResponse, error) {
	f.note(r)
	return &domainpb.RemoveKvdbMemberResponse{Kvdb: f.status.GetKvdb()}, f.err
}

func (f *fakeDaemon) ListDomains(_ context.Context, r *domainpb.ListDomainsRequest) (*domainpb.ListDomainsResponse, error) {
	f.note(r)
	return next(f, &f.domains), f.err
}

func (f *fakeDaemon) ListFailovers(_ context.Context, r *domainpb.ListFailoversRequest) (*domainpb.ListFailoversResponse, error) {
	f.note(r)
	short := failedOver()
	short.Volumes, short.MoreVolumes, short.Sum = nil, 0, nil
	return &domainpb.ListFailoversResponse{Failovers: []*domainpb.FailoverReport{short}}, f.err
}

func (f *fakeDaemon) GetFailover(_ context.Context, r *domainpb.GetFailoverRequest) (*domainpb.GetFailoverResponse, error) {
	f.note(r)
	return &domainpb.GetFailoverResponse{Failover: failedOver()}, f.err
}

func (f *fakeDaemon) ActivateDomain(_ context.Context, r *domainpb.ActivateDomainRequest) (*domainpb.ActivateDomainResponse, error) {
	f.note(r)
	return &domainpb.ActivateDomainResponse{Domain: f.change}, f.err
}

func (f *fakeDaemon) SwitchOver(_ context.Context, r *volumepb.SwitchOverRequest) (*volumepb.SwitchOverResponse, error) {
	f.note(r)
	if f.err != nil && !r.DryRun {
		return nil, f.err
	}
	m := &volumepb.Move{
		VolumeId: r.Volume, VolumeName: r.Volume, FromNode: "a1", ToNode: "b1", RoundTripUs: 9800, ExpectedHoldUs: 128000,
		Action: volumepb.SwitchOverAction_SWITCH_OVER_ACTION_MOVE,
	}
	if f.refusal != "" {
		m.Action, m.Text = volumepb.SwitchOverAction_SWITCH_OVER_ACTION_REFUSED, f.refusal
	} else if !r.DryRun {
		m.Done, m.HoldUs, m.Path = true, 93400, "nbd+unix:///v.a?socket=/run/tandem/nbd.sock"
	}
	return &volumepb.SwitchOverResponse{Move: m}, nil
}

func (f *fakeDaemon) DeactivateDomain(_ context.Context, r *domainpb.DeactivateDomainRequest) (*domainpb.DeactivateDomainResponse, error) {
	f.note(r)
	return &domainpb.DeactivateDomainResponse{Domain: f.change}, f.err
}

func (f *fakeDaemon) ListAudit(_ context.Context, r *auditpb.ListAuditRequest) (*auditpb.ListAuditResponse, error) {
	f.note(r)
	return f.trail, f.err
}

func (f *fakeDaemon) VerifyAudit(_ context.Context, r *auditpb.VerifyAuditRequest) (*auditpb.VerifyAuditResponse, error) {
	f.note(r)
	return f.verdict, f.err
}

func (f *fakeDaemon) Examine(_ context.Context, r *doctorpb.ExamineRequest) (*doctorpb.ExamineResponse, error) {
	f.note(r)
	return f.examined, f.err
}

func (f *fakeDaemon) CreateVolume(_ context.Context, r *volumepb.CreateVolumeRequest) (*volumepb.CreateVolumeResponse, error) {
	f.note(r)
	v := proto.CloneOf(detached())
	v.Name, v.SizeBytes, v.Protection = r.GetName(), uint64(r.GetSizeBytes()), r.GetProtection()
	return &volumepb.CreateVolumeResponse{Volume: v}, f.err
}

func (f *fakeDaemon) ListVolumes(_ context.Context, r *volumepb.ListVolumesRequest) (*volumepb.ListVolumesResponse, error) {
	f.note(r)
	return next(f, &f.volumes), f.err
}

func (f *fakeDaemon) InspectVolume(_ context.Context, r *volumepb.InspectVolumeRequest) (*volumepb.InspectVolumeResponse, error) {
	f.note(r)
	if f.err != nil {
		return nil, f.err
	}
	for _, l := range f.volumes {
		for _, v := range l.GetVolumes() {
			if v.GetName() == r.GetVolume() || v.GetId() == r.GetVolume() {
				return &volumepb.InspectVolumeResponse{Volume: v, Exposure: f.exposure}, nil
			}
		}
	}
	return nil, errNoVolume(r.GetVolume())
}

func (f *fakeDaemon) UpdateVolume(_ context.Context, r *volumepb.UpdateVolumeRequest) (*volumepb.UpdateVolumeResponse, error) {
	f.note(r)
	v := proto.CloneOf(attached())
	v.Protection, v.Needs, v.Epoch = r.Protection, r.Needs, v.Epoch+1
	return &volumepb.UpdateVolumeResponse{Volume: v}, f.err
}

func (f *fakeDaemon) LimitVolume(_ context.Context, r *volumepb.LimitVolumeRequest) (*volumepb.LimitVolumeResponse, error) {
	f.note(r)
	v := proto.CloneOf(attached())
	v.Limits = r.Limits
	return &volumepb.LimitVolumeResponse{Volume: v}, f.err
}

func (f *fakeDaemon) PrioritiseVolume(_ context.Context, r *volumepb.PrioritiseVolumeRequest) (*volumepb.PrioritiseVolumeResponse, error) {
	f.note(r)
	v := proto.CloneOf(attached())
	v.ResyncPriority = r.ResyncPriority
	return &volumepb.PrioritiseVolumeResponse{Volume: v}, f.err
}

func (f *fakeDaemon) ResizeVolume(_ context.Context, r *volumepb.ResizeVolumeRequest) (*volumepb.ResizeVolumeResponse, error) {
	f.note(r)
	v := proto.CloneOf(attached())
	v.SizeBytes = uint64(r.SizeBytes)
	return &volumepb.ResizeVolumeResponse{Volume: v}, f.err
}

func (f *fakeDaemon) GetExposure(_ context.Context, r *volumepb.GetExposureRequest) (*volumepb.GetExposureResponse, error) {
	f.note(r)
	x := f.exposure
	if x == nil {
		return &volumepb.GetExposureResponse{VolumeId: idData, Name: "data", Exposure: &volumepb.Exposure{}}, f.err
	}
	return &volumepb.GetExposureResponse{VolumeId: idData, Name: "data", Exposure: x, Receipts: forced()}, f.err
}

func (f *fakeDaemon) DeleteVolume(_ context.Context, r *volumepb.DeleteVolumeRequest) (*volumepb.DeleteVolumeResponse, error) {
	f.note(r)
	if r.GetWait() {
		return &volumepb.DeleteVolumeResponse{}, f.err
	}
	v := proto.CloneOf(detached())
	v.Phase = volumepb.Phase_PHASE_DELETING
	return &volumepb.DeleteVolumeResponse{Volume: v}, f.err
}

func (f *fakeDaemon) ReplaceReplica(_ context.Context, r *volumepb.ReplaceReplicaRequest) (*volumepb.ReplaceReplicaResponse, error) {
	f.note(r)
	v := proto.CloneOf(attached())
	if r.GetWait() {
		v = detached()
	} else {
		v.Progress = "replica 1 is being replaced by a new one on node b2; they are exchanged when the volume is detached"
	}
	return &volumepb.ReplaceReplicaResponse{Volume: v}, f.err
}

func (f *fakeDaemon) ForceReplica(_ context.Context, r *volumepb.ForceReplicaRequest) (*volumepb.ForceReplicaResponse, error) {
	f.note(r)
	v := proto.CloneOf(detached())
	v.Epoch, v.Group = 9, f.group
	return &volumepb.ForceReplicaResponse{Volume: v, DataEpoch: 5, LostNodes: []string{"a1"}}, f.err
}

func (f *fakeDaemon) StartVerify(_ context.Context, r *volumepb.StartVerifyRequest) (*volumepb.StartVerifyResponse, error) {
	f.note(r)
	return &volumepb.StartVerifyResponse{Volume: verifying()}, f.err
}

func (f *fakeDaemon) StopVerify(_ context.Context, r *volumepb.StopVerifyRequest) (*volumepb.StopVerifyResponse, error) {
	f.note(r)
	return &volumepb.StopVerifyResponse{Volume: attached()}, f.err
}

func (f *fakeDaemon) GetVerify(_ context.Context, r *volumepb.GetVerifyRequest) (*volumepb.GetVerifyResponse, error) {
	f.note(r)
	v := verifying()
	if r.GetVolume() == idData {
		v.Verify = &volumepb.Verify{NextUnixMs: started}
	}
	return &volumepb.GetVerifyResponse{Volume: v}, f.err
}

func (f *fakeDaemon) ImportKvdb(_ context.Context, r *volumepb.ImportKvdbRequest) (*volumepb.ImportKvdbResponse, error) {
	f.note(r)
	resp := proto.CloneOf(f.imported)
	if resp != nil && r.GetDryRun() {
		resp.Written = false
	}
	return resp, f.err
}

func (f *fakeDaemon) AttachVolume(_ context.Context, r *volumepb.AttachVolumeRequest) (*volumepb.AttachVolumeResponse, error) {
	f.note(r)
	return &volumepb.AttachVolumeResponse{Path: "/dev/loop0", Volume: attached()}, f.err
}

func (f *fakeDaemon) DetachVolume(ctx context.Context, r *volumepb.DetachVolumeRequest) (*volumepb.DetachVolumeResponse, error) {
	f.note(r)
	if f.block != nil {
		select {
		case <-f.block:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return &volumepb.DetachVolumeResponse{Volume: detached()}, f.err
}

func (f *fakeDaemon) UnpublishVolume(_ context.Context, r *volumepb.UnpublishVolumeRequest) (*volumepb.UnpublishVolumeResponse, error) {
	f.note(r)
	return &volumepb.UnpublishVolumeResponse{}, f.err
}

// harness is an app whose outside world is in memory.
type harness struct {
	*app
	out, err bytes.Buffer
	env      map[string]string
	execed   []string // commands that were run
	execErr  error
	mountTab []mountEntry
}

// newHarness serves f in process. A nil f is a daemon that does not run.
func newHarness(t *testing.T, f *fakeDaemon) *harness {
	t.Helper()
	ln := bufconn.Listen(1 << 20)
	if f == nil {
		ln.Close()
	} else {
		srv := grpc.NewServer(grpc.UnaryInterceptor(rpcstatus.UnaryServerInterceptor(nil)), grpc.StreamInterceptor(rpcstatus.StreamServerInterceptor(nil)))
		domainpb.RegisterClusterDomainsServer(srv, f)
		domainpb.RegisterClusterServer(srv, f)
		volumepb.RegisterVolumesServer(srv, f)
		volumepb.RegisterGroupsServer(srv, f)
		volumepb.RegisterSnapshotsServer(srv, f)
		volumepb.RegisterSnapshotBlocksServer(srv, f)
		volumepb.RegisterGroupSnapshotsServer(srv, f)
		auditpb.RegisterAuditServer(srv, f)
		doctorpb.RegisterDoctorServer(srv, f)
		devicepb.RegisterDevicesServer(srv, f)
		done := make(chan error, 1)
		go func() { done <- srv.Serve(ln) }()
		t.Cleanup(func() {
			srv.Stop()
			if err := <-done; err != nil && !errors.Is(err, grpc.ErrServerStopped) { // stopped before it began: no call was made
				t.Error(err)
			}
		})
	}
	h := &harness{env: map[string]string{}}
	h.app = &app{
		stdin:  strings.NewReader(""),
		stdout: &h.out, stderr: &h.err,
		now:    func() time.Time { return time.UnixMilli(1_700_000_100_000) },
		getenv: func(k string) string { return h.env[k] },
		dial: func(target string, opts ...grpc.DialOption) (*grpc.ClientConn, error) {
			return grpc.NewClient("passthrough:///bufconn", append(opts, grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
				return ln.DialContext(ctx)
			}))...)
		},
		exec: func(_ context.Context, name string, args ...string) (string, error) {
			h.execed = append(h.execed, strings.Join(append([]string{name}, args...), " "))
			if h.execErr != nil {
				return "what " + name + "\nsays\n", h.execErr
			}
			return "", nil
		},
		mounts:        func() ([]mountEntry, error) { return h.mountTab, nil },
		isBlockDevice: func(path string) error { return nil },
		pollInterval:  time.Millisecond,
	}
	return h
}

// transcript is what a golden file holds: the command, its exit code and its output.
func (h *harness) transcript(t *testing.T, args ...string) string {
	t.Helper()
	code := h.run(t.Context(), args)
	var b strings.Builder
	fmt.Fprintf(&b, "$ tandemctl %s\n", strings.Join(args, " "))
	for _, e := range h.execed {
		fmt.Fprintf(&b, "-- runs: %s\n", e)
	}
	fmt.Fprintf(&b, "-- exit code: %d\n", code)
	if h.out.Len() > 0 {
		fmt.Fprintf(&b, "-- standard output:\n%s", h.out.String())
	}
	if h.err.Len() > 0 {
		fmt.Fprintf(&b, "-- standard error:\n%s", h.err.String())
	}
	return b.String()
}

func golden(t *testing.T, path, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs (go test ./cmd/tandemctl -update, then look at the diff)\ngot:\n%s\nwant:\n%s", path, got, want)
	}
}
