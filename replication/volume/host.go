package volume

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash/crc32"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/tandem-storage/tandem/datapath/block"
	"github.com/tandem-storage/tandem/replication"
	"github.com/tandem-storage/tandem/replication/core"
	"github.com/tandem-storage/tandem/replication/wire"
)

// replicaCredit is how many payload bytes a coordinator may have on the way to
// one replica.
const replicaCredit = 32 << 20

// replyTo takes a batch of a replica's messages. It must not block and takes
// over one reference of each message's Buf.
type replyTo interface {
	reply(batch []replication.Message)
	agreed() wire.Agreed // with the other end
	end()
}

// host runs one replica of this node.
type host struct {
	id   replication.ReplicaID
	vol  replication.VolumeID
	node *nodeIdentity
	st   Storage
	lg   *zap.Logger

	in   inbox[hostInput]
	core *core.Replica // by the worker only

	conns   map[core.ConnID]replyTo // by the worker only
	replies map[uint64]chan core.ControlResult
	nextID  uint64
	lastID  struct {
		sync.Mutex
		conn core.ConnID
	}

	looked  int64       // when look did; by the worker only
	damage  int64       // when tellDamage did; by the worker only
	noSums  bool        // look has told; by the worker only
	sweeper *time.Timer // of the next sweep; by the worker only
	sweeps  bool        // it runs
	waker   *time.Timer // of the next time that the core asked for; by the worker only
	crowded bool        // what it found; by the worker only
	closing bool        // nothing is taken in any more; by the worker only
	stop    chan rest   // somebody waits for the replica to come to rest

	// scratch of the worker
	reqs  []*block.Request
	batch []replication.Message

	lacks atomic.Pointer[map[replication.ReplicaID]int64] // what look found the dirty maps to say, in bytes

	closeOnce sync.Once
	stopped   chan struct{} // closed when the storage is closed
	closeErr  error         // of that; set before
}

// nodeIdentity is what a replica tells of the process that serves it.
type nodeIdentity struct {
	boot     replication.BootID
	instance replication.UUID
	grant    int64 // how long it keeps read leases, nanoseconds
}

var hostInputSlices = sync.Pool{New: func() any { return new([]hostInput) }}

type hostInputKind uint8

const (
	hostMessage hostInputKind = iota + 1
	hostHello
	hostConnClosed
	hostIODone
	hostPersisted
	hostLogged
	hostSweep
	hostWake
	hostControl
	hostDirty
	hostStop
)

// hostInput is one input of the replica's state machine.
type hostInput struct {
	kind  hostInputKind
	conn  core.ConnID
	msg   replication.Message
	hello replication.Hello
	to    replyTo
	io    *hostIO
	err   error
	ctl   any // *SealRequest, *PrepareRequest, *CommitRequest, *DirtyRequest
	done  chan core.ControlResult
	stop  chan rest
}

// rest is the answer to hostStop.
type rest struct {
	core.Rest
	ok bool // they are known
}

func newHost(vol replication.VolumeID, id replication.ReplicaID, size int64, st Storage, node *nodeIdentity, lg *zap.Logger) (*host, error) {
	s, err := st.Stored()
	if err != nil {
		return nil, err
	}
	h := &host{
		id: id, vol: vol, node: node, st: st, lg: lg,
		core: core.NewReplica(core.ReplicaOptions{
			Volume: vol, Replica: id, Size: size, Boot: node.boot, Instance: node.instance, Credit: replicaCredit,
			Now: now(), LeaseGrant: node.grant,
			Meta: s.Meta, Slots: s.Slots, Active: s.Active, LogLost: s.LogLost, Dirty: s.Dirty,
		}),
		conns:   make(map[core.ConnID]replyTo),
		replies: make(map[uint64]chan core.ControlResult),
		stopped: make(chan struct{}),
	}
	h.sweeper = time.AfterFunc(sweepInterval, func() { h.post(hostInput{kind: hostSweep}) })
	h.sweeper.Stop()
	h.waker = time.AfterFunc(sweepInterval, func() { h.post(hostInput{kind: hostWake}) })
	h.waker.Stop()
	if s.LogLost {
		lg.Warn("activity log lost, replica will be compared in full", zap.NamedError("reason", s.Damage))
	}
	return h, nil
}

// newConn returns a fresh connection number.
func (h *host) newConn() core.ConnID {
	h.lastID.Lock()
	defer h.lastID.Unlock()
	h.lastID.conn++
	return h.lastID.conn
}

func (h *host) post(in ...hostInput) {
	if h.in.post(in...) {
		h.work()
	}
}

// control carries a control request out and waits for its durable answer.
func (h *host) control(ctx context.Context, req any) (core.ControlResult, error) {
	done := make(chan core.ControlResult, 1)
	in := hostInput{kind: hostControl, ctl: req, done: done}
	if _, ok := req.(*replication.DirtyRequest); ok {
		in.kind = hostDirty
	}
	h.post(in)
	select {
	case r := <-done:
		if r.Failed {
			return r, replication.ErrClosed
		}
		return r, nil
	case <-ctx.Done():
		return core.ControlResult{Failed: true}, ctx.Err()
	case <-h.stopped:
		return core.ControlResult{Failed: true}, replication.ErrClosed
	}
}

