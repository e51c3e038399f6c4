// Package eventpipe is the sending end of a kvdb watch: it keeps the promise
// that the last event tells why the watch ended, whether or not the receiver
// still listens.
package eventpipe

import (
	"context"

	"github.com/tandem-storage/tandem/kvdb"
)

// Pipe is one watch's channel and its sole sender.
type Pipe struct {
	c chan kvdb.Event
}

// New returns an open pipe. The one slot of the channel is what lets End
// replace an event that nobody took.
func New() *Pipe { return &Pipe{c: make(chan kvdb.Event, 1)} }

// C is the receiver's end.
func (p *Pipe) C() <-chan kvdb.Event { return p.c }

// Send delivers e, or returns false when ctx or closed ended first.
func (p *Pipe) Send(ctx context.Context, closed <-chan struct{}, e kvdb.Event) bool {
	if ctx.Err() != nil {
		return false
	}
	select {
	case p.c <- e:
		return true
	case <-ctx.Done():
		return false
	case <-closed:
		return false
	}
}

// End makes err the last event and closes the channel. It never blocks: it may
// take back the newest event if the receiver has not taken it, which leaves no
// gap because nothing but err follows.
func (p *Pipe) End(err error) {
	last := kvdb.Event{Err: err}
	select {
	case p.c <- last:
	default:
		select {
		case <-p.c:
		default:
		}
		p.c <- last
	}
	close(p.c)
}
