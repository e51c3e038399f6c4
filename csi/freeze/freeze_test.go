package freeze

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap/zaptest"

	"github.com/tandem-storage/tandem/csi/mount"
)

const vol = "11111111-1111-4111-8111-111111111111"

// machine has file systems that can be frozen.
type machine struct {
	mu     sync.Mutex
	points []mount.Point
	frozen map[string]bool // by target
	slow   chan struct{}   // Freeze waits for it
	err    error           // of Freeze
	thaws  int
}

func (m *machine) List() ([]mount.Point, error) { return m.points, nil }

func (m *machine) Freeze(target string) (Frozen, error) {
	if m.slow != nil {
		<-m.slow
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.err != nil {
		return nil, m.err
	}
	m.frozen[target] = true
	return held{m, target}, nil
}

func (m *machine) Thaw(target string) (bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	was := m.frozen[target]
	m.frozen[target] = false
	m.thaws++
	return was, nil
}

func (m *machine) is(target string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.frozen[target]
}

type held struct {
	m      *machine
	target string
}

func (h held) Thaw() (bool, error) { return h.m.Thaw(h.target) }

func newMachine() *machine {
	return &machine{frozen: map[string]bool{}, points: []mount.Point{
		{Target: "/other", FS: "xfs", Backing: "/run/fuse/22222222-2222-4222-8222-222222222222.a/device"},
		{Target: "/raw", Block: true, Backing: "/run/fuse/" + vol + ".b/device"},
		{Target: "/stage", FS: "xfs", Backing: "/run/fuse/" + vol + ".b/device"},
		{Target: "/raw2", Block: true, Backing: "/run/fuse/" + vol + ".b/device"},
	}}
}

func newFreezer(t *testing.T, dir string, m *machine) *Freezer {
	t.Helper()
	f, err := New(dir, m, zaptest.NewLogger(t))
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// left is what a process that died now would leave on record.
func left(t *testing.T, dir string) int {
	t.Helper()
	es, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	return len(es)
}

func TestFreeze(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir, m := filepath.Join(t.TempDir(), "frozen"), newMachine()
		f := newFreezer(t, dir, m)
		ctx := t.Context()
		if here, err := f.Freeze(ctx, "99999999-1111-4111-8111-111111111111", "op", time.Second); here || err != nil {
			t.Errorf("one that is not here: %v, %v", here, err)
		}
		if here, err := f.Freeze(ctx, vol, "op", time.Second); !here || err != nil || !m.is("/stage") || left(t, dir) != 1 {
			t.Fatalf("%v, %v, frozen %v", here, err, m.frozen)
		}
		if _, err := f.Freeze(ctx, vol, "op2", time.Second); !errors.Is(err, ErrBusy) {
			t.Errorf("twice: %v", err)
		}
		if err := f.Thaw(vol, "op2"); !errors.Is(err, ErrEnded) || !m.is("/stage") {
			t.Errorf("thawed by another one: %v", err)
		}
		if err := f.Thaw(vol, "op"); err != nil || m.is("/stage") || left(t, dir) != 0 {
			t.Errorf("%v, frozen %v", err, m.frozen)
		}
		if err := f.Thaw(vol, "op"); !errors.Is(err, ErrEnded) {
			t.Errorf("thawed twice: %v", err)
		}

		// Nobody thaws it: it is not for longer than it may be.
		if _, err := f.Freeze(ctx, vol, "op3", time.Second); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		after := time.NewTimer(time.Second + time.Millisecond)
		<-after.C
		synctest.Wait()
		if err := f.Thaw(vol, "op3"); !errors.Is(err, ErrEnded) || m.is("/stage") || left(t, dir) != 0 {
			t.Errorf("its time is up: %v, frozen %v", err, m.frozen)
		}

		// Somebody thawed it by hand.
		if _, err := f.Freeze(ctx, vol, "op4", time.Second); err != nil {
			t.Fatal(err)
		}
		if _, err := m.Thaw("/stage"); err != nil {
			t.Fatal(err)
		}
		if err := f.Thaw(vol, "op4"); !errors.Is(err, ErrEnded) {
			t.Errorf("thawed by hand: %v", err)
		}

		m.err = mount.ErrFrozen
		if _, err := f.Freeze(ctx, vol, "op5", time.Second); !errors.Is(err, mount.ErrFrozen) || left(t, dir) != 0 {
			t.Errorf("frozen by hand: %v", err)
		}
		m.err = nil

		// What is in memory takes too long to be written out: when it is frozen at last, it is thawed.
		m.slow = make(chan struct{})
		short, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		if _, err := f.Freeze(short, vol, "op6", time.Second); !errors.Is(err, ErrSlow) || left(t, dir) != 1 {
			t.Errorf("slow: %v", err)
		}
		before := m.thaws
		close(m.slow)
		synctest.Wait()
		if m.is("/stage") || m.thaws != before+1 || left(t, dir) != 0 {
			t.Errorf("frozen %v, thawed %d times", m.frozen, m.thaws-before)
		}
		m.slow = nil

		if _, err := f.Freeze(ctx, vol, "op7", time.Hour); err != nil {
			t.Fatal(err)
		}
		f.Close()
		if m.is("/stage") || left(t, dir) != 0 {
			t.Errorf("frozen after the end: %v", m.frozen)
		}
	})
}

// A process that died with a frozen file system has it thawed by the next one, wherever it is mounted by then and whatever its device shows; what others froze stays.
func TestFrozenByTheDead(t *testing.T) {
	for name, now := range map[string]mount.Point{
		"as it was":            {Target: "/stage", FS: "xfs", Backing: "/run/fuse/" + vol + ".b/device"},
		"its device is gone":   {Target: "/stage", FS: "xfs", Device: "/dev/loop7"},
		"it is elsewhere too":  {Target: "/pod", FS: "xfs", Backing: "/run/fuse/" + vol + ".b/device"},
		"it is not there more": {Target: "/nothing", FS: "xfs"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				dir, m := t.TempDir(), newMachine()
				if _, err := newFreezer(t, dir, m).Freeze(t.Context(), vol, "op", time.Hour); err != nil {
					t.Fatal(err)
				}
				m.points = []mount.Point{m.points[0], now}
				m.frozen["/other"], m.frozen[now.Target] = true, true
				f := newFreezer(t, dir, m)
				synctest.Wait()
				if m.is(now.Target) != (now.Target == "/nothing") || !m.is("/other") || left(t, dir) != 0 {
					t.Errorf("frozen %v", m.frozen)
				}
				m.points = newMachine().points
				if _, err := f.Freeze(t.Context(), vol, "op", time.Hour); err != nil {
					t.Errorf("again: %v", err)
				}
				f.Close()
			})
		})
	}
}
