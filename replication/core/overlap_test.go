package core

import (
	"encoding/binary"
	"fmt"
	"maps"
	"math/bits"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/tandem-storage/tandem/replication"
)

// The simulator's consumer never has two requests for one block in flight, so that what it may see is simple. Here are
// consumers that do, and a checker for what they may see then.

// register is the exact streaming checker of a block (protocol.md 16.3): everything that can be true of it, as it
// hears of one call or answer after the other.
type register struct {
	may    map[registerState]bool
	writes [4]uint64 // what the write in each place writes
	used   uint8     // places of writes
	reads  uint8     // places of reads
}

// reading is how many reads of a block may be in flight.
const reading = 2

// registerState is one thing that can be true: what the block holds, which of the writes that have been called have not
// happened yet, and what the reads that have not been answered have seen, plus one, or 0 if they have not happened.
type registerState struct {
	value   uint64
	pending uint8
	seen    [reading]uint64
}

func newRegister(value uint64) *register {
	return &register{may: map[registerState]bool{{value: value}: true}}
}

// close adds what can have become of each state since nobody looked.
func (r *register) close() {
	todo := slices.Collect(maps.Keys(r.may))
	add := func(s registerState) {
		if !r.may[s] {
			r.may[s] = true
			todo = append(todo, s)
		}
	}
	for len(todo) > 0 {
		s := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		for i, v := range r.writes {
			if s.pending>>i&1 != 0 {
				n := s
				n.value, n.pending = v, s.pending&^(1<<i)
				add(n)
			}
		}
		for i, v := range s.seen {
			if r.reads>>i&1 != 0 && v == 0 {
				n := s
				n.seen[i] = s.value + 1
				add(n)
			}
		}
	}
}

// each replaces every state by what f makes of it; ok is false of one that cannot be. It reports whether any can.
func (r *register) each(f func(s *registerState) (ok bool)) bool {
	may := make(map[registerState]bool, len(r.may))
	for s := range r.may {
		if f(&s) {
			may[s] = true
		}
	}
	r.may = may
	r.close()
	return len(may) > 0
}

// full reports whether there is no place for another request of a kind. There are few, for what can be true is a lot.
func (r *register) full(kind replication.MessageType) bool {
	if kind == replication.MsgRead {
		return r.reads == 1<<reading-1
	}
	return r.used == 1<<len(r.writes)-1
}

// place takes a free place.
func place(used *uint8) int {
	i := bits.TrailingZeros8(^*used)
	*used |= 1 << i
	return i
}

// write says that a write is called, read that a read is. There is room for it.
func (r *register) write(v uint64) int {
	i := place(&r.used)
	r.writes[i] = v
	r.each(func(s *registerState) bool { s.pending |= 1 << i; return true })
	return i
}

func (r *register) read() int {
	i := place(&r.reads)
	r.close()
	return i
}

// written says that write i is acknowledged, wasRead that read i is answered by v. They report whether that can be.
func (r *register) written(i int) bool {
	r.used &^= 1 << i
	return r.each(func(s *registerState) bool { return s.pending>>i&1 == 0 })
}

func (r *register) wasRead(i int, v uint64) bool {
	r.reads &^= 1 << i
	return r.each(func(s *registerState) bool {
		ok := s.seen[i] == v+1
		s.seen[i] = 0
		return ok
	})
}

// gone says that read i failed.
func (r *register) gone(i int) {
	r.reads &^= 1 << i
	r.each(func(s *registerState) bool { s.seen[i] = 0; return true })
}

// over says that writes that have not happened by now never will.
func (r *register) over(writes uint8) {
	r.used &^= writes
	r.each(func(s *registerState) bool { s.pending &^= writes; return true })
}

// TestRegister holds the checker against histories whose answer is known.
func TestRegister(t *testing.T) {
	r := newRegister(7)
	a := r.write(1)
	b := r.write(2)
	x := r.read()
	if !r.wasRead(x, 1) {
		t.Fatal("a read cannot see a write in flight")
	}
	y := r.read()
	if !r.written(a) || !r.written(b) || !r.wasRead(y, 1) {
		t.Fatal("a read that was called before a write was acknowledged cannot see the one before")
	}
	sees := func(v uint64, want bool) {
		t.Helper()
		q := &register{may: maps.Clone(r.may), reads: r.reads, used: r.used, writes: r.writes}
		if x := q.read(); q.wasRead(x, v) != want {
			t.Errorf("a read sees %d: %v", v, !want)
		}
	}
	sees(7, false)
	sees(1, true) // whichever came last
	sees(2, true)
	c := r.write(3)
	sees(3, true)
	z := r.read()
	if !r.written(c) || !r.wasRead(z, 3) {
		t.Fatal("a read does not see the last write")
	}
	sees(2, false)
	lost := r.write(4)
	sees(3, true)
	sees(4, true)
	r.over(1 << lost)
	if x = r.read(); !r.wasRead(x, 3) {
		t.Error("a write that was not acknowledged has to have happened")
	}
	sees(4, false)
}

