package core

import (
	"encoding/binary"
	"math"
	"slices"
	"testing"

	"github.com/tandem-storage/tandem/replication"
)

// checkReady asserts that a replica asks its disk for nothing that is not there,
// and that each write is in the log; it then ends what was asked for.
func (r *Replica) checkReady(t *testing.T) {
	t.Helper()
	d := r.Ready()
	for _, io := range d.IO {
		if io.Kind == replication.MsgFlush {
			continue
		}
		if io.Off < 0 || io.Len <= 0 || io.Off > r.o.Size-io.Len || io.Off%sector != 0 || io.Len%sector != 0 {
			t.Fatalf("%v of %d bytes at %d", io.Kind, io.Len, io.Off)
		}
		if io.Kind == replication.MsgRead || io.Kind == replication.MsgHashReq {
			continue
		}
		for g := io.Off / replication.RegionSize; g <= (io.Off+io.Len-1)/replication.RegionSize; g++ {
			if x := r.regions[g]; x.state != regionIn || !slices.Contains(r.active(), uint32(g)) {
				t.Fatalf("write %d, %d settled: the log has %+v for its region", io.seq, r.stable, x)
			}
		}
	}
	ios, persist, logged := slices.Clone(d.IO), d.Persist != nil, d.Log != nil && d.Log.Wait
	r.Advance()
	for _, io := range ios {
		r.IODone(io, nil, nil, nil)
	}
	if persist {
		r.PersistDone(nil)
	}
	if logged {
		r.LogDone(nil)
	}
	if d := r.Ready(); len(d.IO) > 0 || d.Persist != nil || d.Log != nil {
		r.checkReady(t)
	}
	r.Advance()
}

// Numbers that no coordinator gives out are refused; they neither wrap nor reach
// the disk, and the session goes on.
func TestReplicaExtremeMessages(t *testing.T) {
	types := []replication.MessageType{
		replication.MsgWrite, replication.MsgZero, replication.MsgTrim, replication.MsgFlush, replication.MsgRead,
		replication.MsgStable, replication.MsgHashReq, replication.MsgResyncWrite,
	}
	seqs := []replication.Seq{0, 1, 2, 1 << 63, math.MaxUint64 - 1, math.MaxUint64}
	offs := []int64{0, 1, sector, simSize - sector, simSize, simSize + sector, 1 << 62, math.MaxInt64, math.MaxInt64 - sector + 1, -sector, math.MinInt64}
	lens := []int64{0, 1, sector, simSize, simSize + sector, math.MaxUint32, math.MaxInt64 - sector + 1, -sector, math.MinInt64}
	for _, typ := range types {
		for _, seq := range seqs {
			for _, stable := range seqs {
				for _, off := range offs {
					for _, n := range lens {
						r := openReplica(t, false)
						m := replication.Message{Type: typ, Session: 7, Seq: seq, StableSeq: stable, Offset: off, Length: n}
						if typ == replication.MsgWrite && n > 0 && n <= 1<<20 {
							m.Data = make([]byte, n)
						}
						r.Step(1, &m)
						refused := len(r.Ready().Send) == 1 && r.Ready().Send[0].Msg.Type == replication.MsgNack
						modifies := typ != replication.MsgFlush && typ != replication.MsgRead && typ != replication.MsgStable && typ != replication.MsgHashReq
						if bad := seq == math.MaxUint64 || seq == 0 && typ != replication.MsgStable || stable > seq || modifies && stable == seq; bad && !refused || r.stable > seq || bad && r.stable > 0 {
							t.Fatalf("%s with %d settled: refused %v, settled %d", describe(&m), stable, refused, r.stable)
						}
						r.checkReady(t)
						next := replication.Message{Type: replication.MsgWrite, Session: 7, Seq: math.MaxUint64 - 1, Length: sector, Data: make([]byte, sector)}
						if !r.Step(1, &next) && r.stable < next.Seq {
							t.Fatalf("after %s: %s was not served", describe(&m), describe(&next))
						}
					}
				}
			}
		}
	}
}

// The same for the control exchange.
func TestReplicaExtremeControls(t *testing.T) {
	const most = math.MaxUint64
	status := func(r *Replica) replication.Status {
		if r.Ready().Persist != nil {
			r.PersistDone(nil)
		}
		res := r.Ready().Replies[0].Result
		switch r.Advance(); {
		case res.Seal != nil:
			return res.Seal.Status
		case res.Prepare != nil:
			return res.Prepare.Status
		default:
			return res.Commit.Status
		}
	}
	for _, q := range []struct {
		seal replication.SealRequest
		want replication.Status
	}{
		{replication.SealRequest{Term: 6, Epoch: 6}, replication.StatusOK},
		{replication.SealRequest{Term: most - 1, Epoch: most - 1}, replication.StatusOK},
		{replication.SealRequest{Term: 0, Epoch: 6}, replication.StatusInvalid},
		{replication.SealRequest{Term: 7, Epoch: 6}, replication.StatusInvalid},
		{replication.SealRequest{Term: most, Epoch: 6}, replication.StatusInvalid},
		{replication.SealRequest{Term: most, Epoch: most}, replication.StatusInvalid},
		{replication.SealRequest{Term: 6, Epoch: most}, replication.StatusInvalid},
	} {
		r := openReplica(t, false)
		if r.Seal(1, q.seal); status(r) != q.want || q.want != replication.StatusOK && r.meta.Term != 5 {
			t.Errorf("seal of term %d, epoch %d: promised %d", q.seal.Term, q.seal.Epoch, r.meta.Term)
		}
	}
	r := openReplica(t, false)
	if r.Commit(1, replication.CommitRequest{Term: 5}); status(r) != replication.StatusInvalid {
		t.Error("a commit without configuration was taken")
	}
	if r.Commit(1, replication.CommitRequest{Term: 5, Config: &replication.Config{Epoch: most}}); status(r) != replication.StatusInvalid {
		t.Error("the last epoch was taken")
	}
	many := make([]replication.ReplicaID, maxMembers+1)
	for i := range many {
		many[i] = replication.ReplicaID{byte(i + 2)}
	}
	if r.Prepare(1, replication.PrepareRequest{Term: 5, Missing: many}); status(r) != replication.StatusInvalid {
		t.Error("more dirty maps than there can be members")
	}
}

