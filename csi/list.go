package csi

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tandem-storage/tandem/volume/volumepb"
)

// page returns the volumes that come after token, at most most of them, 0 being all, and the next token. They are in the order of their
// ids, so that what is created and deleted between two pages moves no other one from one page to the next.
func (d *Driver) page(ctx context.Context, most int32, token string, keep func(*volumepb.Volume) bool) (vs []*volumepb.Volume, next string, _ error) {
	if most < 0 {
		return nil, "", invalid("max_entries is negative")
	}
	if token != "" && !idSyntax.MatchString(token) {
		return nil, "", status.Errorf(codes.Aborted, "starting_token is not one of this driver: list from the beginning")
	}
	resp, err := d.o.Backend.ListVolumes(ctx, &volumepb.ListVolumesRequest{})
	if err != nil {
		return nil, "", err
	}
	for _, v := range resp.GetVolumes() {
		gone := v.GetPhase() == volumepb.Phase_PHASE_CREATING || v.GetPhase() == volumepb.Phase_PHASE_DELETING
		if !gone && v.GetId() > token && keep(v) {
			vs = append(vs, v)
		}
	}
	slices.SortFunc(vs, func(a, b *volumepb.Volume) int { return cmp.Compare(a.GetId(), b.GetId()) })
	if n := int(most); n > 0 && len(vs) > n {
		vs = vs[:n]
		next = vs[n-1].GetId()
	}
	return vs, next, nil
}

func publishedTo(v *volumepb.Volume) []string {
	if p := v.GetPublication(); p != nil {
		return []string{p.GetNode()}
	}
	return nil
}

// ListVolumes implements Controller.
func (d *Driver) ListVolumes(ctx context.Context, r *spec.ListVolumesRequest) (*spec.ListVolumesResponse, error) {
	vs, next, err := d.page(ctx, r.GetMaxEntries(), r.GetStartingToken(), func(*volumepb.Volume) bool { return true })
	if err != nil {
		return nil, err
	}
	resp := &spec.ListVolumesResponse{NextToken: next}
	for _, v := range vs {
		resp.Entries = append(resp.Entries, &spec.ListVolumesResponse_Entry{
			Volume: volumeOf(v, nil), Status: &spec.ListVolumesResponse_VolumeStatus{PublishedNodeIds: publishedTo(v)},
		})
	}
	return resp, nil
}

// ControllerGetVolume implements Controller.
func (d *Driver) ControllerGetVolume(ctx context.Context, r *spec.ControllerGetVolumeRequest) (*spec.ControllerGetVolumeResponse, error) {
	id, err := ParseVolumeID(r.GetVolumeId())
	if err != nil {
		return nil, err
	}
	v, err := d.volume(ctx, id)
	if err != nil {
		return nil, err
	}
	return &spec.ControllerGetVolumeResponse{
		Volume: volumeOf(v, nil), Status: &spec.ControllerGetVolumeResponse_VolumeStatus{PublishedNodeIds: publishedTo(v)},
	}, nil
}

// ControllerGetVolumeHealth implements Controller.
func (d *Driver) ControllerGetVolumeHealth(ctx context.Context, r *spec.ControllerGetVolumeHealthRequest) (*spec.ControllerGetVolumeHealthResponse, error) {
	id, err := ParseVolumeID(r.GetVolumeId())
	if err != nil {
		return nil, err
	}
	v, err := d.volume(ctx, id)
	if err != nil {
		return nil, err
	}
	return &spec.ControllerGetVolumeHealthResponse{VolumeHealth: health(v)}, nil
}

// ControllerListVolumeHealth implements Controller: the volumes that have something.
func (d *Driver) ControllerListVolumeHealth(ctx context.Context, r *spec.ControllerListVolumeHealthRequest) (*spec.ControllerListVolumeHealthResponse, error) {
	vs, next, err := d.page(ctx, r.GetMaxEntries(), r.GetStartingToken(), func(v *volumepb.Volume) bool { return len(health(v).HealthStatuses) > 0 })
	if err != nil {
		return nil, err
	}
	resp := &spec.ControllerListVolumeHealthResponse{NextToken: next}
	for _, v := range vs {
		resp.Entries = append(resp.Entries, health(v))
	}
	return resp, nil
}

// health says what is wrong with a volume, as far as the node that is asked knows.
func health(v *volumepb.Volume) *spec.VolumeHealth {
	h := &spec.VolumeHealth{VolumeId: v.GetId()}
	add := func(bad bool, kind spec.VolumeHealthErrorType, reason, text string, a ...any) {
		if bad {
			h.HealthStatuses = append(h.HealthStatuses, &spec.VolumeHealth_VolumeHealthEntry{Status: kind, Reason: reason, Message: fmt.Sprintf(text, a...)})
		}
	}
	dmg := v.GetDamage()
	lost := len(dmg.GetLostOffsets()) + int(dmg.GetMoreBlocks())
	add(lost > 0, spec.VolumeHealthErrorType_DATA_LOSS, "BlocksLost", "%d blocks of 4 KiB cannot be read from any replica in sync", lost)
	differs := len(dmg.GetDiffersOffsets())
	add(differs > 0, spec.VolumeHealthErrorType_DATA_LOSS, "BlocksDiffer", "%d blocks of 4 KiB differ between replicas that both vouch for them", differs)
	if s := v.GetStall(); s != nil {
		add(true, spec.VolumeHealthErrorType_INACCESSIBLE, "Stalled", "I/O waits: %s", s.GetText())
	}
	add(v.GetInSync() < v.GetReplicasWanted(), spec.VolumeHealthErrorType_DEGRADED, "ReplicasNotInSync", "%d of %d replicas are in sync", v.GetInSync(), v.GetReplicasWanted())
	add(v.GetUnprotected(), spec.VolumeHealthErrorType_DEGRADED, "Unprotected", "writes go on without what the protection asks for")
	return h
}
