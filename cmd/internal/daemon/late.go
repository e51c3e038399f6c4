package daemon

import (
	"context"
	"sync/atomic"

	"github.com/tandem-storage/tandem/replication"
	"github.com/tandem-storage/tandem/replication/transport"
	replvolume "github.com/tandem-storage/tandem/replication/volume"
)

// lateHandler answers other nodes before this one's volumes are there: the port
// has to be open for the kvdb's members first.
type lateHandler struct {
	m       atomic.Pointer[replvolume.Manager]
	suspect func() // a replica refused what comes from an older or another kvdb
}

func (h *lateHandler) get() (*replvolume.Manager, error) {
	if m := h.m.Load(); m != nil {
		return m, nil
	}
	return nil, replication.ErrClosed
}

// liveness passes on what beats tell.
func (h *lateHandler) liveness(l transport.Liveness) {
	if m := h.m.Load(); m != nil {
		m.PeerUp(l.Node, l.Up)
	}
}

// ServeSession implements transport.Handler.
func (h *lateHandler) ServeSession(ctx context.Context, from transport.Identity, c transport.Conn) error {
	m, err := h.get()
	if err != nil {
		return err
	}
	return m.ServeSession(ctx, from, c)
}

// Seal implements transport.Handler.
func (h *lateHandler) Seal(ctx context.Context, from transport.Identity, r replication.SealRequest) (replication.SealResult, error) {
	m, err := h.get()
	if err != nil {
		return replication.SealResult{}, err
	}
	res, err := m.Seal(ctx, from, r)
	if err == nil && res.Status == replication.StatusEpoch {
		h.suspect()
	}
	return res, err
}

// Prepare implements transport.Handler.
func (h *lateHandler) Prepare(ctx context.Context, from transport.Identity, r replication.PrepareRequest) (replication.PrepareResult, error) {
	m, err := h.get()
	if err != nil {
		return replication.PrepareResult{}, err
	}
	return m.Prepare(ctx, from, r)
}

// Commit implements transport.Handler.
func (h *lateHandler) Commit(ctx context.Context, from transport.Identity, r replication.CommitRequest) (replication.CommitResult, error) {
	m, err := h.get()
	if err != nil {
		return replication.CommitResult{}, err
	}
	return m.Commit(ctx, from, r)
}

// Dirty implements transport.Handler.
func (h *lateHandler) Dirty(ctx context.Context, from transport.Identity, r replication.DirtyRequest) (replication.DirtyResult, error) {
	m, err := h.get()
	if err != nil {
		return replication.DirtyResult{}, err
	}
	return m.Dirty(ctx, from, r)
}

// Turn implements transport.Handler.
func (h *lateHandler) Turn(ctx context.Context, from transport.Identity, r replication.TurnRequest) (replication.TurnResult, error) {
	m, err := h.get()
	if err != nil {
		return replication.TurnResult{}, err
	}
	return m.Turn(ctx, from, r)
}
