package volume

import (
	"context"
	"fmt"

	"github.com/tandem-storage/tandem/replication"
	"github.com/tandem-storage/tandem/replication/core"
)

// resizes is the worker's knowledge of the sizes that were asked for.
type resizes struct {
	last uint64
	open map[uint64]chan error
}

// Grow gives the volume size bytes, a multiple of block.SectorSize and not less than it has, and returns when every in-sync replica has them
// durably and the configuration says so; Info tells them then. replication.ErrNoRoom, with the replica, and core.ErrNotChanged mean that the size is as before, and
// will not change; replication.ErrNotCoordinator that the volume is not served here any more. When ctx ends before that the outcome is unknown.
func (v *Volume) Grow(ctx context.Context, size int64) error {
	done := make(chan error, 1)
	v.post(volumeInput{kind: inCall, call: func(t int64) {
		r := &v.resizes
		if r.open == nil {
			r.open = make(map[uint64]chan error)
		}
		r.last++
		r.open[r.last] = done
		v.core.SetSize(t, r.last, size)
	}})
	select {
	case err := <-done:
		return err
	case <-v.dead:
		return replication.ErrNotCoordinator
	case <-ctx.Done():
		return fmt.Errorf("replication/volume: the volume may grow still: %w", ctx.Err())
	}
}

// observeResize takes the volume's size, and answers who asked for it.
func (v *Volume) observeResize(e *core.Event) {
	if e.Kind != core.EventServing && e.Kind != core.EventResized {
		return
	}
	v.size.Store(v.core.Size())
	if done := v.resizes.open[e.ID]; e.Kind == core.EventResized && done != nil {
		err := e.Err
		if e.Replica != (replication.ReplicaID{}) {
			err = fmt.Errorf("%w (replica %s on node %s)", err, e.Replica, v.core.Config().Members[e.Replica].Node)
		}
		done <- err
		delete(v.resizes.open, e.ID)
	}
}

// dropResizes answers who asked a state machine that is gone: it had not begun.
func (v *Volume) dropResizes() {
	for id, done := range v.resizes.open {
		done <- fmt.Errorf("%w: the volume was being moved meanwhile, ask again", core.ErrNotChanged)
		delete(v.resizes.open, id)
	}
}
