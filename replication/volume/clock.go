package volume

import (
	"maps"
	"slices"
	"sync"
	"time"
)

// How often the core is told the time, while something is under way, and while nothing is that time alone carries on. Then it is for what falls due
// some day, as a verify, and the Manager tells it to all that rest one after the other: a thousand volumes that nobody uses wake no processor a hundred times a second.
const (
	tickInterval = 100 * time.Millisecond
	restInterval = 10 * time.Second
)

// clock tells one volume the time while it does not rest.
type clock struct {
	sync.Mutex
	rests bool // changed by the worker only
	runs  bool // the goroutine
}

// pace has the core be told the time as often as it needs it, after a batch of inputs: only ticks, or others too.
func (v *Volume) pace(others bool) {
	rests := !v.wasDead && !others && v.core.Resting()
	c := &v.clock
	if rests == c.rests {
		return
	}
	c.Lock()
	c.rests = rests
	if !rests && !c.runs && !v.wasDead {
		c.runs = true
		v.m.running.Go(v.tick)
	}
	c.Unlock()
	v.m.resting.put(v.m, v, rests)
}

// tick tells the time until the volume rests or has ended.
func (v *Volume) tick() {
	t := time.NewTicker(tickInterval)
	defer t.Stop()
	c := &v.clock
	for {
		select {
		case <-t.C:
			v.post(volumeInput{kind: inTick})
		case <-v.ctx.Done():
		}
		c.Lock()
		if c.rests || v.ctx.Err() != nil {
			c.runs = false
			c.Unlock()
			return
		}
		c.Unlock()
	}
}

// resting are the volumes of a Manager that rest, and what tells them the time.
type resting struct {
	sync.Mutex
	volumes map[*Volume]bool
	end     chan struct{} // closed when there are none any more; nil while there are none
}

// put notes that a volume rests, or does so no more.
func (r *resting) put(m *Manager, v *Volume, rests bool) {
	r.Lock()
	defer r.Unlock()
	if rests {
		if r.volumes == nil {
			r.volumes = make(map[*Volume]bool)
		}
		r.volumes[v] = true
	} else {
		delete(r.volumes, v)
	}
	switch {
	case len(r.volumes) == 0 && r.end != nil:
		close(r.end)
		r.end = nil
	case len(r.volumes) > 0 && r.end == nil:
		end := make(chan struct{})
		r.end = end
		m.running.Go(func() { r.tick(end) })
	}
}

// tick tells the time to all that rest until none does.
func (r *resting) tick(end <-chan struct{}) {
	t := time.NewTicker(restInterval)
	defer t.Stop()
	for {
		select {
		case <-t.C:
		case <-end:
			return
		}
		r.Lock()
		vs := slices.Collect(maps.Keys(r.volumes))
		r.Unlock()
		for _, v := range vs {
			v.post(volumeInput{kind: inTick})
		}
	}
}
