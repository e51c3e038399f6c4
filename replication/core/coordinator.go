package core

import (
	"slices"

	"github.com/tandem-storage/tandem/datapath/block"
	"github.com/tandem-storage/tandem/replication"
)

// Options configure a Coordinator. Durations are in nanoseconds.
type Options struct {
	Volume      replication.VolumeID
	Node        replication.NodeID
	Domain      replication.DomainID
	Boot        replication.BootID // of this node; zero: leases that a process before may hold are waited for
	Attach      replication.AttachID
	Incarnation replication.UUID
	Former      []replication.UUID    // that an import replaced by Incarnation
	Local       replication.ReplicaID // the replica on this node, preferred for reads; zero if none
	// Resume: an earlier process was the coordinator under Attach, the configuration names it still, and its consumer
	// lives. The takeover ends with ErrPoisoned where another one starts as after a power cut (I19).
	Resume bool
	// TakeBack: the coordinator before handed over under Attach, and the other one was not heard to serve. The configuration is to be
	// that of the handover still; otherwise this one ends, as it does when its election comes too late: with ErrHandedOver if the other one has it.
	TakeBack bool

	SuspectTimeout int64 // a member without session for so long is evicted
	OpTimeout      int64 // a member that does not answer a request for so long is evicted
	EvictSlow      int64 // a member is evicted if more than one in a hundred of its writes take longer; 0: it is not looked at
	SlowWindow     int64 // in each time of this length
	SlowWindows    int   // of so many, one after the other
	SlowWrites     int   // and with so many writes in them together: fewer tell nothing
	SlowRest       int64 // a member that was evicted for that is not resynced before, and twice as long each time
	SealTimeout    int64 // how long a takeover waits for further members once it has one
	LossyTimeout   int64 // the same while all that answered lost power
	StallTimeout   int64 // a request that cannot proceed for so long fails; 0 never
	LeaseTime      int64 // how long a read lease lets the coordinator read; with ConfirmReads how long a confirmation may take before reads are held
	LeaseRest      int64 // leases are not renewed when the consumer has asked for nothing for so long; 0: always
	ConfirmReads   bool  // each read is confirmed by the in-sync replicas: no read leases, no trust in clocks
	RetryInterval  int64 // between attempts of control requests, connections and joins
	FlushInterval  int64 // writes are flushed in the background after so long
	FlushBytes     int64 // and after so many bytes
	FlushRegions   int   // and when writes have gone to so many regions: the activity logs have room for few
	ResyncRate     int64 // bytes compared or copied a second; 0 unlimited
	ResyncFloor    int64 // bytes compared or copied a second, however slow that makes the consumer's requests; 0: it is not looked at
	ResyncWindow   int   // spans of copySpan compared at once
	JoinerLag      int64 // bytes that a joiner may be behind before writes wait for it
	GroupTimeout   int64 // nothing waits longer than that for the other volumes of the group
	GroupRest      int64 // a replica that left for the sake of the group alone is not resynced before, so that the image stays while a disaster unfolds
	Group          bool  // the volume is in a group

	Rand func() uint64 // source of session numbers, generations and nonces
}

// stage of a coordinator's life (protocol.md 3.3).
type stage uint8

const (
	stageIdle       stage = iota // nothing asked yet
	stageElecting                // compare-and-set to RECOVERING is on its way
	stageSealing                 // collecting promises of the in-sync set
	stagePreparing               // survivors note who is missing
	stageActivating              // compare-and-set to ACTIVE is on its way
	stageCommitting              // survivors store the new configuration
	stageServing                 // I/O is ordered and fanned out
	stageDetached                // left in order; terminal
	stageHandedOver              // another coordinator was named in order; terminal
	stageDead                    // deposed or poisoned; terminal
)

