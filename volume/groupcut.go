package volume

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/tandem-storage/tandem/kvdb"
	"github.com/tandem-storage/tandem/replication"
)

// Limits of the hold of a cut.
const (
	DefaultCutHold = time.Second
	MaxCutHold     = 5 * time.Second
)

// Cut is where the volumes of a group stood while all of them were held (protocol.md 15.2): whatever had been acknowledged by one
// of them before is in it, and nothing that was asked for after such an acknowledgement and is not.
type Cut struct {
	Op        replication.UUID
	Group     string
	Hold      time.Duration // longest, from when the first volume was asked until the last one was released
	Positions map[replication.VolumeID]replication.CutPosition
	Nodes     map[replication.VolumeID]replication.NodeID // of those that were attached
}

// CutCoordinators reaches the coordinators of volumes on all nodes.
type CutCoordinators interface {
	// HoldForCut holds the writes of v on node n for the operation op, for at most d, and returns when nothing is in flight.
	HoldForCut(ctx context.Context, n replication.NodeID, v replication.VolumeID, op replication.UUID, d time.Duration) error
	// Cut is where a volume stands; held is false if it is not held any more.
	Cut(ctx context.Context, n replication.NodeID, v replication.VolumeID, op replication.UUID) (at replication.CutPosition, held bool, err error)
	// ReleaseCut lets writes go on, and reports whether op had held them until now.
	ReleaseCut(ctx context.Context, n replication.NodeID, v replication.VolumeID, op replication.UUID) (held bool, err error)
}

// cutAttempts is how often a cut is tried that could not be made; the pause between doubles from cutPause.
const (
	cutAttempts = 4
	cutPause    = 100 * time.Millisecond
)

// CutGroup cuts a group. hold bounds how long the writes of any volume wait, 0 being DefaultCutHold. A volume that is not
// attached is not held; it must not be attached before all others are.
// Errors: ErrInvalid, ErrGroupNotFound, ErrNotCut (nothing was cut), those of the store.
func (c *Catalogue) CutGroup(ctx context.Context, cs CutCoordinators, name string, hold time.Duration) (*Cut, error) {
	if hold == 0 {
		hold = DefaultCutHold
	}
	if hold < 0 || hold > MaxCutHold {
		return nil, fmt.Errorf("%w: a hold of %v, want at most %v", ErrInvalid, hold, MaxCutHold)
	}
	for n := range cutAttempts {
		cut, err := c.cutGroup(ctx, cs, name, hold)
		if !errors.Is(err, ErrNotCut) || n == cutAttempts-1 || !kvdb.Pause(ctx, cutPause<<n) {
			return cut, err
		}
	}
	return nil, ctx.Err() // not reached: the last attempt returns
}

func (c *Catalogue) cutGroup(ctx context.Context, cs CutCoordinators, name string, hold time.Duration) (*Cut, error) {
	e, err := c.Group(ctx, name)
	if err != nil {
		return nil, err
	}
	cut := &Cut{
		Op: replication.NewUUID(), Group: name,
		Positions: map[replication.VolumeID]replication.CutPosition{}, Nodes: map[replication.VolumeID]replication.NodeID{},
	}
	for _, v := range e.Volumes {
		switch cfg := e.Configs[v]; {
		case cfg == nil:
			return nil, notFound(v)
		case cfg.Phase == replication.PhaseDetached:
			cut.Positions[v] = replication.CutPosition{Epoch: cfg.Epoch}
		case cfg.Phase != replication.PhaseActive:
			return nil, fmt.Errorf("%w: volume %s is %s", ErrNotCut, v, cfg.Phase)
		default:
			cut.Nodes[v] = cfg.Coord.Node
		}
	}
	began := time.Now()
	// What is asked for is not waited for longer than it is held, so that a node that does not answer delays no release.
	held, cancel := context.WithTimeout(ctx, hold)
	defer cancel()
	err = cut.each(func(v replication.VolumeID, n replication.NodeID) error {
		return cs.HoldForCut(held, n, v, cut.Op, hold)
	})
	if err == nil {
		err = c.stillIdle(held, e)
	}
	if err == nil {
		err = cut.note(held, cs)
	}
	// Those that were not held, or not any more, say so: then this is no cut (I28).
	if released := cut.release(ctx, cs, hold); err == nil {
		err = released
	}
	if err != nil {
		// Not wrapped: that one of them did not answer in time is not that the caller was not answered.
		return nil, fmt.Errorf("%w: group %s: %s", ErrNotCut, name, err.Error())
	}
	cut.Hold = time.Since(began)
	return cut, nil
}

var errHoldEnded = errors.New("volume: its hold had ended by itself")

// note collects where the volumes stand.
func (cut *Cut) note(ctx context.Context, cs CutCoordinators) error {
	var mu sync.Mutex
	return cut.each(func(v replication.VolumeID, n replication.NodeID) error {
		at, held, err := cs.Cut(ctx, n, v, cut.Op)
		if err != nil || !held {
			return fmt.Errorf("volume %s: %w", v, errors.Join(err, errHoldEnded))
		}
		mu.Lock()
		defer mu.Unlock()
		cut.Positions[v] = at
		return nil
	})
}

// stillIdle reports whether the volumes that were not attached have not been since, nor the group changed.
func (c *Catalogue) stillIdle(ctx context.Context, e *GroupEntry) error {
	now, err := c.Group(ctx, e.Name)
	if err != nil {
		return err
	}
	for _, v := range now.Volumes {
		if cfg := e.Configs[v]; cfg == nil || cfg.Phase == replication.PhaseDetached && now.mods[v] != e.mods[v] {
			return fmt.Errorf("volume %s was attached, or came into the group, meanwhile", v)
		}
	}
	return nil
}

// each does f for every volume that is attached, all at once, and returns the errors.
func (cut *Cut) each(f func(v replication.VolumeID, n replication.NodeID) error) error {
	var wg sync.WaitGroup
	var mu sync.Mutex
	var errs []error
	for v, n := range cut.Nodes {
		wg.Go(func() {
			if err := f(v, n); err != nil {
				mu.Lock()
				defer mu.Unlock()
				errs = append(errs, fmt.Errorf("node %s: %w", n, err))
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}
