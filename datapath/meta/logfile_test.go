package meta

import (
	"errors"
	"io"
	"slices"
	"testing"
)

var logReplica = UUID{1}

// compareReaders reads the log in f twice, as the package does and as FORMAT.md says.
func compareReaders(t *testing.T, f io.ReaderAt, instance UUID) (active []uint32, lost bool, err error) {
	t.Helper()
	o := LogOptions{Replica: logReplica, Instance: UUID{0xee}, Previous: instance, Slots: 1}
	table, err := OpenLog(readOnly{f}, o)
	if err == nil {
		active, lost = table.Active(), table.Lost()
	} else if !errors.Is(err, ErrCorrupt) {
		t.Fatalf("unexpected kind of error: %v", err)
	}
	r := formatReader{f, logReplica, instance}
	active2, lost2, err2 := r.read()
	if (err == nil) != (err2 == nil) || lost != lost2 || !slices.Equal(active, active2) {
		t.Fatalf("read %v, lost %v, %v; by FORMAT.md %v, lost %v, %v", active, lost, err, active2, lost2, err2)
	}
	return active, lost, err
}

// readOnly is a PageFile that nobody may write.
type readOnly struct{ io.ReaderAt }

func (readOnly) WriteAt([]byte, int64) (int, error) { panic("the log was to be read only") }

// newLog makes a log of a number of slots in memory, in process 1.
func newLog(t *testing.T, slots int) (*memPages, *LogTable) {
	t.Helper()
	m := newMemPages(LogPages)
	table, err := CreateLog(m, LogOptions{Replica: logReplica, Instance: UUID{1}, Previous: UUID{1}, Slots: slots}, false)
	if err != nil {
		t.Fatal(err)
	}
	return m, table
}

// store makes a record of one change.
func store(t *testing.T, m *memPages, table *LogTable, retire, activate []uint32) {
	t.Helper()
	table.Retire(retire)
	if _, err := table.Activate(activate); err != nil {
		t.Fatal(err)
	}
	if err := table.Store(m); err != nil {
		t.Fatal(err)
	}
}

// damageLog damages the page of record tx in a copy.
func damageLog(m *memPages, tx uint64, c int) { m.b[logPage(tx, c)*PageSize+2000] ^= 4 }

func logPage(tx uint64, c int) int { return int(tx%LogPositions) + c*LogPositions }

