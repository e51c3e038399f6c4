package main

import (
	"context"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	domainpb "github.com/tandem-storage/tandem/clusterdomain/clusterdomainpb"
	"github.com/tandem-storage/tandem/cmd/internal/rpcstatus"
	"github.com/tandem-storage/tandem/volume/volumepb"
)

// What the flags say is what the daemon is asked.
func TestRequests(t *testing.T) {
	epoch := uint64(0)
	for _, tc := range []struct {
		args string
		want proto.Message
	}{
		{"volume create data --size 2GiB --replicas 2", &volumepb.CreateVolumeRequest{Name: "data", SizeBytes: 2 << 30, Replicas: 2,
			Protection: volumepb.Protection_PROTECTION_MAX_AVAILABILITY}},
		{"volume create d -s 4Ki --protection max-protection --domains a,,b -l x=1,y=2", &volumepb.CreateVolumeRequest{Name: "d", SizeBytes: 4096,
			Protection: volumepb.Protection_PROTECTION_MAX_PROTECTION, Domains: []string{"a", "b"}, Labels: map[string]string{"x": "1", "y": "2"}}},
		{"volume create d -s 4Ki --min-in-sync 2 --require-domains b,a --stall-for 30s", &volumepb.CreateVolumeRequest{Name: "d", SizeBytes: 4096,
			Protection: volumepb.Protection_PROTECTION_MAX_AVAILABILITY, Needs: &volumepb.Needs{InSync: 2, Domains: []string{"b", "a"}, StallMs: 30000}}},
		{"volume list --node n -l x=1", &volumepb.ListVolumesRequest{Node: "n", Labels: map[string]string{"x": "1"}}},
		{"volume delete v --force --wait", &volumepb.DeleteVolumeRequest{Volume: "v", Wait: true}},
		{"volume replica force v b1 --endpoint 127.0.0.1:1 --reason burnt --expect-epoch 8 -y", &volumepb.ForceReplicaRequest{Volume: "v", Replica: "b1", Reason: "burnt", ExpectedEpoch: proto.Uint64(8)}},
		{"volume create d -s 4Ki --reason why", &volumepb.CreateVolumeRequest{Name: "d", SizeBytes: 4096, Protection: volumepb.Protection_PROTECTION_MAX_AVAILABILITY, Reason: "why"}},
		{"volume delete v --yes --reason why --expect-epoch 0", &volumepb.DeleteVolumeRequest{Volume: "v", Reason: "why", ExpectedEpoch: &epoch}},
		{"volume replica replace v b1 -y --reason why --expect-epoch 0", &volumepb.ReplaceReplicaRequest{Volume: "v", Replica: "b1", Reason: "why", ExpectedEpoch: &epoch}},
		{"volume verify start v --reason why", &volumepb.StartVerifyRequest{Volume: "v", Reason: "why"}},
		{"volume verify stop v --reason why", &volumepb.StopVerifyRequest{Volume: "v", Reason: "why"}},
		{"host attach v --reason why --expect-epoch 0", &volumepb.AttachVolumeRequest{Volume: "v", Reason: "why", ExpectedEpoch: &epoch}},
		{"host detach v --reason why --expect-epoch 0", &volumepb.DetachVolumeRequest{Volume: "v", Reason: "why", ExpectedEpoch: &epoch}},
		{"kvdb remove w1 -y --reason why", &domainpb.RemoveKvdbMemberRequest{Member: "w1", Reason: "why"}},
		{"kvdb import --all -y --reason why", &volumepb.ImportKvdbRequest{All: true, Reason: "why"}},
		{"volume replica replace v b1 --force", &volumepb.ReplaceReplicaRequest{Volume: "v", Replica: "b1"}},
		{"volume replica replace v b1 --to-node b2 --to-pool p --wait -f", &volumepb.ReplaceReplicaRequest{Volume: "v", Replica: "b1", Node: "b2", Pool: "p", Wait: true}},
		{"group create g --volumes a,b --failover manual --reason x", &volumepb.CreateGroupRequest{Name: "g", Reason: "x", Volumes: []string{"a", "b"}, Failover: volumepb.Failover_FAILOVER_MANUAL}},
		{"group add g --volumes a --reason x", &volumepb.ChangeGroupRequest{Group: "g", Reason: "x", AddVolumes: []string{"a"}}},
		{"group remove g --volumes a,b", &volumepb.ChangeGroupRequest{Group: "g", RemoveVolumes: []string{"a", "b"}}},
		{"group cut g --hold 2s --reason x", &volumepb.CutGroupRequest{Group: "g", HoldMs: 2000, Reason: "x"}},
		{"group delete g --reason x", &volumepb.DeleteGroupRequest{Group: "g", Reason: "x"}},
		{"volume snapshot create v s --reason x", &volumepb.CreateSnapshotRequest{Volume: "v", Name: "s", Reason: "x"}},
		{"volume snapshot create v s --freeze=false", &volumepb.CreateSnapshotRequest{Volume: "v", Name: "s", NoFreeze: true}},
		{"volume snapshot list --volume v", &volumepb.ListSnapshotsRequest{Volume: "v"}},
		{"volume snapshot list --space", &volumepb.ListSnapshotsRequest{Space: true}},
		{"volume snapshot revert v s --yes --reason x", &volumepb.RevertVolumeRequest{Volume: "v", Snapshot: "s", Reason: "x"}},
		{"volume snapshot revert v --abandon --yes", &volumepb.RevertVolumeRequest{Volume: "v", Abandon: true}},
		{"volume snapshot inspect s", &volumepb.GetSnapshotRequest{Snapshot: "s", Space: true}},
		{"volume snapshot blocks s --base r --offset 4096", &volumepb.ListBlocksRequest{Snapshot: "s", Base: "r", Offset: 4096, Most: 4096}},
		{"volume snapshot delete s --yes --reason x", &volumepb.DeleteSnapshotRequest{Snapshot: "s", Reason: "x"}},
		{"volume snapshot create-group s --volumes v,u --reason x", &volumepb.CreateGroupSnapshotRequest{Name: "s", Volumes: []string{"v", "u"}, Reason: "x"}},
		{"volume snapshot group s --group g --freeze=false", &volumepb.CreateGroupSnapshotRequest{Name: "s", Group: "g", NoFreeze: true}},
		{"volume snapshot list-groups", &volumepb.ListGroupSnapshotsRequest{}},
		{"volume snapshot inspect-group s", &volumepb.GetGroupSnapshotRequest{GroupSnapshot: "s"}},
		{"volume snapshot delete-group s --yes --reason x", &volumepb.DeleteGroupSnapshotRequest{GroupSnapshot: "s", Reason: "x"}},
		{"volume snapshot restore s v --replicas 1 --domains a --reason x", &volumepb.CreateVolumeRequest{Name: "v", FromSnapshot: "s", Replicas: 1, Domains: []string{"a"}, Reason: "x",
			Protection: volumepb.Protection_PROTECTION_MAX_AVAILABILITY}},
		{"volume clone v w -l x=1", &volumepb.CreateVolumeRequest{Name: "w", FromVolume: "v", Labels: map[string]string{"x": "1"}, Protection: volumepb.Protection_PROTECTION_MAX_AVAILABILITY}},
		{"volume create v -s 4Ki --group g", &volumepb.CreateVolumeRequest{Name: "v", SizeBytes: 4096, Group: "g", Protection: volumepb.Protection_PROTECTION_MAX_AVAILABILITY}},
		{"volume create v -s 4Ki --resync-priority high", &volumepb.CreateVolumeRequest{
			Name: "v", SizeBytes: 4096, ResyncPriority: volumepb.ResyncPriority_RESYNC_PRIORITY_HIGH, Protection: volumepb.Protection_PROTECTION_MAX_AVAILABILITY,
		}},
		{"volume verify start v", &volumepb.StartVerifyRequest{Volume: "v"}},
		{"volume verify start v --rate 2Mi", &volumepb.StartVerifyRequest{Volume: "v", RateBytesPerSecond: proto.Int64(2 << 20)}},
		{"volume verify start v --rate 0", &volumepb.StartVerifyRequest{Volume: "v", RateBytesPerSecond: proto.Int64(0)}},
		{"volume verify status v", &volumepb.GetVerifyRequest{Volume: "v"}},
		{"volume verify stop v", &volumepb.StopVerifyRequest{Volume: "v"}},
		{"kvdb remove w1 --force", &domainpb.RemoveKvdbMemberRequest{Member: "w1"}},
		{"host attach v --frontend nbd --node n", &volumepb.AttachVolumeRequest{Volume: "v", Frontend: "nbd", Node: "n"}},
		{"host detach v", &volumepb.DetachVolumeRequest{Volume: "v"}},
		{"host unpublish v --node n --reason why", &volumepb.UnpublishVolumeRequest{Volume: "v", Node: "n", Reason: "why"}},
		{"cluster domains activate -n d --reason why", &domainpb.ActivateDomainRequest{Domain: "d", Reason: "why"}},
		{"cluster domains activate -n d --expect-epoch 0", &domainpb.ActivateDomainRequest{Domain: "d", ExpectedEpoch: &epoch}},
		{"cluster domains deactivate -n d --peer-lost --accept-data-loss v1,v2 -y",
			&domainpb.DeactivateDomainRequest{Domain: "d", PeerLost: true, AcceptDataLossVolumes: []string{"v1", "v2"}}},
	} {
		f := fixture()
		h := newHarness(t, f)
		if code := h.run(t.Context(), append(strings.Fields(tc.args), "--endpoint", "127.0.0.1:1")); code != rpcstatus.ExitOK {
			t.Errorf("%s: exit code %d: %s", tc.args, code, h.err.String())
			continue
		}
		if len(f.requests) != 1 || !proto.Equal(f.requests[0], tc.want) {
			t.Errorf("%s: asked %v, want %v", tc.args, f.requests, tc.want)
		}
	}
}

