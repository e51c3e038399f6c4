package lab

import (
	"context"
	"errors"
	"testing"
	"time"
)

// TestUntil wants a condition that took all the time asked again, and not for ever.
func TestUntil(t *testing.T) {
	const within = 20 * time.Millisecond
	tries := 0
	slow := func() (bool, error) {
		tries++
		<-time.After(2 * within) // the machine is paused
		return tries == 2, errors.New("not yet")
	}
	if err := Until(t.Context(), "it", within, time.Millisecond, slow); err != nil || tries != 2 {
		t.Errorf("after %d tries: %v", tries, err)
	}
	never := errors.New("never")
	err := Until(t.Context(), "it", within, time.Millisecond, func() (bool, error) { return false, never })
	if !errors.Is(err, never) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the end is %v", err)
	}
	tries = 0
	err = Until(t.Context(), "it", time.Hour, time.Hour, func() (bool, error) { tries++; return false, Final(never) })
	if !errors.Is(err, never) || tries != 1 {
		t.Errorf("after %d tries: %v", tries, err)
	}
}
