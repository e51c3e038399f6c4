package volume

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"google.golang.org/protobuf/proto"

	"github.com/tandem-storage/tandem/clusterdomain"
	"github.com/tandem-storage/tandem/kvdb"
	"github.com/tandem-storage/tandem/replication"
	"github.com/tandem-storage/tandem/volume/volumepb"
)

// maxReason bounds the reason of a change, in bytes: it is written with the configuration again and again.
const maxReason = 200

// UpdateVolume implements Volumes.
func (s *Server) UpdateVolume(ctx context.Context, r *volumepb.UpdateVolumeRequest) (*volumepb.UpdateVolumeResponse, error) {
	p, err := parsePolicy(r)
	if err != nil {
		return nil, err
	}
	e, err := s.entry(ctx, r.Volume)
	if err != nil {
		return nil, err
	}
	switch {
	case e.State != Ready || e.Config == nil:
		return nil, e.notReady()
	case e.Rollback != nil:
		return nil, fmt.Errorf("update volume %s: %w: %s", e.Name, replication.ErrRolledBack, e.Rollback.describe(e.ID))
	}
	if err := p.Validate(memberDomains(e.Config)); err != nil {
		return nil, fmt.Errorf("update volume %s: %w: %w", e.Name, ErrInvalid, err)
	}
	if err := checkEpoch(e.Config, (*replication.Epoch)(r.ExpectedEpoch)); err != nil {
		return nil, fmt.Errorf("update volume %s: %w", e.Name, err)
	}
	if n := coordinator(e.Config).Node; n == "" || n == s.o.Node {
		err = s.c.protect(ctx, s.o.Runtime.SetPolicy, e.ID, s.o.Node, p, r)
	} else {
		err = s.protectOn(ctx, n, e.ID, r)
	}
	s.record(ctx, r, "volume update", e, err)
	if err != nil {
		return nil, fmt.Errorf("update volume %s: %w", e.Name, err)
	}
	v, err := s.again(ctx, e)
	if err != nil {
		return nil, err
	}
	return &volumepb.UpdateVolumeResponse{Volume: v}, nil
}

// protect puts a policy in force for a volume that is attached on this node, by set, which is Runtime's SetPolicy, or that nobody serves.
func (c *Catalogue) protect(ctx context.Context, set func(context.Context, replication.VolumeID, replication.Policy, replication.Epoch, string) error,
	id replication.VolumeID, here replication.NodeID, p replication.Policy, r *volumepb.UpdateVolumeRequest,
) error {
	expect := replication.Epoch(r.GetExpectedEpoch()) // compared again when it comes into force
	err := set(ctx, id, p, expect, r.Reason)
	if errors.Is(err, replication.ErrNotCoordinator) {
		err = c.configs.protect(ctx, id, here, p, expect, r.Reason)
	}
	return err
}

// protectOn has the node do it where the volume is attached: only the coordinator knows that no write is acknowledged against the new protection any more.
func (s *Server) protectOn(ctx context.Context, node replication.NodeID, id replication.VolumeID, r *volumepb.UpdateVolumeRequest) error {
	info, ok := s.c.cluster.View().Node(string(node))
	if !ok {
		return fmt.Errorf("%w: it is attached on node %s, which nobody knows", ErrOtherNode, node)
	}
	c, hangUp, err := s.o.Switcher.Dial(info)
	if err != nil {
		return err
	}
	defer s.o.Switcher.close(hangUp)
	q := proto.CloneOf(r)
	q.Volume = id.String()
	if _, err := c.ProtectVolume(ctx, &volumepb.ProtectVolumeRequest{Request: q}); err != nil {
		return fmt.Errorf("node %s, where it is attached: %w", node, err)
	}
	return nil
}

