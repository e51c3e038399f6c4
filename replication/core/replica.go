package core

import (
	"errors"
	"math"
	"slices"

	"github.com/tandem-storage/tandem/datapath/block"
	"github.com/tandem-storage/tandem/replication"
)

// ReplicaMeta is what a replica knows durably: its superblock as the core sees it.
type ReplicaMeta struct {
	Epoch       replication.Epoch // of the newest configuration learnt
	Gen         uint64
	Term        replication.Term // highest promised: no older one is served again (I6)
	State       replication.MemberState
	ISR         []replication.ReplicaID
	Missing     []replication.ReplicaID // members that a dirty map is kept for
	Incarnation replication.UUID        // of the kvdb
	Lossy       bool                    // power was lost and what is missing has not been repaired
	Clean       bool                    // every write is settled, and no session is open
}

// ReplicaOptions configure a Replica.
type ReplicaOptions struct {
	Volume   replication.VolumeID
	Replica  replication.ReplicaID
	Size     int64 // bytes
	Boot     replication.BootID
	Instance replication.UUID // of this process
	Credit   uint32           // payload bytes that a coordinator may have on the way

	Now        int64 // as SetClock tells it
	LeaseGrant int64 // how long a read lease is kept, nanoseconds; at least that of the process before, or nobody holds a longer one

	Meta    ReplicaMeta
	Slots   int                               // how many regions the activity log has room for; 0 all
	Active  []uint32                          // those that it has
	LogLost bool                              // it does not tell: any region may be unsettled
	Dirty   map[replication.ReplicaID]*Bitmap // maps as they are stored; nil means all ones
}

// ConnID names a session's transport to the replica's caller.
type ConnID uint64

// Replica is the state machine of one replica: it promises terms, serves one
// session at a time, and remembers what may differ from the others. It starts no
// goroutine and does no I/O. Not safe for concurrent use.
type Replica struct {
	o    ReplicaOptions
	meta ReplicaMeta

	conn     ConnID // of the session served, 0 none
	session  replication.SessionID
	used     replication.Seq // highest number that the session has used
	inUse    int             // I/O in the kernel
	altering int             // of it, what alters
	cutting  bool            // a snapshot is in the kernel
	applied  replication.Position
	began    replication.Term // promised last by this process: all writes of it have come here

	now    int64 // as SetClock told it
	leased int64 // the coordinator of the term promised may complete reads before

	queue []*replicaTask // control requests, hellos and saves, one at a time
	busy  bool           // the first of queue waits for a persist

	// The activity log, see activity.go.
	slots      int
	regions    []region
	listed     []uint32        // regions that are in the log, or coming
	coming     []uint32        // of them, those that nobody was asked for yet
	flying     []uint32        // and those that LogDone will tell of
	stable     replication.Seq // of this term: writes up to it are settled everywhere
	lostTo     replication.Seq // numbers up to here may have been used without the log telling
	olds       bool            // some regions may be old
	logLost    bool            // any region may be unsettled
	lostStored bool            // and that is durable
	lostAsked  bool            // of the change that is waited for
	logBusy    bool            // a change is waited for
	unstored   bool            // regions have left, and no change has been waited for since
	saving     bool            // a save is in queue
	held       []*LocalIO      // wait for LogDone
	parked     []*LocalIO      // wait for room in the log, in the order in which they came
	waited     int             // calls of Sweep that the first of parked has waited

	dirty   map[replication.ReplicaID]*dirtyMap
	maps    []*dirtyMap // the values of dirty, for the hot path
	faulted bool
	crowded bool // the pool is nearly full

	ready ReplicaReady
	free  []*LocalIO
}

// replicaTask is a request that needs the replica to itself.
type replicaTask struct {
	id      uint64
	seal    *replication.SealRequest
	prepare *replication.PrepareRequest
	commit  *replication.CommitRequest
	conn    ConnID
	hello   *replication.Hello
	msg     replication.Message // of the hello
	save    bool                // dirty maps only
	reply   ControlResult

	parts   []MapPart       // that wait for the persist
	grow    int64           // the persist is that the replica gets this size
	grew    bool            // it has been, or cannot be
	settled bool            // commit: everything is settled
	used    replication.Seq // up to here
}

// ReplicaReady is what the caller has to do. The slices are valid until the next input.
type ReplicaReady struct {
	Persist *Persist       // to make durable; answered by PersistDone
	Log     *LogChange     // of the activity log; answered by LogDone if it says so
	IO      []*LocalIO     // to start; each answered by IODone
	Dropped []*LocalIO     // not to be started after all; nothing refers to them
	Send    []ReplicaSend  // messages to the session's coordinator
	Replies []ReplicaReply // answers to control requests
	Close   []ConnID       // connections to end
	Faulted bool           // the replica has just become FAULTED
	Wake    int64          // when SetClock is due even if nothing happens, 0 never
}

