package core

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"

	"github.com/tandem-storage/tandem/replication"
)

// The simulated world: nodes with a process, a disk and one replica each, the
// connections between them, the kvdb and time. Everything that happens is a
// function on a queue; the scheduler picks the queue. In a random world it picks
// by the seed, in a fifo world in the order of arrival, which makes a trace that
// a reader can follow.

const (
	simSize    = 7 * replication.RegionSize / 2
	simBlocks  = 8            // sectors that are written, the last ones when the volume has grown
	simControl = int64(500e6) // a control request without answer fails after so long
)

// simSectors are the sectors in use: neighbours, same ResyncBlock, other regions.
var simSectors = [simBlocks]int64{0, 1, 16, 1024, 2500, 3500, 3590, 4500}

type simWorld struct {
	fail  func(f string, a ...any) // does not return
	trace func(f string, a ...any)
	said  func() string // what was traced
	rng   *rand.Rand
	fifo  bool
	now   int64
	opts  Options
	slots int            // of the activity logs
	grant int64          // of read leases
	seen  map[string]int // what happened, by name

	failedOnce map[int64]int // hashes of a range that failed and would not have failed again, by offset

	metro   *simMetro // the cluster that the volume is in, nil if the world is its own
	vol     replication.VolumeID
	cfg     *replication.Config // what the kvdb has
	truth   *replication.Config // what counts: the same, unless the kvdb was restored from a backup
	rev     uint64
	kvLife  simLife
	backups []simBackup
	rolled  bool // the kvdb was restored, and nothing imported since
	marked  bool // some node has found that a replica knows more: no change until an import
	kvDown  bool
	kvLose  string // the cause of the change in which its node loses it, "" none
	unknown int    // of 100 transactions, how many are not answered
	kvHold  bool
	kvHeld  []func()  // outcomes that nobody is told yet
	late    []simTurn // messages that a scenario has delayed

	nodes  []*simNode
	ready  []*simQueue // not empty
	timers []simTimer

	client    *simClient
	verifying *Coordinator // goes through the volume after the faults

	verifyingIn replication.Epoch // since this
	buggy       bool              // replicas differ and vouch for what they have
	strays      []*simStray
	history     simHistory
	positions   map[replication.ReplicaID]replication.Position // up to here what was confirmed with a replica in sync
	moves       simMoves
	gray        simGray
	snaps       simSnapshots
	moved       []replication.AttachID // attachments that others have followed
	resizes     simResizes
	solid       bool // an in-sync replica has everything that was acknowledged
	promised    simPromise
	owed        bool  // what a power cut took may be forgiven at the next attachment
	forgiven    int64 // when that was last done
}

// simQueue is a channel in which things happen in order.
type simQueue struct {
	owner *simNode
	fs    []simTurn
}

type simTurn struct {
	f     func()
	lease bool // of a read lease: takes no turn in a fifo world, whose traces do not tell of it
}

type simTimer struct {
	at int64
	f  func()
}

type simNode struct {
	w      *simWorld
	id     replication.NodeID
	domain replication.DomainID // its own, but in a simMetro
	site   *simMachine          // nil but in a simMetro
	rid    replication.ReplicaID
	up     bool
	paused bool
	fenced bool // its cluster domain is
	fences int  // how often that changed
	kvCut  bool // it does not reach the kvdb
	silent bool // its beats are not heard

	serving *Coordinator // has come to serve
	refused *Coordinator // heard that it is refused because a replica knows more than the kvdb

	proposal replication.UUID // of the change that its coordinator proposed last
	lapsed   bool             // nothing was protected then
	decided  *change          // a change that was begun while nothing was protected, and was under way when that ended

	drains bool // its cluster domain is deactivated by plan
	boot   replication.BootID
	life   int              // incarnation of the process
	kv     simLife          // of the kvdb that the process goes by
	sealed replication.UUID // incarnation of the kvdb that its replica is of, as it has answered
	disk   simDisk

	rep     *Replica
	conns   map[ConnID]*simConn // sessions of the replica
	conn    ConnID
	nextCtl uint64
	ctl     map[uint64]func(ControlResult)
	flight  []*LocalIO
	stop    bool // a clean stop is under way

	powerAt, joinedAt int64 // when it last lost power, and came into the in-sync set

	offset, drift int64 // of its clock: nanoseconds, thousandths
	wake          int64 // when its replica is to be told the time

	coord  *Coordinator
	giving *simHandover         // that coord was asked for
	named  *simHandover         // that it is prepared for
	out    *simHandover         // that it has made, and nobody has told what became of it
	record replication.AttachID // of the attachment under which a consumer here was served, and which has not ended
	served int64                // when that attachment was served first
	doomed *Coordinator         // goes on with a consumer that was told of writes that are lost: it must not answer that
	sess   []*simConn           // sessions of the coordinator by member
	cutTo  map[*simNode]bool

	damage map[*simNode]bool // payloads for these arrive damaged
}

