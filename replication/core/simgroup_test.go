package core

import (
	"container/heap"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/tandem-storage/tandem/replication"
)

// groupWorld has several volumes of one group, each with a coordinator in domain a and a replica in domain b, and one consumer that writes tags: the
// next one, to whatever volume, when the one before is acknowledged. The coordinators, the group's record and its rules are the real ones; replicas,
// kvdb and keepers are models, with messages that take their time, links that fail volume by volume, and processes that end.
type groupWorld struct {
	rng    *rand.Rand
	now    int64
	queue  groupQueue
	number int
	fail   func(format string, a ...any)

	vols   []*groupVol
	record *replication.Group
	rev    int
	outage int64 // the kvdb does not answer before
	slow   int64 // keepers take up to that long for each step
	lazy   bool  // and some never come to work
	pace   int64 // the consumer pauses for up to that long

	next   int   // tag of the consumer's request
	at     int   // volume that it was sent to
	busy   bool  // it is under way
	asked  int64 // when
	acked  int
	images int // consistent ones of b that were not in sync and lacked something

	handovers, waited int // that were made; requests acknowledged where there is something to wait for
}

type groupVol struct {
	w       *groupWorld
	id      replication.VolumeID
	c       *Coordinator // nil: it is not attached
	life    int          // of the process: what was on its way to an earlier one is lost
	cfg     *replication.Config
	rev     uint64
	far     bool // its replica in b is reached
	has     [2]map[int]bool
	before  []int // tags that were dispatched in earlier terms
	order   []int // and in this one, in order
	seen    map[replication.Seq]bool
	tending bool
	io      *IO
	held    func() // told when a cut holds it
	by      replication.AttachID
}

type groupEvent struct {
	at     int64
	number int
	do     func()
}

type groupQueue []groupEvent

func (q groupQueue) Len() int { return len(q) }
func (q groupQueue) Less(i, j int) bool {
	return q[i].at < q[j].at || q[i].at == q[j].at && q[i].number < q[j].number
}
func (q groupQueue) Swap(i, j int) { q[i], q[j] = q[j], q[i] }
func (q *groupQueue) Push(x any)   { *q = append(*q, x.(groupEvent)) }
func (q *groupQueue) Pop() any {
	o := *q
	x := o[len(o)-1]
	*q = o[:len(o)-1]
	return x
}

const groupBound = 5e9

var groupSeeds = flag.Int("group.seeds", 0, "seeds of TestSimGroup and TestSimCut, if more than their own number")

// after does f within most nanoseconds.
func (w *groupWorld) after(most int64, f func()) {
	w.number++
	heap.Push(&w.queue, groupEvent{w.now + 1 + w.rng.Int64N(max(most, 1)), w.number, f})
}

func (w *groupWorld) uuid() (u replication.UUID) {
	for i := range u {
		u[i] = byte(w.rng.Uint32())
	}
	return u
}

func newGroupWorld(seed uint64, n int) *groupWorld {
	w := &groupWorld{rng: rand.New(rand.NewPCG(seed, 7)), pace: 100e6, record: &replication.Group{Version: 1, Name: "g"}}
	w.fail = func(f string, a ...any) {
		panic(fmt.Sprintf("seed %d at %v: %s", seed, time.Duration(w.now), fmt.Sprintf(f, a...)))
	}
	for range n {
		v := &groupVol{w: w, id: replication.VolumeID(w.uuid()), far: true, has: [2]map[int]bool{{}, {}}}
		v.cfg = &replication.Config{
			Version: 1, Volume: v.id, Epoch: 1, Gen: 1, Phase: replication.PhaseDetached, Size: 64 << 20,
			Members: map[replication.ReplicaID]replication.Member{}, Protection: replication.MaxAvailability,
		}
		for k, d := range []replication.DomainID{"a", "b"} {
			id := replication.ReplicaID{0: byte(k + 1)}
			v.cfg.ISR = append(v.cfg.ISR, id)
			v.cfg.Members[id] = replication.Member{Node: replication.NodeID(d), Domain: d, State: replication.MemberInSync}
		}
		v.cfg.History = []replication.EpochRecord{{Epoch: 1, Gen: 1, ISR: v.cfg.ISR, Cause: "create"}}
		w.vols = append(w.vols, v)
		w.record.Volumes = append(w.record.Volumes, v.id)
	}
	slices.SortFunc(w.record.Volumes, func(a, b replication.VolumeID) int { return slices.Compare(a[:], b[:]) })
	return w
}

