package csi

import (
	"context"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/tandem-storage/tandem/clusterdomain/clusterdomainpb"
)

// GetPluginInfo implements Identity.
func (d *Driver) GetPluginInfo(context.Context, *spec.GetPluginInfoRequest) (*spec.GetPluginInfoResponse, error) {
	return &spec.GetPluginInfoResponse{Name: Name, VendorVersion: d.o.Version}, nil
}

// GetPluginCapabilities implements Identity.
func (d *Driver) GetPluginCapabilities(context.Context, *spec.GetPluginCapabilitiesRequest) (*spec.GetPluginCapabilitiesResponse, error) {
	resp := &spec.GetPluginCapabilitiesResponse{}
	for _, t := range []spec.PluginCapability_Service_Type{
		spec.PluginCapability_Service_CONTROLLER_SERVICE, spec.PluginCapability_Service_VOLUME_ACCESSIBILITY_CONSTRAINTS,
		spec.PluginCapability_Service_SNAPSHOT_METADATA_SERVICE,
		spec.PluginCapability_Service_GROUP_CONTROLLER_SERVICE,
	} {
		resp.Capabilities = append(resp.Capabilities, &spec.PluginCapability{
			Type: &spec.PluginCapability_Service_{Service: &spec.PluginCapability_Service{Type: t}},
		})
	}
	resp.Capabilities = append(resp.Capabilities, &spec.PluginCapability{
		Type: &spec.PluginCapability_VolumeExpansion_{VolumeExpansion: &spec.PluginCapability_VolumeExpansion{Type: spec.PluginCapability_VolumeExpansion_ONLINE}},
	})
	return resp, nil
}

// Probe implements Identity. The driver is healthy while its daemon answers.
func (d *Driver) Probe(ctx context.Context, _ *spec.ProbeRequest) (*spec.ProbeResponse, error) {
	if _, err := d.o.Backend.GetStatus(ctx, &clusterdomainpb.GetStatusRequest{}); err != nil {
		return nil, status.Errorf(codes.FailedPrecondition, "the daemon does not answer: %v", status.Convert(err).Message())
	}
	return &spec.ProbeResponse{Ready: wrapperspb.Bool(true)}, nil
}
