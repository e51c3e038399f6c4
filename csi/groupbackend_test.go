package csi

import (
	"context"
	"fmt"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/tandem-storage/tandem/volume/volumepb"
)

func (c *cluster) CreateGroupSnapshot(ctx context.Context, r *volumepb.CreateGroupSnapshotRequest, _ ...grpc.CallOption) (*volumepb.CreateGroupSnapshotResponse, error) {
	c.mu.Lock()
	for _, g := range c.groups {
		if g.Name != r.Name {
			continue
		}
		defer c.mu.Unlock()
		of := map[string]bool{}
		for _, s := range g.Snapshots {
			of[s.VolumeId] = true
		}
		for _, v := range r.Volumes {
			if !of[v] || len(of) != len(r.Volumes) {
				return nil, status.Error(codes.AlreadyExists, "of other volumes")
			}
		}
		return &volumepb.CreateGroupSnapshotResponse{GroupSnapshot: proto.CloneOf(g)}, nil
	}
	for _, v := range r.Volumes {
		if _, err := c.find(v); err != nil {
			c.mu.Unlock()
			return nil, err
		}
	}
	c.made++
	g := &volumepb.GroupSnapshot{
		Id: fmt.Sprintf("%08x-0000-4000-8000-%012x", c.made, 9), Name: r.Name, CreatedUnixMs: 1_760_000_000_001, State: volumepb.SnapshotState_SNAPSHOT_STATE_READY,
	}
	c.mu.Unlock()
	for _, v := range r.Volumes {
		resp, err := c.CreateSnapshot(ctx, &volumepb.CreateSnapshotRequest{Name: r.Name + "." + v, Volume: v, NoFreeze: r.NoFreeze})
		if err != nil {
			return nil, err
		}
		c.mu.Lock()
		s := c.snaps[resp.GetSnapshot().GetId()]
		s.GroupSnapshotId = g.Id
		g.Snapshots = append(g.Snapshots, s)
		c.mu.Unlock()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.groups[g.Id] = g
	return &volumepb.CreateGroupSnapshotResponse{GroupSnapshot: proto.CloneOf(g)}, nil
}

func (c *cluster) GetGroupSnapshot(_ context.Context, r *volumepb.GetGroupSnapshotRequest, _ ...grpc.CallOption) (*volumepb.GetGroupSnapshotResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if g := c.groups[r.GroupSnapshot]; g != nil {
		return &volumepb.GetGroupSnapshotResponse{GroupSnapshot: proto.CloneOf(g)}, nil
	}
	return nil, status.Error(codes.NotFound, "no such group snapshot")
}

func (c *cluster) DeleteGroupSnapshot(_ context.Context, r *volumepb.DeleteGroupSnapshotRequest, _ ...grpc.CallOption) (*volumepb.DeleteGroupSnapshotResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range c.groups[r.GroupSnapshot].GetSnapshots() {
		delete(c.snaps, s.Id)
	}
	delete(c.groups, r.GroupSnapshot)
	return &volumepb.DeleteGroupSnapshotResponse{}, nil
}
