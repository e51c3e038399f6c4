package core

import (
	"bytes"
	"crypto/sha256"
	"slices"

	"github.com/tandem-storage/tandem/datapath/block"
	"github.com/tandem-storage/tandem/replication"
)

// copySpan is how much is compared and copied under one range lock, in bytes.
const copySpan = 1 << 20

// copyTries is how many copies in a row may arrive damaged before the member has
// to leave.
const copyTries = 3

// directSpans is how many spans are copied without being compared after one of which
// most differed. The next is compared again.
const directSpans = 16

// zeroHash is the hash of a ResyncBlock of zeroes.
var zeroHash = func() []byte {
	h := sha256.Sum256(make([]byte, replication.ResyncBlock))
	return h[:replication.HashLen]
}()

// copyJob brings some members to the content of another one in a span, under the
// span's range lock: nothing else is in flight there (I15).
type copyJob struct {
	io        IO // the lock
	src       int
	dst       mask
	reconcile bool // for D
	heal      bool // for a suspicion
	verify    bool // only compares; has its lock only if it was not the same without
	direct    bool // copies without comparing
	hashes    [][]byte
	open      int // requests without answer
	failed    bool
	refused   bool // verify: somebody could not answer

	// Sector by sector, see heal.go.
	exam     exam
	found    [][]byte // by member
	first    [][]byte // found, before anything was rewritten
	rewrites []rewrite
}

func (j *copyJob) members() mask { return j.dst | bit(j.src) }

// flags of a job's writes. A reconciled block may be read at once, and what was
// read must not turn into something else in a power cut: the value that lost may
// be stable on the destination already. So the one that won is made stable too.
func (j *copyJob) flags() replication.MessageFlags {
	if j.reconcile || j.heal {
		return replication.FlagFUA
	}
	return 0
}

// ask is what a copyRequest wants to know.
type ask uint8

const (
	askHash  ask = iota + 1
	askRead      // a piece from the source
	askWrite     // a piece to a destination
	askFlush     // the joiner's flush before it joins
	askExam      // what is stored, sector by sector
	askCut       // a snapshot
)

// answer is the type of the message that answers k.
func (k ask) answer() replication.MessageType {
	switch k {
	case askHash:
		return replication.MsgHash
	case askRead:
		return replication.MsgData
	case askExam:
		return replication.MsgFindings
	default:
		return replication.MsgAck
	}
}

// copyRequest is one message of a copy that waits for its answer.
type copyRequest struct {
	job  *copyJob
	to   int
	kind ask
	off  int64
	n    int64
	dst  mask // askRead: who needs the piece
	sent int64
}

// request sends a message that is answered by copyAnswer.
func (c *Coordinator) request(r copyRequest, msg replication.Message) {
	c.lastSeq++
	msg.Seq = c.lastSeq
	r.sent = c.now
	c.reqs[msg.Seq] = r
	if r.job != nil {
		r.job.open++
	}
	c.send(r.to, msg)
}

// copying reports whether a copy of the joiner is under way or waits for its range.
func (c *Coordinator) copying() bool { return len(c.jobs) > 0 }

// unreconciled reports whether a range touches blocks of D.
func (c *Coordinator) unreconciled(off, n int64) bool {
	if c.reconcile.Count() == 0 {
		return false
	}
	b := c.reconcile.Next(int(off / replication.ResyncBlock))
	return b >= 0 && int64(b)*replication.ResyncBlock < off+n
}

// fillCopies starts as many spans of the joiner as may run.
func (c *Coordinator) fillCopies() {
	j := c.join
	src := c.prefer(c.isr & c.openSet())
	if src < 0 || j.failed != "" || c.holding() {
		return
	}
	for j.todo.Count() > 0 {
		b := j.todo.Next(j.cursor)
		if b < 0 {
			if len(c.jobs) > 0 {
				return // the rest is in those
			}
			j.cursor = 0
			continue
		}
		if !c.budget(c.o.ResyncRate) {
			return
		}
		j.cursor = c.startSpan(j.todo, b, src, bit(j.q), false)
	}
}

// mayReconcile reports whether spans of D may be copied now, and the authority.
func (c *Coordinator) mayReconcile() (src int, ok bool) {
	if c.reconcile.Count() == 0 || c.stage != stageServing || c.holding() || c.holdAcks || c.joining() || !c.openSet().covers(c.isr) || c.now < c.copyAt {
		return -1, false
	}
	return c.prefer(c.isr), true
}

// reconcileReads starts the spans of D that a read waits for.
func (c *Coordinator) reconcileReads() {
	src, ok := c.mayReconcile()
	if !ok {
		return
	}
	dst := c.isr &^ bit(src)
	for _, io := range c.waiting {
		if io.Kind != replication.MsgRead || io.copy != nil {
			continue
		}
		for b := c.reconcile.Next(int(io.Off / replication.ResyncBlock)); b >= 0 && int64(b)*replication.ResyncBlock < io.Off+io.Len; {
			next := min(b+int(c.unit()/replication.ResyncBlock), c.blocks)
			if !c.spanTaken(b) {
				next = c.startSpan(c.reconcile, b, src, dst, true)
			}
			b = c.reconcile.Next(next)
		}
	}
}

