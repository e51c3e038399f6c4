package volume

import (
	"context"
	"fmt"

	"github.com/tandem-storage/tandem/replication"
	"github.com/tandem-storage/tandem/volume/volumepb"
)

// StartVerify implements Volumes.
func (s *Server) StartVerify(ctx context.Context, r *volumepb.StartVerifyRequest) (*volumepb.StartVerifyResponse, error) {
	if r.RateBytesPerSecond != nil && *r.RateBytesPerSecond < 0 {
		return nil, fmt.Errorf("%w: verify with %d bytes a second", ErrInvalid, *r.RateBytesPerSecond)
	}
	v, err := s.verify(ctx, r.Volume, func(e *Entry) error {
		err := s.o.Runtime.StartVerify(e.ID, r.RateBytesPerSecond)
		s.record(ctx, r, "volume verify start", e, err)
		return err
	})
	if err != nil {
		return nil, err
	}
	return &volumepb.StartVerifyResponse{Volume: v}, nil
}

// StopVerify implements Volumes.
func (s *Server) StopVerify(ctx context.Context, r *volumepb.StopVerifyRequest) (*volumepb.StopVerifyResponse, error) {
	v, err := s.verify(ctx, r.Volume, func(e *Entry) error {
		err := s.o.Runtime.StopVerify(e.ID)
		s.record(ctx, r, "volume verify stop", e, err)
		return err
	})
	if err != nil {
		return nil, err
	}
	return &volumepb.StopVerifyResponse{Volume: v}, nil
}

// GetVerify implements Volumes.
func (s *Server) GetVerify(ctx context.Context, r *volumepb.GetVerifyRequest) (*volumepb.GetVerifyResponse, error) {
	v, err := s.verify(ctx, r.Volume, func(*Entry) error { return nil })
	if err != nil {
		return nil, err
	}
	if v.Verify == nil {
		return nil, fmt.Errorf("verify of volume %s: %w", r.Volume, replication.ErrNotCoordinator)
	}
	return &volumepb.GetVerifyResponse{Volume: v}, nil
}

// verify does something about the verify of a volume that is attached on this node, and shows the volume.
func (s *Server) verify(ctx context.Context, name string, do func(*Entry) error) (*volumepb.Volume, error) {
	e, err := s.entry(ctx, name)
	if err != nil {
		return nil, err
	}
	if e.Config != nil {
		if n := coordinator(e.Config).Node; n != "" && n != s.o.Node {
			return nil, s.otherNode(n, "does not have volume "+e.Name+" attached")
		}
	}
	if err := do(e); err != nil {
		return nil, fmt.Errorf("verify of volume %s: %w", e.Name, err)
	}
	return s.show(ctx, e), nil
}
