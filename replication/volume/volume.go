package volume

import (
	"context"
	"sync"
	"sync/atomic"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/tandem-storage/tandem/datapath/block"
	"github.com/tandem-storage/tandem/datapath/invariant"
	"github.com/tandem-storage/tandem/replication"
	"github.com/tandem-storage/tandem/replication/core"
)

// Volume is a volume that is attached on this node; it is a block.Device. Made by
// Manager.Attach.
type Volume struct {
	m    *Manager
	id   replication.VolumeID
	size atomic.Int64 // bytes

	attach replication.AttachID
	lg     *zap.Logger

	ctx    context.Context // ends with the volume
	cancel context.CancelFunc

	in    inbox[volumeInput]
	clock clock
	core  *core.Coordinator // by the worker only
	opts  core.Options      // of core
	links []*link           // by member index
	// farFirst has the links in the order of sending: what has the longer way leaves
	// before the local write is submitted.
	farFirst []*link

	serving  chan struct{} // closed when I/O is served for the first time
	dead     chan struct{} // closed when the coordinator has ended
	deadErr  error         // why; set before dead is closed
	end      ending
	asked    *move // by which the volume is to be handed over; by the worker
	away     *move // by which it was, and it has not been taken back; by the worker
	wasServe bool
	wasDead  bool
	ticked   bool // the status is to be published anew
	policies policies
	resizes  resizes
	meter    speed // of the resync under way
	turn     resyncTurn
	verifier verifier
	held     chan struct{}                                  // closed when a cut holds the volume; nil if nobody waits for that
	cuts     map[replication.SnapshotID]chan snapshotResult // by the worker
	noChange string                                         // why the last attempt of a change had no effect, for the log

	// With the lock of the Manager:
	waiters int         // calls of Attach that wait until it is served
	given   bool        // they have all gone: it is being given up, unless it serves by now
	leaving atomic.Bool // it was asked to detach; nobody can have it any more

	status  atomic.Pointer[Status]
	sealed  atomic.Pointer[[]core.Sealed]
	blocked atomic.Bool  // no further requests
	pending atomic.Int64 // requests of the consumer
	idle    chan struct{}
	idleOne sync.Once
}

var _ block.Device = (*Volume)(nil)

// link is a member as the worker sees it: who it is and where its session goes.
type link struct {
	id    replication.ReplicaID
	node  replication.NodeID
	sess  replication.SessionID
	to    sessionLink
	stop  context.CancelFunc // ends the session, also while it is being opened
	lost  sessionLog
	batch []replication.Message
}

// sessionLink carries one session's messages to a replica.
type sessionLink interface {
	// send takes a batch over, with one reference of each message's Buf. It does not block.
	send(batch []replication.Message)
	end()
}

type inputKind uint8

const (
	inPropose inputKind = iota + 1
	inMessage
	inSessionUp
	inSessionDown
	inSessionRefused
	inControl
	inChange
	inTick
	inUsable
	inKept
	inUp
	inSeen
	inDetach
	inGiveUp
	inKill
	inStart
	inNoted
	inVerify
	inPolicy
	inHandOver
	inKeep
	inTakeBack
	inTurn
	inCall
)

// volumeInput is one input of the coordinator's state machine.
type volumeInput struct {
	kind    inputKind
	io      *volumeIO
	member  int
	sess    replication.SessionID
	msg     replication.Message
	ack     replication.HelloAck
	link    sessionLink
	id      uint64
	ctl     core.ControlResult
	outcome core.Outcome
	cfg     *replication.Config
	rev     uint64
	flag    bool
	rate    int64
	err     error
	done    chan struct{} // closed when the status shows it
	policy  *policyRequest
	of      *core.Coordinator // whose question is answered
	move    *move
	turn    *turnAnswer
	call    func(t int64)
}

// now is CLOCK_BOOTTIME in nanoseconds: it goes on while the machine sleeps.
func now() int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		invariant.Fail("clock_gettime: %v", err) // cannot fail on Linux
	}
	return ts.Nano()
}

// Info implements block.Device.
func (v *Volume) Info() block.Info {
	return block.Info{
		Size: v.size.Load(), BlockSize: block.SectorSize,
		Caps: block.CapFlush | block.CapFUA | block.CapDiscard | block.CapWriteZeroes,
	}
}

func (v *Volume) post(in ...volumeInput) {
	if v.in.post(in...) {
		v.work()
	}
}

func (v *Volume) work() {
	for range maxTurns {
		items := v.in.next()
		if items == nil {
			return
		}
		t, others := now(), false
		for i := range items {
			others = others || items[i].kind != inTick
			if v.away == nil || !v.applyAway(&items[i]) {
				v.apply(t, &items[i])
			}
		}
		v.carryOut()
		v.pace(others)
		for i := range items {
			releaseBuf(&items[i].msg) // of reads and hashes; who needs more has retained
		}
	}
	go v.work() // whoever brought an input has work of its own
}

