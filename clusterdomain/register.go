package clusterdomain

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"time"

	"github.com/google/uuid"
	"go.uber.org/zap"

	"github.com/tandem-storage/tandem/kvdb"
)

// revokeWait bounds how long a node that stops waits for its registration to be taken back.
const revokeWait = 2 * time.Second

// register keeps the node's registration alive until ctx ends. A lease that was lost is replaced.
func (m *Manager) register(ctx context.Context) error {
	for failing := false; ctx.Err() == nil; {
		err := m.hold(ctx)
		switch {
		case ctx.Err() != nil || errors.Is(err, kvdb.ErrClosed):
			return nil
		case errors.Is(err, ErrNodeDomain):
			return err
		case err == nil:
			m.lg.Warn("registration lost, registering again")
			failing = false
			continue
		case !failing:
			m.lg.Warn("node not registered", zap.Error(err))
			failing = true
		}
		kvdb.Pause(ctx, retryAfter)
	}
	return nil
}

// hold registers the node and returns nil when its lease is gone.
func (m *Manager) hold(ctx context.Context) error {
	if err := m.bootstrap(ctx); err != nil {
		return err
	}
	lease, err := m.store.Grant(ctx, m.o.TTL)
	if err != nil {
		return fmt.Errorf("grant lease: %w", err)
	}
	defer func() {
		// Also after an error: a lease that nobody holds would be kept alive for ever.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), revokeWait)
		defer cancel()
		if err := lease.Revoke(ctx); err != nil && !errors.Is(err, kvdb.ErrLeaseGone) && !errors.Is(err, kvdb.ErrClosed) {
			m.lg.Warn("registration not taken back, it expires by itself", zap.Error(err))
		}
	}()
	var at time.Time
	for written, failing := (Node{}), false; ; {
		n := m.o.Node
		n.Pools, n.Fragile = m.o.Pools(), m.o.Fragile()
		wait := m.o.Refresh
		if !n.nearly(written) || time.Since(at) >= usedAfter && !reflect.DeepEqual(n, written) {
			switch err := m.write(ctx, n, lease.ID()); {
			case err == nil:
				written, failing, at = n, false, time.Now()
			case errors.Is(err, ErrNodeDomain), errors.Is(err, kvdb.ErrClosed):
				return err
			case errors.Is(err, kvdb.ErrLeaseGone):
				return nil
			default:
				if !failing && ctx.Err() == nil {
					m.lg.Warn("registration not written", zap.Error(err))
				}
				failing, wait = true, retryAfter
			}
		}
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			t.Stop()
			return ctx.Err()
		case <-lease.Done():
			t.Stop()
			return nil
		case <-t.C:
		}
	}
}

// How full a pool is changes all the time, if only by the log of the kvdb beside it, and every node reads the cluster anew when a registration
// changes. By less than a part in usedPart of the pool it is told only every usedAfter.
const (
	usedPart  = 256
	usedAfter = time.Minute
)

// nearly reports whether a registration says the same as another one, but for how full pools are, and that nearly.
func (n Node) nearly(o Node) bool {
	if len(n.Pools) != len(o.Pools) {
		return false
	}
	n.Pools = slices.Clone(n.Pools)
	for i := range n.Pools {
		p, q := &n.Pools[i], &o.Pools[i]
		if d := p.Used - q.Used; max(d, -d) <= p.Total/usedPart {
			p.Used = q.Used
		}
	}
	return reflect.DeepEqual(n, o)
}

// bootstrap makes the records that the first node of a cluster or of a domain finds missing.
// What is there already is left as it is: a node that returns does not activate its domain.
func (m *Manager) bootstrap(ctx context.Context) error {
	if _, err := Incarnation(ctx, m.store, m.o.Cluster, m.o.Node.Name); err != nil {
		return err
	}
	if m.o.Node.Witness {
		return nil
	}
	d := Domain{
		Name: m.o.Node.Domain, State: Active, Epoch: 1, Actor: "node " + m.o.Node.Name,
		Reason: "first node registered", Time: time.Now().UTC(), Proposal: uuid.NewString(),
	}
	value, err := encode(d)
	if err != nil {
		return err
	}
	_, err = kvdb.Create(ctx, m.store, DomainKey(m.o.Cluster, d.Name), value)
	if err != nil && !errors.Is(err, kvdb.ErrConflict) {
		return fmt.Errorf("create domain %s: %w", d.Name, err)
	}
	return nil
}

// write puts the registration, unless the cluster knows the node in another domain: its
// replicas count as copies in that one.
func (m *Manager) write(ctx context.Context, n Node, lease kvdb.LeaseID) error {
	n.Time = time.Now().UTC()
	key := knownPrefix(m.o.Cluster) + n.Name
	var mod kvdb.Revision
	switch kv, err := m.store.Get(ctx, key); {
	case err == nil:
		var known Node
		if err := json.Unmarshal(kv.Value, &known); err != nil {
			return fmt.Errorf("%w: %s: %w", ErrBadRecord, kv.Key, err)
		}
		if known.Domain != n.Domain {
			return fmt.Errorf("%w: node %s is configured for domain %s, but the cluster knows it in domain %s: give a node that moves a new name",
				ErrNodeDomain, n.Name, n.Domain, known.Domain)
		}
		mod = kv.Mod
	case !errors.Is(err, kvdb.ErrNotFound):
		return fmt.Errorf("read node %s: %w", n.Name, err)
	}
	value, err := encode(n)
	if err != nil {
		return err
	}
	res, err := m.store.Txn(ctx, kvdb.Txn{
		If: []kvdb.Cmp{{Key: key, Target: kvdb.CmpMod, Revision: mod}},
		Then: []kvdb.Op{
			{Kind: kvdb.OpPut, Key: key, Value: value},
			{Kind: kvdb.OpPut, Key: nodePrefix(m.o.Cluster) + n.Name, Value: value, Lease: lease},
		},
	})
	if err == nil && !res.Succeeded {
		err = kvdb.ErrConflict
	}
	if err != nil {
		return fmt.Errorf("register node %s: %w", n.Name, err)
	}
	return nil
}

// encode makes the value of a key.
func encode(v any) ([]byte, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrBadRecord, err)
	}
	return b, nil
}