// simConn is one session, with a queue for each direction.
type simConn struct {
	coord, rep *simNode
	c          *Coordinator
	life       int // of rep's process
	member     int
	sess       replication.SessionID
	id         ConnID
	there      *simQueue
	back       *simQueue
	broken     bool
	late       int64 // how much later than others an answer comes
	asked      int64 // when the coordinator last asked for a lease, by its clock
	leased     int64 // until when it has one
	confirmed  int64 // when it asked for what was granted last
}

// simDisk is what survives a process: sectors, superblock, dirty maps, activity log.
type simDisk struct {
	size         int64            // of the replica, bytes
	data, stable map[int64]uint64 // sector -> tag; absent is zero
	sums         map[int64]bool   // sectors whose checksum is known
	bad          map[int64]uint64 // damaged sectors: what is there instead of data
	astray       bool             // the next write lands in another sector
	meta         ReplicaMeta
	boot         replication.BootID // that had it open last
	clean        bool               // it was closed in order
	dirty        map[replication.ReplicaID]*Bitmap
	persist      *Persist // on its way
	log          simActivity
	snaps        *simSnaps
	noCut        error // answer to every snapshot, if not nil

	slow int64 // ns that each request takes longer

	full, failWrite, failFlush, failRead, hung, closed, crowded bool

	failNext bool // the next read
	dropNext bool // the next flush fails, and what it was to make stable is lost
	hangNext bool // the next operation
	tearNext bool // the power goes with the next operation of several sectors

	stuck []func()
}

