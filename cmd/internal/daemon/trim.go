package daemon

import (
	"context"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

const (
	trimEvery = time.Minute
	// trimIdle is how much a process that is at rest allocates in trimEvery, bytes. Who allocates more needs the room again soon.
	trimIdle = 64 << 20
	// trimLeast is what is worth a collection, bytes.
	trimLeast = 8 << 20
)

// heap is what is known of the memory of this process, bytes.
type heap struct {
	allocated uint64 // ever
	free      uint64 // held, and in use by nothing: what the runtime keeps for later
	objects   uint64 // that are alive, or dead and not collected
}

// worthTrimming reports whether memory is to be given back: the process has allocated little since before, and holds a good deal more than it needs.
// live is what was alive after the last time.
func (h heap) worthTrimming(before heap, live uint64) bool {
	garbage := h.objects - min(live, h.objects)
	return h.allocated-before.allocated < trimIdle && h.free+garbage >= max(trimLeast, live/4)
}

// trim gives memory back to the machine that many attaches at once, a resync or a busy consumer needed, when the process is at rest: the runtime would
// keep as much again as is in use. Until ctx ends.
func (d *daemon) trim(ctx context.Context) {
	tick := time.NewTicker(trimEvery)
	defer tick.Stop()
	before, live := readHeap(), uint64(0)
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		now := readHeap()
		if now.worthTrimming(before, live) {
			debug.FreeOSMemory()
			now = readHeap()
			live = now.objects
		}
		before = now
	}
}

func readHeap() heap {
	s := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}, {Name: "/memory/classes/heap/free:bytes"}, {Name: "/memory/classes/heap/objects:bytes"}}
	metrics.Read(s)
	return heap{allocated: s[0].Value.Uint64(), free: s[1].Value.Uint64(), objects: s[2].Value.Uint64()}
}
