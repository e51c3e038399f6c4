package volume

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"

	"github.com/tandem-storage/tandem/clusterdomain"
	"github.com/tandem-storage/tandem/kvdb"
	"github.com/tandem-storage/tandem/replication"
)

// Source is the snapshot that a volume begins with.
type Source struct {
	Snapshot replication.SnapshotID `json:"snapshot"`
	Volume   replication.VolumeID   `json:"volume"`          // of the snapshot
	Clone    bool                   `json:"clone,omitempty"` // the snapshot was taken for this volume alone
}

// equal reports whether a volume that begins with s is what was asked for by o. Of a clone the snapshot is another one for each attempt.
func (s *Source) equal(o *Source) bool {
	if s == nil || o == nil {
		return s == o
	}
	return s.Clone == o.Clone && s.Volume == o.Volume && (s.Clone || s.Snapshot == o.Snapshot)
}

// Restore makes a volume that begins with what a snapshot has, and returns when it is READY. r.Size is that of the snapshot, or 0. Its replicas are made
// where the snapshot is held, at most as many; r.Replicas 0: all. It is idempotent by name. Errors: those of Create, ErrSnapshotNotFound, ErrSnapshotSize,
// ErrNotReady (the snapshot is being taken too), ErrTooFewNodes.
func (c *Catalogue) Restore(ctx context.Context, r Request, ref string) (*Entry, error) {
	s, err := c.Snapshot(ctx, ref)
	if err != nil {
		return nil, err
	}
	return c.restore(ctx, r, s, false)
}

func (c *Catalogue) restore(ctx context.Context, r Request, s *SnapshotRecord, clone bool) (*Entry, error) {
	switch {
	case s.State == Creating:
		return nil, fmt.Errorf("%w: snapshot %s is being taken", ErrNotReady, s.Name)
	case s.State != Ready:
		return nil, fmt.Errorf("%w: %s is being deleted", ErrSnapshotNotFound, s.Name)
	case r.Size != 0 && r.Size != s.Size:
		return nil, fmt.Errorf("%w: it has %d bytes, %d were asked for", ErrSnapshotSize, s.Size, r.Size)
	}
	r.Size, r.From = s.Size, &Source{Snapshot: s.ID, Volume: s.Volume, Clone: clone}
	return c.Create(ctx, r)
}

// Clone makes a volume that begins with what another one has now: by a snapshot, which is deleted again. It is idempotent by name. Errors: those of CreateSnapshot and Restore.
func (c *Catalogue) Clone(ctx context.Context, taker SnapshotTaker, r Request, of replication.VolumeID) (*Entry, error) {
	old, err := c.byName(ctx, r.Name)
	if err == nil && old.From != nil && old.From.Clone && old.From.Volume == of && old.State != Deleting {
		if r.Size == 0 {
			r.Size = old.Size
		}
		r.From = old.From
		e, err := c.Create(ctx, r)
		if err == nil {
			err = c.DeleteSnapshot(ctx, old.From.Snapshot)
		}
		return e, err
	}
	if err != nil && !errors.Is(err, replication.ErrVolumeNotFound) {
		return nil, err
	}
	if err == nil && old.State != Deleting {
		return nil, fmt.Errorf("%w: id %s is no clone of volume %s", ErrVolumeExists, old.ID, of)
	}
	sum := sha256.Sum256([]byte(r.Name))
	s, err := c.createSnapshot(ctx, taker, "clone-"+hex.EncodeToString(sum[:8]), of, true, r.Name, replication.UUID{})
	if err != nil {
		return nil, err
	}
	e, err := c.restore(ctx, r, s, true)
	if errors.Is(err, ErrNotReady) {
		return nil, err // it goes on, and is made of the snapshot
	}
	return e, errors.Join(err, c.DeleteSnapshot(ctx, s.ID))
}

// placeFrom chooses the replicas of a volume that begins with a snapshot: where that is held, one in each domain before a second in any. It returns
// the snapshot's record as it was read.
func (c *Catalogue) placeFrom(ctx context.Context, r Request, by *rules) (placed []Placement, _ *kvdb.KV, _ error) {
	look, err := c.store.Txn(ctx, kvdb.Txn{Then: []kvdb.Op{{Kind: kvdb.OpGet, Key: c.keys.snapshot(r.From.Snapshot)}, {Kind: kvdb.OpGet, Key: c.keys.spec(r.From.Volume)}}})
	if err != nil {
		return nil, nil, err
	}
	if look.Gets[0] == nil || look.Gets[1] == nil {
		return nil, nil, fmt.Errorf("%w: %s", ErrSnapshotNotFound, r.From.Snapshot)
	}
	s, err := parseSnapshot(*look.Gets[0])
	if err != nil {
		return nil, nil, err
	}
	if s.State != Ready {
		return nil, nil, fmt.Errorf("%w: %s is being deleted", ErrSnapshotNotFound, s.Name)
	}
	source, err := parseSpec(*look.Gets[1])
	if err != nil {
		return nil, nil, err
	}
	view := c.cluster.View()
	var cands []candidate
	var why reasons
	for _, p := range s.Holders {
		n, known := view.Node(string(p.Node))
		switch i := slices.IndexFunc(n.Pools, func(q clusterdomain.Pool) bool { return q.UUID == p.Pool }); {
		case !slices.ContainsFunc(source.Placed, func(q Placement) bool { return q.Replica == p.Replica }):
			why.add("the replica on node %s is not there any more", p.Node)
		case !known || !n.Online:
			why.add("node %s is offline", p.Node)
		case len(r.Domains) > 0 && !slices.Contains(r.Domains, string(p.Domain)):
			why.add("node %s is in domain %s, which was not asked for", p.Node, p.Domain)
		case by.refuses(&n) != "":
			why.add("%s", by.refuses(&n))
		case by.Class != "" && (i < 0 || n.Pools[i].Class != by.Class):
			why.add("node %s holds it in a pool of another class than %s", p.Node, by.Class)
		default:
			cands = append(cands, candidate{node: string(p.Node), domain: string(p.Domain), pool: p.Pool, near: p.Node == r.NearNode, spread: n.Labels[by.Spread]})
		}
	}
	want := r.Replicas
	if want == 0 {
		want = max(1, len(cands))
	}
	placed = choose(cands, want)
	if r.Replicas == 0 && len(placed) > 0 {
		want = len(placed)
	}
	if len(placed) < want {
		return nil, nil, fmt.Errorf("%w: snapshot %s of volume %s is held by %d replicas that may be copied%s, and a volume is made from it only where it is held: ask for at most so many",
			ErrTooFewNodes, s.Name, s.VolumeName, len(placed), why.detail())
	}
	return placed, look.Gets[0], nil
}
