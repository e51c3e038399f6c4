package daemon

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"
)

// TestInTime: what does not let itself be stopped does not keep the process.
func TestInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hung := make(chan struct{})
		began := time.Now()
		err := inTime(stopLimit, func() error { <-hung; return nil })
		if took := time.Since(began); !errors.Is(err, errNotStopped) || took != stopLimit {
			t.Errorf("%v after %v", err, took)
		}
		close(hung)
		why := errors.New("a disk does not answer")
		if err := inTime(stopLimit, func() error { return why }); !errors.Is(err, why) {
			t.Errorf("got %v", err)
		}
	})
}

func TestUnlessCanceled(t *testing.T) {
	why := errors.New("address in use")
	if err := unlessCanceled(fmt.Errorf("wait: %w", context.Canceled)); err != nil {
		t.Errorf("asked to end: %v", err)
	}
	if err := unlessCanceled(why); !errors.Is(err, why) {
		t.Errorf("failed: %v", err)
	}
}
