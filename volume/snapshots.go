package volume

import (
	"cmp"
	"context"
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

// SnapshotRecord is what the catalogue knows of a snapshot. The record is there before any replica is asked, and until each that may have it has said
// that it has not: so nothing has to be deleted that the catalogue does not know, which after an import could be what somebody wants.
type SnapshotRecord struct {
	ID         replication.SnapshotID `json:"id"`
	Name       string                 `json:"name"`
	Volume     replication.VolumeID   `json:"volume"`
	VolumeName string                 `json:"volume_name"` // when it was taken
	Size       int64                  `json:"size"`        // bytes
	Created    time.Time              `json:"created"`     // by the clock of the node that was asked
	State      State                  `json:"state"`
	// Holders have it when it is READY. Before, and while it is DELETING, they may.
	Holders []Placement `json:"holders"`
	// Failed: it is DELETING because it was not taken, and a replica may be at it still. Late: or may begin with it yet.
	Failed bool `json:"failed,omitempty"`
	Late   bool `json:"late,omitempty"`
	// Node has it taken, in its process Process: when it runs another one, nobody waits for it any more.
	Node    replication.NodeID `json:"node,omitempty"`
	Process replication.UUID   `json:"process,omitzero"`
	// Clone: it is there for the volume of that name alone, and is deleted when that is made.
	Clone string `json:"clone,omitempty"`
	// Group is the group snapshot that it is part of: both are there or neither is. Zero: none.
	Group replication.UUID `json:"group,omitzero"`
	// Frozen: its file system was frozen at the cut. If not, NotFrozen says why, "" if nobody asked for it.
	Frozen    bool   `json:"frozen,omitempty"`
	NotFrozen string `json:"not_frozen,omitempty"`
}

// SnapshotTaker has the replicas of a volume take snapshots, on any node.
type SnapshotTaker interface {
	Freezer
	// Take has every in-sync replica of v take the snapshot, by its coordinator on node n; with attach, the volume is detached, and attached there for as long.
	// After an error that wraps replication.ErrNotCut no replica will take it any more, but for what it has begun; after others that is not known.
	Take(ctx context.Context, n replication.NodeID, v replication.VolumeID, id replication.SnapshotID, attach bool) ([]replication.ReplicaID, error)
}

// MaxSnapshots of one volume. A replica can have some more, that are being deleted.
const MaxSnapshots = 50

func parseSnapshot(kv kvdb.KV) (*SnapshotRecord, error) {
	s := new(SnapshotRecord)
	if err := json.Unmarshal(kv.Value, s); err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrBadRecord, kv.Key, err)
	}
	return s, nil
}

// parseSnapshotsOf are the snapshots of a volume that are not DELETING.
func parseSnapshotsOf(kv *kvdb.KV) (ids []replication.SnapshotID, err error) {
	if kv == nil {
		return nil, nil
	}
	if err := json.Unmarshal(kv.Value, &ids); err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrBadRecord, kv.Key, err)
	}
	return ids, nil
}

// unchanged compares a key with what was read of it.
func unchanged(key string, kv *kvdb.KV) kvdb.Cmp {
	if kv == nil {
		return kvdb.Cmp{Key: key, Target: kvdb.CmpAbsent}
	}
	return kvdb.Cmp{Key: key, Target: kvdb.CmpMod, Revision: kv.Mod}
}

func snapshotObject(id replication.SnapshotID) string { return "snapshot/" + id.String() }

// CreateSnapshot takes a snapshot of a volume and returns it when every replica that is in sync holds it. With frozen, its file system is frozen at the cut, if it is mounted where it is attached and that can
// be done; the record says whether it was. It is idempotent by name.
// Errors: ErrInvalid, replication.ErrVolumeNotFound, ErrNotReady (the volume; or another call is at the one of this name), ErrDeleting, ErrSnapshotExists (of another volume),
// ErrTooManySnapshots, those of checkAttach and of the taker, those of the store.
func (c *Catalogue) CreateSnapshot(ctx context.Context, taker SnapshotTaker, name string, id replication.VolumeID, frozen bool) (*SnapshotRecord, error) {
	return c.createSnapshot(ctx, taker, name, id, frozen, "", replication.UUID{})
}

