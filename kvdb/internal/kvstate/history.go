package kvstate

import (
	"slices"
	"sort"

	"github.com/tandem-storage/tandem/kvdb"
)

// maxHistoryBytes bounds the values that the history holds on to beyond the
// live keys, whatever the number of events that is to be kept.
const maxHistoryBytes = 64 << 20

// history is the tail of all changes, whole revisions only, oldest first.
type history struct {
	keep    int           // events kept; up to twice as many are held
	dropped kvdb.Revision // every change after it is in events
	events  []kvdb.Event
	bytes   int
}

func (h *history) add(events []kvdb.Event) {
	h.events = append(h.events, events...)
	for _, e := range events {
		h.bytes += eventSize(e)
	}
	if len(h.events) > 2*h.keep {
		h.dropThrough(h.events[len(h.events)-h.keep-1].KV.Mod)
	}
	if h.bytes > maxHistoryBytes && len(h.events) > 1 {
		h.dropThrough(h.events[len(h.events)/2].KV.Mod)
	}
}

// dropThrough forgets the changes up to and including rev.
func (h *history) dropThrough(rev kvdb.Revision) {
	if rev <= h.dropped {
		return
	}
	n := h.after(rev)
	for _, e := range h.events[:n] {
		h.bytes -= eventSize(e)
	}
	h.events = slices.Clone(h.events[n:])
	h.dropped = rev
}

// after is the index of the first event with a revision greater than rev.
func (h *history) after(rev kvdb.Revision) int {
	return sort.Search(len(h.events), func(i int) bool { return h.events[i].KV.Mod > rev })
}

func eventSize(e kvdb.Event) int { return len(e.KV.Key) + len(e.KV.Value) }
