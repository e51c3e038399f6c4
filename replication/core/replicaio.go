package core

import (
	"bytes"
	"errors"
	"math"

	"github.com/tandem-storage/tandem/datapath/block"
	"github.com/tandem-storage/tandem/replication"
)

// Step takes a message of the session on conn. It reports whether the replica refers to
// its payload: until the IODone of the operation that it causes, or until that is dropped.
func (r *Replica) Step(conn ConnID, msg *replication.Message) (refers bool) {
	if conn != r.conn || msg.Session != r.session {
		r.nack(conn, msg, replication.StatusFenced)
		return false
	}
	if !r.plausible(msg) {
		r.nack(conn, msg, replication.StatusInvalid)
		return false
	}
	r.used = max(r.used, msg.Seq)
	if msg.Type == replication.MsgStable && msg.Seq != 0 && r.lostTo == math.MaxUint64 { // first of a session
		r.lostTo = msg.Seq
	}
	if msg.StableSeq > r.stable {
		r.settle(msg.StableSeq)
	}
	if msg.Type == replication.MsgLease { // a failed disk grants it, too: it does not promise another term
		r.grant(conn, msg)
		return false
	}
	if st := r.check(msg); st != replication.StatusOK {
		r.nack(conn, msg, st)
		return false
	}
	switch msg.Type {
	case replication.MsgWrite, replication.MsgZero, replication.MsgTrim, replication.MsgResyncWrite:
		r.modify(r.newIO(conn, msg))
		return true
	case replication.MsgFlush, replication.MsgRead, replication.MsgHashReq, replication.MsgExamine:
		r.start(r.newIO(conn, msg))
		return true
	case replication.MsgSnapCut:
		io := r.newIO(conn, msg)
		io.Data, io.Buf, io.Sums = bytes.Clone(msg.Data), nil, nil
		r.cutting = true
		r.start(io)
	case replication.MsgClose:
		r.CloseSessions()
	default: // MsgStable and what a later version may add
	}
	return false
}

func (r *Replica) newIO(conn ConnID, msg *replication.Message) *LocalIO {
	var io *LocalIO
	if n := len(r.free); n > 0 {
		io, r.free = r.free[n-1], r.free[:n-1]
	} else {
		io = &LocalIO{}
	}
	*io = LocalIO{
		Kind: msg.Type, Flags: msg.Flags, Off: msg.Offset, Len: msg.Length, Data: msg.Data, Buf: msg.Buf, Sums: msg.Sums,
		conn: conn, session: msg.Session, seq: msg.Seq,
	}
	return io
}

// plausible reports whether a coordinator can have given out the numbers of a
// message: requests have one, the log has room for one more, what is settled was
// used before, and nothing is settled before it is done.
func (r *Replica) plausible(msg *replication.Message) bool {
	if msg.Seq == math.MaxUint64 || msg.StableSeq > max(r.used, msg.Seq) {
		return false
	}
	switch msg.Type {
	case replication.MsgWrite, replication.MsgZero, replication.MsgTrim, replication.MsgResyncWrite:
		return msg.Seq > max(r.stable, msg.StableSeq)
	case replication.MsgFlush, replication.MsgRead, replication.MsgHashReq, replication.MsgExamine, replication.MsgSnapCut:
		return msg.Seq != 0
	default:
		return true
	}
}

// check says whether a message can be served.
func (r *Replica) check(msg *replication.Message) replication.Status {
	if msg.Status == replication.StatusCRC {
		return replication.StatusCRC
	}
	if r.faulted {
		return replication.StatusIO
	}
	switch msg.Type {
	case replication.MsgWrite, replication.MsgZero, replication.MsgTrim, replication.MsgResyncWrite, replication.MsgRead, replication.MsgHashReq, replication.MsgExamine:
		if msg.Offset < 0 || msg.Length <= 0 || msg.Offset%sector != 0 || msg.Length%sector != 0 ||
			msg.Offset > r.o.Size || msg.Length > r.o.Size-msg.Offset {
			return replication.StatusInvalid
		}
	default:
	}
	if r.cutting && alters(msg.Type) {
		return replication.StatusInvalid // what it has would be in the snapshot of one replica and not of another
	}
	switch msg.Type {
	case replication.MsgSnapCut:
		if r.meta.State != replication.MemberInSync {
			return replication.StatusState
		}
		if len(msg.Data) != len(replication.SnapshotID{}) || msg.Offset <= 0 || msg.Offset > r.o.Size || r.cutting || r.altering > 0 || len(r.held)+len(r.parked) > 0 {
			return replication.StatusInvalid
		}
	case replication.MsgWrite:
		if int64(len(msg.Data)) != msg.Length {
			return replication.StatusInvalid
		}
	case replication.MsgResyncWrite:
		if len(msg.Data) != 0 && int64(len(msg.Data)) != msg.Length {
			return replication.StatusInvalid
		}
	case replication.MsgRead:
		if r.meta.State != replication.MemberInSync { // I20
			return replication.StatusState
		}
		if msg.Length > block.MaxIO {
			return replication.StatusInvalid
		}
	case replication.MsgExamine:
		if r.meta.State != replication.MemberInSync { // I20
			return replication.StatusState
		}
		if msg.Length > copySpan {
			return replication.StatusInvalid
		}
	case replication.MsgHashReq:
		if msg.Length > copySpan {
			return replication.StatusInvalid
		}
	default:
	}
	return replication.StatusOK
}