// attach makes a coordinator for a volume that has none.
func (v *groupVol) attach() { v.start(Options{Attach: replication.AttachID(v.w.uuid())}) }

// start makes the coordinator of an attachment; how has its Attach and TakeBack.
func (v *groupVol) start(how Options) {
	w := v.w
	v.life++
	v.by = how.Attach
	v.before, v.order, v.seen = append(v.before, v.order...), nil, map[replication.Seq]bool{}
	v.c = New(Options{
		Volume: v.id, Node: "a", Domain: "a", Attach: how.Attach, TakeBack: how.TakeBack, Boot: replication.BootID{1}, Local: replication.ReplicaID{1},
		SuspectTimeout: 3e9, OpTimeout: 10e9, SealTimeout: 5e9, LossyTimeout: 60e9, LeaseTime: 2e9, RetryInterval: 5e8, FlushInterval: 1e9,
		FlushBytes: 1 << 40, FlushRegions: 1 << 20, ResyncWindow: 8, JoinerLag: 1 << 20, GroupTimeout: groupBound, GroupRest: 2e9, Group: true, Rand: w.rng.Uint64,
	}, v.cfg, v.rev)
	v.c.Start(w.now)
	v.drain()
	v.tick(v.life)
}

func (v *groupVol) tick(life int) {
	v.w.after(100e6, func() {
		if v.life == life && v.c != nil {
			v.c.Tick(v.w.now)
			v.drain()
			v.tick(life)
		}
	})
}

// crash ends the process of the coordinator.
func (v *groupVol) crash() {
	v.c, v.tending, v.held = nil, false, nil
	v.life++
	if v.io != nil {
		v.io, v.w.busy = nil, false
	}
}

// later calls f for the same process, if it lives.
func (v *groupVol) later(most int64, f func(now int64)) {
	life := v.life
	v.w.after(most, func() {
		if v.life == life && v.c != nil {
			f(v.w.now)
			v.drain()
		}
	})
}

func (v *groupVol) reached(i int) bool { return i == 0 || v.far }

// drain carries out what the coordinator asks for.
func (v *groupVol) drain() {
	w, c := v.w, v.c
	if c == nil {
		return
	}
	const way = 3e6
	r := c.Ready()
	for _, s := range r.Connect {
		v.later(way, func(now int64) {
			if v.reached(s.To) {
				c.SessionUp(now, s.To, s.ID, replication.HelloAck{Boot: replication.BootID{1}})
			} else {
				c.SessionDown(now, s.To, s.ID)
			}
		})
	}
	for _, q := range r.Control {
		there := v.reached(q.To)
		v.later(way, func(now int64) { c.ControlDone(now, q.ID, v.answer(q, there)) })
	}
	for i := range r.Messages {
		v.deliver(r.Messages[i].To, r.Messages[i].Msg, way)
	}
	if r.Change != nil {
		ch := *r.Change
		w.after(way, func() { v.swap(ch) })
	}
	var done []Completion
	done = append(done, r.Completions...)
	events := slices.Clone(r.Events)
	c.Advance()
	for _, d := range done {
		if d.IO == v.io {
			if v.io = nil; d.Err == nil {
				v.kept()
			}
			w.done(d.Err)
		}
	}
	for _, e := range events {
		switch {
		case e.Kind == EventResyncStarted:
			v.has[1] = maps.Clone(v.has[0])
		case e.Kind == EventHeld && v.held != nil:
			v.held()
		}
		w.wake(v)
	}
	if c.HandedOver() {
		v.follow()
	}
}

