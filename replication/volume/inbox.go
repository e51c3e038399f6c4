package volume

import "sync"

// inbox collects the inputs of a state machine and lets one goroutine at a time
// work them off.
type inbox[T any] struct {
	mu      sync.Mutex
	items   []T
	spare   []T
	running bool
}

// maxTurns is how often a worker looks for more before it lets another goroutine go on.
const maxTurns = 256

// post adds items. If nobody is at work, the caller becomes the worker: it must
// call next until that returns nil.
func (b *inbox[T]) post(items ...T) (work bool) {
	b.mu.Lock()
	b.items = append(b.items, items...)
	work = !b.running
	b.running = true
	b.mu.Unlock()
	return work
}

// next returns the items to work off, nil when there are none and the caller is
// no longer the worker. The slice is valid until the following call.
func (b *inbox[T]) next() []T {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.items) == 0 {
		b.running = false
		return nil
	}
	items := b.items
	clear(b.spare) // what was worked off before
	b.items, b.spare = b.spare[:0], items
	return items
}