// createSnapshot is CreateSnapshot for a clone, or by a revert of the volume, zero if it is by none: others take no snapshots then.
func (c *Catalogue) createSnapshot(ctx context.Context, taker SnapshotTaker, name string, v replication.VolumeID, frozen bool, clone string, revert replication.UUID) (*SnapshotRecord, error) {
	_, notID := replication.ParseSnapshotID(name)
	if len(name) > MaxName || !nameSyntax.MatchString(name) || notID == nil {
		return nil, fmt.Errorf("%w: snapshot %q: want at most %d letters, digits, '.', '_' or '-', the first and the last a letter or digit, and nothing that looks like an id", ErrInvalid, name, MaxName)
	}
	s, node, attach, err := c.beginSnapshot(ctx, name, v, clone, revert)
	if err != nil || s.State == Ready {
		return s, err
	}
	at := map[replication.VolumeID]replication.NodeID{}
	if frozen && !attach {
		at[v] = node
	}
	thaw := freeze(ctx, taker, replication.UUID(s.ID), at)
	holders, err := taker.Take(ctx, node, v, s.ID, attach)
	s.noteFrozen(frozen, attach, thaw())
	if err != nil {
		why := late // a coordinator that does not answer may be about to take it
		if errors.Is(err, replication.ErrNotCut) || errors.Is(err, replication.ErrNotCoordinator) {
			why = notTaken
		}
		drop, cancel := context.WithTimeout(context.WithoutCancel(ctx), audit.NoteTimeout)
		defer cancel()
		if _, dropErr := c.dropSnapshot(drop, s.ID, Creating, why); dropErr != nil {
			err = fmt.Errorf("%w (and its record stays for some minutes: %s)", err, dropErr.Error())
		}
		return nil, err
	}
	return c.endSnapshot(ctx, s, holders)
}

// beginSnapshot writes the record of a snapshot that is to be taken, and finds who can: a node, and whether it has to attach the volume for that.
func (c *Catalogue) beginSnapshot(ctx context.Context, name string, v replication.VolumeID, clone string, revert replication.UUID) (_ *SnapshotRecord, node replication.NodeID, attach bool, _ error) {
	for {
		old, err := c.snapshotByName(ctx, name)
		switch {
		case err == nil && old.Volume != v:
			return nil, "", false, fmt.Errorf("%w: %s is of volume %s", ErrSnapshotExists, name, old.VolumeName)
		case err == nil && old.State == Creating:
			return nil, "", false, fmt.Errorf("%w: snapshot %s is being taken by another call, or by one that ended in the middle and is cleaned up within minutes", ErrNotReady, name)
		case err == nil:
			return old, "", false, nil
		case !errors.Is(err, ErrSnapshotNotFound):
			return nil, "", false, err
		}
		look, err := c.store.Txn(ctx, kvdb.Txn{Then: []kvdb.Op{{Kind: kvdb.OpGet, Key: c.keys.spec(v)}, {Kind: kvdb.OpGet, Key: c.keys.snapshotsOf(v)}}})
		if err != nil {
			return nil, "", false, err
		}
		if look.Gets[0] == nil {
			return nil, "", false, notFound(v)
		}
		e, err := c.Get(ctx, v)
		if err != nil {
			return nil, "", false, err
		}
		if node, attach, err = c.snapshotNode(ctx, e, revert); err != nil {
			return nil, "", false, err
		}
		ids, err := parseSnapshotsOf(look.Gets[1])
		if err != nil {
			return nil, "", false, err
		}
		if len(ids) >= MaxSnapshots {
			return nil, "", false, fmt.Errorf("%w: volume %s has %d", ErrTooManySnapshots, e.Name, len(ids))
		}
		s := &SnapshotRecord{
			ID: replication.SnapshotID(replication.NewUUID()), Name: name, Volume: v, VolumeName: e.Name, Size: e.Config.Size,
			Created: time.Now().UTC(), State: Creating, Holders: slices.Clone(e.Placed), Clone: clone,
			Node: replication.NodeID(c.cluster.View().Local), Process: c.process,
		}
		record, err := put(c.keys.snapshot(s.ID), s)
		if err != nil {
			return nil, "", false, err
		}
		list, err := put(c.keys.snapshotsOf(v), append(ids, s.ID))
		if err != nil {
			return nil, "", false, err
		}
		res, err := c.store.Txn(ctx, kvdb.Txn{
			If: []kvdb.Cmp{
				{Key: c.keys.snapshotName(name), Target: kvdb.CmpAbsent}, unchanged(c.keys.spec(v), look.Gets[0]),
				unchanged(c.keys.snapshotsOf(v), look.Gets[1]), c.configs.guard(),
			},
			Then: []kvdb.Op{record, list, {Kind: kvdb.OpPut, Key: c.keys.snapshotName(name), Value: []byte(s.ID.String())}},
		})
		if err != nil {
			return nil, "", false, err
		}
		if res.Succeeded {
			return s, node, attach, nil
		}
	}
}

