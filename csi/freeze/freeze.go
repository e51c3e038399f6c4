// Package freeze freezes the file systems of volumes for the moment of a snapshot, and thaws them whatever happens: when it is told to, when their time is up, and, if the process died meanwhile, when it
// runs again. Until then nothing could write to them in any case, because their devices are served by that process.
package freeze

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/tandem-storage/tandem/csi/mount"
)

// What can be wrong. Test with errors.Is.
var (
	ErrBusy  = errors.New("freeze: another snapshot has the file system frozen")
	ErrSlow  = errors.New("freeze: what is to be written out first takes too long")
	ErrEnded = errors.New("freeze: the file system was frozen for as long as it may be, and was thawed before the snapshot was taken")
)

// Frozen is a file system that is frozen.
type Frozen interface {
	Thaw() (was bool, err error)
}

// Mounts is what a Freezer needs of the machine.
type Mounts interface {
	List() ([]mount.Point, error)
	// Freeze may take as long as the device takes. Thaw thaws what a process before this one froze.
	Freeze(target string) (Frozen, error)
	Thaw(target string) (was bool, err error)
}

// Freezer freezes file systems on this machine. Methods may be called concurrently.
type Freezer struct {
	dir    string
	mounts Mounts
	lg     *zap.Logger

	mu      sync.Mutex
	volumes map[string]*attempt
}

// attempt is a volume whose file system is frozen, or is to be.
type attempt struct {
	op      string
	target  string
	frozen  Frozen // nil while it is not, or not any more
	givenUp bool   // it is thawed as soon as it is frozen
	end     *time.Timer
}

// New returns a Freezer that remembers in dir, which is made, what it has frozen. What a process before this one left frozen is thawed, in the background.
func New(dir string, m Mounts, lg *zap.Logger) (*Freezer, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("freeze: %w", err)
	}
	left, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("freeze: %w", err)
	}
	f := &Freezer{dir: dir, mounts: m, lg: lg, volumes: map[string]*attempt{}}
	for _, e := range left {
		a := &attempt{}
		f.volumes[e.Name()] = a
		go f.recover(e.Name(), a)
	}
	return f, nil
}

// recover thaws what a process before this one left frozen.
func (f *Freezer) recover(volume string, a *attempt) {
	defer f.forget(volume, a)
	lg := f.lg.With(zap.String("volume-id", volume))
	target, err := os.ReadFile(filepath.Join(f.dir, volume))
	var points []mount.Point
	if err == nil {
		points, err = f.mounts.List()
	}
	if err != nil {
		lg.Error("file system is perhaps still frozen: thaw it with fsfreeze --unfreeze", zap.Error(err))
		return
	}
	// Where it was; its device may be one that shows no more whose it is. And where it is.
	at := map[string]bool{mounted(points, volume): true}
	for _, p := range points {
		at[p.Target] = at[p.Target] || p.Target == string(target)
	}
	for path, is := range at {
		if path == "" || !is {
			continue
		}
		switch was, err := f.mounts.Thaw(path); {
		case err != nil:
			lg.Error("file system is perhaps still frozen: thaw it with fsfreeze --unfreeze", zap.String("target", path), zap.Error(err))
		case was:
			lg.Warn("file system thawed that was frozen for a snapshot when this daemon died", zap.String("target", path))
		}
	}
}

// mounted is where a volume's file system is mounted, "" if it is not here.
func mounted(points []mount.Point, volume string) string {
	for i := len(points) - 1; i >= 0; i-- { // the newest attachment
		if p := points[i]; !p.Block && p.FS != "" && strings.Contains(p.Backing, "/"+volume+".") {
			return p.Target
		}
	}
	return ""
}

