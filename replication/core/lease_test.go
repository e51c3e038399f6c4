package core

import (
	"testing"

	"github.com/tandem-storage/tandem/replication"
)

// leasingWorld is a servingWorld in which nothing is delivered unless a test does it: the
// time and the grants are the test's.
func leasingWorld(t *testing.T) (w *simWorld, c *Coordinator) {
	t.Helper()
	w = servingWorld(t)
	c = w.nodes[0].coord
	for _, n := range w.nodes {
		n.paused = true
	}
	for i := range c.m {
		c.m[i].lease = lease{}
	}
	return w, c
}

// grant lets member i grant, for so many milliseconds, what it was asked for.
func (w *simWorld) grantNow(c *Coordinator, now int64, i int, ms int64) {
	c.Step(now, i, &replication.Message{Type: replication.MsgGrant, Session: c.m[i].sess, Term: c.term, Offset: c.m[i].lease.asked, Length: ms})
	w.nodes[0].drainCoord()
}

// A coordinator whose consumer asks for nothing lets its leases run out, tells of no stall, and rests; the next read asks at once, and waits for the answers.
func TestLeasesRest(t *testing.T) {
	w := servingWorld(t)
	c := w.nodes[0].coord
	w.client.at = nil // it asks for nothing more
	w.run(3000)
	for _, n := range w.nodes {
		n.paused = true
	}
	c.o.LeaseRest = 1e9
	tick := func(now int64, want bool) {
		t.Helper()
		c.Tick(now)
		asked := c.m[0].lease.asking && c.m[1].lease.asking
		w.nodes[0].drainCoord()
		if asked != want {
			t.Errorf("after %d ms of rest it has asked for leases: %v", (now-c.proposed)/1e6, asked)
		}
	}
	grant := func(now int64) {
		for i := range c.m {
			w.grantNow(c, now, i, 250)
		}
	}
	t0 := w.now + 1e9
	c.proposed = t0
	tick(t0, true)
	grant(t0)
	tick(t0+900e6, true)
	grant(t0 + 900e6)
	tick(t0+1000e6, false)
	tick(t0+5000e6, false)
	if c.readable() || c.Stall() != StallNone || !c.Resting() {
		t.Errorf("at rest it is readable: %v, stalls for %q, rests: %v", c.readable(), c.Stall(), c.Resting())
	}
	t0 += 5000e6
	io := &IO{Kind: replication.MsgRead, Len: 4096}
	c.Propose(t0, io)
	if c.Resting() || !c.m[0].lease.asking || !c.m[1].lease.asking || io.from >= 0 || c.Stall() != StallReadLease {
		t.Errorf("asked for a read it rests: %v, asks: %+v, reads from %d, stalls for %q", c.Resting(), c.m[0].lease, io.from, c.Stall())
	}
	w.nodes[0].drainCoord()
	grant(t0 + 1e6)
	if io.from < 0 || c.Stall() != StallNone {
		t.Errorf("with every lease it reads from %d, stalls for %q", io.from, c.Stall())
	}
	c.SessionDown(t0+2e6, 1, c.m[1].sess)
	if c.now = t0 + 9000e6; c.Resting() || c.Stall() == StallNone {
		t.Errorf("without a member it rests: %v, stalls for %q", c.Resting(), c.Stall())
	}
}