// Persist is what a replica makes durable: its size first, the parts of dirty maps before Meta. If there is no room to grow, PersistDone tells
// block.ErrNoSpace, and nothing was changed. There
// are maps for the members in Meta.Missing, and for no others afterwards.
type Persist struct {
	Size int64        // bytes, larger than it is; 0: as it is
	Meta *ReplicaMeta // nil: as it is
	Maps []MapPart
}

// ReplicaSend is a message on a connection.
type ReplicaSend struct {
	Conn ConnID
	Msg  replication.Message
}

// ReplicaReply answers the control request ID.
type ReplicaReply struct {
	ID     uint64
	Result ControlResult
}

// LocalIO is one operation on the replica's data.
type LocalIO struct {
	Kind  replication.MessageType // MsgWrite, MsgZero, MsgTrim, MsgFlush, MsgRead, MsgHashReq, MsgExamine, MsgResyncWrite, MsgSnapCut
	Flags replication.MessageFlags
	Off   int64 // of a snapshot the volume's size
	Len   int64
	Data  []byte // of a write; of a snapshot its SnapshotID
	Buf   *block.Buffer
	Sums  []uint32

	conn     ConnID
	session  replication.SessionID
	seq      replication.Seq
	unlogged bool // a modification without room in the log
}

// NewReplica returns the state machine of a replica that was just opened.
func NewReplica(o ReplicaOptions) *Replica {
	r := &Replica{
		o: o, meta: o.Meta, logLost: o.LogLost, lostStored: o.LogLost, olds: true,
		regions: make([]region, regionsIn(o.Size)),
		dirty:   make(map[replication.ReplicaID]*dirtyMap), lostTo: math.MaxUint64, now: o.Now,
	}
	r.quarantine()
	r.faulted = o.Meta.State == replication.MemberFaulted
	for _, g := range o.Active {
		if int(g) < len(r.regions) {
			r.regions[g] = region{old: true, state: regionIn}
			r.listed = append(r.listed, g)
		}
	}
	if r.slots = o.Slots; r.slots == 0 {
		r.slots = len(r.regions)
	}
	for _, q := range o.Meta.Missing {
		m := r.newMap()
		if old := o.Dirty[q]; old != nil {
			m.Or(old)
			copy(m.saved, m.w)
		}
		if o.Dirty[q] == nil || o.LogLost {
			m.SetAll()
		}
		r.markActive(m) // what was not stored is in the log
		r.dirty[q] = m
	}
	r.listMaps()
	return r
}

// Lacks is how many bytes the dirty maps say that each other member lacks, nil if there are no maps.
func (r *Replica) Lacks() map[replication.ReplicaID]int64 {
	if len(r.dirty) == 0 {
		return nil
	}
	m := make(map[replication.ReplicaID]int64, len(r.dirty))
	for q, d := range r.dirty {
		m[q] = int64(d.Count()) * replication.ResyncBlock
	}
	return m
}

func (r *Replica) newMap() *dirtyMap {
	return &dirtyMap{NewBitmap(blocksOf(r.o.Size)), make([]uint64, len(r.regions))}
}

func (r *Replica) listMaps() {
	r.maps = r.maps[:0]
	for _, q := range r.meta.Missing {
		r.maps = append(r.maps, r.dirty[q])
	}
}

// Meta is what is durable, or about to be.
func (r *Replica) Meta() ReplicaMeta { return r.meta }

// Ready returns what is to be done since the last Advance.
func (r *Replica) Ready() *ReplicaReady { return &r.ready }

// Advance tells that the last Ready was carried out.
func (r *Replica) Advance() {
	d := &r.ready
	if d.Log != nil && d.Log.Wait {
		r.logBusy, r.lostAsked, r.unstored = true, d.Log.Lost, false
	}
	for _, io := range d.Dropped {
		r.recycle(io)
	}
	clear(d.Send)
	clear(d.IO)
	clear(d.Dropped)
	*d = ReplicaReady{IO: d.IO[:0], Dropped: d.Dropped[:0], Send: d.Send[:0], Replies: d.Replies[:0], Close: d.Close[:0]}
}

func (r *Replica) recycle(io *LocalIO) {
	*io = LocalIO{}
	r.free = append(r.free, io)
}

// Seal, Prepare and Commit take control requests; a ReplicaReply with id answers.

// Seal is the promise of a term (protocol.md 5.1 step 3).
func (r *Replica) Seal(id uint64, q replication.SealRequest) {
	r.enqueue(&replicaTask{id: id, seal: &q})
}

// Prepare sets which members a dirty map is kept for.
func (r *Replica) Prepare(id uint64, q replication.PrepareRequest) {
	r.enqueue(&replicaTask{id: id, prepare: &q})
}

// Commit tells the configuration in force.
func (r *Replica) Commit(id uint64, q replication.CommitRequest) {
	r.enqueue(&replicaTask{id: id, commit: &q})
}

// DirtyMap answers a DirtyRequest.
func (r *Replica) DirtyMap(q replication.DirtyRequest) replication.DirtyResult {
	m := r.dirty[q.Peer]
	switch {
	case q.Term != r.meta.Term:
		return replication.DirtyResult{Status: replication.StatusFenced}
	case m == nil:
		return replication.DirtyResult{Status: replication.StatusState}
	}
	return replication.DirtyResult{Bits: m.Bytes()}
}

