package meta

import (
	"errors"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"testing"
)

// crashLog runs an activity log on a disk whose power can be cut at any moment. A
// write is in flight between begin and end; what a cut leaves of it is up to the mode.
type crashLog struct {
	t   *testing.T
	rng *rand.Rand

	disk    *memPages
	flight  []logWrite
	cuts    int
	quiet   bool // cuts are not looked at
	regions uint32

	table    *LogTable
	instance UUID // of the superblock
	process  byte

	said    map[uint32]*logSaid // by region, of all that were ever active
	lost    *logSaid            // active stands for lost here
	waiting []logPromise
}

type logWrite struct {
	off  int64
	page []byte
}

// logSaid is what was asked last of a region. Every change makes a new one, so that
// a promise of an older one says nothing of it.
type logSaid struct {
	active  bool
	durable bool // nothing else may be found
}

// logPromise is a change that is durable when the table says so.
type logPromise struct {
	number uint64
	of     []*logSaid
}

// crashModes say which sectors of the writes in flight reach the medium.
var crashModes = []struct {
	name string
	keep func(rng *rand.Rand, write int) func(sector int) bool
}{
	{"none", func(*rand.Rand, int) func(int) bool { return func(int) bool { return false } }},
	{"all", func(*rand.Rand, int) func(int) bool { return func(int) bool { return true } }},
	{"random sectors", func(rng *rand.Rand, _ int) func(int) bool { return func(int) bool { return rng.IntN(2) == 0 } }},
	{"first whole, second torn", func(rng *rand.Rand, write int) func(int) bool {
		return func(int) bool { return write == 0 || rng.IntN(2) == 0 }
	}},
}

func (c *crashLog) begin(page []byte, off int64) {
	c.flight = append(c.flight, logWrite{off, slices.Clone(page)})
	c.cut()
}

func (c *crashLog) end(i int) {
	w := c.flight[i]
	c.flight = slices.Delete(c.flight, i, i+1)
	copy(c.disk.b[w.off:], w.page)
	c.cut()
}

// ReadAt and WriteAt implement PageFile.
func (c *crashLog) ReadAt(p []byte, off int64) (int, error) { return c.disk.ReadAt(p, off) }

func (c *crashLog) WriteAt(p []byte, off int64) (int, error) {
	c.begin(p, off)
	c.end(0)
	return len(p), nil
}

// cut looks at what a power cut at this moment leaves, in every mode.
func (c *crashLog) cut() {
	if c.quiet {
		return
	}
	c.cuts++
	before := make([][]byte, len(c.flight))
	for i, w := range c.flight {
		before[i] = slices.Clone(c.disk.b[w.off : w.off+PageSize])
	}
	for _, m := range crashModes {
		if len(c.flight) == 0 && m.name != crashModes[0].name {
			break
		}
		for i, w := range c.flight {
			copy(c.disk.b[w.off:], before[i])
			keep := m.keep(c.rng, i)
			for s := 0; s < PageSize; s += 512 {
				if keep(s) {
					copy(c.disk.b[w.off+int64(s):], w.page[s:s+512])
				}
			}
		}
		c.check(m.name)
	}
	for i, w := range c.flight {
		copy(c.disk.b[w.off:], before[i])
	}
}

func (c *crashLog) check(mode string) {
	c.t.Helper()
	active, lost, err := compareReaders(c.t, c.disk, c.instance)
	if err != nil {
		lost = true // an answer that is right always, and a crash alone must not make it
	}
	if c.lost.durable && lost != c.lost.active {
		c.t.Fatalf("cut %d, %s: lost %v (%v)", c.cuts, mode, lost, err)
	}
	if err != nil {
		return
	}
	for _, g := range active {
		if s := c.said[g]; s == nil || s.durable && !s.active {
			c.t.Fatalf("cut %d, %s: region %d is active (%+v)", c.cuts, mode, g, s)
		}
	}
	for g, s := range c.said {
		if _, ok := slices.BinarySearch(active, g); !ok && s.durable && s.active {
			c.t.Fatalf("cut %d, %s: region %d is not active, which was durable", c.cuts, mode, g)
		}
	}
}

