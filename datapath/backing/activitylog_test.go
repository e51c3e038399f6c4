package backing

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tandem-storage/tandem/datapath/block"
	"github.com/tandem-storage/tandem/datapath/meta"
	"github.com/tandem-storage/tandem/internal/testseed"
)

// logSize is a volume of 4096 regions; thin, so that it takes no space.
const logSize = 16 << 30

func newLogReplica(t testing.TB, slots int, e Engine) (*Pool, *Replica) {
	t.Helper()
	o := testOptions(t.TempDir())
	o.LogSlots, o.Engine = slots, e
	p := openLogPool(t, o)
	if err := p.Create(ReplicaSpec{Cluster: testCluster, Volume: testVolume, Replica: testReplica, Size: logSize}); err != nil {
		t.Fatal(err)
	}
	return p, openTestReplica(t, p)
}

func openLogPool(t testing.TB, o Options) *Pool {
	t.Helper()
	p, err := OpenPool(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return p
}

// wait calls f and returns what its done is told.
func wait(f func(done func(error))) error {
	c := make(chan error, 1)
	f(func(err error) { c <- err })
	return <-c
}

func activate(l *ActivityLog, regions ...uint32) error {
	return wait(func(done func(error)) { l.Activate(regions, done) })
}

func TestActivityLog(t *testing.T) {
	for _, e := range []Engine{EngineThreads, EngineURing} {
		p, r := newLogReplica(t, 4, e)
		l := r.Log()
		if l.Lost() || l.Damage() != nil || len(l.Active()) != 0 || l.Slots() != 4 {
			t.Fatalf("a new log: active %v, lost %v, %v", l.Active(), l.Lost(), l.Damage())
		}
		flags, err := unix.FcntlInt(uintptr(l.pages.Fd()), unix.F_GETFL, 0)
		if want := unix.O_DIRECT | unix.O_DSYNC; err != nil || flags&want != want {
			t.Errorf("records are written with flags %#x, %v", flags, err)
		}
		if err := activate(l, 3, 1, 4095); err != nil {
			t.Fatal(err)
		}
		if err := activate(l, 5, 6); !errors.Is(err, meta.ErrLogFull) {
			t.Errorf("more than there are slots: %v", err)
		}
		if err := activate(l, 4096); !errors.Is(err, ErrInvalid) {
			t.Errorf("a region behind the end: %v", err)
		}
		l.Retire([]uint32{1, 77}, 9)
		if err := activate(l, 5, 6); err != nil {
			t.Fatal(err)
		}
		r.Close()
		r = openTestReplica(t, p)
		if l = r.Log(); l.Lost() || !slices.Equal(l.Active(), []uint32{3, 5, 6, 4095}) {
			t.Errorf("after Close: active %v, lost %v (%v)", l.Active(), l.Lost(), l.Damage())
		}
		// What is retired last is forgotten by a clean close, and by a flush.
		l.Retire([]uint32{3}, 10)
		if err := r.CloseClean(); err != nil {
			t.Fatal(err)
		}
		r = openTestReplica(t, p)
		if l = r.Log(); !slices.Equal(l.Active(), []uint32{5, 6, 4095}) {
			t.Errorf("after CloseClean: active %v", l.Active())
		}
		l.Retire([]uint32{5}, 11)
		l.SetLost(true)
		if err := wait(l.Flush); err != nil {
			t.Fatal(err)
		}
		r.Close()
		if err := activate(l, 7); !errors.Is(err, block.ErrClosed) {
			t.Errorf("activated after Close: %v", err)
		}
		r = openTestReplica(t, p)
		if l = r.Log(); !l.Lost() || l.Damage() != nil || !slices.Equal(l.Active(), []uint32{6, 4095}) {
			t.Errorf("after a flush: active %v, lost %v (%v)", l.Active(), l.Lost(), l.Damage())
		}
		l.SetLost(false)
		if err := wait(l.Flush); err != nil {
			t.Fatal(err)
		}
		r.Close()
		if r = openTestReplica(t, p); r.Log().Lost() {
			t.Error("lost after it was said not to be")
		}
	}
}

// TestActivityLogMadeAnew: a replica whose log is absent or does not tell can be
// opened; everything counts as active until somebody has compared it, over any number of restarts.
func TestActivityLogMadeAnew(t *testing.T) {
	for name, damage := range map[string]func(t *testing.T, r *Replica){
		"made without a log": func(t *testing.T, r *Replica) { run(t, "rm", r.dir+"/al") },
		"garbage": func(t *testing.T, r *Replica) {
			for i := range int64(meta.LogPages) {
				garbage(t, r.dir+"/al", i)
			}
		},
		"cut short": func(t *testing.T, r *Replica) { run(t, "truncate", "-s", "-4096", r.dir+"/al") },
		"open in a process that keeps none": func(t *testing.T, r *Replica) {
			pages, err := meta.OpenPages(r.dir + "/sb")
			if err != nil {
				t.Fatal(err)
			}
			defer pages.Close()
			f, _, err := meta.OpenSuperblock(pages)
			if err != nil {
				t.Fatal(err)
			}
			sb := f.Get()
			sb.Instance = meta.UUID{0xaa}
			if err := f.Write(sb); err != nil {
				t.Fatal(err)
			}
			if err := mirrorSuperblock(dirOf(t, r), f.Get()); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			p, r := newLogReplica(t, 4, EngineAuto)
			if err := activate(r.Log(), 9); err != nil {
				t.Fatal(err)
			}
			if err := r.CloseClean(); err != nil {
				t.Fatal(err)
			}
			damage(t, r)
			r = openTestReplica(t, p)
			l := r.Log()
			if !l.Lost() || l.Damage() == nil {
				t.Fatalf("active %v, lost %v (%v)", l.Active(), l.Lost(), l.Damage())
			}
			if err := activate(l, 5); err != nil {
				t.Fatal(err)
			}
			r.Close()
			r = openTestReplica(t, p)
			if l = r.Log(); !l.Lost() || l.Damage() != nil || !slices.Equal(l.Active(), []uint32{5}) {
				t.Errorf("next time: active %v, lost %v (%v)", l.Active(), l.Lost(), l.Damage())
			}
			if st, err := os.Stat(r.dir + "/al"); err != nil || st.Size() != meta.LogPages*meta.PageSize || allocated(t, st) < st.Size() {
				t.Errorf("the file: %v, %v", st, err)
			}
		})
	}
}

