package core

import (
	"errors"
	"slices"
	"testing"

	"github.com/tandem-storage/tandem/datapath/block"
	"github.com/tandem-storage/tandem/replication"
)

// endOf waits for the end of the snapshot id of n.
func (w *simWorld) endOf(t *testing.T, n *simNode, ask func()) *Event {
	t.Helper()
	var end *Event
	w.snaps.told = func(e *Event) { end = e }
	ask()
	for range 3000 {
		if end != nil {
			return end
		}
		w.step()
	}
	t.Fatalf("the snapshot does not end; stall %q", n.coord.Stall())
	return nil
}

func (w *simWorld) askSnapshot(n *simNode, id byte, wait, hold int64) func() {
	return func() {
		n.coord.Snapshot(n.clock(), replication.SnapshotID{id}, n.clock()+wait, hold)
		n.drainCoord()
	}
}

// TestSnapshot takes one under a write, which is in it, and while another one comes, which is not, and is served after it.
func TestSnapshot(t *testing.T) {
	w := servingWorld(t)
	n := w.nodes[0]
	w.client.write(0, 0)
	e := w.endOf(t, n, func() {
		w.askSnapshot(n, 1, 1e9, 1e9)()
		w.client.write(1, 0)
	})
	if e.Err != nil || !slices.Equal(byID(e.Holders), byID(n.coord.Members())) {
		t.Fatalf("%v, held by %v", e.Err, e.Holders)
	}
	for _, m := range w.nodes {
		has := (*m.disk.snaps)[replication.SnapshotID{1}]
		if has[simSectors[0]] != 1 || has[simSectors[1]] != 0 {
			t.Errorf("%s has %v", m.id, has)
		}
	}
	w.run(50)
	if len(w.client.flight) > 0 || n.coord.Stall() != StallNone {
		t.Errorf("%d requests wait, stall %q", len(w.client.flight), n.coord.Stall())
	}
}

// TestSnapshotHeld takes one while the cut of a group holds the volume.
func TestSnapshotHeld(t *testing.T) {
	w := servingWorld(t)
	n := w.nodes[0]
	w.run(500)
	if err := n.coord.HoldForCut(n.clock(), replication.UUID{1}, n.clock()+1e9); err != nil {
		t.Fatal(err)
	}
	n.drainCoord()
	w.client.write(0, 0)
	if e := w.endOf(t, n, w.askSnapshot(n, 1, 1e8, 1e9)); e.Err != nil {
		t.Fatal(e.Err)
	}
	if (*w.nodes[1].disk.snaps)[replication.SnapshotID{1}][simSectors[0]] != 0 || !n.coord.ReleaseCut(n.clock(), replication.UUID{1}) {
		t.Error("the group was not held over the snapshot")
	}
	n.drainCoord()
	w.run(50)
	if len(w.client.flight) > 0 {
		t.Error("the write was not served after the release")
	}
}

// TestSnapshotNotTaken has each thing in the way that there is: it is told, in time, and writes go on.
func TestSnapshotNotTaken(t *testing.T) {
	for _, tt := range []struct {
		name string
		set  func(w *simWorld)
		want error
	}{
		{"a disk that hangs", func(w *simWorld) { w.nodes[1].disk.hung = true }, replication.ErrStalled},
		{"a version that knows none", func(w *simWorld) { w.nodes[0].coord.m[1].snapshots = false }, replication.ErrSnapshotUnsupported},
		{"a pool that cannot", func(w *simWorld) { w.nodes[1].disk.noCut = replication.ErrSnapshotUnsupported }, replication.ErrSnapshotUnsupported},
		{"too many", func(w *simWorld) { w.nodes[1].disk.noCut = replication.ErrTooManySnapshots }, replication.ErrTooManySnapshots},
		{"a number that was used", func(w *simWorld) { w.nodes[1].disk.noCut = replication.ErrSnapshotExists }, replication.ErrStalled},
		{"no space", func(w *simWorld) { w.nodes[1].disk.full = true }, block.ErrNoSpace},
		{"a disk that fails", func(w *simWorld) { w.nodes[1].disk.dropNext = true }, replication.ErrReplicaFaulted},
		{"a node that is gone", func(w *simWorld) { w.nodes[1].crash(false) }, replication.ErrStalled},
		{"replicas that may differ", func(w *simWorld) { w.nodes[0].coord.reconcile.SetAll(); w.nodes[0].coord.copyAt = 1 << 62 }, replication.ErrStalled},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := servingWorld(t)
			n := w.nodes[0]
			w.run(500)
			tt.set(w)
			since := w.now
			e := w.endOf(t, n, w.askSnapshot(n, 1, 1e8, 2e8))
			if !errors.Is(e.Err, tt.want) || !errors.Is(e.Err, replication.ErrNotCut) || e.Holders != nil {
				t.Errorf("%v, held by %v", e.Err, e.Holders)
			}
			if w.now-since > 4e8 {
				t.Errorf("it was told after %d ms", (w.now-since)/1e6)
			}
			if n.coord.holding() || n.coord.snap != nil {
				t.Errorf("still held: %s", n.coord.Stall())
			}
			for _, m := range w.nodes {
				m.disk.noCut, m.disk.full = nil, false
				m.unhang()
				if !m.up {
					m.start()
				}
			}
			w.run(2000)
			w.client.write(0, 0)
			w.run(100)
			if len(w.client.flight) > 0 {
				t.Errorf("writes do not go on: %s", n.coord.Stall())
			}
		})
	}
}

