package core

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/tandem-storage/tandem/replication"
)

// The simulator runs the state machines of several nodes under a scheduler of
// its own: disks, connections, kvdb and time are simulated, and everything that
// happens follows from the seed. It is a small one: crashes of nodes, power cuts,
// lost connections, unreachable kvdb, takeovers, over a few blocks.

var (
	simSeed  = flag.Uint64("sim.seed", 0, "run only this seed")
	simSeeds = flag.Uint64("sim.seeds", 300, "number of seeds")
	simLog   = flag.Bool("sim.log", false, "print what happens")
)

const (
	simSize   = 3 * replication.RegionSize / 2
	simStep   = int64(1e6) // ns, about, between two happenings
	simBlocks = 6          // sectors that are written
)

// simSectors are the sectors in use: neighbours, same ResyncBlock, other regions.
var simSectors = [simBlocks]int64{0, 1, 16, 17, 1024, 1500}

type simWorld struct {
	t    *testing.T
	seed uint64
	rng  *rand.Rand
	now  int64

	vol    replication.VolumeID
	cfg    *replication.Config // the kvdb
	rev    uint64
	kvDown bool

	nodes  []*simNode
	queues map[string][]func() // FIFO channels; heads are eligible
	keys   []string

	client  *simClient
	history simHistory
	counter map[string]int
}

type simNode struct {
	w       *simWorld
	id      replication.NodeID
	rid     replication.ReplicaID
	up      bool
	boot    replication.BootID
	life    int // incarnation of the process
	disk    simDisk
	rep     *Replica
	coord   *Coordinator
	crep    map[ConnID]simEnd
	sess    []simConn // coordinator's sessions by member
	nextCtl uint64
	ctl     map[uint64]func(ControlResult)
	conn    ConnID
	cutTo   map[*simNode]bool
}

type simEnd struct {
	coord  *simNode
	life   int
	member int
	sess   replication.SessionID
}

type simConn struct {
	sess replication.SessionID
	conn ConnID
	node *simNode
	life int
}

// simDisk has the sectors of a replica: what was written and what is stable.
type simDisk struct {
	data, stable map[int64]uint64 // sector -> tag; absent is zero
	meta         ReplicaMeta
}

func newSimWorld(t *testing.T, seed uint64, n int) *simWorld {
	w := &simWorld{t: t, seed: seed, rng: rand.New(rand.NewPCG(seed, 17)), queues: map[string][]func(){}, counter: map[string]int{}}
	w.vol = replication.VolumeID{1}
	w.cfg = &replication.Config{
		Version: 1, Volume: w.vol, Epoch: 1, Gen: 1, Phase: replication.PhaseDetached, Size: simSize,
		Members: map[replication.ReplicaID]replication.Member{}, Protection: replication.MaxAvailability,
		History: []replication.EpochRecord{{Epoch: 1, Gen: 1}},
	}
	w.rev = 1
	for i := range n {
		node := &simNode{w: w, id: replication.NodeID(fmt.Sprint("n", i)), rid: replication.ReplicaID{byte(i + 1)}, cutTo: map[*simNode]bool{}}
		node.disk = simDisk{data: map[int64]uint64{}, stable: map[int64]uint64{}}
		node.disk.meta = ReplicaMeta{Epoch: 1, Gen: 1, State: replication.MemberInSync, Clean: true}
		w.nodes = append(w.nodes, node)
		w.cfg.ISR = append(w.cfg.ISR, node.rid)
		w.cfg.Members[node.rid] = replication.Member{Node: node.id, Domain: replication.DomainID(node.id), State: replication.MemberInSync}
		node.disk.meta.ISR = w.cfg.ISR
		node.boot = replication.BootID(w.uuid())
	}
	for _, node := range w.nodes {
		node.start()
	}
	w.history.init()
	w.client = &simClient{w: w}
	return w
}

func (w *simWorld) uuid() replication.UUID {
	var u replication.UUID
	binary.LittleEndian.PutUint64(u[:], w.rng.Uint64())
	binary.LittleEndian.PutUint64(u[8:], w.rng.Uint64())
	return u
}

