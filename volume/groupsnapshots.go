package volume

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/tandem-storage/tandem/audit"
	"github.com/tandem-storage/tandem/kvdb"
	"github.com/tandem-storage/tandem/replication"
)

// GroupSnapshotRecord is a set of snapshots of several volumes at one moment. It and the records of its snapshots are changed in the same transactions: they are CREATING together,
// READY together, and when it is gone all of them are DELETING.
type GroupSnapshotRecord struct {
	ID        replication.UUID         `json:"id"`
	Name      string                   `json:"name"`
	Group     string                   `json:"group,omitempty"` // consistency group that was asked for; "": volumes were named
	Volumes   []replication.VolumeID   `json:"volumes"`         // sorted
	Snapshots []replication.SnapshotID `json:"snapshots"`       // of Volumes, in that order
	Created   time.Time                `json:"created"`         // by the clock of Node
	State     State                    `json:"state"`           // CREATING or READY
	Node      replication.NodeID       `json:"node"`            // that makes it
	Process   replication.UUID         `json:"process"`         // there; when Node runs another one, nobody makes it any more
}

// GroupSnapshotEntry is a group snapshot with its snapshots, all as they were at one revision.
type GroupSnapshotEntry struct {
	GroupSnapshotRecord
	Members []*SnapshotRecord // by volume name
	mod     kvdb.Revision
}

// GroupSnapshotRequest says of which volumes a group snapshot is to be. Either Group or Volumes is given.
type GroupSnapshotRequest struct {
	Name    string
	Group   string                 // all volumes of a consistency group
	Volumes []replication.VolumeID // each once
	Frozen  bool                   // with their file systems frozen at the cut, where they are mounted and that can be done; the records say which were
}

// MaxGroupSnapshot is how many volumes a group snapshot may have: what is written of them goes into one transaction.
const MaxGroupSnapshot = 40

// Keys of group snapshots.
func (k keys) groupSnapshots() string                  { return k.root + "snapgroup/" }
func (k keys) groupSnapshot(g replication.UUID) string { return k.groupSnapshots() + g.String() }
func (k keys) groupSnapshotName(name string) string    { return k.root + "snapgroupname/" + name }
func groupSnapshotObject(id replication.UUID) string   { return "group-snapshot/" + id.String() }
func isNil(id replication.UUID) bool                   { return id == replication.UUID{} }
func (g *GroupSnapshotRecord) describe() (words string) {
	return fmt.Sprintf("%s of %s", g.Name, named(g.Volumes))
}

func parseGroupSnapshot(kv kvdb.KV) (*GroupSnapshotRecord, error) {
	g := new(GroupSnapshotRecord)
	if err := json.Unmarshal(kv.Value, g); err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrBadRecord, kv.Key, err)
	}
	if len(g.Volumes) != len(g.Snapshots) {
		return nil, fmt.Errorf("%w: %s: %d volumes and %d snapshots", ErrBadRecord, kv.Key, len(g.Volumes), len(g.Snapshots))
	}
	return g, nil
}

// memberName is the name of a volume's snapshot in a group snapshot: GROUP.VOLUME if that is not too long.
func memberName(group, volume string) string {
	name := group + "." + volume
	if len(name) <= MaxName {
		return name
	}
	sum := sha256.Sum256([]byte(name))
	return name[:MaxName-17] + "-" + hex.EncodeToString(sum[:8])
}

// CreateGroupSnapshot takes snapshots of several volumes at one moment, and returns when every in-sync replica of each holds them. All are taken, or none. It is idempotent by name.
// Errors: ErrInvalid, replication.ErrVolumeNotFound, ErrGroupNotFound, ErrGroupSnapshotExists (of other volumes), ErrSnapshotExists (of the name of a member), ErrTooManySnapshots, ErrNotReady
// (a volume; or another call is at the one of this name), ErrDeleting, those of checkAttach, ErrNotCut (none was taken), replication.ErrSnapshotUnsupported, those of the store.
func (c *Catalogue) CreateGroupSnapshot(ctx context.Context, t GroupTaker, r GroupSnapshotRequest) (*GroupSnapshotEntry, error) {
	if err := r.validate(); err != nil {
		return nil, err
	}
	for n := range cutAttempts {
		e, err := c.attemptGroupSnapshot(ctx, t, r, min(DefaultCutHold<<n, MaxCutHold))
		if !errors.Is(err, ErrNotCut) || n == cutAttempts-1 || !kvdb.Pause(ctx, cutPause<<n) {
			return e, err
		}
	}
	return nil, ctx.Err() // not reached: the last attempt returns
}

