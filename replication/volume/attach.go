package volume

import (
	"context"
	"errors"
	"fmt"

	"github.com/tandem-storage/tandem/datapath/block"
	"github.com/tandem-storage/tandem/replication"
)

// AttachOptions say how to attach.
type AttachOptions struct {
	// TakeFrom is the coordinator on another node that may be replaced, as it stood in the
	// configuration by which that was decided; nil if there was none. The replicas fence
	// it; its consumer gets errors.
	TakeFrom *replication.Coord
	// Still wants TakeFrom, of whatever node, to be the coordinator: replication.ErrNotCoordinator if another one is, or none.
	Still bool
	// Resume, if not zero, is an attachment that an earlier process on this node served, and whose consumer lives:
	// the takeover goes on with that one, or fails. TakeFrom does not matter then.
	Resume replication.AttachID
	// Named, if not zero, is the attachment to which the coordinator on another node has handed the volume over: the takeover goes on
	// with what it has begun, or fails. The others do not matter then.
	Named replication.AttachID
	// Given is the configuration by which that was done, as the coordinator before tells it. It need not be the one in force any more: then the
	// replicas refuse its term, or the activation loses its comparison.
	Given Given
}

// Attach makes this node the volume's coordinator (a takeover if another one
// was) and returns when I/O is served. It fails with replication.ErrBusy if
// another node has it than was to be replaced, ErrDomainFenced if this node's cluster domain is not
// ACTIVE, and when ctx ends with an error that wraps ErrStalled and names the
// cause; a takeover is given up when nobody waits for it any more. A volume attached here
// already is returned as it is, whatever ctx says; one that is being detached is
// waited for and attached anew. All who attach at once get the same volume.
//
// A resume fails with ErrNotCoordinator when the configuration names another attachment, or none: it is over for
// good. So it is after ErrPoisoned, because acknowledged writes are not known to be anywhere.
func (m *Manager) Attach(ctx context.Context, id replication.VolumeID, o AttachOptions) (*Volume, error) {
	if !m.o.MayAttach(m.o.Domain) {
		return nil, fmt.Errorf("%w: domain %q is not ACTIVE, volumes are not attached in it; activate it, or attach in another domain", replication.ErrDomainFenced, m.o.Domain)
	}
	for {
		v, ends, err := m.enlist(id)
		switch {
		case err != nil:
			return nil, err
		case ends != nil:
			if err := m.awaitEnd(ctx, ends); err != nil {
				return nil, err
			}
		case v != nil:
			v, err := m.awaitServing(ctx, v)
			if errors.Is(err, replication.ErrDeposed) {
				continue // another change came first: the configuration tells whose
			}
			if err == nil && o.Resume != (replication.AttachID{}) && v.attach != o.Resume {
				return nil, fmt.Errorf("%w: attachment %s has ended, the volume is attached again", replication.ErrNotCoordinator, o.Resume)
			}
			if err == nil && o.Named != (replication.AttachID{}) && v.attach != o.Named {
				return nil, fmt.Errorf("%w: it is attached here already, as attachment %s", replication.ErrBusy, v.attach)
			}
			return v, err
		default:
			cfg, rev := o.Given.Config, o.Given.Rev
			if o.Given = (Given{}); cfg == nil { // another one is no longer given
				var err error
				if cfg, rev, err = m.o.Configs.Load(ctx, id); err != nil {
					return nil, err
				}
			}
			if err := m.mayTake(cfg, o); err != nil {
				return nil, err
			}
			grouped, err := m.grouped(ctx, id)
			if err != nil {
				return nil, err
			}
			if err := m.start(id, cfg, rev, o, grouped); err != nil {
				return nil, err
			}
		}
	}
}

// enlist notes that somebody waits for v, the volume if it is attached here or about to
// be. Otherwise it may be on its way out: that is ends.
func (m *Manager) enlist(id replication.VolumeID) (v, ends *Volume, _ error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	v = m.mu.volumes[id]
	switch {
	case m.mu.closed:
		return nil, nil, replication.ErrClosed
	case v == nil:
		return nil, nil, nil
	case v.leaving.Load(), v.given && !isClosed(v.serving):
		return nil, v, nil
	}
	v.waiters++
	return v, nil, nil
}

