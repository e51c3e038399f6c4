package kvstate

import (
	"context"
	"fmt"
	"strings"

	"github.com/tandem-storage/tandem/kvdb"
	"github.com/tandem-storage/tandem/kvdb/internal/eventpipe"
)

// Since looks at no more than about maxBatch events with maxBatchBytes in one
// call, so that a watch far behind neither holds the lock for long nor makes a
// message that is too large to send.
const (
	maxBatch      = 512
	maxBatchBytes = 1 << 20
)

// Batch is a piece of the history.
type Batch struct {
	Events  []kvdb.Event    // of the asked prefix; a revision's events are never split
	Through kvdb.Revision   // every change up to here has been looked at
	More    <-chan struct{} // closed when there is more; nil: there is more now
}

// Since returns the changes under prefix after the given revision, or
// ErrCompacted if they are no longer all known.
func (m *Machine) Since(after kvdb.Revision, prefix string) (Batch, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if after < m.history.dropped {
		return Batch{}, fmt.Errorf("%w: %d, the oldest is %d", kvdb.ErrCompacted, after, m.history.dropped)
	}
	b := Batch{Through: max(after, m.rev), More: m.changed}
	events := m.history.events[m.history.after(after):]
	size := 0
	for i, e := range events {
		if e.KV.Mod > b.Through {
			break
		}
		size += eventSize(e)
		if b.More != nil && (i >= maxBatch || size > maxBatchBytes) {
			b.Through, b.More = e.KV.Mod, nil // this revision still goes whole
		}
		if strings.HasPrefix(e.KV.Key, prefix) {
			e.KV = e.KV.Clone()
			b.Events = append(b.Events, e)
		}
	}
	return b, nil
}

// Watch starts a watch as kvdb.Store defines it; closed ends it with ErrClosed.
func (m *Machine) Watch(ctx context.Context, closed <-chan struct{}, prefix string, after kvdb.Revision) <-chan kvdb.Event {
	pipe := eventpipe.New()
	go func() { pipe.End(m.feed(ctx, closed, pipe, prefix, after)) }()
	return pipe.C()
}

func (m *Machine) feed(ctx context.Context, closed <-chan struct{}, pipe *eventpipe.Pipe, prefix string, after kvdb.Revision) error {
	ended := func() error {
		if err := ctx.Err(); err != nil {
			return err
		}
		return kvdb.ErrClosed
	}
	for {
		b, err := m.Since(after, prefix)
		if err != nil {
			return err
		}
		for _, e := range b.Events {
			if !pipe.Send(ctx, closed, e) {
				return ended()
			}
		}
		after = b.Through
		if b.More == nil {
			continue
		}
		select {
		case <-b.More:
		case <-ctx.Done():
			return ended()
		case <-closed:
			return ended()
		}
	}
}