// A dirty map that is shorter than the volume says nothing of its end: no resync
// starts with it. One that is longer is of a replica that has grown already.
func TestDirtyMapTooShort(t *testing.T) {
	for _, cut := range []int{0, 1, -1} {
		w := servingWorld(t)
		c := w.nodes[0].coord
		w.nodes[1].disk.full = true
		w.client.write(0, 0)
		w.run(50)
		w.nodes[1].disk.full = false
		for c.ctl[c.nextCtl] == nil || c.change == nil || c.change.step != stepDirty {
			w.step()
		}
		bits := make([]byte, (c.blocks+7)/8-cut)
		c.ControlDone(w.now, c.nextCtl, ControlResult{Dirty: &replication.DirtyResult{Bits: bits}})
		w.nodes[0].drainCoord()
		if started := c.join != nil && c.join.todo != nil; started != (cut <= 0) {
			t.Errorf("map of %d bytes instead of %d: resync %v", len(bits), (c.blocks+7)/8, started)
		}
	}
}

// fuzzMessage makes a message of the bytes of a fuzzer, and returns the rest.
func fuzzMessage(b []byte) (m replication.Message, rest []byte) {
	const n = 32
	if len(b) < n {
		b = append(slices.Clone(b), make([]byte, n-len(b))...)
	}
	le := binary.LittleEndian
	m = replication.Message{
		Type: replication.MessageType(b[0]), Flags: replication.MessageFlags(b[1]), Status: replication.Status(b[2] >> 4), Session: 7,
		Seq: replication.Seq(int8(b[3])), StableSeq: replication.Seq(int8(b[4])), Offset: int64(le.Uint64(b[8:])), Length: int64(le.Uint32(b[16:])),
		Term: replication.Term(int8(b[5])), Credit: le.Uint32(b[24:]),
	}
	if b[6]&1 != 0 { // something sensible: the others seldom are
		m.Offset, m.Length = int64(b[8])*sector, int64(b[16])*sector
	}
	if b[7] != 0 && m.Length >= 0 && m.Length <= 1<<20 {
		m.Data = make([]byte, m.Length)
	}
	return m, b[n:]
}

var fuzzSeeds = [][]byte{
	{3, 1, 0, 2, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1},
	{3, 0, 0, 0xff, 0xff, 0, 1, 1, 5, 0, 0, 0, 0, 0, 0, 0, 1},
	{11, 0, 0, 9, 8}, {6, 0, 0, 9, 9}, {12, 0, 0, 3, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 16}, {7, 2, 0, 2}, {8, 0, 0x30, 2}, {8, 0, 0x10, 2, 0, 9},
}

// FuzzReplicaMessages: whatever comes in a session, the replica does not panic,
// and what it asks its disk for is in range and in the log.
func FuzzReplicaMessages(f *testing.F) {
	for _, b := range fuzzSeeds {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r := openReplica(t, len(b)%2 == 1)
		for len(b) > 0 {
			var m replication.Message
			m, b = fuzzMessage(b)
			r.Step(1, &m)
			r.checkReady(t)
		}
	})
}

// FuzzCoordinatorMessages: whatever a replica answers, the coordinator does not
// panic and tells the consumer of no write that only the others have.
func FuzzCoordinatorMessages(f *testing.F) {
	for _, b := range fuzzSeeds {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		w := servingWorld(t)
		n := w.nodes[0]
		w.nodes[1].disk.hung = true
		w.client.write(0, 0)
		w.client.read(1)
		w.client.flush()
		for c := n.coord; len(b) > 0 && n.coord == c; {
			var m replication.Message
			m, b = fuzzMessage(b)
			if m.Session = c.m[1].sess; m.Type == replication.MsgAck {
				m.Type = replication.MsgNack // an acknowledgement would be believed
			}
			if m.Status == replication.StatusCRC {
				m.Status = replication.StatusInvalid // as would be that it threw a message away that it has
			}
			c.Step(w.now, 1, &m)
			n.drainCoord()
			w.run(5)
		}
		w.nodes[1].unhang()
		w.run(100)
	})
}
