package daemon

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/tandem-storage/tandem/clusterdomain"
	"github.com/tandem-storage/tandem/datapath/frontend"
	"github.com/tandem-storage/tandem/kvdb"
	"github.com/tandem-storage/tandem/replication"
	replvolume "github.com/tandem-storage/tandem/replication/volume"
	"github.com/tandem-storage/tandem/volume"
	"github.com/tandem-storage/tandem/volume/volumepb"
)

// prepared is an attachment that another node may hand a volume over to.
type prepared struct {
	attachment
	expiry *time.Timer
}

var _ volume.Mover = (*runtime)(nil)

// MayHandOver implements volume.Mover. A client of an export connects to the other node and asks again; a loop device is of this
// machine's kernel, which cannot.
func (r *runtime) MayHandOver(id replication.VolumeID) error {
	s := r.showing(id)
	switch {
	case s == nil:
		return fmt.Errorf("%w: its attachment has no front end", replication.ErrNotCoordinator)
	case s.kind != frontend.KindNBD:
		return fmt.Errorf("%w: it is shown as a device of this machine (%s), whose consumer cannot follow: stop that, detach the volume, and attach it in the other domain",
			frontend.ErrBusy, s.attachment.Path())
	}
	return nil
}

// HandOver implements volume.Mover.
func (r *runtime) HandOver(ctx context.Context, id replication.VolumeID, to replication.Coord, take func(ctx context.Context, h volume.Handover) error) (time.Duration, error) {
	unlock, err := r.lock(ctx, id)
	if err != nil {
		return 0, err
	}
	defer unlock()
	if err := r.MayHandOver(id); err != nil {
		return 0, err
	}
	h, err := r.volumes.HandOver(ctx, id, replvolume.HandoverOptions{To: to, Take: func(ctx context.Context, g replvolume.Given) error {
		return take(ctx, volume.Handover{Config: g.Config, Revision: kvdb.Revision(g.Rev)})
	}})
	return h.Hold, err
}

// PrepareHandover implements volume.Mover. What is not taken is forgotten; clients that have come early are told then that there is no such export.
func (r *runtime) PrepareHandover(id replication.VolumeID) (replication.Coord, string, error) {
	if r.nbd == nil {
		return replication.Coord{}, "", fmt.Errorf("%w: this node is a witness, volumes are attached on nodes with role node", frontend.ErrUnavailable)
	}
	if s := r.showing(id); s != nil && !s.lost() {
		return replication.Coord{}, "", fmt.Errorf("%w: it is attached here already", replication.ErrBusy)
	}
	a := attachment{id, replication.AttachID(replication.NewUUID())}
	path := r.nbd.Expect(a.String())
	p := &prepared{attachment: a, expiry: time.AfterFunc(3*r.c.Replication.HandoverTimeout, func() { r.unprepare(a) })}
	r.unprepare(attachment{volume: id})
	r.mu.Lock()
	r.prepared[id] = p
	r.mu.Unlock()
	return replication.Coord{Node: replication.NodeID(r.c.NodeID), Domain: replication.DomainID(r.c.Domain), Boot: r.boot, AttachID: a.id}, path, nil
}

// unprepare forgets what was prepared for a volume: the attachment a, or any if a names none.
func (r *runtime) unprepare(a attachment) {
	r.mu.Lock()
	p := r.prepared[a.volume]
	if p == nil || !replication.UUID(a.id).IsZero() && p.id != a.id {
		r.mu.Unlock()
		return
	}
	delete(r.prepared, a.volume)
	r.mu.Unlock()
	p.expiry.Stop()
	r.nbd.Forgo(p.String())
}

// TakeHandover implements volume.Mover. It is begun once: one that failed has come to nothing, and the volume is taken back.
func (r *runtime) TakeHandover(ctx context.Context, id replication.VolumeID, a replication.AttachID, h volume.Handover) (string, error) {
	// Whoever asked may go away when he sees it activated, before it serves.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), r.c.Replication.HandoverTimeout)
	defer cancel()
	unlock, err := r.lock(ctx, id)
	if err != nil {
		return "", err
	}
	defer unlock()
	if s := r.showing(id); s != nil && s.id.id == a {
		return s.attachment.Path(), nil // by followHandover
	}
	r.mu.Lock()
	p := r.prepared[id]
	r.mu.Unlock()
	if p == nil || p.id != a {
		return "", fmt.Errorf("%w: attachment %s is not prepared here", replication.ErrNotCoordinator, a)
	}
	defer r.unprepare(p.attachment)
	v, err := r.volumes.Attach(ctx, id, replvolume.AttachOptions{Named: a, Given: replvolume.Given{Config: h.Config, Rev: uint64(h.Revision)}})
	if err != nil {
		return "", err
	}
	s, err := r.show(ctx, r.nbd, v)
	if err != nil {
		defer r.drop(p.attachment)
		return "", errors.Join(err, r.volumes.Detach(ctx, id))
	}
	return s.attachment.Path(), nil
}

// followHandover takes what a configuration says was handed over to this node: who did that may have died before it said so.
func (r *runtime) followHandover(cfg *replication.Config) {
	co := cfg.Coord
	if cfg.Phase != replication.PhaseRecovering || co == nil || co.From.Term == 0 || co.Node != replication.NodeID(r.c.NodeID) {
		return
	}
	go func() {
		if _, err := r.TakeHandover(context.Background(), cfg.Volume, co.AttachID, volume.Handover{}); err != nil {
			r.lg.Warn("volume that was handed over is not taken", zap.Stringer("volume-id", cfg.Volume), zap.Error(err))
		}
	}()
}