func (r *GroupSnapshotRequest) validate() error {
	_, notID := replication.ParseUUID(r.Name)
	switch {
	case len(r.Name) > MaxName || !nameSyntax.MatchString(r.Name) || notID == nil:
		return fmt.Errorf("%w: group snapshot %q: want at most %d letters, digits, '.', '_' or '-', the first and the last a letter or digit, and nothing that looks like an id", ErrInvalid, r.Name, MaxName)
	case (r.Group == "") == (len(r.Volumes) == 0):
		return fmt.Errorf("%w: group snapshot %s: name either volumes or a consistency group", ErrInvalid, r.Name)
	case len(sortVolumes(r.Volumes)) != len(r.Volumes):
		return fmt.Errorf("%w: group snapshot %s: a volume is named twice", ErrInvalid, r.Name)
	}
	return nil
}

// attemptGroupSnapshot tries once. What it could not finish is given up; where that fails too, by the Reconcilers.
func (c *Catalogue) attemptGroupSnapshot(ctx context.Context, t GroupTaker, r GroupSnapshotRequest, hold time.Duration) (*GroupSnapshotEntry, error) {
	g, where, err := c.beginGroupSnapshot(ctx, r)
	if err != nil {
		return nil, err
	}
	if g.State == Ready {
		return c.groupSnapshot(ctx, g.ID)
	}
	all, err := g.take(ctx, t, where, r.Frozen, hold)
	if err == nil {
		err = c.endGroupSnapshot(ctx, g, r.Frozen, all)
	}
	if err == nil {
		return c.groupSnapshot(ctx, g.ID)
	}
	// Whatever is not known: if the record is READY this changes nothing, and what is not READY by now never will be.
	drop, cancel := context.WithTimeout(context.WithoutCancel(ctx), audit.NoteTimeout)
	defer cancel()
	if _, dropErr := c.dropGroupSnapshot(drop, g.ID, Creating); dropErr != nil {
		err = fmt.Errorf("%w (and its record stays for some minutes: %s)", err, dropErr.Error())
	}
	return nil, err
}

// standing is where a volume is attached, or may be.
type standing struct {
	node replication.NodeID
	lend bool // it is detached
}

// beginGroupSnapshot writes the records of a group snapshot that is to be taken, and finds where its volumes stand. If there is one already it is returned.
func (c *Catalogue) beginGroupSnapshot(ctx context.Context, r GroupSnapshotRequest) (*GroupSnapshotRecord, map[replication.VolumeID]standing, error) {
	for {
		vols := sortVolumes(r.Volumes)
		if r.Group != "" {
			e, err := c.Group(ctx, r.Group)
			if err != nil {
				return nil, nil, err
			}
			vols = e.Volumes
		}
		if n := len(vols); n == 0 || n > MaxGroupSnapshot {
			return nil, nil, fmt.Errorf("%w: group snapshot %s: %d volumes, want 1 to %d", ErrInvalid, r.Name, n, MaxGroupSnapshot)
		}
		old, err := c.groupSnapshotByName(ctx, r.Name)
		switch {
		case err == nil && !slices.Equal(old.Volumes, vols):
			return nil, nil, fmt.Errorf("%w: %s", ErrGroupSnapshotExists, old.describe())
		case err == nil && old.State == Creating:
			return nil, nil, fmt.Errorf("%w: group snapshot %s is being taken by another call, or by one that ended in the middle and is cleaned up within minutes", ErrNotReady, r.Name)
		case err == nil:
			return &old.GroupSnapshotRecord, nil, nil
		case !errors.Is(err, ErrGroupSnapshotNotFound):
			return nil, nil, err
		}
		g := &GroupSnapshotRecord{
			ID: replication.NewUUID(), Name: r.Name, Group: r.Group, Volumes: vols, Created: time.Now().UTC(), State: Creating,
			Node: replication.NodeID(c.cluster.View().Local), Process: c.process,
		}
		where, began, err := c.writeGroupSnapshot(ctx, g)
		if began || err != nil {
			return g, where, err
		}
	}
}

