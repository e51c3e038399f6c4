package core

import (
	"testing"

	"github.com/tandem-storage/tandem/replication"
)

// below reports whether p is before q.
func below(p, q replication.Position) bool {
	return p.Term < q.Term || p.Term == q.Term && p.Seq < q.Seq
}

// confirmed notes how far the in-sync replicas of a coordinator have to have come by a write that its consumer was told of.
func (w *simWorld) confirmed(n *simNode, io *IO) {
	if n.coord == nil || io.Kind == replication.MsgFlush || io.Kind == replication.MsgRead {
		return
	}
	p := replication.Position{Term: n.coord.term, Seq: io.seq}
	for _, r := range n.coord.InSync() {
		if below(w.positions[r], p) {
			w.positions[r] = p
		}
	}
}

// checkSealed holds a takeover's record: what an in-sync replica says that it has is not less than what was confirmed by it.
func (w *simWorld) checkSealed(ch Change) {
	for _, s := range ch.Sealed {
		switch p := s.Applied; {
		case p == replication.Position{}:
			w.seen["sealed: position not known"]++
		case below(p, w.positions[s.Replica]):
			w.fail("replica %x says at the takeover that it has %+v, %+v was confirmed with it", s.Replica[0], p, w.positions[s.Replica])
		default:
			w.seen["sealed: position told"]++
		}
	}
}

// A replica tells at a takeover how far the writes of the last coordinator have come on it; a process that was started under that one does not know.
func TestReplicaPosition(t *testing.T) {
	write := func(r *Replica, seq replication.Seq, kind replication.MessageType) {
		r.testStep(replication.Message{Type: kind, Seq: seq, Length: sector, Data: make([]byte, sector)})
		r.turn()
	}
	seal := func(r *Replica, term replication.Term) replication.Position {
		t.Helper()
		r.Seal(1, replication.SealRequest{Replica: r.o.Replica, Term: term, Epoch: replication.Epoch(term)})
		if p := r.Ready().Persist; p == nil {
			t.Fatal("the promise is not made durable")
		}
		r.Advance()
		r.PersistDone(nil)
		d := r.Ready().Replies
		if len(d) != 1 || d[0].Result.Seal.Status != replication.StatusOK {
			t.Fatalf("sealed: %+v", d)
		}
		p := d[0].Result.Seal.Applied
		r.Advance()
		r.Hello(1, replication.Message{Session: 7, Term: term}, replication.Hello{Replica: r.o.Replica})
		r.Advance()
		return p
	}
	r := openReplica(t, false)
	write(r, 9, replication.MsgWrite)
	if p := seal(r, 6); p != (replication.Position{}) {
		t.Errorf("started under term 5, it says that it has %+v", p)
	}
	write(r, 3, replication.MsgWrite)
	write(r, 5, replication.MsgZero)
	write(r, 4, replication.MsgTrim)
	write(r, 6, replication.MsgFlush)
	write(r, 7, replication.MsgResyncWrite)
	want := replication.Position{Term: 6, Seq: 5}
	if p := seal(r, 8); p != want {
		t.Errorf("it has %+v, want %+v", p, want)
	}
	if p := seal(r, 9); p != want {
		t.Errorf("after a takeover that wrote nothing %+v, want %+v", p, want)
	}
	write(r, 2, replication.MsgWrite)
	if p, want := seal(r, 10), (replication.Position{Term: 9, Seq: 2}); p != want {
		t.Errorf("it has %+v, want %+v", p, want)
	}
}
