package csi

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/tandem-storage/tandem/clusterdomain/clusterdomainpb"
	"github.com/tandem-storage/tandem/csi/mount/mounttest"
	"github.com/tandem-storage/tandem/volume/volumepb"
)

// cluster is a Backend without a cluster, as node-a sees it: two domains with a node each.
type cluster struct {
	mu       sync.Mutex
	volumes  map[string]*volumepb.Volume // by id
	snaps    map[string]*volumepb.Snapshot
	groups   map[string]*volumepb.GroupSnapshot
	machine  *mounttest.Machine
	attaches int
	made     int
	near     string        // NearNode of the last CreateVolume
	full     bool          // no volume can grow
	cut      error         // how streams end, if not nil
	hold     chan struct{} // CreateVolume waits for it, if not nil
	entered  chan struct{} // has one when CreateVolume waits
}

var _ Backend = (*cluster)(nil)

func newCluster() *cluster {
	return &cluster{volumes: map[string]*volumepb.Volume{}, snaps: map[string]*volumepb.Snapshot{}, groups: map[string]*volumepb.GroupSnapshot{}, machine: &mounttest.Machine{}}
}

func (c *cluster) find(ref string) (*volumepb.Volume, error) {
	if v := c.volumes[ref]; v != nil {
		return v, nil
	}
	for _, v := range c.volumes {
		if v.Name == ref {
			return v, nil
		}
	}
	return nil, status.Errorf(codes.NotFound, "no such volume")
}

func device(v *volumepb.Volume) string { return "/dev/loop-" + v.GetId()[:8] }

