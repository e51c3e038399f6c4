package clusterdomain

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"
	"go.uber.org/zap"

	"github.com/tandem-storage/tandem/clusterdomain/arbiter"
	"github.com/tandem-storage/tandem/kvdb"
)

// settleEvery is how often a domain that drains or rejoins is looked at.
const settleEvery = time.Second

// settleLoop carries domains that drain or rejoin on. Every node does it; a
// compare-and-set lets one win.
func (m *Manager) settleLoop(ctx context.Context) {
	tick := time.NewTicker(settleEvery)
	defer tick.Stop()
	for failing := false; ; {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		err := m.Settle(ctx)
		if err != nil && !failing && ctx.Err() == nil {
			m.lg.Warn("domain not carried on", zap.Error(err))
		}
		failing = err != nil
	}
}

// Settle carries every domain that drains or rejoins one step on: evicts the replicas of detached
// volumes, and writes the state that is due. Run does it all the time.
func (m *Manager) Settle(ctx context.Context) error {
	v := m.View()
	var vols []arbiter.Volume
	for _, d := range v.Domains {
		if d.State != Draining && d.State != Rejoining {
			continue
		}
		if vols == nil {
			var err error
			if vols, err = m.Facts(ctx); err != nil {
				return err
			}
		}
		p := arbiter.Settle(arbiter.View{Domains: states(v.Domains), Volumes: vols}, d.Name, d.AcceptDataLoss)
		if v.State(m.o.Node.Domain).MayPlace() { // not one that is itself on its way out
			for _, vol := range p.Evict {
				if err := m.o.Volumes.EvictDetached(ctx, vol.ID, d.Name); err != nil {
					return fmt.Errorf("evict the replicas of volume %s in domain %s: %w", vol.ID, d.Name, err)
				}
			}
		}
		if p.Next == d.State {
			continue
		}
		next := d.next(p.Next, "node "+m.o.Node.Name, settledReason(p), uuid.NewString())
		value, err := encode(next)
		if err != nil {
			return err
		}
		entry, err := m.trail.Stage(ctx, next.record("domain settle"))
		if err != nil {
			return err
		}
		key := DomainKey(m.o.Cluster, d.Name)
		t := kvdb.Txn{
			If:   []kvdb.Cmp{{Key: key, Target: kvdb.CmpMod, Revision: d.Mod}},
			Then: []kvdb.Op{{Kind: kvdb.OpPut, Key: key, Value: value}},
		}
		entry.AddTo(&t)
		if _, err := m.store.Txn(ctx, t); err != nil { // not succeeded: something moved, the next look tells what
			return fmt.Errorf("make domain %s %s: %w", d.Name, p.Next, err)
		}
		if err := m.Refresh(ctx); err != nil {
			return err
		}
	}
	return nil
}

func settledReason(p arbiter.Progress) string {
	if p.Next == Inactive {
		return "nothing is left there"
	}
	if len(p.Blocked) == 0 {
		return "all replicas are in sync"
	}
	s := make([]string, len(p.Blocked))
	for i, b := range p.Blocked {
		s[i] = fmt.Sprintf("%s (%s)", b.Volume.Name, b.Cause)
	}
	return "replicas are in sync, but for " + strings.Join(s, ", ")
}

// Facts returns all volumes, with what this node knows of their coordinators.
func (m *Manager) Facts(ctx context.Context) ([]arbiter.Volume, error) {
	vols, err := m.o.Volumes.Facts(ctx)
	if err != nil {
		return nil, fmt.Errorf("read volumes: %w", err)
	}
	v := m.View()
	for i := range vols {
		n, _ := v.Node(vols[i].Coordinator.Node)
		vols[i].Coordinator.Online = n.Online
	}
	return vols, nil
}
