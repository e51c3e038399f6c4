package main

import (
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/tandem-storage/tandem/cmd/internal/rpcstatus"
	"github.com/tandem-storage/tandem/volume/volumepb"
)

// A change of the protection asks for what was not given as it is, in the epoch in which it was read.
func TestVolumeUpdate(t *testing.T) {
	was := attached()
	for _, tc := range []struct {
		args string
		want *volumepb.UpdateVolumeRequest
	}{
		{"--protection max-protection --stall-for 1500ms --reason why", &volumepb.UpdateVolumeRequest{
			Protection: volumepb.Protection_PROTECTION_MAX_PROTECTION, Needs: &volumepb.Needs{StallMs: 1500}, ExpectedEpoch: &was.Epoch, Reason: "why"}},
		{"--min-in-sync 2 --expect-epoch 3", &volumepb.UpdateVolumeRequest{
			Protection: was.GetProtection(), Needs: &volumepb.Needs{InSync: 2}, ExpectedEpoch: proto.Uint64(3)}},
		{"--require-domains b,a --expect-epoch 0", &volumepb.UpdateVolumeRequest{
			Protection: was.GetProtection(), Needs: &volumepb.Needs{Domains: []string{"b", "a"}}, ExpectedEpoch: proto.Uint64(0)}},
		{"--stall-for 0", &volumepb.UpdateVolumeRequest{Protection: was.GetProtection(), ExpectedEpoch: &was.Epoch}},
	} {
		f := fixture()
		h := newHarness(t, f)
		if code := h.run(t.Context(), strings.Fields("volume update --endpoint 127.0.0.1:1 "+was.GetName()+" "+tc.args)); code != rpcstatus.ExitOK {
			t.Errorf("%s: exit code %d: %s", tc.args, code, h.err.String())
			continue
		}
		tc.want.Volume = was.GetId()
		if n := len(f.requests); n != 2 || !proto.Equal(f.requests[n-1], tc.want) {
			t.Errorf("%s: asked %v, want %v last", tc.args, f.requests, tc.want)
		}
	}
	for _, args := range []string{"", "--bandwidth x", "--protection none", "--stall-for -1s", "--stall-for 1us"} {
		f := fixture()
		h := newHarness(t, f)
		if code := h.run(t.Context(), strings.Fields("volume update "+was.GetName()+" "+args)); code != rpcstatus.ExitUsage {
			t.Errorf("%q: exit code %d, want that of a mistake: %s", args, code, h.err.String())
		}
	}
}

// Limits are changed without the protection, and what is not given stays; both at once are two requests.
func TestVolumeLimits(t *testing.T) {
	was := attached()
	for _, tc := range []struct {
		args, says string
		want       *volumepb.Limits
		requests   int
	}{
		{"--iops 500", "Limits of volume " + was.GetName() + ": 500 IOPS\n", &volumepb.Limits{Iops: 500}, 2},
		{"--bandwidth 50MiB --iops 10", "10 IOPS, 50 MiB/s\n", &volumepb.Limits{Iops: 10, BandwidthBytesPerSecond: 50 << 20}, 2},
		{"--bandwidth 0", ": none\n", nil, 2},
		{"--iops 20 --protection max-protection", "20 IOPS\n", &volumepb.Limits{Iops: 20}, 3},
	} {
		f := fixture()
		h := newHarness(t, f)
		if code := h.run(t.Context(), strings.Fields("volume update --endpoint 127.0.0.1:1 "+was.GetName()+" --reason why "+tc.args)); code != rpcstatus.ExitOK {
			t.Errorf("%s: exit code %d: %s", tc.args, code, h.err.String())
			continue
		}
		want := &volumepb.LimitVolumeRequest{Volume: was.GetId(), Limits: tc.want, Reason: "why"}
		if n := len(f.requests); n != tc.requests || !proto.Equal(f.requests[n-1], want) {
			t.Errorf("%s: asked %v, want %v last", tc.args, f.requests, want)
		}
		if !strings.HasSuffix(h.out.String(), tc.says) {
			t.Errorf("%s: says %q, want %q", tc.args, h.out.String(), tc.says)
		}
	}
}

// What a volume's protection is can be read in one line.
func TestPolicyText(t *testing.T) {
	v := &volumepb.Volume{Protection: volumepb.Protection_PROTECTION_MAX_PROTECTION, Unprotected: true,
		Needs: &volumepb.Needs{InSync: 2, Domains: []string{"a", "b"}, StallMs: 90000}}
	want := "max-protection; at least 2 in sync; one in sync in a, b; writes wait for 1m30s, then go on without; UNPROTECTED NOW"
	if got := policyText(v); got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

// A resync priority is changed alone, or with limits as one request more.
func TestVolumePriority(t *testing.T) {
	was := attached()
	for _, tc := range []struct {
		args, says string
		want       volumepb.ResyncPriority
		requests   int
		exit       rpcstatus.Exit
	}{
		{"--resync-priority high", "Resync priority of volume " + was.GetName() + ": high\n", volumepb.ResyncPriority_RESYNC_PRIORITY_HIGH, 2, rpcstatus.ExitOK},
		{"--resync-priority normal --iops 20", ": normal\n", volumepb.ResyncPriority_RESYNC_PRIORITY_NORMAL, 3, rpcstatus.ExitOK},
		{"--resync-priority urgent --iops 20", "", 0, 0, rpcstatus.ExitUsage},
		{"--resync-priority HIGH", "", 0, 0, rpcstatus.ExitUsage},
		{"--resync-priority unspecified", "", 0, 0, rpcstatus.ExitUsage},
	} {
		f := fixture()
		h := newHarness(t, f)
		code := h.run(t.Context(), strings.Fields("volume update --endpoint 127.0.0.1:1 "+was.GetName()+" --reason why "+tc.args))
		if code != tc.exit || len(f.requests) != tc.requests || !strings.HasSuffix(h.out.String(), tc.says) {
			t.Errorf("%s: exit code %d, says %q %q, asked %v", tc.args, code, h.out.String(), h.err.String(), f.requests)
			continue
		}
		want := &volumepb.PrioritiseVolumeRequest{Volume: was.GetId(), ResyncPriority: tc.want, Reason: "why"}
		if tc.exit == rpcstatus.ExitOK && !proto.Equal(f.requests[tc.requests-1], want) {
			t.Errorf("%s: asked %v, want %v last", tc.args, f.requests, want)
		}
	}
}