// A lease counts from when it was asked for, for as long as both sides say, and ends with its session.
func TestLeaseOfCoordinator(t *testing.T) {
	w, c := leasingWorld(t)
	ask := func(now int64) {
		c.Tick(now)
		w.nodes[0].drainCoord()
	}
	at := func(now int64, want bool, what string) {
		t.Helper()
		if c.now = now; c.readable() != want {
			t.Errorf("%s: readable is %v", what, !want)
		}
	}
	t0 := w.now + 1e9
	ask(t0)
	at(t0, false, "asked for")
	w.grantNow(c, t0+50e6, 0, 250)
	at(t0+50e6, false, "granted by one of two")
	w.grantNow(c, t0+60e6, 1, 250)
	at(t0+60e6, true, "granted by both")
	if c.Stall() != StallNone {
		t.Errorf("with every lease: %s", c.Stall())
	}
	old := replication.Message{Type: replication.MsgGrant, Session: c.m[1].sess, Term: c.term, Offset: c.m[1].lease.asked, Length: 250}
	ask(t0 + 150e6)
	w.grantNow(c, t0+160e6, 0, 250)
	c.Step(t0+170e6, 1, &old)
	at(t0+199e6, true, "just before its end")
	at(t0+200e6, false, "at its end, though an old grant came again while another one was asked for")
	if c.Stall() != StallReadLease {
		t.Errorf("without a lease: %q", c.Stall())
	}

	w.grantNow(c, t0+210e6, 1, 250)
	t0 += 1e9
	ask(t0)
	w.grantNow(c, t0, 0, 250)
	w.grantNow(c, t0, 1, 100)
	at(t0+98e6, true, "kept for less time by a replica")
	at(t0+99e6, false, "kept for less time by a replica, whose clock may be fast")

	t0 += 1e9
	ask(t0)
	w.grantNow(c, t0, 0, 250)
	w.grantNow(c, t0, 1, 250)
	c.SessionDown(t0+1e6, 1, c.m[1].sess)
	w.nodes[0].drainCoord()
	at(t0+1e6, false, "its session ended")
	c.Tick(t0 + 60e6)
	w.nodes[0].drainCoord()
	c.SessionUp(t0+61e6, 1, c.m[1].sess, replication.HelloAck{Boot: c.m[1].boot})
	w.nodes[0].drainCoord()
	at(t0+61e6, false, "another session")
	w.grantNow(c, t0+62e6, 1, 250)
	at(t0+62e6, true, "granted in the other session")
}

// What was read is not shown when a lease has run out meanwhile (I8): it is read again.
func TestLeaseEndsDuringRead(t *testing.T) {
	w, c := leasingWorld(t)
	now := w.now + 1e9
	c.Tick(now)
	w.grantNow(c, now, 0, 250)
	w.grantNow(c, now, 1, 250)
	w.nodes[0].paused = false
	w.client.read(0)
	w.nodes[0].paused = true
	seq := c.lastSeq
	c.Step(now+210e6, 0, &replication.Message{Type: replication.MsgData, Session: c.m[0].sess, Term: c.term, Seq: seq, Length: sector, Data: make([]byte, sector)})
	if d := c.Ready().Completions; len(d) > 0 || len(c.waiting) != 1 {
		t.Errorf("completed %d reads, %d wait", len(d), len(c.waiting))
	}
}

// With ConfirmReads a read is completed when every member has answered a request that was sent after it, whatever the time is.
func TestReadConfirmed(t *testing.T) {
	w, c := leasingWorld(t)
	c.o.ConfirmReads = true
	now := w.now + 1e9
	for i := range c.m {
		c.askLease(i)
		w.grantNow(c, now, i, 0)
	}
	answered := func(seq replication.Seq) int {
		c.Step(now, 0, &replication.Message{Type: replication.MsgData, Session: c.m[0].sess, Term: c.term, Seq: seq, Length: sector, Data: make([]byte, sector)})
		n := len(c.Ready().Completions)
		w.nodes[0].drainCoord()
		return n
	}
	w.client.read(0)
	first := c.lastSeq
	w.client.read(1) // the confirmations that are under way were asked for before it
	second := c.lastSeq
	if answered(first)+answered(second) != 0 {
		t.Error("completed before anybody has confirmed")
	}
	w.grantNow(c, now, 0, 0)
	now += 1e15 // a clock that jumps
	if c.Tick(now); len(w.client.flight) != 2 {
		t.Error("completed with the confirmation of one of two")
	}
	w.grantNow(c, now, 1, 0)
	if len(w.client.flight) != 1 {
		t.Errorf("%d of two wait with one confirmation of each", len(w.client.flight))
	}
	w.grantNow(c, now, 0, 0)
	w.grantNow(c, now, 1, 0)
	if len(w.client.flight) != 0 || c.Stall() != StallNone {
		t.Errorf("%d wait when all is confirmed, stall %q", len(w.client.flight), c.Stall())
	}
}

