package volume

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/tandem-storage/tandem/audit"
	"github.com/tandem-storage/tandem/kvdb"
	"github.com/tandem-storage/tandem/replication"
	"github.com/tandem-storage/tandem/volume/volumepb"
)

// Publication is the promise of a volume to one node: an orchestrator runs its consumers there and nowhere else. It lets nobody write and
// keeps nobody from writing, which are the attachment's and the terms' to do; it is what the orchestrator is held to.
type Publication struct {
	Node     replication.NodeID `json:"node"`
	ReadOnly bool               `json:"read_only,omitempty"`
	Since    time.Time          `json:"since"` // by the clock of the node that was asked
}

func parsePublication(kv *kvdb.KV) (*Publication, error) {
	if kv == nil {
		return nil, nil
	}
	p := new(Publication)
	if err := json.Unmarshal(kv.Value, p); err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrBadRecord, kv.Key, err)
	}
	return p, nil
}

// Publish promises a volume to a node. Publishing it there again in the same way changes nothing. Errors: ErrPublished to another node,
// ErrPublishedOtherwise, ErrNodeNotFound, those of checkAttach for the node (it is attached elsewhere, its domain is out of service),
// ErrNotReady, ErrDeleting, replication.ErrVolumeNotFound, those of the store.
func (c *Catalogue) Publish(ctx context.Context, id replication.VolumeID, node replication.NodeID, readOnly bool) error {
	return c.publication(ctx, id, func(e *Entry, have *Publication) (*Publication, string, error) {
		if e.State != Ready {
			return nil, "", e.notReady()
		}
		v := c.cluster.View()
		if _, ok := v.Node(string(node)); !ok {
			return nil, "", fmt.Errorf("%w: %s", ErrNodeNotFound, node)
		}
		switch {
		case have == nil:
		case have.Node != node:
			return nil, "", fmt.Errorf("%w to node %s, since %s", ErrPublished, have.Node, have.Since.Format(time.RFC3339))
		case have.ReadOnly != readOnly:
			return nil, "", fmt.Errorf("%w: to node %s with read-only %t", ErrPublishedOtherwise, node, have.ReadOnly)
		default:
			return have, "", nil
		}
		if e.Reverting != nil {
			return nil, "", e.Reverting.refuse()
		}
		if err := checkAttach(e.Config, v, node); err != nil {
			return nil, "", err
		}
		return &Publication{Node: node, ReadOnly: readOnly, Since: time.Now().UTC()}, "published to node " + string(node), nil
	})
}

// Unpublish ends the promise to a node, "" being any; one that was not given is no error. It is refused while a node that answers has
// the volume attached by it: the next one could not have it. A node that does not answer is no hindrance, its terms end with the next
// takeover. Errors: ErrAttached, those of the store.
func (c *Catalogue) Unpublish(ctx context.Context, id replication.VolumeID, node replication.NodeID) error {
	err := c.publication(ctx, id, func(e *Entry, have *Publication) (*Publication, string, error) {
		if have == nil || node != "" && have.Node != node {
			return have, "", nil
		}
		if e.Config != nil && coordinator(e.Config).Node == have.Node {
			v := c.cluster.View()
			if n, ok := v.Node(string(have.Node)); ok && n.Online && !v.State(n.Domain).MustStop() {
				return nil, "", fmt.Errorf("%w on node %s, which answers: unmount and detach it there first", ErrAttached, have.Node)
			}
		}
		return nil, "unpublished from node " + string(have.Node), nil
	})
	if isNotFound(err) {
		return nil
	}
	return err
}

// publication makes what change says the publication of a volume, nil being none; have is returned for no change.
func (c *Catalogue) publication(ctx context.Context, id replication.VolumeID, change func(e *Entry, have *Publication) (*Publication, string, error)) error {
	if err := c.cluster.Refresh(ctx); err != nil {
		return err
	}
	key := c.keys.published(id)
	for {
		look, err := c.store.Txn(ctx, kvdb.Txn{Then: []kvdb.Op{{Kind: kvdb.OpGet, Key: key}, {Kind: kvdb.OpGet, Key: c.keys.spec(id)}}})
		if err != nil {
			return err
		}
		e, err := c.Get(ctx, id)
		if err != nil {
			return err
		}
		have, err := parsePublication(look.Gets[0])
		if err != nil {
			return err
		}
		next, outcome, err := change(e, have)
		if err != nil || next == have || look.Gets[1] == nil {
			return err
		}
		t := kvdb.Txn{If: []kvdb.Cmp{
			{Key: key, Target: kvdb.CmpAbsent}, {Key: c.keys.spec(id), Target: kvdb.CmpMod, Revision: look.Gets[1].Mod}, c.configs.guard(),
		}}
		if look.Gets[0] != nil {
			t.If[0] = kvdb.Cmp{Key: key, Target: kvdb.CmpMod, Revision: look.Gets[0].Mod}
		}
		op := kvdb.Op{Kind: kvdb.OpDelete, Key: key}
		if next != nil {
			if op, err = put(key, next); err != nil {
				return err
			}
		}
		t.Then = []kvdb.Op{op}
		verb := "volume publish"
		if next == nil {
			verb = "volume unpublish"
		}
		res, err := c.trail.Txn(ctx, t, audit.Record{Verb: verb, Object: object(id), Outcome: outcome})
		if err != nil || res.Succeeded {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
}

// PublishVolume implements Volumes.
func (s *Server) PublishVolume(ctx context.Context, r *volumepb.PublishVolumeRequest) (*volumepb.PublishVolumeResponse, error) {
	if r.Node == "" {
		return nil, fmt.Errorf("%w: publish volume %s: no node is named", ErrInvalid, r.Volume)
	}
	e, err := s.entry(ctx, r.Volume)
	if err != nil {
		return nil, err
	}
	ctx = by(ctx, r)
	err = s.orEndDead(ctx, e.ID, func(*replication.Epoch) error { return s.c.Publish(ctx, e.ID, replication.NodeID(r.Node), r.ReadOnly) })
	if err != nil {
		return nil, fmt.Errorf("publish volume %s to node %s: %w", e.Name, r.Node, err)
	}
	v, err := s.again(ctx, e)
	if err != nil {
		return nil, err
	}
	return &volumepb.PublishVolumeResponse{Volume: v}, nil
}

// UnpublishVolume implements Volumes.
func (s *Server) UnpublishVolume(ctx context.Context, r *volumepb.UnpublishVolumeRequest) (*volumepb.UnpublishVolumeResponse, error) {
	ctx = by(ctx, r)
	id, err := s.c.Resolve(ctx, r.Volume)
	if err == nil {
		err = s.orEndDead(ctx, id, func(*replication.Epoch) error { return s.c.Unpublish(ctx, id, replication.NodeID(r.Node)) })
	}
	if err != nil && !isNotFound(err) {
		return nil, fmt.Errorf("unpublish volume %s: %w", r.Volume, err)
	}
	return &volumepb.UnpublishVolumeResponse{}, nil
}
