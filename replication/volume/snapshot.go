package volume

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/tandem-storage/tandem/datapath/backing"
	"github.com/tandem-storage/tandem/datapath/meta"
	"github.com/tandem-storage/tandem/replication"
	"github.com/tandem-storage/tandem/replication/core"
)

// snapshotResult is how the taking of a snapshot ended.
type snapshotResult struct {
	holders []replication.ReplicaID
	err     error
}

// Snapshot has every in-sync replica cut at one point, and returns those that hold it: all that are in sync. What every write that was acknowledged before the call
// has left is in it, nothing that is asked for after it has returned. wait bounds how long the volume may take to come to it, hold how long writes wait then; reads go on.
//
// id is a new one for each call. After an error, some replicas may hold it all the same: it does not count, and whoever keeps the list of snapshots has it deleted. Errors:
// replication.ErrNotCut, with replication.ErrSnapshotUnsupported, replication.ErrTooManySnapshots, replication.ErrStalled (also: another one is being taken) or
// replication.ErrClosed if that is why; replication.ErrClosed: the volume has ended, or gone elsewhere.
func (v *Volume) Snapshot(ctx context.Context, id replication.SnapshotID, wait, hold time.Duration) ([]replication.ReplicaID, error) {
	ctx, cancel := context.WithTimeout(ctx, wait+hold+snapshotGrace) // also when the volume is handed over meanwhile
	defer cancel()
	done := make(chan snapshotResult, 1)
	err := v.call(ctx, func(t int64) {
		if v.cuts == nil {
			v.cuts = make(map[replication.SnapshotID]chan snapshotResult)
		}
		v.cuts[id] = done
		v.core.Snapshot(t, id, t+int64(wait), int64(hold))
	})
	if err == nil {
		select {
		case r := <-done:
			return r.holders, r.err
		case <-v.dead:
			err = replication.ErrClosed
		case <-ctx.Done():
			err = fmt.Errorf("%w: %w", replication.ErrStalled, context.Cause(ctx))
		}
	}
	return nil, fmt.Errorf("%w: %w", replication.ErrNotCut, err)
}

// snapshotGrace is how much later than it has to the core may tell the end.
const snapshotGrace = 2 * time.Second

// observeSnapshot tells whoever waits for it that a snapshot has ended.
func (v *Volume) observeSnapshot(e *core.Event) {
	if e.Kind != core.EventSnapshot {
		return
	}
	if done := v.cuts[e.Snapshot]; done != nil {
		done <- snapshotResult{e.Holders, e.Err}
		delete(v.cuts, e.Snapshot)
	}
}

// cut has the storage take a snapshot: long work, not for the host's worker.
func (h *host) cut(io *core.LocalIO) {
	o := hostIOs.Get().(*hostIO)
	o.h, o.io = h, io
	id, size := replication.SnapshotID(io.Data), io.Off
	go func() { h.post(hostInput{kind: hostIODone, io: o, err: h.st.CutSnapshot(id, size)}) }()
}

// CutSnapshot implements Storage.
func (b backed) CutSnapshot(id replication.SnapshotID, size int64) error {
	err := b.Cut(meta.UUID(id), size)
	for is, as := range map[error]error{
		backing.ErrNoReflink:        replication.ErrSnapshotUnsupported,
		backing.ErrTooManySnapshots: replication.ErrTooManySnapshots,
		backing.ErrExists:           replication.ErrSnapshotExists,
	} {
		if errors.Is(err, is) {
			return fmt.Errorf("%w: %w", as, err)
		}
	}
	return err
}