// Coordinator is the state machine of the node where a volume is attached: it
// takes the volume over, orders its I/O, fans it out to the in-sync set, and
// evicts and joins members. It starts no goroutine, reads no clock and does no
// I/O; the same inputs give the same outputs. Not safe for concurrent use.
//
// After each input, or each batch of inputs, the caller takes Ready and carries
// it out. Within one Ready the order of Messages to one member matters; nothing
// else does.
type Coordinator struct {
	o     Options
	now   int64
	stage stage
	dead  error // why stageDead, or what is wrong with stageDetached

	cfg  *replication.Config // in force as far as known
	term replication.Term    // 0 before the election
	rev  uint64              // its revision in the kvdb
	m    []*member           // fixed for the coordinator's life, by id
	isr  mask

	change     *change // the configuration change under way, nil if none
	round      *round  // the control round of the takeover or of the change
	evictReq   mask
	evictWhy   []string
	detachReq  bool
	handTo     *replication.Coord // to whom the volume is to be given, nil if it stays
	holdAcks   bool               // no write is acknowledged (5.2 step 1)
	hold       hold               // what is not dispatched, and why
	changeSent bool               // a compare-and-set is unresolved
	ended      bool               // a detach has been proposed: no read is served any more

	changeStall Stall // why the last one is not in force

	earlier   replication.Term          // terms up to it have ended, see endedTerm
	seals     []*replication.SealResult // by member, of the takeover
	sealUntil int64
	lossUntil int64
	nextCtl   uint64
	ctl       map[uint64]*control

	group  groupState
	cut    *cutHold     // nil: no cut is being made
	snap   *snapshotCut // nil: no snapshot is being taken
	writes uint64       // requests that modify, dispatched in this term

	flight    flightTable
	waiting   []*IO
	proposed  int64  // when the consumer's last request came
	servedAt  int64  // when the volume came to be served
	answered  []*IO  // reads in flight whose data are there, and which wait for their confirmation
	reads     uint64 // sent so far
	grayAt    int64  // when the window began in which answers are counted
	retry     bool   // something was removed from flight or a state changed: look at waiting again
	lastSeq   replication.Seq
	stable    replication.Seq
	unflushed int64 // bytes written since the last flush was dispatched
	touched   int   // regions written since then
	flushes   uint32
	touchedAt []uint32 // by region: flushes, when it was last written
	wroteSeq  bool     // something was written since the last flush was dispatched
	flushing  bool     // an internal flush is in flight
	flushGood bool     // the last internal flush succeeded
	lastFlush int64

	blocks    int     // ResyncBlocks of the volume
	reconcile *Bitmap // blocks in which in-sync members may differ (D of protocol.md 8)
	jobs      []*copyJob
	reqs      map[replication.Seq]copyRequest
	cursor    int // of the reconcile sweep
	join      *join
	joinAt    int64   // earliest time of the next join attempt
	mayJoin   mask    // whose resync may begin
	bucket    bucket  // of resync
	pace      pace    // of copies beside the consumer
	policy    policy  // protection
	resize    *resize // nil if no other size was asked for
	copyAt    int64   // earliest time of the next copy, after one that failed

	suspicions []suspicion // oldest first
	healing    *copyJob    // nil if none is being looked into
	healAt     int64       // earliest time of the next, after one that failed
	harms      map[int64]harm
	harmMore   int // sectors that did not fit into harms
	verify     *verifyRun
	verified   *VerifyResult // of the last complete one

	ready   Ready
	freeIOs []*IO // internal flushes
}

// New returns a coordinator for the volume of cfg, a configuration read at
// revision rev of the kvdb.
func New(o Options, cfg *replication.Config, rev uint64) *Coordinator {
	ids := make([]replication.ReplicaID, 0, len(cfg.Members))
	for id := range cfg.Members {
		ids = append(ids, id)
	}
	slices.SortFunc(ids, func(a, b replication.ReplicaID) int { return slices.Compare(a[:], b[:]) })
	c := &Coordinator{
		o: o, cfg: cfg.Clone(), rev: rev,
		ctl:    make(map[uint64]*control),
		flight: newFlightTable(),
		blocks: blocksOf(cfg.Size),

		flushes: 1, touchedAt: make([]uint32, regionsIn(cfg.Size)),
		reqs: make(map[replication.Seq]copyRequest), harms: make(map[int64]harm),

		mayJoin: ^mask(0),
		lastSeq: 1, // so that the first flush covers something: what there was before this term
	}
	c.reconcile = NewBitmap(c.blocks)
	for _, id := range ids {
		c.m = append(c.m, &member{id: id, usable: true, kept: true, up: true})
	}
	c.group = c.newGroupState(o.Group)
	c.evictWhy = make([]string, len(c.m))
	c.seals = make([]*replication.SealResult, len(c.m))
	return c
}

// Members lists the replicas in the order of their indexes.
func (c *Coordinator) Members() []replication.ReplicaID {
	ids := make([]replication.ReplicaID, len(c.m))
	for i, m := range c.m {
		ids[i] = m.id
	}
	return ids
}

