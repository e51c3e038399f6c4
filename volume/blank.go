package volume

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/tandem-storage/tandem/kvdb"
	"github.com/tandem-storage/tandem/replication"
	"github.com/tandem-storage/tandem/volume/volumepb"
)

// Blank is the mark of a volume to which nobody but mkfs has ever written.
//
// A volume has it from its creation, of replicas that are all holes, and nothing ever gives it back. Nobody writes but a coordinator, nobody
// becomes one but by a configuration with a new attachment, and the transaction that puts that in force removes the mark, whoever attaches and why;
// save one attachment by the node that the mark names, for mkfs alone. So a volume with the mark holds nothing, or what a mkfs left that did not end.
// What is read from the volume proves nothing of the kind: damaged, unreadable and empty look alike (docs/design/0026-csi.md).
type Blank struct {
	// Formatter is the node that was last allowed to run mkfs; "": none was, and not a byte was ever written.
	Formatter replication.NodeID `json:"formatter,omitempty"`
}

func parseBlank(kv *kvdb.KV) (*Blank, error) {
	if kv == nil {
		return nil, nil
	}
	b := new(Blank)
	if err := json.Unmarshal(kv.Value, b); err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrBadRecord, kv.Key, err)
	}
	return b, nil
}

// attaches reports whether next lets another attachment write than prev, or other data than prev's stand.
func attaches(prev, next *replication.Config) bool {
	if next.ForkGen != prev.ForkGen {
		return true
	}
	return next.Coord != nil && (prev.Coord == nil || prev.Coord.AttachID != next.Coord.AttachID)
}

// written are the writes that take the mark of a blank volume away, if next is not its formatting.
func (c *Configs) written(prev, next *replication.Config) []kvdb.Op {
	if !attaches(prev, next) {
		return nil
	}
	if _, formats := c.formatting.Load(next.Volume); formats && next.Coord != nil && next.ForkGen == prev.ForkGen {
		return nil
	}
	return []kvdb.Op{{Kind: kvdb.OpDelete, Key: c.keys.blank(next.Volume)}}
}

// Formatting lets the attachments of a volume that this node begins until done is called keep the mark of a blank volume. The caller sees to it that
// there is one at most in that time, and that nobody has its device but mkfs. After BeginFormat.
func (c *Configs) Formatting(id replication.VolumeID) (done func()) {
	c.formatting.Store(id, struct{}{})
	return func() { c.formatting.Delete(id) }
}

// BeginFormat notes that node is about to run mkfs, before the volume is attached for it. fresh: not a byte was ever
// written; otherwise an earlier mkfs may have left some. Errors: ErrNotBlank, those of the store.
func (c *Catalogue) BeginFormat(ctx context.Context, id replication.VolumeID, node replication.NodeID) (fresh bool, _ error) {
	key := c.keys.blank(id)
	for {
		look, err := c.store.Txn(ctx, kvdb.Txn{Then: []kvdb.Op{{Kind: kvdb.OpGet, Key: key}}})
		if err != nil {
			return false, err
		}
		kv := look.Gets[0]
		have, err := parseBlank(kv)
		switch {
		case err != nil:
			return false, err
		case have == nil:
			return false, fmt.Errorf("%w: it was attached before and is never formatted, whatever can be read from it", ErrNotBlank)
		case have.Formatter == node:
			return false, nil
		}
		record, err := put(key, Blank{Formatter: node})
		if err != nil {
			return false, err
		}
		res, err := c.store.Txn(ctx, kvdb.Txn{
			If: []kvdb.Cmp{{Key: key, Target: kvdb.CmpMod, Revision: kv.Mod}, c.configs.guard()}, Then: []kvdb.Op{record},
		})
		if err != nil || res.Succeeded {
			return have.Formatter == "", err
		}
		if err := ctx.Err(); err != nil {
			return false, err
		}
	}
}

// EndFormat takes the mark away: the volume has its file system. It is durable before the first consumer sees the volume. None is no error.
func (c *Catalogue) EndFormat(ctx context.Context, id replication.VolumeID) error {
	return kvdb.Delete(ctx, c.store, c.keys.blank(id))
}

// FinishFormat implements Volumes.
func (s *Server) FinishFormat(ctx context.Context, r *volumepb.FinishFormatRequest) (*volumepb.FinishFormatResponse, error) {
	e, err := s.entry(ctx, r.Volume)
	if err != nil {
		return nil, err
	}
	if err := s.c.EndFormat(ctx, e.ID); err != nil {
		return nil, fmt.Errorf("finish the formatting of volume %s: %w", e.Name, err)
	}
	v, err := s.again(ctx, e)
	if err != nil {
		return nil, err
	}
	return &volumepb.FinishFormatResponse{Volume: v}, nil
}

// blankPB is the content of a volume as the API tells it.
func blankPB(b *Blank) volumepb.Content {
	switch {
	case b == nil:
		return volumepb.Content_CONTENT_WRITTEN
	case b.Formatter == "":
		return volumepb.Content_CONTENT_BLANK
	default:
		return volumepb.Content_CONTENT_FORMATTING
	}
}
