package main

import (
	"errors"
	"fmt"
	"sync"
)

// undo is a stack of what must be taken back before the demo ends, however it
// ends. Safe for concurrent use.
type undo struct {
	mu    sync.Mutex
	steps []undoStep
}

type undoStep struct {
	what string
	f    func() error
}

// add puts f on the stack. f must be harmless when there is nothing to take back any more.
func (u *undo) add(what string, f func() error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.steps = append(u.steps, undoStep{what, f})
}

// run takes everything back, the newest first, goes on after an error and returns all of them. The second run does nothing.
func (u *undo) run() error {
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