// Freeze freezes the file system of a volume for operation op, for at most hold, counted from when it is frozen. here is false if it has none that is mounted on this machine. When ctx ends first it is not frozen, or thawed
// as soon as it is. Thaw is to follow, unless there was an error. Errors: ErrBusy, ErrSlow, mount.ErrFrozen, those of the machine.
func (f *Freezer) Freeze(ctx context.Context, volume, op string, hold time.Duration) (here bool, _ error) {
	points, err := f.mounts.List()
	if err != nil {
		return false, err
	}
	target := mounted(points, volume)
	if target == "" {
		return false, nil
	}
	a := &attempt{op: op, target: target}
	f.mu.Lock()
	if f.volumes[volume] != nil {
		f.mu.Unlock()
		return true, ErrBusy
	}
	f.volumes[volume] = a
	f.mu.Unlock()
	// Before: what is frozen is on record.
	if err := os.WriteFile(filepath.Join(f.dir, volume), []byte(target), 0o600); err != nil {
		f.forget(volume, a)
		return true, fmt.Errorf("freeze: %w", err)
	}
	done := make(chan error, 1)
	go func() { done <- f.freeze(volume, a, hold) }()
	select {
	case err := <-done:
		return true, err
	case <-ctx.Done():
	}
	f.mu.Lock()
	a.givenUp = true
	was := f.take(a)
	f.mu.Unlock()
	if was != nil {
		f.thaw(volume, a, was)
	}
	return true, ErrSlow
}

// freeze waits until the file system is frozen, and thaws it at once if nobody waits for that any more.
func (f *Freezer) freeze(volume string, a *attempt, hold time.Duration) error {
	frozen, err := f.mounts.Freeze(a.target)
	if err != nil {
		f.forget(volume, a)
		return err
	}
	f.mu.Lock()
	givenUp := a.givenUp
	if !givenUp {
		a.frozen, a.end = frozen, time.AfterFunc(hold, func() { f.timeUp(volume, a) })
	}
	f.mu.Unlock()
	if givenUp {
		f.thaw(volume, a, frozen)
	}
	return nil
}

// take returns what a has frozen, to one caller. f.mu is held.
func (f *Freezer) take(a *attempt) Frozen {
	was := a.frozen
	if a.frozen = nil; was != nil {
		a.end.Stop()
	}
	return was
}

func (f *Freezer) timeUp(volume string, a *attempt) {
	f.mu.Lock()
	was := f.take(a)
	f.mu.Unlock()
	if was != nil {
		f.lg.Warn("file system was frozen for a snapshot for as long as it may be, and is thawed", zap.String("volume-id", volume), zap.String("target", a.target))
		f.thaw(volume, a, was)
	}
}

// thaw thaws, and forgets if that worked: else the next process tries again.
func (f *Freezer) thaw(volume string, a *attempt, was Frozen) bool {
	still, err := was.Thaw()
	if err != nil {
		f.lg.Error("file system is perhaps still frozen: thaw it with fsfreeze --unfreeze", zap.String("volume-id", volume), zap.String("target", a.target), zap.Error(err))
		return false
	}
	f.forget(volume, a)
	return still
}

func (f *Freezer) forget(volume string, a *attempt) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.volumes[volume] != a {
		return
	}
	delete(f.volumes, volume)
	if err := os.Remove(filepath.Join(f.dir, volume)); err != nil && !errors.Is(err, os.ErrNotExist) {
		f.lg.Warn("record of a frozen file system is left, the next start removes it", zap.String("volume-id", volume), zap.Error(err))
	}
}

// Thaw thaws what Freeze has frozen for op. ErrEnded: it was not frozen any more.
func (f *Freezer) Thaw(volume, op string) error {
	f.mu.Lock()
	a := f.volumes[volume]
	var was Frozen
	if a != nil && a.op == op {
		was = f.take(a)
	}
	f.mu.Unlock()
	if was == nil || !f.thaw(volume, a, was) {
		return ErrEnded
	}
	return nil
}

// Close thaws everything. What is being frozen is thawed as soon as it is.
func (f *Freezer) Close() {
	f.mu.Lock()
	left := map[string]*attempt{}
	frozen := map[string]Frozen{}
	for v, a := range f.volumes {
		a.givenUp = true
		if was := f.take(a); was != nil {
			left[v], frozen[v] = a, was
		}
	}
	f.mu.Unlock()
	for v, was := range frozen {
		f.thaw(v, left[v], was)
	}
}

// System is this machine.
type System struct{ mount.System }

var _ Mounts = System{}

// Freeze implements Mounts.
func (s System) Freeze(target string) (Frozen, error) {
	f, err := s.System.Freeze(target)
	if err != nil {
		return nil, err
	}
	return f, nil
}