func (v *Volume) apply(t int64, in *volumeInput) {
	switch in.kind {
	case inPropose:
		v.core.Propose(t, &in.io.io)
	case inMessage:
		v.core.Step(t, in.member, &in.msg)
	case inSessionUp:
		l := v.links[in.member]
		if l.sess != in.sess {
			return // it was given up meanwhile
		}
		l.to = in.link
		l.lost.up(v.lg, l.node)
		v.core.SessionUp(t, in.member, in.sess, in.ack)
	case inSessionDown:
		if l := v.links[in.member]; l.sess == in.sess {
			l.drop()
		}
		if in.err != nil {
			v.links[in.member].lost.down(v.lg, t, v.links[in.member].node, in.err)
		}
		v.core.SessionDown(t, in.member, in.sess)
	case inSessionRefused:
		if l := v.links[in.member]; l.sess == in.sess {
			l.drop()
		}
		if in.msg.Status != replication.StatusFenced { // that one has a line of its own
			l := v.links[in.member]
			l.lost.down(v.lg, t, l.node, refusedWith(in.msg.Status))
		}
		v.core.SessionRefused(t, in.member, in.sess, in.msg.Status, in.msg.Term)
	case inControl:
		if in.of == v.core {
			v.core.ControlDone(t, in.id, in.ctl)
		}
	case inChange:
		if in.of == v.core {
			v.core.ChangeDone(t, in.outcome, in.cfg, in.rev)
		}
	case inHandOver:
		v.handOver(t, in.move)
	case inKeep:
		v.core.Keep(t, in.err)
	case inTakeBack:
		v.takeBack(t)
	case inTick:
		v.ticked = true
		v.takeTurn(t)
		v.core.Tick(t)
		v.verifyIfDue(t)
	case inUsable:
		v.core.SetUsable(t, in.member, in.flag)
	case inKept:
		v.core.SetKept(t, in.member, in.flag)
	case inUp:
		v.core.SetUp(t, in.member, in.flag)
	case inSeen:
		v.core.ConfigSeen(t, in.cfg)
	case inDetach:
		v.core.Detach(t)
	case inGiveUp:
		if !v.wasServe {
			v.core.Kill(t, in.err)
		}
	case inKill:
		v.core.Kill(t, in.err)
	case inStart:
		v.takeTurn(t)
		v.core.Start(t)
	case inCall:
		in.call(t)
	case inNoted:
		v.noted()
	case inTurn:
		v.answeredTurn(t, in.turn)
	case inPolicy:
		v.askPolicy(t, in.policy)
	case inVerify:
		if in.flag {
			v.core.StartVerify(t, in.rate)
		} else {
			v.core.StopVerify(t)
		}
		v.ticked = true
		v.verifier.asked = append(v.verifier.asked, in.done)
	}
}

func (l *link) drop() {
	if l.to != nil {
		l.to.end()
		l.to = nil
	}
	if l.stop != nil {
		l.stop()
		l.stop = nil
	}
	l.sess = 0
}

// carryOut does what the state machine asks for. It does not block.
func (v *Volume) carryOut() {
	r := v.core.Ready()
	for i := range r.Messages {
		m := &r.Messages[i]
		l := v.links[m.To]
		if l.to == nil || l.sess != m.Msg.Session {
			continue
		}
		if m.Msg.Buf != nil {
			m.Msg.Buf.Retain()
		}
		l.batch = append(l.batch, m.Msg)
	}
	for _, l := range v.farFirst {
		if len(l.batch) > 0 {
			l.to.send(l.batch)
			clear(l.batch)
			l.batch = l.batch[:0]
		}
	}
	for _, s := range r.Disconnect {
		if l := v.links[s.To]; l.sess == s.ID {
			l.drop()
		}
	}
	for _, s := range r.Connect {
		l := v.links[s.To]
		l.drop()
		ctx, cancel := context.WithCancelCause(v.ctx)
		l.sess, l.stop = s.ID, func() { cancel(errEnded) }
		v.connect(ctx, s)
	}
	co := v.core
	for _, c := range r.Control {
		v.m.running.Go(func() { v.control(co, c) })
	}
	if r.Change != nil {
		ch := *r.Change
		if ch.Sealed != nil {
			v.sealed.Store(&ch.Sealed)
		}
		v.m.running.Go(func() { v.swap(co, ch) })
	}
	tell := v.noteMove(r)
	v.noteEnd()
	for _, d := range r.Completions {
		if o := d.IO.User.(*volumeIO); d.Err == nil || !v.withhold(o.req, d.Err) {
			v.finish(o, d.Err)
		}
	}
	for _, io := range r.Released {
		io.User.(*volumeIO).recycle()
	}
	v.dropAway()
	v.observe(r.Events)
	if tell != nil {
		close(tell)
	}
	v.core.Advance()
}

// Close implements block.Device: it refuses further requests and waits for those
// in flight. The volume stays attached; Manager.Detach ends that.
func (v *Volume) Close() error {
	v.blocked.Store(true)
	if v.pending.Load() == 0 {
		v.idleOne.Do(func() { close(v.idle) })
	}
	<-v.idle
	return nil
}

// Dead is closed when the volume is no longer served here, after a detach or
// because it was lost; then Err says why.
func (v *Volume) Dead() <-chan struct{} { return v.dead }

// Err returns why the volume ended; nil after a detach, unless its last flush failed. Valid after Dead is closed.
func (v *Volume) Err() error { return v.deadErr }

// AttachID is the attachment's. No other one of any volume has it.
func (v *Volume) AttachID() replication.AttachID { return v.attach }

// ID is the volume's.
func (v *Volume) ID() replication.VolumeID { return v.id }
