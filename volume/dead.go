package volume

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/tandem-storage/tandem/audit"
	"github.com/tandem-storage/tandem/clusterdomain"
	"github.com/tandem-storage/tandem/replication"
	"github.com/tandem-storage/tandem/volume/volumepb"
)

// An attachment is dead when nobody serves it and nobody will: its node ended, and does not answer, or was started again and does not go on with it. The volume counts as
// attached all the same until somebody takes it over. Whoever wants it gone, or elsewhere, has that done: a takeover without a device, by a node that may have one by the
// rules for attaching, and a detach. Replicas fence the old attachment as in any takeover, so that it is no harm if it was not dead.

// endDead ends the attachment of a volume if it is dead, wherever that has to be done, and returns the epoch after it; a volume that is detached is left alone.
// ErrAttached: it is not dead. Others: those of attaching and detaching (no node can end it), replication.ErrVolumeNotFound, those of the store.
func (s *Switcher) endDead(ctx context.Context, id replication.VolumeID) (replication.Epoch, error) {
	if err := s.Catalogue.cluster.Refresh(ctx); err != nil {
		return 0, err
	}
	e, err := s.Catalogue.Get(ctx, id)
	if err != nil {
		return 0, err
	}
	if e.Config == nil || e.Config.Coord == nil {
		return e.epoch(), nil
	}
	view, dead := s.Catalogue.cluster.View(), *e.Config.Coord
	node, err := endsDead(e, view, s.Node)
	if err != nil {
		return 0, err
	}
	if node == s.Node {
		err = s.Mover.EndAttachment(ctx, id, dead)
	} else {
		info, _ := view.Node(string(node))
		err = s.endOn(ctx, info, id, dead)
	}
	if err != nil {
		return 0, err
	}
	if e, err = s.Catalogue.Get(ctx, id); err != nil {
		return 0, err
	}
	if e.Config != nil && e.Config.Coord != nil { // another one by now
		return e.epoch(), nil
	}
	s.Logger.Info("dead attachment ended", zap.Stringer("volume-id", id), zap.String("of", string(dead.Node)), zap.Stringer("attachment", dead.AttachID), zap.String("by", string(node)))
	rec := audit.Record{
		Verb: "attachment end", Object: object(id), Epoch: uint64(e.epoch()),
		Outcome: fmt.Sprintf("that on node %s, where nobody served it any more, by node %s", dead.Node, node),
	}
	if err := s.Catalogue.trail.Note(ctx, rec); err != nil {
		s.Logger.Error("action not in the audit trail", zap.String("verb", rec.Verb), zap.Stringer("volume-id", id), zap.Error(err))
	}
	return e.epoch(), nil
}

func (e *Entry) epoch() replication.Epoch {
	if e.Config == nil {
		return 0
	}
	return e.Config.Epoch
}

// endsDead names the node that is to end the attachment of a volume: its own if that answers, which knows whether it is dead, else one with a replica in sync, here if it is.
func endsDead(e *Entry, view *clusterdomain.View, here replication.NodeID) (replication.NodeID, error) {
	cfg, co := e.Config, e.Config.Coord
	if e.Rollback != nil {
		return "", fmt.Errorf("%w: %s", replication.ErrRolledBack, e.Rollback.describe(e.ID))
	}
	if err := checkHandedOver(cfg, view); err != nil {
		return "", err
	}
	own, _ := view.Node(string(co.Node))
	if own.Online && view.State(own.Domain).MayAttach() {
		return co.Node, nil
	}
	var may, silent []string
	var why error
	for _, r := range cfg.ISR {
		n := cfg.Members[r].Node
		if info, _ := view.Node(string(n)); !info.Online {
			silent = append(silent, string(n))
		} else if err := checkAttach(cfg, view, n); err != nil {
			why = err
		} else {
			may = append(may, string(n))
		}
	}
	switch {
	case slices.Contains(may, string(here)):
		return here, nil
	case len(may) > 0:
		return replication.NodeID(slices.Min(may)), nil
	case why != nil:
		return "", why
	}
	slices.Sort(silent)
	return "", fmt.Errorf("%w on a node that answers, so that nobody can end the attachment on node %s, which does not answer: start %s",
		replication.ErrNoInSyncReplica, co.Node, strings.Join(silent, " or "))
}

// checkHandedOver returns ErrAttached for a volume that is on its way from one node to another, as long as the first one can take it back.
func checkHandedOver(cfg *replication.Config, view *clusterdomain.View) error {
	from := cfg.Coord.From
	if n, _ := view.Node(string(from.Node)); cfg.Phase == replication.PhaseRecovering && from.Term != 0 && n.Online {
		return fmt.Errorf("%w: it is being handed over from node %s to node %s", ErrAttached, from.Node, cfg.Coord.Node)
	}
	return nil
}

