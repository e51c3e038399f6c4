package csi

import (
	"context"
	"fmt"
	"maps"
	"slices"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	selector "k8s.io/apimachinery/pkg/labels"

	"github.com/tandem-storage/tandem/clusterdomain/clusterdomainpb"
	"github.com/tandem-storage/tandem/volume/volumepb"
)

const (
	unit        = 4096    // sizes are multiples of it, bytes
	defaultSize = 1 << 30 // where none is asked for
	maxSize     = 1 << 50 // of the daemon
)

// ControllerGetCapabilities implements Controller.
func (d *Driver) ControllerGetCapabilities(context.Context, *spec.ControllerGetCapabilitiesRequest) (*spec.ControllerGetCapabilitiesResponse, error) {
	resp := &spec.ControllerGetCapabilitiesResponse{}
	for _, t := range []spec.ControllerServiceCapability_RPC_Type{
		spec.ControllerServiceCapability_RPC_CREATE_DELETE_VOLUME,
		spec.ControllerServiceCapability_RPC_PUBLISH_UNPUBLISH_VOLUME,
		spec.ControllerServiceCapability_RPC_PUBLISH_READONLY,
		spec.ControllerServiceCapability_RPC_LIST_VOLUMES,
		spec.ControllerServiceCapability_RPC_LIST_VOLUMES_PUBLISHED_NODES,
		spec.ControllerServiceCapability_RPC_GET_CAPACITY,
		spec.ControllerServiceCapability_RPC_GET_VOLUME,
		spec.ControllerServiceCapability_RPC_GET_VOLUME_HEALTH,
		spec.ControllerServiceCapability_RPC_LIST_VOLUME_HEALTH,
		spec.ControllerServiceCapability_RPC_SINGLE_NODE_MULTI_WRITER,
		spec.ControllerServiceCapability_RPC_MODIFY_VOLUME,
		spec.ControllerServiceCapability_RPC_EXPAND_VOLUME,
		spec.ControllerServiceCapability_RPC_CREATE_DELETE_SNAPSHOT,
		spec.ControllerServiceCapability_RPC_LIST_SNAPSHOTS,
		spec.ControllerServiceCapability_RPC_GET_SNAPSHOT,
		spec.ControllerServiceCapability_RPC_CLONE_VOLUME,
	} {
		resp.Capabilities = append(resp.Capabilities, &spec.ControllerServiceCapability{
			Type: &spec.ControllerServiceCapability_Rpc{Rpc: &spec.ControllerServiceCapability_RPC{Type: t}},
		})
	}
	return resp, nil
}

// size chooses the size of a volume of these uses.
func size(r *spec.CapacityRange, us []use) (int64, error) {
	required, limit := r.GetRequiredBytes(), r.GetLimitBytes()
	switch {
	case required < 0 || limit < 0:
		return 0, invalid("capacity_range: a size is negative")
	case required > maxSize:
		return 0, status.Errorf(codes.OutOfRange, "capacity_range: %d bytes are required, at most %d are possible", required, int64(maxSize))
	}
	least := int64(unit)
	for _, u := range us {
		least = max(least, u.leastSize())
	}
	n := max(required, least)
	if required == 0 {
		n = max(least, defaultSize)
		if limit > 0 && limit < n {
			n = max(least, limit/unit*unit)
		}
	}
	n = (n + unit - 1) / unit * unit
	if limit > 0 && n > limit {
		return 0, status.Errorf(codes.OutOfRange, "capacity_range: at most %d bytes are allowed, the least that is possible is %d", limit, n)
	}
	return n, nil
}

