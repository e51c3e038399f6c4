package volume

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/tandem-storage/tandem/clusterdomain"
	"github.com/tandem-storage/tandem/kvdb"
	"github.com/tandem-storage/tandem/replication"
)

// The ratchet (I22): what a replica knows never goes back, so a replica that knows more than the kvdb tells that the kvdb was
// restored from a backup or replaced. Whoever finds such a one leaves a mark beside the configuration, and
// while it is there nothing changes the configuration. An import takes it away.

// life is an incarnation of the kvdb as this process knows it.
type life struct {
	value  []byte // of the key
	id     replication.UUID
	former []replication.UUID // the oldest first
}

func parseLife(kv kvdb.KV) (*life, error) {
	l, err := clusterdomain.ParseLife(kv)
	if err != nil {
		return nil, err
	}
	out := &life{value: kv.Value}
	if out.id, err = replication.ParseUUID(l.UUID); err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrBadRecord, kv.Key, err)
	}
	for _, f := range l.Former {
		u, err := replication.ParseUUID(f)
		if err != nil {
			return nil, fmt.Errorf("%w: %s: %w", ErrBadRecord, kv.Key, err)
		}
		out.former = append(out.former, u)
	}
	return out, nil
}

// age is the place of an incarnation among those that l follows and itself, -1 if it is none of them.
func (l *life) age(u replication.UUID) int {
	return slices.Index(append(slices.Clone(l.former), l.id), u)
}

// checkIncarnation reports ErrIncarnation unless kv is the incarnation that this process knows, or one
// that an import made its successor: that is known from then on.
func (c *Configs) checkIncarnation(kv *kvdb.KV) error {
	known := c.life.Load()
	if kv == nil {
		return fmt.Errorf("%w: it has no incarnation; run \"tandemctl kvdb import --all\"", ErrIncarnation)
	}
	if bytes.Equal(kv.Value, known.value) {
		return nil
	}
	now, err := parseLife(*kv)
	if err != nil {
		return err
	}
	if now.age(known.id) < 0 {
		return fmt.Errorf("%w: it is of incarnation %s now, this node goes by %s; run \"tandemctl kvdb import --all\"",
			ErrIncarnation, now.id, known.id)
	}
	c.life.Store(now)
	return nil
}

// orReplaced is ErrIncarnation if that is why something is not in the kvdb, else err.
func (c *Configs) orReplaced(ctx context.Context, err error) error {
	kv, look := c.store.Get(ctx, clusterdomain.IncarnationKey(c.cluster))
	if look != nil {
		return err
	}
	if replaced := c.checkIncarnation(&kv); replaced != nil {
		return fmt.Errorf("%w (%w)", replaced, err)
	}
	return err
}

// Incarnation returns the incarnation of the kvdb as last seen, and those that imports replaced by it.
func (c *Configs) Incarnation() (now replication.UUID, former []replication.UUID) {
	l := c.life.Load()
	return l.id, l.former
}

// guard compares the incarnation that this process knows.
func (c *Configs) guard() kvdb.Cmp {
	return kvdb.Cmp{Key: clusterdomain.IncarnationKey(c.cluster), Target: kvdb.CmpValue, Value: c.life.Load().value}
}

// unmarked wants that nobody has found the volume's configuration to be rolled back.
func (c *Configs) unmarked(v replication.VolumeID) kvdb.Cmp {
	return kvdb.Cmp{Key: c.keys.rollback(v), Target: kvdb.CmpAbsent}
}

// Rollback is the mark: a replica that knows more than the kvdb.
type Rollback struct {
	Node    replication.NodeID    `json:"node"`
	Replica replication.ReplicaID `json:"replica"`
	Text    string                `json:"text"` // what it knows
	Time    time.Time             `json:"ts"`   // by the node's clock
}

// describe says what was found, and what to do about the volume.
func (r *Rollback) describe(v replication.VolumeID) string {
	return fmt.Sprintf("the replica on node %s %s; what runs goes on, nothing is attached or changed until \"tandemctl kvdb import --volume %s\" (see --dry-run)", r.Node, r.Text, v)
}

// causeRollback is the cause of a stall, as the core names it.
const causeRollback = "KVDB_ROLLBACK"

// rolledBack is the error of a volume with that mark.
func rolledBack(v replication.VolumeID, kv *kvdb.KV) error {
	return fmt.Errorf("%w: %s", replication.ErrRolledBack, parseRollback(*kv).describe(v))
}

// parseRollback decodes a mark; of one that cannot be read it is enough that it is there.
func parseRollback(kv kvdb.KV) *Rollback {
	r := new(Rollback)
	if err := json.Unmarshal(kv.Value, r); err != nil {
		r.Text = "knows more than the kvdb"
	}
	return r
}