// writeGroupSnapshot tries once to write g, which is CREATING, with its snapshots.
func (c *Catalogue) writeGroupSnapshot(ctx context.Context, g *GroupSnapshotRecord) (_ map[replication.VolumeID]standing, began bool, _ error) {
	var look kvdb.Txn
	for _, v := range g.Volumes {
		look.Then = append(look.Then, kvdb.Op{Kind: kvdb.OpGet, Key: c.keys.spec(v)}, kvdb.Op{Kind: kvdb.OpGet, Key: c.keys.snapshotsOf(v)})
	}
	seen, err := c.store.Txn(ctx, look)
	if err != nil {
		return nil, false, err
	}
	t := kvdb.Txn{If: []kvdb.Cmp{{Key: c.keys.groupSnapshotName(g.Name), Target: kvdb.CmpAbsent}, c.configs.guard()}}
	where := map[replication.VolumeID]standing{}
	for i, v := range g.Volumes {
		spec, list := seen.Gets[2*i], seen.Gets[2*i+1]
		if spec == nil {
			return nil, false, notFound(v)
		}
		e, err := c.Get(ctx, v)
		if err != nil {
			return nil, false, err
		}
		var at standing
		if at.node, at.lend, err = c.snapshotNode(ctx, e, replication.UUID{}); err != nil {
			return nil, false, fmt.Errorf("volume %s: %w", e.Name, err)
		}
		where[v] = at
		ids, err := parseSnapshotsOf(list)
		if err != nil {
			return nil, false, err
		}
		if len(ids) >= MaxSnapshots {
			return nil, false, fmt.Errorf("%w: volume %s has %d", ErrTooManySnapshots, e.Name, len(ids))
		}
		s := &SnapshotRecord{
			ID: replication.SnapshotID(replication.NewUUID()), Name: memberName(g.Name, e.Name), Volume: v, VolumeName: e.Name, Size: e.Config.Size,
			Created: g.Created, State: Creating, Holders: slices.Clone(e.Placed), Group: g.ID,
		}
		if other, err := c.snapshotByName(ctx, s.Name); !errors.Is(err, ErrSnapshotNotFound) {
			if err == nil {
				err = fmt.Errorf("%w: %s, of volume %s", ErrSnapshotExists, s.Name, other.VolumeName)
			}
			return nil, false, err
		}
		g.Snapshots = append(g.Snapshots, s.ID)
		record, err := put(c.keys.snapshot(s.ID), s)
		if err != nil {
			return nil, false, err
		}
		next, err := put(c.keys.snapshotsOf(v), append(ids, s.ID))
		if err != nil {
			return nil, false, err
		}
		t.If = append(t.If, unchanged(c.keys.spec(v), spec), unchanged(next.Key, list), kvdb.Cmp{Key: c.keys.snapshotName(s.Name), Target: kvdb.CmpAbsent})
		t.Then = append(t.Then, record, next, kvdb.Op{Kind: kvdb.OpPut, Key: c.keys.snapshotName(s.Name), Value: []byte(s.ID.String())})
	}
	record, err := put(c.keys.groupSnapshot(g.ID), g)
	if err != nil {
		return nil, false, err
	}
	t.Then = append(t.Then, record, kvdb.Op{Kind: kvdb.OpPut, Key: c.keys.groupSnapshotName(g.Name), Value: []byte(g.ID.String())})
	res, err := c.store.Txn(ctx, t)
	return where, err == nil && res.Succeeded, err
}