// snapshotNode finds who has a volume's replicas take a snapshot: its coordinator, or a node with an in-sync replica that may attach it.
func (c *Catalogue) snapshotNode(ctx context.Context, e *Entry, revert replication.UUID) (_ replication.NodeID, attach bool, _ error) {
	if e.State != Ready {
		return "", false, e.notReady()
	}
	if r := e.Reverting; r != nil && r.ID != revert {
		return "", false, r.refuse()
	}
	if e.Rollback != nil {
		return "", false, fmt.Errorf("%w: %s", replication.ErrRolledBack, e.Rollback.describe(e.ID))
	}
	if n := coordinator(e.Config).Node; n != "" {
		return n, false, nil
	}
	if err := c.cluster.Refresh(ctx); err != nil {
		return "", false, err
	}
	view := c.cluster.View()
	err := fmt.Errorf("%w: no node that answers has a replica of it in sync", replication.ErrNoInSyncReplica)
	for _, p := range e.Placed {
		n, known := view.Node(string(p.Node))
		if !e.Config.InISR(p.Replica) || !known || !n.Online {
			continue
		}
		if err = checkAttach(e.Config, view, p.Node); err == nil {
			return p.Node, true, nil
		}
	}
	return "", false, err
}

// noteFrozen notes whether it was frozen, if that was asked for, of a volume that was attached for the cut, or of which not says why it was not.
func (s *SnapshotRecord) noteFrozen(asked, attached bool, not map[replication.VolumeID]string) {
	switch {
	case asked && attached:
		s.NotFrozen = notAttached
	case asked:
		s.NotFrozen = not[s.Volume]
		s.Frozen = s.NotFrozen == ""
	}
}