func (c *cluster) CreateVolume(_ context.Context, r *volumepb.CreateVolumeRequest, _ ...grpc.CallOption) (*volumepb.CreateVolumeResponse, error) {
	if c.hold != nil {
		c.entered <- struct{}{}
		<-c.hold
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if v, err := c.find(r.Name); err == nil {
		return &volumepb.CreateVolumeResponse{Volume: proto.CloneOf(v)}, nil
	}
	if r.Protection == 0 {
		r.Protection = volumepb.Protection_PROTECTION_MAX_AVAILABILITY
	}
	domains := r.Domains
	if len(domains) == 0 {
		domains = []string{"a", "b"}
	}
	if r.Replicas > 0 {
		domains = domains[:min(int(r.Replicas), len(domains))]
	}
	c.made++
	c.near = r.NearNode
	v := &volumepb.Volume{
		Id: fmt.Sprintf("%08x-0000-4000-8000-%012x", c.made, 7), Name: r.Name, SizeBytes: uint64(r.SizeBytes), Phase: volumepb.Phase_PHASE_DETACHED,
		Protection: r.Protection, Needs: r.Needs, Labels: r.Labels, ManualFailover: r.ManualFailover, Group: r.Group, JoinedGroup: r.Group, ResyncPriority: r.ResyncPriority, Epoch: 1, Content: volumepb.Content_CONTENT_BLANK,
		ReplicasWanted: uint32(len(domains)), InSync: uint32(len(domains)),
	}
	for _, d := range domains {
		v.Replicas = append(v.Replicas, &volumepb.Replica{Node: "node-" + d, Domain: d, InSync: true})
	}
	if v.FromSnapshot, v.FromVolume = r.FromSnapshot, r.FromVolume; r.FromSnapshot != "" || r.FromVolume != "" {
		v.Content = volumepb.Content_CONTENT_WRITTEN
	}
	c.volumes[v.Id] = v
	return &volumepb.CreateVolumeResponse{Volume: proto.CloneOf(v)}, nil
}

func (c *cluster) InspectVolume(_ context.Context, r *volumepb.InspectVolumeRequest, _ ...grpc.CallOption) (*volumepb.InspectVolumeResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	v, err := c.find(r.Volume)
	if err != nil {
		return nil, err
	}
	return &volumepb.InspectVolumeResponse{Volume: proto.CloneOf(v)}, nil
}

func (c *cluster) ListVolumes(context.Context, *volumepb.ListVolumesRequest, ...grpc.CallOption) (*volumepb.ListVolumesResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	resp := &volumepb.ListVolumesResponse{}
	for _, id := range slices.Sorted(maps.Keys(c.volumes)) {
		resp.Volumes = append(resp.Volumes, proto.CloneOf(c.volumes[id]))
	}
	return resp, nil
}

func (c *cluster) UpdateVolume(_ context.Context, r *volumepb.UpdateVolumeRequest, _ ...grpc.CallOption) (*volumepb.UpdateVolumeResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	v, err := c.find(r.Volume)
	if err != nil {
		return nil, err
	}
	v.Protection, v.Needs = r.Protection, r.Needs
	v.Epoch++
	return &volumepb.UpdateVolumeResponse{Volume: proto.CloneOf(v)}, nil
}

func (c *cluster) LimitVolume(_ context.Context, r *volumepb.LimitVolumeRequest, _ ...grpc.CallOption) (*volumepb.LimitVolumeResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	v, err := c.find(r.Volume)
	if err != nil {
		return nil, err
	}
	v.Limits = r.Limits
	return &volumepb.LimitVolumeResponse{Volume: proto.CloneOf(v)}, nil
}

func (c *cluster) PrioritiseVolume(_ context.Context, r *volumepb.PrioritiseVolumeRequest, _ ...grpc.CallOption) (*volumepb.PrioritiseVolumeResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	v, err := c.find(r.Volume)
	if err != nil {
		return nil, err
	}
	v.ResyncPriority = r.ResyncPriority
	return &volumepb.PrioritiseVolumeResponse{Volume: proto.CloneOf(v)}, nil
}

func (c *cluster) ResizeVolume(_ context.Context, r *volumepb.ResizeVolumeRequest, _ ...grpc.CallOption) (*volumepb.ResizeVolumeResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	v, err := c.find(r.Volume)
	if err != nil {
		return nil, err
	}
	if c.full {
		return nil, status.Errorf(codes.ResourceExhausted, "the pool of a replica has no room")
	}
	v.SizeBytes = max(v.SizeBytes, uint64(r.SizeBytes))
	return &volumepb.ResizeVolumeResponse{Volume: proto.CloneOf(v)}, nil
}

func (c *cluster) DeleteVolume(_ context.Context, r *volumepb.DeleteVolumeRequest, _ ...grpc.CallOption) (*volumepb.DeleteVolumeResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range c.snaps {
		if s.VolumeId == r.Volume {
			return nil, status.Error(codes.FailedPrecondition, "it has snapshots")
		}
	}
	delete(c.volumes, r.Volume)
	return &volumepb.DeleteVolumeResponse{}, nil
}

func (c *cluster) CreateSnapshot(_ context.Context, r *volumepb.CreateSnapshotRequest, _ ...grpc.CallOption) (*volumepb.CreateSnapshotResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	v, err := c.find(r.Volume)
	if err != nil {
		return nil, err
	}
	for _, s := range c.snaps {
		switch {
		case s.Name != r.Name:
		case s.VolumeId != v.Id:
			return nil, status.Error(codes.AlreadyExists, "of another volume")
		default:
			return &volumepb.CreateSnapshotResponse{Snapshot: proto.CloneOf(s)}, nil
		}
	}
	c.made++
	s := &volumepb.Snapshot{
		Id: fmt.Sprintf("%08x-0000-4000-8000-%012x", c.made, 8), Name: r.Name, VolumeId: v.Id, VolumeName: v.Name, SizeBytes: v.SizeBytes,
		CreatedUnixMs: 1_760_000_000_001, State: volumepb.SnapshotState_SNAPSHOT_STATE_READY, Frozen: !r.NoFreeze,
	}
	for _, m := range v.Replicas {
		s.Holders = append(s.Holders, &volumepb.SnapshotHolder{Node: m.Node, Domain: m.Domain})
	}
	c.snaps[s.Id] = s
	return &volumepb.CreateSnapshotResponse{Snapshot: proto.CloneOf(s)}, nil
}

func (c *cluster) ListSnapshots(context.Context, *volumepb.ListSnapshotsRequest, ...grpc.CallOption) (*volumepb.ListSnapshotsResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	resp := &volumepb.ListSnapshotsResponse{}
	for _, s := range c.snaps {
		resp.Snapshots = append(resp.Snapshots, proto.CloneOf(s))
	}
	return resp, nil
}

func (c *cluster) GetSnapshot(_ context.Context, r *volumepb.GetSnapshotRequest, _ ...grpc.CallOption) (*volumepb.GetSnapshotResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s := c.snaps[r.Snapshot]; s != nil {
		return &volumepb.GetSnapshotResponse{Snapshot: proto.CloneOf(s)}, nil
	}
	return nil, status.Error(codes.NotFound, "no such snapshot")
}

func (c *cluster) DeleteSnapshot(_ context.Context, r *volumepb.DeleteSnapshotRequest, _ ...grpc.CallOption) (*volumepb.DeleteSnapshotResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.snaps, r.Snapshot)
	return &volumepb.DeleteSnapshotResponse{}, nil
}

func (c *cluster) PublishVolume(_ context.Context, r *volumepb.PublishVolumeRequest, _ ...grpc.CallOption) (*volumepb.PublishVolumeResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	v, err := c.find(r.Volume)
	if err != nil {
		return nil, err
	}
	p := v.Publication
	switch {
	case r.Node != "node-a" && r.Node != "node-b":
		return nil, status.Error(codes.NotFound, "no such node")
	case p != nil && p.Node != r.Node:
		return nil, status.Errorf(codes.FailedPrecondition, "published to node %s", p.Node)
	case p != nil && p.ReadOnly != r.ReadOnly:
		return nil, status.Error(codes.AlreadyExists, "published in another way")
	}
	v.Publication = &volumepb.Publication{Node: r.Node, ReadOnly: r.ReadOnly}
	return &volumepb.PublishVolumeResponse{}, nil
}