func (h *host) work() {
	for range maxTurns {
		items := h.in.next()
		if items == nil {
			return
		}
		t := now() // after the inputs came
		h.look(t)
		h.core.SetClock(t)
		for i := range items {
			h.apply(&items[i])
		}
		h.carryOut()
	}
	go h.work() // whoever brought an input has work of its own
}

func (h *host) apply(in *hostInput) {
	switch in.kind {
	case hostMessage:
		if _, ok := h.conns[in.conn]; !ok {
			releaseBuf(&in.msg)
			return
		}
		if !h.core.Step(in.conn, &in.msg) {
			releaseBuf(&in.msg)
		}
	case hostHello:
		if h.closing {
			in.to.end()
			return
		}
		h.conns[in.conn] = in.to
		h.core.Hello(in.conn, in.msg, in.hello)
	case hostConnClosed:
		delete(h.conns, in.conn)
		h.core.ConnClosed(in.conn)
	case hostIODone:
		io := in.io
		if io.io.Buf != nil {
			io.io.Buf.Release()
		}
		if errors.Is(in.err, block.ErrChecksum) {
			h.tellDamage(in.err)
		}
		h.core.IODone(io.io, io.data, io.buf, in.err)
		io.recycle()
	case hostPersisted:
		h.core.PersistDone(in.err)
	case hostLogged:
		h.core.LogDone(in.err)
	case hostWake: // the time was told
	case hostSweep:
		if h.sweeps = false; !h.closing {
			h.core.Sweep()
		}
	case hostControl:
		if h.closing {
			in.done <- core.ControlResult{Failed: true}
			return
		}
		h.nextID++
		h.replies[h.nextID] = in.done
		switch q := in.ctl.(type) {
		case *replication.SealRequest:
			h.core.Seal(h.nextID, *q)
		case *replication.PrepareRequest:
			h.core.Prepare(h.nextID, *q)
		case *replication.CommitRequest:
			h.core.Commit(h.nextID, *q)
		}
	case hostDirty:
		if h.closing {
			in.done <- core.ControlResult{Failed: true}
			return
		}
		r := h.core.DirtyMap(*in.ctl.(*replication.DirtyRequest))
		in.done <- core.ControlResult{Dirty: &r}
	case hostStop:
		h.closing, h.stop = true, in.stop
		for id, c := range h.conns {
			h.core.ConnClosed(id)
			c.end()
		}
		clear(h.conns)
	}
}

// carryOut does what the state machine asks for. It does not block.
func (h *host) carryOut() {
	r := h.core.Ready()
	if c := r.Log; c != nil {
		var done func(error)
		if c.Wait {
			done = func(err error) { h.post(hostInput{kind: hostLogged, err: err}) }
		}
		h.st.ChangeLog(*c, done)
	}
	for _, io := range r.Dropped {
		if io.Buf != nil {
			io.Buf.Release()
		}
	}
	if len(r.IO) > 0 {
		h.reqs = h.reqs[:0]
		for _, io := range r.IO {
			if io.Kind == replication.MsgSnapCut {
				h.cut(io)
				continue
			}
			h.reqs = append(h.reqs, h.request(io))
		}
		h.st.Submit(h.reqs)
	}
	h.sendReplies(r.Send)
	for _, p := range r.Replies {
		h.replies[p.ID] <- p.Result
		delete(h.replies, p.ID)
	}
	for _, id := range r.Close {
		if c := h.conns[id]; c != nil {
			c.end()
			delete(h.conns, id)
		}
	}
	if r.Persist != nil {
		p := *r.Persist
		go func() { h.post(hostInput{kind: hostPersisted, err: h.st.Persist(p)}) }()
	}
	if r.Wake != 0 {
		h.waker.Reset(time.Duration(max(r.Wake-now(), 1)))
	}
	if r.Faulted {
		h.lg.Error("replica faulted")
	}
	h.core.Advance()
	switch {
	case h.stop != nil && h.core.Idle():
		var u rest
		u.Rest, u.ok = h.core.Rest()
		h.stop <- u
		h.stop = nil
	case !h.sweeps && !h.closing && h.core.Restless():
		h.sweeps = true
		h.sweeper.Reset(sweepInterval)
	}
}

// sweepInterval is how often regions that are settled leave the activity log.
const sweepInterval = time.Second

// sendReplies hands runs of messages to the same connection over as a batch.
func (h *host) sendReplies(s []core.ReplicaSend) {
	for i := 0; i < len(s); {
		h.batch = h.batch[:0]
		conn := s[i].Conn
		c := h.conns[conn]
		for ; i < len(s) && s[i].Conn == conn; i++ {
			if s[i].Msg.Type == replication.MsgHelloAck && c != nil {
				fillHelloAck(&s[i].Msg, replication.HelloAck{Boot: h.node.boot, Instance: h.node.instance, Credit: s[i].Msg.Credit}, c.agreed())
			}
			h.batch = append(h.batch, s[i].Msg)
		}
		if c != nil {
			c.reply(h.batch)
			continue
		}
		for k := range h.batch {
			releaseBuf(&h.batch[k])
		}
	}
}

