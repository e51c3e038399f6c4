package core

import (
	"encoding/binary"
	"maps"
	"slices"

	"github.com/tandem-storage/tandem/replication"
)

// simHistory checks what the consumer sees, block by block (protocol.md 16.3).
type simHistory struct {
	known   [simBlocks]uint64          // value that every read must show if nothing else is possible
	maybe   [simBlocks]map[uint64]int  // values that may have taken effect, or may yet, and when they were proposed
	flushed [simBlocks]uint64          // value covered by the last flush
	acks    [simBlocks]int             // writes acknowledged
	floor   [simBlocks]int             // of them, those covered by a flush
	since   [simBlocks]map[uint64]bool // values that a power cut of everything may bring back
	clock   int                        // of proposals
	unsure  [simBlocks]bool            // known may have been lost and nobody has looked since
}

func (h *simHistory) init() {
	for i := range h.maybe {
		h.maybe[i] = map[uint64]int{}
		h.since[i] = map[uint64]bool{}
	}
}

// forgive allows what a power cut of every in-sync replica may take away.
func (h *simHistory) forgive() {
	for s := range simBlocks {
		for v := range h.since[s] {
			h.maybe[s][v] = 0
		}
		h.maybe[s][h.known[s]], h.maybe[s][h.flushed[s]] = 0, 0
		h.unsure[s] = true
	}
}

func (h *simHistory) proposed(k int, v uint64) {
	h.clock++
	h.maybe[k][v] = h.clock
}

// proposed notes that a value may take effect.
func (w *simWorld) proposed(k int, v uint64) {
	w.history.proposed(k, v)
	w.strayMay(k, v)
}

// mayBe reports whether a value may be there.
func (h *simHistory) mayBe(k int, v uint64) bool {
	_, open := h.maybe[k][v]
	return open || v == h.known[k]
}

// simClient is the consumer: it keeps a few requests in flight, never two on a
// sector when one of them writes, so that each sector's history is sequential.
type simClient struct {
	w      *simWorld
	at     *simNode
	flight []*simOp
	tag    uint64
	free   []*IO // released: used again, so that a reference that the core kept does harm
	coming bool  // it is on its way to the coordinator that has followed its own
	quiet  bool  // no new requests: it is about to detach

	unanswered []*simOp // modifications in flight when the process of its coordinator died
}

type simOp struct {
	io     *IO
	sector int // the first one
	n      int // how many; 0 for a flush
	tag    uint64
	kind   replication.MessageType    // of what is sent again: io is somebody else's by then
	flags  replication.MessageFlags   // of it
	covers [simBlocks]uint64          // flush: values known at its start
	acks   [simBlocks]int             // flush: writes acknowledged at its start
	unsure [simBlocks]bool            // flush: it may cover something else than is known
	old    [simBlocks]map[uint64]bool // flush: values that cannot come back once it is done
}

func (c *simClient) newIO() *IO {
	if n := len(c.free); n > 0 {
		io := c.free[n-1]
		c.free = c.free[:n-1]
		*io = IO{Data: io.Data[:sector]}
		return io
	}
	return &IO{Data: make([]byte, simLongest*sector)[:sector]}
}

// act starts a request at random.
func (c *simClient) act() {
	w := c.w
	if c.at == nil || c.at.coord == nil || c.at.paused || c.quiet || c.coming || len(c.flight) >= 4 {
		return
	}
	if w.rng.IntN(8) == 0 {
		c.flush()
		return
	}
	k, n := w.rng.IntN(c.at.sectors()), 1
	if k == 0 {
		n += w.rng.IntN(simLongest)
	}
	switch w.rng.IntN(10) {
	case 0, 1, 2, 3:
		c.readRange(k, n)
	case 4:
		c.zeroRange(k, n, replication.MsgTrim)
	case 5:
		c.zeroRange(k, n, replication.MsgZero)
	default:
		var f replication.MessageFlags
		if w.rng.IntN(5) == 0 {
			f = replication.FlagFUA
		}
		c.writeRange(k, n, f)
	}
}

// simLongest is the most sectors that a request has: the first ones are neighbours.
const simLongest = 2

// busy reports whether a request is in flight in n sectors from k on.
func (c *simClient) busy(k, n int) bool {
	return slices.ContainsFunc(c.flight, func(o *simOp) bool { return o.sector < k+n && k < o.sector+o.n })
}

