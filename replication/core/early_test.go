package core

import (
	"testing"

	"github.com/tandem-storage/tandem/replication"
)

// earlyTakeover is a takeover by the first of three in-sync members that has sealed all; what it asked for last is in its Ready.
type earlyTakeover struct {
	*testing.T
	c     *Coordinator
	boots []replication.BootID
}

func newEarlyTakeover(t *testing.T) *earlyTakeover {
	e := &earlyTakeover{T: t, boots: []replication.BootID{{1}, {2}, {3}}}
	cfg := &replication.Config{Version: 1, Epoch: 5, Gen: 5, Phase: replication.PhaseDetached, Size: simSize, Members: map[replication.ReplicaID]replication.Member{}, History: []replication.EpochRecord{{Epoch: 5, Gen: 5}}}
	for i := range e.boots {
		r := replication.ReplicaID{byte(i + 1)}
		cfg.ISR = append(cfg.ISR, r)
		cfg.Members[r] = replication.Member{Node: "n", State: replication.MemberInSync}
	}
	number := uint64(100)
	e.c = New(Options{
		Node: "n", Attach: replication.AttachID{1}, Rand: func() uint64 { number++; return number },
		SealTimeout: 5e9, LeaseTime: 2e9, OpTimeout: 10e9, SuspectTimeout: 3e9, RetryInterval: 5e8,
	}, cfg, 9)
	e.c.Start(1)
	e.changed()
	e.answer(0, 1, 2)
	return e
}

// changed puts what was proposed in force.
func (e *earlyTakeover) changed() {
	e.c.Advance()
	e.c.ChangeDone(2, ChangeOK, nil, e.c.rev+1)
}

// answer answers the round under way for members; a Ready of before is carried out.
func (e *earlyTakeover) answer(members ...int) {
	asked := append([]Control(nil), e.c.Ready().Control...)
	for _, q := range asked {
		for _, i := range members {
			if q.To != i {
				continue
			}
			res := ControlResult{Prepare: &replication.PrepareResult{}, Commit: &replication.CommitResult{}}
			if q.Seal != nil {
				res.Seal = &replication.SealResult{State: replication.MemberInSync, Boot: e.boots[i], Term: q.Seal.Term}
			}
			e.c.ControlDone(3, q.ID, res)
		}
	}
}

// up opens the session with member i, whose node is in boot b.
func (e *earlyTakeover) up(i int, b replication.BootID) {
	e.c.SessionUp(3, i, e.c.m[i].sess, replication.HelloAck{Boot: b})
}

// leases counts what was asked for since the last Advance.
func (e *earlyTakeover) leases() (n int) {
	for _, m := range e.c.Ready().Messages {
		if m.Msg.Type == replication.MsgLease {
			n++
		}
	}
	return n
}

// TestEarlySessions: sessions are opened with who has promised the term, leases are asked for when the activation is in force, and heard
// of before the commit has ended: so that a takeover serves at once when it has.
func TestEarlySessions(t *testing.T) {
	e := newEarlyTakeover(t)
	c := e.c
	if c.stage != stagePreparing || len(c.Ready().Connect) != 3 {
		t.Fatalf("stage %d, %d sessions to open", c.stage, len(c.Ready().Connect))
	}
	e.up(0, e.boots[0])
	e.up(1, e.boots[1])
	e.answer(0, 1, 2)
	if c.stage != stageActivating || e.leases() != 0 {
		t.Fatalf("stage %d, %d leases asked for before the activation", c.stage, e.leases())
	}
	e.changed()
	if c.stage != stageCommitting || e.leases() != 2 {
		t.Fatalf("stage %d, %d leases asked for, want 2", c.stage, e.leases())
	}
	e.up(2, e.boots[2])
	if e.leases() != 3 {
		t.Fatalf("%d leases asked for, want 3", e.leases())
	}
	for i, m := range c.m {
		c.Step(4, i, &replication.Message{Type: replication.MsgGrant, Session: m.sess, Term: c.term, Offset: m.lease.asked, Length: 3000})
	}
	e.answer(0, 1, 2)
	if c.stage != stageServing || c.Stall() != StallNone {
		t.Errorf("stage %d, %q when it is committed", c.stage, c.Stall())
	}
}

// TestEarlySessionOfAnotherBoot: a replica that was restarted by its machine since it was sealed has no session, and is found to have lost
// power when it is connected to again.
func TestEarlySessionOfAnotherBoot(t *testing.T) {
	e := newEarlyTakeover(t)
	c := e.c
	e.up(0, e.boots[0])
	e.up(1, e.boots[1])
	e.up(2, replication.BootID{33})
	if n := len(c.Ready().Disconnect); c.m[2].open || n != 1 || c.Ready().Disconnect[0].To != 2 {
		t.Fatalf("open %v, %d sessions ended", c.m[2].open, n)
	}
	e.answer(0, 1, 2)
	e.changed()
	e.answer(0, 1, 2)
	if c.stage != stageServing || c.m[2].open || !c.m[2].pending {
		t.Fatalf("stage %d, open %v, pending %v", c.stage, c.m[2].open, c.m[2].pending)
	}
	e.up(2, replication.BootID{33})
	if c.m[2].open || !c.evictReq.has(2) {
		t.Error("what lost power is a replica like the others")
	}
}

// TestEarlySessionsEnd: with who does not come along, and with all when they are sealed anew.
func TestEarlySessionsEnd(t *testing.T) {
	e := newEarlyTakeover(t)
	c := e.c
	for i := range c.m {
		e.up(i, e.boots[i])
	}
	e.answer(0, 1)
	c.Tick(6e9) // the third does not answer PREPARE
	if got := c.openSet(); got != 0b011 {
		t.Errorf("open with %b when the third was left behind", got)
	}
	e = newEarlyTakeover(t)
	c = e.c
	for i := range c.m {
		e.up(i, e.boots[i])
	}
	c.Tick(6e9) // nobody does
	if c.stage != stageSealing || c.openSet() != 0 || len(c.Ready().Disconnect) != 3 {
		t.Errorf("stage %d, open with %b, %d ended", c.stage, c.openSet(), len(c.Ready().Disconnect))
	}
}