// TestLogRecovery damages a log of 4 slots in the middle of its second round: tx
// counts from 1, one record each, region n is active from record n on and region
// n-2 is retired then. So 299 and 300 are active; every record tells every slot.
func TestLogRecovery(t *testing.T) {
	want := []uint32{299, 300}
	both := func(m *memPages, tx uint64) { damageLog(m, tx, 0); damageLog(m, tx, 1) }
	unreadable := func(m *memPages, pages ...int) {
		m.bad = make(map[int64]bool)
		for _, p := range pages {
			m.bad[int64(p)] = true
		}
	}
	for _, c := range []struct {
		name   string
		damage func(m *memPages)
		want   []uint32 // nil: lost
	}{
		{"none", func(*memPages) {}, want},
		{"torn tail in both copies", func(m *memPages) { both(m, 301) }, want},
		{"torn tail in one copy", func(m *memPages) { damageLog(m, 301, 1) }, want},
		{"torn tail, one copy cannot be read", func(m *memPages) { damageLog(m, 301, 1); unreadable(m, logPage(301, 0)) }, want},
		{"what may be the tail cannot be read", func(m *memPages) { unreadable(m, logPage(301, 0), logPage(301, 1)) }, nil},
		{"two records after the last one are damaged", func(m *memPages) { both(m, 301); both(m, 302) }, nil},
		{"only the second after the last one is damaged", func(m *memPages) { both(m, 302) }, nil},
		{"the last two are damaged", func(m *memPages) { both(m, 300); both(m, 299) }, nil},
		{"zeroes after the last one", func(m *memPages) {
			clear(m.b[logPage(302, 0)*PageSize:][:PageSize])
			clear(m.b[logPage(302, 1)*PageSize:][:PageSize])
		}, nil},
		{"the first copy", func(m *memPages) { clear(m.b[:len(m.b)/2]) }, want},
		{"the second copy", func(m *memPages) { clear(m.b[len(m.b)/2:]) }, want},
		{"the second copy cannot be read", func(m *memPages) { m.b = m.b[:len(m.b)/2] }, want},
		{"the last record in one copy", func(m *memPages) { damageLog(m, 300, 0) }, want},
		{"every other record in one copy, the rest in the other", func(m *memPages) {
			for p := range LogPositions {
				m.b[(p+p%2*LogPositions)*PageSize+70]++
			}
		}, want},
		{"an old record", func(m *memPages) { both(m, 200) }, want},
		{"all of it", func(m *memPages) { clear(m.b) }, nil},
		{"nothing of it", func(m *memPages) { m.b = nil }, nil},
		{"a record in another place", func(m *memPages) {
			copy(m.b[logPage(100, 0)*PageSize:][:PageSize], m.b[logPage(300, 0)*PageSize:])
		}, want},
		{"a record in the place of one that is looked at", func(m *memPages) {
			copy(m.b[logPage(302, 0)*PageSize:][:PageSize], m.b[logPage(300, 0)*PageSize:])
		}, want},
		{"a record of a later version", func(m *memPages) {
			p := m.b[logPage(100, 1)*PageSize:][:PageSize]
			p[12]++
			resealLog(p, logReplica)
		}, nil},
		{"a region in two slots", func(m *memPages) {
			for c := range 2 {
				rec := &logRecord{
					owner: logOwner{logReplica, UUID{1}, UUID{1}}, tx: 301, slots: 4,
					context: []uint32{7, LogFree, 7, LogFree},
				}
				rec.encode(m.b[logPage(301, c)*PageSize:])
			}
		}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			m, table := newLog(t, 4)
			for n := uint32(2); n <= 300; n++ {
				store(t, m, table, []uint32{n - 2}, []uint32{n})
			}
			c.damage(m)
			got, lost, err := compareReaders(t, m, UUID{1})
			if lost || (err == nil) != (c.want != nil) || !slices.Equal(got, c.want) {
				t.Errorf("active %v, lost %v, %v; want %v", got, lost, err, c.want)
			}
		})
	}
}

// TestLogContextCoverage: with 23 records to tell all slots, damage to any of the last
// 23 loses the log, and damage to the one before does not. What was made active
// long ago is still known after many rounds.
func TestLogContextCoverage(t *testing.T) {
	const records = (MaxLogSlots + maxLogContext - 1) / maxLogContext
	m, table := newLog(t, MaxLogSlots)
	var want []uint32
	for g := range uint32(1000) {
		want = append(want, g*3)
	}
	store(t, m, table, nil, want)
	for range 300 {
		store(t, m, table, nil, []uint32{50_000})
		store(t, m, table, []uint32{50_000}, nil)
	}
	last := table.tx
	for back := range uint64(records + 3) {
		damageLog(m, last-back, 0)
		if got, _, err := compareReaders(t, m, UUID{1}); err != nil || !slices.Equal(got, want) {
			t.Fatalf("one copy of record -%d damaged: %d active, %v", back, len(got), err)
		}
		damageLog(m, last-back, 1)
		got, _, err := compareReaders(t, m, UUID{1})
		// Without the last one the log is that of the record before.
		if back == 0 {
			got = slices.DeleteFunc(got, func(g uint32) bool { return g == 50_000 })
		}
		if known := back == 0 || back >= records; known != (err == nil) || known && !slices.Equal(got, want) {
			t.Fatalf("both copies of record -%d damaged: %d active, %v", back, len(got), err)
		}
		damageLog(m, last-back, 0)
		damageLog(m, last-back, 1)
	}
}

// TestLogFirstRound: what was never written is not damage, and damage is not taken for it.
func TestLogFirstRound(t *testing.T) {
	m, table := newLog(t, 4)
	for n := uint32(2); n <= 100; n++ {
		store(t, m, table, []uint32{n - 2}, []uint32{n})
	}
	if got, _, err := compareReaders(t, m, UUID{1}); err != nil || !slices.Equal(got, []uint32{99, 100}) {
		t.Fatalf("active %v, %v", got, err)
	}
	damageLog(m, 100, 0)
	damageLog(m, 100, 1)
	if got, _, err := compareReaders(t, m, UUID{1}); err != nil || !slices.Equal(got, []uint32{98, 99}) {
		t.Errorf("the last record damaged: active %v, %v", got, err)
	}
	damageLog(m, 99, 0)
	damageLog(m, 99, 1)
	if got, _, err := compareReaders(t, m, UUID{1}); !errors.Is(err, ErrCorrupt) {
		t.Errorf("the last two damaged: active %v, %v", got, err)
	}
}