// endSnapshot writes READY, if nobody has given the snapshot up meanwhile.
func (c *Catalogue) endSnapshot(ctx context.Context, s *SnapshotRecord, holders []replication.ReplicaID) (*SnapshotRecord, error) {
	done := *s
	done.State = Ready
	done.Holders = slices.DeleteFunc(slices.Clone(s.Holders), func(p Placement) bool { return !slices.Contains(holders, p.Replica) })
	e, err := c.Get(ctx, s.Volume)
	switch {
	case err != nil:
		return nil, err
	case len(done.Holders) != len(holders):
		// A replica that came in between is not in the record, and would not be told to delete it.
		err = fmt.Errorf("%w: a replica of the volume was replaced meanwhile", replication.ErrNotCut)
	case e.Config == nil || e.Config.Size != s.Size: // sizes only grow: it had this one throughout, or the snapshot has perhaps another one
		err = fmt.Errorf("%w: the volume grew meanwhile; take the snapshot again", replication.ErrNotCut)
	}
	if err != nil {
		_, dropErr := c.dropSnapshot(ctx, s.ID, Creating, notTaken)
		return nil, errors.Join(err, dropErr)
	}
	record, err := put(c.keys.snapshot(s.ID), done)
	if err != nil {
		return nil, err
	}
	for {
		kv, err := c.store.Get(ctx, c.keys.snapshot(s.ID))
		if err != nil && !errors.Is(err, kvdb.ErrNotFound) {
			return nil, err
		}
		now := &SnapshotRecord{}
		if err == nil {
			if now, err = parseSnapshot(kv); err != nil {
				return nil, err
			}
		}
		switch now.State {
		case Ready: // by an attempt whose answer was lost
			return now, nil
		case Creating:
		default:
			return nil, fmt.Errorf("%w: it took so long that it was given up", replication.ErrNotCut)
		}
		t := kvdb.Txn{If: []kvdb.Cmp{{Key: kv.Key, Target: kvdb.CmpMod, Revision: kv.Mod}, c.configs.guard()}, Then: []kvdb.Op{record}}
		res, err := c.trail.Txn(ctx, t, audit.Record{
			Verb: "snapshot create", Object: snapshotObject(s.ID), Outcome: fmt.Sprintf("%s of volume %s, held by %d replicas", s.Name, s.VolumeName, len(holders)),
		})
		if err != nil {
			return nil, err
		}
		if res.Succeeded {
			return &done, nil
		}
	}
}

// DeleteSnapshot turns a snapshot to DELETING; its holders delete it. One that does not exist is no error. Errors: ErrNotReady (it is being taken), ErrInGroupSnapshot, ErrReverting (its volume is being put back to it), those of the store.
func (c *Catalogue) DeleteSnapshot(ctx context.Context, id replication.SnapshotID) error {
	s, err := c.snapshot(ctx, id)
	if err == nil && s.State == Ready && !isNil(s.Group) {
		return fmt.Errorf("%w: snapshot %s of volume %s, group snapshot %s", ErrInGroupSnapshot, s.Name, s.VolumeName, s.Group)
	}
	s, err = c.dropSnapshot(ctx, id, Ready, deleted)
	if err == nil && s != nil && s.State == Creating {
		return fmt.Errorf("%w: snapshot %s is being taken", ErrNotReady, s.Name)
	}
	return err
}

// dropping is why a snapshot turns to DELETING.
type dropping int

const (
	deleted  dropping = iota
	notTaken          // no replica begins with it any more
	late              // a replica may begin with it yet
)

// dropSnapshot turns a snapshot that is in state from to DELETING, and returns it as it was found, nil if there is none.
func (c *Catalogue) dropSnapshot(ctx context.Context, id replication.SnapshotID, from State, why dropping) (*SnapshotRecord, error) {
	for {
		kv, err := c.store.Get(ctx, c.keys.snapshot(id))
		if errors.Is(err, kvdb.ErrNotFound) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		s, err := parseSnapshot(kv)
		if err != nil || s.State != from {
			return s, err
		}
		look, err := c.store.Txn(ctx, kvdb.Txn{Then: []kvdb.Op{{Kind: kvdb.OpGet, Key: c.keys.snapshotsOf(s.Volume)}, {Kind: kvdb.OpGet, Key: c.keys.spec(s.Volume)}}})
		if err != nil {
			return nil, err
		}
		if from == Ready {
			if err := s.spares(look.Gets[1]); err != nil {
				return nil, err
			}
		}
		next := *s
		next.State, next.Failed, next.Late = Deleting, why != deleted, why == late
		ops, err := c.unlist(&next, look.Gets[0])
		if err != nil {
			return nil, err
		}
		t := kvdb.Txn{
			If:   []kvdb.Cmp{{Key: kv.Key, Target: kvdb.CmpMod, Revision: kv.Mod}, unchanged(c.keys.snapshotsOf(s.Volume), look.Gets[0]), unchanged(c.keys.spec(s.Volume), look.Gets[1]), c.configs.guard()},
			Then: ops,
		}
		var res kvdb.TxnResult
		if why == deleted {
			res, err = c.trail.Txn(ctx, t, audit.Record{Verb: "snapshot delete", Object: snapshotObject(id), Outcome: s.Name + " of volume " + s.VolumeName})
		} else {
			res, err = c.store.Txn(ctx, t)
		}
		if err != nil || res.Succeeded {
			return s, err
		}
	}
}

