package volume

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"go.uber.org/zap"

	"github.com/tandem-storage/tandem/audit"
	"github.com/tandem-storage/tandem/clusterdomain"
	"github.com/tandem-storage/tandem/kvdb"
	"github.com/tandem-storage/tandem/replication"
	"github.com/tandem-storage/tandem/volume/volumepb"
)

// Mover is what a node does for planned moves of volumes (protocol.md 10.2), and for attachments that are dead. Safety does not depend on whom it asks: each step is a
// compare-and-set, and what comes to nothing leaves the volume where it is.
type Mover interface {
	// MayHandOver returns nil if the volume is shown here in a way that its consumer can follow.
	MayHandOver(v replication.VolumeID) error
	// HandOver gives the volume to the attachment to, which take asks to serve, and returns how long requests were held. On an error the volume
	// goes on here.
	HandOver(ctx context.Context, v replication.VolumeID, to replication.Coord, take func(ctx context.Context, h Handover) error) (hold time.Duration, err error)
	// PrepareHandover names the attachment that this node would make, and the path that it will have.
	PrepareHandover(v replication.VolumeID) (to replication.Coord, path string, err error)
	// TakeHandover makes it, when the configuration names it: h.Config, or if that is nil the one that is in force.
	TakeHandover(ctx context.Context, v replication.VolumeID, a replication.AttachID, h Handover) (path string, err error)
	// EndAttachment takes the volume over from the attachment dead, of an earlier process of this node or of another node that does not answer, shows it to nobody and
	// detaches it; a blank volume stays blank. It goes on when ctx ends. One that has ended already is no error. ErrAttached: it is attached on this node, or about to be.
	// Others: those of attaching and detaching.
	EndAttachment(ctx context.Context, v replication.VolumeID, dead replication.Coord) error
}

// Handover is the configuration that names another coordinator, and its revision.
type Handover struct {
	Config   *replication.Config
	Revision kvdb.Revision
}

// Switcher moves attached volumes between nodes by plan, on behalf of operators and of other nodes. It implements the gRPC service Handovers.
type Switcher struct {
	volumepb.UnimplementedHandoversServer
	Catalogue *Catalogue
	Node      replication.NodeID // this one
	Mover     Mover
	// Grow gives a volume that is attached on this node another size: Runtime's.
	Grow func(ctx context.Context, v replication.VolumeID, size int64) error
	// SetPolicy changes the protection of a volume that is attached on this node: Runtime's.
	SetPolicy func(ctx context.Context, v replication.VolumeID, p replication.Policy, expect replication.Epoch, reason string) error
	// Dial connects to another node; hangUp ends that.
	Dial func(n clusterdomain.Node) (c volumepb.HandoversClient, hangUp func() error, err error)
	// RoundTrip is the median to another node, 0 if it is not known.
	RoundTrip func(n replication.NodeID) time.Duration
	Logger    *zap.Logger
}

var _ volumepb.HandoversServer = (*Switcher)(nil)

// What a move is expected to hold requests for: some disk and kvdb work, and so many round trips one after the other.
const (
	moveWork       = 30 * time.Millisecond
	moveRoundTrips = 12
)

// SwitchOver moves one volume, or tells what would be done.
func (s *Switcher) SwitchOver(ctx context.Context, r *volumepb.SwitchOverRequest) (*volumepb.Move, error) {
	id, err := s.Catalogue.Resolve(ctx, r.Volume)
	if err != nil {
		return nil, err
	}
	e, err := s.Catalogue.Get(ctx, id)
	if err != nil {
		return nil, err
	}
	if err := s.Catalogue.cluster.Refresh(ctx); err != nil { // the domain may have been activated a moment ago
		return nil, fmt.Errorf("move volume %s: %w", e.Name, err)
	}
	view := s.Catalogue.cluster.View()
	m := planMove(e, view, r)
	if m.Action != volumepb.SwitchOverAction_SWITCH_OVER_ACTION_MOVE {
		return m, nil
	}
	from, _ := view.Node(m.FromNode)
	to, _ := view.Node(m.ToNode)
	if from.Name == string(s.Node) {
		return s.move(ctx, e, to, m, r)
	}
	c, hangUp, err := s.Dial(from)
	if err != nil {
		return nil, fmt.Errorf("move volume %s: %w", e.Name, err)
	}
	defer s.close(hangUp)
	resp, err := c.MoveVolume(ctx, &volumepb.MoveVolumeRequest{Request: r})
	if err != nil {
		return nil, fmt.Errorf("move volume %s: node %s: %w", e.Name, from.Name, err)
	}
	return resp.GetMove(), nil
}

func (s *Switcher) close(hangUp func() error) {
	if err := hangUp(); err != nil {
		s.Logger.Debug("connection not closed", zap.Error(err))
	}
}