// change asks for random things.
func (c *crashLog) change() {
	var retire []uint32
	for _, g := range c.table.Active() {
		if c.rng.IntN(4) == 0 {
			retire = append(retire, g)
			c.said[g] = &logSaid{}
		}
	}
	c.table.Retire(retire)
	var activate []uint32
	fresh := 0
	for range c.rng.IntN(1 + min(300, c.table.Slots())) {
		g := c.rng.Uint32N(c.regions)
		if slices.Contains(activate, g) {
			continue
		}
		activate = append(activate, g)
		if s := c.said[g]; s == nil || !s.active {
			fresh++
		}
	}
	number, err := c.table.Activate(activate)
	if full := len(c.table.Active())+fresh > c.table.Slots(); err != nil {
		if !full || !errors.Is(err, ErrLogFull) {
			c.t.Fatalf("%d active and %d more: %v", len(c.table.Active()), fresh, err)
		}
		activate = nil
	}
	p := logPromise{number: number}
	for _, g := range activate {
		if s := c.said[g]; s == nil || !s.active {
			c.said[g] = &logSaid{active: true}
		}
		p.of = append(p.of, c.said[g])
	}
	c.waiting = append(c.waiting, p)
	if c.rng.IntN(20) == 0 {
		c.lost = &logSaid{active: !c.lost.active}
		c.table.SetLost(c.lost.active)
	}
	if c.rng.IntN(5) == 0 {
		c.waiting = append(c.waiting, logPromise{c.table.Flush(), c.everything()})
	}
}

func (c *crashLog) everything() []*logSaid {
	return append(slices.Collect(maps.Values(c.said)), c.lost)
}

// notice takes for durable what the table says is stored.
func (c *crashLog) notice() {
	c.waiting = slices.DeleteFunc(c.waiting, func(p logPromise) bool {
		if !c.table.IsStored(p.number) {
			return false
		}
		for _, s := range p.of {
			s.durable = true
		}
		return true
	})
}

// record writes the next record, both copies at once, with changes asked for meanwhile.
func (c *crashLog) record() {
	var page [PageSize]byte
	places, ok := c.table.Next(page[:])
	if ok {
		c.begin(page[:], places[0])
		c.begin(page[:], places[1])
		if c.rng.IntN(2) == 0 {
			c.change()
		}
		c.notice() // nothing of this record yet
		c.cut()
		c.end(c.rng.IntN(2))
		c.end(0)
		c.table.Stored()
	}
	c.notice()
}

// restart cuts the power in a random mode and goes on with what is left, as
// another process.
func (c *crashLog) restart(slots int) {
	m := crashModes[c.rng.IntN(len(crashModes))]
	for i, w := range c.flight {
		keep := m.keep(c.rng, i)
		for s := 0; s < PageSize; s += 512 {
			if keep(s) {
				copy(c.disk.b[w.off+int64(s):], w.page[s:s+512])
			}
		}
	}
	c.flight = nil
	c.process++
	o := LogOptions{Replica: logReplica, Instance: UUID{c.process}, Previous: c.instance, Slots: slots}
	table, err := OpenLog(c, o)
	if err != nil {
		c.t.Fatal(err)
	}
	c.table, c.waiting, c.said = table, nil, make(map[uint32]*logSaid)
	c.lost = &logSaid{active: table.Lost(), durable: true}
	for _, g := range table.Active() {
		c.said[g] = &logSaid{active: true, durable: true}
	}
	if c.rng.IntN(3) == 0 { // it stops before the superblock says so
		c.storeSome()
		return
	}
	if err := table.Store(c); err != nil {
		c.t.Fatal(err)
	}
	c.instance = o.Instance
	c.cut()
}

// storeSome begins to tell every slot and is cut short.
func (c *crashLog) storeSome() {
	var page [PageSize]byte
	for range c.rng.IntN(3) {
		if places, ok := c.table.Next(page[:]); ok {
			for _, off := range places {
				if _, err := c.WriteAt(page[:], off); err != nil {
					c.t.Fatal(err)
				}
			}
			c.table.Stored()
		}
	}
	c.restart(c.table.Slots())
}

