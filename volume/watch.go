package volume

import (
	"context"
	"errors"

	"github.com/tandem-storage/tandem/clusterdomain"
	"github.com/tandem-storage/tandem/kvdb"
	"github.com/tandem-storage/tandem/replication"
)

// ConfigEvent tells a configuration as it was at one revision.
type ConfigEvent struct {
	Volume   replication.VolumeID
	Config   *replication.Config // nil: the volume is gone, or Err is set
	Revision kvdb.Revision
	Err      error // ErrBadRecord: there is one that cannot be read
	// Caught is set, on an event without a volume, when every configuration that existed at the start has been sent.
	Caught bool
}

// WatchAll sends every volume's configuration, then one event with Caught, then every change. A volume that changes
// faster than its events are received may be told its last state only. The channel is closed when ctx ends or the store is closed.
// Events are news, not truth: whoever changes a configuration uses Load. What a kvdb of another incarnation says, after a
// restore and before the import, is not told: it is old, or of another lineage, whatever its epochs.
func (c *Configs) WatchAll(ctx context.Context) <-chan ConfigEvent {
	ch := make(chan ConfigEvent)
	w := &watcher{c: c, ch: ch, known: map[replication.VolumeID]kvdb.Revision{}}
	go func() {
		defer close(ch)
		w.run(ctx)
	}()
	return ch
}

type watcher struct {
	c      *Configs
	ch     chan<- ConfigEvent
	known  map[replication.VolumeID]kvdb.Revision // what was sent
	caught bool
}

func (w *watcher) run(ctx context.Context) {
	prefix := w.c.keys.configs()
	for {
		kvs, rev, err := w.c.store.List(ctx, prefix)
		if err == nil {
			err = w.ours(ctx)
		}
		if err == nil {
			if !w.reset(ctx, kvs, rev) {
				return
			}
			err = w.follow(ctx, prefix, rev)
		}
		if errors.Is(err, ErrIncarnation) {
			for id := range w.known {
				w.known[id] = 0 // the revisions of a restored kvdb begin anew
			}
		}
		if errors.Is(err, kvdb.ErrClosed) || !sleep(ctx, casPauseMax) {
			return
		}
	}
}

// ours is ErrIncarnation while the kvdb is not the one that this process goes by, or its successor.
func (w *watcher) ours(ctx context.Context) error {
	inc, err := w.c.store.Txn(ctx, kvdb.Txn{Then: []kvdb.Op{{Kind: kvdb.OpGet, Key: clusterdomain.IncarnationKey(w.c.cluster)}}})
	if err != nil {
		return err
	}
	return w.c.checkIncarnation(inc.Gets[0])
}

// reset sends how kvs, all there is at rev, differ from what was sent.
func (w *watcher) reset(ctx context.Context, kvs []kvdb.KV, rev kvdb.Revision) bool {
	there := make(map[replication.VolumeID]bool, len(kvs))
	for _, kv := range kvs {
		id, ok := w.c.keys.configOf(kv.Key)
		if !ok {
			continue
		}
		there[id] = true
		if !w.put(ctx, id, kv) {
			return false
		}
	}
	for id := range w.known {
		if !there[id] && !w.gone(ctx, id, rev) {
			return false
		}
	}
	if w.caught {
		return true
	}
	w.caught = true
	return w.send(ctx, ConfigEvent{Caught: true, Revision: rev})
}

func (w *watcher) follow(ctx context.Context, prefix string, rev kvdb.Revision) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for ev := range w.c.store.Watch(ctx, prefix, rev) {
		if ev.Err != nil {
			return ev.Err
		}
		id, ok := w.c.keys.configOf(ev.KV.Key)
		if !ok {
			continue
		}
		if err := w.ours(ctx); err != nil {
			return err
		}
		switch {
		case ev.Type == kvdb.EventDelete:
			ok = w.gone(ctx, id, ev.KV.Mod)
		default:
			ok = w.put(ctx, id, ev.KV)
		}
		if !ok {
			break
		}
	}
	return ctx.Err()
}

func (w *watcher) put(ctx context.Context, id replication.VolumeID, kv kvdb.KV) bool {
	if w.known[id] >= kv.Mod {
		return true
	}
	w.known[id] = kv.Mod
	cfg, rev, err := parseConfig(kv)
	return w.send(ctx, ConfigEvent{Volume: id, Config: cfg, Revision: max(rev, kv.Mod), Err: err})
}

func (w *watcher) gone(ctx context.Context, id replication.VolumeID, rev kvdb.Revision) bool {
	delete(w.known, id)
	return w.send(ctx, ConfigEvent{Volume: id, Revision: rev})
}

func (w *watcher) send(ctx context.Context, ev ConfigEvent) bool {
	select {
	case w.ch <- ev:
		return true
	case <-ctx.Done():
		return false
	}
}