func (c *simClient) flush() {
	if slices.ContainsFunc(c.flight, func(o *simOp) bool { return o.io.Kind == replication.MsgFlush }) {
		return
	}
	h := &c.w.history
	o := &simOp{sector: -1, io: c.newIO(), covers: h.known, acks: h.acks, unsure: h.unsure}
	o.io.Kind = replication.MsgFlush
	for s := range simBlocks {
		o.old[s] = maps.Clone(h.since[s])
	}
	c.propose(o)
}

func (c *simClient) op(k, n int, t replication.MessageType) *simOp {
	o := &simOp{sector: k, n: n, io: c.newIO()}
	o.io.Kind, o.io.Off, o.io.Len = t, simSectors[k]*sector, int64(n)*sector
	o.io.Data = o.io.Data[:o.io.Len]
	return o
}

func (c *simClient) read(k int)                              { c.readRange(k, 1) }
func (c *simClient) zero(k int, t replication.MessageType)   { c.zeroRange(k, 1, t) }
func (c *simClient) write(k int, f replication.MessageFlags) { c.writeRange(k, 1, f) }

func (c *simClient) readRange(k, n int) {
	if !c.busy(k, n) {
		c.propose(c.op(k, n, replication.MsgRead))
	}
}

func (c *simClient) zeroRange(k, n int, t replication.MessageType) {
	if !c.busy(k, n) {
		c.modify(c.op(k, n, t))
	}
}

func (c *simClient) writeRange(k, n int, f replication.MessageFlags) {
	if c.busy(k, n) {
		return
	}
	c.tag++
	o := c.op(k, n, replication.MsgWrite)
	o.tag, o.io.Flags = c.tag, f
	c.modify(o)
}

// modify proposes a modification: o's tag in each of its sectors.
func (c *simClient) modify(o *simOp) {
	for i := range o.n {
		if o.io.Kind == replication.MsgWrite {
			binary.LittleEndian.PutUint64(o.io.Data[i*sector:], o.tag)
		}
		c.w.proposed(o.sector+i, o.tag)
	}
	c.propose(o)
}

func (c *simClient) propose(o *simOp) {
	o.io.User = o
	c.flight = append(c.flight, o)
	c.w.trace("consumer: %v sector %d tag %d flags %d", o.io.Kind, o.sector, o.tag, o.io.Flags)
	c.at.coord.Propose(c.at.clock(), o.io)
	c.at.drainCoord()
}

// await notes what was not answered.
func (c *simClient) await() {
	for _, o := range c.flight {
		if o.io.Kind != replication.MsgRead && o.io.Kind != replication.MsgFlush {
			o.kind, o.flags = o.io.Kind, o.io.Flags
			c.unanswered = append(c.unanswered, o)
		}
	}
}

// again sends that once more, as a client that connects again does.
func (c *simClient) again() {
	ops := c.unanswered
	c.unanswered = nil
	for _, was := range ops {
		o := c.op(was.sector, was.n, was.kind)
		o.tag, o.io.Flags = was.tag, was.flags
		c.modify(o)
	}
}

// lost ends the consumer with its coordinator.
func (c *simClient) lost() { c.at, c.flight, c.quiet, c.coming = nil, nil, false, false }

// released takes a request back; its data are spoilt.
func (c *simClient) released(io *IO) {
	if c.busyIO(io) {
		c.w.fail("a request was released before it was completed")
	}
	for i := 0; i < len(io.Data); i += sector {
		binary.LittleEndian.PutUint64(io.Data[i:], 1<<63|c.w.rng.Uint64())
	}
	if slices.Contains(c.free, io) {
		c.w.fail("a request was released twice")
	}
	c.free = append(c.free, io)
}

func (c *simClient) busyIO(io *IO) bool {
	return slices.ContainsFunc(c.flight, func(o *simOp) bool { return o.io == io })
}

