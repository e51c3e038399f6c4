package volume

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/tandem-storage/tandem/clusterdomain"
	"github.com/tandem-storage/tandem/kvdb"
	"github.com/tandem-storage/tandem/replication"
	"github.com/tandem-storage/tandem/volume/volumepb"
)

// maxReason bounds the reason of a change, in bytes: it is written with the configuration again and again.
const maxReason = 200

// UpdateVolume implements Volumes.
func (s *Server) UpdateVolume(ctx context.Context, r *volumepb.UpdateVolumeRequest) (*volumepb.UpdateVolumeResponse, error) {
	mode, err := parseProtection(r.Protection)
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
	if len(r.Reason) > maxReason {
		return nil, fmt.Errorf("%w: a reason of %d bytes, at most %d are kept", ErrInvalid, len(r.Reason), maxReason)
	}
	p := replication.Policy{Protection: mode, Needs: parseNeeds(r.Needs)}
	if err := p.Validate(memberDomains(e.Config)); err != nil {
		return nil, fmt.Errorf("update volume %s: %w: %w", e.Name, ErrInvalid, err)
	}
	if n := coordinator(e.Config).Node; n != "" && n != s.o.Node {
		return nil, s.otherNode(n, "does not have volume "+e.Name+" attached")
	}
	if err := checkEpoch(e.Config, (*replication.Epoch)(r.ExpectedEpoch)); err != nil {
		return nil, fmt.Errorf("update volume %s: %w", e.Name, err)
	}
	expect := replication.Epoch(r.GetExpectedEpoch()) // compared again when it comes into force
	err = s.o.Runtime.SetPolicy(ctx, e.ID, p, expect, r.Reason)
	if errors.Is(err, replication.ErrNotCoordinator) {
		err = s.c.configs.protect(ctx, e.ID, s.o.Node, p, expect, r.Reason)
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