// SetCrowded tells whether the pool is nearly full. The replica asks to leave the
// in-sync set then, in each of its answers.
func (r *Replica) SetCrowded(crowded bool) { r.crowded = crowded }

// Idle reports whether no I/O and no request is under way, nor a change of the log.
func (r *Replica) Idle() bool {
	return r.inUse == 0 && !r.busy && !r.logBusy && len(r.queue) == 0
}

// Rest is what a clean stop has to store.
type Rest struct {
	Maps   []MapPart
	Retire []uint32 // regions that may leave the activity log then
}

// Rest tells what a clean stop has to store. ok is false if the replica is not at rest, or
// has failed; the stop is unclean then.
func (r *Replica) Rest() (rest Rest, ok bool) {
	rest.Maps = r.unsavedParts(true)
	for _, g := range r.listed {
		if r.settled(g) {
			rest.Retire = append(rest.Retire, g)
		}
	}
	return rest, !r.faulted && r.Idle()
}

// ConnClosed tells that a connection ended. What it started goes on in the kernel.
func (r *Replica) ConnClosed(conn ConnID) {
	if r.conn == conn {
		r.conn, r.session = 0, 0
		r.dropHeld()
	}
	r.queue = slices.DeleteFunc(r.queue, func(t *replicaTask) bool { return t.hello != nil && t.conn == conn && !(r.busy && t == r.queue[0]) })
	r.run()
}

// CloseSessions ends the session, if there is one: its coordinator's cluster
// domain was fenced, or the node stops.
func (r *Replica) CloseSessions() {
	if r.conn != 0 {
		r.ready.Close = append(r.ready.Close, r.conn)
		r.conn, r.session = 0, 0
		r.dropHeld()
	}
}

func (r *Replica) enqueue(t *replicaTask) {
	r.queue = append(r.queue, t)
	r.run()
}

// run carries the first of the queue out when nothing is in its way: a task that
// ends a session waits until the session's I/O has left the kernel (I17), a new term also
// until nobody reads in the one before (I8).
func (r *Replica) run() {
	for !r.busy && len(r.queue) > 0 {
		t := r.queue[0]
		if t.seal != nil && r.sealStatus(t.seal) == replication.StatusOK || t.hello != nil && r.helloStatus(t) == replication.StatusOK {
			r.CloseSessions()
			if r.inUse > 0 {
				return
			}
			if t.seal != nil && r.leasedTo(t.seal) {
				r.ready.Wake = r.leased
				return
			}
		}
		if t.grow = r.growth(t); t.grow != 0 {
			r.busy = true
			r.ready.Persist = &Persist{Size: t.grow}
			return
		}
		meta := r.perform(t)
		if meta || t.save {
			t.parts = r.unsavedParts(meta || r.logLost)
		}
		if meta || len(t.parts) > 0 {
			r.busy = true
			r.ready.Persist = &Persist{Maps: t.parts}
			if meta {
				m := r.meta
				r.ready.Persist.Meta = &m
			}
			return
		}
		r.finish(t)
	}
}

// finish answers the first of the queue and drops it.
func (r *Replica) finish(t *replicaTask) {
	r.queue = r.queue[1:]
	if t.id != 0 {
		r.ready.Replies = append(r.ready.Replies, ReplicaReply{ID: t.id, Result: t.reply})
	}
	switch {
	case r.faulted:
	case t.settled:
		r.forgetAll(t.used)
	case t.save:
		r.afterSave()
	}
}

// PersistDone tells that the last Persist is durable, or that it failed, which
// ends the replica.
func (r *Replica) PersistDone(err error) {
	if !r.busy {
		return
	}
	r.busy = false
	t := r.queue[0]
	if t.grow != 0 && (err == nil || errors.Is(err, block.ErrNoSpace)) {
		if err == nil {
			r.grown(t.grow)
		}
		t.grow, t.grew = 0, true
		r.run()
		return
	}
	if err == nil {
		r.partsSaved(t.parts)
	} else {
		r.faulted, r.meta.State = true, replication.MemberFaulted
		r.ready.Faulted = true
		r.refuseHeld(replication.StatusIO)
		t.fail(replication.StatusIO)
	}
	r.finish(t)
	r.run()
}

// fail replaces the answer.
func (t *replicaTask) fail(st replication.Status) {
	switch {
	case t.seal != nil:
		t.reply.Seal = &replication.SealResult{Status: st}
	case t.prepare != nil:
		t.reply.Prepare = &replication.PrepareResult{Status: st}
	case t.commit != nil:
		t.reply.Commit = &replication.CommitResult{Status: st}
	}
}

// Hello takes the first message of a connection.
func (r *Replica) Hello(conn ConnID, msg replication.Message, h replication.Hello) {
	msg.Data, msg.Buf, msg.Sums = nil, nil, nil
	r.enqueue(&replicaTask{conn: conn, hello: &h, msg: msg})
}