// answer is what a replica says to a control request.
func (v *groupVol) answer(q Control, there bool) ControlResult {
	switch {
	case !there:
		return ControlResult{Failed: true}
	case q.Seal != nil:
		return ControlResult{Seal: &replication.SealResult{Term: q.Seal.Term, Epoch: v.cfg.Epoch, Gen: v.cfg.Gen, State: replication.MemberInSync, Boot: replication.BootID{1}}}
	case q.Prepare != nil:
		return ControlResult{Prepare: &replication.PrepareResult{}}
	case q.Commit != nil:
		return ControlResult{Commit: &replication.CommitResult{}}
	default:
		return ControlResult{Dirty: &replication.DirtyResult{Bits: make([]byte, v.cfg.Size/replication.ResyncBlock/8)}}
	}
}

// deliver carries a message to a replica, which it reaches if the link is there when it is sent, and its answer back.
func (v *groupVol) deliver(to int, msg replication.Message, way int64) {
	if msg.Type == replication.MsgWrite && to == 0 && !v.seen[msg.Seq] {
		v.seen[msg.Seq] = true
		v.order = append(v.order, int(msg.Offset/sector))
	}
	if !v.reached(to) {
		return
	}
	c, life := v.c, v.life
	v.w.after(way, func() {
		ack := replication.Message{Type: replication.MsgAck, Session: msg.Session, Term: msg.Term, Seq: msg.Seq}
		switch msg.Type {
		case replication.MsgWrite:
			v.has[to][int(msg.Offset/sector)] = true
		case replication.MsgLease:
			ack.Type, ack.Offset, ack.Length = replication.MsgGrant, msg.Offset, 3000
		case replication.MsgFlush:
		default:
			return
		}
		if life == v.life && v.c == c {
			v.later(way, func(now int64) {
				if v.reached(to) {
					c.Step(now, to, &ack)
				}
			})
		}
	})
}

// swap is the kvdb.
func (v *groupVol) swap(ch Change) {
	w := v.w
	life := v.life
	tell := func(out Outcome) {
		cfg, rev := v.cfg, v.rev
		w.after(3e6, func() {
			if v.life == life && v.c != nil {
				v.c.ChangeDone(w.now, out, cfg, rev)
				v.drain()
			}
		})
	}
	switch {
	case w.now < w.outage:
		tell(ChangeNotSent)
	case ch.Rev != v.rev:
		tell(ChangeConflict)
	default:
		v.cfg, v.rev = ch.Next.Clone(), v.rev+1
		w.look()
		tell(ChangeOK)
		for _, u := range w.vols {
			w.wake(u)
		}
	}
}

func (w *groupWorld) configs() map[replication.VolumeID]*replication.Config {
	cfgs := map[replication.VolumeID]*replication.Config{}
	for _, v := range w.vols {
		cfgs[v.id] = v.cfg
	}
	return cfgs
}

// wake has the keeper on the node of a volume look after it.
func (w *groupWorld) wake(v *groupVol) {
	if v.tending || v.c == nil || w.lazy && w.rng.IntN(3) > 0 {
		return
	}
	v.tending = true
	st := v.c.GroupStatus()
	v.read(st.Term)
}

// read is a linearizable read, and what the volume is told then.
func (v *groupVol) read(term replication.Term) {
	w := v.w
	v.later(w.slow+2e6, func(int64) {
		if w.now < w.outage {
			v.tending = false
			return
		}
		g, rev, cfgs := w.record.Clone(), w.rev, w.configs()
		leave, left := g.Tell(v.id, "a", cfgs)
		v.later(w.slow+1e6, func(now int64) {
			st := v.c.SetGroup(now, replication.GroupOrder{Term: term, In: true, Leave: leave, Left: left})
			next, linked := g.Advance(&replication.Standing{Volume: v.id, Domain: "a", Term: st.Term, Lost: st.Lost, Kept: st.Kept, Late: st.Late}, cfgs, time.Unix(1, 0))
			if next == g {
				v.tending = false
				return
			}
			v.write(next, rev, linked, cfgs, st.Term)
		})
	})
}