// Over the socket there is no certificate: the daemon is told who asks.
func TestActorOverTheSocket(t *testing.T) {
	for _, args := range []string{
		"cluster domains activate -n d", "cluster domains deactivate -n d", "volume create v -s 4Ki", "volume delete v -y", "volume replica replace v b1 -y",
		"volume verify start v", "volume verify stop v", "host attach v", "host detach v", "host unpublish v --node n", "kvdb remove w1 -y", "kvdb import --all -y",
	} {
		f := fixture()
		h := newHarness(t, f)
		h.run(t.Context(), strings.Fields(args))
		if got := f.requests[0].(interface{ GetActor() string }).GetActor(); !strings.Contains(got, "@") {
			t.Errorf("%s: the actor is %q", args, got)
		}
	}
}

func TestDaemonDown(t *testing.T) {
	h := newHarness(t, nil)
	h.env[envEndpoint] = "/run/other.sock"
	if code := h.run(t.Context(), []string{"volume", "list"}); code != rpcstatus.ExitUnavailable {
		t.Errorf("exit code %d", code)
	}
	if got := h.err.String(); !strings.Contains(got, "tandemd at /run/other.sock does not answer") || !strings.Contains(got, "Hint:  is tandemd running?") {
		t.Errorf("got %s", got)
	}
}

