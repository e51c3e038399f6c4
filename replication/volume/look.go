package volume

import (
	"time"

	"go.uber.org/zap"
)

// lookInterval is how often, at most, a replica that has something to do looks
// whether its pool has room.
const lookInterval = int64(time.Second)

// look notes what the dirty maps say, and finds out whether the pool has room: the replica tells it in its answers, and one
// that nobody asks anything needs no room. It says so, once, if blocks have no checksums.
func (h *host) look(t int64) {
	if h.looked != 0 && t-h.looked < lookInterval {
		return
	}
	h.looked = t
	lacks := h.core.Lacks()
	h.lacks.Store(&lacks)
	if off := h.st.ChecksumsOff(); off != nil && !h.noSums {
		h.noSums = true
		h.lg.Warn("no checksums kept, damage on the disk is not noticed", zap.NamedError("reason", off))
	}
	crowded, err := h.st.Crowded()
	if err != nil || crowded == h.crowded {
		return // whoever owns the pool says that it cannot be read
	}
	h.crowded = crowded
	h.core.SetCrowded(crowded)
	if crowded {
		h.lg.Warn("pool nearly full, replica asks to leave the in-sync set")
	} else {
		h.lg.Info("pool has room again, replica may join the in-sync set")
	}
}

// tellDamage says that the disk returned something else than was written, once a lookInterval
// at most: a client may read the same block all the time.
func (h *host) tellDamage(err error) {
	if t := now(); h.damage == 0 || t-h.damage >= lookInterval {
		h.damage = t
		h.lg.Error("stored data damaged, read from this replica refused", zap.Error(err))
	}
}
