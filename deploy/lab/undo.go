package lab

import (
	"errors"
	"fmt"
	"sync"
)

// Undo is a stack of what must be taken back before the caller ends, however it
// ends. Safe for concurrent use.
type Undo struct {
	mu    sync.Mutex
	steps []undoStep
}

type undoStep struct {
	what string
	f    func() error
}

// Add puts f on the stack. f must be harmless when there is nothing to take back any more.
func (u *Undo) Add(what string, f func() error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.steps = append(u.steps, undoStep{what, f})
}

// Run takes everything back, the newest first, goes on after an error and returns all of them. The second run does nothing.
func (u *Undo) Run() error {
	u.mu.Lock()
	steps := u.steps
	u.steps = nil
	u.mu.Unlock()
	var errs []error
	for i := len(steps) - 1; i >= 0; i-- {
		if err := steps[i].f(); err != nil {
			errs = append(errs, fmt.Errorf("clean up %s: %w", steps[i].what, err))
		}
	}
	return errors.Join(errs...)
}
