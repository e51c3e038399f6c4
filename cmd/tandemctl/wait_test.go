package main

import (
	"strings"
	"testing"

	domainpb "github.com/tandem-storage/tandem/clusterdomain/clusterdomainpb"
	"github.com/tandem-storage/tandem/cmd/internal/rpcstatus"
	"github.com/tandem-storage/tandem/volume/volumepb"
)

// rejoining is a domain that becomes ACTIVE while one volume is resynced.
func rejoining() *fakeDaemon {
	f := fixture()
	f.change = domainRejoining("primary")
	f.domains, f.volumes = nil, nil
	for _, percent := range []uint64{0, 5, 12, 15, 60, 99} {
		f.domains = append(f.domains, &domainpb.ListDomainsResponse{Domains: []*domainpb.Domain{domainActive("dr-site"), domainRejoining("primary")}})
		f.volumes = append(f.volumes, &volumepb.ListVolumesResponse{Volumes: []*volumepb.Volume{degraded(percent)}})
	}
	f.domains = append(f.domains, &domainpb.ListDomainsResponse{Domains: []*domainpb.Domain{domainActive("dr-site"), domainActive("primary")}})
	return f
}

var activateWait = strings.Fields("cluster domains activate --name primary --wait")

func TestActivateWait(t *testing.T) {
	golden(t, "testdata/domains-activate-wait.golden", newHarness(t, rejoining()).transcript(t, activateWait...))
}

// With -o json only the last state is on standard output.
func TestActivateWaitJSON(t *testing.T) {
	golden(t, "testdata/domains-activate-wait-json.golden", newHarness(t, rejoining()).transcript(t, append(activateWait, "-o", "json")...))
}

// On a terminal the lines are drawn over each other, and taken away at the end.
func TestActivateWaitOnATerminal(t *testing.T) {
	h := newHarness(t, rejoining())
	h.stderrTTY = true
	got := strings.ReplaceAll(h.transcript(t, activateWait...), "\x1b", "ESC")
	golden(t, "testdata/domains-activate-wait-tty.golden", strings.ReplaceAll(got, "\r", "CR"))
}

func TestWaitEndsWhenSomebodyElseDecides(t *testing.T) {
	f := rejoining()
	f.domains[1].Domains[1].State = domainpb.DomainState_DOMAIN_STATE_FENCED
	h := newHarness(t, f)
	if code := h.run(t.Context(), activateWait); code != rpcstatus.ExitPrecondition || !strings.Contains(h.err.String(), "domain primary became FENCED while waiting") {
		t.Errorf("%d: %s", code, h.err.String())
	}
	f = rejoining()
	f.domains[1].Domains = f.domains[1].Domains[:1]
	h = newHarness(t, f)
	if code := h.run(t.Context(), activateWait); code != rpcstatus.ExitPrecondition || !strings.Contains(h.err.String(), "domain primary is gone") {
		t.Errorf("%d: %s", code, h.err.String())
	}
}

func TestWaitIsBoundedByTimeout(t *testing.T) {
	f := rejoining()
	f.domains = f.domains[:1] // for ever
	h := newHarness(t, f)
	if code := h.run(t.Context(), append(activateWait, "--timeout", "200ms")); code != rpcstatus.ExitTimeout {
		t.Errorf("%d: %s", code, h.err.String())
	}
}

// A detached volume is not resynced: whoever waits for it has to be told.
func TestWaitForADetachedVolume(t *testing.T) {
	f := rejoining()
	for _, l := range f.volumes {
		for _, v := range l.Volumes {
			v.Attachment = nil
		}
	}
	h := newHarness(t, f)
	h.run(t.Context(), activateWait)
	if !strings.Contains(h.err.String(), "the volume is detached: attach it to resync") {
		t.Errorf("%s", h.err.String())
	}
}

func TestDeactivateWait(t *testing.T) {
	draining := domain("primary", domainpb.DomainState_DOMAIN_STATE_DRAINING, domainpb.SyncStatus_SYNC_STATUS_IN_SYNC, 2)
	inactive := domain("primary", domainpb.DomainState_DOMAIN_STATE_INACTIVE, domainpb.SyncStatus_SYNC_STATUS_NOT_IN_SYNC, 0)
	f := fixture()
	f.change = draining
	f.domains = []*domainpb.ListDomainsResponse{{Domains: []*domainpb.Domain{draining}}, {Domains: []*domainpb.Domain{inactive}}}
	golden(t, "testdata/domains-deactivate-wait.golden", newHarness(t, f).transcript(t, "cluster", "domains", "deactivate", "--name", "primary", "--wait"))
}
