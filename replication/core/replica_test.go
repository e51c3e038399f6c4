package core

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/tandem-storage/tandem/datapath/block"
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

// A replica that is smaller than a configuration says must not say that it is in sync by it.
func TestReplicaRefusesOtherSize(t *testing.T) {
	r := openReplica(t, false)
	for _, size := range []int64{0, -1, simSize + sector, 2 * simSize} {
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

// A replica grows before it answers, and only if it has to. Without room it says so, and nothing has changed; another error is its end.
func TestReplicaGrows(t *testing.T) {
	r := openReplica(t, false)
	other := replication.ReplicaID{9}
	prepare := func(size int64, errs ...error) *replication.PrepareResult {
		t.Helper()
		r.Prepare(1, replication.PrepareRequest{Term: 5, Size: size, Missing: []replication.ReplicaID{other}})
		for _, err := range errs {
			if p := r.Ready().Persist; p == nil || p.Size != size || p.Meta != nil || len(r.Ready().Replies) > 0 {
				t.Fatalf("size %d: %+v", size, p)
			}
			r.Advance()
			r.PersistDone(err)
		}
		for r.Ready().Persist != nil {
			if r.Ready().Persist.Size != 0 {
				t.Fatalf("size %d: it grows again", size)
			}
			r.Advance()
			r.PersistDone(nil)
		}
		defer r.Advance()
		return r.Ready().Replies[0].Result.Prepare
	}
	if p := prepare(simSize); p.Status != replication.StatusOK || p.Size != simSize {
		t.Errorf("the size that it has: %+v", p)
	}
	if p := prepare(2*simSize, fmt.Errorf("%w: full", block.ErrNoSpace)); p.Status != replication.StatusNoSpace || p.Size != simSize {
		t.Errorf("no room: %+v", p)
	}
	r.testStep(replication.Message{Type: replication.MsgZero, Seq: 2, Offset: simSize, Length: sector})
	if len(r.Ready().IO) > 0 {
		t.Error("a write behind the end was started")
	}
	r.Advance()
	if p := prepare(2*simSize, nil); p.Status != replication.StatusOK || p.Size != 2*simSize {
		t.Errorf("room: %+v", p)
	}
	if m := r.dirty[other]; m.Len() != blocksOf(2*simSize) || m.Test(m.Len()-1) {
		t.Errorf("a dirty map of %d blocks", m.Len())
	}
	if p := prepare(simSize); p.Status != replication.StatusOK || p.Size != 2*simSize {
		t.Errorf("less than it has: %+v", p)
	}
	if p := prepare(3*simSize, errors.New("rotten")); p.Status != replication.StatusIO || !r.faulted {
		t.Errorf("an error of the disk: %+v, faulted %v", p, r.faulted)
	}
}

// An error of the disk is told once; what succeeds after it means nothing (I25).
func TestReplicaFaultedAcknowledgesNothing(t *testing.T) {
	r := openReplica(t, false)
	r.testStep(replication.Message{Type: replication.MsgFlush, Seq: 2})
	r.testStep(replication.Message{Type: replication.MsgFlush, Seq: 3})
	r.testStep(replication.Message{Type: replication.MsgRead, Seq: 4, Length: sector})
	r.testStep(replication.Message{Type: replication.MsgHashReq, Seq: 5, Length: sector})
	ios := append([]*LocalIO(nil), r.Ready().IO...)
	r.Advance()
	r.IODone(ios[0], nil, nil, errors.New("fdatasync"))
	if !r.Ready().Faulted || r.Ready().Persist == nil || r.Ready().Persist.Meta.State != replication.MemberFaulted {
		t.Error("a failed flush did not fault the replica")
	}
	for _, io := range ios[1:] {
		b := block.NewBuffer(sector)
		r.IODone(io, b.Bytes(), b, nil)
	}
	if n := len(r.Ready().Send); n != len(ios) {
		t.Errorf("%d answers to %d requests", n, len(ios))
	}
	for _, s := range r.Ready().Send {
		if s.Msg.Type != replication.MsgNack || s.Msg.Status != replication.StatusIO {
			t.Errorf("answered %s", describe(&s.Msg))
		}
	}
}

// A PREPARE that was overtaken by the next one, even by the COMMIT of that, does not
// end the dirty map of the member that has left since (I14).
func TestReplicaKeepsMapWhenPreparedLate(t *testing.T) {
	r := openReplica(t, false)
	left, other := replication.ReplicaID{2}, replication.ReplicaID{3}
	cfg := &replication.Config{Epoch: 6, Size: simSize, ISR: []replication.ReplicaID{{1}}, Members: map[replication.ReplicaID]replication.Member{
		{1}: {State: replication.MemberInSync}, left: {State: replication.MemberStale}, other: {State: replication.MemberStale},
	}}
	late := replication.PrepareRequest{Term: 5, Missing: []replication.ReplicaID{other}}
	for i, step := range []func(){
		func() {
			r.Prepare(1, replication.PrepareRequest{Term: 5, Missing: []replication.ReplicaID{left, other}})
		},
		func() { r.Prepare(1, late) },
		func() { r.Commit(1, replication.CommitRequest{Term: 5, Config: cfg}) },
		func() { r.Prepare(1, late) },
	} {
		step()
		p := r.Ready().Persist
		if p == nil || !slices.Contains(p.Meta.Missing, left) || !slices.Contains(p.Meta.Missing, other) {
			t.Fatalf("after step %d these are to be durable: %+v", i, p)
		}
		r.Advance()
		r.PersistDone(nil)
		r.Advance()
	}
	cfg = cfg.Clone()
	cfg.Epoch, cfg.ISR = 7, append(cfg.ISR, left)
	r.Commit(1, replication.CommitRequest{Term: 5, Config: cfg})
	if got := r.Ready().Persist.Meta.Missing; !slices.Equal(got, []replication.ReplicaID{other}) {
		t.Errorf("when the member is in sync again there are maps for %v", got)
	}
}

// A replica that was out of sync has no map of before: what it has missed is not in it (I14).
func TestReplicaForgetsMapsOutOfSync(t *testing.T) {
	r, left := openReplica(t, false), replication.ReplicaID{2}
	r.meta.ISR = []replication.ReplicaID{{1}, left}
	r.Prepare(1, replication.PrepareRequest{Term: 5, Missing: []replication.ReplicaID{left}})
	r.turn()
	members := map[replication.ReplicaID]replication.Member{left: {State: replication.MemberStale}}
	for i, self := range []replication.MemberState{replication.MemberSyncing, replication.MemberInSync} {
		members[replication.ReplicaID{1}] = replication.Member{State: self}
		cfg := &replication.Config{Epoch: replication.Epoch(6 + i), Size: simSize, Members: members}
		if self == replication.MemberInSync {
			cfg.ISR = []replication.ReplicaID{{1}}
		}
		r.Commit(1, replication.CommitRequest{Term: 5, Config: cfg.Clone()})
		r.turn()
	}
	if m := r.dirty[left]; m == nil || m.Count() != m.Len() {
		t.Errorf("in sync again, with a map %+v, want all ones", m)
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
		r.testStep(c.m)
		if r.checkReady(t); r.logLost != c.lost {
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

// What a replica lost is made good, or given up, for a coordinator that knew of it: one that sealed it in this boot (I19).
func TestReplicaLossyUntilSealedBootIsCommitted(t *testing.T) {
	now, before := replication.BootID{9}, replication.BootID{8}
	for _, c := range []struct {
		boot  replication.BootID
		state replication.MemberState
		lossy bool
	}{
		{now, replication.MemberInSync, false},
		{now, replication.MemberSyncing, false},
		{now, replication.MemberStale, true},
		{before, replication.MemberInSync, true},
		{before, replication.MemberSyncing, true},
		{replication.BootID{}, replication.MemberInSync, true},
	} {
		r := NewReplica(ReplicaOptions{
			Replica: replication.ReplicaID{1}, Size: simSize, Boot: now,
			Meta: ReplicaMeta{Epoch: 5, Term: 5, State: replication.MemberInSync, Lossy: true},
		})
		r.Commit(1, replication.CommitRequest{Term: 5, Boot: c.boot, Config: &replication.Config{
			Epoch: 6, Size: simSize, Members: map[replication.ReplicaID]replication.Member{{1}: {State: c.state}},
		}})
		if p := r.Ready().Persist; p == nil || p.Meta.Lossy != c.lossy {
			t.Errorf("commit of %s for boot %x leaves %+v", c.state, c.boot[0], p)
		}
	}
}
