package clusterdomain

import (
	"context"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/tandem-storage/tandem/clusterdomain/arbiter"
	"github.com/tandem-storage/tandem/kvdb"
)

// After a failover each node attaches what it is the target of (arbiter.Target). Nothing is assigned: that a volume is to
// go on follows from its configuration, still attached in a domain that an arbiter fenced, and where it does from
// who is there. So a node that is lost too is replaced by another one, and whoever detaches the volume, attaches it
// elsewhere or activates the domain ends it.

const (
	assumeEvery  = time.Second      // while there is something to attach
	assumeRest   = 10 * time.Second // while there is nothing
	assumeAtOnce = 16               // volumes
)

// assuming are the volumes that are being attached here.
type assuming struct {
	sync.Mutex
	under    map[string]bool
	attempts map[string]int
	running  sync.WaitGroup
}

// assumeLoop attaches what is to go on here.
func (m *Manager) assumeLoop(ctx context.Context) {
	if m.o.Failover.Attach == nil {
		return
	}
	defer m.assuming.running.Wait()
	views := m.Watch(ctx)
	for failing := false; ; {
		pending, err := m.assume(ctx)
		if err != nil && !failing && ctx.Err() == nil {
			m.lg.Warn("volumes of a fenced domain not readable", zap.Error(err))
		}
		failing = err != nil
		wait := assumeRest
		if pending || failing {
			wait = assumeEvery
		}
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			t.Stop()
			return
		case <-views:
		case <-t.C:
		}
		t.Stop()
	}
}

// assume begins to attach what is to go on on this node, and reports whether anything is to go on anywhere.
func (m *Manager) assume(ctx context.Context) (pending bool, _ error) {
	v := m.View()
	for _, d := range v.Domains {
		if d.State != Fenced || d.Failover == nil || !v.State(m.o.Node.Domain).MayAttach() {
			continue
		}
		vols, err := m.Facts(ctx)
		if err != nil {
			return false, err
		}
		for _, vol := range vols {
			if vol.Coordinator.Domain != d.Name || !vol.Attached() {
				continue
			}
			node, _, cause := arbiter.Target(arbiter.View{Domains: states(v.Domains), Volumes: vols}, nodes(v), vol, d.Failover.To)
			pending = pending || cause == "" || cause == arbiter.NoNode
			if cause == "" && node == m.o.Node.Name {
				m.begin(ctx, d, vol)
			}
		}
	}
	return pending, nil
}

// begin attaches a volume, unless that is under way or there is too much else.
func (m *Manager) begin(ctx context.Context, d Domain, vol arbiter.Volume) {
	a := &m.assuming
	a.Lock()
	defer a.Unlock()
	if a.under == nil {
		a.under, a.attempts = make(map[string]bool), make(map[string]int)
	}
	if a.under[vol.ID] || len(a.under) >= assumeAtOnce {
		return
	}
	a.under[vol.ID] = true
	a.attempts[vol.ID]++
	n := a.attempts[vol.ID]
	a.running.Go(func() {
		done := m.attach(ctx, d, vol, n)
		a.Lock()
		defer a.Unlock()
		delete(a.under, vol.ID)
		if done {
			delete(a.attempts, vol.ID)
		}
	})
}

// attach attaches a volume and keeps on record what became of it.
func (m *Manager) attach(ctx context.Context, d Domain, vol arbiter.Volume, attempt int) (done bool) {
	lg := m.lg.With(zap.String("volume-id", vol.ID), zap.Uint64("failover", d.Failover.ID))
	epoch, err := m.o.Failover.Attach(ctx, vol.ID, d.Reason)
	if ctx.Err() != nil {
		return false
	}
	mv := Moved{Node: m.o.Node.Name, Epoch: epoch, Attempts: attempt}
	if err != nil {
		lg.Warn("volume of a fenced domain not attached", zap.Int("attempt", attempt), zap.Error(err))
		mv.Error = err.Error()
	} else {
		mv.Attached = time.Now().UTC()
		lg.Warn("volume of a fenced domain attached", zap.Uint64("epoch", epoch))
	}
	if err := m.writeMoved(ctx, movedPrefix(m.o.Cluster, d.Failover.ID)+vol.ID, mv); err != nil {
		lg.Warn("what became of a volume is not on record", zap.Error(err))
	}
	return mv.Error == ""
}

// recordAttempts is how often it is tried to write a record that nothing depends on.
const recordAttempts = 10

func (m *Manager) writeMoved(ctx context.Context, key string, mv Moved) error {
	value, err := encode(mv)
	if err != nil {
		return err
	}
	for i := range recordAttempts {
		if i > 0 && !sleep(ctx, retryAfter) {
			break
		}
		if _, err = kvdb.Put(ctx, m.store, key, value); err == nil {
			return nil
		}
	}
	return err
}
