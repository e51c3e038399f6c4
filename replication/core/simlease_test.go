package core

import (
	"encoding/binary"
	"slices"

	"github.com/tandem-storage/tandem/replication"
)

// Read leases in the simulated world: the clocks of the nodes, consumers that go on reading
// from a coordinator that somebody else has taken over from, and what is asserted when a read is completed.

// simDrift is how far a clock may be off, in thousandths: two of them by 1/ClockError together.
const simDrift = 1000 / ClockError / 2

// wildDrift is the same where reads trust no clock.
const wildDrift = 300

// setClocks makes the nodes' clocks differ.
func (w *simWorld) setClocks() {
	for _, n := range w.nodes {
		drift := int64(simDrift)
		if w.opts.ConfirmReads {
			drift = wildDrift
		}
		n.offset, n.drift = w.rng.Int64N(1e15), []int64{-drift, 0, drift}[w.rng.IntN(3)]
		n.crash(false)
		n.start()
	}
}

// clock is what the node's clock shows. It goes on while the node is paused: a machine whose clock stops with it (R1) is not in
// the simulated world, docs/limitations.md says what that costs. The wall clock, which jumps, is told to nobody.
func (n *simNode) clock() int64 { return n.w.now + n.w.now/1000*n.drift + n.offset }

// wakeUp tells the replica the time that it waits for.
func (n *simNode) wakeUp() {
	if w := n.w; n.up && !n.paused && n.wake != 0 && n.clock() >= n.wake && (w.fifo || w.rng.IntN(4) == 0) {
		n.wake = 0
		n.rep.SetClock(n.clock())
		n.drainRep()
	}
}

// runLeases delivers what leases have in front of a queue.
func (w *simWorld) runLeases() {
	first := func(q *simQueue) bool { return q.fs[0].lease && !q.owner.paused }
	for i := slices.IndexFunc(w.ready, first); i >= 0; i = slices.IndexFunc(w.ready, first) {
		q := w.ready[i]
		e := q.fs[0]
		if q.fs = q.fs[1:]; len(q.fs) == 0 {
			w.ready = slices.Delete(w.ready, i, i+1)
		}
		e.f()
	}
}

// traceMessage traces what is told of a volume's work: not the leases, which are renewed all the time.
func (w *simWorld) traceMessage(way string, n, peer *simNode, msg *replication.Message) {
	if msg.Type != replication.MsgLease && msg.Type != replication.MsgGrant {
		w.trace("%s %s %s %s", n.id, way, peer.id, describe(msg))
	}
}

// noteLease and noteGrant keep the books of a session's lease beside the coordinator's own.
func (conn *simConn) noteLease(msg *replication.Message) {
	if msg.Type == replication.MsgLease {
		conn.asked = conn.coord.clock()
	}
}

func (conn *simConn) noteGrant(msg *replication.Message) {
	if w := conn.coord.w; msg.Type == replication.MsgGrant {
		conn.confirmed = conn.asked
		conn.leased = conn.asked + min(w.opts.LeaseTime, w.grant-w.grant/ClockError)
	}
}

// checkRead asserts I8 when n completes a read: it has a lease from every in-sync member in its session with
// that, and none has promised a later term. Or every one has confirmed the term when it was asked after the read began.
func (w *simWorld) checkRead(n *simNode, io *IO) {
	w.seen["reads"]++
	for i, m := range w.nodes {
		if !n.coord.isr.has(i) {
			continue
		}
		if w.opts.ConfirmReads {
			if conn := n.sess[i]; conn == nil || conn.confirmed < io.born {
				w.fail("I8: %s completes a read that %s has not confirmed", n.id, m.id)
			}
			continue
		}
		if conn := n.sess[i]; conn == nil || n.clock() >= conn.leased {
			w.fail("I8: %s completes a read without a lease from %s", n.id, m.id)
		}
		if m.disk.meta.Term > n.coord.term {
			w.fail("I8: %s completes a read in term %d, %s has promised term %d", n.id, n.coord.term, m.id, m.disk.meta.Term)
		}
	}
}

// replace cuts the node where the volume is attached off, also from the kvdb or not, and somebody else takes over at once; the
// process of his replica may have begun just now.
func (w *simWorld) replace(n *simNode) bool {
	if n != w.client.at {
		return false
	}
	for _, m := range w.nodes {
		n.cutTo[m], m.cutTo[n] = m != n, m != n
		if m != n && m.up && w.rng.IntN(2) == 0 {
			m.crash(false)
			m.start()
		}
	}
	n.kvCut = n.kvCut || w.rng.IntN(2) == 0 // or it learns soon enough that it was replaced
	w.client.lost()
	w.takeover()
	return true
}

// simStray is a read of a consumer whose coordinator is not the one that the history follows.
type simStray struct {
	coord  *Coordinator
	sector int
	may    map[uint64]bool // values that the sector had, or may have had, since the read began; nil if any
}

// stray lets somebody read from a coordinator that was left behind.
func (w *simWorld) stray() {
	n := w.nodes[w.rng.IntN(len(w.nodes))]
	if !n.up || n.paused || n.coord == nil || n == w.client.at || w.rng.IntN(4) != 0 {
		return
	}
	w.strays = slices.DeleteFunc(w.strays, func(s *simStray) bool {
		return !slices.ContainsFunc(w.nodes, func(m *simNode) bool { return m.coord == s.coord })
	})
	if len(w.strays) >= 4 {
		return
	}
	k, h := w.rng.IntN(n.sectors()), &w.history
	s := &simStray{coord: n.coord, sector: k}
	if !h.unsure[k] && !w.owed {
		s.may = map[uint64]bool{h.known[k]: true}
		for v := range h.maybe[k] {
			s.may[v] = true
		}
	}
	w.strays = append(w.strays, s)
	io := w.client.newIO()
	io.Kind, io.Off, io.Len, io.User = replication.MsgRead, simSectors[k]*sector, sector, s
	w.trace("a consumer left behind reads sector %d from %s", k, n.id)
	n.coord.Propose(n.clock(), io)
	n.drainCoord()
}

// strayMay notes a value that a sector may have from now on.
func (w *simWorld) strayMay(k int, v uint64) {
	for _, s := range w.strays {
		if s.sector == k && s.may != nil {
			s.may[v] = true
		}
	}
}

// strayDone checks the answer: what was read was there at some time since the read began.
func (w *simWorld) strayDone(s *simStray, d Completion) {
	i := slices.Index(w.strays, s)
	if i < 0 {
		return
	}
	w.strays = slices.Delete(w.strays, i, i+1)
	if d.Err != nil {
		return
	}
	w.seen["reads of consumers left behind"]++
	if got := binary.LittleEndian.Uint64(d.IO.Data); s.may != nil && !s.may[got] && !w.owed {
		w.fail("G4: a consumer left behind read %d from sector %d, which had one of %v meanwhile", got, s.sector, s.may)
	}
}
