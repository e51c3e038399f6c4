package volume

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"go.uber.org/zap"

	"github.com/tandem-storage/tandem/audit"
	"github.com/tandem-storage/tandem/clusterdomain"
	"github.com/tandem-storage/tandem/kvdb"
	"github.com/tandem-storage/tandem/replication"
)

// ForceRequest says which replica is to be the only one in sync, though it lacks writes that were acknowledged.
type ForceRequest struct {
	Replica       string             // its id, or the node that has it
	ExpectedEpoch *replication.Epoch // refuse if the volume is at another epoch; nil: whatever it is at
}

// Forced is what was done.
type Forced struct {
	Node  replication.NodeID
	Epoch replication.Epoch // now
	As    replication.Epoch // of the newest configuration that the replica was told: what came after it may be lost
	Lost  []replication.NodeID
}

// Force makes a replica that is not in sync the only one that is, with the loss of every write that it lacks (I24): for a volume
// whose in-sync replicas are all lost, or not to be waited for (protocol.md 11, F14). They have to be in domains that are
// out of service, so that nobody writes to them any more who can hear of it. The volume is detached after that, and a fork of
// what it was: fork_gen tells, and the replicas that were in sync are compared in full when they return, whatever they have.
//
// The order goes to the kvdb as one transaction with its entry in the audit trail. Asked for again when it is in force it is refused: the replica is in sync.
//
// Errors: replication.ErrVolumeNotFound, ErrNotReady, ErrDeleting, ErrReplicaNotFound, ErrNotForced (the text says why), ErrConflict,
// ErrOutcomeUnknown, those of the store.
func (im *Importer) Force(ctx context.Context, id replication.VolumeID, q ForceRequest) (*Forced, error) {
	c := im.Catalogue
	if err := c.cluster.Refresh(ctx); err != nil {
		return nil, err
	}
	s, cfg, guards, err := c.readForChange(ctx, id)
	if err != nil {
		return nil, err
	}
	i, err := findReplica(s, q.Replica)
	if err != nil {
		return nil, err
	}
	if err := checkEpoch(cfg, q.ExpectedEpoch); err != nil {
		return nil, fmt.Errorf("volume %s: %w", s.Name, err)
	}
	r := s.Placed[i].Replica
	view := c.cluster.View()
	domains, err := mayForce(cfg, view, r)
	if err != nil {
		return nil, fmt.Errorf("volume %s: %w", s.Name, err)
	}
	f, err := im.find(ctx, view, id, r, cfg.Members[r].Node)
	if err != nil {
		return nil, fmt.Errorf("volume %s: %w", s.Name, err)
	}
	next, err := forcedConfig(cfg, f)
	if err != nil {
		return nil, fmt.Errorf("volume %s: %w", s.Name, err)
	}
	for _, d := range domains {
		guards = append(guards, kvdb.Cmp{Key: clusterdomain.DomainKey(c.configs.cluster, d.Name), Target: kvdb.CmpMod, Revision: d.Mod})
	}
	if err := im.force(ctx, s, cfg, next, guards, f); err != nil {
		return nil, err
	}
	out := &Forced{Node: f.Node, Epoch: next.Epoch, As: f.Epoch}
	for _, lost := range cfg.ISR {
		out.Lost = append(out.Lost, cfg.Members[lost].Node)
	}
	im.Logger.Warn("replica forced to be the one in sync", zap.Stringer("volume-id", id), zap.String("name", s.Name), zap.Stringer("replica", r),
		zap.String("node", string(f.Node)), zap.Uint64("epoch", uint64(next.Epoch)), zap.Uint64("data-epoch", uint64(f.Epoch)))
	return out, nil
}

// mayForce says whether r may become the one in sync by what the kvdb tells, and the domains that this depends on.
func mayForce(cfg *replication.Config, v *clusterdomain.View, r replication.ReplicaID) ([]clusterdomain.Domain, error) {
	refuse := func(format string, a ...any) ([]clusterdomain.Domain, error) {
		return nil, fmt.Errorf("%w: "+format, append([]any{ErrNotForced}, a...)...)
	}
	m, ok := cfg.Members[r]
	switch {
	case !ok:
		return refuse("replica %s is not filled yet, it has nothing", r)
	case cfg.InISR(r):
		return refuse("replica %s on node %s is in sync, it has every acknowledged write: attach the volume", r, m.Node)
	case m.State == replication.MemberSyncing:
		return refuse("the replica on node %s was being resynced: it is neither what it was nor what the others have, and nothing to go on with; force another one", m.Node)
	case m.State == replication.MemberFaulted:
		return refuse("the disk of the replica on node %s failed (%s)", m.Node, m.Reason)
	}
	var domains []clusterdomain.Domain
	note := func(name replication.DomainID) clusterdomain.State {
		d, known := v.Domain(string(name))
		if known && !slices.ContainsFunc(domains, func(o clusterdomain.Domain) bool { return o.Name == d.Name }) {
			domains = append(domains, d)
		}
		return d.State
	}
	if s := note(m.Domain); s == "" || s.MustStop() {
		return refuse("domain %s of node %s is %s: activate it first", m.Domain, m.Node, s)
	}
	for _, o := range cfg.ISR {
		in := cfg.Members[o]
		if s := note(in.Domain); !s.MustStop() {
			return refuse("node %s (domain %s, %s) has every acknowledged write: bring it back and attach the volume; or, if it is lost, take its domain out of service first "+
				"(tandemctl cluster domains deactivate --name %s --peer-lost --accept-data-loss=VOLUME)", in.Node, in.Domain, s, in.Domain)
		}
	}
	if co := cfg.Coord; co != nil {
		if s := note(co.Domain); !s.MustStop() {
			return refuse("it is attached on node %s (domain %s, %s): detach it there first", co.Node, co.Domain, s)
		}
	}
	return domains, nil
}