func (w *simWorld) logf(f string, a ...any) {
	if *simLog {
		fmt.Printf("%8.3f "+f+"\n", append([]any{float64(w.now) / 1e9}, a...)...)
	}
}

func (w *simWorld) fail(f string, a ...any) {
	w.t.Fatalf("seed %d: "+f+"\nreplay: go test ./replication/core -run TestSim -sim.seed=%d -sim.log", append(append([]any{w.seed}, a...), w.seed)...)
}

// later queues f on a FIFO channel.
func (w *simWorld) later(key string, f func()) {
	if len(w.queues[key]) == 0 {
		w.keys = append(w.keys, key)
	}
	w.queues[key] = append(w.queues[key], f)
}

// unordered queues f on a channel of its own.
func (w *simWorld) unordered(f func()) {
	w.counter["u"]++
	w.later(fmt.Sprint("u", w.counter["u"]), f)
}

// step lets one thing happen.
func (w *simWorld) step() {
	w.now += 1 + w.rng.Int64N(2*simStep)
	for _, n := range w.nodes {
		if n.up && n.coord != nil && w.rng.IntN(20) == 0 {
			n.coord.Tick(w.now)
			n.drainCoord()
		}
	}
	if len(w.keys) == 0 {
		return
	}
	i := w.rng.IntN(len(w.keys))
	k := w.keys[i]
	f := w.queues[k][0]
	w.queues[k] = w.queues[k][1:]
	if len(w.queues[k]) == 0 {
		delete(w.queues, k)
		w.keys = slices.Delete(w.keys, i, i+1)
	}
	f()
	w.invariants()
}

// start begins a life of the node's process.
func (n *simNode) start() {
	w := n.w
	n.up = true
	n.life++
	n.crep = map[ConnID]simEnd{}
	n.ctl = map[uint64]func(ControlResult){}
	n.rep = NewReplica(ReplicaOptions{
		Volume: w.vol, Replica: n.rid, Size: simSize, Boot: n.boot, Instance: w.uuid(), Credit: 1 << 30,
		Meta: n.disk.meta, LogLost: !n.disk.meta.Clean,
	})
	n.coord = nil
}

// crash kills the process; with power also what was not stable is lost at random.
func (n *simNode) crash(power bool) {
	w := n.w
	w.logf("crash %s power=%v", n.id, power)
	n.up = false
	if n.coord != nil {
		n.coord = nil
		if w.client.at == n {
			w.client.lost()
		}
	}
	for _, o := range w.nodes {
		o.dropSessions(n)
	}
	if power {
		n.boot = replication.BootID(w.uuid())
		for _, s := range simSectors {
			if n.disk.data[s] != n.disk.stable[s] {
				if w.rng.IntN(2) == 0 {
					n.disk.data[s] = n.disk.stable[s]
				}
				n.disk.stable[s] = n.disk.data[s]
			}
		}
		if !n.disk.meta.Clean {
			n.disk.meta.Lossy = true
		}
	}
}

// dropSessions tells n that its sessions with o are gone, both ways, some time.
func (n *simNode) dropSessions(o *simNode) {
	w := n.w
	if n.up && n.coord != nil {
		for m, c := range n.sess {
			if c.node == o && c.sess != 0 {
				life, sess, member := n.life, c.sess, m
				w.unordered(func() {
					if n.up && n.life == life && n.coord != nil {
						n.coord.SessionDown(w.now, member, sess)
						n.drainCoord()
					}
				})
			}
		}
	}
	if n.up {
		for id, e := range n.crep {
			if e.coord == o {
				life := n.life
				w.unordered(func() {
					if n.up && n.life == life {
						delete(n.crep, id)
						n.rep.ConnClosed(id)
						n.drainRep()
					}
				})
			}
		}
	}
}

func (w *simWorld) connected(a, b *simNode) bool { return a.up && b.up && !a.cutTo[b] && !b.cutTo[a] }

func (w *simWorld) reachable(a, b *simNode) bool { return a == b && a.up || w.connected(a, b) }