// ProtectVolume implements Handovers. What was asked for was examined where it was asked, and is again when it comes into force.
func (s *Switcher) ProtectVolume(ctx context.Context, q *volumepb.ProtectVolumeRequest) (*volumepb.ProtectVolumeResponse, error) {
	r := q.GetRequest()
	id, err := replication.ParseVolumeID(r.GetVolume())
	if err != nil {
		return nil, fmt.Errorf("%w: volume: %w", ErrInvalid, err)
	}
	p, err := parsePolicy(r)
	if err != nil {
		return nil, err
	}
	e, err := s.Catalogue.Get(ctx, id)
	switch {
	case err != nil:
		return nil, err
	case e.State != Ready || e.Config == nil:
		return nil, e.notReady()
	case coordinator(e.Config).Node != s.Node:
		return nil, fmt.Errorf("%w: volume %s is not attached on node %s any more", ErrConflict, e.Name, s.Node)
	}
	if err := p.Validate(memberDomains(e.Config)); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	if err := s.Catalogue.protect(ctx, s.SetPolicy, id, s.Node, p, r); err != nil {
		return nil, err
	}
	return &volumepb.ProtectVolumeResponse{}, nil
}

// parsePolicy returns what a request asks for. ErrInvalid: it cannot be read, or its reason is too long to be kept.
func parsePolicy(r *volumepb.UpdateVolumeRequest) (replication.Policy, error) {
	mode, err := parseProtection(r.Protection)
	if err != nil {
		return replication.Policy{}, err
	}
	if len(r.Reason) > maxReason {
		return replication.Policy{}, fmt.Errorf("%w: a reason of %d bytes, at most %d are kept", ErrInvalid, len(r.Reason), maxReason)
	}
	return replication.Policy{Protection: mode, Needs: parseNeeds(r.Needs)}, nil
}

// protect puts a policy in force for a volume that nobody serves: it is detached, or its coordinator was a process of this node that has
// ended. Whoever attaches it takes over from this configuration, or from nothing: he compares and sets too.
func (c *Configs) protect(ctx context.Context, id replication.VolumeID, here replication.NodeID, p replication.Policy, expect replication.Epoch, reason string) error {
	look, err := c.store.Txn(ctx, kvdb.Txn{Then: []kvdb.Op{
		{Kind: kvdb.OpGet, Key: c.keys.config(id)}, {Kind: kvdb.OpGet, Key: clusterdomain.IncarnationKey(c.cluster)},
	}})
	switch {
	case err != nil:
		return err
	case look.Gets[0] == nil:
		return notFound(id)
	}
	if err := c.checkIncarnation(look.Gets[1]); err != nil {
		return err
	}
	cfg, mod, err := parseConfig(*look.Gets[0])
	if err != nil {
		return err
	}
	switch node := coordinator(cfg).Node; {
	case cfg.Phase == replication.PhaseDeleting:
		return ErrDeleting
	case expect != 0 && cfg.Epoch != expect:
		return fmt.Errorf("%w: epoch %d is in force, not %d", ErrConflict, cfg.Epoch, expect)
	case node != "" && node != here:
		return fmt.Errorf("%w: it was attached on node %s", ErrConflict, node)
	case cfg.Policy().Equal(p):
		return nil
	}
	next := nextConfig(cfg, cfg.Phase, replication.PolicyCause(reason))
	next.SetPolicy(p)
	record, err := put(c.keys.config(id), next)
	if err != nil {
		return err
	}
	res, err := c.store.Txn(ctx, kvdb.Txn{
		If:   []kvdb.Cmp{{Key: c.keys.config(id), Target: kvdb.CmpMod, Revision: mod}, c.guard(), c.unmarked(id)},
		Then: []kvdb.Op{record},
	})
	switch {
	case err != nil:
		return err
	case !res.Succeeded:
		return fmt.Errorf("%w: somebody was faster", ErrConflict)
	}
	return nil
}

func parseNeeds(n *volumepb.Needs) replication.Needs {
	var ds []replication.DomainID
	for _, d := range n.GetDomains() {
		ds = append(ds, replication.DomainID(d))
	}
	slices.Sort(ds)
	return replication.Needs{InSync: int(n.GetInSync()), Domains: slices.Compact(ds), StallMs: n.GetStallMs()}
}

func needsPB(n replication.Needs) *volumepb.Needs {
	if n.IsZero() {
		return nil
	}
	p := &volumepb.Needs{InSync: uint32(n.InSync), StallMs: n.StallMs}
	for _, d := range n.Domains {
		p.Domains = append(p.Domains, string(d))
	}
	return p
}
