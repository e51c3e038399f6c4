package volume

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/tandem-storage/tandem/clusterdomain"
	"github.com/tandem-storage/tandem/replication"
	"github.com/tandem-storage/tandem/volume/volumepb"
)

// watchInterval is the default of WatchVolumeRequest.interval_ms.
const watchInterval = 500 * time.Millisecond

// WatchVolume implements Volumes.
func (s *Server) WatchVolume(r *volumepb.WatchVolumeRequest, out grpc.ServerStreamingServer[volumepb.WatchVolumeResponse]) error {
	ctx := out.Context()
	id, err := s.c.Resolve(ctx, r.Volume)
	if err != nil {
		return err
	}
	every := time.Duration(r.IntervalMs) * time.Millisecond
	if every == 0 {
		every = watchInterval
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	for last := (*volumepb.Volume)(nil); ; {
		e, err := s.c.Get(ctx, id)
		if err != nil {
			return err
		}
		if v := s.show(ctx, e); !proto.Equal(v, last) {
			if err := out.Send(&volumepb.WatchVolumeResponse{Volume: v}); err != nil {
				return err
			}
			last = v
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

// waitGone returns when nothing is left of a volume that is DELETING, or when ctx ends.
func (c *Catalogue) waitGone(ctx context.Context, id replication.VolumeID) error {
	sigCtx, cancel := context.WithCancel(ctx)
	defer cancel()
	for range clusterdomain.Signal(sigCtx, c.store, c.keys.volume(id)) {
		if _, err := c.Get(ctx, id); isNotFound(err) {
			return nil
		}
	}
	return context.Cause(ctx)
}

// waitReplaced returns when no replica of the volume is being replaced any more, or when ctx ends.
func (c *Catalogue) waitReplaced(ctx context.Context, id replication.VolumeID) error {
	sigCtx, cancel := context.WithCancel(ctx)
	defer cancel()
	waits := ""
	for range clusterdomain.Signal(sigCtx, c.store, c.keys.volume(id)) {
		switch e, err := c.Get(ctx, id); {
		case isNotFound(err):
			return err
		case err != nil: // the signal comes again when the store does
		case e.Replacing == nil:
			return nil
		default:
			waits = ": " + e.Progress()
		}
	}
	return fmt.Errorf("%w%s: %w", ErrNotReplaced, waits, context.Cause(ctx))
}

func isNotFound(err error) bool { return errors.Is(err, replication.ErrVolumeNotFound) }
