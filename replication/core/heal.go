package core

import (
	"bytes"
	"crypto/sha256"
	"slices"

	"github.com/tandem-storage/tandem/replication"
)

// Damage (protocol.md 9.4). What an in-sync replica does not read as it was written is rewritten from another
// one that has it right. Somebody who reads finds it: a consumer, a copy, a verify. What to do is then decided sector
// by sector, under the range lock: what each replica has stored, and whether it vouches for it.

// exam is how far a job has come with that.
type exam uint8

const (
	examNone  exam = iota
	examDue        // somebody cannot answer with hashes
	examAsked      // what is stored?
	examHeals      // it is being rewritten
	examProof      // is it right now?
)

// harm is what is wrong with a sector that cannot be healed.
type harm uint8

const (
	harmNone    harm = iota
	harmLost         // no in-sync replica has it right
	harmDiffers      // they vouch for different contents: a bug, and nobody knows which is right
)

// mostHarm is how many such sectors are known one by one.
const mostHarm = 4096

// suspicion is a range in which an in-sync replica did not read well.
type suspicion struct{ off, n int64 }

// mostSuspicions is how many wait. One that is forgotten comes again with the next read.
const mostSuspicions = 64

// rewrite is a run of sectors that some members get from another one.
type rewrite struct {
	off, n int64
	src    int
	dst    mask
	asIs   bool // all have the same and a checksum of something else: that is written anew
}

// Damage is what is known of sectors that are not as they should be. Offsets are in bytes, ascending.
type Damage struct {
	Lost    []int64 // no in-sync replica has it right: reads fail
	Differs []int64 // in-sync replicas differ and each vouches for what it has: reads fail
	More    int     // sectors of either kind that are not listed
}

// Damage tells which sectors cannot be healed. Each is well again when it is written.
func (c *Coordinator) Damage() (d Damage) {
	for off, h := range c.harms {
		if h == harmLost {
			d.Lost = append(d.Lost, off)
		} else {
			d.Differs = append(d.Differs, off)
		}
	}
	slices.Sort(d.Lost)
	slices.Sort(d.Differs)
	d.More = c.harmMore
	return d
}

// Healed is how many sectors of each member were rewritten because they did not read well.
func (c *Coordinator) Healed() []int64 {
	n := make([]int64, len(c.m))
	for i, m := range c.m {
		n[i] = m.healed
	}
	return n
}

// suspect notes that an in-sync replica did not read a range well, and reports whether that will be looked into.
func (c *Coordinator) suspect(off, n int64) bool {
	known := slices.ContainsFunc(c.suspicions, func(s suspicion) bool { return s.off <= off && off+n <= s.off+s.n })
	if !known && len(c.suspicions) < mostSuspicions {
		c.suspicions, known = append(c.suspicions, suspicion{off, n}), true
	}
	return known
}

// mayHeal reports whether a job that decides for all in-sync members may begin.
func (c *Coordinator) mayHeal() bool {
	return c.stage == stageServing && c.change == nil && !c.holdAcks && !c.detachReq && c.openSet().covers(c.isr)
}

// nextHeal looks into the oldest suspicion, one at a time.
func (c *Coordinator) nextHeal() {
	for len(c.suspicions) > 0 && c.healing == nil && c.now >= c.healAt && c.mayHeal() {
		s := c.suspicions[0]
		c.suspicions = slices.Delete(c.suspicions, 0, 1)
		src := c.prefer(c.isr)
		c.healing = &copyJob{src: src, dst: c.isr &^ bit(src), heal: true}
		c.healing.io = IO{Off: s.off, Len: s.n, slot: -1, from: -1, born: c.now, copy: c.healing}
		c.startJob(c.healing)
	}
}

// examine asks every member of a job what it has stored.
func (c *Coordinator) examine(j *copyJob) {
	j.found = make([][]byte, len(c.m))
	for i := range c.m {
		if j.members().has(i) {
			c.request(copyRequest{job: j, to: i, kind: askExam},
				replication.Message{Type: replication.MsgExamine, Offset: j.io.Off, Length: j.io.Len})
		}
	}
}

// examStep goes on when everything that a job has asked for is answered.
func (c *Coordinator) examStep(j *copyJob) {
	switch j.exam {
	case examDue:
		j.exam = examAsked
		c.examine(j)
	case examAsked:
		c.judge(j)
	case examHeals:
		j.exam, j.first = examProof, j.found
		c.examine(j)
	case examProof:
		c.prove(j)
	case examNone:
	}
}

// finding is what member i found in the kth sector, and its hash.
func finding(found [][]byte, i, k int) (replication.Finding, []byte) {
	p := found[i][k*replication.FindingLen:][:replication.FindingLen]
	return replication.Finding(p[0]), p[1:]
}

// judge decides what to do about each sector of a job, and begins with it.
func (c *Coordinator) judge(j *copyJob) {
	for k := range int(j.io.Len / sector) {
		r := c.judgeSector(j, k)
		if r.dst == 0 {
			continue
		}
		if n := len(j.rewrites); n > 0 {
			if p := &j.rewrites[n-1]; p.off+p.n == r.off && p.src == r.src && p.dst == r.dst && p.asIs == r.asIs && p.n < copyMost {
				p.n += r.n
				continue
			}
		}
		j.rewrites = append(j.rewrites, r)
	}
	for _, r := range j.rewrites {
		j.exam = examHeals
		msg := replication.Message{Type: replication.MsgRead, Offset: r.off, Length: r.n}
		if r.asIs {
			msg.Flags = replication.FlagAsIs
		}
		c.request(copyRequest{job: j, to: r.src, kind: askRead, off: r.off, n: r.n, dst: r.dst}, msg)
	}
}

