package core

import (
	"testing"

	"github.com/tandem-storage/tandem/replication"
)

// turn carries out what the replica asks its storage for, at once, until there is nothing left.
func (r *Replica) turn() {
	for {
		d := r.Ready()
		ios, persist, log := append([]*LocalIO(nil), d.IO...), d.Persist, d.Log
		r.Advance()
		if len(ios) == 0 && persist == nil && log == nil {
			return
		}
		if log != nil && log.Wait {
			r.LogDone(nil)
		}
		if persist != nil {
			r.PersistDone(nil)
		}
		for _, io := range ios {
			r.IODone(io, nil, nil, nil)
		}
	}
}

func (r *Replica) testWrite(seq replication.Seq, region int64) {
	r.testStep(replication.Message{
		Type: replication.MsgWrite, Seq: seq, Offset: region * replication.RegionSize, Length: sector, Data: make([]byte, sector),
	})
}

// While a replica is resynced its log forgets what the others' maps have: a map that it is asked for before it knows that
// it has joined begins with everything (I14).
func TestJoinerBeginsMapWithEverything(t *testing.T) {
	r, x := openReplica(t, false), replication.ReplicaID{3}
	for _, c := range []struct {
		state replication.MemberState
		marks int
	}{{replication.MemberInSync, regionBlocks}, {replication.MemberSyncing, simSize / replication.ResyncBlock}} {
		r.meta.State, r.meta.ISR = c.state, []replication.ReplicaID{{1}, {2}, x}
		r.testWrite(10, 0)
		r.turn()
		r.Prepare(1, replication.PrepareRequest{Term: 5, Missing: []replication.ReplicaID{x}})
		r.turn()
		if n := r.dirty[x].Count(); n != c.marks {
			t.Errorf("%s: a map of %d blocks, want %d", c.state, n, c.marks)
		}
		r.setMissing(nil)
	}
}

// A log that was declared lost tells again when what was written without it is settled, and when the dirty maps that
// tell of that are durable (I12, I14).
func TestLogTellsAgain(t *testing.T) {
	x := replication.ReplicaID{3}
	r := openReplica(t, false)
	r.slots = 1
	r.meta.ISR = []replication.ReplicaID{{1}, x}
	r.Prepare(1, replication.PrepareRequest{Term: 5, Missing: []replication.ReplicaID{x}})
	r.turn()
	r.testStep(replication.Message{Type: replication.MsgStable, Seq: 1})
	r.testWrite(2, 0)
	r.turn()
	r.testWrite(3, 1) // no room
	r.testWrite(4, 2)
	for range patience {
		r.Sweep()
	}
	r.turn()
	if !r.logLost || len(r.parked) > 0 {
		t.Fatalf("log lost is %v, %d writes wait", r.logLost, len(r.parked))
	}
	r.testStep(replication.Message{Type: replication.MsgFlush, Seq: 5, StableSeq: 3})
	r.save()
	if r.turn(); !r.logLost {
		t.Error("the log tells again, and write 4 is not settled")
	}
	// Two writes without room mark blocks: one before everything is saved, one while that is under way.
	r.dirty[x].Set(2*regionBlocks + 1)
	r.testStep(replication.Message{Type: replication.MsgFlush, Seq: 6, StableSeq: 4})
	if r.Ready().Persist == nil {
		t.Fatal("nothing is saved")
	}
	r.dirty[x].Set(3 * regionBlocks)
	r.Advance()
	if r.PersistDone(nil); !r.logLost {
		t.Error("the log tells again, and a dirty map that tells of region 3 is not durable")
	}
	r.testStep(replication.Message{Type: replication.MsgFlush, Seq: 7, StableSeq: 6})
	if r.turn(); r.logLost {
		t.Error("everything is settled and durable, and the log does not tell")
	}
}

// Writes to many regions are flushed before the activity logs are full.
func TestFlushAfterManyRegions(t *testing.T) {
	w := servingWorld(t)
	c := w.nodes[0].coord
	c.o.FlushInterval, c.o.FlushRegions = 1e18, 3
	w.run(200)
	before := c.stable
	for k, s := range []int{0, 1, 3} { // two regions
		w.client.write(s, 0)
		w.run(20)
		if c.stable > before {
			t.Fatalf("flushed after write %d", k)
		}
	}
	w.client.write(4, 0)
	w.run(20)
	if c.stable == before {
		t.Error("writes to three regions were not flushed")
	}
}