// planMove decides what is to become of a volume, as far as the catalogue and the cluster tell.
func planMove(e *Entry, view *clusterdomain.View, r *volumepb.SwitchOverRequest) *volumepb.Move {
	m := &volumepb.Move{VolumeId: e.ID.String(), VolumeName: e.Name, Group: e.Group, Action: volumepb.SwitchOverAction_SWITCH_OVER_ACTION_NONE}
	refuse := func(format string, a ...any) *volumepb.Move {
		m.Action, m.Text = volumepb.SwitchOverAction_SWITCH_OVER_ACTION_REFUSED, fmt.Sprintf(format, a...)
		return m
	}
	if e.Config == nil || e.Config.Coord == nil {
		m.Text = "it is attached nowhere"
		return m
	}
	co := e.Config.Coord
	m.FromNode = string(co.Node)
	from, _ := view.Node(m.FromNode)
	switch state := view.State(r.ToDomain); {
	case string(co.Domain) == r.ToDomain && (r.ToNode == "" || r.ToNode == m.FromNode):
		m.Text = "it is attached there"
		return m
	case e.Config.Phase != replication.PhaseActive:
		return refuse("it is being taken over by node %s; try again when it is attached", co.Node)
	case !from.Online:
		return refuse("node %s does not answer: attach it in domain %s, which takes it over", co.Node, r.ToDomain)
	case !view.State(string(co.Domain)).MayAttach():
		return refuse("domain %s is %s, so that it could not be taken back; activate it, or detach and attach", co.Domain, view.State(string(co.Domain)))
	case state == "":
		return refuse("there is no domain %s", r.ToDomain)
	case !state.MayAttach() && !(r.DryRun && state == clusterdomain.Standby):
		return refuse("domain %s is %s, nothing is attached there; activate it", r.ToDomain, state)
	}
	var near []string
	for _, id := range e.Config.ISR {
		mem := e.Config.Members[id]
		n, ok := view.Node(string(mem.Node))
		if ok && n.Online && string(mem.Domain) == r.ToDomain && (r.ToNode == "" || r.ToNode == n.Name) {
			near = append(near, n.Name)
		}
	}
	if len(near) == 0 {
		return refuse("no node of domain %s that answers has an in-sync replica of it; wait for its resync (tandemctl volume inspect)", r.ToDomain)
	}
	m.Action, m.ToNode = volumepb.SwitchOverAction_SWITCH_OVER_ACTION_MOVE, slices.Min(near)
	return m
}

// move carries a plan out on the node where the volume is attached.
func (s *Switcher) move(ctx context.Context, e *Entry, to clusterdomain.Node, m *volumepb.Move, r *volumepb.SwitchOverRequest) (*volumepb.Move, error) {
	rtt := s.RoundTrip(replication.NodeID(to.Name))
	m.RoundTripUs, m.ExpectedHoldUs = uint64(rtt.Microseconds()), uint64((moveWork + moveRoundTrips*rtt).Microseconds())
	if err := s.Mover.MayHandOver(e.ID); err != nil {
		m.Action, m.Text = volumepb.SwitchOverAction_SWITCH_OVER_ACTION_REFUSED, err.Error()
		return m, nil
	}
	if r.DryRun {
		return m, nil
	}
	lg := s.Logger.With(zap.Stringer("volume-id", e.ID), zap.String("to", to.Name), zap.String("actor", r.Actor), zap.String("reason", r.Reason))
	c, hangUp, err := s.Dial(to)
	if err != nil {
		return nil, fmt.Errorf("move volume %s: %w", e.Name, err)
	}
	defer s.close(hangUp)
	p, err := c.PrepareHandover(ctx, &volumepb.PrepareHandoverRequest{Volume: e.ID.String()}) // opens the connection, too
	if err != nil {
		return nil, fmt.Errorf("move volume %s: node %s is not prepared: %w", e.Name, to.Name, err)
	}
	if len(p.AttachId) != len(replication.AttachID{}) || len(p.Boot) != len(replication.BootID{}) {
		return nil, fmt.Errorf("%w: node %s names no attachment", ErrBadRecord, to.Name)
	}
	next := replication.Coord{
		Node: replication.NodeID(to.Name), Domain: replication.DomainID(p.Domain),
		Boot: replication.BootID(p.Boot), AttachID: replication.AttachID(p.AttachId),
	}
	// Whoever asked may go away: what was begun is ended.
	hold, err := s.Mover.HandOver(context.WithoutCancel(ctx), e.ID, next, func(ctx context.Context, h Handover) error {
		raw, err := json.Marshal(h.Config)
		if err != nil {
			return fmt.Errorf("%w: configuration of the handover: %w", ErrBadRecord, err)
		}
		_, err = c.TakeHandover(ctx, &volumepb.TakeHandoverRequest{Volume: e.ID.String(), AttachId: p.AttachId, Config: raw, Revision: int64(h.Revision)})
		return err
	})
	if err != nil {
		lg.Warn("volume not moved", zap.Duration("hold", hold), zap.Error(err))
		return nil, fmt.Errorf("move volume %s to node %s: %w", e.Name, to.Name, err)
	}
	lg.Info("volume moved", zap.Duration("hold", hold), zap.Duration("round-trip", rtt))
	m.Done, m.HoldUs, m.Path = true, uint64(hold.Microseconds()), p.Path
	return m, nil
}