// judgeSector is the table of protocol.md 9.4. What has no checksum counts as good: the only copy may be that one.
func (c *Coordinator) judgeSector(j *copyJob, k int) rewrite {
	off := j.io.Off + int64(k)*sector
	var good, other, unread mask
	alike := true // all are damaged in the same way
	_, first := finding(j.found, j.src, k)
	for i := range c.m {
		if !j.members().has(i) {
			continue
		}
		f, h := finding(j.found, i, k)
		if f == replication.FindingGood {
			good |= bit(i)
		}
		if f == replication.FindingUnreadable {
			unread |= bit(i)
		}
		alike = alike && f == replication.FindingDamaged && bytes.Equal(h, first)
	}
	src := j.src
	if !good.has(src) {
		src = c.prefer(good)
	}
	for i := range c.m {
		if !good.has(i) {
			continue
		}
		_, want := finding(j.found, src, k)
		if _, h := finding(j.found, i, k); !bytes.Equal(h, want) {
			other |= bit(i)
		}
	}
	switch {
	case good == j.members() && other == 0:
		delete(c.harms, off)
	case c.harms[off] == harmDiffers: // whatever has happened to one of them since
	case good == 0 && alike && j.dst != 0:
		return rewrite{off: off, n: sector, src: j.src, dst: j.members(), asIs: true}
	case good == 0 && unread != 0 && j.reconcile:
		// They may differ, and a disk may return it again: it cannot be called the same (I16).
		j.failed = true
		for i := range c.m {
			if unread.has(i) && unread != j.members() {
				c.requestEvict(i, unreadable)
			}
		}
	case good == 0:
		c.harmed(off, harmLost)
	case other != 0 && !j.reconcile:
		c.harmed(off, harmDiffers)
	default:
		return rewrite{off: off, n: sector, src: src, dst: j.members()&^good | other}
	}
	return rewrite{}
}

// harmed takes note of a sector that cannot be healed.
func (c *Coordinator) harmed(off int64, h harm) {
	was := c.harms[off]
	c.healAt = c.now + c.o.RetryInterval // it will be found again
	switch {
	case was == h:
		return
	case was == harmNone && len(c.harms) >= mostHarm:
		c.harmMore++
	default:
		c.harms[off] = h
	}
	kind := EventLost
	if h == harmDiffers {
		kind = EventDiffers
	}
	if n := len(c.ready.Events); n > 0 {
		if e := &c.ready.Events[n-1]; e.Kind == kind && e.Off+int64(e.Blocks)*sector == off {
			e.Blocks++
			return
		}
	}
	c.event(Event{Kind: kind, Off: off, Blocks: 1})
}

// frozen reports whether a range touches a sector that replicas vouch for with different contents.
func (c *Coordinator) frozen(off, n int64) bool {
	if len(c.harms) == 0 {
		return false
	}
	for end := off + n; off < end; off += sector {
		if c.harms[off] == harmDiffers {
			return true
		}
	}
	return false
}

// harmedIn reports whether a range touches a sector that could not be healed.
func (c *Coordinator) harmedIn(off, n int64) bool {
	if len(c.harms) == 0 {
		return false
	}
	for end := off + n; off < end; off += sector {
		if c.harms[off] != harmNone {
			return true
		}
	}
	return false
}

// overwritten forgets harm that every in-sync replica has overwritten.
func (c *Coordinator) overwritten(io *IO) {
	for off := range c.harms {
		if io.Off <= off && off < io.Off+io.Len {
			delete(c.harms, off)
		}
	}
}

// asFound reports whether what was read is what member i was found to have.
func (j *copyJob) asFound(i int, off int64, data []byte) bool {
	for k := int((off - j.io.Off) / sector); len(data) > 0; k++ {
		h := sha256.Sum256(data[:sector])
		if _, want := finding(j.found, i, k); !bytes.Equal(h[:replication.HashLen], want) {
			return false
		}
		data = data[sector:]
	}
	return true
}

// prove looks whether what was rewritten is right now. A member of which it is not cannot be read, and has to leave.
func (c *Coordinator) prove(j *copyJob) {
	healed := make([]int64, len(c.m))
	var recomputed int64
	for _, r := range j.rewrites {
		for off := r.off; off < r.off+r.n; off += sector {
			k := int((off - j.io.Off) / sector)
			_, want := finding(j.first, r.src, k)
			for i := range c.m {
				if !r.dst.has(i) {
					continue
				}
				if f, h := finding(j.found, i, k); f != replication.FindingGood || !bytes.Equal(h, want) {
					j.failed = true
					c.requestEvict(i, unreadable)
				} else if was, _ := finding(j.first, i, k); was != replication.FindingGood && !r.asIs {
					healed[i]++
				}
			}
			if r.asIs {
				recomputed++
			}
			delete(c.harms, off)
		}
	}
	for i, m := range c.m {
		if healed[i] > 0 {
			m.healed += healed[i]
			c.event(Event{Kind: EventHealed, Replica: m.id, Off: j.rewrites[0].off, Blocks: int(healed[i])})
		}
		if c.verify != nil {
			c.verify.healed += healed[i]
		}
	}
	if recomputed > 0 {
		c.event(Event{Kind: EventRecomputed, Off: j.rewrites[0].off, Blocks: int(recomputed)})
		if c.verify != nil {
			c.verify.recomputed += recomputed
		}
	}
}

// endHeal ends the job that looked into a suspicion.
func (c *Coordinator) endHeal(j *copyJob) {
	c.healing = nil
	if len(j.rewrites) > 0 {
		c.wroteSeq = true // a flush settles what the activity logs have
	}
	if j.failed {
		c.healAt = c.now + c.o.RetryInterval
		c.verifyAgain()
	}
}
