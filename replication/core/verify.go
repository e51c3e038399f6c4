package core

import (
	"bytes"
)

// Verify (protocol.md 9.4): the in-sync replicas are compared by hash, piece by piece. Each checks what it reads against
// its checksums, so that it is the scrub of each as well. Nothing is locked for that: what differs, or is not answered,
// may only have been written meanwhile, and is looked at under the range lock.

// verifyRun is one pass over the volume.
type verifyRun struct {
	rate   int64
	bucket bucket
	cursor int64
	piece  *copyJob // on its way

	healed, recomputed int64
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
		c.verify = &verifyRun{}
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

// advanceVerify starts the next piece if nothing more urgent is under way.
func (c *Coordinator) advanceVerify() {
	v := c.verify
	if v == nil || v.piece != nil || c.healing != nil || len(c.suspicions) > 0 || !c.mayHeal() ||
		c.join != nil || c.reconcile.Count() > 0 || c.now < c.copyAt {
		return
	}
	if v.cursor >= c.cfg.Size {
		c.verify = nil
		c.event(Event{Kind: EventVerified, Blocks: int(v.healed)})
		return
	}
	if !v.bucket.take(c.now, v.rate, max(v.rate, copySpan), copySpan) {
		return
	}
	v.piece = &copyJob{src: c.prefer(c.isr), verify: true, hashes: make([][]byte, len(c.m))}
	v.piece.dst = c.isr &^ bit(v.piece.src)
	v.piece.io = IO{Off: v.cursor, Len: min(copySpan, c.cfg.Size-v.cursor), slot: -1, from: -1}
	c.askHashes(v.piece)
}

// compareAll is the end of a piece that every member has answered.
func (c *Coordinator) compareAll(j *copyJob) {
	same := !j.refused && !c.harmedIn(j.io.Off, j.io.Len)
	for i := range c.m {
		same = same && (!j.dst.has(i) || bytes.Equal(j.hashes[i], j.hashes[j.src]))
	}
	if !same {
		c.suspect(j.io.Off, j.io.Len)
	}
}

// endPiece ends a piece, well or not.
func (c *Coordinator) endPiece(j *copyJob) {
	v := c.verify
	if v == nil || v.piece != j {
		return // it was stopped meanwhile
	}
	v.piece = nil
	if !j.failed {
		v.cursor = j.io.Off + j.io.Len
	}
}

// verifyAgain lets the verify come back to what could not be decided.
func (c *Coordinator) verifyAgain(off int64) {
	if v := c.verify; v != nil && off < v.cursor {
		v.cursor = off
	}
}