// find asks the node of a replica what it has.
func (im *Importer) find(ctx context.Context, v *clusterdomain.View, id replication.VolumeID, r replication.ReplicaID, node replication.NodeID) (*FoundReplica, error) {
	n, ok := v.Node(string(node))
	if !ok {
		return nil, fmt.Errorf("%w: node %s is not registered: start it", ErrNotForced, node)
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	report, err := im.Ask(ctx, n)
	if err != nil {
		return nil, fmt.Errorf("%w: node %s does not tell what its replica has: %w", ErrNotForced, node, err)
	}
	i := slices.IndexFunc(report.Replicas, func(f FoundReplica) bool { return f.Volume == id && f.Replica == r })
	if i < 0 {
		return nil, fmt.Errorf("%w: node %s has no replica %s any more", ErrNotForced, node, r)
	}
	f := report.Replicas[i]
	f.Node, f.Domain = node, replication.DomainID(n.Domain)
	return &f, nil
}

// forcedConfig is the configuration after cfg in which f is the only replica in sync. Its history ends with what f was told: who knows
// a later epoch has gone another way and is compared in full.
func forcedConfig(cfg *replication.Config, f *FoundReplica) (*replication.Config, error) {
	refuse := func(format string, a ...any) error {
		return fmt.Errorf("%w: the replica on node %s "+format, append([]any{ErrNotForced, f.Node}, a...)...)
	}
	switch {
	case f.Err != "":
		return nil, refuse("cannot be read: %s", f.Err)
	case f.Epoch == 0:
		return nil, refuse("was never part of the volume")
	case f.State != replication.MemberInSync && f.State != replication.MemberStale:
		return nil, refuse("says that it is %s: what it has is not what the volume ever was", f.State)
	case f.Epoch > cfg.Epoch:
		return nil, refuse("knows epoch %d, the kvdb %d: the kvdb was restored from a backup, run \"tandemctl kvdb import\" first", f.Epoch, cfg.Epoch)
	}
	base := cfg.Clone()
	end := slices.IndexFunc(base.History, func(h replication.EpochRecord) bool { return h.Epoch == f.Epoch && h.Gen == f.Gen })
	if end >= 0 {
		base.History = base.History[:end+1]
	} else { // it left so long ago that nobody remembers
		base.History = []replication.EpochRecord{{Epoch: f.Epoch, Gen: f.Gen, ISR: slices.Clone(f.ISR), Cause: "found"}}
	}
	base.ISR, base.Coord = []replication.ReplicaID{f.Replica}, nil
	base.ForkGen++
	for r, m := range base.Members {
		m.State, m.Reason, m.LeftEpoch, m.LeftGen = replication.MemberInSync, "", 0, 0
		if r != f.Replica {
			m.State, m.Reason = replication.MemberStale, "given up: the replica on node "+string(f.Node)+" was forced to be the one in sync"
		}
		base.Members[r] = m
	}
	return nextConfig(base, replication.PhaseDetached, "forced"), nil
}

// force writes the configuration, with its entry in the audit trail.
func (im *Importer) force(ctx context.Context, s *Spec, prev, next *replication.Config, guards []kvdb.Cmp, f *FoundReplica) error {
	c := im.Catalogue
	config, err := put(c.keys.config(s.ID), next)
	if err != nil {
		return err
	}
	exposed, err := c.configs.exposed(ctx, prev, next)
	if err != nil {
		return err
	}
	res, err := im.commit(ctx, kvdb.Txn{If: guards, Then: slices.Concat(c.configs.shrunk(prev, next), exposed, []kvdb.Op{config})}, audit.Record{
		Verb: "volume replica force", Object: object(s.ID), Epoch: uint64(next.Epoch), Lost: []string{s.ID.String()},
		Outcome: fmt.Sprintf("replica %s on node %s is the only one in sync, as of epoch %d", f.Replica, f.Node, f.Epoch),
	})
	switch {
	case errors.Is(err, kvdb.ErrNoLeader), errors.Is(err, kvdb.ErrInvalid):
		return fmt.Errorf("force volume %s: nothing was changed: %w", s.Name, err)
	case err != nil:
		return fmt.Errorf("%w: force volume %s: look with \"tandemctl volume inspect\" before asking again: %w", ErrOutcomeUnknown, s.Name, err)
	case !res.Succeeded:
		return fmt.Errorf("%w: volume %s, or a domain that it is in: look and decide again", ErrConflict, s.Name)
	}
	return nil
}
