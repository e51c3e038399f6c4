package core

import (
	"testing"

	"github.com/tandem-storage/tandem/replication"
)

// Nothing waits for the group longer than the bound: not for one that does not answer, nor for what it is split from to be told.
func TestGroupBound(t *testing.T) {
	w := newGroupWorld(1, 2)
	w.lazy = true // keepers come seldom, and here they are not let
	for _, v := range w.vols {
		v.tending = true
		v.attach()
	}
	w.after(1, w.issue)
	w.run(groupBound - 1e9)
	if w.acked > 0 {
		t.Errorf("%d writes were acknowledged before it was known what the group is split from", w.acked)
	}
	w.run(groupBound + 1e9)
	if w.acked == 0 {
		t.Fatal("no write was acknowledged when the bound was over")
	}
	for _, v := range w.vols {
		v.setFar(false)
	}
	w.run(w.now + 1e9)
	stopped := w.acked
	w.run(w.now + 3e9)
	if w.acked != stopped || w.vols[w.at].c.Stall() != StallGroup {
		t.Errorf("%d writes were acknowledged with one replica, stall %q", w.acked-stopped, w.vols[w.at].c.Stall())
	}
	w.run(w.now + 3e9)
	if w.acked == stopped {
		t.Error("no write was acknowledged when the bound was over")
	}
	if st := w.vols[w.at].c.GroupStatus(); len(st.Late) != 1 || len(st.Lost)+len(st.Kept) > 0 {
		t.Errorf("it went on by itself, and says %+v", st)
	}
}

// From when the others may have seen that a volume has left a domain, it sends nothing there, though it has not been told itself: whether
// it was to leave for the sake of the group, or leaves by plan.
func TestGroupLeaves(t *testing.T) {
	for name, leave := range map[string]func(v *groupVol){
		"group": func(v *groupVol) {
			v.c.SetGroup(v.w.now, replication.GroupOrder{Term: v.c.Term(), In: true, Leave: []replication.DomainID{"b"}})
		},
		"plan": func(v *groupVol) { v.c.SetKept(v.w.now, 1, false) },
	} {
		t.Run(name, func(t *testing.T) {
			w := newGroupWorld(1, 1)
			v := w.vols[0]
			v.attach()
			w.run(1e9)
			v.tending = true // what it is told, the test tells
			leave(v)
			v.drain()
			for v.cfg.InSyncIn("b") {
				w.run(w.queue[0].at + 1)
			}
			if len(v.c.InSync()) != 2 {
				t.Fatal("it was told at once")
			}
			v.c.SetGroup(w.now, replication.GroupOrder{Term: v.c.Term(), In: true, Left: []replication.DomainID{"b"}})
			v.c.Propose(w.now, &IO{Kind: replication.MsgWrite, Len: sector, Data: make([]byte, sector)})
			for _, m := range v.c.Ready().Messages {
				if m.Msg.Type == replication.MsgWrite {
					t.Errorf("a write was sent to member %d", m.To)
				}
			}
			v.drain()
			w.run(w.now + 1e9)
			v.c.SetGroup(w.now, replication.GroupOrder{Term: v.c.Term(), In: true, Left: []replication.DomainID{"b"}})
			v.drain()
			w.run(w.now + 1e9)
			if !v.has[0][0] || v.has[1][0] || v.c.Stall() != StallNone {
				t.Errorf("the write is in a: %v, in b: %v, stall %q", v.has[0][0], v.has[1][0], v.c.Stall())
			}
		})
	}
}

// What was read of the group before the election may be old: the volume was idle, and the group may have been split since.
func TestGroupBeforeElection(t *testing.T) {
	w := newGroupWorld(1, 1)
	v := w.vols[0]
	v.tending = true
	v.attach()
	v.c.SetGroup(w.now, replication.GroupOrder{In: true})
	w.run(1e9)
	if v.c.Stall() != StallGroup {
		t.Errorf("told what was read before its election: %q", v.c.Stall())
	}
	v.c.SetGroup(w.now, replication.GroupOrder{Term: v.c.Term(), In: true})
	if v.c.Stall() != StallNone {
		t.Errorf("told what was read since: %q", v.c.Stall())
	}
}

