package core

import (
	"bytes"
	"crypto/sha256"
	"hash"

	"github.com/tandem-storage/tandem/replication"
)

// Verify (protocol.md 9.4): the in-sync replicas are compared by hash, piece by piece. Each checks what it reads against
// its checksums, so that it is the scrub of each as well. Nothing is locked for that: what differs, or is not answered,
// may only have been written meanwhile. It is asked for again under the range lock; what differs then is healed, and asked for once more.
// That is the answer that counts: each piece enters the digest of each replica once, in order.

// mostLooks is how often a heal looks into a piece that is not the same, though nothing in it is known to be beyond healing: what was good
// when it looked may rot before the answer that counts.
const mostLooks = 3

// verifyRun is one pass over the volume.
type verifyRun struct {
	rate   int64
	bucket bucket
	cursor int64
	piece  *copyJob // on its way

	// Of the piece at cursor.
	lock  bool // it is to be asked for under its range lock: it was not the same without
	looks int  // so often it was not the same under the lock, and a heal has looked into it

	from  replication.Epoch
	sides mask        // members that were in sync in every piece
	dark  mask        // members that did not answer for every piece
	sums  []hash.Hash // by member, of the hashes of the pieces that count

	healed, recomputed int64
	lost, differs      int64
}

// VerifyResult is what a complete pass found. Two sides with equal digests had the same in each block at the moment at which it was
// read: blocks are read one after the other while they are written, so that a digest is of no moment of the whole volume.
type VerifyResult struct {
	From, To           replication.Epoch // of the configuration when it began and when it ended
	Size               int64             // bytes
	Healed, Recomputed int64             // sectors
	Lost, Differs      int64             // sectors that were left so, see Damage
	Sides              []VerifySide      // the replicas that were in sync in every piece
}

// VerifySide is one replica in a pass.
type VerifySide struct {
	Replica replication.ReplicaID
	// Digest is the SHA-256 of the hashes (as in MsgHash) of all ResyncBlocks in order; nil if some could not be read. A volume that
	// is not written has the same one in every pass.
	Digest []byte
}

// Equal reports whether at least two sides were read in full, and all to the same.
func (r *VerifyResult) Equal() bool {
	for _, s := range r.Sides {
		if s.Digest == nil || !bytes.Equal(s.Digest, r.Sides[0].Digest) {
			return false
		}
	}
	return len(r.Sides) > 1
}

// VerifyProgress is how far a verify has come.
type VerifyProgress struct {
	Done, Size         int64 // bytes
	Healed, Recomputed int64 // sectors, since it began
}

// StartVerify begins a pass over the volume that compares at most rate bytes a second; 0 is no limit. One that runs goes on with rate.
func (c *Coordinator) StartVerify(now, rate int64) {
	c.now = now
	if c.over() {
		return
	}
	if c.verify == nil {
		c.verify = &verifyRun{from: c.cfg.Epoch, sides: ^mask(0), sums: make([]hash.Hash, len(c.m))}
		for i := range c.m {
			c.verify.sums[i] = sha256.New()
		}
		c.event(Event{Kind: EventVerifyStarted})
	}
	c.verify.rate = rate
	c.progress()
}

// StopVerify ends the pass, if there is one, before its end.
func (c *Coordinator) StopVerify(now int64) {
	c.now = now
	if c.verify != nil {
		c.verify = nil
		c.event(Event{Kind: EventVerifyStopped})
	}
}

// Verify returns the progress of the verify, nil if there is none.
func (c *Coordinator) Verify() *VerifyProgress {
	v := c.verify
	if v == nil {
		return nil
	}
	return &VerifyProgress{Done: v.cursor, Size: c.cfg.Size, Healed: v.healed, Recomputed: v.recomputed}
}

// Verified returns what the last complete pass found, nil if there was none.
func (c *Coordinator) Verified() *VerifyResult { return c.verified }

// advanceVerify starts the next piece if nothing more urgent is under way.
func (c *Coordinator) advanceVerify() {
	v := c.verify
	if v == nil || v.piece != nil || c.healing != nil || len(c.suspicions) > 0 || !c.mayHeal() ||
		c.join != nil || c.reconcile.Count() > 0 || c.now < c.copyAt {
		return
	}
	if v.cursor >= c.cfg.Size {
		c.verify, c.verified = nil, c.resultOf(v)
		c.event(Event{Kind: EventVerified, Blocks: int(v.healed)})
		return
	}
	if !v.bucket.take(c.now, v.rate, max(v.rate, copySpan), copySpan) {
		return
	}
	v.piece = &copyJob{src: c.prefer(c.isr), verify: true, hashes: make([][]byte, len(c.m))}
	v.piece.dst = c.isr &^ bit(v.piece.src)
	v.piece.io = IO{Off: v.cursor, Len: min(copySpan, c.cfg.Size-v.cursor), slot: -1, from: -1, born: c.now, copy: v.piece}
	if v.lock {
		c.startJob(v.piece)
	} else {
		c.askHashes(v.piece)
	}
}

// compareAll decides about a piece that every member has answered.
func (c *Coordinator) compareAll(j *copyJob) {
	v := c.verify
	if v == nil || v.piece != j {
		return // it was stopped meanwhile
	}
	harmed := c.harmedIn(j.io.Off, j.io.Len)
	same := !j.refused && !harmed
	for i := range c.m {
		same = same && (!j.dst.has(i) || bytes.Equal(j.hashes[i], j.hashes[j.src]))
	}
	switch {
	case same, v.looks > 0 && harmed, v.looks == mostLooks:
		c.countPiece(v, j)
	case !v.lock:
		v.lock = true
	case c.suspect(j.io.Off, j.io.Len):
		v.looks++
	}
}

// countPiece enters what the members answered into their digests, and moves on.
func (c *Coordinator) countPiece(v *verifyRun, j *copyJob) {
	v.sides &= j.members()
	for i, h := range j.hashes {
		if h == nil {
			v.dark |= bit(i)
		} else {
			v.sums[i].Write(h)
		}
	}
	for off, h := range c.harms {
		switch {
		case off < j.io.Off || off >= j.io.Off+j.io.Len:
		case h == harmLost:
			v.lost++
			v.dark = ^mask(0) // nobody could read it when it was looked into, though all may now
		default:
			v.differs++
		}
	}
	v.cursor, v.lock, v.looks = j.io.Off+j.io.Len, false, 0
}

// endPiece ends a piece, well or not.
func (c *Coordinator) endPiece(j *copyJob) {
	if v := c.verify; v != nil && v.piece == j {
		v.piece = nil
	}
}

// verifyAgain lets the verify come back to what could not be decided.
func (c *Coordinator) verifyAgain() {
	if c.verify != nil {
		c.verify.looks = 0
	}
}

// resultOf is what a pass that has come to its end found.
func (c *Coordinator) resultOf(v *verifyRun) *VerifyResult {
	r := &VerifyResult{
		From: v.from, To: c.cfg.Epoch, Size: c.cfg.Size, Healed: v.healed, Recomputed: v.recomputed, Lost: v.lost, Differs: v.differs,
	}
	for i, m := range c.m {
		switch {
		case !v.sides.has(i):
		case v.dark.has(i):
			r.Sides = append(r.Sides, VerifySide{Replica: m.id})
		default:
			r.Sides = append(r.Sides, VerifySide{Replica: m.id, Digest: v.sums[i].Sum(nil)})
		}
	}
	return r
}