// sweep reconciles the rest of D: no resync, which shares no rate.
func (c *Coordinator) sweep() {
	src, ok := c.mayReconcile()
	if !ok {
		return
	}
	dst := c.isr &^ bit(src)
	for {
		b := c.reconcile.Next(c.cursor)
		if b < 0 {
			if len(c.jobs) > 0 || c.cursor == 0 {
				return
			}
			c.cursor = 0
			continue
		}
		if c.spanTaken(b) {
			c.cursor = b + 1
			continue
		}
		if !c.budget(0) {
			return
		}
		c.cursor = c.startSpan(c.reconcile, b, src, dst, true)
	}
}

// spanTaken reports whether a job already has block b.
func (c *Coordinator) spanTaken(b int) bool {
	off := int64(b) * replication.ResyncBlock
	for _, j := range c.jobs {
		if j.io.Off <= off && off < j.io.Off+j.io.Len {
			return true
		}
	}
	return false
}

// startSpan makes a job of the run of marked blocks that begins at b, and returns
// the first block behind it. The job waits until nothing overlapping is in flight.
func (c *Coordinator) startSpan(marks *Bitmap, b, src int, dst mask, rec bool) int {
	end, most := b+1, int(c.unit()/replication.ResyncBlock)
	for end < marks.Len() && end-b < most && marks.Test(end) && !c.spanTaken(end) {
		end++
	}
	off := int64(b) * replication.ResyncBlock
	j := &copyJob{src: src, dst: dst, reconcile: rec, hashes: make([][]byte, len(c.m))}
	j.io = IO{Off: off, Len: min(int64(end)*replication.ResyncBlock, c.cfg.Size) - off, slot: -1, from: -1, born: c.now, copy: j}
	if !rec && c.join.direct > 0 {
		c.join.direct--
		j.direct = true
	}
	c.startJob(j)
	return end
}

// startJob sends a job on its way, when it has its range.
func (c *Coordinator) startJob(j *copyJob) {
	c.jobs = append(c.jobs, j)
	if c.dispatchable(&j.io) {
		c.dispatch(&j.io)
	} else {
		c.waiting = append(c.waiting, &j.io)
	}
}

// startCopy begins the work of a job that has its range.
func (c *Coordinator) startCopy(j *copyJob) {
	switch {
	case j.failed, !c.openSet().covers(j.members()), j.heal && c.unreconciled(j.io.Off, j.io.Len):
		j.failed = true
		c.copyStep(j)
	case j.heal, j.reconcile && c.frozen(j.io.Off, j.io.Len):
		j.exam = examAsked
		c.examine(j)
	case j.direct:
		for off := int64(0); off < j.io.Len; off += copyMost {
			c.copyPiece(j, copyPiece{off: j.io.Off + off, n: min(copyMost, j.io.Len-off), dst: j.dst})
		}
	default:
		c.askHashes(j)
	}
}

// askHashes asks every member of a job for its hashes.
func (c *Coordinator) askHashes(j *copyJob) {
	for i := range c.m {
		if j.members().has(i) {
			c.request(copyRequest{job: j, to: i, kind: askHash},
				replication.Message{Type: replication.MsgHashReq, Offset: j.io.Off, Length: j.io.Len})
		}
	}
}

// copyAnswer takes the answer of a copy's request.
func (c *Coordinator) copyAnswer(r copyRequest, msg *replication.Message) {
	delete(c.reqs, msg.Seq)
	if r.kind == askCut {
		c.cutAnswer(r.to, msg)
		return
	}
	bad := msg.Type != r.kind.answer() || msg.Status != replication.StatusOK
	if r.kind == askFlush {
		if j := c.join; j != nil && j.q == r.to {
			if bad {
				j.fail("flush of the joiner failed")
			} else {
				j.flushed = true
			}
		}
		return
	}
	j := r.job
	j.open--
	if !bad {
		c.m[r.to].damaged = 0
	}
	switch {
	case bad:
		c.copyRefused(r, msg.Status)
	case r.kind == askHash:
		blocks := int((j.io.Len + replication.ResyncBlock - 1) / replication.ResyncBlock)
		if len(msg.Data) != blocks*replication.HashLen {
			j.failed = true
			break
		}
		j.hashes[r.to] = bytes.Clone(msg.Data)
	case r.kind == askExam:
		if int64(len(msg.Data)) != j.io.Len/sector*replication.FindingLen {
			j.failed = true
			break
		}
		j.found[r.to] = bytes.Clone(msg.Data)
	case r.kind == askRead:
		if int64(len(msg.Data)) != r.n || j.exam != examNone && !j.asFound(r.to, r.off, msg.Data) {
			j.failed = true
			break
		}
		if !j.failed {
			c.writeCopy(r, msg)
		}
	default: // askWrite: it is there
	}
	if j.open == 0 && !j.failed {
		switch {
		case j.verify:
			c.compareAll(j)
		case j.exam != examNone:
			c.examStep(j)
		case r.kind == askHash:
			c.compare(j)
		}
	}
	c.copyStep(j)
}

