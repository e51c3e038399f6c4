package volume

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/tandem-storage/tandem/replication"
	"github.com/tandem-storage/tandem/volume/volumepb"
)

// GroupSnapshotServer implements the gRPC service GroupSnapshots.
type GroupSnapshotServer struct {
	volumepb.UnimplementedGroupSnapshotsServer
	c     *Catalogue
	taker GroupTaker
	ends  *Switcher
}

var _ volumepb.GroupSnapshotsServer = (*GroupSnapshotServer)(nil)

// NewGroupSnapshotServer returns the service over c. ends ends attachments that nobody serves.
func NewGroupSnapshotServer(c *Catalogue, taker GroupTaker, ends *Switcher) *GroupSnapshotServer {
	return &GroupSnapshotServer{c: c, taker: taker, ends: ends}
}

// CreateGroupSnapshot implements GroupSnapshots.
func (s *GroupSnapshotServer) CreateGroupSnapshot(ctx context.Context, r *volumepb.CreateGroupSnapshotRequest) (*volumepb.CreateGroupSnapshotResponse, error) {
	req := GroupSnapshotRequest{Name: r.Name, Group: r.Group, Frozen: !r.NoFreeze}
	if len(r.Volumes) > MaxGroupSnapshot {
		return nil, fmt.Errorf("%w: group snapshot %s: %d volumes, want 1 to %d", ErrInvalid, r.Name, len(r.Volumes), MaxGroupSnapshot)
	}
	for _, ref := range r.Volumes {
		v, err := s.c.Resolve(ctx, ref)
		if err != nil {
			return nil, fmt.Errorf("group snapshot of volume %s: %w", ref, err)
		}
		req.Volumes = append(req.Volumes, v)
	}
	ctx = by(ctx, r)
	vs := req.Volumes
	if req.Group != "" {
		g, err := s.c.Group(ctx, req.Group)
		if err != nil {
			return nil, err
		}
		vs = g.Volumes
	}
	var e *GroupSnapshotEntry
	err := s.ends.orEndUnserved(ctx, vs, func() (err error) {
		e, err = s.c.CreateGroupSnapshot(ctx, s.taker, req)
		return err
	})
	if err != nil {
		return nil, err
	}
	return &volumepb.CreateGroupSnapshotResponse{GroupSnapshot: groupSnapshotPB(e)}, nil
}

// ListGroupSnapshots implements GroupSnapshots.
func (s *GroupSnapshotServer) ListGroupSnapshots(ctx context.Context, _ *volumepb.ListGroupSnapshotsRequest) (*volumepb.ListGroupSnapshotsResponse, error) {
	all, err := s.c.GroupSnapshots(ctx)
	if err != nil {
		return nil, err
	}
	resp := &volumepb.ListGroupSnapshotsResponse{}
	for _, e := range all {
		resp.GroupSnapshots = append(resp.GroupSnapshots, groupSnapshotPB(e))
	}
	return resp, nil
}

// GetGroupSnapshot implements GroupSnapshots.
func (s *GroupSnapshotServer) GetGroupSnapshot(ctx context.Context, r *volumepb.GetGroupSnapshotRequest) (*volumepb.GetGroupSnapshotResponse, error) {
	e, err := s.c.GroupSnapshot(ctx, r.GroupSnapshot)
	if err != nil {
		return nil, err
	}
	return &volumepb.GetGroupSnapshotResponse{GroupSnapshot: groupSnapshotPB(e)}, nil
}

// DeleteGroupSnapshot implements GroupSnapshots.
func (s *GroupSnapshotServer) DeleteGroupSnapshot(ctx context.Context, r *volumepb.DeleteGroupSnapshotRequest) (*volumepb.DeleteGroupSnapshotResponse, error) {
	e, err := s.c.GroupSnapshot(ctx, r.GroupSnapshot)
	switch {
	case errors.Is(err, ErrGroupSnapshotNotFound):
		return &volumepb.DeleteGroupSnapshotResponse{}, nil
	case err == nil:
		err = s.c.DeleteGroupSnapshot(by(ctx, r), e.ID)
	}
	if err != nil {
		return nil, fmt.Errorf("delete group snapshot %s: %w", r.GroupSnapshot, err)
	}
	return &volumepb.DeleteGroupSnapshotResponse{}, nil
}

func groupSnapshotPB(e *GroupSnapshotEntry) *volumepb.GroupSnapshot {
	m := &volumepb.GroupSnapshot{Id: e.ID.String(), Name: e.Name, Group: e.Group, CreatedUnixMs: e.Created.UnixMilli(), State: snapshotStates[e.State]}
	for _, s := range e.Members {
		m.Snapshots = append(m.Snapshots, snapshotPB(s))
	}
	return m
}

// Bounds of lending a volume to another node.
const (
	lendMax      = time.Minute      // it ends then, whatever the other node does
	giveBackWait = 10 * time.Second // how long whoever has it waits until it is detached again
)

// LendVolume implements SnapshotCoordinators.
func (s *SnapshotCoordinatorsServer) LendVolume(stream volumepb.SnapshotCoordinators_LendVolumeServer) error {
	r, err := stream.Recv()
	if err != nil {
		return err
	}
	v, err := parseIdentifier(r.VolumeId)
	if err != nil {
		return err
	}
	t, err := s.find()
	if err != nil {
		return err
	}
	return t.Lend(stream.Context(), replication.VolumeID(v), func() error {
		if err := stream.Send(&volumepb.LendVolumeResponse{}); err != nil {
			return err
		}
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			for err := error(nil); err == nil; { // until the other side is done, or gone
				_, err = stream.Recv()
			}
		}()
		end := time.NewTimer(lendMax)
		defer end.Stop()
		select {
		case <-ended:
		case <-end.C:
		}
		return nil
	})
}

// LendOn asks another node for Lend.
func LendOn(ctx context.Context, c volumepb.SnapshotCoordinatorsClient, v replication.VolumeID) (giveBack func(), err error) {
	whole, cancel := context.WithCancel(context.WithoutCancel(ctx)) // the caller's ends when it is attached
	attached := context.AfterFunc(ctx, cancel)
	fail := func(err error) (func(), error) {
		attached()
		cancel()
		return nil, err
	}
	stream, err := c.LendVolume(whole)
	if err != nil {
		return fail(err)
	}
	if err := stream.Send(&volumepb.LendVolumeRequest{VolumeId: v[:]}); err != nil && !errors.Is(err, io.EOF) {
		return fail(err)
	}
	if _, err := stream.Recv(); err != nil {
		return fail(err)
	}
	if !attached() {
		return fail(context.Cause(ctx))
	}
	return func() {
		defer cancel()
		late := time.AfterFunc(giveBackWait, cancel)
		defer late.Stop()
		if stream.CloseSend() == nil {
			_, _ = stream.Recv() // its end; if it does not come the other node detaches it by itself
		}
	}, nil
}

// LendHere is LendOn for this node.
func LendHere(ctx context.Context, t LocalTaker, v replication.VolumeID) (giveBack func(), err error) {
	attached, done, ended := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	go func() {
		ended <- t.Lend(ctx, v, func() error {
			close(attached)
			<-done
			return nil
		})
	}()
	select {
	case err := <-ended:
		return nil, err
	case <-ctx.Done():
		close(done) // when it is attached
		return nil, context.Cause(ctx)
	case <-attached:
		return func() {
			close(done)
			<-ended
		}, nil
	}
}
