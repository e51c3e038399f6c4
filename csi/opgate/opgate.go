// Package opgate lets one operation at a time through for each volume. The second caller is told so at once and comes back: orchestrators
// repeat a call whose answer was late while the first one still runs.
package opgate

import (
	"errors"
	"fmt"
	"sync"
)

// ErrPending means that another operation of the same key has not ended.
var ErrPending = errors.New("opgate: another operation on the volume is under way, try again")

// Gate is ready for use. Methods may be called concurrently.
type Gate struct {
	mu      sync.Mutex
	pending map[string]string // what runs, by key
}

// Enter lets operation op on key begin, until leave is called, once. ErrPending: another one runs; it is named.
func (g *Gate) Enter(key, op string) (leave func(), err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if other, ok := g.pending[key]; ok {
		return nil, fmt.Errorf("%w (%s)", ErrPending, other)
	}
	if g.pending == nil {
		g.pending = make(map[string]string)
	}
	g.pending[key] = op
	return func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		delete(g.pending, key)
	}, nil
}