// awaitEnd returns nil when a volume that was given up or asked to detach has come to its
// end, or serves in spite of having been given up.
func (m *Manager) awaitEnd(ctx context.Context, v *Volume) error {
	served := v.serving
	if v.leaving.Load() {
		served = nil
	}
	select {
	case <-v.dead:
		return nil
	case <-served:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%w: it is still being detached here: %s: %w", replication.ErrStalled, v.Status().Stall, ctx.Err())
	}
}

// awaitServing waits for the volume on behalf of one who is enlisted.
func (m *Manager) awaitServing(ctx context.Context, v *Volume) (*Volume, error) {
	var err error
	select {
	case <-v.serving:
	case <-v.dead:
	case <-ctx.Done():
		err = fmt.Errorf("%w: attach gave up while %s: %w", replication.ErrStalled, v.Status().Stall, ctx.Err())
	}
	m.mu.Lock()
	v.waiters--
	giveUp := err != nil && v.waiters == 0 && !isClosed(v.serving)
	v.given = v.given || giveUp
	m.mu.Unlock()
	if giveUp {
		v.post(volumeInput{kind: inGiveUp, err: replication.ErrClosed})
		select { // unless it came to serve meanwhile
		case <-v.serving:
		case <-v.dead:
		}
	}
	switch {
	case isClosed(v.dead) && v.deadErr == nil:
		return nil, fmt.Errorf("%w: it was detached meanwhile", replication.ErrNotCoordinator)
	case isClosed(v.dead) && err == nil:
		return nil, v.deadErr
	case isClosed(v.serving) && !isClosed(v.dead):
		return v, nil
	}
	return nil, err
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// Leave ends the volume here and leaves its attachment to the next process of this node, which goes on with it by AttachOptions.Resume.
// Nobody may submit any more. It flushes, and flushes again to tell every replica what that has made stable: nothing is to be compared
// then, unless what the last takeover found is not compared yet. When that cannot be had before ctx ends, or fails, it is the end of
// the volume all the same, as by a kill, and the error says why. Not attached here is nil.
func (m *Manager) Leave(ctx context.Context, id replication.VolumeID) error {
	v := m.Volume(id)
	if v == nil {
		return nil
	}
	settled := make(chan error, 1)
	go func() {
		err := block.Flush(v)
		if err == nil {
			err = block.Flush(v)
		}
		settled <- err
	}()
	var err error
	select {
	case err = <-settled:
	case <-ctx.Done():
		err = fmt.Errorf("%w: %s: %w", replication.ErrStalled, v.Status().Stall, ctx.Err())
	}
	if n := v.Status().Unreconciled; err == nil && n > 0 {
		err = fmt.Errorf("%w: %d bytes have not been compared since the last takeover", replication.ErrStalled, n)
	}
	v.kill(replication.ErrClosed)
	<-v.dead
	return err
}

// Detach flushes the volume and gives it up; nothing may be in flight. Not
// attached here is nil. When no in-sync replica could flush, the volume is given up all the same
// and the error wraps replication.ErrReplicaFaulted.
//
// It cannot be taken back: from here on no request is promised to be served. When ctx
// ends first the error wraps replication.ErrStalled and names what it waits for, and the detach goes
// on by itself until it is done; Status tells of it. Detach may be called again to
// wait, and Attach waits too.
func (m *Manager) Detach(ctx context.Context, id replication.VolumeID) error {
	m.mu.Lock()
	v := m.mu.volumes[id]
	if v != nil {
		v.leaving.Store(true)
	}
	m.mu.Unlock()
	if v == nil {
		return nil
	}
	v.post(volumeInput{kind: inDetach})
	select {
	case <-v.dead:
		return v.deadErr
	case <-ctx.Done():
		return fmt.Errorf("%w: the detach goes on by itself, it waits: %s: %w", replication.ErrStalled, v.Status().Stall, ctx.Err())
	}
}
