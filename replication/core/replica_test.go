package core

import (
	"errors"
	"testing"

	"github.com/tandem-storage/tandem/replication"
)

// openReplica returns an in-sync replica with a session of term 5.
func openReplica(t *testing.T, lost bool) *Replica {
	t.Helper()
	r := NewReplica(ReplicaOptions{
		Replica: replication.ReplicaID{1}, Size: simSize, LogLost: lost,
		Meta: ReplicaMeta{Epoch: 5, Term: 5, State: replication.MemberInSync},
	})
	r.Hello(1, replication.Message{Session: 7, Term: 5}, replication.Hello{Replica: replication.ReplicaID{1}})
	if s := r.Ready().Send; len(s) != 1 || s[0].Msg.Type != replication.MsgHelloAck {
		t.Fatalf("hello answered with %+v", s)
	}
	r.Advance()
	return r
}

func (r *Replica) testStep(m replication.Message) {
	m.Session = 7
	r.Step(1, &m)
}

// A configuration of another size is not of this replica, which must not say that it follows it.
func TestReplicaRefusesOtherSize(t *testing.T) {
	r := openReplica(t, false)
	for _, size := range []int64{0, simSize - replication.ResyncBlock, 2 * simSize} {
		cfg := &replication.Config{Epoch: 6, Size: size, ISR: []replication.ReplicaID{{1}}, Members: map[replication.ReplicaID]replication.Member{
			{1}: {State: replication.MemberInSync},
		}}
		r.Commit(1, replication.CommitRequest{Term: 5, Config: cfg})
		if d := r.Ready(); len(d.Replies) != 1 || d.Replies[0].Result.Commit.Status != replication.StatusInvalid || d.Persist != nil {
			t.Errorf("size %d: %+v", size, d.Replies)
		}
		r.Advance()
	}
}

// An error of the disk is told once; what succeeds after it means nothing (I25).
func TestReplicaFaultedAcknowledgesNothing(t *testing.T) {
	r := openReplica(t, false)
	r.testStep(replication.Message{Type: replication.MsgFlush, Seq: 2})
	r.testStep(replication.Message{Type: replication.MsgFlush, Seq: 3})
	ios := append([]*LocalIO(nil), r.Ready().IO...)
	r.Advance()
	r.IODone(ios[0], nil, nil, errors.New("fdatasync"))
	if !r.Ready().Faulted || r.Ready().Persist == nil || r.Ready().Persist.State != replication.MemberFaulted {
		t.Error("a failed flush did not fault the replica")
	}
	r.IODone(ios[1], nil, nil, nil)
	for _, s := range r.Ready().Send {
		if s.Msg.Type != replication.MsgNack || s.Msg.Status != replication.StatusIO {
			t.Errorf("answered %s", describe(&s.Msg))
		}
	}
}

// Within a term, a log that was lost with the process counts as lost until all is
// settled that may have been in it (I12).
func TestReplicaLogLostWithinTerm(t *testing.T) {
	r := openReplica(t, true)
	for _, c := range []struct {
		m    replication.Message
		lost bool
	}{
		{replication.Message{Type: replication.MsgStable, Seq: 120, StableSeq: 100}, true},
		{replication.Message{Type: replication.MsgFlush, Seq: 121, StableSeq: 119}, true},
		{replication.Message{Type: replication.MsgStable, Seq: 130, StableSeq: 119}, true},
		{replication.Message{Type: replication.MsgStable, StableSeq: 120}, false},
	} {
		if r.testStep(c.m); r.logLost != c.lost {
			t.Errorf("after %s with %d settled: log lost is %v", describe(&c.m), c.m.StableSeq, r.logLost)
		}
	}
}

// A region that a clean stop left unsettled stays in the log until everything is
// settled that may have been written there before (I12).
func TestReplicaRestoredLog(t *testing.T) {
	r := NewReplica(ReplicaOptions{
		Replica: replication.ReplicaID{1}, Size: simSize, Active: []uint32{1},
		Meta: ReplicaMeta{Epoch: 5, Term: 5, State: replication.MemberInSync},
	})
	r.Hello(1, replication.Message{Session: 7, Term: 5}, replication.Hello{Replica: replication.ReplicaID{1}})
	for _, c := range []struct {
		m      replication.Message
		active int
	}{
		{replication.Message{Type: replication.MsgStable, Seq: 120, StableSeq: 100}, 1},
		{replication.Message{Type: replication.MsgFlush, Seq: 121, StableSeq: 119}, 1},
		{replication.Message{Type: replication.MsgStable, StableSeq: 120}, 0},
	} {
		if r.testStep(c.m); len(r.active()) != c.active {
			t.Errorf("after %s with %d settled: regions %v are active", describe(&c.m), c.m.StableSeq, r.active())
		}
	}
}