func dirOf(t *testing.T, r *Replica) *os.File {
	t.Helper()
	d, err := os.Open(r.dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func TestLogSlotsOption(t *testing.T) {
	for _, n := range []int{-1, meta.MaxLogSlots + 1} {
		o := testOptions(t.TempDir())
		o.LogSlots = n
		if _, err := OpenPool(o); !errors.Is(err, ErrInvalid) {
			t.Errorf("%d slots: %v", n, err)
		}
	}
	if _, r := newTestReplica(t, 4<<20, EngineAuto); r.Log().Slots() != meta.DefaultLogSlots {
		t.Errorf("%d slots by default", r.Log().Slots())
	}
}

// heldWrites lets a test end the writes of an engine one by one, in the order of its choice.
type heldWrites struct {
	engine
	mu   sync.Mutex
	ops  []*op
	came chan struct{} // one for each
}

func holdWrites(t *testing.T, p *Pool) *heldWrites {
	h := &heldWrites{engine: p.engine, came: make(chan struct{}, 1000)}
	p.engine = h
	t.Cleanup(func() { p.engine = h.engine })
	return h
}

func (h *heldWrites) submit(ops []*op) {
	for _, o := range ops {
		if o.kind != opWrite {
			h.engine.submit([]*op{o})
			continue
		}
		h.mu.Lock()
		h.ops = append(h.ops, o)
		h.mu.Unlock()
		h.came <- struct{}{}
	}
}

// take returns n writes that have come, waiting for them.
func (h *heldWrites) take(n int) []*op {
	for range n {
		<-h.came
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	ops := slices.Clone(h.ops[:n])
	h.ops = h.ops[n:]
	return ops
}

// TestGroupCommit: one record is on its way, whatever is asked for meanwhile shares the
// next one, and nothing is done before both copies are.
func TestGroupCommit(t *testing.T) {
	p, r := newLogReplica(t, 1024, EngineThreads)
	h := holdWrites(t, p)
	l := r.Log()
	done := make(chan uint32, 2000)
	ask := func(g uint32) {
		l.Activate([]uint32{g}, func(err error) {
			if err != nil {
				t.Error(err)
			}
			done <- g
		})
	}
	none := func(what string) {
		t.Helper()
		if len(done) > 0 || len(h.came) > 0 {
			t.Fatalf("%s: %d are done, %d writes have come", what, len(done), len(h.came))
		}
	}
	ask(0)
	first := h.take(2)
	if first[0].off+meta.LogPositions*meta.PageSize != first[1].off {
		t.Errorf("copies at %d and %d", first[0].off, first[1].off)
	}
	for g := uint32(1); g <= 100; g++ {
		ask(g)
	}
	ask(0) // on its way
	ask(1) // asked for already
	l.Retire([]uint32{50}, 1)
	none("with a record on its way")
	first[1].owner.opDone(first[1], runOp(first[1]))
	none("with one copy written")
	first[0].owner.opDone(first[0], runOp(first[0]))
	second := h.take(2)
	for range 2 {
		if g := <-done; g != 0 {
			t.Errorf("region %d is done", g)
		}
	}
	none("with the second record on its way")
	for _, o := range second {
		o.owner.opDone(o, runOp(o))
	}
	for range 101 {
		<-done
	}
	none("after the second record")
	// Regions that are active cost nothing, even with the disk at a stop.
	ask(7)
	<-done
	none("a hit")
	r.Close()
	p.engine = h.engine
	if got := openTestReplica(t, p).Log().Active(); len(got) != 100 || slices.Contains(got, 50) {
		t.Errorf("%d are active: %v", len(got), got)
	}
}

// TestLogErrorFaults: after a record that could not be written nothing is known any
// more (I25), whoever waited and whoever comes.
func TestLogErrorFaults(t *testing.T) {
	for bad := range 2 {
		p, r := newLogReplica(t, 4, EngineThreads)
		h := holdWrites(t, p)
		l := r.Log()
		errs := make(chan error, 4)
		l.Activate([]uint32{1}, func(err error) { errs <- err })
		l.Activate([]uint32{2}, func(err error) { errs <- err })
		l.Flush(func(err error) { errs <- err })
		for i, o := range h.take(2) {
			var err error
			if i == bad {
				err = unix.EIO
			}
			o.owner.opDone(o, err)
		}
		for range 3 {
			if err := <-errs; !errors.Is(err, ErrFaulted) || !errors.Is(err, unix.EIO) {
				t.Errorf("waited for a record that failed: %v", err)
			}
		}
		<-r.Faulted()
		p.engine = h.engine
		if err := activate(l, 3); !errors.Is(err, ErrFaulted) {
			t.Errorf("after that: %v", err)
		}
		if err := block.WriteAt(r, make([]byte, 4096), 0, 0); !errors.Is(err, ErrFaulted) {
			t.Errorf("write after that: %v", err)
		}
		if err := r.CloseClean(); !errors.Is(err, ErrFaulted) {
			t.Errorf("closed clean after that: %v", err)
		}
		if n := len(h.came); n != 0 {
			t.Errorf("%d writes after that", n)
		}
	}
}

// TestLogCrash stops at every write of a run of records, with nothing, all and random
// sectors of the writes in flight on the medium, and opens what is left.
func TestLogCrash(t *testing.T) {
	seed := testseed.Of(t)
	const steps = 24
	for at := range steps {
		for _, mode := range []string{"none", "all", "random"} {
			rng := rand.New(rand.NewPCG(seed, uint64(at)))
			crashLogAt(t, rng, at, mode)
		}
	}
}

func crashLogAt(t *testing.T, rng *rand.Rand, at int, mode string) {
	t.Helper()
	p, r := newLogReplica(t, 40, EngineThreads)
	h := holdWrites(t, p)
	l := r.Log()
	var mu sync.Mutex
	asked, durable := make(map[uint32]bool), make(map[uint32]bool)
	retired := make(map[uint32]int) // how often: what was asked for before counts no longer
	stopped := false
	ask := func() {
		mu.Lock()
		for _, g := range l.Active() {
			if rng.IntN(2) == 0 {
				delete(durable, g)
				retired[g]++
				l.Retire([]uint32{g}, 1)
			}
		}
		g := rng.Uint32N(60)
		asked[g] = true
		before := retired[g]
		mu.Unlock()
		l.Activate([]uint32{g}, func(err error) {
			mu.Lock()
			defer mu.Unlock()
			if err == nil && !stopped && retired[g] == before {
				durable[g] = true
			}
		})
	}
	var flight []*op
	for step := 0; step < at; {
		if len(flight) == 0 {
			for len(h.came) == 0 {
				ask()
			}
			flight = h.take(2)
			step++
			continue
		}
		if rng.IntN(2) == 0 {
			ask()
		}
		i := rng.IntN(len(flight))
		o := flight[i]
		flight = slices.Delete(flight, i, i+1)
		o.owner.opDone(o, runOp(o))
		step++
	}
	// The power goes. What is in flight reaches the medium as the mode says.
	mu.Lock()
	stopped = true
	mu.Unlock()
	flight = append(flight, h.take(len(h.came))...)
	for _, o := range flight {
		tearOp(t, r, o, rng, mode)
		o.owner.opDone(o, unix.EIO)
	}
	p.engine = h.engine
	r.Close()
	l = openTestReplica(t, p).Log()
	if l.Lost() {
		t.Fatalf("stop at %d, %s: lost: %v", at, mode, l.Damage())
	}
	active := l.Active()
	for _, g := range active {
		if !asked[g] {
			t.Errorf("stop at %d, %s: region %d is active and was never asked for", at, mode, g)
		}
	}
	for g := range durable {
		if !slices.Contains(active, g) {
			t.Errorf("stop at %d, %s: region %d was durably active and is not", at, mode, g)
		}
	}
}

// tearOp writes what is left of a write that was cut short.
func tearOp(t *testing.T, r *Replica, o *op, rng *rand.Rand, mode string) {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(r.dir, activityLogFile), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for s := int64(0); s < meta.PageSize; s += 512 {
		if mode == "all" || mode == "random" && rng.IntN(2) == 0 {
			if _, err := f.WriteAt(o.buf[s:s+512], o.off+s); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
}

// TestLogPowerCut cuts the power under a log that is being written, by cloning the image that the
// file system lies on: a record that is said to be durable is not in a cache.
func TestLogPowerCut(t *testing.T) {
	for _, kind := range []string{"ext4", "xfs"} {
		disks := mountImage(t, "xfs", 2<<30) // can clone files
		img := filepath.Join(disks, kind)
		makeImage(t, img, kind, 1<<30)
		p := openTestPool(t, mountFile(t, img, kind), EngineAuto)
		createTestReplica(t, p, 210*regionSize)
		r := openTestReplica(t, p)
		l := r.Log()
		var want []uint32
		for cut := range uint32(6) {
			clone := fmt.Sprint(img, "-", cut)
			for g := cut * 10; g < cut*10+10; g++ {
				if err := activate(l, g); err != nil {
					t.Fatal(err)
				}
				want = append(want, g)
			}
			if cut%2 == 1 { // retired, which nobody waits for
				l.Retire(want[:5], 1)
				want = want[5:]
				if err := wait(l.Flush); err != nil {
					t.Fatal(err)
				}
			}
			more := make(chan error, 1)
			l.Activate([]uint32{200}, func(err error) { more <- err })
			run(t, "cp", "--reflink=always", img, clone)
			if err := <-more; err != nil {
				t.Fatal(err)
			}
			l.Retire([]uint32{200}, 1)
			if err := wait(l.Flush); err != nil {
				t.Fatal(err)
			}
			after := openTestReplica(t, openTestPool(t, mountFile(t, clone, kind), EngineAuto)).Log()
			got := slices.DeleteFunc(after.Active(), func(g uint32) bool { return g == 200 })
			if after.Lost() || !slices.Equal(got, want) {
				t.Errorf("%s, cut %d: active %v, lost %v (%v), want %v", kind, cut, got, after.Lost(), after.Damage(), want)
			}
		}
	}
}