// Config returns the configuration in force as far as the coordinator knows. It must not be changed.
func (c *Coordinator) Config() *replication.Config { return c.cfg }

// Term is the coordinator's term, 0 before its election.
func (c *Coordinator) Term() replication.Term { return c.term }

// Ready returns what is to be done since the last call.
func (c *Coordinator) Ready() *Ready { return &c.ready }

// Advance tells that the last Ready was carried out, or handed to somebody who will.
func (c *Coordinator) Advance() {
	r := &c.ready
	clear(r.Messages)
	clear(r.Completions)
	clear(r.Released)
	clear(r.Returned)
	*r = Ready{
		Messages: r.Messages[:0], Control: r.Control[:0], Connect: r.Connect[:0], Disconnect: r.Disconnect[:0],
		Completions: r.Completions[:0], Released: r.Released[:0], Returned: r.Returned[:0], Events: r.Events[:0],
	}
}

// Start begins the takeover (protocol.md 5.1). A coordinator that the configuration names already, because the one
// before has handed over to it, begins in the term that it was given.
func (c *Coordinator) Start(now int64) {
	c.now = now
	switch {
	case c.stage != stageIdle:
	case c.o.TakeBack && !c.limbo():
		c.die(c.tooLate(c.cfg))
	case c.named():
		c.succeed()
	default:
		c.elect()
	}
}

// Propose takes a request of the consumer. It is completed once, in this or a later Ready.
func (c *Coordinator) Propose(now int64, io *IO) {
	c.now = now
	rested := c.idle()
	c.proposed = now
	io.slot, io.from, io.born = -1, -1, now
	io.targets, io.acked, io.full, io.failed, io.damaged, io.spoilt, io.cover = 0, 0, 0, 0, 0, 0, 0
	io.delivered, io.internal, io.copy = false, false, nil
	if io.Kind == replication.MsgFlush {
		io.Off, io.Len = 0, 0 // it has no range: it overlaps nothing
	}
	switch {
	case c.over():
		c.complete(io, c.deadErr())
		c.release(io)
	case c.dispatchable(io) && !c.behind(io):
		c.dispatch(io)
	default:
		c.enqueue(io)
	}
	if rested {
		c.askLeases()
	}
}

// Detach begins an orderly end: drain, flush, configuration without coordinator.
func (c *Coordinator) Detach(now int64) {
	c.now = now
	c.detachReq = true
	c.progress()
}

// Kill ends the coordinator at once: every request, now and later, fails with err.
func (c *Coordinator) Kill(now int64, err error) {
	c.now = now
	c.die(err)
}

// Dead returns why the coordinator ended, nil while it lives. After a detach that is
// replication.ErrClosed, or what was lost with it, and after a handover replication.ErrHandedOver.
func (c *Coordinator) Dead() error {
	if c.over() {
		return c.deadErr()
	}
	return nil
}

// Detached reports whether the coordinator left in order, as far as it could.
func (c *Coordinator) Detached() bool { return c.stage == stageDetached }

// over reports whether the coordinator has ended, in whatever way.
func (c *Coordinator) over() bool { return c.stage >= stageDetached }

func (c *Coordinator) deadErr() error {
	if c.dead != nil {
		return c.dead
	}
	return replication.ErrClosed
}

// SetUsable tells whether the cluster domain of member i may hold in-sync
// replicas (it is neither FENCED nor INACTIVE).
func (c *Coordinator) SetUsable(now int64, i int, usable bool) {
	c.now = now
	m := c.m[i]
	if m.usable == usable {
		return
	}
	m.usable = usable
	if !usable && c.stage == stageServing {
		c.requestEvict(i, domainClosed)
	}
	if usable {
		c.pardon(i, domainClosed)
	}
	c.progress()
}

// SetKept tells whether member i is to stay in the in-sync set as far as its cluster domain
// goes: it is not being deactivated by plan. One that is not leaves if another one has everything,
// and is served until then.
func (c *Coordinator) SetKept(now int64, i int, kept bool) {
	c.now = now
	c.m[i].kept = kept
	if kept {
		c.pardon(i, domainDrains)
	} else if c.stage == stageServing {
		c.requestEvict(i, domainDrains)
	}
	c.progress()
}