// CreateVolume implements Controller.
func (d *Driver) CreateVolume(ctx context.Context, r *spec.CreateVolumeRequest) (*spec.CreateVolumeResponse, error) {
	if r.GetName() == "" {
		return nil, invalid("name is missing")
	}
	us, err := parseUses(r.GetVolumeCapabilities())
	if err != nil {
		return nil, err
	}
	want := &volumepb.CreateVolumeRequest{Name: volumeName(r.GetName()), ManualFailover: true, Actor: actor}
	if err := apply(want, r.GetParameters(), false); err != nil {
		return nil, err
	}
	if err := nameGroup(want, r.GetParameters()); err != nil {
		return nil, err
	}
	if err := apply(want, r.GetMutableParameters(), true); err != nil {
		return nil, err
	}
	if want.SizeBytes, err = size(r.GetCapacityRange(), us); err != nil {
		return nil, err
	}
	leave, err := d.pass("name/"+want.Name, "CreateVolume")
	if err != nil {
		return nil, err
	}
	defer leave()
	grow := want.SizeBytes
	if r.GetVolumeContentSource() != nil {
		if grow, err = d.fill(ctx, want, r); err != nil {
			return nil, err
		}
	}
	v, err := d.existing(ctx, want, r)
	if err != nil {
		return nil, err
	}
	if v == nil {
		if v, err = d.create(ctx, want, r.GetAccessibilityRequirements()); err != nil {
			return nil, err
		}
	}
	if copied(v) {
		if v, err = d.grown(ctx, v, grow); err != nil {
			return nil, err
		}
	}
	sv := volumeOf(v, volumeContext(r.GetParameters()))
	sv.ContentSource = r.GetVolumeContentSource()
	return &spec.CreateVolumeResponse{Volume: sv}, nil
}

