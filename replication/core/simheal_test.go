package core

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/tandem-storage/tandem/replication"
)

// spoil makes a sector of n's disk one that was not written so: one that rots, or whose checksum does, or one that the replica vouches for.
func (w *simWorld) spoil(how string, n *simNode, which, what string) {
	var k int
	v := uint64(1)
	if _, err := fmt.Sscan(which, &k); err != nil {
		w.fail("which sector: %v", err)
	}
	if what != "" {
		if _, err := fmt.Sscan(what, &v); err != nil {
			w.fail("with which content: %v", err)
		}
	}
	switch d := &n.disk; how {
	case "rot":
		d.bad[simSectors[k]] = 1<<62 | v
	case "rot-sum":
		d.bad[simSectors[k]] = d.data[simSectors[k]]
	default:
		w.buggy = true
		d.data[simSectors[k]] = 1<<61 | v
	}
}

// simSums are the hashes of sectors by what is in them, for all worlds.
var simSums sync.Map

// examine is what a replica finds in each sector.
func (d *simDisk) examine(io *LocalIO) []byte {
	var out []byte
	for off := io.Off; off < io.Off+io.Len; off += sector {
		s := off / sector
		_, bad := d.bad[s]
		switch {
		case d.failRead:
			out = append(out, byte(replication.FindingUnreadable))
			out = append(out, make([]byte, replication.HashLen)...)
			continue
		case bad:
			out = append(out, byte(replication.FindingDamaged))
		default:
			out = append(out, byte(replication.FindingGood))
		}
		v := uint64(0)
		if slices.Contains(simSectors[:], s) {
			v = d.onDisk(s)
		}
		known, ok := simSums.Load(v)
		if !ok {
			p := make([]byte, sector)
			binary.LittleEndian.PutUint64(p, v)
			h := sha256.Sum256(p)
			known, _ = simSums.LoadOrStore(v, h[:replication.HashLen])
		}
		out = append(out, known.([]byte)...)
	}
	return out
}

// verifySome begins and ends a verify now and then.
func (w *simWorld) verifySome() {
	n := w.client.at
	if n == nil || n.coord == nil || n.paused || w.rng.IntN(300) != 0 {
		return
	}
	if n.coord.Verify() != nil && w.rng.IntN(2) == 0 {
		n.coord.StopVerify(n.clock())
	} else {
		n.coord.StartVerify(n.clock(), []int64{0, 64 << 20}[w.rng.IntN(2)])
	}
	n.drainCoord()
}

// checkDigests asserts that replicas in sync have equal digests at the end of a pass, unless it tells of sectors that it left as they were, and returns
// the beginnings of them.
func (w *simWorld) checkDigests(r *VerifyResult) string {
	var out strings.Builder
	dark := false
	for _, s := range r.Sides {
		dark = dark || s.Digest == nil
		fmt.Fprintf(&out, " %.4x", s.Digest)
	}
	unlucky := false // a read of one piece failed each time that a verify looked, and the disk was well each time that a heal did
	for _, times := range w.failedOnce {
		unlucky = unlucky || times >= mostLooks
	}
	switch {
	case dark && unlucky && r.Lost+r.Differs == 0:
		w.seen["verified, reads failed each time"]++
	case len(r.Sides) > 1 && r.Equal() != (r.Lost+r.Differs == 0):
		w.fail("9.4: digests%s with %d sectors lost and %d that differ", &out, r.Lost, r.Differs)
	case r.Lost > 0 && !dark: // one that differs may be damaged besides
		w.fail("9.4: digests%s with %d sectors lost", &out, r.Lost)
	case len(r.Sides) > 1 && r.Equal():
		w.seen["verified, digests equal"]++
	case r.Differs > 0:
		w.seen["verified, digests differ"]++
	}
	return out.String()
}

// verified reports whether the attachment that is to be the last one has gone through the whole volume since the faults ended and the
// last replica came into the in-sync set: a pass leaves those out that are not in it.
func (w *simWorld) verified(c *Coordinator) bool {
	if w.verifying != c || w.verifyingIn != w.truth.Epoch {
		w.verifying, w.verifyingIn = c, w.truth.Epoch
		c.StopVerify(c.now)
		c.StartVerify(c.now, 0)
		w.client.at.drainCoord()
	}
	return c.Verify() == nil && c.healing == nil && len(c.suspicions) == 0
}