// A replica that answers nothing, though its session is open, is evicted by a coordinator that only reads.
func TestLeaseNotAnswered(t *testing.T) {
	w := servingWorld(t)
	w.run(300) // its flushes are done
	w.nodes[1].paused = true
	w.run(w.opts.OpTimeout/1e6 + 300)
	if w.seen["evicted: "+slow] != 1 || w.nodes[0].coord.Stall() != StallNone {
		t.Errorf("in sync %v, stall %q", w.inSync(), w.nodes[0].coord.Stall())
	}
}

// A joiner's lease is renewed while it is resynced, so that reads do not pause when it joins.
func TestLeaseOfJoiner(t *testing.T) {
	w, c := leasingWorld(t)
	c.isr, c.join = bit(0), &join{q: 1, mirrored: true, todo: NewBitmap(1)}
	c.Tick(w.now + 1e9)
	if !c.m[1].lease.asking {
		t.Error("the joiner was not asked for a lease")
	}
}

// From the moment in which the detach may be in force nothing is read: the next coordinator waits for no lease.
func TestLeaseEndsWithDetach(t *testing.T) {
	w := servingWorld(t)
	n := w.nodes[0]
	w.kvHold = true
	n.coord.Detach(n.clock())
	n.drainCoord()
	w.run(100)
	if n.coord.change == nil || n.coord.change.step != stepCAS {
		t.Fatalf("the detach has not come so far: %+v", n.coord.change)
	}
	w.client.read(0)
	w.run(100)
	if len(w.client.flight) != 1 {
		t.Error("a read was completed")
	}
}

// sealed reports how a replica answers the seal of term 9 at once; wake is when it would do so otherwise.
func (r *Replica) sealNow(q replication.SealRequest) (answered bool, wake int64) {
	q.Term, q.Epoch = 9, 9
	r.Seal(1, q)
	d := r.Ready()
	answered, wake = d.Persist != nil, d.Wake
	r.Advance()
	return answered, wake
}

// Who asks only for a confirmation gets no lease that another term would wait for.
func TestConfirmationIsNoLease(t *testing.T) {
	r := openReplica(t, false)
	r.o.LeaseGrant = 100
	r.SetClock(1000)
	r.testStep(replication.Message{Type: replication.MsgLease, Offset: 77})
	if s := r.Ready().Send; len(s) != 1 || s[0].Msg.Type != replication.MsgGrant || s[0].Msg.Offset != 77 || s[0].Msg.Length != 0 {
		t.Fatalf("asked for a confirmation, it answers %+v", s)
	}
	r.Advance()
	if done, _ := r.sealNow(replication.SealRequest{}); !done {
		t.Error("another term waits")
	}
}

// A replica promises another term when the lease that it granted has run out, by its own
// clock and counted from the request; it grants no other meanwhile.
func TestSealWaitsForLease(t *testing.T) {
	r := openReplica(t, false)
	r.o.LeaseGrant = 100
	r.SetClock(1000)
	r.testStep(replication.Message{Type: replication.MsgLease, Offset: 77, Length: 200})
	if s := r.Ready().Send; len(s) != 1 || s[0].Msg.Type != replication.MsgGrant || s[0].Msg.Offset != 77 {
		t.Fatalf("asked for a lease, it answers %+v", s)
	}
	r.Advance()
	r.SetClock(1099)
	if done, wake := r.sealNow(replication.SealRequest{}); done || wake != 1100 {
		t.Fatalf("at 1099, of a lease until 1100: sealed %v, wants to be told the time at %d", done, wake)
	}
	r.testStep(replication.Message{Type: replication.MsgLease, Offset: 78})
	if s := r.Ready().Send; len(s) != 1 || s[0].Msg.Type != replication.MsgNack {
		t.Fatalf("asked for another one, it answers %+v", s)
	}
	r.Advance()
	if r.SetClock(1100); r.Ready().Persist == nil || r.Ready().Persist.Meta.Term != 9 {
		t.Error("at the end of the lease it does not promise the term")
	}
}

