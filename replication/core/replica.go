package core

import (
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

	Meta    ReplicaMeta
	LogLost bool                              // the last stop was unclean: any region may be unsettled
	Active  []uint32                          // regions unsettled at a clean stop
	Dirty   map[replication.ReplicaID]*Bitmap // maps of a clean stop; nil means all ones
}

// ConnID names a session's transport to the replica's caller.
type ConnID uint64

// Replica is the state machine of one replica: it promises terms, serves one
// session at a time, and remembers what may differ from the others. It starts no
// goroutine and does no I/O. Not safe for concurrent use.
type Replica struct {
	o    ReplicaOptions
	meta ReplicaMeta

	conn    ConnID // of the session served, 0 none
	session replication.SessionID
	used    replication.Seq // highest number that the session has used
	inUse   int             // I/O in the kernel

	queue []*replicaTask // control requests and hellos, one at a time
	busy  bool           // the first of queue waits for a persist

	// al has, by region, 0 or 1 + the number of the last write to it in this term.
	// 1 stands for a write of an earlier term or process.
	al      []replication.Seq
	stable  replication.Seq // of this term: writes up to it are settled everywhere
	logLost bool
	lostTo  replication.Seq // numbers up to here may have been used before this process
	dirty   map[replication.ReplicaID]*Bitmap
	maps    []*Bitmap // the values of dirty, for the hot path
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
	reply   ControlResult
}

// ReplicaReady is what the caller has to do. The slices are valid until the next input.
type ReplicaReady struct {
	Persist *ReplicaMeta   // to make durable; answered by PersistDone
	IO      []*LocalIO     // to start; each answered by IODone
	Send    []ReplicaSend  // messages to the session's coordinator
	Replies []ReplicaReply // answers to control requests
	Close   []ConnID       // connections to end
	Faulted bool           // the replica has just become FAULTED
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
	Kind  replication.MessageType // MsgWrite, MsgZero, MsgTrim, MsgFlush, MsgRead, MsgHashReq, MsgResyncWrite
	Flags replication.MessageFlags
	Off   int64
	Len   int64
	Data  []byte // of a write
	Buf   *block.Buffer
	Sums  []uint32

	conn    ConnID
	session replication.SessionID
	seq     replication.Seq
}

// NewReplica returns the state machine of a replica that was just opened.
func NewReplica(o ReplicaOptions) *Replica {
	r := &Replica{
		o: o, meta: o.Meta, logLost: o.LogLost,
		al:    make([]replication.Seq, (o.Size+replication.RegionSize-1)/replication.RegionSize),
		dirty: make(map[replication.ReplicaID]*Bitmap), lostTo: math.MaxUint64,
	}
	r.faulted = o.Meta.State == replication.MemberFaulted
	for _, g := range o.Active {
		if int(g) < len(r.al) {
			r.al[g] = 1
		}
	}
	for _, q := range o.Meta.Missing {
		m := o.Dirty[q]
		if m == nil || o.LogLost {
			m = r.newMap()
			m.SetAll()
		}
		r.dirty[q] = m
	}
	r.listMaps()
	return r
}

func (r *Replica) newMap() *Bitmap {
	return NewBitmap(int((r.o.Size + replication.ResyncBlock - 1) / replication.ResyncBlock))
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
	clear(d.Send)
	clear(d.IO)
	*d = ReplicaReady{IO: d.IO[:0], Send: d.Send[:0], Replies: d.Replies[:0], Close: d.Close[:0]}
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

// Idle reports whether no I/O and no request is under way.
func (r *Replica) Idle() bool { return r.inUse == 0 && !r.busy && len(r.queue) == 0 }

// Unsettled tells what a clean stop has to keep: the active regions and the
// dirty maps. ok is false if the replica does not know them; the stop is unclean then.
func (r *Replica) Unsettled() (active []uint32, dirty map[replication.ReplicaID]*Bitmap, ok bool) {
	return r.active(), r.dirty, !r.logLost && !r.faulted && r.Idle()
}

// active lists the regions that are not settled.
func (r *Replica) active() []uint32 {
	var a []uint32
	for g, s := range r.al {
		if s != 0 && !r.retired(s) {
			a = append(a, uint32(g))
		}
	}
	return a
}

// retired reports whether the log may forget a region of entry s. An entry from
// before this process or term has no number: it waits until all are settled that
// may have been given out by then.
func (r *Replica) retired(s replication.Seq) bool {
	if s == 1 {
		return r.stable > 0 && r.stable >= r.lostTo
	}
	return s <= r.stable+1
}

// newTerm carries the activity log over to a new term, with numbers of its own.
func (r *Replica) newTerm() {
	for g, s := range r.al {
		switch {
		case s == 0:
		case r.retired(s):
			r.al[g] = 0
		default:
			r.al[g] = 1
		}
	}
	r.stable, r.lostTo = 0, 0
}

// ConnClosed tells that a connection ended. What it started goes on in the kernel.
func (r *Replica) ConnClosed(conn ConnID) {
	if r.conn == conn {
		r.conn, r.session = 0, 0
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
	}
}

func (r *Replica) enqueue(t *replicaTask) {
	r.queue = append(r.queue, t)
	r.run()
}

// run carries the first of the queue out when nothing is in its way: a task that
// ends a session waits until the session's I/O has left the kernel (I17).
func (r *Replica) run() {
	for !r.busy && len(r.queue) > 0 {
		t := r.queue[0]
		if t.seal != nil && r.sealStatus(t.seal) == replication.StatusOK || t.hello != nil && r.helloStatus(t) == replication.StatusOK {
			r.CloseSessions()
			if r.inUse > 0 {
				return
			}
		}
		persist := r.perform(t)
		if persist {
			r.busy = true
			m := r.meta
			r.ready.Persist = &m
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
}

// PersistDone tells that the last Persist is durable, or that it failed, which
// ends the replica.
func (r *Replica) PersistDone(err error) {
	if !r.busy {
		return
	}
	r.busy = false
	t := r.queue[0]
	if err != nil {
		r.faulted, r.meta.State = true, replication.MemberFaulted
		r.ready.Faulted = true
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
