package volume

import (
	"bytes"
	"context"
	"testing"
	"time"

	"github.com/tandem-storage/tandem/datapath/block"
)

// A volume whose consumer asks for nothing is told the time seldom, until it asks for something, which is answered; and a replica that is lost meanwhile is
// evicted as soon as ever.
func TestRest(t *testing.T) {
	c := newTestCluster(t, 4<<20)
	a, b := c.nodes[0], c.nodes[1]
	v := a.attach()
	rests := func() bool {
		was := make(chan bool, 1)
		v.post(volumeInput{kind: inCall, call: func(int64) { was <- v.clock.rests }})
		return <-was
	}
	want, got := bytes.Repeat([]byte{7}, 64<<10), make([]byte, 64<<10)
	for range 2 {
		if err := block.WriteAt(v, want, 1<<20, 0); err != nil {
			t.Fatal(err)
		}
		if rests() {
			t.Error("it rests with a write that was not flushed")
		}
		c.eventually("it rests", rests)
		if s := v.Status(); s.Stall != "" {
			t.Errorf("at rest it stalls for %s", s.Stall)
		}
		clear(got)
		if err := block.ReadAt(v, got, 1<<20); err != nil || !bytes.Equal(got, want) {
			t.Errorf("after a rest: %v", err)
		}
	}
	c.eventually("it rests", rests)
	c.eventually("nobody tells it the time alone", func() bool {
		v.clock.Lock()
		defer v.clock.Unlock()
		return !v.clock.runs
	})
	r := &a.m.resting
	r.Lock()
	if !r.volumes[v] || r.end == nil {
		t.Errorf("nobody tells the time to those that rest: %v", r.volumes)
	}
	r.Unlock()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := b.m.Close(ctx); err != nil {
		t.Fatal(err)
	}
	c.awaitInSync(1)
	if rests() {
		t.Error("it rests without a replica")
	}
	r.Lock()
	if len(r.volumes) != 0 || r.end != nil {
		t.Errorf("still told to rest: %v", r.volumes)
	}
	r.Unlock()
	detach(t, a)
}