// SetUp tells whether the node of member i answers beats. Silence of the suspect
// timeout is the caller's to find; a connection can stay open much longer to a
// node that is paused or cut off.
func (c *Coordinator) SetUp(now int64, i int, up bool) {
	c.now = now
	m := c.m[i]
	m.up, c.retry = up, true
	switch {
	case up:
		m.tryAt, m.failedJoins = now, 0
		c.joinAt = min(c.joinAt, now)
		if m.open {
			c.pardon(i, suspected)
		}
	case c.stage == stageServing:
		c.requestEvict(i, suspected)
	}
	c.progress()
}

// ConfigSeen tells of a configuration found in the kvdb.
func (c *Coordinator) ConfigSeen(now int64, cfg *replication.Config) {
	c.now = now
	if c.over() || cfg.Epoch <= c.cfg.Epoch || c.stage <= stageElecting {
		return
	}
	if c.changeSent && c.change != nil && cfg.ProposalID == c.change.next.ProposalID {
		return // its own change, of which it has not been told yet
	}
	switch {
	case c.rolledBack(cfg): // nobody has taken over: what runs goes on (G6)
	case c.changeSent && c.succeeded(cfg): // its own handover is in force, of which it has not been told yet
	case !c.mine(cfg):
		c.die(replication.ErrDeposed)
	case c.lostTrack(cfg):
		c.die(errLostTrack)
	}
}

// rolledBack reports whether cfg, found in the kvdb, does not come from the configuration that this coordinator serves by, though no operator
// forced it: the kvdb was restored from a backup, or replaced.
func (c *Coordinator) rolledBack(cfg *replication.Config) bool {
	return c.stage == stageServing && cfg.ForkGen == c.cfg.ForkGen &&
		!replication.Follows(cfg.Epoch, cfg.Lineage(), replication.Ancestor{Epoch: c.cfg.Epoch, Gen: c.cfg.Gen})
}

// mine reports whether cfg names this coordinator in its term.
func (c *Coordinator) mine(cfg *replication.Config) bool {
	return cfg.Coord != nil && cfg.Coord.AttachID == c.o.Attach && cfg.Coord.Node == c.o.Node && cfg.Coord.Term == c.term
}

// die is the end: everything fails, nothing is revived (I23b).
func (c *Coordinator) die(err error) {
	if c.over() {
		return
	}
	c.stage, c.dead = stageDead, err
	c.change, c.round, c.join = nil, nil, nil
	clear(c.ctl)
	c.abortAll(err)
	c.event(Event{Kind: EventDied, Err: err})
}

// abortAll fails every request and ends every session.
func (c *Coordinator) abortAll(err error) {
	c.jobs, c.answered = nil, nil
	c.suspicions, c.healing, c.verify = nil, nil, nil
	if s := c.snap; s != nil {
		c.snap = nil
		c.tellSnapshot(s, err)
	}
	clear(c.reqs)
	for len(c.flight.ios) > 0 {
		io := c.flight.ios[0]
		c.flight.remove(io)
		c.complete(io, err)
		c.release(io)
	}
	for _, io := range c.waiting {
		c.complete(io, err)
		c.release(io)
	}
	c.waiting = nil
	for i, m := range c.m {
		if m.open || m.pending {
			c.ready.Disconnect = append(c.ready.Disconnect, Session{To: i, ID: m.sess})
			m.open, m.pending = false, false
		}
	}
}

// complete answers the consumer, once.
func (c *Coordinator) complete(io *IO, err error) {
	if io.delivered || io.internal || io.copy != nil {
		return
	}
	io.delivered = true
	if err == nil {
		c.pace.answered(c.now, io, len(c.jobs) > 0)
	}
	c.ready.Completions = append(c.ready.Completions, Completion{IO: io, Err: err})
}

// release gives a request back that nothing in the core refers to any more.
func (c *Coordinator) release(io *IO) {
	switch {
	case io.copy != nil:
	case io.internal:
		c.freeIOs = append(c.freeIOs, io)
	default:
		c.ready.Released = append(c.ready.Released, io)
	}
}

// send queues a message for member i's session.
func (c *Coordinator) send(i int, msg replication.Message) {
	m := c.m[i]
	msg.Session, msg.Term, msg.StableSeq = m.sess, c.term, c.stable
	m.stable = c.stable
	c.ready.Messages = append(c.ready.Messages, Outgoing{To: i, Msg: msg})
}

func (c *Coordinator) event(e Event) {
	e.Epoch = c.cfg.Epoch
	c.ready.Events = append(c.ready.Events, e)
}

const sector = block.SectorSize