// nack refuses a message; the room that its payload took is free again.
func (r *Replica) nack(conn ConnID, msg *replication.Message, st replication.Status) {
	payload := int64(len(msg.Data))
	if msg.Status == replication.StatusCRC {
		payload = msg.Length // it had one, which was thrown away
	}
	r.ready.Send = append(r.ready.Send, ReplicaSend{Conn: conn, Msg: replication.Message{
		Type: replication.MsgNack, Flags: r.wish(), Status: st, Session: msg.Session, Term: r.meta.Term, Seq: msg.Seq, Credit: uint32(payload),
	}})
}

// wish is what an answer asks for besides.
func (r *Replica) wish() replication.MessageFlags {
	if r.crowded {
		return replication.FlagCrowded
	}
	return 0
}

// IODone tells that an operation left the kernel. data and buf are the result of
// a read or of a hash; they go out with the answer.
func (r *Replica) IODone(io *LocalIO, data []byte, buf *block.Buffer, err error) {
	r.inUse--
	if alters(io.Kind) {
		r.altering--
	}
	if io.Kind == replication.MsgSnapCut {
		r.cutting = false
	}
	alive := io.conn == r.conn && io.session == r.session
	msg := replication.Message{Flags: r.wish(), Session: io.session, Term: r.meta.Term, Seq: io.seq, Offset: io.Off, Length: io.Len}
	modifies := io.Kind != replication.MsgRead && io.Kind != replication.MsgHashReq && io.Kind != replication.MsgExamine
	if r.faulted && err == nil {
		// An error is told once: success after it means nothing, and what is read may be what was there before (I25).
		err = block.ErrIO
		if buf != nil {
			buf.Release()
			buf = nil
		}
	}
	switch {
	case err == nil:
		msg.Type = replication.MsgAck
		switch io.Kind {
		case replication.MsgWrite, replication.MsgZero, replication.MsgTrim:
			r.apply(io.seq)
		case replication.MsgRead:
			msg.Type = replication.MsgData
		case replication.MsgHashReq:
			msg.Type = replication.MsgHash
		case replication.MsgExamine:
			msg.Type = replication.MsgFindings
		default:
		}
		msg.Data, msg.Buf = data, buf
		if io.Flags&replication.FlagFUA != 0 || io.Kind == replication.MsgFlush || io.Kind == replication.MsgSnapCut {
			msg.Flags |= replication.FlagStable
		}
		msg.Credit = uint32(len(io.Data))
	case errors.Is(err, block.ErrNoSpace) && io.Kind != replication.MsgFlush:
		msg.Type, msg.Status, msg.Credit = replication.MsgNack, replication.StatusNoSpace, uint32(len(io.Data))
	case io.Kind == replication.MsgSnapCut && snapshotStatus(err) != replication.StatusOK:
		msg.Type, msg.Status, msg.Credit = replication.MsgNack, snapshotStatus(err), uint32(len(io.Data))
	case errors.Is(err, block.ErrClosed):
		msg.Type, msg.Status, msg.Credit = replication.MsgNack, replication.StatusShuttingDown, uint32(len(io.Data))
	default:
		msg.Type, msg.Status, msg.Credit = replication.MsgNack, replication.StatusIO, uint32(len(io.Data))
		if modifies && !r.faulted {
			// What is on the disk is unknown now: never served again (I25).
			r.fail()
		}
	}
	if alive {
		r.ready.Send = append(r.ready.Send, ReplicaSend{Conn: io.conn, Msg: msg})
	} else if buf != nil {
		buf.Release()
	}
	r.recycle(io)
	if len(r.queue) > 0 {
		r.run()
	}
}

// snapshotStatus is the answer to a snapshot that was not taken for err, which is no error of the disk; StatusOK: it is one.
func snapshotStatus(err error) replication.Status {
	switch {
	case errors.Is(err, replication.ErrSnapshotUnsupported):
		return replication.StatusUnsupported
	case errors.Is(err, replication.ErrTooManySnapshots):
		return replication.StatusLimit
	case errors.Is(err, replication.ErrSnapshotExists):
		return replication.StatusState
	default:
		return replication.StatusOK
	}
}

// alters reports whether an operation of that kind changes what the disk has, or makes it stable: none may be under way beside a snapshot.
func alters(k replication.MessageType) bool {
	switch k {
	case replication.MsgWrite, replication.MsgZero, replication.MsgTrim, replication.MsgResyncWrite, replication.MsgFlush:
		return true
	default:
		return false
	}
}

// apply takes note of a write that is done. It is of the term promised: none is promised while one is in the kernel (I17).
func (r *Replica) apply(seq replication.Seq) {
	if r.meta.Term != r.began {
		return
	}
	if r.applied.Term != r.began {
		r.applied = replication.Position{Term: r.began}
	}
	r.applied.Seq = max(r.applied.Seq, seq)
}

// fail ends the replica: its disk has failed.
func (r *Replica) fail() {
	r.faulted, r.ready.Faulted = true, true
	r.refuseHeld(replication.StatusIO)
	r.enqueue(&replicaTask{})
}