// write is a compare-and-set of the record, after which everything is looked at again.
func (v *groupVol) write(next *replication.Group, rev int, linked bool, cfgs map[replication.VolumeID]*replication.Config, term replication.Term) {
	w := v.w
	w.after(w.slow+2e6, func() {
		if w.now >= w.outage && rev == w.rev && (!linked || maps.Equal(cfgs, w.configs())) {
			w.record, w.rev = next, rev+1
			w.look()
			for _, u := range w.vols {
				w.wake(u)
			}
		}
	})
	v.later(w.slow+5e6, func(int64) { v.read(term) })
}

// issue sends the consumer's next request.
func (w *groupWorld) issue() {
	if w.busy {
		return
	}
	w.at = w.rng.IntN(len(w.vols))
	v := w.vols[w.at]
	if v.c == nil || v.c.Dead() != nil {
		w.after(50e6, w.issue)
		return
	}
	w.busy, w.asked = true, w.now
	v.io = &IO{Kind: replication.MsgWrite, Off: int64(w.next) * sector, Len: sector, Data: make([]byte, sector)}
	v.c.Propose(w.now, v.io)
	v.drain()
}

// done is the answer; one that was lost with its coordinator is asked for again.
func (w *groupWorld) done(err error) {
	w.busy = false
	if err == nil {
		w.acked = w.next
		w.next++
	}
	w.after(w.pace, w.issue)
}

// look judges what is claimed of domain b.
func (w *groupWorld) look() {
	im := w.record.ImageIn("b", w.configs())
	if !im.Consistent {
		return
	}
	has := map[int]bool{}
	last := -1
	for _, v := range w.vols {
		for tag := range v.has[1] {
			has[tag] = true
			last = max(last, tag)
		}
	}
	for tag := range last {
		if !has[tag] {
			w.fail("domain b is said to be consistent and has tag %d without %d, of %d acknowledged: %+v", last, tag, w.acked, w.record.Splits["b"])
		}
	}
	switch {
	case im.InSync && w.acked > 0 && last < w.acked:
		w.fail("domain b is said to be in sync and lacks tag %d", w.acked)
	case !im.InSync && last < w.acked:
		w.images++
	}
}

func (w *groupWorld) run(until int64) {
	for len(w.queue) > 0 && w.queue[0].at < until {
		e := heap.Pop(&w.queue).(groupEvent)
		w.now = e.at
		e.do()
	}
	w.now = until
}

// groupRun lives through a seed.
func groupRun(seed uint64, volumes int) *groupWorld {
	w := newGroupWorld(seed, volumes)
	for i, v := range w.vols {
		v.cfg.SetPolicy(w.drawPolicy())
		if i < 2 || w.rng.IntN(2) == 0 {
			v.attach()
		} else {
			w.after(60e9, v.back)
		}
	}
	w.after(1, w.issue)
	for range 30 {
		w.run(w.now + 200e6 + w.rng.Int64N(6e9))
		w.look()
		w.breaks()
		for _, v := range w.vols {
			w.wake(v)
		}
	}
	w.heals()
	return w
}

// TestSimGroup breaks links, processes, keepers and the kvdb of groups: what is said to be an image of one moment is one.
func TestSimGroup(t *testing.T) {
	seeds := max(*groupSeeds, 100)
	images, acked, handovers, waited := 0, 0, 0, 0
	for seed := range uint64(seeds) {
		w := groupRun(seed, 2+int(seed%2))
		if w.images > 0 {
			images++
		}
		acked, handovers, waited = acked+w.acked, handovers+w.handovers, waited+w.waited
	}
	if images < seeds/4 || acked < seeds*100 || handovers < seeds/2 || waited < seeds*10 {
		t.Error("that proves little")
	}
	t.Logf("%d of %d seeds had an image that was not in sync, %d writes, %d of them with a protection, %d handovers", images, seeds, acked, waited, handovers)
}
