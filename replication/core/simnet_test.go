package core

import (
	"maps"
	"slices"

	"github.com/tandem-storage/tandem/replication"
)

// What is between the simulated nodes: sessions, the control exchange, the kvdb.

func (n *simNode) connect(s Session) {
	w, c, peer := n.w, n.coord, n.w.nodes[s.To]
	if old := n.sess[s.To]; old != nil {
		old.closeThere()
	}
	peer.conn++
	conn := &simConn{
		coord: n, rep: peer, c: c, life: peer.life, member: s.To, sess: s.ID, id: peer.conn,
		there: &simQueue{owner: peer}, back: &simQueue{owner: n},
	}
	n.sess[s.To] = conn
	w.trace("%s -> %s hello term %d", n.id, peer.id, s.Term)
	w.later(conn.there, func() {
		if !peer.up || peer.life != conn.life || !n.reach(peer) || peer.mustStop(n) || peer.stop {
			conn.breakOff()
			return
		}
		if conn.broken {
			return
		}
		peer.conns[conn.id] = conn
		peer.rep.SetClock(peer.clock())
		peer.rep.Hello(conn.id, replication.Message{Type: replication.MsgHello, Session: s.ID, Term: s.Term}, s.Hello)
		peer.drainRep()
	})
}

// spoil damages the payload of a message from n to o, if that is what the way does.
func (n *simNode) spoil(o *simNode, msg *replication.Message) {
	if n.damage[o] && len(msg.Data) > 0 {
		msg.Data, msg.Status = nil, replication.StatusCRC
	}
}

// deliver brings a message to the replica. One that is lost breaks the connection.
func (conn *simConn) deliver(msg *replication.Message) {
	p := conn.rep
	switch {
	case !p.up || p.life != conn.life || conn.broken:
	case !conn.coord.reach(p):
		conn.breakOff()
	default:
		conn.coord.spoil(p, msg)
		p.rep.SetClock(p.clock())
		p.rep.Step(conn.id, msg)
		p.drainRep()
	}
}

// answer brings a message to the coordinator, late if the connection was given up.
func (conn *simConn) answer(msg *replication.Message) {
	if conn.late > 0 {
		conn.coord.w.after(conn.late, func() { conn.arrive(msg) })
		return
	}
	conn.arrive(msg)
}

func (conn *simConn) arrive(msg *replication.Message) {
	n, c := conn.coord, conn.c
	switch {
	case !n.alive(c) || conn.broken: // one that was given up may still bring answers
		return
	case !conn.rep.reach(n):
		conn.breakOff()
		return
	case msg.Type == replication.MsgHelloAck:
		c.SessionUp(n.clock(), conn.member, conn.sess, replication.HelloAck{Boot: conn.rep.boot, Credit: msg.Credit, Snapshots: true})
	case msg.Type == replication.MsgNack && msg.Seq == 0:
		c.SessionRefused(n.clock(), conn.member, conn.sess, msg.Status, msg.Term)
	default:
		conn.rep.spoil(n, msg)
		conn.noteGrant(msg)
		c.Step(n.clock(), conn.member, msg)
	}
	n.drainCoord()
}

// breakOff ends a connection: each end learns it some time.
func (conn *simConn) breakOff() {
	if conn.broken {
		return
	}
	conn.broken = true
	conn.closeBack()
	conn.closeThere()
}

// closeBack lets the coordinator's end learn that the connection is closed.
func (conn *simConn) closeBack() {
	n := conn.coord
	n.w.later(conn.back, func() {
		if !n.w.fifo && !conn.rep.reach(n) {
			n.w.after(20e6, conn.closeBack) // a link that is cut does not tell
			return
		}
		if n.alive(conn.c) {
			conn.c.SessionDown(n.clock(), conn.member, conn.sess)
			n.drainCoord()
		}
	})
}

// closeThere lets the replica's end learn that the connection is closed.
func (conn *simConn) closeThere() {
	p := conn.rep
	p.w.later(conn.there, func() {
		if p.up && p.life == conn.life && p.conns[conn.id] == conn {
			delete(p.conns, conn.id)
			p.rep.ConnClosed(conn.id)
			p.drainRep()
		}
	})
}

// control carries a unary request out; without an answer it fails by its deadline.
func (n *simNode) control(q Control) {
	w, c, peer := n.w, n.coord, n.w.nodes[q.To]
	life, done := peer.life, false
	finish := func(res ControlResult) {
		if !done && n.alive(c) {
			done = true
			if res.Seal != nil && res.Seal.Status == replication.StatusEpoch {
				n.refused = c
			}
			c.ControlDone(n.clock(), q.ID, res)
			n.drainCoord()
		}
	}
	answer := func(res ControlResult) {
		w.trace("%s <- %s %s", n.id, peer.id, describeResult(&res))
		w.once(n, func() {
			if peer.reach(n) {
				finish(res)
			}
		})
	}
	w.trace("%s -> %s %s", n.id, peer.id, w.describeControl(&q))
	w.once(peer, func() {
		if !n.reach(peer) || !peer.up || peer.life != life || peer.stop {
			return
		}
		if peer.mustStop(n) {
			answer(ControlResult{Failed: true})
			return
		}
		peer.nextCtl++
		peer.ctl[peer.nextCtl] = func(res ControlResult) {
			if q.Seal != nil {
				w.checkSeal(peer, q.Seal, res.Seal)
			}
			answer(res)
		}
		peer.rep.SetClock(peer.clock())
		switch {
		case q.Seal != nil:
			peer.rep.Seal(peer.nextCtl, *q.Seal)
		case q.Prepare != nil:
			peer.rep.Prepare(peer.nextCtl, *q.Prepare)
		case q.Commit != nil:
			peer.rep.Commit(peer.nextCtl, *q.Commit)
		default:
			res := peer.rep.DirtyMap(*q.Dirty)
			delete(peer.ctl, peer.nextCtl)
			answer(ControlResult{Dirty: &res})
		}
		peer.drainRep()
	})
	w.after(simControl, func() { finish(ControlResult{Failed: true}) })
}

// giveUp lets n's coordinator take a session for lost whose connection is alive: what is on the way in it arrives, at both
// ends, beside what the next one brings. It reports whether there was one.
func (n *simNode) giveUp() bool {
	if n.coord == nil {
		return false
	}
	i := n.w.rng.IntN(len(n.sess))
	conn := n.sess[i]
	if conn == nil {
		return false
	}
	conn.closeThere()
	conn.late = 1 + n.w.rng.Int64N(2*n.w.opts.RetryInterval) // the next session may be open by then
	n.sess[i] = nil
	n.coord.SessionDown(n.clock(), i, conn.sess)
	n.drainCoord()
	return true
}

func (w *simWorld) inSync() (s []replication.NodeID) {
	for _, n := range w.nodes {
		if w.cfg.InISR(n.rid) {
			s = append(s, n.id)
		}
	}
	return s
}

// resetConns ends every connection to n's replica. It reports whether there was one.
func (n *simNode) resetConns() bool {
	ids := slices.Sorted(maps.Keys(n.conns))
	for _, id := range ids {
		n.conns[id].breakOff()
	}
	return len(ids) > 0
}