// writeCopy sends what was read to those that need it. Blocks of zeroes, which a job
// that did not compare may meet, are sent as such: they take no room on the way and
// none on a disk that has none for them.
func (c *Coordinator) writeCopy(r copyRequest, msg *replication.Message) {
	for off := int64(0); off < r.n; {
		zero := zeroes(msg.Data, off)
		end := off + replication.ResyncBlock
		for end < r.n && zeroes(msg.Data, end) == zero {
			end += replication.ResyncBlock
		}
		end = min(end, r.n)
		w := replication.Message{Type: replication.MsgResyncWrite, Flags: r.job.flags(), Offset: r.off + off, Length: end - off}
		if !zero {
			w.Data, w.Buf = msg.Data[off:end], msg.Buf
			if msg.Sums != nil {
				w.Sums = msg.Sums[off/block.SectorSize : (end+block.SectorSize-1)/block.SectorSize]
			}
		}
		for i := range c.m {
			if r.dst.has(i) {
				c.request(copyRequest{job: r.job, to: i, kind: askWrite, off: w.Offset, n: w.Length}, w)
			}
		}
		off = end
	}
}

// zeroes reports whether the ResyncBlock of data that begins at off has nothing else.
func zeroes(data []byte, off int64) bool {
	b := data[off:min(off+replication.ResyncBlock, int64(len(data)))]
	return b[0] == 0 && bytes.Equal(b[1:], b[:len(b)-1])
}

func (c *Coordinator) copyRefused(r copyRequest, st replication.Status) {
	if j := r.job; st == replication.StatusIO && r.kind == askHash && (j.verify || j.reconcile) {
		j.refused, j.exam = true, examDue
		return
	}
	r.job.failed = true
	switch {
	case st == replication.StatusCRC: // tried again, but reads may wait for it
		if m := c.m[r.to]; m.damaged < copyTries {
			m.damaged++
		} else {
			c.requestEvict(r.to, corrupting)
		}
	case st == replication.StatusState && r.kind == askExam: // it has joined and does not know it yet
	case st == replication.StatusIO && (r.kind == askHash || r.kind == askRead) && c.isr.has(r.to):
		c.suspect(r.job.io.Off, r.job.io.Len)
	case st == replication.StatusIO && r.kind == askHash:
		c.requestEvict(r.to, unreadable)
	default:
		c.requestEvict(r.to, refusal(st))
	}
}

// copyStep ends a job that has nothing more to wait for. The range stays locked
// until every copy on the way is answered or its session is gone.
func (c *Coordinator) copyStep(j *copyJob) {
	if j.open > 0 {
		return
	}
	if j.io.slot >= 0 {
		c.flight.remove(&j.io)
	}
	c.endJob(j)
}

// endJob forgets a job and, if it went well, its marks.
func (c *Coordinator) endJob(j *copyJob) {
	c.jobs = slices.DeleteFunc(c.jobs, func(k *copyJob) bool { return k == j })
	c.retry = true
	c.pace.copied = c.now
	if j.heal {
		c.endHeal(j)
		return
	}
	if j.failed {
		c.copyAt = c.now + c.o.RetryInterval
	}
	if j.verify {
		c.endPiece(j)
	}
	if j.failed || j.verify {
		return
	}
	marks := c.reconcile
	if !j.reconcile {
		if c.join == nil || !j.dst.has(c.join.q) {
			return
		}
		marks = c.join.todo
	}
	for b := j.io.Off / replication.ResyncBlock; b*replication.ResyncBlock < j.io.Off+j.io.Len; b++ {
		marks.Clear(int(b))
	}
	if j.reconcile && marks.Count() == 0 {
		c.wroteSeq = true // a flush settles what the activity logs have
	}
	if !j.reconcile {
		c.event(Event{Kind: EventResyncProgress, Replica: c.m[c.join.q].id, Dirty: marks.Count()})
	}
}

// abandon ends a failed job that never got its range.
func (c *Coordinator) abandon(j *copyJob) { c.endJob(j) }

// failRequests ends what waits for an answer of member i.
func (c *Coordinator) failRequests(i int) {
	var seqs []replication.Seq
	for s, r := range c.reqs {
		if r.to == i {
			seqs = append(seqs, s)
		}
	}
	slices.Sort(seqs)
	for _, s := range seqs {
		r := c.reqs[s]
		delete(c.reqs, s)
		if r.kind == askCut {
			c.cutAnswer(i, nil)
		}
		if r.job != nil {
			r.job.open--
			r.job.failed = true
			c.copyStep(r.job)
		}
	}
	for _, j := range c.jobs {
		if j.dst.has(i) || j.src == i {
			j.failed = true
		}
	}
}