// TestLogCrash cuts the power at every step of every write, with nothing, all and
// parts of what is in flight on the medium: what was durable is active, what was
// never asked for or durably retired is not, the log is lost only if it was said
// to be, and a reader made after FORMAT.md alone finds the same.
func TestLogCrash(t *testing.T) {
	for _, run := range []struct{ slots, records int }{
		{1, 20}, {5, LogPositions + 20}, {900, 40}, {MaxLogSlots, 30}, // one goes round
	} {
		slots := run.slots
		t.Run(strconv.Itoa(slots), func(t *testing.T) {
			c := &crashLog{
				t: t, rng: testRand(t), disk: newMemPages(LogPages), regions: uint32(min(2*slots+1, 3000)),
				said: make(map[uint32]*logSaid), lost: &logSaid{active: true, durable: true},
			}
			// A log that is made for a replica that has data: lost, at every step.
			table, err := CreateLog(c, LogOptions{Replica: logReplica, Slots: slots}, true)
			if err != nil {
				t.Fatal(err)
			}
			c.table = table
			for c.table.tx < uint64(run.records) {
				c.quiet = c.table.tx > 30 && c.table.tx < LogPositions-10
				if c.rng.IntN(2) == 0 {
					c.change()
				}
				c.record()
				if c.rng.IntN(20) == 0 {
					c.restart(min(1+c.rng.IntN(2*slots), MaxLogSlots)) // perhaps with other slots
				}
			}
			t.Logf("%d cuts, %d records", c.cuts, c.table.tx)
		})
	}
}

// TestLogChangesWithoutRecord: what is taken back before a record is made needs none,
// and a region that is still stored as active is active again for nothing.
func TestLogChangesWithoutRecord(t *testing.T) {
	_, table := newLog(t, 4)
	m := newMemPages(LogPages)
	records := func(f func() uint64) uint64 {
		t.Helper()
		before := table.tx
		number := f()
		if err := table.Store(m); err != nil {
			t.Fatal(err)
		}
		if !table.IsStored(number) {
			t.Errorf("change %d is not stored", number)
		}
		return table.tx - before
	}
	activate := func(regions ...uint32) uint64 {
		t.Helper()
		n, err := table.Activate(regions)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	for i, c := range []struct {
		change func() uint64
		want   uint64
	}{
		{func() uint64 { return activate(1, 2, 3, 4) }, 1},
		{func() uint64 { return activate(4, 3, 2, 1) }, 0},
		{func() uint64 { table.Retire([]uint32{2}); return activate(2) }, 0},
		{func() uint64 { table.Retire([]uint32{2, 3}); return activate(7, 8) }, 1},
		{func() uint64 { table.Retire([]uint32{7}); activate(9); table.Retire([]uint32{9}); return activate(7) }, 0},
		{func() uint64 { table.Retire([]uint32{99}); return table.Flush() }, 0},
		{func() uint64 { table.SetLost(true); table.SetLost(false); return table.Flush() }, 0},
		{func() uint64 { table.SetLost(true); return table.Flush() }, 1},
		{func() uint64 { table.Retire([]uint32{1, 4, 7, 8}); return table.Flush() }, 1},
	} {
		if got := records(c.change); got != c.want {
			t.Errorf("change %d took %d records, want %d", i, got, c.want)
		}
	}
	if _, err := table.Activate([]uint32{LogFree}); !errors.Is(err, ErrInvalid) {
		t.Errorf("the region that stands for none: %v", err)
	}
	if a := table.Active(); len(a) != 0 {
		t.Errorf("active %v", a)
	}
	table.SetTerm(3)
	table.SetStable(20)
	table.SetStable(10)
	activate(1)
	if err := table.Store(m); err != nil || table.rec.term != 3 || table.rec.stable != 20 {
		t.Errorf("record of term %d, stable %d, %v", table.rec.term, table.rec.stable, err)
	}
}