// endGroupSnapshot writes READY, of all in one transaction, if nobody has given the group snapshot up meanwhile.
func (c *Catalogue) endGroupSnapshot(ctx context.Context, g *GroupSnapshotRecord, frozen bool, all map[replication.VolumeID]taken) error {
	for {
		e, err := c.groupSnapshot(ctx, g.ID)
		switch {
		case errors.Is(err, ErrGroupSnapshotNotFound):
			return fmt.Errorf("%w: group snapshot %s took so long that it was given up", ErrNotCut, g.Name)
		case err != nil:
			return err
		case e.State == Ready: // by an attempt whose answer was lost
			return nil
		}
		t := kvdb.Txn{If: []kvdb.Cmp{{Key: c.keys.groupSnapshot(g.ID), Target: kvdb.CmpMod, Revision: e.mod}, c.configs.guard()}}
		for _, s := range e.Members {
			has := all[s.Volume]
			if err := c.fits(ctx, s, has.holders); err != nil {
				return err
			}
			done := *s
			done.State = Ready
			done.Holders = slices.DeleteFunc(slices.Clone(s.Holders), func(p Placement) bool { return !slices.Contains(has.holders, p.Replica) })
			done.noteFrozen(frozen, has.lent, has.not)
			record, err := put(c.keys.snapshot(s.ID), done)
			if err != nil {
				return err
			}
			t.Then = append(t.Then, record) // it changes with the group's record only
		}
		done := e.GroupSnapshotRecord
		done.State = Ready
		record, err := put(c.keys.groupSnapshot(g.ID), done)
		if err != nil {
			return err
		}
		t.Then = append(t.Then, record)
		entry, err := c.trail.Stage(ctx, audit.Record{Verb: "group-snapshot create", Object: groupSnapshotObject(g.ID), Outcome: g.describe()})
		if err != nil {
			return err
		}
		entry.AddTo(&t)
		if res, err := c.store.Txn(ctx, t); err != nil || res.Succeeded {
			return err
		}
	}
}

// fits returns nil if s is known of all that hold it, and has the size that is in its record.
func (c *Catalogue) fits(ctx context.Context, s *SnapshotRecord, holders []replication.ReplicaID) error {
	for _, r := range holders {
		if !slices.ContainsFunc(s.Holders, func(p Placement) bool { return p.Replica == r }) {
			return fmt.Errorf("%w: a replica of volume %s was replaced meanwhile", ErrNotCut, s.VolumeName)
		}
	}
	e, err := c.Get(ctx, s.Volume)
	if err != nil {
		return err
	}
	if e.Config == nil || e.Config.Size != s.Size { // sizes only grow
		return fmt.Errorf("%w: volume %s grew meanwhile", ErrNotCut, s.VolumeName)
	}
	return nil
}

// DeleteGroupSnapshot deletes a group snapshot with all its snapshots; their holders delete them. One that does not exist is no error. Errors: ErrNotReady (it is being taken), those of the store.
func (c *Catalogue) DeleteGroupSnapshot(ctx context.Context, id replication.UUID) error {
	g, err := c.dropGroupSnapshot(ctx, id, Ready)
	if err == nil && g != nil && g.State == Creating {
		return fmt.Errorf("%w: group snapshot %s is being taken", ErrNotReady, g.Name)
	}
	return err
}

// dropGroupSnapshot removes a group snapshot that is in state from, has its snapshots DELETING, and returns it as it was found, nil if there is none.
func (c *Catalogue) dropGroupSnapshot(ctx context.Context, id replication.UUID, from State) (*GroupSnapshotRecord, error) {
	for {
		e, err := c.groupSnapshot(ctx, id)
		if errors.Is(err, ErrGroupSnapshotNotFound) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		if e.State != from {
			return &e.GroupSnapshotRecord, nil
		}
		var look kvdb.Txn
		for _, s := range e.Members {
			look.Then = append(look.Then, kvdb.Op{Kind: kvdb.OpGet, Key: c.keys.snapshotsOf(s.Volume)}, kvdb.Op{Kind: kvdb.OpGet, Key: c.keys.spec(s.Volume)})
		}
		lists, err := c.store.Txn(ctx, look)
		if err != nil {
			return nil, err
		}
		t := kvdb.Txn{
			If: []kvdb.Cmp{{Key: c.keys.groupSnapshot(id), Target: kvdb.CmpMod, Revision: e.mod}, c.configs.guard()},
			Then: []kvdb.Op{
				{Kind: kvdb.OpDelete, Key: c.keys.groupSnapshot(id)}, {Kind: kvdb.OpDelete, Key: c.keys.groupSnapshotName(e.Name)},
			},
		}
		for i, s := range e.Members {
			next := *s
			next.State, next.Failed = Deleting, from == Creating
			list, spec := lists.Gets[2*i], lists.Gets[2*i+1]
			if from == Ready {
				if err := s.spares(spec); err != nil {
					return nil, err
				}
			}
			ops, err := c.unlist(&next, list)
			if err != nil {
				return nil, err
			}
			t.If = append(t.If, unchanged(c.keys.snapshotsOf(s.Volume), list), unchanged(c.keys.spec(s.Volume), spec))
			t.Then = append(t.Then, ops...)
		}
		if from == Ready {
			entry, err := c.trail.Stage(ctx, audit.Record{Verb: "group-snapshot delete", Object: groupSnapshotObject(id), Outcome: e.describe()})
			if err != nil {
				return nil, err
			}
			entry.AddTo(&t)
		}
		res, err := c.store.Txn(ctx, t)
		if err != nil || res.Succeeded {
			return &e.GroupSnapshotRecord, err
		}
	}
}

