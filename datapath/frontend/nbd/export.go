package nbd

import (
	"context"
	"fmt"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/tandem-storage/tandem/datapath/block"
	"github.com/tandem-storage/tandem/datapath/frontend"
)

// export is one device that the server shows; it is a frontend.Attachment.
type export struct {
	srv  *Server
	lg   *zap.Logger
	id   string
	dev  block.Device
	win  *window
	path string
	done chan struct{}

	mu      sync.Mutex
	holders map[*holder]struct{}
	empty   chan struct{} // if not nil, closed when the last holder leaves
	ended   bool
	err     error
}

// holder is one client's hold on an export, from the moment it is chosen.
type holder struct {
	export  *export
	session *session // nil until the transmission
}

// hold returns a new holder, or nil if the export is gone.
func (e *export) hold() *holder {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.ended {
		return nil
	}
	h := &holder{export: e}
	e.holders[h] = struct{}{}
	return h
}

// start tells h of its session, so that the end of the export aborts it. It reports false if the export is gone.
func (h *holder) start(s *session) bool {
	h.export.mu.Lock()
	defer h.export.mu.Unlock()
	h.session = s
	return !h.export.ended
}

func (h *holder) release() {
	e := h.export
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.holders, h)
	if len(e.holders) == 0 && e.empty != nil {
		close(e.empty)
		e.empty = nil
	}
}

// end takes the showing away and aborts every client. Only the first end counts.
func (e *export) end(err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.endLocked(err)
}

func (e *export) endLocked(err error) {
	if e.ended {
		return
	}
	e.ended, e.err = true, err
	for h := range e.holders {
		if h.session != nil {
			h.session.abort()
		}
	}
	close(e.done)
	e.lg.Info("device detached", zap.Error(err))
}

func (e *export) gone() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.ended
}

// Path implements frontend.Attachment.
func (e *export) Path() string { return e.path }

// Detach implements frontend.Attachment. A connected client holds the device
// open, however quiet it is: nothing tells it from a mounted file system that is
// not in use at the moment.
func (e *export) Detach(ctx context.Context) error {
	timer := time.NewTimer(e.srv.detachGrace)
	defer timer.Stop()
	for {
		e.mu.Lock()
		clients := len(e.holders)
		if clients == 0 || e.ended {
			e.endLocked(nil)
			e.mu.Unlock()
			e.srv.forget(e)
			return nil
		}
		if e.empty == nil {
			e.empty = make(chan struct{})
		}
		empty := e.empty
		e.mu.Unlock()
		select {
		case <-empty:
		case <-timer.C:
			return fmt.Errorf("nbd: detach %s: %d clients are connected; disconnect them first: %w", e.id, clients, frontend.ErrBusy)
		case <-ctx.Done():
			return fmt.Errorf("nbd: detach %s: %w", e.id, ctx.Err())
		}
	}
}

// Resize implements frontend.Attachment. A client learns the size when it connects: requests of one that is connected go up to the old end.
func (e *export) Resize(context.Context) error { return nil }

// Kill implements frontend.Attachment.
func (e *export) Kill() {
	e.end(ErrKilled)
	e.srv.forget(e)
}

// Done implements frontend.Attachment.
func (e *export) Done() <-chan struct{} { return e.done }

// Err implements frontend.Attachment.
func (e *export) Err() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.err
}