// A domain that was missing at the election may have been acknowledged without: only who lost it himself says that he waited.
func TestGroupEarlierTerm(t *testing.T) {
	w := newGroupWorld(1, 1)
	v := w.vols[0]
	v.tending = true
	v.far = false
	v.cfg.ISR = v.cfg.ISR[:1]
	m := v.cfg.Members[replication.ReplicaID{2}]
	m.State = replication.MemberStale
	v.cfg.Members[replication.ReplicaID{2}] = m
	v.attach()
	w.run(1e9)
	st := v.c.SetGroup(w.now, replication.GroupOrder{Term: v.c.Term(), In: true, Left: []replication.DomainID{"b"}})
	if v.c.Stall() != StallNone || len(st.Kept)+len(st.Lost) > 0 || len(st.Late) != 1 {
		t.Errorf("stall %q, %+v", v.c.Stall(), st)
	}
}

// A replica that left for the sake of the group alone rests, though its node is heard of again meanwhile.
func TestGroupRest(t *testing.T) {
	w := newGroupWorld(1, 1)
	v := w.vols[0]
	v.tending = true
	v.attach()
	w.run(1e9)
	v.c.SetGroup(w.now, replication.GroupOrder{Term: v.c.Term(), In: true, Leave: []replication.DomainID{"b"}})
	v.drain()
	w.run(w.now + 2e8)
	v.c.SetGroup(w.now, replication.GroupOrder{Term: v.c.Term(), In: true, Left: []replication.DomainID{"b"}})
	for _, up := range []bool{false, true} {
		v.c.SetUp(w.now, 1, up)
		v.drain()
	}
	w.run(w.now + 16e8)
	if v.cfg.InSyncIn("b") {
		t.Error("it was resynced within its rest")
	}
	w.run(w.now + 1e9)
	if !v.cfg.InSyncIn("b") {
		t.Error("it is not resynced when it has rested")
	}
}

// A volume whose protection wants the domain leaves it with the group, acknowledges nothing then, and is resynced soon. While it waits for a
// replica of its own there, nobody has to leave.
func TestGroupProtection(t *testing.T) {
	w := newGroupWorld(1, 1)
	v := w.vols[0]
	v.tending = true
	v.cfg.SetPolicy(replication.Policy{Protection: replication.MaxProtection})
	v.attach()
	w.run(1e9)
	v.c.SetGroup(w.now, replication.GroupOrder{Term: v.c.Term(), In: true})
	v.drain()
	write := func(at int64) {
		v.c.Propose(w.now, &IO{Kind: replication.MsgWrite, Off: at * sector, Len: sector, Data: make([]byte, sector)})
		v.drain()
	}
	leaves := func(tag int) {
		v.c.SetGroup(w.now, replication.GroupOrder{Term: v.c.Term(), In: true, Leave: []replication.DomainID{"b"}})
		v.drain()
		w.run(w.now + 1e9)
		write(int64(tag))
		w.run(w.now + 1e8)
		if v.cfg.InSyncIn("b") || v.c.Stall() != StallProtection || v.has[0][tag] {
			t.Errorf("in sync %v, stall %q, written %v", v.cfg.ISR, v.c.Stall(), v.has[0][tag])
		}
		if st := v.c.GroupStatus(); len(st.Lost)+len(st.Kept)+len(st.Late) > 0 {
			t.Errorf("it acknowledges nothing anyway, and asks for a split: %+v", st)
		}
	}
	returns := func(tag int) {
		w.run(w.now + groupBound - 11e8)
		if !v.cfg.InSyncIn("b") || v.c.Stall() != StallNone || !v.has[1][tag] {
			t.Errorf("in sync %v, stall %q, written %v", v.cfg.ISR, v.c.Stall(), v.has[1][tag])
		}
	}
	leaves(0)
	returns(0) // whatever the others do
	leaves(1)
	if st := v.c.SetGroup(w.now, replication.GroupOrder{Term: v.c.Term(), In: true, Left: []replication.DomainID{"b"}}); len(st.Kept) != 1 {
		t.Errorf("the others have left, and it says %+v", st)
	}
	v.drain()
	returns(1)
}