// done checks an answer.
func (c *simClient) done(n *simNode, d Completion) {
	if d.Err == nil && d.IO.Kind == replication.MsgRead {
		c.w.checkRead(n, d.IO)
	}
	if s, ok := d.IO.User.(*simStray); ok {
		c.w.strayDone(s, d)
		return
	}
	if f, ok := d.IO.User.(func(error)); ok { // of consumers of their own
		f(d.Err)
		return
	}
	o, ok := d.IO.User.(*simOp)
	i := slices.Index(c.flight, o)
	if !ok || c.at != n || i < 0 {
		return
	}
	c.flight = slices.Delete(c.flight, i, i+1)
	w, h, k := c.w, &c.w.history, o.sector
	if d.Err != nil {
		w.trace("consumer: %v sector %d tag %d failed: %v", o.io.Kind, k, o.tag, d.Err)
		w.seen["error: "+d.Err.Error()]++
		return // its outcome stays possible
	}
	w.trace("consumer: %v sector %d tag %d done", o.io.Kind, k, o.tag)
	if n.doomed != nil && n.doomed == n.coord {
		w.fail("I19: %s goes on with a consumer, and what that was told is lost", n.id)
	}
	w.checkAck(n, o)
	w.confirmed(n, o.io)
	switch {
	case o.io.Kind == replication.MsgFlush:
		for s := range simBlocks {
			if o.unsure[s] {
				continue // it made stable what there was, and nobody knows what
			}
			if o.acks[s] >= h.floor[s] {
				h.flushed[s], h.floor[s] = o.covers[s], o.acks[s]
			}
			for v := range o.old[s] {
				// Tags are unique, the 0 of a trim is not. What is unsure may be what the flush has made stable.
				if v != h.known[s] && v != 0 && !o.unsure[s] {
					delete(h.since[s], v)
				}
			}
		}
	case o.io.Kind == replication.MsgRead:
		for i := range o.n {
			w.hasRead(k+i, binary.LittleEndian.Uint64(o.io.Data[i*sector:]))
		}
	default:
		for i := range o.n {
			h.hasWritten(k+i, o)
		}
	}
}

// hasRead checks what the consumer read.
func (w *simWorld) hasRead(k int, got uint64) {
	h := &w.history
	at, open := h.maybe[k][got]
	if !open && got != h.known[k] {
		w.fail("read of sector %d returned %d, want %d or one of %v", k, got, h.known[k], h.maybe[k])
	}
	h.known[k], h.unsure[k] = got, false
	h.since[k][got] = true
	for v, t := range h.maybe[k] {
		if open && t < at {
			h.since[k][v] = true // it came before what is there now; what came after is decided against
		}
	}
	clear(h.maybe[k]) // what was undecided is decided now (I16)
}

// hasWritten notes that a modification was acknowledged.
func (h *simHistory) hasWritten(k int, o *simOp) {
	for v := range h.maybe[k] {
		h.since[k][v] = true
	}
	h.since[k][o.tag] = true
	h.known[k], h.unsure[k] = o.tag, false
	h.acks[k]++
	clear(h.maybe[k])
	if o.io.Flags&replication.FlagFUA != 0 {
		h.flushed[k], h.floor[k] = o.tag, h.acks[k]
		clear(h.since[k])
	}
}

// lossy reports whether n's disk may miss completed writes.
func (n *simNode) lossy() bool {
	d := &n.disk
	return d.meta.Lossy || !d.clean && d.boot != n.boot || d.meta.State == replication.MemberFaulted || n.up && n.rep.faulted
}

// checkAck asserts I3, I5 and the protection when a write or flush is acknowledged.
func (w *simWorld) checkAck(n *simNode, o *simOp) {
	if o.io.Kind == replication.MsgRead || n.coord == nil || !n.coord.mine(w.truth) {
		return // a coordinator that another one followed answers nobody who looks
	}
	w.checkPromise(n, o)
	for _, m := range w.nodes {
		if !w.truth.InISR(m.rid) {
			continue
		}
		if m.lossy() || o.n == 0 {
			continue
		}
		for _, s := range simSectors[o.sector : o.sector+o.n] {
			if m.disk.data[s] != o.tag {
				w.fail("I3: write %d acknowledged, %s has %d", o.tag, m.id, m.disk.data[s])
			}
			if o.io.Flags&replication.FlagFUA != 0 && m.disk.stable[s] != o.tag {
				w.fail("I5: write %d acknowledged with FUA, stable on %s is %d", o.tag, m.id, m.disk.stable[s])
			}
		}
	}
}