func (c *cluster) UnpublishVolume(_ context.Context, r *volumepb.UnpublishVolumeRequest, _ ...grpc.CallOption) (*volumepb.UnpublishVolumeResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if v, err := c.find(r.Volume); err == nil && (r.Node == "" || v.GetPublication().GetNode() == r.Node) {
		v.Publication = nil
	}
	return &volumepb.UnpublishVolumeResponse{}, nil
}

func (c *cluster) AttachVolume(_ context.Context, r *volumepb.AttachVolumeRequest, _ ...grpc.CallOption) (*volumepb.AttachVolumeResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	v, err := c.find(r.Volume)
	if err != nil {
		return nil, err
	}
	if r.ForFormat && v.Content == volumepb.Content_CONTENT_WRITTEN {
		return nil, status.Error(codes.FailedPrecondition, "it may hold data")
	}
	fresh := r.ForFormat && v.Content == volumepb.Content_CONTENT_BLANK
	if v.Attachment == nil {
		c.attaches++
		id := fmt.Sprintf("%08x-0000-4000-8000-000000000001", c.attaches)
		v.Attachment = &volumepb.Attachment{Node: r.Node, Path: device(v), Frontend: r.Frontend, AttachId: id}
		c.machine.Plug(device(v), "/run/tandem/fuse/"+v.Id+"."+id+"/device")
	}
	v.Content = volumepb.Content_CONTENT_WRITTEN
	if r.ForFormat {
		v.Content = volumepb.Content_CONTENT_FORMATTING
	}
	return &volumepb.AttachVolumeResponse{Path: device(v), Fresh: fresh}, nil
}

func (c *cluster) FinishFormat(_ context.Context, r *volumepb.FinishFormatRequest, _ ...grpc.CallOption) (*volumepb.FinishFormatResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	v, err := c.find(r.Volume)
	if err != nil {
		return nil, err
	}
	v.Content = volumepb.Content_CONTENT_WRITTEN
	return &volumepb.FinishFormatResponse{}, nil
}

func (c *cluster) DetachVolume(_ context.Context, r *volumepb.DetachVolumeRequest, _ ...grpc.CallOption) (*volumepb.DetachVolumeResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	v, err := c.find(r.Volume)
	if err != nil {
		return nil, err
	}
	v.Attachment = nil
	return &volumepb.DetachVolumeResponse{}, nil
}

func (c *cluster) GetStatus(context.Context, *clusterdomainpb.GetStatusRequest, ...grpc.CallOption) (*clusterdomainpb.GetStatusResponse, error) {
	s := &clusterdomainpb.GetStatusResponse{ThisNode: "node-a"}
	for i, d := range []string{"a", "b"} {
		s.Nodes = append(s.Nodes, &clusterdomainpb.Node{
			Name: "node-" + d, Domain: d, State: clusterdomainpb.NodeState_NODE_STATE_ONLINE,
			Pools: []*clusterdomainpb.Pool{{TotalBytes: 100 << 30, UsedBytes: uint64(10+10*i) << 30, ProvisionedBytes: 5 << 30}},
		})
	}
	s.Nodes = append(s.Nodes, &clusterdomainpb.Node{Name: "node-w", Domain: "w", Witness: true})
	return s, nil
}

// blockStream is what the stand-in answers to ListBlocks: a range in each message.
type blockStream struct {
	grpc.ServerStreamingClient[volumepb.ListBlocksResponse]
	left []*volumepb.ListBlocksResponse
	end  error
}

func (s *blockStream) Recv() (*volumepb.ListBlocksResponse, error) {
	if len(s.left) == 0 {
		return nil, cmp.Or(s.end, io.EOF)
	}
	m := s.left[0]
	s.left = s.left[1:]
	return m, nil
}

func (c *cluster) ListBlocks(_ context.Context, r *volumepb.ListBlocksRequest, _ ...grpc.CallOption) (grpc.ServerStreamingClient[volumepb.ListBlocksResponse], error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s, base := c.snaps[r.Snapshot], c.snaps[r.Base]
	switch {
	case s == nil || r.Base != "" && base == nil:
		return nil, status.Error(codes.NotFound, "no such snapshot")
	case base != nil && base.VolumeId != s.VolumeId:
		return nil, status.Error(codes.InvalidArgument, "of another volume")
	}
	out := &blockStream{end: c.cut}
	for off := uint64(0); off < 1<<20; off += 1 << 18 {
		if int64(off) >= r.Offset && (base == nil || off > 0) {
			out.left = append(out.left, &volumepb.ListBlocksResponse{SizeBytes: s.SizeBytes, Ranges: []*volumepb.BlockRange{{Offset: off, Length: 8192}}})
		}
	}
	return out, nil
}