// EndAttachment implements volume.Mover. What the process before this one showed goes on, unless that is decided otherwise: until then it is attached, too.
func (r *runtime) EndAttachment(ctx context.Context, id replication.VolumeID, dead replication.Coord) error {
	done := make(chan error, 1)
	go func() { done <- r.endAttachment(ctx, id, dead) }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return fmt.Errorf("%w: the attachment on node %s is being ended by node %s: %w", replication.ErrStalled, dead.Node, r.c.NodeID, ctx.Err())
	}
}

func (r *runtime) endAttachment(ctx context.Context, id replication.VolumeID, dead replication.Coord) error {
	unlock, err := r.lock(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	r.mu.Lock()
	_, goesOn := r.resuming[attachment{id, dead.AttachID}]
	r.mu.Unlock()
	switch {
	case goesOn:
		return fmt.Errorf("%w: node %s is about to go on with it after a restart", volume.ErrAttached, r.c.NodeID)
	case r.volumes.Volume(id) != nil, r.showing(id) != nil:
		return fmt.Errorf("%w: node %s has it attached, or is detaching it", volume.ErrAttached, r.c.NodeID)
	}
	// What was begun is ended: a takeover that is left in the middle is one more dead attachment.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), attachTimeout)
	defer cancel()
	defer r.formatting(id)() // nobody can write to it
	defer r.unshown(id)()
	_, err = r.volumes.Attach(ctx, id, replvolume.AttachOptions{TakeFrom: &dead, Still: true})
	switch {
	case errors.Is(err, replication.ErrNotCoordinator): // somebody else has ended it
		return nil
	case errors.Is(err, replication.ErrRolledBack):
		r.suspect()
		return err
	case err != nil:
		return fmt.Errorf("take it over from the attachment on node %s, which has ended: %w", dead.Node, err)
	}
	return r.volumes.Detach(ctx, id)
}

// lateSwitcher answers other nodes before this one's volumes are there.
type lateSwitcher struct {
	volumepb.UnimplementedHandoversServer
	s atomic.Pointer[volume.Switcher]
}

func (l *lateSwitcher) get() (*volume.Switcher, error) {
	if s := l.s.Load(); s != nil {
		return s, nil
	}
	return nil, replication.ErrClosed
}

// MoveVolume implements volumepb.HandoversServer.
func (l *lateSwitcher) MoveVolume(ctx context.Context, r *volumepb.MoveVolumeRequest) (*volumepb.MoveVolumeResponse, error) {
	s, err := l.get()
	if err != nil {
		return nil, err
	}
	return s.MoveVolume(ctx, r)
}

// PrepareHandover implements volumepb.HandoversServer.
func (l *lateSwitcher) PrepareHandover(ctx context.Context, r *volumepb.PrepareHandoverRequest) (*volumepb.PrepareHandoverResponse, error) {
	s, err := l.get()
	if err != nil {
		return nil, err
	}
	return s.PrepareHandover(ctx, r)
}

// GrowVolume implements volumepb.HandoversServer.
func (l *lateSwitcher) GrowVolume(ctx context.Context, r *volumepb.GrowVolumeRequest) (*volumepb.GrowVolumeResponse, error) {
	s, err := l.get()
	if err != nil {
		return nil, err
	}
	return s.GrowVolume(ctx, r)
}

// ProtectVolume implements volumepb.HandoversServer.
func (l *lateSwitcher) ProtectVolume(ctx context.Context, r *volumepb.ProtectVolumeRequest) (*volumepb.ProtectVolumeResponse, error) {
	s, err := l.get()
	if err != nil {
		return nil, err
	}
	return s.ProtectVolume(ctx, r)
}

// TakeHandover implements volumepb.HandoversServer.
func (l *lateSwitcher) TakeHandover(ctx context.Context, r *volumepb.TakeHandoverRequest) (*volumepb.TakeHandoverResponse, error) {
	s, err := l.get()
	if err != nil {
		return nil, err
	}
	return s.TakeHandover(ctx, r)
}

// EndAttachment implements volumepb.HandoversServer.
func (l *lateSwitcher) EndAttachment(ctx context.Context, r *volumepb.EndAttachmentRequest) (*volumepb.EndAttachmentResponse, error) {
	s, err := l.get()
	if err != nil {
		return nil, err
	}
	return s.EndAttachment(ctx, r)
}

// switcher moves volumes on behalf of operators who ask this node, and of other nodes.
func (d *daemon) switcher() *volume.Switcher {
	return &volume.Switcher{
		Catalogue: d.catalogue, Node: d.node, Mover: d.runtime, Grow: d.runtime.Grow, SetPolicy: d.runtime.SetPolicy, Logger: d.lg,
		Dial: func(n clusterdomain.Node) (volumepb.HandoversClient, func() error, error) {
			cc, err := d.dial(n.Name, n.Address)
			if err != nil {
				return nil, nil, err
			}
			return volumepb.NewHandoversClient(cc), cc.Close, nil
		},
		RoundTrip: func(n replication.NodeID) time.Duration { return d.peers.RTT(n).P50 },
	}
}
