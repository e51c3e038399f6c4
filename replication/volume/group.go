package volume

import (
	"context"
	"time"

	"github.com/tandem-storage/tandem/replication"
	"github.com/tandem-storage/tandem/replication/core"
)

// Groups tells the engine which volumes are in a consistency group; who implements it calls Volume.SetGroup.
type Groups interface {
	// Grouped reports whether v is in a group (a linearizable read).
	Grouped(ctx context.Context, v replication.VolumeID) (bool, error)
	// Changed tells that a volume attached here may stand otherwise to its group. It does not block.
	Changed(v replication.VolumeID)
}

// grouped reports whether a volume that is to be attached is in a group; it is asked after the configuration was read. One that is put into a group
// before its election loses that (volume.Catalogue), and asks again; one that is later is told of it then, and until then the others wait for it.
func (m *Manager) grouped(ctx context.Context, v replication.VolumeID) (bool, error) {
	if m.o.Groups == nil {
		return false, nil
	}
	return m.o.Groups.Grouped(ctx, v)
}

// SetGroup tells the volume of its group, and returns how it stands to it (core.Coordinator.SetGroup). replication.ErrClosed: it has ended.
func (v *Volume) SetGroup(ctx context.Context, g replication.GroupOrder) (replication.GroupStatus, error) {
	return ask(ctx, v, func(t int64) replication.GroupStatus { return v.core.SetGroup(t, g) })
}

// GroupStatus returns how the volume stands to its group.
func (v *Volume) GroupStatus(ctx context.Context) (replication.GroupStatus, error) {
	return ask(ctx, v, func(int64) replication.GroupStatus { return v.core.GroupStatus() })
}

// HoldForCut holds the volume's writes back for the operation op, for at most d, and returns when nothing is in flight any more. ReleaseCut ends it, also after an error.
// Errors: replication.ErrBusy another operation holds them, replication.ErrStalled they do not proceed or did not end in time, replication.ErrClosed.
func (v *Volume) HoldForCut(ctx context.Context, op replication.UUID, d time.Duration) error {
	held := make(chan struct{})
	refused, err := ask(ctx, v, func(t int64) error {
		err := v.core.HoldForCut(t, op, t+int64(d))
		if err == nil {
			v.held = held
		}
		return err
	})
	if err != nil || refused != nil {
		return firstError(err, refused)
	}
	select {
	case <-held:
		return nil
	case <-v.dead:
		return replication.ErrClosed
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Cut returns where the volume stands while op holds it; held is false when it does not, or not any more.
func (v *Volume) Cut(ctx context.Context, op replication.UUID) (at replication.CutPosition, held bool, err error) {
	type answer struct {
		at   replication.CutPosition
		held bool
	}
	a, err := ask(ctx, v, func(t int64) (a answer) {
		a.at, a.held = v.core.Cut(t, op)
		return a
	})
	return a.at, a.held, err
}

// ReleaseCut lets writes go on, and reports whether op held them until now.
func (v *Volume) ReleaseCut(ctx context.Context, op replication.UUID) (held bool, err error) {
	return ask(ctx, v, func(t int64) bool { return v.core.ReleaseCut(t, op) })
}

// ask has the volume's worker do f, which it does even when ctx ends first, and returns what f does, the zero value with an error.
func ask[T any](ctx context.Context, v *Volume, f func(t int64) T) (r T, _ error) {
	answer := make(chan T, 1) // f may end when nobody looks any more
	if err := v.call(ctx, func(t int64) { answer <- f(t) }); err != nil {
		return r, err
	}
	return <-answer, nil
}

// call has the volume's worker do f, which it does even when ctx ends first: what f writes to is to be read only if there is no error.
func (v *Volume) call(ctx context.Context, f func(t int64)) error {
	done := make(chan struct{})
	v.post(volumeInput{kind: inCall, call: func(t int64) {
		defer close(done)
		f(t)
	}})
	select {
	case <-done:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if isClosed(v.dead) {
		return replication.ErrClosed
	}
	return nil
}

func firstError(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// observeGroup passes on what concerns the group.
func (v *Volume) observeGroup(events []core.Event) {
	for i := range events {
		if events[i].Kind == core.EventHeld && v.held != nil {
			close(v.held)
			v.held = nil
		}
	}
	if len(events) > 0 && v.m.o.Groups != nil {
		v.m.o.Groups.Changed(v.id)
	}
}