// TestLogStaleRecord: a write that the disk acknowledged and lost, within the run.
func TestLogStaleRecord(t *testing.T) {
	m, table := newLog(t, MaxLogSlots)
	for g := range uint32(300) {
		store(t, m, table, nil, []uint32{g})
	}
	at := table.tx - 10
	for c := range 2 {
		page := m.b[logPage(at, c)*PageSize:][:PageSize]
		rec, err := decodeLogRecord(page, logReplica)
		if err != nil {
			t.Fatal(err)
		}
		rec.tx -= LogPositions
		rec.encode(page)
	}
	if got, _, err := compareReaders(t, m, UUID{1}); !errors.Is(err, ErrCorrupt) {
		t.Errorf("%d active, %v", len(got), err)
	}
}

// TestLogOwner: a log tells nothing to another replica, nor when a process that
// does not keep it has had the replica open.
func TestLogOwner(t *testing.T) {
	m, table := newLog(t, 4)
	store(t, m, table, nil, []uint32{5})
	if _, err := OpenLog(m, LogOptions{Replica: UUID{2}, Instance: UUID{1}, Previous: UUID{1}, Slots: 4}); !errors.Is(err, ErrCorrupt) {
		t.Errorf("opened by another replica: %v", err)
	}
	if _, err := OpenLog(m, LogOptions{Replica: logReplica, Previous: UUID{1}}); !errors.Is(err, ErrInvalid) {
		t.Errorf("opened with no slots: %v", err)
	}
	if _, err := CreateLog(m, LogOptions{Replica: logReplica, Slots: MaxLogSlots + 1}, false); !errors.Is(err, ErrInvalid) {
		t.Errorf("made with too many slots: %v", err)
	}
	if _, _, err := compareReaders(t, m, UUID{9}); !errors.Is(err, ErrCorrupt) {
		t.Errorf("opened after another process: %v", err)
	}
	// Process 2 opens it and stops before the superblock says so; then 3, which goes on.
	for _, instance := range []UUID{{2}, {3}} {
		table, err := OpenLog(m, LogOptions{Replica: logReplica, Instance: instance, Previous: UUID{1}, Slots: 4})
		if err != nil {
			t.Fatal(err)
		}
		if err := table.Store(m); err != nil {
			t.Fatal(err)
		}
	}
	for instance, want := range map[byte]error{1: nil, 2: ErrCorrupt, 3: nil} {
		if _, _, err := compareReaders(t, m, UUID{instance}); !errors.Is(err, want) {
			t.Errorf("after process %d: %v, want %v", instance, err, want)
		}
	}
}

// TestLogSlots: the number of slots follows the options, but for slots in use.
func TestLogSlots(t *testing.T) {
	m, table := newLog(t, 4)
	store(t, m, table, nil, []uint32{1, 2, 3, 4})
	for _, c := range []struct {
		slots, want int
		retire      []uint32
	}{
		{MaxLogSlots, MaxLogSlots, nil},
		{2, 4, []uint32{1, 2}},
		{1, 4, []uint32{4}},
		{1, 3, []uint32{3}},
		{7, 7, nil},
	} {
		table, err := OpenLog(m, LogOptions{Replica: logReplica, Instance: UUID{1}, Previous: UUID{1}, Slots: c.slots})
		if err != nil {
			t.Fatal(err)
		}
		if table.Slots() != c.want {
			t.Errorf("%d slots wanted, got %d, want %d", c.slots, table.Slots(), c.want)
		}
		before := table.Active()
		if err := table.Store(m); err != nil {
			t.Fatal(err)
		}
		if got, _, err := compareReaders(t, m, UUID{1}); err != nil || !slices.Equal(got, before) {
			t.Errorf("%d slots: %v, %v, want %v", c.slots, got, err, before)
		}
		store(t, m, table, c.retire, nil)
	}
}