// groupSnapshot reads a group snapshot with its snapshots.
func (c *Catalogue) groupSnapshot(ctx context.Context, id replication.UUID) (*GroupSnapshotEntry, error) {
	for {
		kv, err := c.store.Get(ctx, c.keys.groupSnapshot(id))
		if errors.Is(err, kvdb.ErrNotFound) {
			return nil, fmt.Errorf("%w: %s", ErrGroupSnapshotNotFound, id)
		}
		if err != nil {
			return nil, err
		}
		g, err := parseGroupSnapshot(kv)
		if err != nil {
			return nil, err
		}
		// The record is compared, so that all are of one moment.
		t := kvdb.Txn{If: []kvdb.Cmp{{Key: kv.Key, Target: kvdb.CmpMod, Revision: kv.Mod}}}
		for _, s := range g.Snapshots {
			t.Then = append(t.Then, kvdb.Op{Kind: kvdb.OpGet, Key: c.keys.snapshot(s)})
		}
		res, err := c.store.Txn(ctx, t)
		if err != nil {
			return nil, err
		}
		if !res.Succeeded {
			continue
		}
		e := &GroupSnapshotEntry{GroupSnapshotRecord: *g, mod: kv.Mod}
		for i, kv := range res.Gets {
			if kv == nil {
				return nil, fmt.Errorf("%w: group snapshot %s has no record of its snapshot %s", ErrBadRecord, g.Name, g.Snapshots[i])
			}
			s, err := parseSnapshot(*kv)
			if err != nil {
				return nil, err
			}
			e.Members = append(e.Members, s)
		}
		slices.SortFunc(e.Members, func(a, b *SnapshotRecord) int {
			return cmp.Or(strings.Compare(a.VolumeName, b.VolumeName), strings.Compare(a.Name, b.Name))
		})
		return e, nil
	}
}

func (c *Catalogue) groupSnapshotByName(ctx context.Context, name string) (*GroupSnapshotEntry, error) {
	kv, err := c.store.Get(ctx, c.keys.groupSnapshotName(name))
	if errors.Is(err, kvdb.ErrNotFound) {
		return nil, fmt.Errorf("%w: %s", ErrGroupSnapshotNotFound, name)
	}
	if err != nil {
		return nil, err
	}
	id, err := replication.ParseUUID(string(kv.Value))
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrBadRecord, kv.Key, err)
	}
	return c.groupSnapshot(ctx, id)
}

// GroupSnapshot returns a group snapshot by id or name. Errors: ErrGroupSnapshotNotFound, ErrBadRecord, those of the store.
func (c *Catalogue) GroupSnapshot(ctx context.Context, ref string) (*GroupSnapshotEntry, error) {
	if id, err := replication.ParseUUID(ref); err == nil {
		return c.groupSnapshot(ctx, id)
	}
	return c.groupSnapshotByName(ctx, ref)
}

// GroupSnapshots returns all group snapshots, by name.
func (c *Catalogue) GroupSnapshots(ctx context.Context) ([]*GroupSnapshotEntry, error) {
	kvs, _, err := c.store.List(ctx, c.keys.groupSnapshots())
	if err != nil {
		return nil, fmt.Errorf("read group snapshots: %w", err)
	}
	var all []*GroupSnapshotEntry
	for _, kv := range kvs {
		g, err := parseGroupSnapshot(kv)
		if err != nil {
			return nil, err
		}
		e, err := c.groupSnapshot(ctx, g.ID)
		switch {
		case errors.Is(err, ErrGroupSnapshotNotFound):
		case err != nil:
			return nil, err
		default:
			all = append(all, e)
		}
	}
	slices.SortFunc(all, func(a, b *GroupSnapshotEntry) int { return strings.Compare(a.Name, b.Name) })
	return all, nil
}