// FoundReplica is what the superblock of a replica says, as its node tells it.
type FoundReplica struct {
	LocalReplica
	Node        replication.NodeID
	Domain      replication.DomainID
	Size        int64             // bytes
	Epoch       replication.Epoch // of the newest configuration that it was told; 0: none
	Gen         uint64
	Term        replication.Term // highest promised
	State       replication.MemberState
	ISR         []replication.ReplicaID // of that configuration
	Missing     []replication.ReplicaID // other members then, if it was in sync itself
	Incarnation replication.UUID        // zero: it was never attached
	Spec        []byte                  // the volume's record in the catalogue as the node last saw it, nil if it has none
	Revert      []byte                  // what it was told of a revert of the volume last (revertMark), nil: of none
	Err         string                  // why it is not served: then only LocalReplica, Node and Domain are set
}

// ahead says what f knows that a kvdb in the incarnation l with the configuration cfg (nil: none) does not; "" if there is
// nothing. What an operator forced is not measured by replicas that were given up with it.
func (f *FoundReplica) ahead(cfg *replication.Config, l *life) string {
	switch at := l.age(f.Incarnation); {
	case f.Err != "" || f.Epoch == 0:
		return ""
	case cfg != nil && !cfg.Forced.IsZero() && at < l.age(cfg.Forced):
		return ""
	case at < 0 && !f.Incarnation.IsZero():
		return fmt.Sprintf("is of incarnation %s of the kvdb, which is of %s and does not follow it", f.Incarnation, l.id)
	case cfg == nil:
		return fmt.Sprintf("knows epoch %d of a volume that the kvdb has no configuration of", f.Epoch)
	case f.Epoch > cfg.Epoch:
		return fmt.Sprintf("knows epoch %d, the kvdb only %d", f.Epoch, cfg.Epoch)
	case !replication.Follows(cfg.Epoch, cfg.Lineage(), replication.Ancestor{Epoch: f.Epoch, Gen: f.Gen}):
		return fmt.Sprintf("knows another epoch %d than the one that the kvdb came from", f.Epoch)
	}
	return ""
}

// CheckReplicas compares the replicas of this node, which survey reads, with the kvdb, marks the volumes of which the kvdb knows less,
// and returns what was found. It is to be called at the start of a node and from time to time.
func (c *Configs) CheckReplicas(ctx context.Context, survey func() []FoundReplica) (map[replication.VolumeID]*Rollback, error) {
	found := survey() // first: what a replica knows was in the kvdb before
	inc, err := c.store.Get(ctx, clusterdomain.IncarnationKey(c.cluster))
	if err != nil {
		return nil, fmt.Errorf("read the incarnation of the kvdb: %w", err)
	}
	l, err := parseLife(inc)
	if err != nil {
		return nil, err
	}
	kvs, _, err := c.store.List(ctx, c.keys.configs())
	if err != nil {
		return nil, fmt.Errorf("read configurations: %w", err)
	}
	cfgs, mods, bad := map[replication.VolumeID]*replication.Config{}, map[replication.VolumeID]kvdb.Revision{}, map[replication.VolumeID]bool{}
	for _, kv := range kvs {
		if id, ok := c.keys.configOf(kv.Key); ok {
			cfg, mod, err := parseConfig(kv)
			cfgs[id], mods[id], bad[id] = cfg, mod, err != nil
		}
	}
	marks := map[replication.VolumeID]*Rollback{}
	var errs []error
	for i := range found {
		f := &found[i]
		text := f.ahead(cfgs[f.Volume], l)
		if text == "" || bad[f.Volume] || marks[f.Volume] != nil || cfgs[f.Volume] == nil && !still(survey, f) {
			continue
		}
		marks[f.Volume] = &Rollback{Node: f.Node, Replica: f.Replica, Text: text, Time: time.Now().UTC()}
		record, err := put(c.keys.rollback(f.Volume), marks[f.Volume])
		if err == nil {
			_, err = c.store.Txn(ctx, kvdb.Txn{
				If: []kvdb.Cmp{
					c.unmarked(f.Volume),
					{Key: inc.Key, Target: kvdb.CmpValue, Value: inc.Value},
					{Key: c.keys.config(f.Volume), Target: kvdb.CmpMod, Revision: mods[f.Volume]},
				},
				Then: []kvdb.Op{record},
			})
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("mark volume %s: %w", f.Volume, err))
		}
	}
	return marks, errors.Join(errs...)
}

// still reports whether f is on disk yet: its volume may have been deleted in order since.
func still(survey func() []FoundReplica, f *FoundReplica) bool {
	return slices.ContainsFunc(survey(), func(g FoundReplica) bool { return g.LocalReplica == f.LocalReplica })
}