// unlist writes s, which is DELETING, and takes it off the list of its volume's snapshots, which is as it was read, and its name.
func (c *Catalogue) unlist(s *SnapshotRecord, list *kvdb.KV) ([]kvdb.Op, error) {
	ids, err := parseSnapshotsOf(list)
	if err != nil {
		return nil, err
	}
	record, err := put(c.keys.snapshot(s.ID), s)
	if err != nil {
		return nil, err
	}
	rest := kvdb.Op{Kind: kvdb.OpDelete, Key: c.keys.snapshotsOf(s.Volume)}
	if ids = slices.DeleteFunc(ids, func(k replication.SnapshotID) bool { return k == s.ID }); len(ids) > 0 {
		if rest, err = put(rest.Key, ids); err != nil {
			return nil, err
		}
	}
	return []kvdb.Op{record, rest, {Kind: kvdb.OpDelete, Key: c.keys.snapshotName(s.Name)}}, nil
}

// snapshotByName returns the snapshot that has the name: ErrSnapshotNotFound if none has.
func (c *Catalogue) snapshotByName(ctx context.Context, name string) (*SnapshotRecord, error) {
	kv, err := c.store.Get(ctx, c.keys.snapshotName(name))
	if errors.Is(err, kvdb.ErrNotFound) {
		return nil, fmt.Errorf("%w: %s", ErrSnapshotNotFound, name)
	}
	if err != nil {
		return nil, err
	}
	id, err := replication.ParseSnapshotID(string(kv.Value))
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrBadRecord, kv.Key, err)
	}
	return c.snapshot(ctx, id)
}

func (c *Catalogue) snapshot(ctx context.Context, id replication.SnapshotID) (*SnapshotRecord, error) {
	kv, err := c.store.Get(ctx, c.keys.snapshot(id))
	if errors.Is(err, kvdb.ErrNotFound) {
		return nil, fmt.Errorf("%w: %s", ErrSnapshotNotFound, id)
	}
	if err != nil {
		return nil, err
	}
	return parseSnapshot(kv)
}

// Snapshot returns a snapshot by id or name. Errors: ErrSnapshotNotFound, those of the store.
func (c *Catalogue) Snapshot(ctx context.Context, ref string) (*SnapshotRecord, error) {
	if id, err := replication.ParseSnapshotID(ref); err == nil {
		return c.snapshot(ctx, id)
	}
	return c.snapshotByName(ctx, ref)
}

// Snapshots returns all snapshots, by volume name and then by when they were created.
func (c *Catalogue) Snapshots(ctx context.Context) ([]*SnapshotRecord, error) {
	kvs, _, err := c.store.List(ctx, c.keys.snapshots())
	if err != nil {
		return nil, fmt.Errorf("read snapshots: %w", err)
	}
	var all []*SnapshotRecord
	for _, kv := range kvs {
		if strings.Contains(strings.TrimPrefix(kv.Key, c.keys.snapshots()), "/") {
			continue // of a replica that has deleted it
		}
		s, err := parseSnapshot(kv)
		if err != nil {
			return nil, err
		}
		all = append(all, s)
	}
	slices.SortFunc(all, func(a, b *SnapshotRecord) int {
		return cmp.Or(strings.Compare(a.VolumeName, b.VolumeName), a.Created.Compare(b.Created), strings.Compare(a.Name, b.Name))
	})
	return all, nil
}

func isSnapshotNotFound(err error) bool { return errors.Is(err, ErrSnapshotNotFound) }
