package csi

import (
	"context"

	"google.golang.org/grpc"

	"github.com/tandem-storage/tandem/clusterdomain/clusterdomainpb"
	"github.com/tandem-storage/tandem/volume/volumepb"
)

// Backend is what the driver needs of the daemon: parts of its services Volumes, Snapshots, SnapshotBlocks, GroupSnapshots and Cluster, whose status codes it passes on.
type Backend interface {
	CreateVolume(context.Context, *volumepb.CreateVolumeRequest, ...grpc.CallOption) (*volumepb.CreateVolumeResponse, error)
	InspectVolume(context.Context, *volumepb.InspectVolumeRequest, ...grpc.CallOption) (*volumepb.InspectVolumeResponse, error)
	ListVolumes(context.Context, *volumepb.ListVolumesRequest, ...grpc.CallOption) (*volumepb.ListVolumesResponse, error)
	UpdateVolume(context.Context, *volumepb.UpdateVolumeRequest, ...grpc.CallOption) (*volumepb.UpdateVolumeResponse, error)
	LimitVolume(context.Context, *volumepb.LimitVolumeRequest, ...grpc.CallOption) (*volumepb.LimitVolumeResponse, error)
	PrioritiseVolume(context.Context, *volumepb.PrioritiseVolumeRequest, ...grpc.CallOption) (*volumepb.PrioritiseVolumeResponse, error)
	ResizeVolume(context.Context, *volumepb.ResizeVolumeRequest, ...grpc.CallOption) (*volumepb.ResizeVolumeResponse, error)
	DeleteVolume(context.Context, *volumepb.DeleteVolumeRequest, ...grpc.CallOption) (*volumepb.DeleteVolumeResponse, error)
	PublishVolume(context.Context, *volumepb.PublishVolumeRequest, ...grpc.CallOption) (*volumepb.PublishVolumeResponse, error)
	UnpublishVolume(context.Context, *volumepb.UnpublishVolumeRequest, ...grpc.CallOption) (*volumepb.UnpublishVolumeResponse, error)
	AttachVolume(context.Context, *volumepb.AttachVolumeRequest, ...grpc.CallOption) (*volumepb.AttachVolumeResponse, error)
	FinishFormat(context.Context, *volumepb.FinishFormatRequest, ...grpc.CallOption) (*volumepb.FinishFormatResponse, error)
	DetachVolume(context.Context, *volumepb.DetachVolumeRequest, ...grpc.CallOption) (*volumepb.DetachVolumeResponse, error)
	CreateSnapshot(context.Context, *volumepb.CreateSnapshotRequest, ...grpc.CallOption) (*volumepb.CreateSnapshotResponse, error)
	ListSnapshots(context.Context, *volumepb.ListSnapshotsRequest, ...grpc.CallOption) (*volumepb.ListSnapshotsResponse, error)
	GetSnapshot(context.Context, *volumepb.GetSnapshotRequest, ...grpc.CallOption) (*volumepb.GetSnapshotResponse, error)
	DeleteSnapshot(context.Context, *volumepb.DeleteSnapshotRequest, ...grpc.CallOption) (*volumepb.DeleteSnapshotResponse, error)
	ListBlocks(context.Context, *volumepb.ListBlocksRequest, ...grpc.CallOption) (grpc.ServerStreamingClient[volumepb.ListBlocksResponse], error)
	CreateGroupSnapshot(context.Context, *volumepb.CreateGroupSnapshotRequest, ...grpc.CallOption) (*volumepb.CreateGroupSnapshotResponse, error)
	GetGroupSnapshot(context.Context, *volumepb.GetGroupSnapshotRequest, ...grpc.CallOption) (*volumepb.GetGroupSnapshotResponse, error)
	DeleteGroupSnapshot(context.Context, *volumepb.DeleteGroupSnapshotRequest, ...grpc.CallOption) (*volumepb.DeleteGroupSnapshotResponse, error)
	GetStatus(context.Context, *clusterdomainpb.GetStatusRequest, ...grpc.CallOption) (*clusterdomainpb.GetStatusResponse, error)
}

// Client is a Backend over a connection to a daemon.
type Client struct {
	volumepb.VolumesClient
	volumepb.SnapshotsClient
	volumepb.SnapshotBlocksClient
	volumepb.GroupSnapshotsClient
	clusterdomainpb.ClusterClient
}

var _ Backend = Client{}

// NewClient returns the Backend behind cc.
func NewClient(cc grpc.ClientConnInterface) Client {
	return Client{volumepb.NewVolumesClient(cc), volumepb.NewSnapshotsClient(cc), volumepb.NewSnapshotBlocksClient(cc), volumepb.NewGroupSnapshotsClient(cc), clusterdomainpb.NewClusterClient(cc)}
}
