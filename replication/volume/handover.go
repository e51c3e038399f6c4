package volume

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/tandem-storage/tandem/replication"
	"github.com/tandem-storage/tandem/replication/core"
)

// HandoverOptions say to whom a volume is given, and how.
type HandoverOptions struct {
	To replication.Coord // the attachment that is prepared there: its node, domain, boot and id
	// Take asks To's node to attach as AttachOptions.Named, by h; nil when it serves. ctx ends after Timing.Handover.
	Take func(ctx context.Context, h Given) error
}

// Given is the configuration by which a volume was handed over, and its revision.
type Given struct {
	Config *replication.Config // nil: it is read
	Rev    uint64
}

// Handover tells of a volume that was moved, or was to be.
type Handover struct {
	Hold    time.Duration // how long requests were held, from the first that waited to when one could be carried out, there or here
	Drained time.Duration // of that, until the other one was named
}

// move is one handover under way.
type move struct {
	to      replication.Coord
	since   time.Time   // when requests were held first; before decided is closed
	held    []*volumeIO // while it is given; by the worker
	err     error       // how the volume ended while it was given; by the worker
	kept    error       // why it was not given; before decided is closed
	given   Given       // how it was given; before decided is closed
	decided chan struct{}
	settled chan struct{} // closed when it serves again after it was given
}

// HandOver lets the coordinator on another node follow the one here, which is served with no error to its consumer: requests wait
// meanwhile. On nil the volume has ended here with replication.ErrHandedOver, and serves there. On an error it is served here as before,
// under the same attachment; or it was lost, as Dead tells. It is not interrupted by ctx, which is for Take: it ends by itself.
func (m *Manager) HandOver(ctx context.Context, id replication.VolumeID, o HandoverOptions) (Handover, error) {
	v := m.Volume(id)
	if v == nil {
		return Handover{}, replication.ErrNotCoordinator
	}
	mv := &move{to: o.To, decided: make(chan struct{}), settled: make(chan struct{})}
	var h Handover
	v.post(volumeInput{kind: inHandOver, move: mv})
	limit := time.NewTimer(m.o.Timing.Handover)
	defer limit.Stop()
	for named := false; !named; {
		select {
		case <-mv.decided:
			named = true
		case <-limit.C:
			v.post(volumeInput{kind: inKeep, err: fmt.Errorf("%w: nothing was to be in flight and everything flushed within %v", replication.ErrStalled, m.o.Timing.Handover)})
		case <-v.dead:
			return h, v.deadErr
		}
	}
	if !mv.since.IsZero() {
		h.Drained = time.Since(mv.since)
		h.Hold = h.Drained
	}
	if mv.kept != nil {
		return h, fmt.Errorf("%w: %w", replication.ErrStalled, mv.kept)
	}
	tctx, cancel := context.WithTimeout(ctx, m.o.Timing.Handover)
	defer cancel()
	err := o.Take(tctx, mv.given)
	h.Hold = time.Since(mv.since)
	if err == nil {
		v.kill(replication.ErrHandedOver)
		<-v.dead
		return h, nil
	}
	if isClosed(v.dead) && errors.Is(v.deadErr, replication.ErrHandedOver) {
		return h, nil // it serves, as the configuration told
	}
	v.post(volumeInput{kind: inTakeBack})
	m.begin(v, v.Status().Config)
	select {
	case <-mv.settled:
		h.Hold = time.Since(mv.since)
		return h, fmt.Errorf("%w: node %s was named and did not come to serve, the volume was taken back: %w", replication.ErrStalled, o.To.Node, err)
	case <-v.dead:
		if errors.Is(v.deadErr, replication.ErrHandedOver) {
			return h, nil
		}
		return h, v.deadErr
	}
}

// handOver begins one. By the worker.
func (v *Volume) handOver(t int64, mv *move) {
	if v.asked != nil || v.leaving.Load() {
		mv.kept = replication.ErrBusy
		close(mv.decided)
		return
	}
	v.asked = mv
	v.core.HandOver(t, mv.to)
}

// noteMove takes note of how far the one under way has come; tell is to be closed when the status shows it. By the worker.
func (v *Volume) noteMove(r *core.Ready) (tell chan struct{}) {
	mv := v.asked
	if mv == nil {
		return nil
	}
	if mv.since.IsZero() && v.core.Stall() == core.StallHandover {
		mv.since = time.Now()
	}
	for i := range r.Events {
		switch e := &r.Events[i]; e.Kind {
		case core.EventKept:
			mv.kept, tell = e.Err, mv.decided
			v.asked = nil
		case core.EventServing:
			tell = mv.settled
			v.asked = nil
		default:
		}
	}
	if v.core.HandedOver() && v.away == nil {
		for _, io := range r.Returned {
			mv.held = append(mv.held, io.User.(*volumeIO))
		}
		v.away = mv
		mv.given = Given{Config: v.core.Config(), Rev: v.core.Revision()}
		if v.core.Config().Phase == replication.PhaseActive {
			mv.end(replication.ErrHandedOver) // the other one has been activated meanwhile
		}
		tell = mv.decided
	}
	return tell
}

// ended returns why the volume has ended, nil while it has not. By the worker.
func (v *Volume) ended() error {
	if v.away != nil {
		return v.away.err
	}
	return v.core.Dead()
}

// applyAway takes the inputs of a volume that is given to another node, and reports whether it was one. By the worker.
func (v *Volume) applyAway(in *volumeInput) bool {
	mv := v.away
	switch in.kind {
	case inPropose:
		mv.held = append(mv.held, in.io)
	case inKill:
		mv.end(in.err)
	case inSeen:
		co := in.cfg.Coord
		switch {
		case in.cfg.Epoch <= v.core.Config().Epoch:
		case co != nil && co.AttachID == mv.to.AttachID:
			mv.end(replication.ErrHandedOver)
		default:
			mv.end(replication.ErrDeposed)
		}
	default:
		return false
	}
	return true
}

func (mv *move) end(err error) {
	if mv.err == nil {
		mv.err = err
	}
}

// dropAway ends the requests of a volume that was given away and is not taken back. After a handover nobody
// hears of that: BeforeEnd has cut the consumer's connections. By the worker.
func (v *Volume) dropAway() {
	mv := v.away
	if mv == nil || mv.err == nil {
		return
	}
	for _, o := range mv.held {
		if !v.withhold(o.req, mv.err) {
			v.completed(o.req, mv.err)
		}
		o.recycle()
	}
	mv.held = nil
}

// takeBack makes another coordinator of the attachment, unless the volume has ended. It is to be told and started. By the worker.
func (v *Volume) takeBack(t int64) {
	mv := v.away
	if mv == nil || mv.err != nil {
		return
	}
	v.away, v.ticked = nil, true
	o := v.opts
	o.Resume, o.TakeBack = false, true // what was acknowledged is stable
	if v.m.o.Incarnation != nil {
		o.Incarnation, o.Former = v.m.o.Incarnation()
	}
	v.core = core.New(o, v.core.Config(), v.core.Revision())
	v.turn.told = false
	v.dropPolicies()
	v.dropResizes()
	for _, io := range mv.held {
		v.core.Propose(t, &io.io)
	}
	mv.held = nil
	if v.leaving.Load() {
		v.core.Detach(t)
	}
}
