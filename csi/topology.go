package csi

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"strings"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"
	selector "k8s.io/apimachinery/pkg/labels"

	"github.com/tandem-storage/tandem/clusterdomain/clusterdomainpb"
	"github.com/tandem-storage/tandem/volume/volumepb"
)

// domainsOf are the domains that have a replica, in order.
func domainsOf(v *volumepb.Volume) []string {
	var ds []string
	for _, r := range v.GetReplicas() {
		ds = append(ds, r.GetDomain())
	}
	slices.Sort(ds)
	return slices.Compact(ds)
}

// topologyOf is where a volume is to be used: in the domains that have a replica, on any node. Any other could attach it
// too, and have all its I/O go from one domain to another.
func topologyOf(v *volumepb.Volume) []*spec.Topology {
	var ts []*spec.Topology
	for _, n := range domainsOf(v) {
		ts = append(ts, &spec.Topology{Segments: map[string]string{TopologyDomain: n}})
	}
	return ts
}

// accessible reports whether a volume is where a CO requires it.
func accessible(v *volumepb.Volume, top *spec.TopologyRequirement) bool {
	ds := domainsOf(v)
	return len(top.GetRequisite()) == 0 || slices.ContainsFunc(top.GetRequisite(), func(t *spec.Topology) bool {
		return slices.Contains(ds, t.GetSegments()[TopologyDomain])
	})
}

// required are the domains of a requirement, the preferred ones first. INVALID_ARGUMENT: it has a segment without one.
func required(top *spec.TopologyRequirement) ([]string, error) {
	var ds []string
	for _, t := range slices.Concat(top.GetPreferred(), top.GetRequisite()) {
		n := t.GetSegments()[TopologyDomain]
		if n == "" {
			return nil, invalid("accessibility_requirements: a topology without %s", TopologyDomain)
		}
		if !slices.Contains(ds, n) {
			ds = append(ds, n)
		}
	}
	return ds, nil
}

// place narrows the domains of a volume down to those that a CO requires, if it could be without a replica there. RESOURCE_EXHAUSTED: it cannot have one.
func place(want *volumepb.CreateVolumeRequest, s *clusterdomainpb.GetStatusResponse, top *spec.TopologyRequirement) error {
	ds, err := required(top)
	if err != nil || len(ds) == 0 {
		return err
	}
	have := map[string]bool{}
	for _, n := range s.GetNodes() {
		if !n.GetWitness() && (len(want.Domains) == 0 || slices.Contains(want.Domains, n.GetDomain())) {
			have[n.GetDomain()] = true
		}
	}
	ds = slices.DeleteFunc(ds, func(n string) bool { return !have[n] })
	if len(ds) == 0 {
		return status.Errorf(codes.ResourceExhausted, "accessibility_requirements: no domain that is required has a node that may take a replica")
	}
	replicas := int(want.Replicas)
	if replicas == 0 {
		replicas = min(len(have), 3)
	}
	if replicas < len(have) && len(ds) >= replicas {
		want.Domains = slices.Sorted(slices.Values(ds[:replicas]))
	}
	return nil
}

// GetCapacity implements Controller: the largest volume that can be made whose replicas are in the segment and in the other domains with most room.
func (d *Driver) GetCapacity(ctx context.Context, r *spec.GetCapacityRequest) (*spec.GetCapacityResponse, error) {
	us := []use{{}}
	if len(r.GetVolumeCapabilities()) > 0 {
		var err error
		if us, err = parseUses(r.GetVolumeCapabilities()); err != nil {
			return nil, err
		}
	}
	want := &volumepb.CreateVolumeRequest{}
	// Here the external-provisioner passes on all that a StorageClass says; of what it asks CreateVolume for it takes out first what is for itself and the other sidecars.
	params := maps.Clone(r.GetParameters())
	maps.DeleteFunc(params, func(name, _ string) bool {
		return strings.HasPrefix(name, sidecars) || strings.EqualFold(name, "fstype")
	})
	if err := apply(want, params, false); err != nil {
		return nil, err
	}
	s, err := d.o.Backend.GetStatus(ctx, &clusterdomainpb.GetStatusRequest{})
	if err != nil {
		return nil, err
	}
	n, err := room(want, s, r.GetAccessibleTopology().GetSegments())
	if err != nil {
		return nil, err
	}
	least := int64(unit)
	for _, u := range us {
		least = max(least, u.leastSize())
	}
	return &spec.GetCapacityResponse{AvailableCapacity: n, MaximumVolumeSize: wrapperspb.Int64(n), MinimumVolumeSize: wrapperspb.Int64(least)}, nil
}

// room is what GetCapacity tells, bytes. Which volumes are where does not count in it, so that there may be less for those that want to be near to or apart from others.
func room(want *volumepb.CreateVolumeRequest, s *clusterdomainpb.GetStatusResponse, segment map[string]string) (int64, error) {
	nodes, err := selector.Parse(want.GetPlacing().GetNodes())
	if err != nil {
		return 0, invalid("parameter nodes: %v", err)
	}
	class, spread := want.GetPlacing().GetClass(), want.GetPlacing().GetSpread()
	best := map[string]int64{} // the pool with most room, by domain
	there := segment[TopologyNode] == ""
	for _, n := range s.GetNodes() {
		dom := n.GetDomain()
		if n.GetName() == segment[TopologyNode] && (segment[TopologyDomain] == "" || dom == segment[TopologyDomain]) {
			there = true
		}
		if n.GetState() != clusterdomainpb.NodeState_NODE_STATE_ONLINE || n.GetWitness() || len(want.Domains) > 0 && !slices.Contains(want.Domains, dom) {
			continue
		}
		if !nodes.Matches(selector.Set(n.GetLabels())) || spread != "" && n.GetLabels()[spread] == "" {
			continue
		}
		for _, p := range n.GetPools() {
			if class != "" && p.GetClass() != class {
				continue
			}
			free := int64(p.GetTotalBytes()) - int64(max(p.GetUsedBytes(), p.GetProvisionedBytes()))
			best[dom] = max(best[dom], free, 0)
		}
	}
	replicas := int(want.Replicas)
	if replicas == 0 {
		replicas = min(len(best), 3)
	}
	var rooms []int64
	n := int64(maxSize)
	if dom := segment[TopologyDomain]; dom != "" {
		n = best[dom]
		delete(best, dom)
		replicas--
	}
	for _, b := range best {
		rooms = append(rooms, b)
	}
	slices.SortFunc(rooms, func(a, b int64) int { return cmp.Compare(b, a) })
	switch {
	case !there || len(rooms) == 0 && segment[TopologyDomain] == "":
		return 0, nil
	case replicas > 0 && len(rooms) > 0:
		n = min(n, rooms[min(replicas, len(rooms))-1])
	}
	return n / unit * unit, nil
}