func newSimWorld(n int, rng *rand.Rand) *simWorld {
	w := &simWorld{
		rng: rng, seen: map[string]int{}, failedOnce: map[int64]int{}, positions: map[replication.ReplicaID]replication.Position{}, solid: true, slots: 4, grant: 250e6, trace: func(string, ...any) {},
		vol: replication.VolumeID{1}, rev: 1,
		opts: Options{
			SuspectTimeout: 300e6, OpTimeout: 1e9, SealTimeout: 500e6, LossyTimeout: 3e9, LeaseTime: 200e6, RetryInterval: 50e6,
			FlushInterval: 100e6, FlushBytes: 1 << 20, FlushRegions: 1000, ResyncWindow: 2, JoinerLag: 64 << 10,
		},
	}
	w.cfg = &replication.Config{
		Version: 1, Volume: w.vol, Epoch: 1, Gen: 1, Phase: replication.PhaseDetached, Size: simSize,
		Members: map[replication.ReplicaID]replication.Member{}, Protection: replication.MaxAvailability,
		History: []replication.EpochRecord{{Epoch: 1, Gen: 1}},
	}
	for i := range n {
		node := &simNode{w: w, id: replication.NodeID(fmt.Sprint("n", i)), domain: replication.DomainID(fmt.Sprint("n", i)), rid: replication.ReplicaID{byte(i + 1)}, cutTo: map[*simNode]bool{}, damage: map[*simNode]bool{}}
		node.disk = newSimDisk(ReplicaMeta{Epoch: 1, Gen: 1, State: replication.MemberInSync})
		w.nodes = append(w.nodes, node)
		w.cfg.ISR = append(w.cfg.ISR, node.rid)
		w.cfg.Members[node.rid] = replication.Member{Node: node.id, Domain: node.domain, State: replication.MemberInSync}
		node.boot = replication.BootID(w.uuid())
	}
	for _, node := range w.nodes {
		node.disk.meta.ISR = w.cfg.ISR
		node.start()
	}
	w.truth = w.cfg
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

// later puts f on a queue.
func (w *simWorld) later(q *simQueue, f func()) { w.enqueue(q, simTurn{f: f}) }

func (w *simWorld) enqueue(q *simQueue, e simTurn) {
	if len(q.fs) == 0 {
		w.ready = append(w.ready, q)
	}
	q.fs = append(q.fs, e)
}

// once lets f happen to node n some time.
func (w *simWorld) once(n *simNode, f func()) { w.later(&simQueue{owner: n}, f) }

// after lets f happen when d nanoseconds have passed, or a little later.
func (w *simWorld) after(d int64, f func()) {
	w.timers = append(w.timers, simTimer{w.now + d, f})
}

// step lets time pass and one thing happen, if there is one.
func (w *simWorld) step() {
	switch {
	case w.metro != nil:
		w.now = w.metro.now
	case w.fifo:
		w.now += 1e6
	default:
		w.now += 1 + w.rng.Int64N(2e6)
	}
	for i := 0; i < len(w.timers); i++ {
		if t := w.timers[i]; t.at <= w.now {
			w.timers = slices.Delete(w.timers, i, i+1)
			t.f()
			i--
		}
	}
	for _, n := range w.nodes {
		if n.up && !n.paused && n.coord != nil && (w.fifo && w.now%10e6 == 0 || !w.fifo && w.rng.IntN(20) == 0) {
			n.coord.Tick(n.clock())
			n.drainCoord()
		}
		n.sweep()
		n.wakeUp()
		n.stopped()
	}
	first := 0
	if !w.fifo && len(w.ready) > 0 {
		first = w.rng.IntN(len(w.ready))
	}
	for k := range w.ready {
		i := (first + k) % len(w.ready)
		q := w.ready[i]
		if q.owner != nil && q.owner.paused {
			continue
		}
		e := q.fs[0]
		q.fs = q.fs[1:]
		w.ready = slices.Delete(w.ready, i, i+1)
		if len(q.fs) > 0 {
			w.ready = append(w.ready, q)
		}
		e.f()
		w.invariants()
		break
	}
	if w.fifo {
		w.runLeases()
	}
}

// start begins a life of the node's process.
func (n *simNode) start() {
	w, d := n.w, &n.disk
	n.up, n.stop, n.paused, n.wake = true, false, false, 0
	n.life++
	n.kv, n.sealed = w.kvLife, d.meta.Incarnation
	n.conns, n.ctl, n.flight = map[ConnID]*simConn{}, map[uint64]func(ControlResult){}, nil
	d.log.open(w.slots)
	if !d.clean {
		d.forgetSums()
		d.meta.Lossy = d.meta.Lossy || d.boot != n.boot
	}
	d.boot, d.clean = n.boot, false
	n.rep = NewReplica(ReplicaOptions{
		Volume: w.vol, Replica: n.rid, Size: d.size, Boot: n.boot, Instance: w.uuid(), Credit: 1 << 30, Meta: d.meta,
		Now: n.clock(), LeaseGrant: w.grant,
		Slots: d.log.slots, Active: d.log.stored.active(), LogLost: d.log.stored.lost, Dirty: d.dirty,
	})
	n.rep.SetCrowded(d.crowded)
}

// crowd says whether the node's pool is nearly full.
func (n *simNode) crowd(on bool) {
	n.disk.crowded = on
	n.rep.SetCrowded(on)
}

// crash kills the process; with power also what was not stable is lost at random.
func (n *simNode) crash(power bool) {
	w, d := n.w, &n.disk
	n.halt()
	d.hung, d.hangNext, d.stuck = false, false, nil
	d.tear(n, power)
	d.cutShort(w, n)
	if power {
		if !d.clean {
			n.powerAt = w.now
		}
		n.boot = replication.BootID(w.uuid())
		n.offset += 1 - n.clock() // counts from the boot
		for _, s := range simSectors {
			if d.data[s] != d.stable[s] {
				if w.fifo || w.rng.IntN(2) == 0 {
					d.data[s] = d.stable[s]
				}
				d.stable[s] = d.data[s]
			}
		}
	}
	w.checkSolid(power && w.truth.InISR(n.rid)) // nobody was told of what another one has
}

// halt is the end of the process, seen by the others some time.
func (n *simNode) halt() {
	n.up = false
	lose := !n.w.fifo && n.w.rng.IntN(2) == 0 // what is on the way
	for _, c := range n.sess {
		if c != nil {
			c.broken = c.broken || lose
			c.closeThere()
		}
	}
	for _, id := range slices.Sorted(maps.Keys(n.conns)) {
		c := n.conns[id]
		c.broken = c.broken || lose
		c.closeBack()
	}
	n.sess = nil
	n.end()
}

// end forgets the coordinator. If that had not come to its end the consumer waits for another life of the process.
func (n *simNode) end() {
	if n.w.client.at == n {
		if n.coord != nil && n.coord.Dead() == nil && n.record == n.coord.o.Attach || n.out != nil && n.record == n.out.old {
			n.w.client.await()
		}
		n.w.client.lost()
	}
	n.coord, n.giving, n.out, n.named = nil, nil, nil, nil
}

// resumable reports whether the attachment that n has a record of is the volume's still.
func (n *simNode) resumable() bool {
	c := n.w.cfg.Coord
	return c != nil && c.Node == n.id && c.AttachID == n.record ||
		c != nil && n.w.cfg.Phase == replication.PhaseRecovering && c.From.Node == n.id && c.From.AttachID == n.record && !replication.UUID(n.record).IsZero()
}

// stopped ends the process of a node that is to stop cleanly and has come to rest.
func (n *simNode) stopped() {
	if !n.stop || !n.up || !n.rep.Idle() {
		return
	}
	if rest, ok := n.rep.Rest(); ok {
		d := &n.disk
		d.keep(rest.Maps)
		d.log.change(n.w, n, &LogChange{Retire: rest.Retire, Lost: d.log.table.lost, Wait: true})
		d.log.land()
		d.clean = true
		maps.Copy(d.stable, d.data)
	}
	n.halt()
}

// fence says whether the node's cluster domain may hold in-sync replicas.
func (n *simNode) fence(on bool) {
	w := n.w
	n.fenced = on
	n.fences++
	if n.out != nil && on { // its consumer gets errors
		n.record = replication.AttachID{}
		n.end()
	}
	if n.coord != nil && on {
		n.coord.Kill(n.clock(), replication.ErrDomainFenced)
		n.drainCoord()
	}
	for i, m := range w.nodes {
		if m.up && m.coord != nil {
			m.coord.SetUsable(m.clock(), slices.Index(w.nodes, n), !on)
			m.drainCoord()
		}
		for _, id := range slices.Sorted(maps.Keys(w.nodes[i].conns)) {
			if c := w.nodes[i].conns[id]; on && c.coord == n {
				c.breakOff()
			}
		}
	}
}

// reach says whether something sent from n arrives at o.
func (n *simNode) reach(o *simNode) bool { return n == o || !n.cutTo[o] }

// attach makes n the coordinator of a new attachment.
func (n *simNode) attach() {
	n.out = nil
	n.w.client.unanswered, n.record = nil, replication.AttachID{}
	n.w.trace("%s attaches", n.id)
	n.coordinate(replication.AttachID(n.w.uuid()), false, false, n.w.cfg, n.w.rev)
}

// resume makes n the coordinator of the attachment that it has a record of.
func (n *simNode) resume() {
	n.w.trace("%s goes on", n.id)
	n.coordinate(n.record, true, false, n.w.cfg, n.w.rev)
	n.w.client.again()
}

func (n *simNode) coordinate(id replication.AttachID, resume, back bool, cfg *replication.Config, rev uint64) {
	w := n.w
	o := w.opts
	o.Boot = n.boot
	o.Volume, o.Node, o.Domain, o.Attach, o.Local, o.Rand = w.vol, n.id, n.domain, id, n.rid, w.rng.Uint64
	n.kv = w.kvLife
	o.Resume, o.TakeBack, o.Incarnation, o.Former = resume, back, n.kv.id, n.kv.former
	n.coord = New(o, cfg, rev)
	n.sess = make([]*simConn, len(w.nodes))
	for i, m := range w.nodes {
		if n.mustStop(m) {
			n.coord.SetUsable(n.clock(), i, false)
		}
		if n.sendsAway(m) {
			n.coord.SetKept(n.clock(), i, false)
		}
		if m.silent && m != n {
			n.coord.SetUp(n.clock(), i, false)
		}
	}
	n.coord.Start(n.clock())
	n.drainCoord()
}

// drainCoord carries out what the coordinator asks for.
func (n *simNode) drainCoord() {
	w, c := n.w, n.coord
	if c == nil {
		return
	}
	r := c.Ready()
	for _, m := range r.Messages {
		conn := n.sess[m.To]
		if conn == nil || conn.sess != m.Msg.Session {
			continue
		}
		conn.noteLease(&m.Msg)
		w.traceMessage("->", n, conn.rep, &m.Msg)
		msg := m.Msg
		msg.Data = bytes.Clone(msg.Data)
		w.enqueue(conn.there, simTurn{func() { conn.deliver(&msg) }, msg.Type == replication.MsgLease})
	}
	for _, s := range r.Disconnect {
		if conn := n.sess[s.To]; conn != nil && conn.sess == s.ID {
			w.trace("%s closes its session with %s", n.id, conn.rep.id)
			conn.closeThere()
		}
	}
	for _, s := range r.Connect {
		n.connect(s)
	}
	for _, q := range r.Control {
		n.control(q)
	}
	if r.Change != nil {
		n.change(*r.Change)
	}
	for _, e := range r.Events {
		n.observe(&e)
	}
	for _, d := range r.Completions {
		w.client.done(n, d)
	}
	for _, s := range r.Disconnect { // now: what is completed was decided before
		if conn := n.sess[s.To]; conn != nil && conn.sess == s.ID {
			n.sess[s.To] = nil
		}
	}
	for _, io := range r.Released {
		w.client.released(io)
	}
	if n.giving != nil {
		n.giving.held = append(n.giving.held, r.Returned...)
	}
	dead := c.Dead()
	c.Advance()
	if c.HandedOver() && n.coord == c {
		n.handedOver(c)
		return
	}
	if dead != nil && n.coord == c {
		w.trace("%s no longer serves: %v", n.id, dead)
		w.checkDeposed(n)
		w.seen["end: "+dead.Error()]++
		n.record = replication.AttachID{}
		n.end()
	}
}

func (n *simNode) observe(e *Event) {
	w := n.w
	who := func() replication.NodeID { return w.cfg.Members[e.Replica].Node }
	switch e.Kind {
	case EventServing:
		n.serving = n.coord
		n.follow()
		switch {
		case !n.coord.o.Resume:
			if w.client.at == n { // otherwise nobody was told anything
				n.record, n.served = n.coord.o.Attach, w.now
			}
		case !w.kept(n.served): // a member has lost power since it was sealed, which its session will tell
			n.doomed = n.coord
		default:
			w.seen["resumed"]++
		}
		if w.owed && w.client.at == n {
			w.owed, w.forgiven = false, w.now
			w.history.forgive()
			for _, s := range w.strays {
				s.may = nil
			}
			for _, o := range w.client.flight {
				o.unsure = w.history.unsure
			}
		}
		w.trace("%s serves, %d blocks to reconcile", n.id, e.Dirty)
	case EventEvicted:
		why, _, _ := strings.Cut(e.Reason, ": ")
		w.seen["evicted: "+why]++
		if why == gray {
			w.leftSlowly(n, e.Replica)
		}
		if e.Reason == crowded && w.cfg.Protection == replication.MaxProtection && !n.lapsed {
			w.fail("%s left for want of room (max_protection)", who())
		}
		w.trace("%s evicted %s: %s", n.id, who(), e.Reason)
	case EventResyncStarted:
		w.seen["resync started"]++
		if e.Dirty < n.coord.blocks {
			w.seen["resync started, by dirty map"]++
		}
		w.trace("%s resyncs %s, %d blocks", n.id, who(), e.Dirty)
	case EventLogLost:
		w.seen["compared in full, log lost"]++
	case EventResyncStopped:
		w.seen["resync stopped: "+e.Reason]++
		w.trace("%s gave up the resync of %s: %s", n.id, who(), e.Reason)
	case EventJoined:
		w.trace("%s: %s is in sync", n.id, who())
	case EventHealed:
		w.seen["healed"]++
		w.trace("%s: %d sectors of %s healed, the first at %dK", n.id, e.Blocks, who(), e.Off>>10)
	case EventRecomputed:
		w.seen["recomputed"]++
		w.trace("%s: checksums of %d sectors made anew, the first at %dK", n.id, e.Blocks, e.Off>>10)
	case EventLost:
		w.seen["lost"]++
		w.trace("%s: nobody has the sector at %dK right", n.id, e.Off>>10)
	case EventDiffers:
		w.trace("%s: replicas differ in the sector at %dK", n.id, e.Off>>10)
		if !w.fifo {
			w.fail("9.4: in-sync replicas differ at %d, and each vouches for what it has", e.Off)
		}
	case EventVerified:
		w.seen["verified"]++
		w.trace("%s: verified, %d sectors healed, digests%s", n.id, e.Blocks, w.checkDigests(n.coord.Verified()))
	case EventVerifyStarted:
		w.trace("%s verifies", n.id)
	case EventVerifyStopped:
		w.trace("%s verifies no more", n.id)
	case EventPolicy:
		w.policyTold(n, e)
	case EventResized:
		w.resizeTold(n, e)
	case EventUnprotected:
		w.unprotected(n)
	case EventProtected:
		n.decided = n.coord.change
		w.trace("%s: protected again", n.id)
	case EventKept:
		w.seen["handover: kept"]++
		w.trace("%s keeps the volume: %v", n.id, e.Err)
	case EventSnapshot:
		w.snapshotTold(n, e)
	case EventElected, EventResyncProgress, EventDetached, EventDied, EventHandedOver, EventGroupLate, EventHeld:
	}
}

func (n *simNode) alive(c *Coordinator) bool { return n.up && n.coord == c }