// MoveVolume implements Handovers.
func (s *Switcher) MoveVolume(ctx context.Context, r *volumepb.MoveVolumeRequest) (*volumepb.MoveVolumeResponse, error) {
	id, err := s.Catalogue.Resolve(ctx, r.GetRequest().GetVolume())
	if err != nil {
		return nil, err
	}
	e, err := s.Catalogue.Get(ctx, id)
	if err != nil {
		return nil, err
	}
	if e.Config == nil || e.Config.Coord == nil || e.Config.Coord.Node != s.Node {
		return nil, fmt.Errorf("move volume %s: %w", e.Name, replication.ErrNotCoordinator)
	}
	m, err := s.SwitchOver(ctx, r.GetRequest())
	if err != nil {
		return nil, err
	}
	return &volumepb.MoveVolumeResponse{Move: m}, nil
}

// PrepareHandover implements Handovers.
func (s *Switcher) PrepareHandover(ctx context.Context, r *volumepb.PrepareHandoverRequest) (*volumepb.PrepareHandoverResponse, error) {
	if err := s.Catalogue.cluster.Refresh(ctx); err != nil {
		return nil, err
	}
	view := s.Catalogue.cluster.View()
	if me, ok := view.Node(string(s.Node)); ok && !view.State(me.Domain).MayAttach() {
		return nil, &DomainStateError{Domain: replication.DomainID(me.Domain), State: view.State(me.Domain)}
	}
	id, err := s.Catalogue.Resolve(ctx, r.Volume)
	if err != nil {
		return nil, err
	}
	to, path, err := s.Mover.PrepareHandover(id)
	if err != nil {
		return nil, err
	}
	if err := s.Catalogue.configs.LookAhead(ctx, to.Domain); err != nil { // while nobody waits
		return nil, err
	}
	return &volumepb.PrepareHandoverResponse{AttachId: to.AttachID[:], Boot: to.Boot[:], Domain: string(to.Domain), Path: path}, nil
}

// TakeHandover implements Handovers.
func (s *Switcher) TakeHandover(ctx context.Context, r *volumepb.TakeHandoverRequest) (*volumepb.TakeHandoverResponse, error) {
	id, err := replication.ParseVolumeID(r.Volume)
	if err != nil || len(r.AttachId) != len(replication.AttachID{}) {
		return nil, fmt.Errorf("%w: volume %q, attachment of %d bytes", ErrInvalid, r.Volume, len(r.AttachId))
	}
	var h Handover
	if len(r.Config) > 0 {
		h.Config, h.Revision, err = parseConfig(kvdb.KV{Key: "configuration of the handover", Value: r.Config, Mod: kvdb.Revision(r.Revision)})
		switch {
		case err != nil:
			return nil, err
		case h.Config.Volume != id || h.Revision <= 0:
			return nil, fmt.Errorf("%w: the configuration of the handover of volume %s is that of volume %s, revision %d", ErrInvalid, id, h.Config.Volume, h.Revision)
		}
	}
	path, err := s.Mover.TakeHandover(ctx, id, replication.AttachID(r.AttachId), h)
	if err != nil {
		return nil, err
	}
	return &volumepb.TakeHandoverResponse{Path: path}, nil
}

// SwitchOver implements Volumes.
func (s *Server) SwitchOver(ctx context.Context, r *volumepb.SwitchOverRequest) (*volumepb.SwitchOverResponse, error) {
	if r.ToDomain == "" {
		return nil, fmt.Errorf("%w: no domain is named to move the volume to", ErrInvalid)
	}
	m, err := s.o.Switcher.SwitchOver(ctx, r)
	if err != nil {
		return nil, err
	}
	if m.Done {
		rec := audit.Record{
			Verb: "domain switchover", Object: "volume/" + m.VolumeId,
			Outcome: fmt.Sprintf("moved from node %s to node %s, requests waited %v", m.FromNode, m.ToNode, time.Duration(m.HoldUs)*time.Microsecond),
		}
		if err := s.c.trail.Note(by(ctx, r), rec); err != nil {
			s.o.Logger.Error("action not in the audit trail", zap.String("verb", rec.Verb), zap.String("volume-id", m.VolumeId), zap.Error(err))
		}
	}
	return &volumepb.SwitchOverResponse{Move: m}, nil
}