// existing returns the volume of that name, nil if there is none. ALREADY_EXISTS: it is not what is asked for.
func (d *Driver) existing(ctx context.Context, want *volumepb.CreateVolumeRequest, r *spec.CreateVolumeRequest) (*volumepb.Volume, error) {
	resp, err := d.o.Backend.InspectVolume(ctx, &volumepb.InspectVolumeRequest{Volume: want.Name})
	if status.Code(err) == codes.NotFound {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	v := resp.GetVolume()
	other := func(what string) error {
		return status.Errorf(codes.AlreadyExists, "a volume %s exists with another %s", v.GetName(), what)
	}
	cr := r.GetCapacityRange()
	protection := want.Protection
	if protection == volumepb.Protection_PROTECTION_UNSPECIFIED {
		protection = volumepb.Protection_PROTECTION_MAX_AVAILABILITY
	}
	switch n := int64(v.GetSizeBytes()); {
	case v.GetPhase() == volumepb.Phase_PHASE_CREATING:
		return nil, nil // it is waited for
	case n < cr.GetRequiredBytes() && !unfinished(v, want) || cr.GetLimitBytes() > 0 && n > cr.GetLimitBytes():
		return nil, other("size")
	case v.GetFromSnapshot() != want.FromSnapshot || v.GetFromVolume() != want.FromVolume:
		return nil, other("source")
	case want.Replicas > 0 && v.GetReplicasWanted() != want.Replicas:
		return nil, other("number of replicas")
	case v.GetProtection() != protection:
		return nil, other("protection")
	case v.GetJoinedGroup() != want.Group:
		return nil, other("group")
	case v.GetManualFailover() != want.ManualFailover:
		return nil, other("failover")
	case !samePlacing(v.GetPlacing(), want.GetPlacing()):
		return nil, other("place")
	case v.GetThick() != want.Thick:
		return nil, other("use of space")
	case !sameNeeds(v.GetNeeds(), want.GetNeeds()):
		return nil, other("need of replicas")
	case len(want.Domains) > 0 && slices.ContainsFunc(domainsOf(v), func(n string) bool { return !slices.Contains(want.Domains, n) }):
		return nil, other("place")
	case !accessible(v, r.GetAccessibilityRequirements()):
		return nil, other("topology")
	}
	return v, nil
}

// samePlacing compares what selectors say, which can be written in more than one way.
func samePlacing(a, b *volumepb.Placing) bool {
	same := func(x, y string) bool {
		p, err := selector.Parse(x)
		q, err2 := selector.Parse(y)
		return err == nil && err2 == nil && p.String() == q.String()
	}
	return a.GetClass() == b.GetClass() && a.GetSpread() == b.GetSpread() &&
		same(a.GetNodes(), b.GetNodes()) && same(a.GetNear(), b.GetNear()) && same(a.GetApart(), b.GetApart())
}

func sameNeeds(a, b *volumepb.Needs) bool {
	if a == nil {
		a = &volumepb.Needs{}
	}
	if b == nil {
		b = &volumepb.Needs{}
	}
	return proto.Equal(a, b)
}

// create makes a volume where the topology wants it.
func (d *Driver) create(ctx context.Context, want *volumepb.CreateVolumeRequest, top *spec.TopologyRequirement) (*volumepb.Volume, error) {
	s, err := d.o.Backend.GetStatus(ctx, &clusterdomainpb.GetStatusRequest{})
	if err != nil {
		return nil, err
	}
	if p := top.GetPreferred(); len(p) > 0 { // the first one is where the scheduler puts the first pod, of a class that waits for it
		want.NearNode = p[0].GetSegments()[TopologyNode]
	}
	if want.FromSnapshot == "" && want.FromVolume == "" { // its place is that of the source, see fill
		if err := place(want, s, top); err != nil {
			return nil, err
		}
	}
	resp, err := d.o.Backend.CreateVolume(ctx, want)
	if err != nil {
		return nil, err
	}
	return resp.GetVolume(), nil
}

// volumeContext is what the node has to know of the parameters.
func volumeContext(params map[string]string) map[string]string {
	if o := params[contextMkfs]; o != "" {
		return map[string]string{contextMkfs: o}
	}
	return nil
}

func volumeOf(v *volumepb.Volume, vc map[string]string) *spec.Volume {
	return &spec.Volume{VolumeId: v.GetId(), CapacityBytes: int64(v.GetSizeBytes()), VolumeContext: vc, AccessibleTopology: topologyOf(v)}
}

// DeleteVolume implements Controller.
func (d *Driver) DeleteVolume(ctx context.Context, r *spec.DeleteVolumeRequest) (*spec.DeleteVolumeResponse, error) {
	id, leave, err := d.enter(r.GetVolumeId(), "DeleteVolume")
	if status.Code(err) == codes.NotFound {
		return &spec.DeleteVolumeResponse{}, nil
	}
	if err != nil {
		return nil, err
	}
	defer leave()
	v, err := d.volume(ctx, id)
	switch {
	case status.Code(err) == codes.NotFound:
		return &spec.DeleteVolumeResponse{}, nil
	case err != nil:
		return nil, err
	case v.GetPublication() != nil:
		return nil, refused("volume %s is published to node %s", v.GetName(), v.GetPublication().GetNode())
	}
	if _, err := d.o.Backend.DeleteVolume(ctx, &volumepb.DeleteVolumeRequest{Volume: id.String(), Actor: actor}); err != nil {
		return nil, err
	}
	return &spec.DeleteVolumeResponse{}, nil
}

// ControllerPublishVolume implements Controller. It promises the volume to the node, which attaches it when it stages it.
func (d *Driver) ControllerPublishVolume(ctx context.Context, r *spec.ControllerPublishVolumeRequest) (*spec.ControllerPublishVolumeResponse, error) {
	if r.GetVolumeId() == "" {
		return nil, invalid("volume_id is missing")
	}
	if r.GetNodeId() == "" {
		return nil, invalid("node_id is missing")
	}
	if r.GetVolumeCapability() == nil {
		return nil, invalid("volume_capability is missing")
	}
	u, err := parseUse(r.GetVolumeCapability())
	if err != nil {
		return nil, err
	}
	id, leave, err := d.enter(r.GetVolumeId(), "ControllerPublishVolume")
	if err != nil {
		return nil, err
	}
	defer leave()
	if _, err := d.o.Backend.PublishVolume(ctx, &volumepb.PublishVolumeRequest{
		Volume: id.String(), Node: r.GetNodeId(), ReadOnly: u.readOnly || r.GetReadonly(), Actor: actor,
	}); err != nil {
		return nil, err
	}
	return &spec.ControllerPublishVolumeResponse{}, nil
}

// ControllerUnpublishVolume implements Controller.
func (d *Driver) ControllerUnpublishVolume(ctx context.Context, r *spec.ControllerUnpublishVolumeRequest) (*spec.ControllerUnpublishVolumeResponse, error) {
	id, leave, err := d.enter(r.GetVolumeId(), "ControllerUnpublishVolume")
	if status.Code(err) == codes.NotFound {
		return &spec.ControllerUnpublishVolumeResponse{}, nil // deleted, and with it what it was published to
	}
	if err != nil {
		return nil, err
	}
	defer leave()
	if _, err := d.o.Backend.UnpublishVolume(ctx, &volumepb.UnpublishVolumeRequest{Volume: id.String(), Node: r.GetNodeId(), Actor: actor}); err != nil {
		return nil, err
	}
	return &spec.ControllerUnpublishVolumeResponse{}, nil
}

// ValidateVolumeCapabilities implements Controller.
func (d *Driver) ValidateVolumeCapabilities(ctx context.Context, r *spec.ValidateVolumeCapabilitiesRequest) (*spec.ValidateVolumeCapabilitiesResponse, error) {
	if r.GetVolumeId() == "" {
		return nil, invalid("volume_id is missing")
	}
	if len(r.GetVolumeCapabilities()) == 0 {
		return nil, invalid("volume_capabilities are missing")
	}
	id, err := ParseVolumeID(r.GetVolumeId())
	if err != nil {
		return nil, err
	}
	if _, err := d.volume(ctx, id); err != nil {
		return nil, err
	}
	no := func(err error) (*spec.ValidateVolumeCapabilitiesResponse, error) {
		return &spec.ValidateVolumeCapabilitiesResponse{Message: status.Convert(err).Message()}, nil
	}
	if _, err := parseUses(r.GetVolumeCapabilities()); err != nil {
		return no(err)
	}
	probe := &volumepb.CreateVolumeRequest{}
	if err := apply(probe, r.GetParameters(), false); err != nil {
		return no(err)
	}
	if err := apply(probe, r.GetMutableParameters(), true); err != nil {
		return no(err)
	}
	for k, v := range r.GetVolumeContext() {
		if _, ok := mkfsOptions(v); k != contextMkfs || !ok {
			return no(fmt.Errorf("volume_context has a key or a value that is not of this driver"))
		}
	}
	return &spec.ValidateVolumeCapabilitiesResponse{Confirmed: &spec.ValidateVolumeCapabilitiesResponse_Confirmed{
		VolumeContext: maps.Clone(r.GetVolumeContext()), VolumeCapabilities: r.GetVolumeCapabilities(),
		Parameters: maps.Clone(r.GetParameters()), MutableParameters: maps.Clone(r.GetMutableParameters()),
	}}, nil
}

// ControllerModifyVolume implements Controller. What is not named stays as it is.
func (d *Driver) ControllerModifyVolume(ctx context.Context, r *spec.ControllerModifyVolumeRequest) (*spec.ControllerModifyVolumeResponse, error) {
	id, leave, err := d.enter(r.GetVolumeId(), "ControllerModifyVolume")
	if err != nil {
		return nil, err
	}
	defer leave()
	v, err := d.volume(ctx, id)
	if err != nil {
		return nil, err
	}
	want := &volumepb.CreateVolumeRequest{Protection: v.GetProtection(), Needs: proto.CloneOf(v.GetNeeds()), Limits: proto.CloneOf(v.GetLimits()), ResyncPriority: v.GetResyncPriority()}
	if err := apply(want, r.GetMutableParameters(), true); err != nil {
		return nil, err
	}
	if w, l := want.Limits, v.GetLimits(); w.GetIops() != l.GetIops() || w.GetBandwidthBytesPerSecond() != l.GetBandwidthBytesPerSecond() {
		if _, err := d.o.Backend.LimitVolume(ctx, &volumepb.LimitVolumeRequest{Volume: id.String(), Limits: want.Limits, Actor: actor}); err != nil {
			return nil, err
		}
	}
	if want.ResyncPriority != v.GetResyncPriority() {
		if _, err := d.o.Backend.PrioritiseVolume(ctx, &volumepb.PrioritiseVolumeRequest{Volume: id.String(), ResyncPriority: want.ResyncPriority, Actor: actor}); err != nil {
			return nil, err
		}
	}
	if want.Protection == v.GetProtection() && sameNeeds(want.Needs, v.GetNeeds()) {
		return &spec.ControllerModifyVolumeResponse{}, nil
	}
	epoch := v.GetEpoch()
	if _, err := d.o.Backend.UpdateVolume(ctx, &volumepb.UpdateVolumeRequest{
		Volume: id.String(), Protection: want.Protection, Needs: want.Needs, ExpectedEpoch: &epoch, Actor: actor,
	}); err != nil {
		return nil, err
	}
	return &spec.ControllerModifyVolumeResponse{}, nil
}