// A replica whose process began just now does not know what the one before granted.
func TestSealAfterRestart(t *testing.T) {
	kvdb := replication.UUID{1}
	for name, c := range map[string]struct {
		meta ReplicaMeta
		at   int64
		q    replication.SealRequest
		want bool
	}{
		"at once":                   {ReplicaMeta{Term: 5}, 1099, replication.SealRequest{}, false},
		"when a lease has run out":  {ReplicaMeta{Term: 5}, 1100, replication.SealRequest{}, true},
		"nobody had it before":      {ReplicaMeta{}, 1000, replication.SealRequest{Incarnation: kvdb}, true},
		"the same coordinator":      {ReplicaMeta{Term: 9}, 1000, replication.SealRequest{}, true},
		"the coordinator has ended": {ReplicaMeta{Term: 5, Incarnation: kvdb}, 1000, replication.SealRequest{Ended: 5, Incarnation: kvdb}, true},
		"an earlier one has ended":  {ReplicaMeta{Term: 5, Incarnation: kvdb}, 1000, replication.SealRequest{Ended: 4, Incarnation: kvdb}, false},
		"another kvdb says so":      {ReplicaMeta{Term: 5}, 1000, replication.SealRequest{Ended: 5, Incarnation: kvdb}, false},
	} {
		c.meta.State = replication.MemberInSync
		r := NewReplica(ReplicaOptions{Size: simSize, Meta: c.meta, Now: 1000, LeaseGrant: 100})
		r.SetClock(c.at)
		if done, _ := r.sealNow(c.q); done != c.want {
			t.Errorf("%s: sealed is %v", name, done)
		}
	}
}

// Of whom a takeover may say that he has ended.
func TestEndedTerm(t *testing.T) {
	boot := replication.BootID{1}
	for name, c := range map[string]struct {
		cfg  replication.Config
		boot replication.BootID
		want replication.Term
	}{
		"detached":                {replication.Config{Epoch: 8, Phase: replication.PhaseDetached}, boot, 8},
		"another node":            {replication.Config{Epoch: 8, Phase: replication.PhaseActive, Coord: &replication.Coord{Node: "b", Term: 7, Boot: boot}}, boot, 0},
		"this node":               {replication.Config{Epoch: 8, Phase: replication.PhaseActive, Coord: &replication.Coord{Node: "a", Term: 7, Boot: boot}}, boot, 7},
		"this node, never served": {replication.Config{Epoch: 8, Phase: replication.PhaseRecovering, Coord: &replication.Coord{Node: "a", Term: 8, Boot: boot}}, boot, 0},
		"another boot":            {replication.Config{Epoch: 8, Phase: replication.PhaseActive, Coord: &replication.Coord{Node: "a", Term: 7, Boot: boot}}, replication.BootID{2}, 0},
		"boot not known":          {replication.Config{Epoch: 8, Phase: replication.PhaseActive, Coord: &replication.Coord{Node: "a", Term: 7}}, replication.BootID{}, 0},
	} {
		k := New(Options{Node: "a", Boot: c.boot}, &c.cfg, 1)
		if got := k.endedTerm(&c.cfg); got != c.want {
			t.Errorf("%s: ended up to term %d, want %d", name, got, c.want)
		}
	}
}