// endOn has another node end an attachment.
func (s *Switcher) endOn(ctx context.Context, n clusterdomain.Node, id replication.VolumeID, dead replication.Coord) error {
	c, hangUp, err := s.Dial(n)
	if err != nil {
		return err
	}
	defer s.close(hangUp)
	_, err = c.EndAttachment(ctx, &volumepb.EndAttachmentRequest{
		Volume: id.String(), AttachId: dead.AttachID[:], Term: uint64(dead.Term),
	})
	if err != nil {
		return fmt.Errorf("node %s: %w", n.Name, err)
	}
	return nil
}

// EndAttachment implements Handovers. Who asks may have seen something else, or long ago: this node decides anew.
func (s *Switcher) EndAttachment(ctx context.Context, r *volumepb.EndAttachmentRequest) (*volumepb.EndAttachmentResponse, error) {
	id, err := replication.ParseVolumeID(r.Volume)
	if err != nil || len(r.AttachId) != len(replication.AttachID{}) {
		return nil, fmt.Errorf("%w: volume %q, attachment of %d bytes", ErrInvalid, r.Volume, len(r.AttachId))
	}
	if err := s.Catalogue.cluster.Refresh(ctx); err != nil {
		return nil, err
	}
	e, err := s.Catalogue.Get(ctx, id)
	if err != nil {
		return nil, err
	}
	if e.Config == nil || coordinator(e.Config).AttachID != replication.AttachID(r.AttachId) || coordinator(e.Config).Term != replication.Term(r.Term) {
		return &volumepb.EndAttachmentResponse{}, nil // it has ended
	}
	dead, view := *e.Config.Coord, s.Catalogue.cluster.View()
	if e.Rollback != nil {
		return nil, fmt.Errorf("%w: %s", replication.ErrRolledBack, e.Rollback.describe(e.ID))
	}
	if err := checkHandedOver(e.Config, view); err != nil {
		return nil, err
	}
	if err := checkAttach(e.Config, view, s.Node); err != nil {
		return nil, err
	}
	if err := s.Mover.EndAttachment(ctx, id, dead); err != nil {
		return nil, err
	}
	return &volumepb.EndAttachmentResponse{}, nil
}

// orEndDead does f, and does it again if it was refused because the volume is attached, when the attachment is dead and was ended. after is the epoch then.
func (s *Server) orEndDead(ctx context.Context, id replication.VolumeID, f func(after *replication.Epoch) error) error {
	refused := f(nil)
	if !errors.Is(refused, ErrAttached) && !errors.Is(refused, replication.ErrBusy) {
		return refused
	}
	after, err := s.o.Switcher.endDead(ctx, id)
	if err != nil {
		return fmt.Errorf("%w; %w", refused, err)
	}
	return f(&after)
}

// orEndUnserved takes a snapshot of volumes with take, and does it again if nothing was taken and one of them was attached at a node that answers and does not serve it: that
// attachment is ended. One at a node that does not answer is left to who wants the volume elsewhere: a consumer may be served there, and loses its device for no snapshot.
func (s *Switcher) orEndUnserved(ctx context.Context, vs []replication.VolumeID, take func() error) error {
	err := take()
	if !errors.Is(err, replication.ErrNotCut) && !errors.Is(err, replication.ErrNotCoordinator) && !errors.Is(err, ErrNotCut) {
		return err
	}
	if s.Catalogue.cluster.Refresh(ctx) != nil {
		return err
	}
	view, ended := s.Catalogue.cluster.View(), false
	for _, v := range vs {
		e, gerr := s.Catalogue.Get(ctx, v)
		if gerr != nil || e.Config == nil || e.Config.Coord == nil {
			continue
		}
		if n, _ := view.Node(string(e.Config.Coord.Node)); !n.Online || !view.State(n.Domain).MayAttach() {
			continue
		}
		if _, eerr := s.endDead(ctx, v); eerr == nil {
			ended = true
		} else if !errors.Is(eerr, ErrAttached) { // that is the usual: it is served, and why there is no snapshot has been said
			err = fmt.Errorf("%w; %w", err, eerr)
		}
	}
	if !ended {
		return err
	}
	return take()
}

// endOwnWait is how long a detach waits for the end of an attachment that this node does not serve.
const endOwnWait = 15 * time.Second

// endOwn ends an attachment of this node that a detach has found nothing of, if that can be done now. Who detaches is done with the volume here in any case: there is nothing that
// shows it.
func (s *Server) endOwn(ctx context.Context, e *Entry) {
	cfg, _, err := s.c.configs.Load(ctx, e.ID)
	if err != nil || coordinator(cfg).Node != s.o.Node {
		return // who asks for the volume next is told of the error
	}
	ctx, cancel := context.WithTimeout(ctx, endOwnWait)
	defer cancel()
	if _, err := s.o.Switcher.endDead(ctx, e.ID); err != nil {
		s.o.Logger.Warn("attachment that is not served is not ended yet, whoever wants the volume ends it", zap.Stringer("volume-id", e.ID), zap.Error(err))
	}
}
