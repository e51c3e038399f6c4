package volume

import (
	"sync"

	"github.com/tandem-storage/tandem/datapath/block"
)

// ending is what happens between the end of a coordinator and that its consumer is told.
type ending struct {
	sync.Mutex
	before func(error) // called in between, once
	begun  bool        // too late for another one

	// By the worker:
	seen   bool // the coordinator has ended
	noting bool // before is at work
	held   []heldAnswer
}

// heldAnswer is an error that a consumer is told when the end is noted.
type heldAnswer struct {
	req *block.Request
	err error
}

// BeforeEnd lets f be called when the volume is lost, before a request fails because of that and before Dead is closed: who
// goes on with attachments after a restart has to know by then that this one is not to be revived (I23b). f may take
// as long as it needs; the requests wait. It is told what Err is going to return, and not called for a detach. BeforeEnd is called once, and reports false, without
// taking f, if the volume is lost already.
func (v *Volume) BeforeEnd(f func(err error)) bool {
	e := &v.end
	e.Lock()
	defer e.Unlock()
	if !e.begun {
		e.before = f
	}
	return !e.begun
}

// noteEnd lets the end be noted, once the coordinator has come to it.
func (v *Volume) noteEnd() {
	e := &v.end
	err := v.ended()
	if e.seen || err == nil || v.core.Detached() {
		return
	}
	e.seen = true
	e.Lock()
	e.begun = true
	before := e.before
	e.Unlock()
	if before == nil {
		return
	}
	e.noting = true
	v.m.running.Go(func() {
		before(err)
		v.post(volumeInput{kind: inNoted})
	})
}

// withhold keeps an error until the end is noted, and reports whether it has to be.
func (v *Volume) withhold(req *block.Request, err error) bool {
	if v.end.noting {
		v.end.held = append(v.end.held, heldAnswer{req, err})
	}
	return v.end.noting
}

// noted tells the consumer.
func (v *Volume) noted() {
	v.end.noting = false
	v.ticked = true // for the status
	for _, h := range v.end.held {
		v.completed(h.req, h.err)
	}
	v.end.held = nil
}