// checkChange asserts I1 and I2 on a new configuration.
func (w *simWorld) checkChange(_ *simNode, n *replication.Config) {
	if n.Epoch != w.truth.Epoch+1 {
		w.fail("I1: epoch %d after %d", n.Epoch, w.truth.Epoch)
	}
	if len(n.ISR) == 0 {
		w.fail("I2: empty in-sync set in epoch %d", n.Epoch)
	}
	for _, r := range n.ISR {
		if !w.truth.InISR(r) && w.truth.Members[r].State != replication.MemberSyncing {
			w.fail("I2: replica %v joined from state %s", r, w.truth.Members[r].State)
		}
		for _, m := range w.nodes {
			if m.rid == r && !w.truth.InISR(r) {
				m.joinedAt = w.now
			}
		}
	}
}

// kept reports whether some in-sync replica has everything that was acknowledged since an instant: it has not lost
// power since then, or since it joined.
func (w *simWorld) kept(since int64) bool {
	return slices.ContainsFunc(w.nodes, func(n *simNode) bool {
		return w.truth.InISR(n.rid) && (n.powerAt == 0 || n.powerAt < max(since, n.joinedAt))
	})
}

// checkContent asserts I4 and I5 when a configuration comes into force: each of its
// in-sync replicas has what was acknowledged, and has stable what was flushed.
func (w *simWorld) checkContent() {
	h := &w.history
	if w.owed {
		return
	}
	for _, n := range w.nodes {
		if !w.truth.InISR(n.rid) || n.lossy() {
			continue
		}
		for k, s := range simSectors {
			v, st := n.disk.data[s], n.disk.stable[s]
			if v != h.known[k] && len(h.maybe[k]) == 0 && !h.unsure[k] {
				w.fail("I4: %s is in sync and has %d in sector %d, acknowledged is %d", n.id, v, k, h.known[k])
			}
			// Tags grow, so a smaller one is older; the 0 of a trim has no age.
			if !h.unsure[k] && st != 0 && st < h.flushed[k] {
				w.fail("I5: %s is in sync and stable in sector %d is %d, flushed was %d", n.id, k, st, h.flushed[k])
			}
		}
	}
}

// checkPersist asserts that promises are kept (I6, I22).
func (w *simWorld) checkPersist(n *simNode, m *ReplicaMeta) {
	if old := &n.disk.meta; m.Term < old.Term || m.Epoch < old.Epoch {
		w.fail("I6: %s goes back from term %d epoch %d to term %d epoch %d", n.id, old.Term, old.Epoch, m.Term, m.Epoch)
	}
}

// checkSubmit asserts that nothing overlaps in the kernel (I15, I17).
func (w *simWorld) checkSubmit(n *simNode, io *LocalIO) {
	if modifies(io.Kind) {
		w.checkLogged(n, io)
	}
	w.checkBounds(n, io)
	for _, o := range n.flight {
		if modifies(io.Kind) && modifies(o.Kind) && io.Off < o.Off+o.Len && o.Off < io.Off+io.Len {
			w.fail("I15: %v and %v overlap on %s", o.Kind, io.Kind, n.id)
		}
	}
}

// whole reports whether n's replica, if it is in sync, has everything that was acknowledged and not forgiven: by what happened
// to it, whatever its superblock says.
func (n *simNode) whole() bool {
	return n.disk.meta.State != replication.MemberFaulted && !(n.up && n.rep.faulted) &&
		(n.powerAt == 0 || n.powerAt < max(n.joinedAt, n.w.forgiven))
}

// checkSolid notes when the last in-sync replica with everything is gone.
func (w *simWorld) checkSolid(again bool) {
	was := w.solid
	w.solid = slices.ContainsFunc(w.nodes, func(n *simNode) bool { return w.truth.InISR(n.rid) && n.whole() })
	if !w.solid && (was || again) {
		w.owed = true
	}
}

// hopeless reports whether every in-sync replica has a failed disk.
func (w *simWorld) hopeless() bool {
	return !slices.ContainsFunc(w.nodes, func(n *simNode) bool {
		return w.truth.InISR(n.rid) && n.disk.meta.State != replication.MemberFaulted && (!n.up || !n.rep.faulted)
	})
}

// inLog reports whether n's activity log covers a sector: what is durable, and what its process tells.
func (n *simNode) inLog(s int64) bool {
	g := uint32(s * sector / replication.RegionSize)
	return n.disk.log.stored.has(g) && (!n.up || n.rep.logLost || slices.Contains(n.rep.active(), g))
}