func releaseBuf(m *replication.Message) {
	if m.Buf != nil {
		m.Buf.Release()
		m.Buf, m.Data = nil, nil
	}
}

// hostIO is one operation on the replica's data.
type hostIO struct {
	req  block.Request
	h    *host
	io   *core.LocalIO
	data []byte
	buf  *block.Buffer
}

var hostIOs = sync.Pool{New: func() any { return new(hostIO) }}

func (o *hostIO) recycle() {
	*o = hostIO{}
	hostIOs.Put(o)
}

// request turns an operation of the core into one of the device.
func (h *host) request(io *core.LocalIO) *block.Request {
	o := hostIOs.Get().(*hostIO)
	o.h, o.io = h, io
	r := &o.req
	r.Off, r.Len, r.By = io.Off, io.Len, o
	if io.Flags&replication.FlagFUA != 0 {
		r.Flags |= block.FUA
	}
	switch io.Kind {
	case replication.MsgWrite:
		r.Op, r.Data, r.Buf, r.Sums = block.OpWrite, io.Data, io.Buf, io.Sums
	case replication.MsgResyncWrite:
		if len(io.Data) == 0 {
			r.Op = block.OpDiscard
			break
		}
		r.Op, r.Data, r.Buf, r.Sums = block.OpWrite, io.Data, io.Buf, io.Sums
	case replication.MsgZero:
		r.Op = block.OpWriteZeroes
		if io.Flags&replication.FlagNoHole != 0 {
			r.Flags |= block.NoHole
		}
	case replication.MsgTrim:
		r.Op = block.OpDiscard
	case replication.MsgFlush:
		r.Op, r.Off, r.Len, r.Flags = block.OpFlush, 0, 0, 0
	case replication.MsgRead, replication.MsgHashReq, replication.MsgExamine:
		o.buf = block.NewBuffer(int(io.Len))
		o.data = o.buf.Bytes()
		r.Op, r.Data, r.Buf = block.OpRead, o.data, o.buf
		if io.Kind == replication.MsgHashReq && h.core.Meta().State == replication.MemberSyncing {
			r.Flags |= block.AsIs // what is damaged differs, and is copied then
		}
		if io.Flags&replication.FlagAsIs != 0 {
			r.Flags |= block.AsIs
		}
	default: // the core makes no other
	}
	return r
}

// Complete implements block.Completer.
func (o *hostIO) Complete(_ *block.Request, err error) {
	switch {
	case o.buf == nil:
	case o.io.Kind == replication.MsgExamine && !errors.Is(err, block.ErrClosed):
		go o.examine(err == nil) // long work, not for the disk's goroutine
		return
	case err != nil:
		o.buf.Release()
		o.buf, o.data = nil, nil
	case o.io.Kind == replication.MsgHashReq:
		go o.hash() // long work, not for the disk's goroutine
		return
	}
	o.h.post(hostInput{kind: hostIODone, io: o, err: err})
}

// hash replaces the data read by the hashes of its ResyncBlocks.
func (o *hostIO) hash() {
	src := o.data
	n := (len(src) + replication.ResyncBlock - 1) / replication.ResyncBlock
	out := block.NewBuffer(n * replication.HashLen)
	for i := range n {
		b := src[i*replication.ResyncBlock : min((i+1)*replication.ResyncBlock, len(src))]
		s := sha256.Sum256(b)
		copy(out.Bytes()[i*replication.HashLen:], s[:replication.HashLen])
	}
	o.buf.Release()
	o.buf, o.data = out, out.Bytes()
	o.h.post(hostInput{kind: hostIODone, io: o})
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// sumsOf appends the checksum of each sector of p.
func sumsOf(s []uint32, p []byte) []uint32 {
	for len(p) > 0 {
		n := min(len(p), block.SectorSize)
		s = append(s, crc32.Checksum(p[:n], castagnoli))
		p = p[n:]
	}
	return s
}

// close takes nothing in any more and waits until the replica is at rest and its
// storage closed, as long as ctx allows. Then the error wraps ErrNotAtRest, the
// replica goes on coming to rest, and close may be called again to wait for it.
func (h *host) close(ctx context.Context) error {
	h.closeOnce.Do(func() { go h.shutDown() })
	select {
	case <-h.stopped:
		return h.closeErr
	default:
	}
	select {
	case <-h.stopped:
		return h.closeErr
	case <-ctx.Done():
		return fmt.Errorf("%w: replica %s of volume %s in pool %s: %w", ErrNotAtRest, h.id, h.vol, h.st.Pool(), ctx.Err())
	}
}

// shutDown closes the storage when nothing is under way, cleanly if what is unsettled
// is known: a write that the disk has not answered may still land, and what came after
// the question would be missing in what is kept.
func (h *host) shutDown() {
	defer close(h.stopped)
	stop := make(chan rest, 1)
	h.post(hostInput{kind: hostStop, stop: stop})
	u := <-stop
	if !u.ok {
		h.closeErr = h.st.Close()
		return
	}
	h.closeErr = h.st.CloseClean(u.Rest)
}