// attach makes n the coordinator.
func (n *simNode) attach() {
	w := n.w
	o := Options{
		Volume: w.vol, Node: n.id, Domain: replication.DomainID(n.id), Attach: replication.AttachID(w.uuid()), Local: n.rid,
		SuspectTimeout: 300e6, OpTimeout: 4e9, SealTimeout: 500e6, LossyTimeout: 5e9, RetryInterval: 50e6,
		FlushInterval: 100e6, FlushBytes: 1 << 20, ResyncWindow: 2, JoinerLag: 64 << 10, Rand: w.rng.Uint64,
	}
	n.coord = New(o, w.cfg, w.rev)
	n.sess = make([]simConn, len(w.nodes))
	w.logf("attach at %s", n.id)
	n.coord.Start(w.now)
	n.drainCoord()
}

func (n *simNode) drainCoord() {
	w, c := n.w, n.coord
	if c == nil {
		return
	}
	r := c.Ready()
	life := n.life
	alive := func() bool { return n.up && n.life == life && n.coord == c }
	for _, s := range r.Connect {
		peer := w.nodes[s.To]
		old := n.sess[s.To]
		if old.sess != 0 {
			n.closeConn(old)
		}
		peer.conn++
		conn := simConn{sess: s.ID, conn: peer.conn, node: peer, life: peer.life}
		n.sess[s.To] = conn
		w.later(n.key(conn, ">"), func() {
			if !alive() {
				return
			}
			if !w.reachable(n, peer) || peer.life != conn.life {
				c.SessionDown(w.now, s.To, s.ID)
				n.drainCoord()
				return
			}
			peer.crep[conn.conn] = simEnd{coord: n, life: life, member: s.To, sess: s.ID}
			peer.rep.Hello(conn.conn, replication.Message{Type: replication.MsgHello, Session: s.ID, Term: s.Term}, s.Hello)
			peer.drainRep()
		})
	}
	for _, m := range r.Messages {
		conn := n.sess[m.To]
		if conn.sess != m.Msg.Session {
			continue
		}
		msg := m.Msg
		msg.Data = bytes.Clone(msg.Data)
		w.later(n.key(conn, ">"), func() {
			p := conn.node
			if p.up && p.life == conn.life && p.crep[conn.conn].sess == conn.sess {
				p.rep.Step(conn.conn, &msg)
				p.drainRep()
			}
		})
	}
	for _, s := range r.Disconnect {
		if n.sess[s.To].sess == s.ID {
			n.closeConn(n.sess[s.To])
			n.sess[s.To] = simConn{}
		}
	}
	for _, q := range r.Control {
		peer := w.nodes[q.To]
		plife := peer.life
		answer := func(res ControlResult) {
			w.unordered(func() {
				if !alive() {
					return
				}
				if !w.reachable(n, peer) {
					res = ControlResult{Failed: true}
				}
				c.ControlDone(w.now, q.ID, res)
				n.drainCoord()
			})
		}
		w.unordered(func() {
			if !w.reachable(n, peer) || peer.life != plife {
				answer(ControlResult{Failed: true})
				return
			}
			peer.nextCtl++
			peer.ctl[peer.nextCtl] = answer
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
		// A request whose target dies is answered as failed, as by a deadline.
		var deadline func()
		deadline = func() {
			switch {
			case !alive() || c.ctl[q.ID] == nil:
			case !w.reachable(n, peer) || peer.life != plife:
				c.ControlDone(w.now, q.ID, ControlResult{Failed: true})
				n.drainCoord()
			default:
				w.later("deadline"+string(n.id), deadline)
			}
		}
		w.later("deadline"+string(n.id), deadline)
	}
	if r.Change != nil {
		ch := *r.Change
		w.unordered(func() { w.swap(n, c, life, ch) })
	}
	for _, d := range r.Completions {
		w.client.done(n, d)
	}
	dead := c.Dead()
	c.Advance()
	if dead != nil && n.coord == c {
		w.logf("coordinator at %s ended: %v", n.id, dead)
		n.coord = nil
		if w.client.at == n {
			w.client.lost()
		}
	}
}

func (w *simWorld) swap(n *simNode, c *Coordinator, life int, ch Change) {
	alive := func() bool { return n.up && n.life == life && n.coord == c }
	out, cfg, rev := ChangeOK, (*replication.Config)(nil), uint64(0)
	switch {
	case w.kvDown:
		out = ChangeNotSent
	case w.rev != ch.Rev:
		out, cfg, rev = ChangeConflict, w.cfg, w.rev
	default:
		w.checkChange(ch.Next)
		w.cfg, w.rev = ch.Next.Clone(), w.rev+1
		rev = w.rev
		w.logf("config epoch %d by %s: %s isr=%v", w.cfg.Epoch, n.id, w.cfg.History[len(w.cfg.History)-1].Cause, w.isrNodes())
	}
	w.unordered(func() {
		if alive() {
			c.ChangeDone(w.now, out, cfg, rev)
			n.drainCoord()
		}
	})
}

func (w *simWorld) isrNodes() (s []replication.NodeID) {
	for _, n := range w.nodes {
		if w.cfg.InISR(n.rid) {
			s = append(s, n.id)
		}
	}
	return s
}

func (n *simNode) key(c simConn, dir string) string { return fmt.Sprint(n.id, dir, c.node.id, c.sess) }

func (n *simNode) closeConn(c simConn) {
	w := n.w
	w.unordered(func() {
		if c.node.up && c.node.life == c.life {
			delete(c.node.crep, c.conn)
			c.node.rep.ConnClosed(c.conn)
			c.node.drainRep()
		}
	})
}

func (n *simNode) drainRep() {
	w, rep, life := n.w, n.rep, n.life
	r := rep.Ready()
	alive := func() bool { return n.up && n.life == life }
	for _, io := range r.IO {
		w.unordered(func() {
			if !alive() {
				return
			}
			data := n.disk.do(io)
			n.rep.IODone(io, data, nil, nil)
			n.drainRep()
		})
	}
	for _, s := range r.Send {
		e, ok := n.crep[s.Conn]
		if !ok {
			continue
		}
		msg := s.Msg
		w.later(fmt.Sprint(n.id, "<", e.coord.id, e.sess), func() {
			if !e.coord.up || e.coord.life != e.life || e.coord.coord == nil || !w.reachable(n, e.coord) || e.coord.sess[e.member].sess != e.sess {
				return
			}
			c := e.coord.coord
			switch {
			case msg.Type == replication.MsgHelloAck:
				c.SessionUp(w.now, e.member, e.sess, replication.HelloAck{Boot: n.boot, Credit: msg.Credit})
			case msg.Type == replication.MsgNack && msg.Seq == 0:
				c.SessionRefused(w.now, e.member, e.sess, msg.Status, msg.Term)
			default:
				c.Step(w.now, e.member, &msg)
			}
			e.coord.drainCoord()
		})
	}
	for _, p := range r.Replies {
		if f := n.ctl[p.ID]; f != nil {
			delete(n.ctl, p.ID)
			f(p.Result)
		}
	}
	for _, id := range r.Close {
		e := n.crep[id]
		delete(n.crep, id)
		if e.coord != nil {
			w.unordered(func() {
				if e.coord.up && e.coord.life == e.life && e.coord.coord != nil {
					e.coord.coord.SessionDown(w.now, e.member, e.sess)
					e.coord.drainCoord()
				}
			})
		}
	}
	if r.Persist != nil {
		m := *r.Persist
		w.unordered(func() {
			if !alive() {
				return
			}
			n.disk.meta = m
			rep.PersistDone(nil)
			n.drainRep()
		})
	}
	rep.Advance()
}

// do carries an operation out and returns what it read.
func (d *simDisk) do(io *LocalIO) []byte {
	each := func(f func(s, off int64)) {
		for _, s := range simSectors {
			if off := s*sector - io.Off; off >= 0 && off < io.Len {
				f(s, off)
			}
		}
	}
	switch io.Kind {
	case replication.MsgWrite, replication.MsgResyncWrite:
		each(func(s, off int64) {
			d.data[s] = 0
			if io.Data != nil {
				d.data[s] = binary.LittleEndian.Uint64(io.Data[off:])
			}
		})
	case replication.MsgZero, replication.MsgTrim:
		each(func(s, _ int64) { d.data[s] = 0 })
	case replication.MsgFlush:
		for s, v := range d.data {
			d.stable[s] = v
		}
	case replication.MsgRead, replication.MsgHashReq:
		p := make([]byte, io.Len)
		each(func(s, off int64) { binary.LittleEndian.PutUint64(p[off:], d.data[s]) })
		if io.Kind == replication.MsgRead {
			return p
		}
		var h []byte
		for len(p) > 0 {
			k := min(len(p), replication.ResyncBlock)
			s := sha256.Sum256(p[:k])
			h = append(h, s[:replication.HashLen]...)
			p = p[k:]
		}
		return h
	default:
	}
	if io.Flags&replication.FlagFUA != 0 {
		each(func(s, _ int64) { d.stable[s] = d.data[s] })
	}
	return nil
}

// simHistory checks what the consumer sees, block by block (protocol.md 16.3).
type simHistory struct {
	known   [simBlocks]uint64          // value that every read must show if nothing else is possible
	maybe   [simBlocks]map[uint64]bool // values that may have taken effect, or may yet
	flushed [simBlocks]uint64          // value covered by the last flush
	acks    [simBlocks]int             // writes acknowledged
	floor   [simBlocks]int             // of them, those covered by a flush
	since   [simBlocks]map[uint64]bool // values that a power cut of everything may bring back
}

func (h *simHistory) init() {
	for i := range h.maybe {
		h.maybe[i] = map[uint64]bool{}
		h.since[i] = map[uint64]bool{}
	}
}

// simClient is the consumer: it keeps a few requests in flight, never two on a
// sector when one of them writes, so that each sector's history is sequential.
type simClient struct {
	w      *simWorld
	at     *simNode
	flight []*simOp
	tag    uint64
}

type simOp struct {
	io     *IO
	sector int
	tag    uint64
	covers [simBlocks]uint64          // flush: values known at its start
	acks   [simBlocks]int             // flush: writes acknowledged at its start
	old    [simBlocks]map[uint64]bool // flush: values that cannot come back once it is done
}

func (c *simClient) busy(sector int) bool {
	return slices.ContainsFunc(c.flight, func(o *simOp) bool { return o.sector == sector })
}

// act starts a request at random.
func (c *simClient) act() {
	w := c.w
	if c.at == nil || c.at.coord == nil || len(c.flight) >= 4 {
		return
	}
	if w.rng.IntN(8) == 0 {
		if slices.ContainsFunc(c.flight, func(o *simOp) bool { return o.sector < 0 }) {
			return
		}
		o := &simOp{sector: -1, io: &IO{Kind: replication.MsgFlush}, covers: w.history.known, acks: w.history.acks}
		for s := range simBlocks {
			o.old[s] = maps.Clone(w.history.since[s])
		}
		c.propose(o)
		return
	}
	k := w.rng.IntN(simBlocks)
	if c.busy(k) {
		return
	}
	o := &simOp{sector: k, io: &IO{Off: simSectors[k] * sector, Len: sector}}
	switch w.rng.IntN(5) {
	case 0, 1:
		o.io.Kind, o.io.Data = replication.MsgRead, make([]byte, sector)
	case 2:
		o.io.Kind = replication.MsgTrim
		w.history.maybe[k][0] = true
	default:
		c.tag++
		o.tag = c.tag
		o.io.Kind, o.io.Data = replication.MsgWrite, make([]byte, sector)
		binary.LittleEndian.PutUint64(o.io.Data, o.tag)
		if w.rng.IntN(5) == 0 {
			o.io.Flags = replication.FlagFUA
		}
		w.history.maybe[k][o.tag] = true
	}
	c.propose(o)
}

func (c *simClient) propose(o *simOp) {
	o.io.User = o
	c.flight = append(c.flight, o)
	c.w.logf("  op %v sector %d tag %d flags %d", o.io.Kind, o.sector, o.tag, o.io.Flags)
	c.at.coord.Propose(c.w.now, o.io)
	c.at.drainCoord()
}

// done checks an answer.
func (c *simClient) done(n *simNode, d Completion) {
	o, ok := d.IO.User.(*simOp)
	i := slices.Index(c.flight, o)
	if !ok || c.at != n || i < 0 {
		return
	}
	c.flight = slices.Delete(c.flight, i, i+1)
	w, h, k := c.w, &c.w.history, o.sector
	w.logf("  done %v sector %d tag %d err %v", o.io.Kind, k, o.tag, d.Err)
	if d.Err != nil {
		return // its outcome stays possible
	}
	switch {
	case o.io.Kind == replication.MsgFlush:
		for s := range simBlocks {
			if o.acks[s] >= h.floor[s] {
				h.flushed[s], h.floor[s] = o.covers[s], o.acks[s]
			}
			for v := range o.old[s] {
				if v != h.known[s] && v != 0 { // tags are unique, the 0 of a trim is not
					delete(h.since[s], v)
				}
			}
		}
	case o.io.Kind == replication.MsgRead:
		got := binary.LittleEndian.Uint64(o.io.Data)
		if got != h.known[k] && !h.maybe[k][got] {
			w.fail("read of sector %d returned %d, want %d or one of %v", k, got, h.known[k], h.maybe[k])
		}
		h.known[k] = got
		h.since[k][got] = true
		clear(h.maybe[k]) // what was undecided is decided now (I16)
	default:
		maps.Copy(h.since[k], h.maybe[k])
		h.since[k][o.tag] = true
		h.known[k] = o.tag
		h.acks[k]++
		clear(h.maybe[k])
		if o.io.Flags&replication.FlagFUA != 0 {
			h.flushed[k], h.floor[k] = o.tag, h.acks[k]
			clear(h.since[k])
		}
	}
}

// lost ends the consumer with its coordinator.
func (c *simClient) lost() {
	c.at, c.flight = nil, nil
}

// forgive allows what a power cut of every in-sync replica may take away.
func (h *simHistory) forgive() {
	for s := range simBlocks {
		h.maybe[s][h.known[s]] = true
		for v := range h.since[s] {
			h.maybe[s][v] = true
		}
		h.maybe[s][h.flushed[s]] = true
	}
}

// checkChange asserts I1 and I2 on a new configuration.
func (w *simWorld) checkChange(n *replication.Config) {
	if n.Epoch != w.cfg.Epoch+1 {
		w.fail("epoch %d after %d", n.Epoch, w.cfg.Epoch)
	}
	if len(n.ISR) == 0 {
		w.fail("empty in-sync set in epoch %d", n.Epoch)
	}
	for _, r := range n.ISR {
		if !w.cfg.InISR(r) && w.cfg.Members[r].State != replication.MemberSyncing {
			w.fail("replica %v joined from state %s", r, w.cfg.Members[r].State)
		}
	}
}

// invariants asserts after each step what must always hold.
func (w *simWorld) invariants() {
	serving := 0
	for _, n := range w.nodes {
		if n.up && n.coord != nil && n.coord.stage == stageServing && n.coord.cfg.Epoch == w.cfg.Epoch {
			serving++
		}
	}
	if serving > 1 {
		w.fail("two coordinators in epoch %d", w.cfg.Epoch)
	}
}

// isrAlive reports whether a member of the in-sync set has not lost power since its last settling.
func (w *simWorld) isrSolid() bool {
	for _, n := range w.nodes {
		if w.cfg.InISR(n.rid) && !n.disk.meta.Lossy {
			return true
		}
	}
	return false
}

func runSim(t *testing.T, seed uint64, steps int) {
	rng := rand.New(rand.NewPCG(seed, 4))
	w := newSimWorld(t, seed, 2+int(seed%2))
	power, kv, cuts := seed%3 == 0, seed%5 < 2, seed%4 < 3
	for range steps {
		w.client.act()
		w.step()
		switch rng.IntN(400) {
		case 0:
			n := w.nodes[rng.IntN(len(w.nodes))]
			if n.up {
				n.crash(power && rng.IntN(2) == 0)
				if !w.isrSolid() {
					w.history.forgive()
				}
			}
		case 1, 2, 3, 4:
			if n := w.nodes[rng.IntN(len(w.nodes))]; !n.up {
				w.logf("start %s", n.id)
				n.start()
			}
		case 5:
			if cuts {
				a, b := w.nodes[rng.IntN(len(w.nodes))], w.nodes[rng.IntN(len(w.nodes))]
				if a != b {
					w.logf("cut %s %s", a.id, b.id)
					a.cutTo[b] = true
					a.dropSessions(b)
					b.dropSessions(a)
				}
			}
		case 6, 7, 8:
			w.healLinks()
		case 9:
			w.kvDown = kv
		case 10, 11:
			w.kvDown = false
		}
		if w.client.at == nil && rng.IntN(30) == 0 {
			w.takeover(rng)
		} else if rng.IntN(3000) == 0 {
			w.client.lost()
			w.takeover(rng) // somebody takes over from a living coordinator
		}
	}
	w.settle(rng)
}

func (w *simWorld) healLinks() {
	for _, n := range w.nodes {
		clear(n.cutTo)
	}
}

func (w *simWorld) takeover(rng *rand.Rand) {
	n := w.nodes[rng.IntN(len(w.nodes))]
	if !n.up || n.coord != nil || w.kvDown {
		return
	}
	w.client.at = n
	n.attach()
}

// settle stops the faults and asserts that everything comes to rest: the volume
// serves, every replica joins, and all are identical (liveness, G5).
func (w *simWorld) settle(rng *rand.Rand) {
	w.logf("faults end")
	w.kvDown = false
	w.healLinks()
	for _, n := range w.nodes {
		if !n.up {
			n.start()
		}
	}
	for range 60_000 {
		w.step()
		if w.client.at == nil {
			w.takeover(rng)
			continue
		}
		c := w.client.at.coord
		if c == nil {
			continue
		}
		if c.stage == stageServing && len(w.cfg.ISR) == len(w.nodes) && c.change == nil && c.reconcile.Count() == 0 &&
			len(w.client.flight) == 0 && len(c.flight.ios) == 0 && c.Stall() == StallNone {
			w.compare()
			return
		}
	}
	c := w.client.at
	if c == nil || c.coord == nil {
		w.fail("no coordinator after the faults ended")
	}
	k := c.coord
	w.fail("not settled: stage %d stall %q isr %v flight %d waiting %d change %+v join %+v reconcile %d jobs %d reqs %d evict %b hold %v/%v open %b",
		k.stage, k.Stall(), w.isrNodes(), len(k.flight.ios), len(k.waiting), k.change, k.join, k.reconcile.Count(), len(k.jobs), len(k.reqs), k.evictReq, k.hold, k.holdAcks, k.openSet())
}

// compare asserts that all replicas are identical and show what was acknowledged.
func (w *simWorld) compare() {
	for k, s := range simSectors {
		v := w.nodes[0].disk.data[s]
		for _, n := range w.nodes {
			if n.disk.data[s] != v {
				w.fail("replicas differ in sector %d: %d on %s, %d on %s", k, v, w.nodes[0].id, n.disk.data[s], n.id)
			}
		}
		if v != w.history.known[k] && !w.history.maybe[k][v] {
			w.fail("sector %d has %d, want %d or one of %v", k, v, w.history.known[k], w.history.maybe[k])
		}
	}
}

func TestSim(t *testing.T) {
	if *simSeed != 0 {
		runSim(t, *simSeed, 4000)
		return
	}
	for seed := uint64(1); seed <= *simSeeds; seed++ {
		runSim(t, seed, 4000)
	}
	t.Logf("%d seeds passed", *simSeeds)
}
