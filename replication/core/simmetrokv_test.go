package core

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing/synctest"
	"time"

	"github.com/tandem-storage/tandem/clusterdomain"
	"github.com/tandem-storage/tandem/kvdb"
	"github.com/tandem-storage/tandem/kvdb/memkv"
	"github.com/tandem-storage/tandem/replication"
	"github.com/tandem-storage/tandem/volume"
)

// The way of the machines of a simMetro to the kvdb. What they ask waits at a gate: it takes effect when the world says so, with an answer or
// without, also after who asked has stopped waiting, or is dead.

// simStore is the kvdb as one life of a machine's process sees it.
type simStore struct {
	m    *simMachine
	kv   *memkv.Store
	dead bool // under simMetro.mu
}

var _ kvdb.Store = (*simStore)(nil)

// simRequest waits at the gate.
type simRequest struct {
	of     *simStore
	key    string // orders what comes at once
	txn    *kvdb.Txn
	do     func(*memkv.Store) (any, error)
	answer chan simAnswer
	taken  bool
	late   bool // nobody waits for the answer
	asked  int64
	at     int64 // when it gets through
}

type simAnswer struct {
	res any
	err error
}

// die ends the life: nothing is answered any more.
func (s *simStore) die() {
	s.m.c.mu.Lock()
	s.dead = true
	s.m.c.mu.Unlock()
	_ = s.kv.Close()
}

func (s *simStore) ask(ctx context.Context, r *simRequest) (any, error) {
	r.of, r.answer = s, make(chan simAnswer, 1)
	s.m.c.mu.Lock()
	if s.dead {
		s.m.c.mu.Unlock()
		return nil, kvdb.ErrClosed
	}
	s.m.c.asked = append(s.m.c.asked, r)
	s.m.c.mu.Unlock()
	select {
	case a := <-r.answer:
		return a.res, a.err
	case <-ctx.Done():
		return nil, fmt.Errorf("%w: %w", kvdb.ErrUnavailable, ctx.Err())
	}
}

// Get implements kvdb.Store.
func (s *simStore) Get(ctx context.Context, key string) (kvdb.KV, error) {
	res, err := s.ask(ctx, &simRequest{key: "get " + key, do: func(kv *memkv.Store) (any, error) { return kv.Get(context.Background(), key) }})
	if err != nil {
		return kvdb.KV{}, err
	}
	return res.(kvdb.KV), nil
}

// simList is what a List returns.
type simList struct {
	kvs []kvdb.KV
	rev kvdb.Revision
}

// List implements kvdb.Store.
func (s *simStore) List(ctx context.Context, prefix string) ([]kvdb.KV, kvdb.Revision, error) {
	res, err := s.ask(ctx, &simRequest{key: "list " + prefix, do: func(kv *memkv.Store) (any, error) {
		kvs, rev, err := kv.List(context.Background(), prefix)
		return simList{kvs, rev}, err
	}})
	if err != nil {
		return nil, 0, err
	}
	l := res.(simList)
	return l.kvs, l.rev, nil
}

// Txn implements kvdb.Store.
func (s *simStore) Txn(ctx context.Context, t kvdb.Txn) (kvdb.TxnResult, error) {
	key := "txn"
	for _, op := range t.Then {
		key += " " + op.Key
	}
	res, err := s.ask(ctx, &simRequest{key: key, txn: &t, do: func(kv *memkv.Store) (any, error) { return kv.Txn(context.Background(), t) }})
	if err != nil {
		return kvdb.TxnResult{}, err
	}
	return res.(kvdb.TxnResult), nil
}

// Watch implements kvdb.Store.
func (s *simStore) Watch(ctx context.Context, prefix string, after kvdb.Revision) <-chan kvdb.Event {
	ch := make(chan kvdb.Event, 1)
	go func() {
		defer close(ch)
		for e := range s.kv.Watch(ctx, prefix, after) {
			shown := make(chan struct{})
			s.m.c.leave(simTold{"event " + s.m.name + " " + prefix, func() { close(shown) }, s})
			<-shown
			select {
			case ch <- e:
			case <-ctx.Done():
			}
		}
	}()
	return ch
}

// Grant implements kvdb.Store.
func (s *simStore) Grant(ctx context.Context, ttl time.Duration) (kvdb.Lease, error) {
	res, err := s.ask(ctx, &simRequest{key: "grant", do: func(*memkv.Store) (any, error) { return s.kv.Grant(context.Background(), ttl) }})
	if err != nil {
		return nil, err
	}
	return res.(kvdb.Lease), nil
}

// Close implements kvdb.Store.
func (s *simStore) Close() error { return nil }

// serve lets what is due through the gate, in an order that follows from the seed alone.
func (c *simMetro) serve() {
	c.mu.Lock()
	asked := c.asked
	c.mu.Unlock()
	slices.SortStableFunc(asked, func(a, b *simRequest) int {
		if a.taken && b.taken {
			return cmp.Compare(a.at, b.at)
		}
		if a.taken != b.taken {
			return map[bool]int{true: -1, false: 1}[a.taken]
		}
		return cmp.Or(strings.Compare(a.of.m.name, b.of.m.name), strings.Compare(a.key, b.key))
	})
	delay := map[*simStore]int64{}
	var due, rest []*simRequest
	for _, r := range asked {
		if !r.taken {
			if _, drawn := delay[r.of]; !drawn { // what is asked at once arrives at once: who asked first is nobody's to know
				delay[r.of] = c.rng.Int64N(30e6)
				switch {
				case c.kvSlow:
					delay[r.of] = c.rng.Int64N(4e9)
				case c.rng.IntN(4) == 0: // so that others come in between
					delay[r.of] = c.rng.Int64N(400e6)
				}
			}
			r.taken, r.asked, r.at = true, c.now, c.now+delay[r.of]
		}
		switch {
		case r.of.dead || r.at <= c.now && !(r.of.m.paused && r.of.m.store == r.of):
			due = append(due, r)
		default:
			rest = append(rest, r)
		}
	}
	c.mu.Lock()
	c.asked = append(rest, c.asked[len(asked):]...)
	c.mu.Unlock()
	for _, r := range due {
		c.pass(r)
		synctest.Wait() // one after the other
	}
}