func TestTimeout(t *testing.T) {
	f := fixture()
	f.block = make(chan struct{})
	h := newHarness(t, f)
	if code := h.run(t.Context(), []string{"host", "detach", "v", "--timeout", "1ms"}); code != rpcstatus.ExitTimeout {
		t.Errorf("exit code %d: %s", code, h.err.String())
	}
}

func TestInterrupt(t *testing.T) {
	f := fixture()
	f.block = make(chan struct{})
	h := newHarness(t, f)
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(time.Millisecond, cancel)
	if code := h.run(ctx, []string{"host", "detach", "v", "--timeout", "0"}); code != rpcstatus.ExitInterrupted {
		t.Errorf("exit code %d: %s", code, h.err.String())
	}
}

func TestVersion(t *testing.T) {
	h := newHarness(t, fixture())
	if code := h.run(t.Context(), []string{"version"}); code != rpcstatus.ExitOK || !strings.Contains(h.out.String(), "tandemd:   v0.1.0 (node a1)") {
		t.Errorf("%d: %s%s", code, h.out.String(), h.err.String())
	}
	// Without a daemon the own version is shown, and that it is missing.
	h = newHarness(t, nil)
	if code := h.run(t.Context(), []string{"version"}); code != rpcstatus.ExitUnavailable || !strings.HasPrefix(h.out.String(), "tandemctl: ") {
		t.Errorf("%d: %s%s", code, h.out.String(), h.err.String())
	}
	h = newHarness(t, nil)
	if code := h.run(t.Context(), []string{"version", "--client", "-o", "json"}); code != rpcstatus.ExitOK || !strings.Contains(h.out.String(), `"client": "`) {
		t.Errorf("%d: %s%s", code, h.out.String(), h.err.String())
	}
}

func TestCompletion(t *testing.T) {
	for _, shell := range []string{"bash", "zsh", "fish"} {
		h := newHarness(t, nil)
		if code := h.run(t.Context(), []string{"completion", shell}); code != rpcstatus.ExitOK || !strings.Contains(h.out.String(), "tandemctl") {
			t.Errorf("%s: exit code %d, %d bytes", shell, code, h.out.Len())
		}
	}
}

func TestParseMountinfo(t *testing.T) {
	got := parseMountinfo(`22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
36 22 7:0 / /mnt/my\040data rw,noatime master:1 - xfs /dev/loop0 rw,attr2
bad line
37 22 0:5 / /proc rw - proc proc
`)
	want := []mountEntry{{"/dev/sda1", "/"}, {"/dev/loop0", "/mnt/my data"}, {"proc", "/proc"}}
	if len(got) != len(want) {
		t.Fatalf("got %v", got)
	}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("got %v, want %v", got[i], want[i])
		}
	}
}

func TestIsBlockDevice(t *testing.T) {
	for _, path := range []string{"/dev/null", t.TempDir(), "/nowhere"} {
		if err := isBlockDevice(path); err == nil {
			t.Errorf("%s was taken for a block device", path)
		}
	}
}