// crowd is the consumers: they have many requests for few blocks in flight.
type crowd struct {
	w      *simWorld
	blocks [3]*register // the first ones of simSectors
	at     *Coordinator
	served bool
	calls  int // in flight
	tag    uint64
	old    [3]uint8 // writes of attachments that have ended
	ours   [3]uint8 // and of this one
}

// act makes a request: a read, a write, a discard, of one block or of the first two, or a flush.
func (c *crowd) act() {
	w := c.w
	if c.calls >= 8 || w.client.at == nil || w.client.at.coord != c.at || w.client.at.paused {
		return
	}
	first, n := w.rng.IntN(len(c.blocks)), 1
	if first == 0 && w.rng.IntN(2) == 0 {
		n = 2
	}
	io := &IO{Kind: replication.MsgRead, Off: simSectors[first] * sector, Len: int64(n) * sector, Data: make([]byte, n*sector)}
	var tag uint64
	switch w.rng.IntN(8) {
	case 0:
		io.Kind = replication.MsgTrim
	case 1:
		io.Kind, n = replication.MsgFlush, 0
	case 2, 3, 4:
		c.tag++
		io.Kind, tag = replication.MsgWrite, c.tag
		for i := range n {
			binary.LittleEndian.PutUint64(io.Data[i*sector:], tag)
		}
	}
	var places [2]int
	for i := range n {
		if b := c.blocks[first+i]; b.full(io.Kind) {
			return
		}
	}
	for i := range n {
		if b := c.blocks[first+i]; io.Kind == replication.MsgRead {
			places[i] = b.read()
		} else {
			places[i] = b.write(tag)
			c.ours[first+i] |= 1 << places[i]
		}
	}
	at := c.at
	c.calls++
	io.User = func(err error) {
		if c.at != at {
			return // nobody is there to hear it
		}
		c.calls--
		for i := range n {
			b, k := c.blocks[first+i], places[i]
			switch {
			case io.Kind != replication.MsgRead && err == nil:
				c.ours[first+i] &^= 1 << k
				if !b.written(k) {
					w.fail("G1: write %d of block %d is acknowledged, and nothing explains it", tag, first+i)
				}
			case io.Kind != replication.MsgRead: // it may happen yet
			case err != nil:
				b.gone(k)
			default:
				if v := binary.LittleEndian.Uint64(io.Data[i*sector:]); !b.wasRead(k, v) {
					w.fail("G1: a read of block %d answered by %d, which nothing explains", first+i, v)
				}
			}
		}
	}
	at.Propose(w.client.at.clock(), io)
	w.client.at.drainCoord()
}

// follow takes note of who serves: once there is another attachment, nothing of the ones before happens any more.
func (c *crowd) follow() {
	var now *Coordinator
	if n := c.w.client.at; n != nil {
		now = n.coord
	}
	if now != c.at {
		c.at, c.served, c.calls = now, false, 0
		for i, b := range c.blocks {
			c.old[i], c.ours[i] = c.old[i]|c.ours[i], 0
			for k := range reading {
				b.gone(k)
			}
		}
	}
	if now != nil && !c.served && now.stage == stageServing {
		c.served = true
		for i, b := range c.blocks {
			b.over(c.old[i])
			c.old[i] = 0
		}
	}
}

// TestOverlappingRequests: whatever requests meet, in whatever order they are answered, and whatever happens to sessions,
// processes and coordinators meanwhile, each block is a register.
func TestOverlappingRequests(t *testing.T) {
	for seed := range uint64(40) {
		if failed := runOverlap(seed); failed != "" {
			t.Fatalf("seed %d: %s", seed, failed)
		}
	}
}

func runOverlap(seed uint64) (failed string) {
	w := newSimWorld(2+int(seed%2), rand.New(rand.NewPCG(seed, 19)))
	w.fail = func(f string, a ...any) { panic(simFailure(fmt.Sprintf(f, a...))) }
	defer func() {
		if f, ok := recover().(simFailure); ok {
			failed = string(f)
		}
	}()
	w.buggify()
	w.setClocks()
	w.opts.StallTimeout, w.cfg.Protection = 0, replication.MaxAvailability
	w.history.unsure = [simBlocks]bool{true, true, true, true, true, true, true, true} // it follows other consumers
	c := &crowd{w: w}
	for i := range c.blocks {
		c.blocks[i] = newRegister(0)
	}
	for range 1500 {
		n := w.nodes[w.rng.IntN(len(w.nodes))]
		switch w.rng.IntN(400) {
		case 0:
			n.resetConns()
		case 1:
			w.cut(n, w.rng.IntN(2) == 0)
		case 2, 3, 4:
			w.healLinks()
			for _, n := range w.nodes {
				if !n.up {
					n.start()
				}
			}
		case 5:
			n.crash(false)
		case 6, 7:
			w.client.lost()
		}
		if w.client.at == nil && w.rng.IntN(10) == 0 {
			w.takeover()
		}
		w.step()
		c.follow()
		c.act()
	}
	return ""
}