// pass lets a request through, or not.
func (c *simMetro) pass(r *simRequest) {
	out := fmt.Errorf("%w: out of reach", kvdb.ErrUnavailable)
	switch {
	case r.of.dead:
		if r.txn != nil && c.rng.IntN(2) == 0 { // it was on its way when the process died
			c.carryOut(r)
		}
		r.answer <- simAnswer{nil, kvdb.ErrClosed}
	case !r.of.m.reaches():
		r.answer <- simAnswer{nil, out}
	case r.txn != nil && c.unknown > 0 && c.rng.IntN(100) < c.unknown:
		c.seen["fault: outcome unknown"]++
		switch c.rng.IntN(3) {
		case 0:
			c.carryOut(r)
		case 1: // later
			late := *r
			late.late, late.answer, late.at = true, make(chan simAnswer, 1), c.now+c.rng.Int64N(3e9)
			c.mu.Lock()
			c.asked = append(c.asked, &late)
			c.mu.Unlock()
		}
		r.answer <- simAnswer{nil, out}
	default:
		res, err := c.carryOut(r)
		r.answer <- simAnswer{res, err}
	}
}

// carryOut lets a request take effect.
func (c *simMetro) carryOut(r *simRequest) (any, error) {
	if r.txn == nil {
		return r.do(r.of.kv)
	}
	res, err := c.look.Txn(context.Background(), *r.txn)
	if err == nil && res.Succeeded {
		c.committed(r, res.Revision)
	}
	return res, err
}

// committed notes what a transaction has changed.
func (c *simMetro) committed(r *simRequest, rev kvdb.Revision) {
	m := r.of.m
	var changed []clusterdomain.Domain
	for _, op := range r.txn.Then {
		if op.Kind != kvdb.OpPut {
			continue
		}
		for _, w := range c.vols {
			if op.Key == simConfigKey(w.vol) {
				cfg := new(replication.Config)
				if err := json.Unmarshal(op.Value, cfg); err != nil {
					c.fail("%v", err)
				}
				c.check.config(m, w, cfg)
				w.commit(m.nodes[w.vol[0]-1], Change{Next: cfg})
				w.rev = uint64(rev)
			}
		}
		for _, d := range c.domains {
			if op.Key == clusterdomain.DomainKey(simCluster, d) {
				dom, err := clusterdomain.ParseDomain(kvdb.KV{Key: op.Key, Value: op.Value, Mod: rev})
				if err != nil {
					c.fail("%v", err)
				}
				changed = append(changed, dom)
			}
		}
	}
	if len(changed) > 0 {
		c.check.changed(m, changed, r.asked)
	}
}

// change carries a coordinator's change out, as cmd/internal/daemon and replication/volume do.
func (c *simMetro) change(n *simNode, ch Change) {
	m, w, coord, facts := n.site, n.w, n.coord, n.site.facts
	ctx, cancel := context.WithTimeout(m.ctx, simKVTimeout)
	domain := n.domain
	m.ended.Go(func() {
		defer cancel()
		out, cfg, rev := attemptChange(ctx, facts, ch, domain)
		c.post(fmt.Sprint("change ", m.name, w.vol), func() {
			w.once(n, func() {
				if n.alive(coord) {
					coord.ChangeDone(n.clock(), out, cfg, rev)
					n.drainCoord()
				}
			})
		})
	})
}

func attemptChange(ctx context.Context, facts *simFacts, ch Change, domain replication.DomainID) (Outcome, *replication.Config, uint64) {
	configs, err := facts.configs(ctx)
	if err != nil {
		return ChangeNotSent, nil, 0
	}
	rev, err := configs.CompareAndSwap(ctx, kvdb.Revision(ch.Rev), ch.Next, domain)
	switch {
	case err == nil:
		return ChangeOK, nil, uint64(rev)
	case errors.Is(err, replication.ErrVolumeNotFound):
		return ChangeGone, nil, 0
	case errors.Is(err, replication.ErrRolledBack), errors.Is(err, volume.ErrIncarnation):
		return ChangeRolledBack, nil, 0
	case errors.Is(err, volume.ErrDomainNotActive):
		return ChangeRefused, nil, 0
	case errors.Is(err, volume.ErrNotSent):
		return ChangeNotSent, nil, 0
	case errors.Is(err, volume.ErrInvalidChange):
		panic(err)
	case !errors.Is(err, volume.ErrConflict):
		return ChangeUnknown, nil, 0
	}
	cfg, rev, err := configs.Load(ctx, ch.Next.Volume)
	if err != nil {
		return ChangeUnknown, nil, 0
	}
	return ChangeConflict, cfg, uint64(rev)
}