// marks reports whether n's dirty map for q covers a sector: what is durable, and what its process has. A replica that
// does not know yet that it is in sync begins a map with everything.
func (n *simNode) marks(q replication.ReplicaID, s int64) bool {
	b, d := int(s*sector/replication.ResyncBlock), &n.disk
	m, kept := d.dirty[q], slices.Contains(d.meta.Missing, q)
	durable := kept && (m == nil || m.Test(b) || d.log.stored.has(uint32(s*sector/replication.RegionSize))) ||
		!kept && d.meta.State != replication.MemberInSync
	if !n.up {
		return durable
	}
	has := n.rep.dirty[q]
	return durable && (has != nil && has.Test(b) || has == nil && n.rep.meta.State != replication.MemberInSync)
}

// checkLogged asserts I11 for what is submitted. A copy to a replica that is not in sync needs no log.
func (w *simWorld) checkLogged(n *simNode, io *LocalIO) {
	if io.Kind == replication.MsgResyncWrite && n.rep.meta.State == replication.MemberSyncing {
		return
	}
	for off := io.Off; off < io.Off+io.Len; off += sector {
		if g := uint32(off / replication.RegionSize); !n.disk.log.stored.has(g) {
			w.fail("I11: %s writes to region %d, and its log does not tell", n.id, g)
		}
	}
}

// checkRetire asserts I13 and I14 for a region that leaves the log of a replica that is in sync: what it has there is
// stable, and its dirty maps tell durably what they tell.
func (w *simWorld) checkRetire(n *simNode, g uint32) {
	if n.rep.meta.State != replication.MemberInSync || n.rep.regions[g].state != regionOut {
		return // or it comes back at once
	}
	for _, io := range n.flight {
		if first, last := regionsOf(io.Off, max(io.Len, 1)); modifies(io.Kind) && first <= g && g <= last {
			w.fail("I13: %s retires region %d, and %v in it has not ended", n.id, g, io.Kind)
		}
	}
	for _, s := range simSectors {
		if uint32(s*sector/replication.RegionSize) != g {
			continue
		}
		if n.disk.data[s] != n.disk.stable[s] {
			w.fail("I13: %s retires region %d, sector %d has %d, stable is %d", n.id, g, s, n.disk.data[s], n.disk.stable[s])
		}
		for q, m := range n.rep.dirty {
			b := int(s * sector / replication.ResyncBlock)
			if d := n.disk.dirty[q]; m.Test(b) && d != nil && !d.Test(b) {
				w.fail("I14: %s retires region %d, the dirty map for %v is not durable", n.id, g, q)
			}
		}
	}
}

// invariants asserts after each step what must always hold.
func (w *simWorld) invariants() {
	w.checkSolid(false)
	w.checkSizes()
	serving := 0
	for _, n := range w.nodes {
		if n.up && n.coord != nil && n.coord.stage == stageServing && n.coord.cfg.Epoch == w.truth.Epoch {
			serving++
		}
	}
	if serving > 1 {
		w.fail("I1: two coordinators in epoch %d", w.truth.Epoch)
	}
	for _, s := range simSectors {
		for _, r := range w.nodes {
			if !w.truth.InISR(r.rid) {
				continue
			}
			for _, q := range w.nodes {
				if r == q || w.buggy || q.disk.data[s] == r.disk.data[s] || r.inLog(s) || q.inLog(s) || ruined(s, r, q) {
					continue
				}
				switch {
				case w.truth.InISR(q.rid):
					w.fail("I12: %s and %s differ in sector %d and no activity log says so", r.id, q.id, s)
				case w.truth.Members[q.rid].State == replication.MemberFaulted || q.disk.meta.Epoch == 0: // begins anew
				case !r.marks(q.rid, s):
					w.fail("I14: %s lacks sector %d of %s and nobody knows", q.id, s, r.id)
				}
			}
		}
	}
}

// compare asserts that all replicas are identical and show what was acknowledged (G5).
func (w *simWorld) compare() {
	for k, s := range simSectors {
		v := w.nodes[0].disk.data[s]
		for _, n := range w.nodes {
			if n.disk.data[s] != v {
				w.fail("G5: replicas differ in sector %d: %d on %s, %d on %s", k, v, w.nodes[0].id, n.disk.data[s], n.id)
			}
		}
		if !w.history.mayBe(k, v) {
			w.fail("G1: sector %d has %d, want %d or one of %v", k, v, w.history.known[k], w.history.maybe[k])
		}
	}
}