// TestSnapshotOneByOne asks for one while another one is taken, and of a coordinator that has ended.
func TestSnapshotOneByOne(t *testing.T) {
	w := servingWorld(t)
	n := w.nodes[0]
	var ends []*Event
	w.snaps.told = func(e *Event) { ends = append(ends, e) }
	w.askSnapshot(n, 1, 1e9, 1e9)()
	w.askSnapshot(n, 2, 1e9, 1e9)()
	if len(ends) != 1 || ends[0].Snapshot != (replication.SnapshotID{2}) || !errors.Is(ends[0].Err, replication.ErrStalled) {
		t.Fatalf("%+v", ends)
	}
	c := n.coord
	c.Kill(n.clock(), replication.ErrDomainFenced)
	n.drainCoord()
	if len(ends) != 2 || !errors.Is(ends[1].Err, replication.ErrDomainFenced) {
		t.Fatalf("%+v", ends)
	}
	c.Snapshot(w.now, replication.SnapshotID{3}, w.now+1e9, 1e9)
	if e := c.Ready().Events; len(e) != 1 || !errors.Is(e[0].Err, replication.ErrDomainFenced) {
		t.Errorf("%+v", e)
	}
}

// TestSnapshotLate gives one up that a replica is at: nothing comes to that before it has ended, and the volume is served by it again then.
func TestSnapshotLate(t *testing.T) {
	w := servingWorld(t)
	n := w.nodes[0]
	w.run(500)
	w.nodes[1].disk.hung = true
	if e := w.endOf(t, n, w.askSnapshot(n, 1, 1e8, 1e8)); e.Err == nil {
		t.Fatal("it was taken without an answer")
	}
	w.client.write(0, 0)
	w.run(20)
	if got := w.nodes[1].disk.data[simSectors[0]]; got != 0 || len(w.client.flight) != 1 {
		t.Errorf("written %d beside the snapshot", got)
	}
	w.nodes[1].unhang()
	w.run(300)
	if len(w.client.flight) > 0 || len(w.cfg.ISR) != 2 {
		t.Errorf("%d requests in flight, in sync %v", len(w.client.flight), w.inSync())
	}
	if has := (*w.nodes[1].disk.snaps)[replication.SnapshotID{1}]; has == nil || has[simSectors[0]] != 0 {
		t.Errorf("the replica was cut as %v", has)
	}
}

// TestReplicaCut: a replica is cut only if it is in sync, and nothing that alters is beside it.
func TestReplicaCut(t *testing.T) {
	id := replication.SnapshotID{1}
	cut := replication.Message{Type: replication.MsgSnapCut, Seq: 9, Offset: sector, Length: 16, Data: id[:]}
	refused := func(r *Replica, m replication.Message, st replication.Status) {
		t.Helper()
		r.testStep(m)
		if s := r.Ready().Send; len(s) != 1 || s[0].Msg.Type != replication.MsgNack || s[0].Msg.Status != st {
			t.Errorf("%v is answered with %+v", m.Type, s)
		}
		r.Advance()
	}
	flush := replication.Message{Type: replication.MsgFlush, Seq: 8}
	r := openReplica(t, false)
	r.testStep(flush)
	io := r.Ready().IO[0]
	r.Advance()
	refused(r, cut, replication.StatusInvalid)
	r.IODone(io, nil, nil, nil)
	r.Advance()
	refused(r, replication.Message{Type: replication.MsgSnapCut, Seq: 9, Offset: sector, Length: 16}, replication.StatusInvalid)
	for _, size := range []int64{0, r.o.Size + sector} {
		refused(r, replication.Message{Type: replication.MsgSnapCut, Seq: 9, Offset: size, Length: 16, Data: id[:]}, replication.StatusInvalid)
	}
	r.testStep(cut)
	r.testStep(replication.Message{Type: replication.MsgRead, Seq: 10, Length: sector})
	ios := slices.Clone(r.Ready().IO)
	if len(ios) != 2 || replication.SnapshotID(ios[0].Data) != id {
		t.Fatalf("started: %+v", ios)
	}
	r.Advance()
	refused(r, flush, replication.StatusInvalid)
	refused(r, replication.Message{Type: replication.MsgTrim, Seq: 11, Length: sector}, replication.StatusInvalid)
	refused(r, cut, replication.StatusInvalid)
	r.IODone(ios[0], nil, nil, nil)
	if s := r.Ready().Send; len(s) != 1 || s[0].Msg.Type != replication.MsgAck || s[0].Msg.Flags&replication.FlagStable == 0 || s[0].Msg.Credit != 16 {
		t.Errorf("answered with %+v", s)
	}
	r.Advance()
	r.testStep(flush)
	if len(r.Ready().IO) != 1 {
		t.Error("no flush after the snapshot")
	}

	r = openReplica(t, false)
	r.meta.State = replication.MemberSyncing
	refused(r, cut, replication.StatusState)
}
