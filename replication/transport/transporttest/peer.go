package transporttest

import (
	"context"
	"fmt"
	"slices"

	"github.com/tandem-storage/tandem/replication"
	"github.com/tandem-storage/tandem/replication/transport"
)

// peer is a node as another one sees it.
type peer struct {
	n   *Net
	way way
}

var _ transport.Peer = (*peer)(nil)

// Session implements transport.Peer.
func (p *peer) Session(ctx context.Context) (transport.Conn, error) {
	from, to, err := p.n.travel(ctx, p.way)
	if err != nil {
		return nil, err
	}
	sctx, cancel := context.WithCancelCause(context.Background())
	p.n.mu.Lock()
	defer p.n.mu.Unlock()
	if _, _, err := p.n.targetLocked(p.way); err != nil {
		cancel(err)
		return nil, err
	}
	c, s := p.n.pairLocked(p.way)
	s.cancel = cancel
	p.n.served.Add(1)
	go func() {
		defer p.n.served.Done()
		// A session ends with its Handler; the reason is for the peer's logs only.
		_ = to.h.ServeSession(sctx, from.id, s)
		_ = s.Close()
	}()
	return c, nil
}

// Seal implements transport.Peer.
func (p *peer) Seal(ctx context.Context, r replication.SealRequest) (replication.SealResult, error) {
	a, err := call(ctx, p, r, transport.Handler.Seal)
	a.Active = slices.Clone(a.Active)
	return a, err
}

// Prepare implements transport.Peer.
func (p *peer) Prepare(ctx context.Context, r replication.PrepareRequest) (replication.PrepareResult, error) {
	r.Missing, r.MarkAll = slices.Clone(r.Missing), slices.Clone(r.MarkAll)
	return call(ctx, p, r, transport.Handler.Prepare)
}

// Commit implements transport.Peer.
func (p *peer) Commit(ctx context.Context, r replication.CommitRequest) (replication.CommitResult, error) {
	r.Config = r.Config.Clone()
	return call(ctx, p, r, transport.Handler.Commit)
}

// Dirty implements transport.Peer.
func (p *peer) Dirty(ctx context.Context, r replication.DirtyRequest) (replication.DirtyResult, error) {
	a, err := call(ctx, p, r, transport.Handler.Dirty)
	a.Bits = slices.Clone(a.Bits)
	return a, err
}

// Turn implements transport.Peer.
func (p *peer) Turn(ctx context.Context, r replication.TurnRequest) (replication.TurnResult, error) {
	return call(ctx, p, r, transport.Handler.Turn)
}

// call takes r to the peer, f's answer back, or neither or only the first if the
// network has it so. An error of the Handler arrives as an error.
func call[Q, A any](ctx context.Context, p *peer, r Q, f func(transport.Handler, context.Context, transport.Identity, Q) (A, error)) (A, error) {
	var none A
	from, to, err := p.n.travel(ctx, p.way)
	if err != nil {
		return none, err
	}
	a, herr := f(to.h, ctx, from.id, r)
	if err := p.n.travelBack(ctx, p.way); err != nil {
		return none, err
	}
	if herr != nil {
		// Errors lose their type on the way; what matters is said by a status.
		return none, fmt.Errorf("%w: %s", transport.ErrDisconnected, herr.Error())
	}
	return a, nil
}
