package volume

import (
	"context"
	"errors"
	"time"

	"go.uber.org/zap"

	"github.com/tandem-storage/tandem/replication"
	"github.com/tandem-storage/tandem/replication/core"
	"github.com/tandem-storage/tandem/replication/transport"
	"github.com/tandem-storage/tandem/replication/wire"
)

// controlTimeout bounds one control request.
const controlTimeout = 5 * time.Second

// control carries one control request of a coordinator out and reports.
func (v *Volume) control(of *core.Coordinator, c core.Control) {
	ctx, cancel := context.WithTimeout(v.ctx, controlTimeout)
	defer cancel()
	res, err := v.ask(ctx, v.links[c.To], c)
	if err != nil {
		res = core.ControlResult{Failed: true}
	}
	v.post(volumeInput{kind: inControl, of: of, id: c.ID, ctl: res})
}

// ask sends c to the local replica or to another node.
func (v *Volume) ask(ctx context.Context, l *link, c core.Control) (core.ControlResult, error) {
	if l.node == v.m.o.Node {
		h := v.m.host(v.id, l.id)
		if h == nil {
			return core.ControlResult{}, replication.ErrVolumeNotFound
		}
		return h.control(ctx, requestOf(c))
	}
	p, err := v.m.o.Peers.Peer(l.node)
	if err != nil {
		return core.ControlResult{}, err
	}
	switch {
	case c.Seal != nil:
		r, err := p.Seal(ctx, *c.Seal)
		return core.ControlResult{Seal: &r}, err
	case c.Prepare != nil:
		r, err := p.Prepare(ctx, *c.Prepare)
		return core.ControlResult{Prepare: &r}, err
	case c.Commit != nil:
		r, err := p.Commit(ctx, *c.Commit)
		return core.ControlResult{Commit: &r}, err
	default:
		r, err := p.Dirty(ctx, *c.Dirty)
		return core.ControlResult{Dirty: &r}, err
	}
}

func requestOf(c core.Control) any {
	switch {
	case c.Seal != nil:
		return c.Seal
	case c.Prepare != nil:
		return c.Prepare
	case c.Commit != nil:
		return c.Commit
	default:
		return c.Dirty
	}
}

// connect opens a session for the coordinator; it ends with ctx.
func (v *Volume) connect(ctx context.Context, s core.Session) {
	l := v.links[s.To]
	if l.node != v.m.o.Node {
		v.m.running.Go(func() { v.connectRemote(ctx, l.node, s) })
		return
	}
	h := v.m.host(v.id, l.id)
	v.m.running.Go(func() { // not from within the volume's work
		if h == nil {
			v.post(volumeInput{kind: inSessionDown, member: s.To, sess: s.ID})
			return
		}
		v.connectLocal(ctx, h, s)
	})
}

// allowed says whether a coordinator on from may use the replicas of this node.
func (m *Manager) allowed(from transport.Identity) replication.Status {
	if !m.o.Usable(from.Domain) {
		return replication.StatusDomain
	}
	return replication.StatusOK
}

// tellSkew tells why sessions with a node are refused, at most every sessionLogEvery: it tries for each of its volumes, for ever.
func (m *Manager) tellSkew(from replication.NodeID, err error) {
	t := now()
	m.mu.Lock()
	last, told := m.mu.skewed[from]
	told = told && t-last < sessionLogEvery
	if !told {
		m.mu.skewed[from] = t
	}
	m.mu.Unlock()
	if !told {
		m.lg.Warn("session refused", zap.String("peer", string(from)), zap.Error(err))
	}
}

// ServeSession implements transport.Handler.
func (m *Manager) ServeSession(ctx context.Context, from transport.Identity, conn transport.Conn) error {
	first, err := conn.Recv()
	if err != nil {
		return err
	}
	refuse := func(st replication.Status, cause error) error {
		for i := range first {
			releaseBuf(&first[i])
		}
		nack := replication.Message{Type: replication.MsgNack, Status: st, Session: first[0].Session}
		if err := conn.Send([]replication.Message{nack}); err != nil {
			return err
		}
		return cause
	}
	if first[0].Type != replication.MsgHello {
		return refuse(replication.StatusInvalid, replication.ErrClosed)
	}
	if st := m.allowed(from); st != replication.StatusOK {
		return refuse(st, replication.ErrDomainFenced)
	}
	hello, _, err := helloOf(&first[0])
	switch {
	case errors.Is(err, wire.ErrVersion):
		m.tellSkew(from.Node, err)
		return refuse(replication.StatusVersion, nil)
	case err != nil:
		return refuse(replication.StatusInvalid, err)
	}
	h := m.host(hello.Volume, hello.Replica)
	if h == nil {
		return refuse(replication.StatusNotFound, replication.ErrVolumeNotFound)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer m.track(from.Domain, cancel)()
	h.serve(ctx, conn, first)
	return nil
}

// Seal implements transport.Handler.
func (m *Manager) Seal(ctx context.Context, from transport.Identity, q replication.SealRequest) (replication.SealResult, error) {
	r, st, err := m.serveControl(ctx, from, q.Volume, q.Replica, &q)
	if st != replication.StatusOK || err != nil {
		return replication.SealResult{Status: st}, err
	}
	return *r.Seal, nil
}

// Prepare implements transport.Handler.
func (m *Manager) Prepare(ctx context.Context, from transport.Identity, q replication.PrepareRequest) (replication.PrepareResult, error) {
	r, st, err := m.serveControl(ctx, from, q.Volume, q.Replica, &q)
	if st != replication.StatusOK || err != nil {
		return replication.PrepareResult{Status: st}, err
	}
	return *r.Prepare, nil
}

// Commit implements transport.Handler.
func (m *Manager) Commit(ctx context.Context, from transport.Identity, q replication.CommitRequest) (replication.CommitResult, error) {
	r, st, err := m.serveControl(ctx, from, q.Volume, q.Replica, &q)
	if st != replication.StatusOK || err != nil {
		return replication.CommitResult{Status: st}, err
	}
	return *r.Commit, nil
}

// Dirty implements transport.Handler.
func (m *Manager) Dirty(ctx context.Context, from transport.Identity, q replication.DirtyRequest) (replication.DirtyResult, error) {
	r, st, err := m.serveControl(ctx, from, q.Volume, q.Replica, &q)
	if st != replication.StatusOK || err != nil {
		return replication.DirtyResult{Status: st}, err
	}
	return *r.Dirty, nil
}

// serveControl carries a control request of another node out.
func (m *Manager) serveControl(ctx context.Context, from transport.Identity, v replication.VolumeID, id replication.ReplicaID, q any) (core.ControlResult, replication.Status, error) {
	if st := m.allowed(from); st != replication.StatusOK {
		return core.ControlResult{}, st, nil
	}
	h := m.host(v, id)
	if h == nil {
		return core.ControlResult{}, replication.StatusNotFound, nil
	}
	r, err := h.control(ctx, q)
	return r, replication.StatusOK, err
}
