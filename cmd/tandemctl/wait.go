package main

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/tandem-storage/tandem/clusterdomain/clusterdomainpb"
	"github.com/tandem-storage/tandem/volume/volumepb"
)

// goal says whether a domain has arrived, or why it never will.
type goal func(d *pb.Domain) (done bool, err error)

func activated(d *pb.Domain) (bool, error) {
	switch d.GetState() {
	case pb.DomainState_DOMAIN_STATE_ACTIVE:
		return d.GetSync() == pb.SyncStatus_SYNC_STATUS_IN_SYNC, nil
	case pb.DomainState_DOMAIN_STATE_REJOINING:
		return false, nil
	default:
		return false, turnedAway(d)
	}
}

func deactivated(d *pb.Domain) (bool, error) {
	switch d.GetState() {
	case pb.DomainState_DOMAIN_STATE_INACTIVE, pb.DomainState_DOMAIN_STATE_FENCED:
		return true, nil
	case pb.DomainState_DOMAIN_STATE_DRAINING:
		return false, nil
	default:
		return false, turnedAway(d)
	}
}

func turnedAway(d *pb.Domain) error {
	return stateError("", "domain %s became %s while waiting: changed by %s: %s", d.GetName(),
		enumText(d.GetState(), "DOMAIN_STATE_"), d.GetActor(), d.GetReason())
}

// waitForDomain asks until d has reached its goal, showing the resync of each
// volume that has a replica there. A daemon that does not answer for a while does not end the
// wait: after a site has failed that is to be expected.
func (a *app) waitForDomain(ctx context.Context, d *pb.Domain, reached goal) (*pb.Domain, error) {
	client, err := a.domains()
	if err != nil {
		return nil, err
	}
	ctx, cancel := a.forWaiting(ctx)
	defer cancel()
	p := newProgress(a)
	defer p.end()
	tick := time.NewTicker(a.pollInterval)
	defer tick.Stop()
	for {
		if done, err := reached(d); done || err != nil {
			return d, err
		}
		lines := []progressLine{{key: "domain", text: fmt.Sprintf("domain %s is %s, %d of %d replicas in sync", d.GetName(),
			enumText(d.GetState(), "DOMAIN_STATE_"), d.GetReplicasInSync(), d.GetReplicasTotal())}}
		for _, b := range d.GetBlocked() {
			lines = append(lines, progressLine{key: "blocked/" + b.GetVolumeId(), text: blockedText(d.GetName(), b)})
		}
		resync, err := a.resyncLines(ctx, d.GetName())
		if err != nil && !transient(ctx, err) {
			return nil, err
		}
		p.show(append(lines, resync...))

		select {
		case <-ctx.Done():
			return nil, status.FromContextError(ctx.Err()).Err()
		case <-tick.C:
		}
		l, err := client.ListDomains(ctx, &pb.ListDomainsRequest{})
		if err != nil {
			if transient(ctx, err) {
				p.show([]progressLine{{key: "error", text: "no answer, asking again: " + status.Convert(err).Message()}})
				continue
			}
			return nil, err
		}
		if d, err = domainNamed(l, d.GetName()); err != nil {
			return nil, err
		}
	}
}

// transient reports whether asking again may help, and there is time for it.
func transient(ctx context.Context, err error) bool {
	return ctx.Err() == nil && status.Code(err) == codes.Unavailable
}

func domainNamed(l *pb.ListDomainsResponse, name string) (*pb.Domain, error) {
	for _, d := range l.GetDomains() {
		if d.GetName() == name {
			return d, nil
		}
	}
	return nil, stateError("", "domain %s is gone while waiting for it", name)
}

// resyncLines has one line for each replica in the domain that is not in sync.
func (a *app) resyncLines(ctx context.Context, domain string) ([]progressLine, error) {
	client, err := a.volumes()
	if err != nil {
		return nil, err
	}
	l, err := client.ListVolumes(ctx, &volumepb.ListVolumesRequest{})
	if err != nil {
		return nil, err
	}
	var lines []progressLine
	for _, v := range l.GetVolumes() {
		for _, r := range v.GetReplicas() {
			if r.GetDomain() != domain || r.GetInSync() {
				continue
			}
			done, percent := resyncText(r)
			if v.GetAttachment() == nil {
				done += "; the volume is detached: attach it to resync"
			}
			lines = append(lines, progressLine{
				key: r.GetId(), mark: fmt.Sprint(r.GetState(), percent/10),
				text: fmt.Sprintf("volume %s on %s: %s", v.GetName(), r.GetNode(), done),
			})
		}
	}
	return lines, nil
}

// resyncText says how far the resync of a replica is, and in percent.
func resyncText(r *volumepb.Replica) (text string, percent uint64) {
	total, done := r.GetResyncTotalBytes(), min(r.GetResyncDoneBytes(), r.GetResyncTotalBytes())
	if r.GetState() != volumepb.ReplicaState_REPLICA_STATE_SYNCING || total == 0 {
		text = enumText(r.GetState(), "REPLICA_STATE_")
		if r.GetReason() != "" {
			text += ": " + r.GetReason()
		}
		if s := r.GetResyncRestsSeconds(); s > 0 {
			text += fmt.Sprintf("; rests for %s before it is resynced", time.Duration(s)*time.Second)
		}
		if r.GetResyncWaits() {
			text += "; waits for its turn to be resynced, " + bytesText(r.GetDirtyBytes()) + " to go through"
		}
		return text, 0
	}
	percent = uint64(float64(done) / float64(total) * 100)
	text = fmt.Sprintf("resync %d %%, %s of %s", percent, bytesText(done), bytesText(total))
	if r.GetResyncBytesPerSecond() > 0 {
		text += ", " + rateText(r.GetResyncBytesPerSecond())
	}
	if r.GetEtaSeconds() > 0 {
		text += fmt.Sprintf(", %s left", time.Duration(r.GetEtaSeconds())*time.Second)
	}
	return text, percent
}
